import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from configs import base, worms
from deformgan.data import simulated
from deformgan.errors import UserError
from deformgan.fields import jacobian_determinant, smooth_random

SIZE = 64


def frames(name, count=3, seed=0):
    config = base.get_config().data
    config.update({"set": name, "size": SIZE, "count": count, "seed": seed})
    return simulated.read(config)


def simulate(name, seed=0, **options):
    return simulated.simulate(jax.random.key(seed), name=name, size=SIZE, **options)


@pytest.mark.parametrize("name", simulated.SETS)
def test_every_set_of_the_report_is_drawn_with_its_labels(name):
    frame = frames(name).read(1)
    assert frame.image.shape == (SIZE, SIZE, 1) and frame.image.dtype == np.uint8
    assert frame.image.std() > 10
    structures = 2 if name.endswith("ellipses") else 4
    assert set(np.unique(frame.labels.mask)) <= set(range(structures + 1))
    assert {1, 2} <= set(np.unique(frame.labels.mask)) and {1, 2} <= set(frame.labels.ids)


def test_an_image_depends_on_the_seed_and_its_index_alone():
    few, many = frames("neurites", 2), frames("neurites", 4)
    np.testing.assert_array_equal(few.read(1).image, many.read(1).image)
    assert (frames("neurites", 2, seed=1).read(1).image != few.read(1).image).any()
    assert (few.read(0).image != few.read(1).image).any()


@pytest.mark.parametrize("seed", range(4))
def test_points_lie_on_their_structures(seed):
    """Soma centres well inside their mask, neurite points on theirs, after the deformation too."""
    truth = jax.device_get(simulate("neurites", seed))
    for identity, point in zip(truth.ids, truth.points, strict=True):
        structure = identity - 1 if identity < 100 else identity // 100 - 1
        row, column = np.round(point).astype(int)
        near = truth.masks[structure][row - 1 : row + 2, column - 1 : column + 2]
        assert near.any(), f"point {identity}"
        if identity < 100:
            assert ndimage.binary_erosion(truth.masks[structure])[row, column]


def test_the_hand_made_field_is_strong_and_never_folds():
    how = {"control": simulated._CONTROL_POINTS, "steepest": simulated._STEEPEST}
    keys = jax.random.split(jax.random.key(0), 20)
    field = jnp.concatenate([smooth_random(key, (128, 128), **how) for key in keys])
    assert jnp.min(jacobian_determinant(field)) > 0
    assert 1 < jnp.mean(jnp.abs(field)) < 4  # pixels


@pytest.mark.parametrize("name", simulated.NOISES)
def test_the_noise_control_is_5_percent_stronger_in_every_kind_of_noise(name):
    """Measured on one clean image seen through many cameras, where nothing is clipped."""
    clean = jnp.full((64, 64), 0.5)
    keys = jax.random.split(jax.random.key(0), 40)
    spread = {
        level: jnp.stack([simulated._camera(key, clean, name, level) for key in keys]).std()
        for level in (1.0, 1.05)
    }
    assert spread[1.05] / spread[1.0] == pytest.approx(1.05, rel=0.01)


def test_controls_are_new_images_or_say_why_not():
    config = worms.get_config("smoke").data
    config.set, config.count = "neurites", 5
    found = simulated.controls(config, 4)
    assert found["noise_5_percent"] == "the set has no noise"
    weaker = np.stack([frame.image for frame in found["field_minus_25_percent"]])
    config.count = 9
    same = np.stack([simulated.read(config).read(i).image for i in range(5, 9)])
    assert weaker.shape == same.shape and (weaker != same).any((1, 2, 3)).all()
    config.set = "random_ellipses"
    assert simulated.controls(config, 4)["field_minus_25_percent"] == "the set has no deformation"


def test_rotated_ellipses_keep_their_centres_and_random_ones_do_not():
    rotated = np.stack([simulate("rotated_ellipses", s).points for s in range(3)])
    placed = np.stack([simulate("random_ellipses", s).points for s in range(3)])
    assert np.ptp(rotated, axis=0).max() == 0
    assert np.ptp(placed, axis=0).min() > 1


@pytest.mark.parametrize(("name", "sigma"), [("gaussian_low", 0.05), ("gaussian_high", 0.15)])
def test_gaussian_noise_has_its_level(name, sigma):
    truth = simulate(name)
    signal = 0.08 + 0.80 * truth.clean
    residual = np.asarray(truth.image / 255.0 - signal)
    middle = np.asarray((signal > 2 * sigma) & (signal < 1 - 2 * sigma))  # little is clipped there
    assert residual[middle].std() == pytest.approx(sigma, rel=0.1)


@pytest.mark.parametrize(
    ("name", "level"), [("poisson", lambda s: np.sqrt(s / 30)), ("speckle", lambda s: 0.35 * s)]
)
def test_poisson_and_speckle_noise_grow_with_the_signal(name, level):
    truths = [simulate(name, seed) for seed in range(6)]
    signal = np.stack([0.08 + 0.80 * t.clean for t in truths])
    residual = np.stack([t.image / 255.0 for t in truths]) - signal
    for low, high in ((0.25, 0.35), (0.4, 0.5)):
        band = (signal > low) & (signal < high)
        assert residual[band].std() == pytest.approx(level(signal[band].mean()), rel=0.1)


def test_the_source_image_is_the_same_for_every_draw():
    a = simulate("neurites", 0, canonical=True)
    b = simulate("neurites", 5, canonical=True)
    np.testing.assert_array_equal(a.image, b.image)
    assert jnp.isfinite(a.points).all()


def test_an_unknown_set_lists_the_choices():
    with pytest.raises(UserError, match=r"data\.set: unknown name 'worms'.*neurites"):
        frames("worms")
