"""Several animals in one set: told apart by recording, a template of each, samples of all."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import overridden, smoke, write_images
from builders_atlas import SHAPE, SIZE, motions
from builders_atlas import atlas as small_atlas
from PIL import Image

from configs import worms
from deformgan import camera as cameras
from deformgan import evaluate, intake, sample, train
from deformgan.camera import Camera
from deformgan.checkpoint import Checkpoints
from deformgan.data import pipeline, simulated
from deformgan.errors import UserError
from deformgan.fields import POINT_STATUS
from deformgan.imaging import animals, annotation, deformations, estimation, noise, template
from deformgan.imaging.annotation import Annotation
from deformgan.imaging.atlas import render, still
from deformgan.imaging.deformations import Distribution
from deformgan.imaging.estimation import Model
from deformgan.objectives import atlas as objective
from deformgan.objectives.contract import Inputs
from deformgan.workdir import Workdir

COUNTS = {"worm1": 24, "worm2": 20}


def config_of(path, **overrides):
    """The atlas on a folder whose sub-folders are recordings."""
    config = worms.get_config("smoke")
    config.train.batch_size = 8
    given = {"data__source": "folder", "data__path": str(path), "data__screen": "off"}
    return overridden(config, given | overrides)


def built(path, wanted, **overrides):
    config = config_of(path, **overrides)
    return pipeline.build(pipeline.open_frames(config.data), config.data, config.source, wanted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two animals: the second is the first set's next images, mirrored and darker."""
    root = tmp_path_factory.mktemp("animals")
    frames = simulated.read(
        config_of("", data__set="gaussian_low", data__count=sum(COUNTS.values())).data
    )
    first = 0
    for name, count in COUNTS.items():
        (root / name).mkdir()
        for i in range(count):
            frame = frames.read(first + i)
            image = frame.image[..., 0]
            if name == "worm2":
                image = (0.6 * image[::-1, ::-1]).astype(np.uint8)
            Image.fromarray(image).save(root / name / f"frame{i}.png")
            if first + i == 0:
                mask = np.where(frame.labels.mask > 2, 0, frame.labels.mask)
                Image.fromarray(mask.astype(np.uint8)).save(root.parent / "mask.png")
        first += count
    return root


def varied(like, somata, seed, scale):
    """A distribution of motions whose parts vary by up to `scale` apart from each other."""
    size = sum(part[0].size for part in like)
    rng = np.random.default_rng(seed)
    spread = scale * rng.random(size)[:, None] * np.linspace(-2, 2, 16)[None]
    turned = jnp.zeros((size, 4 * somata))
    return Distribution(jnp.eye(size), jnp.asarray(spread, jnp.float32), turned)


def guessed(images, source, labels, step, settings, *, seed, say):
    """In place of the estimation, which test_estimation.py runs: a source with made-up motions."""
    found = noise.estimate(images, step, seed)
    atlas = template.first_atlas(source, found.background, found.camera, settings.somata)
    like = still(settings.shape, len(atlas.centres), 1)
    distribution = varied(like, len(atlas.centres), seed, scale=0.01)
    white = jax.random.normal(jax.random.key(seed), (len(images), len(distribution.root)))
    motion = deformations.motions(distribution, white, like)
    labels = annotation.annotate(labels, atlas, like, settings.nodes)
    model = Model(atlas, found.camera, distribution, labels)
    shown = estimation._evidence(found.curve, found.kind, images, model, motion, settings)
    return model, motion, shown


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A run on both animals, of which the first is annotated; and its samples."""
    path = tmp_path_factory.mktemp("run")
    config = config_of(
        folder,
        fit__animals="worm1, worm2",
        source__image="worm1/frame0.png",
        source__mask=str(folder.parent / "mask.png"),
        train__steps=0,
    )
    config.evaluate.tests, config.evaluate.metrics = ("statistics",), ("field_health",)
    config.evaluate.features = ("random",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimation, "estimate", guessed)
        train.run(config, str(path / "run"))
    sample.run(
        str(path / "run"), None, num=40, out=str(path / "out"), form="npz", seed=0, step="newest"
    )
    return path


@pytest.fixture(scope="module")
def whose(run):
    """Which animal each sample is of."""
    with (run / "out" / "animals.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["sample"]) for row in rows] == list(range(40))
    return np.array([row["animal"] for row in rows])


def test_samples_resemble_the_animal_that_they_are_said_to_be_of(run, folder, whose):
    means = {}
    for name in COUNTS:
        stack = [np.asarray(Image.open(file)) for file in (folder / name).iterdir()]
        means[name] = np.mean(stack, 0)
    with np.load(run / "out" / "samples.npz") as found:
        images = found["images"][..., 0].astype(float)
    away = {name: np.square(images - mean).mean((1, 2)) for name, mean in means.items()}
    nearest = np.where(away["worm1"] < away["worm2"], "worm1", "worm2")
    assert set(whose) == set(COUNTS) and np.all(nearest == whose)


def test_the_manifest_counts_the_animals(run, whose):
    manifest = json.loads((run / "out" / "manifest.json").read_text())
    assert manifest["animals"] == {name: int(np.sum(whose == name)) for name in COUNTS}


def test_labels_move_in_the_annotated_animal_and_are_absent_in_the_other(run, whose):
    with (run / "out" / "points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 40
    absent = np.array([row["status"] == "absent" for row in rows]).reshape(40, 2)
    assert np.array_equal(absent, np.repeat((whose == "worm2")[:, None], 2, 1))
    assert all(row["row"] == "nan" for row in rows if row["status"] == "absent")
    with np.load(run / "out" / "samples.npz") as found:
        masks = found["masks"][..., 0]
        bright = found["images"][..., 0]
    assert not masks[whose == "worm2"].any()
    for row in rows:
        if row["status"] == "ok":
            place = round(float(row["row"])), round(float(row["column"]))
            assert masks[int(row["sample"])][place] == int(row["id"])
    own = whose == "worm1"
    assert bright[own][masks[own] > 0].mean() > 2 * bright[own][masks[own] == 0].mean()


def test_the_share_of_each_is_that_of_its_training_images(run):
    workdir = Workdir(str(run / "run"), create=False)
    saved = Checkpoints(workdir.checkpoints, best="diversity", writable=False).sampler("newest")
    names = workdir.read_json("split.json")["names"]["train"]
    counts = np.array([sum(name.startswith(own) for name in names) for own in COUNTS])
    np.testing.assert_allclose(saved.constants["share"], counts / counts.sum(), rtol=1e-6)
    assert saved.constants["velocity"].shape[0] == counts.sum()
    assert saved.meta["animals"] == list(COUNTS)
    mine, other = animals.models(saved.constants)
    assert mine.annotation.masks.any() and not other.annotation.masks.any()
    assert float(mine.atlas.background) > 1.3 * float(other.atlas.background)


def test_what_was_estimated_is_shown_of_each(run):
    text = (run / "run" / "report.html").read_text()
    for number, name in enumerate(COUNTS):
        assert f"<figcaption>{name}. The template" in text
        assert (run / "run" / "estimation" / f"{number:03d}" / "estimation.npz").is_file()


def test_a_run_of_several_is_judged(run):
    evaluate.run(str(run / "run"), None, step="newest")
    found = json.loads((run / "run" / "evaluation.json").read_text())
    assert 0 <= found["tests"]["statistics"]["accuracy"] <= 1


# Which image is of which animal.


def test_each_animal_has_its_images_and_a_source_among_them(tmp_path):
    for seed, name in enumerate(("worm1a", "worm1b", "worm2")):
        write_images(tmp_path / name, 8, seed=seed)
    whole = built(tmp_path, "")
    assert [own.name for own in whole.animals] == [""]
    assert whole.animals[0].train.tolist() == list(range(len(whole.train)))
    data = built(tmp_path, "worm1*, worm2", source__image="worm2/frame1.png")
    first, second = data.animals
    assert (first.name, second.name) == ("worm1*", "worm2")
    names = data.split["names"]["train"]
    for own, start in ((first, "worm1"), (second, "worm2")):
        assert {i for i, n in enumerate(names) if n.startswith(start)} == set(own.train.tolist())
        assert own.source.name.startswith(start)
    assert second.source is data.source and data.source.name == "worm2/frame1.png"
    assert first.source.name in names
    kept = {"data__test": 0.0, "data__validation": 0.0}
    alone = built(tmp_path, "", data__recordings="worm1*", **kept)
    both = built(tmp_path, "worm1*,worm2", source__image="worm2/frame1.png", **kept)
    assert both.animals[0].source.name == alone.source.name  # by the rule of auto


def test_every_animal_is_trained_on_and_held_out_as_it_would_be_alone(tmp_path):
    for seed in range(6):
        write_images(tmp_path / f"worm{seed}", 5, seed=seed)
    split = built(tmp_path, "each").split["names"]
    alone = built(tmp_path, "", data__recordings="worm4").split["names"]
    for part, names in split.items():
        assert [name for name in names if name.startswith("worm4")] == alone[part]
    assert len({name.split("/")[0] for name in split["test"]}) == 6
    blocks = built(tmp_path, "each").split["blocks"]
    assert len(set().union(*blocks.values())) == 30  # none is shared by two animals


def test_one_animal_of_all_is_as_none_named(tmp_path):
    write_images(tmp_path / "worm1", 6)
    write_images(tmp_path / "worm2", 6, seed=1)
    one, none = built(tmp_path, "worm*"), built(tmp_path, "")
    assert one.split == none.split and one.source.name == none.source.name
    np.testing.assert_array_equal(one.animals[0].train, none.animals[0].train)
    assert one.animals[0].source is one.source


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("worm1,worm3", r"^fit.animals: no recording is called 'worm3'; there are 'few', 'worm1'"),
        ("worm1,few", r"^fit.animals: no pattern matches the recording 'worm2' \(worm1,few\)"),
        ("worm*,worm1,few", r"^fit.animals: several patterns match the recording 'worm1'"),
        ("worm*,few", r"^fit.animals: 'few' has 1 training images, of 2 in all; 2 or more"),
        ("each", r"^fit.animals: 'few' has 1 training images"),
        ("worm*,,few", r"^fit.animals: no recording is called ''"),
    ],
)
def test_recordings_that_are_not_told_apart_are_named(tmp_path, wanted, message):
    for seed, (name, count) in enumerate({"worm1": 6, "worm2": 6, "few": 2}.items()):
        write_images(tmp_path / name, count, seed=seed)
    with pytest.raises(UserError, match=message):
        built(tmp_path, wanted)


def test_only_an_atlas_tells_animals_apart(tmp_path):
    workdir = Workdir(str(tmp_path / "run"), create=True)
    for number in range(4):
        write_images(tmp_path / "images" / str(number), 1, seed=number)
    given = {"data__source": "folder", "data__path": str(tmp_path / "images")}
    reported = smoke(fit__animals="each", **given)
    assert len(intake.load(reported, workdir).animals) == 1
    reported.objective = "atlas"
    with pytest.raises(UserError, match="'each' would make every image an animal"):
        intake.load(reported, workdir)


# Models of several animals, made by hand.


def model(somata, camera, ids, seed):
    """A model of `somata` somata, whose points are in the middle of the first."""
    whole = small_atlas()
    atlas = whole._replace(
        somata=whole.somata[:somata] * (1 if somata == 2 else 0.5),
        centres=whole.centres[:somata],
        axes=whole.axes[:somata],
        radii=whole.radii[:somata],
    )
    labels = Annotation(
        masks=jnp.zeros((somata + 1, SIZE, SIZE), jnp.int32).at[0, 10:30, 10:30].set(somata),
        points=jnp.broadcast_to(atlas.centres[:1], (len(ids), 2)),
        layer=jnp.zeros(len(ids), jnp.int32),
        ids=jnp.array(ids, jnp.int32),
    )
    return Model(atlas, camera, varied(still(SHAPE, somata, 1), somata, seed, scale=0.02), labels)


@pytest.fixture(scope="module")
def models():
    """Two that differ in somata, in the kind of camera and in labels."""
    kernel = np.full((3, 3), 1 / 3)
    recorded = Camera.create(read=0.05, step=1 / 255, kernel=kernel)
    bank = np.random.default_rng(0).normal(0, 0.01, (4, SIZE, SIZE))
    recorded = recorded._replace(bank=jnp.asarray(bank, jnp.float32))
    return [
        model(2, Camera.create(gain=0.01, step=1 / 255), (7, 3), 0),
        model(1, recorded, (3, 5), 1),
    ]


@pytest.fixture(scope="module")
def by_hand():
    """The objective on the models' grid."""
    config = config_of("", data__size=SIZE)
    config.fit.shared_control = config.fit.own_control = SHAPE.shared
    config.fit.gain_control, config.fit.grid = SHAPE.gain, SHAPE.grid
    return objective.create(config), SHAPE.grid


@pytest.fixture(scope="module")
def samples(models, by_hand):
    """Keys, samples of both animals together by them, and of each alone."""
    rules, _ = by_hand
    constants = animals.packed(models, [30, 10])
    variables = rules.init(jax.random.key(1), constants).gen
    keys = jax.random.split(jax.random.key(3), 12)
    alone = []
    for own, params in zip(models, animals.apart(variables["params"]), strict=True):
        alone.append(rules.sample({"params": params}, animals.packed([own], [1]), keys))
    return keys, rules.sample(variables, constants, keys), alone


def test_one_animal_gives_the_images_of_its_model_bit_for_bit(models, samples):
    """As before there could be several: a key is split in one of the code and one of the camera."""
    keys, _, (found, _) = samples
    assert "animal" not in found.labels
    own = models[0]
    code_keys, camera_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    length = len(own.distribution.root)
    white = jax.vmap(lambda key: jax.random.normal(key, (length,)))(code_keys)
    motion = deformations.motions(own.distribution, white, still(SHAPE, 2, 1))
    mean = render(own.atlas, motion, SHAPE.grid)[..., None]
    images = jax.vmap(lambda key, image: cameras.expose(key, image, own.camera))(camera_keys, mean)
    np.testing.assert_array_equal(found.images, 2 * images - 1)


def test_one_animal_is_kept_as_if_there_could_be_no_others(models, by_hand):
    constants = animals.packed(models[:1], [5])
    assert constants.keys() == {*Model._fields, "ids", "mask"}
    assert constants["ids"].tolist() == [7, 3]
    variables = by_hand[0].init(jax.random.key(1), constants).gen
    assert variables["params"].keys() == {"codes", "template"}


def test_each_key_gives_what_its_animal_alone_would_give(models, samples):
    _, both, alone = samples
    which = np.asarray(both.labels["animal"])
    assert set(which) == {0, 1} and which.dtype == np.int32
    for number, (own, wanted) in enumerate(zip(models, alone, strict=True)):
        mine = which == number
        np.testing.assert_array_equal(both.images[mine], wanted.images[mine])
        for name, field in wanted.fields.items():
            np.testing.assert_array_equal(both.fields[name][mine], field[mine])
        np.testing.assert_array_equal(both.labels["mask"][mine], wanted.labels["mask"][mine])
        order = [[3, 5, 7].index(i) for i in own.annotation.ids.tolist()]
        for name in ("points", "status"):
            found = np.asarray(both.labels[name])[mine][:, order]
            np.testing.assert_array_equal(found, wanted.labels[name][mine])


def test_animals_are_drawn_in_their_shares_apart_from_the_codes(models):
    constants = animals.packed(models, [30, 10])
    keys = jax.random.split(jax.random.key(0), 4000)
    which = np.asarray(animals.drawn(constants, keys))
    assert abs(np.mean(which == 1) - 0.25) < 0.03  # four standard errors
    halves = np.asarray(jax.vmap(lambda key: jax.random.key_data(jax.random.split(key)))(keys))
    drawn_by = jax.vmap(lambda key: jax.random.key_data(jax.random.fold_in(key, animals._DRAW)))
    assert not (halves == np.asarray(drawn_by(keys))[:, None]).all(-1).any()


def test_refinement_is_of_each_animal_apart(models, by_hand):
    """The gradient of a loss of images reaches the parameters of their own animal alone."""
    rules, _ = by_hand
    constants = animals.packed(models, [30, 10])
    variables = rules.init(jax.random.key(1), constants)
    keys = jax.random.split(jax.random.key(3), 12)
    keys = keys[np.asarray(animals.drawn(constants, keys)) == 0]
    real = {"images": jnp.zeros((len(keys), SIZE, SIZE, 1))}
    inputs = Inputs(variables, real, constants, keys)
    loss = jax.jit(jax.grad(lambda params: rules.gen_loss(params, inputs)[0]))
    slope = animals.apart(loss(variables.gen["params"]))
    assert np.any(slope[0]["template"]) and not np.any(slope[1]["template"])
    assert slope[1]["template"].shape == (2, SIZE, SIZE)


def test_points_are_laid_out_on_the_union(models):
    constants = animals.packed(models, [1, 1])
    assert constants["ids"].tolist() == [3, 5, 7]
    assert constants["mask"].shape == (3 + 2, SIZE, SIZE)
    first, second = (own.annotation for own in animals.models(constants))
    assert np.isnan(first.points[1]).all() and np.isnan(second.points[2]).all()
    atlas, motion = models[0].atlas, motions(0, batch=3, scale=0.1)
    points, status = annotation.moved_points(first, atlas, motion, SHAPE.grid)
    named = [[POINT_STATUS[code] for code in row] for row in np.asarray(status)]
    assert named == [["ok", "absent", "ok"]] * 3
    assert np.isnan(points[:, 1]).all() and np.isfinite(points[:, [0, 2]]).all()


def test_animals_without_any_points_have_a_placeholder():
    none = np.array([annotation.NO_POINT])
    assert animals.union([none, none]).tolist() == [annotation.NO_POINT]
    assert animals.union([none, np.array([4, 2])]).tolist() == [2, 4]


# What is asked of the estimation.


@pytest.fixture
def asked(monkeypatch, models):
    """Replaces the estimation; what it was given of each animal."""
    calls = []

    def estimate(images, source, labels, step, settings, *, seed, say):
        calls.append((images, source, labels, settings))
        say("noise: none")
        return models[0], motions(0, batch=len(images)), {"number": np.array(len(calls))}

    monkeypatch.setattr(estimation, "estimate", estimate)
    return calls


def test_each_animal_is_estimated_from_its_own_images(tmp_path, asked):
    write_images(tmp_path / "worm1", 6)
    write_images(tmp_path / "worm2", 9, seed=1)
    kept = {"data__test": 0.0, "data__validation": 0.0}
    data = built(tmp_path, "worm1,worm2", source__image="worm1/frame0.png", **kept)
    plan = dataclasses.replace(objective.settings(config_of("").fit), images=7)
    lines = []
    found = objective.fit(data, plan, 0, lines.append)
    assert lines == ["worm1: noise: none", "worm2: noise: none"]
    for (images, source, *_), own, count in zip(asked, data.animals, (6, 7), strict=True):
        mine = (data.train[own.train][..., 0] + 1) / 2
        assert len(images) == count
        assert all((mine == image).all((1, 2)).any() for image in images)
        np.testing.assert_array_equal(source, (own.source.image[..., 0] + 1) / 2)
    assert list(found.evidence) == ["worm1", "worm2"]
    assert found.constants["velocity"].shape[0] == 6 + 7
    np.testing.assert_allclose(found.constants["share"], [6 / 15, 9 / 15], rtol=1e-6)


def test_layers_are_those_of_the_source_image_alone(tmp_path, asked):
    write_images(tmp_path / "worm1", 6)
    write_images(tmp_path / "worm2", 6, seed=1)
    mask = np.zeros((32, 32), np.uint8)
    mask[10:20, 10:20] = 4
    Image.fromarray(mask).save(tmp_path / "mask.tif")
    (tmp_path / "mask.tif").rename(tmp_path.parent / "mask.tif")
    data = built(
        tmp_path,
        "worm1,worm2",
        source__image="worm2/frame0.png",
        source__mask=str(tmp_path.parent / "mask.tif"),
    )
    plan = dataclasses.replace(objective.settings(config_of("").fit), layers=(4,))
    objective.fit(data, plan, 0, print)
    (*_, labels, plain), (*_, own_labels, layered) = asked
    assert labels is None and plain.layers == ()
    assert own_labels.ids.tolist() == [4] and layered.layers == (4,)
    asked.clear()
    with pytest.raises(UserError, match=r"fit.layers: \[9\] are no labels"):
        objective.fit(data, dataclasses.replace(plan, layers=(9,)), 0, print)
    assert not asked  # before anything is estimated


def test_an_animal_that_cannot_be_estimated_is_named(tmp_path, monkeypatch):
    write_images(tmp_path / "worm1", 6)
    write_images(tmp_path / "worm2", 6, seed=1)

    def estimate(*args, **kwargs):
        raise UserError("source.image: no soma stands out")

    monkeypatch.setattr(estimation, "estimate", estimate)
    plan = objective.settings(config_of("").fit)
    for wanted, message in (
        ("worm1,worm2", "^fit.animals: worm1: source.image: no soma"),
        ("", "^source.image: no soma"),
    ):
        with pytest.raises(UserError, match=message):
            objective.fit(built(tmp_path, wanted), plan, 0, print)
