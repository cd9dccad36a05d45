"""Errors of predicted orientations, baselines, calibration and what a report shows of pairs."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from deformgan import evaluate, judge, orientation, page, predictions, subjects, verdict
from deformgan.data.scaling import Depth, Scaling
from deformgan.errors import UserError
from deformgan.metrics import calibration, distances, image_error, orientation_error
from deformgan.metrics.subject import ImageSet, Passes, Subject
from deformgan.objectives.contract import Samples
from deformgan.orientation import Orientation

SIZE = 16
RNG = np.random.default_rng(0)
BYTES = Scaling("range", 0.0, 255.0, 0.0, Depth("uint8", 1.0, 0.0))


@pytest.fixture(scope="module", autouse=True)
def no_controls():
    """The warped control takes long to compile, and is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subjects, "warped", lambda sources, real: "not drawn in this test")
        yield


def known(count=24, inclination=(0.1, 0.9), seed=0, mask=0.8):
    """Directions uniform modulo pi, some pixels without tissue."""
    rng = np.random.default_rng(seed)
    shape = (count, SIZE, SIZE)
    direction = rng.uniform(0, np.pi, shape)
    return Orientation(direction, rng.uniform(*inclination, shape), rng.uniform(size=shape) < mask)


def coded(known, space="rgb"):
    images = orientation.encode(Orientation(*(jnp.asarray(v, jnp.float32) for v in known)), space)
    blocks = np.arange(len(images)) // 2
    if space == "orientation":
        return predictions.orientation_set(predictions.held_orientations(images), blocks)
    return ImageSet(np.round((np.asarray(images) + 1) * 127.5).astype(np.uint8), 0.0, 255.0, blocks)


def judged(predicted, target, **more):
    """The scores of predictions whose colours, or space, are exact to 16 bits."""
    subject = Subject(coded(target), coded(predicted), paired=True, oriented=True, **more)
    return dict(orientation_error.score(subject))


def turned(known, degrees):
    return known._replace(direction=(known.direction + np.radians(degrees)) % np.pi)


@pytest.mark.parametrize("space", ["rgb", "orientation"])
@pytest.mark.parametrize("degrees", [0, 20, 180])
def test_turning_every_direction_is_the_in_plane_error(space, degrees):
    target = known()
    made = turned(target, degrees)
    found = judged(made, target, orientation=None if space == "rgb" else coded(made, space))
    wanted = degrees % 180
    error = found["in_plane_error"]
    assert error.value == pytest.approx(wanted, abs=0.25 if space == "rgb" else 0.15)
    assert found["inclination_error"].value < 0.3 and error.ideal == 0 and error.unit == "°"
    if wanted:  # a flat fibre turns by as much in space, a steep one by less
        assert 5 < found["absolute_axial_error_3d"].value < wanted
        assert np.ptp(error.quartiles) < 1 and error.interval[0] <= error.value
    assert found["tissue_overlap"].value == pytest.approx(1, abs=1e-3)
    assert found["inclination_reliable"].value == 1


def test_an_offset_of_inclination_is_found_and_nothing_else():
    target = known()
    steeper = target._replace(inclination=target.inclination + np.radians(12))
    found = judged(steeper, target)
    assert found["inclination_error"].value == pytest.approx(12, abs=0.4)
    assert found["absolute_axial_error_3d"].value == pytest.approx(12, abs=0.5)
    assert found["in_plane_error"].value < 0.5


def test_directions_are_not_judged_in_steep_fibres_nor_outside_of_tissue():
    target = known(inclination=(np.radians(62), np.radians(75)))
    reason = judged(target, target)["in_plane_error"].reason
    assert reason == "not available: no tissue is inclined by less than 60°"
    half = known()
    wrong = half._replace(direction=np.where(half.mask, half.direction, 1.0))
    assert judged(wrong._replace(mask=half.mask | True), half)["in_plane_error"].value < 0.5
    empty = half._replace(mask=half.mask & False)
    assert "no tissue" in judged(half, empty)["in_plane_error"].reason


def test_a_prediction_without_tissue_counts_as_a_direction_at_random():
    target = known(inclination=(0.0, 0.0))
    flat = target._replace(direction=np.full_like(target.direction, 0.0))  # as black reads
    found = judged(flat._replace(mask=target.mask & False), flat)
    assert found["in_plane_error"].value == pytest.approx(45, abs=0.1)
    assert found["in_plane_error"].quartiles == pytest.approx((45, 45), abs=0.1)
    assert found["absolute_axial_error_3d"].value == pytest.approx(90, abs=0.1)  # upright
    assert found["tissue_overlap"].value == 0


def test_baselines_of_uniform_directions_are_at_their_known_medians():
    """45 degrees in the plane; in space, of a mean inclination that all fibres have."""
    target, train = known(40, seed=1), coded(known(40, seed=2))
    found = judged(target, target, train=train)
    for name in ("mean_orientation", "random_orientation"):
        error = found[f"in_plane_error_{name}"]
        assert error.value == pytest.approx(45, abs=1.5)
        assert error.quartiles == pytest.approx((22.5, 67.5), abs=1.5) and error.ideal is None
    # uniform inclinations about their mean: a quarter of the range
    wanted = np.degrees(0.8) / 4
    assert found["inclination_error_mean_orientation"].value == pytest.approx(wanted, abs=0.6)
    assert "inputs of the training pairs" in found["in_plane_error_nearest_training"].reason


def test_the_mean_orientation_is_axial():
    """10 and 170 degrees have their mean at 0, not at 90."""
    direction = np.radians(np.where(np.arange(SIZE) % 2, 10, 170) * np.ones((2, SIZE, SIZE)))
    mean = orientation_error.mean_orientation(
        coded(Orientation(direction, np.full_like(direction, 0.5), np.ones_like(direction)))
    )
    assert min(mean.direction, np.pi - mean.direction) < 0.01
    assert mean.inclination == pytest.approx(0.5, abs=0.005)


def blobs(count, seed):
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(count, SIZE, SIZE, 1))
    smooth = gaussian_filter(noise, (0, 2, 2, 0))
    unit = np.clip(smooth / np.abs(smooth).max() / 2 + 0.5, 0, 1)
    return ImageSet(np.round(255 * unit).astype(np.uint8), 0.0, 255.0, np.arange(count))


def test_the_nearest_training_pair_is_found_by_its_input():
    """Each input is a training input: its target is then the prediction, without an error."""
    order = RNG.permutation(12)
    train, given = coded(known(12)), blobs(12, 0)
    subject = Subject(
        train.take(order),
        coded(known(12, seed=5)),
        train,
        paired=True,
        oriented=True,
        condition=given.take(order),
        train_condition=given,
    )
    found = dict(orientation_error.score(subject)) | dict(image_error.score(subject))
    assert found["in_plane_error_nearest_training"].value == 0
    assert found["mse_nearest_training"].value == 0 and found["ssim_nearest_training"].value == 1
    assert found["psnr_nearest_training"].reason == "not available: all images are identical"
    lines = verdict.warnings(
        {
            "metrics": {k: judge._plain_score(v, "", 0) for k, v in found.items()},
            "tests": {},
            "controls": {},
        }
    )
    assert any(line.startswith("No better than a baseline: In-plane error") for line in lines)


def test_only_pairs_of_orientation_maps_are_judged():
    images = coded(known(4))
    for changes, words in (
        ({"paired": False, "oriented": True}, "no truth is known"),
        ({"paired": True, "oriented": False}, "not maps of fibre orientation"),
    ):
        scores = dict(orientation_error.score(Subject(images, images, **changes)))
        assert all(words in one.reason for one in scores.values()) and "in_plane_error" in scores


def test_maps_with_grey_in_them_are_said_to_have_no_reliable_inclination():
    target = known()
    grey = coded(target)
    washed = dataclasses.replace(grey, stored=(grey.stored // 2 + 100).astype(np.uint8))
    subject = Subject(washed, washed, paired=True, oriented=True)
    found = dict(orientation_error.score(subject))["inclination_reliable"]
    assert found.value == 0
    report = {"metrics": {"inclination_reliable": judge._plain_score(found, "", 0)}}
    lines = verdict.warnings(report | {"tests": {}, "controls": {}})
    assert lines == [
        "The inclination of 100% of the targets cannot be read to 10°: errors of inclination and"
        " in space mean little, in-plane errors stand."
    ]


def passes_of(target, spread, noise, count=8):
    """Directions about a hidden centre: the target off by `noise`, the passes by `spread`."""
    rng = np.random.default_rng(7)
    truth = (target.direction + noise * rng.normal(size=target.direction.shape)) % np.pi
    shape = (len(truth), count, SIZE, SIZE)
    made = target.direction[:, None] + spread[:, None] * rng.normal(size=shape)
    made = np.where(rng.uniform(size=shape) < 0.02, np.nan, made % np.pi)
    subject = Subject(
        coded(target._replace(direction=truth)),
        coded(target),
        paired=True,
        oriented=True,
        passes=Passes(np.arange(len(truth)), made.astype(np.float16)),
    )
    return dict(calibration.score(subject))


def test_a_heteroscedastic_generator_is_calibrated_with_slope_1():
    target = known(40, (0.0, 0.2), mask=1.1)
    width = np.random.default_rng(3).uniform(np.radians(2), np.radians(40), target.direction.shape)
    fair = passes_of(target, width, width)
    assert fair["calibration_slope"].value == pytest.approx(1, abs=0.08)
    assert fair["calibration_ratio"].value == pytest.approx(1, abs=0.03)
    low, high = fair["calibration_slope"].interval
    assert low < 1 < high and fair["calibration_rank"].value > 0.3
    points = np.array(fair["calibration_slope"].curve)
    assert points.shape == (10, 4) and (np.diff(points[:, 0]) > 0).all()
    assert ((points[:, 2] < points[:, 1]) & (points[:, 1] < points[:, 3])).all()
    # E|N| scales with the root of the summed variances: sqrt(1 + 1/9) over sqrt(2) / 3
    narrow = np.minimum(width, np.radians(15))
    sure = passes_of(target, narrow / 3, narrow)
    assert sure["calibration_slope"].value == pytest.approx(np.sqrt(5), rel=0.08)
    assert sure["calibration_ratio"].value == pytest.approx(np.sqrt(5), rel=0.04)
    assert sure["in_plane_error_mean_of_passes"].value < fair["in_plane_error_mean_of_passes"].value


def test_a_spread_that_tells_nothing_does_not_follow_the_error():
    target = known(40, (0.0, 0.2))
    width = np.random.default_rng(3).uniform(0.05, 0.3, target.direction.shape)
    blind = passes_of(target, width, np.random.default_rng(9).permuted(width))
    # a pass errs by sqrt(w² + v²), v elsewhere: half of the slope; its mean direction by v alone
    assert blind["calibration_slope"].value < 0.75 and abs(blind["calibration_rank"].value) < 0.1


def test_mean_and_spread_are_axial():
    degrees = np.array([[175.0, 5.0], [85.0, 95.0]])
    mean, spread = calibration.mean_and_spread(np.radians(degrees), 1)
    assert min(mean[0], np.pi - mean[0]) < 1e-9 and np.degrees(mean[1]) == pytest.approx(90)
    assert spread == pytest.approx([5, 5], rel=0.01)
    normal = np.radians(20) * np.random.default_rng(0).normal(size=20000) + 1
    assert calibration.mean_and_spread(normal % np.pi)[1] == pytest.approx(20, rel=0.02)
    even = calibration.mean_and_spread(np.linspace(0, np.pi, 64, endpoint=False))[1]
    assert even == pytest.approx(90 / np.sqrt(3))


def test_passes_that_cannot_be_judged_say_why():
    target = known(4)
    images = coded(target)
    subject = Subject(images, images, paired=True, oriented=True)
    same = np.repeat(target.direction[:, None], 4, 1).astype(np.float16)
    for passes, words in (
        (None, "one pass alone was made"),
        (Passes(np.arange(4), same[:, :2]), "2 passes; 4 are the least"),
        (Passes(np.arange(4), same), "the passes do not differ"),
    ):
        scores = dict(calibration.score(dataclasses.replace(subject, passes=passes)))
        assert len(scores) == 4 and all(words in one.reason for one in scores.values())
    config = base.get_config()
    config.evaluate.passes = 3
    with pytest.raises(UserError, match=r"evaluate\.passes: 3; give 4 or more, or 0"):
        judge.check(config.evaluate)


def test_kid_of_pairs_leaves_pairs_out():
    """A prediction like its own target alone must not lower the distance."""
    rng = np.random.default_rng(0)
    real, blocks = rng.normal(size=(60, 8)), np.arange(60)
    other = rng.normal(size=(60, 8))
    near = real + 1e-3 * other
    paired, unpaired = (
        distances.kernel_distance(real, near, blocks, blocks, paired=p)[0] for p in (True, False)
    )
    assert unpaired < -0.05 and abs(paired) < 1e-3


class Run:
    """A dataset of pairs as the pipeline gives it, its config, and a generator of its targets."""

    def __init__(self, count=20):
        self.target, self.given = known(count), blobs(count, 1)
        images = coded(self.target).unit()
        conditions = types.SimpleNamespace(
            train=self.given.unit(),
            validation=self.given.unit(np.s_[:4]),
            test=self.given.unit(),
            scaling=BYTES,
        )
        names = {s: [f"{s}{i}" for i in range(count)] for s in ("train", "validation", "test")}
        blocks = {s: [i // 2 for i in range(count)] for s in names}
        self.dataset = types.SimpleNamespace(
            train=images,
            validation=images[:4],
            test=list(images),
            conditions=conditions,
            scaling=BYTES,
            source=types.SimpleNamespace(image=images[0], name="test3"),
            split={"names": names, "blocks": blocks},
        )
        self.config = base.get_config()
        self.config.data.update({"source": "pli", "channels": 3, "size": SIZE})
        self.config.augment.oriented = True
        self.config.model = {"dropout": 0.5, "test_dropout": False}

    def drawing(self, config):
        """By chance where dropout is on."""
        assert config.model.test_dropout
        return self.generate

    def generate(self, *, seed, num, conditions, space=True):
        """The orientation whose input this is, turned by a degree or so at random."""
        rng = np.random.default_rng(seed)
        inputs = self.given.unit().reshape(len(self.given), -1)
        for first in range(0, num, 8):
            given = np.stack([conditions[i] for i in range(first, min(first + 8, num))])
            apart = np.square(given.reshape(len(given), 1, -1) - inputs[None]).sum(-1)
            own = Orientation(*(np.asarray(v)[apart.argmin(1)] for v in self.target))
            own = turned(own, rng.normal(size=own.direction.shape))
            own = Orientation(*(jnp.asarray(v, jnp.float32) for v in own))
            fields = {"orientation": orientation.encode(own, "orientation")} if space else {}
            yield Samples(orientation.encode(own, "rgb"), fields, {})

    def subject(self, num, **how):
        chosen, notes = subjects.judged_frames(self.dataset, num, 0)
        assert not notes  # a source image plays no part
        conditions = predictions.Chosen(self.dataset.conditions.test, chosen)
        parts = self.generate(seed=0, num=num, conditions=conditions, **how)
        subject = subjects.of_run(self.dataset, parts, self.config, lambda n: None)
        return subject, conditions


@pytest.mark.parametrize("space", [True, False])
def test_a_run_of_pairs_is_judged_pair_by_pair(space):
    run = Run()
    subject, conditions = run.subject(14, space=space)
    assert subject.paired and subject.oriented and len(subject.real) == 14
    np.testing.assert_array_equal(subject.fake.blocks, subject.real.blocks)
    np.testing.assert_allclose(subject.condition.unit()[3], conditions[3], atol=1e-6)
    assert (subject.orientation is not None) == space
    found = dict(orientation_error.score(subject))
    assert found["in_plane_error"].value == pytest.approx(0.67, abs=0.2)  # median of |N(0, 1)|
    assert found["in_plane_error_nearest_training"].value == 0  # the toy trains on its test
    real, fake = judge._strangers(subject)
    assert not set(real.blocks) & set(fake.blocks) and len(real) + len(fake) == 14


def test_passes_are_gathered_input_by_input():
    run = Run()
    _, conditions = run.subject(14)
    passes = evaluate._passes(run.drawing, conditions, run.config)
    assert passes.direction.shape == (14, 8, SIZE, SIZE) and list(passes.which) == list(range(14))
    chosen, _ = subjects.judged_frames(run.dataset, 14, 0)
    mean, spread = calibration.mean_and_spread(passes.direction, 1)
    there = np.isfinite(mean)
    np.testing.assert_array_equal(there, run.target.mask[chosen])
    apart = np.abs(np.exp(2j * mean) - np.exp(2j * run.target.direction[chosen]))[there]
    assert np.degrees(np.median(apart) / 2) < 0.4 and 0.7 < np.median(spread[there]) < 1.1
    assert not run.config.model.test_dropout  # on for the passes alone
    run.config.model.dropout = 0.0
    assert evaluate._passes(run.drawing, conditions, run.config) is None


def test_a_run_in_training_is_judged_on_its_validation_pairs():
    run = Run()
    train = subjects.reference(run.dataset)
    (samples,) = run.generate(seed=0, num=4, conditions=run.dataset.conditions.validation)
    subject = subjects.of_training(run.dataset, samples, train, 0, oriented=True)
    assert subject.paired and len(subject.condition) == 4 and len(subject.orientation) == 4
    assert dict(orientation_error.score(subject))["in_plane_error"].value < 1.5
    shown = subjects.gallery(subject)
    assert len(shown.condition) == len(shown.real) == 4 and not len(shown.nearest)


def test_error_maps_show_angles_or_grey_levels():
    target = known(3)
    subject = Subject(coded(target), coded(turned(target, 30)), paired=True, oriented=True)
    maps = predictions.error_maps(subject)
    assert maps.top == 90 and maps.unit == "°"
    np.testing.assert_array_equal(np.isnan(maps.values), ~target.mask)
    assert 0 < np.nanmedian(maps.values) < 30
    plain = dataclasses.replace(subject, oriented=False)
    maps = predictions.error_maps(plain)
    wanted = np.abs(plain.real.stored.astype(float) - plain.fake.stored).mean(-1)
    np.testing.assert_allclose(maps.values, wanted, atol=1e-3)


def test_the_channels_of_an_input_lie_side_by_side():
    two = ImageSet(RNG.integers(0, 256, (3, SIZE, SIZE, 2), np.uint8), 0.0, 255.0, np.arange(3))
    images = coded(known(3))
    shown = predictions.gallery(Subject(images, images, paired=True, condition=two), 2)
    assert shown.condition.shape == (2, SIZE, 2 * SIZE, 1)  # the first and the last
    np.testing.assert_array_equal(shown.condition[1, :, SIZE:, 0], two.stored[2, ..., 1])


def test_the_whole_judgement_is_written(tmp_path):
    """A report with rows of pairs, their errors in words, and the plot of the spread."""
    run = Run()
    subject, conditions = run.subject(20)
    passes = evaluate._passes(run.drawing, conditions, run.config)
    subject = dataclasses.replace(subject, passes=passes)
    settings = run.config.evaluate
    settings.tests, settings.features = (), ()
    settings.metrics = ("image_error", "orientation_error", "calibration")
    report = judge.judge(subject, settings, quiet=True)
    scores = report["metrics"]
    assert scores["ssim"]["value"] > 0.9 and len(scores["in_plane_error"]["quartiles"]) == 2
    assert len(scores["calibration_slope"]["curve"]) == 10 and "curve" not in scores["mse"]
    shown = subjects.gallery(subject)
    file = tmp_path / "report.html"
    page.write(
        file, title="p", facts={}, evaluation=report, records=[], pictures=shown, warnings=()
    )
    text = file.read_text()
    for words in ("Error of fibre orientation", "Error against spread", "input of pair 1 of 16"):
        assert words in text
    assert text.count('<li class="pair">') == 16 and "quartiles" in text
