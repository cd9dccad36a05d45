"""What is estimated before training: template, layers, deformations; and sampling from it."""

import json

import builders_atlas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders_atlas import SHAPE

from configs import worms
from deformgan import camera as cameras
from deformgan import report, sample, train
from deformgan.camera import Camera
from deformgan.checkpoint import Checkpoints
from deformgan.data import simulated
from deformgan.imaging import deformations, estimation, layers, likelihood, template
from deformgan.imaging.atlas import Fitted, Shape, render, still
from deformgan.imaging.template import Settings
from deformgan.metrics.diversity import diversity_ratio
from deformgan.objectives import atlas as objective
from deformgan.workdir import Workdir

SIZE = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on noisy images from a noisy source: its folder and config."""
    folder = tmp_path_factory.mktemp("atlas") / "run"
    config = worms.get_config("smoke")
    config.data.set = "gaussian_low"
    config.train.batch_size = 8
    config.train.steps = 6
    config.optimiser.gen.delay = 2
    train.run(config, str(folder))
    return folder, config


@pytest.fixture(scope="module")
def constants(run):
    folder, config = run
    workdir = Workdir(str(folder), create=False)
    saved = Checkpoints(workdir.checkpoints, best=config.checkpoint.best, writable=False)
    return saved.sampler("newest").constants


@pytest.fixture(scope="module")
def clean(run):
    """Noiseless images of the training frames, in unit intensity of the scaled data."""
    folder, config = run
    names = json.loads((folder / "split.json").read_text())["names"]["train"]
    chosen = [int(name.rpartition("_")[2]) for name in names]
    truth = simulated.draw(0, config.data.count, 0, "gaussian_low", SIZE)
    meta = json.loads((folder / "checkpoints" / "6" / "meta" / "metadata").read_text())
    low, high = meta["scaling"]["low"], meta["scaling"]["high"]
    return (255 * (0.08 + 0.80 * truth.clean[chosen, ..., 0]) - low) / (high - low)


def test_the_model_explains_noisy_images_by_what_lies_under_the_noise(run, clean):
    with np.load(run[0] / "estimation" / "estimation.npz") as found:
        observed, explained = found["observed"], found["explained"]
    few = clean[np.linspace(0, len(clean) - 1, len(observed)).astype(int)]
    error, noise = (np.sqrt(np.mean(np.square(x - few))) for x in (explained, observed))
    spread = np.sqrt(np.mean(np.square(few - few.mean(0))))
    assert error < 0.6 * spread and error < 0.7 * noise


def test_noise_and_background_are_those_of_the_simulator(constants):
    model = estimation.unpacked(constants)
    background = model.atlas.background
    assert abs(float(background) - 0.08) < 0.012
    level = np.sqrt(cameras.variance(Camera(*map(jnp.asarray, model.camera)), background))
    assert abs(float(level) / 0.05 - 1) < 0.12  # of 28 images of 32x32; test_noise.py is exact


def test_every_label_of_the_source_is_on_the_template(constants):
    model = estimation.unpacked(constants)
    labels = simulated.source_image("gaussian_low", SIZE, 0).labels
    assert model.annotation.ids.tolist() == labels.ids.tolist()
    assert sorted(model.annotation.layer[:2].tolist()) == [0, 1]  # a soma each
    assert set(np.unique(labels.mask)) <= set(np.unique(model.annotation.masks))


def test_new_motions_are_as_varied_as_the_images(run, constants, clean):
    settings = objective.settings(run[1].fit)
    model = jax.tree.map(jnp.asarray, estimation.unpacked(constants))
    white = jax.random.normal(jax.random.key(0), (len(clean), len(model.distribution.root)))
    like = still(settings.shape, len(model.atlas.centres), 1)
    motion = deformations.motions(model.distribution, white, like)
    blank = np.zeros(clean.shape, np.float32)
    means = likelihood.rendered(Fitted(model.atlas, motion), settings.nodes, blank)
    ratio = diversity_ratio(jnp.asarray(means)[..., None], jnp.asarray(clean)[..., None])
    assert 0.75 < ratio < 1.25


def test_structures_are_told_apart():
    image = np.asarray(simulated.source_image("neurites", 64, 0).image[..., 0], np.float64) / 255
    mask = simulated.source_image("neurites", 64, 0).labels.mask
    found = layers.separate(image, 2)
    assert len(found.bright) == 2
    for label, bright in zip((1, 2), found.bright, strict=True):
        both = 2 * np.sum(bright & (mask == label)) / (np.sum(bright) + np.sum(mask == label))
        assert both > 0.8
    seen = found.neurites | (found.dim > 0)
    assert np.mean(seen[(mask > 2) & ~found.bright.any(0)]) > 0.4
    assert not layers.separate(np.zeros((64, 64)), 2).bright.any()


def test_the_distribution_has_the_mean_and_covariance_it_was_given():
    rng = np.random.default_rng(0)
    like = still(Shape(4, 4, 4, 8), 1, 400)
    size = sum(part[0].size for part in like)
    mixing = rng.normal(size=(size, size)) / np.sqrt(size)
    mean, covariance = rng.normal(size=size), mixing @ mixing.T
    draws = mean[None] + rng.normal(size=(4000, size)) @ mixing.T
    rows = mean[None] + np.sqrt(0.5) * (draws - mean[None])  # the other half is left open
    made = deformations.distribution(deformations.Gaussian(rows, covariance / 2, draws), like)
    white = jax.random.normal(jax.random.key(1), (8000, size))
    rows = np.asarray(likelihood.flatten(deformations.motions(made, white, like)))
    angle = 2 * 4 * 4 * 2 + 2
    rest = np.delete(np.arange(size), angle)  # an angle is only known up to turns
    np.testing.assert_allclose(rows.mean(0)[rest], mean[rest], atol=0.08)
    np.testing.assert_allclose(
        np.cov(rows.T)[np.ix_(rest, rest)], covariance[np.ix_(rest, rest)], atol=0.15
    )


def test_coordinates_keep_a_distribution_that_is_not_normal():
    rng = np.random.default_rng(0)
    like = still(Shape(4, 4, 4, 8), 1, 400)
    size = sum(part[0].size for part in like)
    draws = rng.normal(size=(2000, size))
    angle = 2 * 4 * 4 * 2 + 2
    draws[:, angle] = np.where(rng.random(2000) < 0.5, 0.3, 1.4) + 0.05 * rng.normal(size=2000)
    gaussian = deformations.Gaussian(draws, np.zeros((size, size)), draws)
    made = deformations.distribution(gaussian, like)
    white = jax.random.normal(jax.random.key(1), (2000, size))
    angles = deformations.motions(made, white, like).pose[:, 0, 2] % (2 * np.pi)
    near = np.minimum(np.abs(angles - 0.3), np.abs(angles - 1.4)) < 0.2
    assert near.mean() > 0.95 and 0.4 < np.mean(np.abs(angles - 0.3) < 0.2) < 0.6


def test_motions_depend_on_turns_as_those_of_the_images_do():
    """A soma's shift follows twice its turn; of the rest, which does not, nothing is made up."""
    rng = np.random.default_rng(0)
    like = still(Shape(4, 4, 4, 8), 1, 400)
    size = sum(part[0].size for part in like)
    first = 2 * 4 * 4 * 2
    draws = rng.normal(size=(500, size))
    draws[:, first + 2] = rng.uniform(0, np.pi, 500)
    draws[:, first] += 2 * np.cos(2 * draws[:, first + 2])
    gaussian = deformations.Gaussian(draws, np.zeros((size, size)), draws)
    made = deformations.distribution(gaussian, like)
    white = jax.random.normal(jax.random.key(1), (4000, size))
    pose = np.asarray(deformations.motions(made, white, like).pose[:, 0], np.float64)
    left = pose[:, 0] - 2 * np.cos(2 * pose[:, 2])
    assert abs(left.std() - 1) < 0.1 and abs(pose[:, 0].std() - np.sqrt(3)) < 0.1
    assert abs(np.corrcoef(pose[:, 1], np.cos(2 * pose[:, 2]))[0, 1]) < 0.1


def test_few_images_that_are_hardly_told_have_motions_too():
    rng = np.random.default_rng(0)
    like = still(Shape(4, 4, 4, 8), 2, 6)
    rows = rng.normal(size=(6, sum(part[0].size for part in like)))
    gaussian = deformations.Gaussian(
        rows, np.eye(rows.shape[1]), rows + rng.normal(size=rows.shape)
    )
    made = deformations.distribution(gaussian, like)
    white = jax.random.normal(jax.random.key(1), (50, rows.shape[1]))
    spread = np.asarray(likelihood.flatten(deformations.motions(made, white, like))).std(0)
    assert np.isfinite(spread).all() and spread.min() > 0.1


def test_an_image_without_structure_is_an_error():
    with pytest.raises(template.UserError, match="source.image"):
        template.first_atlas(np.full((32, 32), 0.1), 0.1, Camera.create(step=1 / 255), 2)


def test_a_run_writes_what_it_estimated(run):
    folder, _ = run
    for name in ("template.png", "noise.png", "registration.png", "estimation.npz"):
        assert (folder / "estimation" / name).stat().st_size > 1000
    page = (folder / "report.html").read_text()
    assert "Estimated from the training images" in page and page.count("data:image/png") > 3
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["folded"] == 0 and np.isfinite(last["gen/adversarial"])
    assert last["gen/code_change"] > 0  # the correction has begun to learn


def test_what_compression_leaves_in_the_same_place_is_background_and_no_structure():
    """A faint pattern that an atlas took for a structure is replayed as recorded."""
    clean, motion = builders_atlas.atlas(blur=1.0), builders_atlas.motions(0, batch=12)
    blocks = np.random.default_rng(0).integers(0, 3, (12, 8, 8)).repeat(8, 1).repeat(8, 2) / 255
    images = np.asarray(render(clean, motion, SHAPE.grid)) + blocks
    images = np.round(np.clip(images, 0, 1) * 255) / 255
    corner = np.s_[..., 56:, 56:]
    pattern = 0.016 * (np.indices((8, 8)).sum(0) % 2)
    rest = clean.rest.at[corner].set(jnp.asarray(pattern, jnp.float32))
    camera = Camera.create(read=1 / 255, step=1 / 255, kernel=np.ones((3, 3)) / 3)
    settings = Settings(SHAPE, somata=2, subset=12, images=12)
    fitted = Fitted(clean._replace(rest=rest), motion)
    kind, camera, atlas = estimation.refitted(images, fitted, camera, "gaussian", settings, 0)
    assert kind == "mixed" and atlas.rest[corner].max() == 0
    bright = clean.rest > 0.03
    np.testing.assert_allclose(atlas.rest[bright], clean.rest[bright], atol=1e-6)
    replayed = np.asarray(camera.bank + atlas.background)[corner]
    np.testing.assert_allclose(replayed, images[corner], atol=1e-4)


def test_modes_of_appearance_are_shown(run, tmp_path):
    with np.load(run[0] / "estimation" / "estimation.npz") as found:
        evidence = dict(found)
    assert evidence["modes"].shape == (1,)  # the simulator has none
    assert not (run[0] / "estimation" / "modes.png").exists()
    report.evidence(tmp_path, {"": evidence | {"modes": 0.1 * evidence["layers"][None]}})
    assert (tmp_path / "estimation" / "modes.png").stat().st_size > 1000


def test_resuming_estimates_nothing_again(run, monkeypatch):
    folder, config = run
    monkeypatch.setattr(estimation, "estimate", lambda *a, **k: pytest.fail("estimated again"))
    config.train.steps = 8
    train.run(config, str(folder))
    assert (folder / "checkpoints" / "8").is_dir()


def test_samples_need_no_data_and_carry_labels(run, tmp_path):
    folder, _ = run
    out = tmp_path / "out"
    sample.run(str(folder), None, num=5, out=str(out), form="npz", seed=1, step="newest")
    with np.load(out / "samples.npz") as found:
        assert found["images"].shape == (5, 32, 32, 1) and found["images"].dtype == np.uint8
        assert found["displacement"].shape == (5, 32, 32, 2)
        assert {1, 2} <= set(np.unique(found["masks"]))
    lines = (out / "points.csv").read_text().splitlines()
    assert len(lines) == 1 + 5 * 12 and "folded" not in "".join(lines)


def test_the_constants_are_the_model(constants):
    model = estimation.unpacked(constants)
    again = estimation.packed(model)
    assert again.keys() <= constants.keys()
    assert model.atlas.somata.shape[1:] == model.atlas.rest.shape == (SIZE, SIZE)


def test_a_model_of_another_version_is_an_error(constants):
    older = constants | {"atlas": {k: v for k, v in constants["atlas"].items() if k != "modes"}}
    with pytest.raises(template.UserError, match=r"another version of deformgan.*'modes'"):
        estimation.unpacked(older)


def test_an_atlas_is_grey():
    config = worms.get_config("smoke")
    config.data.channels = 3
    with pytest.raises(template.UserError, match=r"data.channels: 3; an atlas is grey"):
        objective.create(config)
