import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformgan.data import simulated
from deformgan.fields import smooth_random
from deformgan.metrics import cnn, shape, statistics, two_sample
from deformgan.metrics.subject import ImageSet
from deformgan.warp import warp

pytestmark = pytest.mark.optimised
SIZE, COUNT = 32, 40
SEEDS = {"statistics": 20, "cnn": 10, "shape": 20}
TESTS = {"statistics": statistics, "cnn": cnn, "shape": shape}


def image_set(images, blocks=None):
    stored = np.asarray(images)
    blocks = np.arange(len(stored)) if blocks is None else np.asarray(blocks)
    return ImageSet(stored, 0.0, 255.0, blocks)


def draw(count, *, name="neurites", first=0, **change):
    return simulated.draw(first, count, 0, name, SIZE, **change).image


def run(name, a, b, seed=0):
    module = TESTS[name]
    return two_sample.two_sample_test(module.classify, a, b, seed=seed, refits=module.REFITS)


@pytest.fixture(scope="module")
def pool():
    """Independent images, enough for 20 pairs of halves."""
    return draw(20 * 2 * COUNT)


@pytest.mark.parametrize("name", TESTS)
def test_two_halves_of_one_set_are_not_told_apart(pool, name):
    """At most one in ten of the 95% intervals leaves out 0.5."""
    outside, accuracies = 0, []
    for seed in range(SEEDS[name]):
        a, b = map(image_set, np.split(pool[2 * COUNT * seed :][: 2 * COUNT], 2))
        found = run(name, a, b, seed)
        low, high = found.interval
        outside += not low <= 0.5 <= high
        accuracies.append(found.accuracy)
    assert outside <= SEEDS[name] / 10
    assert abs(np.mean(accuracies) - 0.5) < 0.06


@pytest.mark.parametrize("name", ["statistics", "cnn"])
def test_a_warped_noisy_source_is_always_caught(name):
    """The first finding of the project: resampling betrays a fake."""
    real = image_set(draw(COUNT, name="gaussian_high"))
    source = jnp.asarray(simulated.source_image("gaussian_high", SIZE, 0).image, jnp.float32)
    keys = jax.random.split(jax.random.key(0), COUNT)
    size = (SIZE, SIZE)
    fields = [smooth_random(key, size, control=6, steepest=0.9)[0] for key in keys]
    fake = image_set(np.round(warp(source, jnp.stack(fields))).astype(np.uint8))
    found = run(name, real, fake)
    assert found.accuracy > 0.98 and found.p_value == pytest.approx(0.001)


def test_each_test_sees_what_the_others_miss():
    """Noise 5% off is invisible to the network, and plain to statistics."""
    real = image_set(draw(80, name="gaussian_high"))
    noisy = image_set(draw(80, name="gaussian_high", first=500, noise=1.05))
    assert run("statistics", real, noisy).accuracy > 0.65
    assert run("cnn", real, noisy).p_value > 0.05
    moved = dataclasses.replace(real, stored=np.roll(real.stored, 6, 2))
    assert run("shape", real, moved).accuracy > 0.9


def test_shape_measures_an_ellipse():
    rows, columns = np.indices((128, 128))
    inside = ((rows - 40) / 24) ** 2 + ((columns - 80) / 12) ** 2 < 1
    measured = shape.geometry(np.where(inside, 1.0, -1.0))
    assert measured[0] == 1
    np.testing.assert_allclose(measured[1:3] * 128, [40, 80], atol=0.3)
    assert measured[3] * 128**2 == pytest.approx(math.pi * 24 * 12, rel=0.03)
    np.testing.assert_allclose(measured[4:6] * 128, [48, 24], rtol=0.05)
    assert measured[6] == pytest.approx(0.5, abs=0.03)  # long axis along the rows: angle 0
    assert np.isnan(measured[10:19]).all()  # no second soma


def test_neurites_are_measured_and_a_blank_image_is_no_error():
    image = np.full((128, 128), -1.0)
    rows, columns = np.indices(image.shape)
    image[(rows - 35) ** 2 + (columns - 35) ** 2 < 225] = 1.0
    image[90:93, 30:110] = 0.0
    length = shape.geometry(image)[21]
    assert length * 128 == pytest.approx(80, abs=8)
    assert np.isnan(shape.geometry(np.zeros((32, 32)))).all()


def test_the_exact_null_is_that_of_an_honest_permutation():
    """With labels that mean nothing, p-values are uniform: few small ones, mean about a half."""
    rng = np.random.default_rng(0)
    values = []
    for seed in range(60):
        a, b = (image_set(rng.integers(0, 255, (24, 16, 16, 1), np.uint8)) for _ in range(2))
        values.append(run("statistics", a, b, seed).p_value)
    assert np.mean(np.array(values) <= 0.1) <= 0.2
    assert 0.35 < np.mean(values) < 0.65


def test_the_interval_of_kept_predictions_is_widened_as_theory_says():
    """Cross-fitted linear scores: the accuracy varies by sqrt(1 + 2 / pi) more than binomially."""
    rng = np.random.default_rng(1)
    accuracies = []
    for _ in range(400):
        features = rng.normal(size=(80, 20))
        labels = np.repeat([1.0, -1.0], 40)
        fold = np.tile(np.arange(5), 16)
        scores = two_sample.cross_fitted_discriminant(features, labels[:, None], fold)
        accuracies.append(two_sample.balanced_accuracy(scores, labels[:, None])[0])
    assert np.std(accuracies) / (0.5 / math.sqrt(80)) == pytest.approx(
        two_sample._CROSS_FITTED, rel=0.1
    )


def test_blocks_are_never_split_between_folds():
    blocks = np.repeat(np.arange(14), 5)
    truth = np.repeat([1.0, -1.0], 35)
    fold = two_sample.assign_folds(blocks, truth, np.random.default_rng(0))
    for block in range(14):
        assert len(set(fold[blocks == block])) == 1
    for f in range(fold.max() + 1):
        assert len(set(truth[fold == f])) == 2


def test_a_difference_between_blocks_alone_is_not_called_a_difference_of_sets():
    """Blocks with a level of their own: many near copies, few independent images."""
    rng = np.random.default_rng(0)
    caught = 0
    for seed in range(20):
        level = np.repeat(rng.uniform(60, 180, 12), 12)
        images = level[:, None, None, None] + rng.normal(0, 5, (144, 16, 16, 1))
        images = np.clip(images, 0, 255).astype(np.uint8)
        blocks = np.repeat(np.arange(6), 12)
        found = run(
            "statistics", image_set(images[:72], blocks), image_set(images[72:], blocks), seed
        )
        caught += found.p_value <= 0.05
        assert found.interval[1] - found.interval[0] > 0.3
    assert caught <= 3


def test_blocks_of_real_images_against_independent_fakes_raise_no_false_alarm():
    """As in a run: real images of six recordings, fakes drawn one by one from the same."""
    rng = np.random.default_rng(2)
    caught = 0
    for seed in range(20):
        level = np.concatenate([np.repeat(rng.uniform(60, 180, 6), 12), rng.uniform(60, 180, 72)])
        images = level[:, None, None, None] + rng.normal(0, 5, (144, 16, 16, 1))
        images = np.clip(images, 0, 255).astype(np.uint8)
        real = image_set(images[:72], np.repeat(np.arange(6), 12))
        caught += run("statistics", real, image_set(images[72:]), seed).p_value <= 0.05
    assert caught <= 4


@pytest.mark.parametrize("count", [5, 6, 8])
def test_five_blocks_can_decide_even_among_three_tests(count):
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(count), 8)
    dark = rng.integers(0, 50, (8 * count, 16, 16, 1), np.uint8)
    found = run("statistics", image_set(dark, blocks), image_set(dark + 100, blocks))
    assert found.accuracy == 1.0
    assert found.p_value == found.smallest_p_value and 3 * found.p_value <= 0.05


def test_too_few_blocks_cannot_reach_significance_and_it_is_said():
    blocks = np.repeat([0, 1], 20)
    dark, bright = np.full((40, 16, 16, 1), 50, np.uint8), np.full((40, 16, 16, 1), 60, np.uint8)
    dark[::2, 0], bright[::2, 0] = 3, 3
    found = run("statistics", image_set(dark, blocks), image_set(bright, blocks))
    assert found.accuracy == 1.0
    assert found.smallest_p_value == 0.5 and found.p_value >= 0.5
    assert found.detectable is None
    assert "1 independent blocks" in two_sample.too_few(image_set(dark, np.zeros(40)))


def test_independent_images_are_gathered_in_blocks_like_the_others():
    """A fake is exchanged with a fake's likes, not with a whole recording."""
    real = image_set(np.zeros((60, 8, 8, 1), np.uint8), np.repeat(np.arange(6), 10))
    fake = two_sample._alike(image_set(real.stored), real)
    np.testing.assert_array_equal(np.bincount(fake.blocks), [10] * 6)
    assert two_sample._alike(real, fake) is real
    fewer = two_sample._alike(image_set(real.stored[:24]), real)
    np.testing.assert_array_equal(np.bincount(fewer.blocks), [4] * 6)


def test_a_test_is_deterministic_by_its_seed(pool):
    a, b = image_set(pool[:20]), image_set(pool[20:40])
    for name in TESTS:
        first, second = (run(name, a, b, 3) for _ in range(2))
        assert first.accuracy == second.accuracy and first.p_value == second.p_value
