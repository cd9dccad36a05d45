import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats

from deformgan import camera
from deformgan.camera import Camera
from deformgan.data import simulated
from deformgan.errors import UserError
from deformgan.imaging import noise
from deformgan.imaging.noise_correlation import (
    autocorrelation,
    background_residuals,
    correlation_kernel,
)

STEP = 1 / 255
BACKGROUND, RANGE = 0.08, 0.80  # of the simulator's noisy sets
LEVELS = {
    "gaussian_low": ("gaussian", "read", 0.05),
    "gaussian_high": ("gaussian", "read", 0.15),
    "gaussian_very_high": ("gaussian", "read", 0.30),
    "poisson": ("poisson", "gain", 1 / 30),
    "speckle": ("speckle", "speckle", 0.35),
}
COUNT = 80  # images
expose = jax.jit(camera.expose)
uncensored = jax.jit(camera.uncensored)


def finite(array):
    return np.isfinite(array).all()


def smooth_kernel():
    taps = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    kernel = np.outer(taps, taps * np.array([0.5, 1, 1, 1, 1, 1, 0.5]))
    return kernel / np.sqrt(np.square(kernel).sum())


@pytest.fixture(scope="module")
def clean():
    return simulated.draw(0, COUNT, 5, "neurites", 64).clean[..., 0]


def record(clean, name):
    """The simulator's noise, on images drawn once for all of them."""
    rng, mean = np.random.default_rng(1), BACKGROUND + RANGE * clean
    kind, _, level = LEVELS[name]
    normal = rng.normal(size=mean.shape)
    if kind == "poisson":
        image = rng.poisson(30 * mean).astype(np.float32) / np.float32(30)
    else:
        image = mean + level * normal * (mean if kind == "speckle" else 1)
    return np.round(255 * np.clip(image, 0, 1)) / 255, mean


@pytest.fixture(scope="module")
def noisy(clean):
    """By name: images and their noiseless ones."""
    return {name: record(clean, name) for name in LEVELS}


@pytest.fixture(scope="module")
def estimates(noisy):
    return {name: noise.estimate(images, STEP) for name, (images, _) in noisy.items()}


@pytest.mark.parametrize("name", LEVELS)
def test_kind_level_and_background_from_images_alone(name, estimates):
    found, (kind, part, level) = estimates[name], LEVELS[name]
    assert found.kind == kind
    assert getattr(found.camera, part) == pytest.approx(level, rel=0.02)
    assert found.camera.kernel.shape == (1, 1)
    assert found.background == pytest.approx(BACKGROUND, abs=0.012)
    assert found.camera.dark == pytest.approx(0, abs=1e-6)
    assert len(found.curve.mean) == len(found.curve.variance) == len(found.curve.patches)


@pytest.mark.parametrize("name", LEVELS)
def test_refit_on_registered_means_is_precise(name, noisy):
    (images, mean), (kind, part, level) = noisy[name], LEVELS[name]
    start = Camera.create(step=STEP, **{part: 1.2 * level})
    found, offset = noise.refit(images, mean - 0.01, start, kind)
    assert getattr(found, part) == pytest.approx(level, rel=0.005)
    assert offset == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("background", [0.0, BACKGROUND])
@pytest.mark.parametrize(
    "kind,part,level", [("poisson", "gain", 0.005), ("speckle", "speckle", 0.3)]
)
def test_a_black_background_does_not_hide_the_level(kind, part, level, background, clean):
    mean = background + RANGE * (clean - clean.min())
    camera = Camera.create(**{part: level}, step=STEP)
    images = np.asarray(expose(jax.random.key(0), mean[..., None], camera))[..., 0]
    empty = mean - background < 0.02
    mask = noise.telling(images, mean, camera, kind, empty=empty, seed=0)
    assert (mask == empty).all() == (background > 0)
    found, offset = noise.refit(images, mean, camera, kind, mask=mask)
    assert getattr(found, part) == pytest.approx(level, rel=0.03)
    assert offset == pytest.approx(0, abs=0.002)


@pytest.mark.parametrize("name", LEVELS)
def test_kind_is_found_again_on_registered_means(name, noisy, estimates):
    images, mean = noisy[name]
    assert noise.choose_kind(images, mean - 0.01, estimates[name].camera) == LEVELS[name][0]


@pytest.mark.parametrize("kind", ["gaussian", "poisson", "poisson_gaussian"])
def test_means_slightly_off_do_not_change_the_kind(kind, clean):
    mean = BACKGROUND + RANGE * clean
    levels = {"gain": 0.01 * (kind != "gaussian"), "read": 0.03 * (kind != "poisson")}
    images = np.asarray(expose(jax.random.key(0), mean, Camera.create(**levels, step=STEP)))
    assert noise.choose_kind(images, mean, Camera.create(step=STEP)) == kind
    off = np.random.default_rng(0).normal(0, 0.5, (COUNT, 2))  # pixels
    pairs = zip(mean, off, strict=True)
    wrong = np.stack([ndimage.shift(m, d, order=1, mode="nearest") for m, d in pairs])
    assert noise.choose_kind(images, wrong, Camera.create(step=STEP)) == kind


def test_images_that_equal_their_means_have_no_noise_to_choose(clean):
    mean = BACKGROUND + RANGE * clean
    assert noise.choose_kind(np.round(255 * mean) / 255, mean, Camera.create(step=STEP)) == "none"
    seen = np.ones(mean.shape, bool)
    seen[:, :32] = False
    half = np.where(seen, mean, 1 - mean)  # what the mask hides has no say
    assert noise.choose_kind(half, mean, Camera.create(step=STEP), mask=seen) == "none"


def test_clean_images_have_no_noise(clean):
    found = noise.estimate(np.round(255 * clean) / 255, STEP)
    assert found.kind == "none" and camera.variance(found.camera, jnp.float32(0.5)) == 0


def test_a_mixture_of_shot_and_read_noise_is_told_from_both(clean):
    mean = jnp.asarray(BACKGROUND + RANGE * clean)
    true = Camera.create(gain=0.02, read=0.06, step=STEP)
    images = np.asarray(expose(jax.random.key(0), mean, true))
    found = noise.estimate(images, STEP)
    assert found.kind == "poisson_gaussian"
    better, _ = noise.refit(images, mean, found.camera, found.kind)
    assert better.gain == pytest.approx(0.02, rel=0.03)
    assert better.read == pytest.approx(0.06, rel=0.02)


@pytest.mark.parametrize("shape", [(1, 20, 24), (3, 16, 16, 3)])
def test_any_images_have_an_estimate(shape):
    rng = np.random.default_rng(0)
    images = [np.zeros(shape), np.ones(shape), rng.random(shape), np.round(rng.random(shape))]
    for image in images:
        found = noise.estimate(image, STEP)
        assert found.kind in noise.KINDS
        assert all(np.isfinite(leaf).all() for leaf in found.camera)


def test_refit_names_an_unknown_kind():
    with pytest.raises(UserError, match="noise kind: unknown name 'salt'"):
        noise.refit(np.zeros((1, 8, 8)), np.zeros((1, 8, 8)), Camera.create(), "salt")


def test_exact_poisson_has_its_moments_and_its_distribution():
    draw = jax.jit(camera.poisson)
    for rate in (0.3, 5.0, 31.9, 33.0, 400.0):
        counts = np.asarray(draw(jax.random.key(1), jnp.full(400_000, rate)))
        assert counts.mean() == pytest.approx(rate, abs=5 * np.sqrt(rate / 400_000))
        assert counts.var() == pytest.approx(rate, rel=0.015)
        values, observed = np.unique(counts, return_counts=True)
        wanted = 400_000 * stats.poisson.pmf(values, rate)
        often = wanted > 20
        chi = np.sum(np.square(observed - wanted)[often] / wanted[often])
        assert chi < stats.chi2.ppf(0.9999, often.sum())
    assert not draw(jax.random.key(2), jnp.zeros(400_000)).any()


def test_generated_photons_have_the_grey_levels_of_the_images(noisy, estimates):
    images, mean = noisy["poisson"]
    made = expose(jax.random.key(0), jnp.asarray(mean), estimates["poisson"].camera)
    levels, counts = np.unique(np.round(255 * np.asarray(made)), return_counts=True)
    wanted, often = np.unique(np.round(255 * images), return_counts=True)
    np.testing.assert_array_equal(levels, wanted)
    assert np.all(np.abs(counts - often) <= 5 * np.sqrt(counts + often))


@pytest.mark.parametrize("size", [(24, 28), (11, 13)])
def test_coloured_noise_has_unit_variance_everywhere_and_its_kernels_correlation(size):
    kernel = jnp.asarray(smooth_kernel(), jnp.float32)
    draw = jax.jit(camera.coloured, static_argnums=1)
    field = np.asarray(draw(jax.random.key(0), (3000, *size, 1), kernel))[..., 0]
    np.testing.assert_allclose(field.var(0), 1, atol=0.16)  # six standard errors
    wanted = ndimage.correlate(smooth_kernel(), smooth_kernel(), mode="constant")
    for dr, dc in ((0, 1), (1, 0), (2, 1)):
        product = field[:, dr:, dc:] * field[:, : size[0] - dr, : size[1] - dc]
        assert product.mean() == pytest.approx(wanted[3 + dr, 3 + dc], abs=0.02)
    far = field[:, 0] * field[:, -1]  # nothing wraps round
    assert far.mean() == pytest.approx(0, abs=0.02)


def test_kernel_is_found_again_and_white_noise_has_none():
    kernel = jnp.asarray(smooth_kernel(), jnp.float32)
    draw = jax.jit(camera.coloured, static_argnums=1)
    field = np.array(draw(jax.random.key(3), (40, 64, 64, 1), kernel))[..., 0]
    field[:, 10:30, 20:40] = np.nan
    found = correlation_kernel(0.1 * field)
    assert np.square(found).sum() == pytest.approx(1, abs=1e-5)
    wanted = ndimage.correlate(smooth_kernel(), smooth_kernel(), mode="constant")
    got = ndimage.correlate(found, found, mode="constant")
    middle = len(found) // 2
    np.testing.assert_allclose(
        got[middle - 2 : middle + 3, middle - 2 : middle + 3], wanted[1:6, 1:6], atol=0.03
    )
    white = np.random.default_rng(0).normal(size=(20, 64, 64))
    np.testing.assert_array_equal(correlation_kernel(white), [[1]])
    mask = np.zeros(white.shape, bool)
    mask[:, 10:50] = True
    np.testing.assert_array_equal(correlation_kernel(np.where(mask, white, np.nan)), [[1]])


def test_noise_of_structures_has_a_level_and_a_correlation_of_its_own():
    rows, columns = np.indices((64, 64))
    blob = 0.7 * np.exp(-(((rows - 32) / 14) ** 2 + ((columns - 32) / 14) ** 2))
    mean = np.tile((0.1 + blob).astype(np.float32), (60, 1, 1))
    coarse, fine = smooth_kernel()[1:-1, 1:-1], np.array([[0, 0, 0], [0.6, 0.8, 0], [0, 0, 0]])
    given = Camera.create(dark=0.1, read=0.01, step=STEP, kernel=coarse)
    images = np.asarray(expose(jax.random.key(0), jnp.asarray(mean)[..., None], given))[..., 0]
    draw = jax.jit(camera.coloured, static_argnums=1)
    field = np.asarray(draw(jax.random.key(1), (60, 64, 64, 1), jnp.asarray(fine)))[..., 0]
    images = images + np.sqrt(0.004 * np.maximum(mean - 0.1, 0)) * field
    start = given._replace(read=jnp.float32(STEP))
    found, offset = noise.refit_correlated(images, mean, start, mask=mean < 0.105)
    assert float(found.read) == pytest.approx(0.01, rel=0.05) and abs(offset) < 1e-3
    for level in (0.2, 0.4, 0.7):
        power = 0.01**2 + 0.004 * (level - 0.1)
        assert float(camera.variance(found, jnp.float32(level))) == pytest.approx(power, rel=0.1)
    near = ndimage.correlate(np.asarray(found.kernel), np.asarray(found.kernel), mode="constant")
    middle = len(near) // 2
    assert near[middle, middle + 1] == pytest.approx(0.48, abs=0.08)
    assert near[middle + 1, middle] < 0.12


def test_without_structure_the_correlation_is_that_of_the_background():
    images = np.random.default_rng(0).normal(0.1, 0.01, (8, 32, 32))
    start = Camera.create(read=STEP, step=STEP, kernel=np.ones((3, 3)) / 3)
    for bright in (0, 6):  # pixels of a structure too small to tell anything
        mean = np.full(images.shape, 0.1)
        mean[:, 0, :bright] = 0.5
        found, _ = noise.refit_correlated(images + mean - 0.1, mean, start, mask=mean < 0.2)
        np.testing.assert_array_equal(found.kernel, start.kernel)
        assert float(found.gain) == float(found.speckle) == 0


def test_noise_of_real_frames_is_as_correlated_as_they_are(real_data):
    files = sorted((real_data / "worms" / "zephir").glob("*.png"))
    images = np.stack([np.asarray(Image.open(f)) for f in files[::20]]) / 255
    residuals = background_residuals(images)
    background = np.isfinite(residuals)
    wanted = autocorrelation(residuals)[6:8, 6:8]
    assert wanted[0, 1] > 0.5 and wanted[1, 0] > 0.5
    kernel = correlation_kernel(residuals, step=STEP)
    mean = np.where(background, images - residuals, 0)
    start = Camera.create(read=STEP, step=STEP, kernel=kernel)
    found, offset = noise.refit(images, mean, start, "gaussian", mask=background)
    light = jnp.asarray(mean + offset, jnp.float32)[..., None]
    made = np.asarray(expose(jax.random.key(0), light, found))[..., 0]
    again = np.where(background, made - mean, np.nan)
    np.testing.assert_allclose(autocorrelation(again)[6:8, 6:8], wanted, atol=0.05)
    assert np.nanstd(again) == pytest.approx(np.nanstd(residuals), rel=0.05)
    guess = noise.estimate(images, STEP)
    assert guess.kind != "none" and guess.camera.kernel.shape == (13, 13)


def test_compressed_structures_are_noisy_where_their_surroundings_are_bright():
    mean = np.full((200, 32, 32), 0.1, np.float32)
    mean[:, 12:20, 12:20] = 0.7
    mean[:, 15:17, 15:17] = 0.1  # a dark gap
    given = Camera.create(dark=0.1, gain=0.002, step=STEP)
    given = given._replace(bank=jnp.zeros((2, 32, 32)))
    images = np.asarray(expose(jax.random.key(0), jnp.asarray(mean)[..., None], given))[..., 0]
    power = np.square(images - mean).mean(0)
    around = np.asarray(camera.surroundings(jnp.asarray(mean[:1])[..., None]))[0, ..., 0] - 0.1
    gap = power[15:17, 15:17].mean()
    assert gap == pytest.approx(0.002 * around[15:17, 15:17].mean(), rel=0.15)
    assert gap > 20 * power[:, :4].mean()
    burnt = jnp.full((50, 32, 32, 1), 1.3)
    white = np.mean(np.asarray(expose(jax.random.key(0), burnt, given)) == 1)
    assert white == pytest.approx(0.5, abs=0.05)  # compressed once they were clipped


def test_recorded_backgrounds_are_replayed_with_what_structures_hid_filled_in():
    rng = np.random.default_rng(0)
    blocks = STEP * rng.integers(0, 3, (20, 4, 4)).repeat(8, 1).repeat(8, 2)  # as compression
    mean = np.full(blocks.shape, 0.1)
    for k in range(20):
        mean[k, 12:20, k : k + 8] = 0.7  # hides another place in each frame
    mean[:, 24:, 24:] = 0.7  # and one in all
    given = Camera.create(read=0.01, step=STEP, kernel=np.ones((3, 3)) / 3, dark=0.1)
    bank = noise.recorded_backgrounds(mean + blocks, mean, given, mask=mean < 0.11)
    assert bank.shape == blocks.shape
    np.testing.assert_allclose(bank / STEP, np.round(bank / STEP), atol=1e-4)  # none of it is read
    np.testing.assert_allclose(np.ptp(bank[:, 24:, 24:], (1, 2)), 0, atol=1e-6)  # whole blocks
    far = np.s_[:, :8]
    np.testing.assert_allclose(bank[far], blocks[far], atol=1e-6)
    replaying = given._replace(bank=jnp.asarray(bank))
    level = 10 * STEP
    empty = jnp.full((6, 32, 32, 1), level, jnp.float32)
    made = np.asarray(expose(jax.random.key(0), empty, replaying))[..., 0] - level
    distance = np.abs(made[:, None, :8] - blocks[None, :, :8]).max((2, 3))
    assert (distance.min(1) < 1e-5).all() and len(set(distance.argmin(1))) > 1


CAMERAS = {
    "gaussian": Camera.create(read=0.15, step=STEP),
    "poisson": Camera.create(gain=1 / 30, step=STEP),
    "mixture": Camera.create(dark=0.05, gain=0.01, read=0.02, step=STEP),
    "speckle": Camera.create(speckle=0.35, step=STEP),
    "clean": Camera.create(),
    "coloured": Camera.create(gain=0.01, read=0.1, step=STEP, kernel=jnp.ones((3, 3)) / 3),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_gradients_are_finite_and_point_up(name):
    def record(mean, own):
        return camera.expose(jax.random.key(0), mean, own).sum()

    def likelihood(mean, image, own):
        return camera.negative_log_likelihood(image, mean, own).sum()

    up = jax.jit(jax.grad(record, (0, 1)))
    energy = jax.jit(jax.value_and_grad(likelihood, (0, 2)))
    white = CAMERAS[name]._replace(kernel=jnp.ones((1, 1)))  # likelihoods know no correlation
    for level in (-0.5, 0.0, 1e-6, 0.05, 0.5, 1.0, 1.5):
        mean = np.full((8, 16, 16, 1), level, np.float32)
        slope, levels = up(mean, CAMERAS[name])
        assert finite(slope) and np.mean(slope) > 0.5
        assert all(map(finite, levels))
        for image in (np.full_like(mean, own) for own in (0.0, 0.5, 1.0)):
            found = energy(mean, image, white)
            assert all(map(finite, jax.tree.leaves(found)))
            assert finite(uncensored(image, mean, white))


def test_the_gradient_of_the_mean_record_is_one_and_that_of_its_variance_the_gain():
    own = Camera.create(gain=1 / 30)
    mean = jnp.full((64, 64, 64, 1), 0.5)

    def moments(m):
        image = camera.expose(jax.random.key(0), mean + m, own)
        centred = image - jax.lax.stop_gradient(image.mean())
        return jnp.stack([image.mean(), jnp.square(centred).mean()])

    slope = jax.jit(jax.jacrev(moments))(0.0)
    np.testing.assert_allclose(slope, [1, 1 / 30], atol=0.005)


def test_a_likelihood_is_least_at_the_mean_and_pulls_clipped_pixels_outwards():
    own = CAMERAS["gaussian"]
    slope = jax.jit(jax.grad(lambda m, x: camera.negative_log_likelihood(x, m, own)))
    assert slope(0.2, 0.5) < 0 < slope(0.8, 0.5) and abs(slope(0.5, 0.5)) < 1e-5
    assert slope(0.0, 0.0) > 0 and slope(1.0, 1.0) < 0
    assert jnp.isfinite(slope(1e4, 0.0)) and jnp.isfinite(slope(-1e4, 1.0))


@pytest.mark.parametrize("name", ["gaussian", "speckle", "coloured"])
def test_records_agree_with_their_likelihood_and_expectation(name):
    own, key = CAMERAS[name], jax.random.key(4)
    white = own._replace(kernel=jnp.ones((1, 1)))  # likelihoods know no correlation
    likelihood, expected = jax.jit(camera.negative_log_likelihood), jax.jit(camera.expected)
    for level in (0.02, 0.08, 0.6, 0.95):
        mean = np.full((20, 64, 64, 1), level, np.float32)
        image = np.asarray(expose(key, mean, own))
        error = 5 / np.sqrt(image.size / 9)
        for end in (0.0, 1.0):
            tail = np.exp(-likelihood(end, level, white))
            assert np.mean(image == end) == pytest.approx(float(tail), abs=error / 2 + 2e-3)
        assert image.mean() == pytest.approx(float(expected(level, white)), abs=error / 2)
        # On average what is clipped is put back: the E step leaves the true mean in place.
        whole = np.asarray(uncensored(image, mean, white))
        assert whole.mean() == pytest.approx(level, abs=error)


def test_records_are_grey_levels_and_pass_through_jit_and_vmap():
    mean = np.linspace(0, 1, 2 * 16 * 16, dtype=np.float32).reshape(2, 16, 16, 1)
    mapped = jax.jit(jax.vmap(camera.expose, (0, 0, None)))
    keys = jax.random.split(jax.random.key(5), 2)
    for own in (CAMERAS["mixture"], CAMERAS["coloured"], CAMERAS["clean"]):
        image = np.asarray(mapped(keys, mean, own))
        assert image.min() >= 0 and image.max() <= 1 and image.shape == mean.shape
        if own.step > 0:
            np.testing.assert_allclose(image * 255, np.round(image * 255), atol=1e-4)
        alone = expose(keys[1], mean[1], own)
        np.testing.assert_allclose(image[1], alone, atol=1.01 * STEP)
    np.testing.assert_allclose(
        expose(jax.random.key(5), mean[1], CAMERAS["clean"]), mean[1], atol=1e-6
    )
