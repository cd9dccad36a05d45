"""ADA and DiffAugment: exact where they can be, leak-free where they should be, and controlled."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from skimage.feature import structure_tensor

from deformgan import adaptive_augment as ada
from deformgan import affine, augment, orientation
from deformgan.errors import UserError

SPACES = [("rgb", False), ("rgb", True), ("orientation", True), ("scalar", False)]
CHANNELS = {"rgb": 3, "orientation": 4, "scalar": 1}
RESAMPLED = jax.jit(affine.resampled)
REDIRECTED = jax.jit(affine.redirected, static_argnames="space")
TURNED = jax.jit(orientation.turned, static_argnames="space")
DECODED = jax.jit(orientation.decode, static_argnames="space")


def keys_of(seed, count):
    return jax.random.split(jax.random.key(seed), count)


def noise(space, count=4, size=16, seed=1):
    shape = (count, size, size, CHANNELS[space])
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@functools.cache
def jitted(**options):
    """`augment` compiled, and the number of times that it was traced."""
    traces = []

    @jax.jit
    def call(keys, images, probability):
        traces.append(1)
        return ada.augment(keys, images, probability, **options)

    return call, traces


def affine_of(linear, shift=(0.0, 0.0), count=1):
    linear, shift = jnp.asarray(linear, jnp.float32), jnp.asarray(shift, jnp.float32)
    return affine.Affine(
        jnp.broadcast_to(linear, (count, 2, 2)), jnp.broadcast_to(shift, (count, 2))
    )


@pytest.mark.parametrize(("space", "oriented"), SPACES)
def test_p_is_traced_and_at_0_nothing_changes_at_1_everything(space, oriented):
    call, traces = jitted(space=space, oriented=oriented)
    keys, images = keys_of(0, 4), noise(space)
    np.testing.assert_array_equal(call(keys, images, 0.0), images)
    changed = np.mean(np.asarray(call(keys, images, 1.0)) != images, axis=(1, 2, 3))
    assert (changed > 0.9).all() and len(traces) == 1


@pytest.mark.parametrize(("space", "oriented"), SPACES)
def test_draws_are_the_examples_own_and_gradients_are_finite(space, oriented):
    call, _ = jitted(space=space, oriented=oriented)
    keys, images = keys_of(2, 4), noise(space)
    out = call(keys, images, 0.7)
    swapped = call(keys[::-1], images[::-1], 0.7)
    np.testing.assert_allclose(swapped[::-1], out, rtol=0, atol=1e-5)

    @jax.jit
    @jax.value_and_grad
    def energy(images, keys):
        return jnp.sum(jnp.square(call(keys, images, 0.7)))

    # Grey and black have no hue.
    flat = np.concatenate([images[:2], 0 * images[2:3], 0 * images[3:] - 1])
    slope = energy(flat, keys)[1]
    assert np.isfinite(slope).all() and float(jnp.max(jnp.abs(slope))) < 100
    if not (
        oriented and space == "rgb"
    ):  # a quadratic: the mean of both ends' slopes is the secant's
        step = 0.1 * noise(space, seed=3)
        (low, first), (high, last) = energy(images, keys), energy(images + step, keys)
        np.testing.assert_allclose(jnp.sum((first + last) * step) / 2, high - low, rtol=1e-2)


def test_flips_quarter_turns_and_whole_shifts_are_exact():
    images = noise("rgb", count=2, size=9)
    for quarters, flip in itertools.product(range(4), (1.0, -1.0)):
        linear = affine.product(affine.quarter_turns(quarters), np.diag([1.0, flip]))
        got, mirrored = RESAMPLED(images, affine_of(linear, count=2))
        source = np.asarray(images)[:, :, :: int(flip)]
        np.testing.assert_array_equal(got, np.rot90(source, quarters, (1, 2)))
        assert not mirrored.any()
    got, mirrored = RESAMPLED(images, affine_of(np.eye(2), (2, -3), 2))
    padded = np.pad(images, [(0, 0), (2, 0), (0, 3), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(got, padded[:, :9, 3:])
    inside = np.zeros((9, 9), bool)
    inside[2:, :-3] = True
    corner = np.zeros((9, 9), bool)
    corner[:2, -3:] = True  # mirrored twice is not mirrored
    np.testing.assert_array_equal(mirrored[0], ~(inside | corner))


def test_drawn_maps_agree_with_scipy():
    """Order, centre, sign and border, on smooth images, by scipy's own spline interpolation."""
    size, count = 32, 6
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(size, size)), 2.5)
    image = (image / np.abs(image).max()).astype(np.float32)
    drawn = jax.jit(lambda keys: ada.affine_of(ada.draw(keys)[0], 1.0, size=size))
    maps = drawn(keys_of(4, count))
    got, _ = RESAMPLED(jnp.repeat(image[None, ..., None], count, 0), maps)
    centre = np.full(2, (size - 1) / 2)
    for one, linear, shift in zip(got, *map(np.asarray, maps), strict=True):
        inverse = np.linalg.inv(linear)
        offset = centre - inverse @ (centre + shift)
        wanted = ndimage.affine_transform(image, inverse, offset, order=3, mode="mirror")
        np.testing.assert_allclose(one[..., 0], wanted, rtol=0, atol=0.03)
    dots = np.zeros((1, size, size, 1), np.float32)
    dots[0, 10, 20] = 1  # right of the centre and above it; turned a little it goes up and left
    turned, _ = RESAMPLED(dots, affine_of(affine.rotation(jnp.float32(0.3))))
    assert ndimage.center_of_mass(np.maximum(turned[0, ..., 0], 0)) < (10, 20)


def test_fine_detail_survives_resampling():
    """Amplitude of waves of a quarter cycle a pixel; 0.81 of it is left by linear reading."""
    size, frequency = 48, 0.25
    row, column = np.mgrid[:size, :size] - (size - 1) / 2
    kept = []
    for angle in np.linspace(0, np.pi, 7):
        image = np.cos(2 * np.pi * frequency * column + 1).astype(np.float32)[None, ..., None]
        got, _ = RESAMPLED(image, affine_of(affine.rotation(angle), (0.3, 0.4)))
        back = (column - 0.4) * np.cos(angle) - (row - 0.3) * np.sin(angle)
        wanted = np.cos(2 * np.pi * frequency * back + 1)
        middle = np.hypot(row, column) < size / 2 - 6
        kept.append(np.sum(got[0, ..., 0] * wanted, where=middle) / np.sum(wanted[middle] ** 2))
    assert 0.92 < np.mean(kept) < 1


def test_operations_happen_as_often_and_as_strongly_as_said():
    p, count, size = 0.6, 4096, 32
    close = functools.partial(np.testing.assert_allclose, rtol=0.12, atol=0.01)

    @jax.jit
    def drawn(keys):
        places, colours = ada.draw(keys)
        each = {n: ada.affine_of(places, p, size=size, names=(n,)) for n in ada.GEOMETRIC}
        several = tuple(n for n in ada.GEOMETRIC if n != "stretch")
        each["several"] = ada.affine_of(places, p, size=size, names=several)
        return each, ada.recolouring_of(colours, p)

    maps, recolouring = jax.tree.map(np.asarray, drawn(keys_of(5, count)))

    def only(name):
        linear, shift = maps[name]
        angle = np.arctan2(linear[:, 1, 0], linear[:, 0, 0])
        return linear, np.linalg.det(linear), angle, shift

    _, determinant, _, _ = only("flip")
    close(np.mean(determinant < 0), p / 2)
    _, _, angle, _ = only("quarter_turn")
    turns = np.bincount(np.rint(angle / (np.pi / 2)).astype(int) % 4, minlength=4) / count
    close(turns, [1 - 3 * p / 4, p / 4, p / 4, p / 4])
    _, _, _, shift = only("shift")
    assert (shift == np.rint(shift)).all() and np.abs(shift).max() == size / 8
    close(np.mean(shift == 0, 0), 1 - p + p / 8)
    _, determinant, _, _ = only("scale")
    close(np.mean(determinant != 1), p)
    close(np.std(np.log2(determinant)), 0.4 * np.sqrt(p))
    _, _, angle, _ = only("rotation")
    close(np.mean(angle != 0), p)
    close(np.mean(np.cos(3 * angle)), 1 - p, atol=0.03)  # the rest are uniform
    linear, determinant, _, _ = only("stretch")
    close(determinant, 1, rtol=1e-5)
    close(np.std(np.log2(linear[:, 0, 0])), 0.2 * np.sqrt(p))
    _, _, _, shift = only("fractional_shift")
    close(np.std(shift, 0), size / 8 * np.sqrt(p))

    gain, offset = recolouring
    close(np.mean(offset, 0), 0, atol=0.02)
    grey = gain.sum(-1)  # of every channel alike: neither hue nor saturation changes grey
    np.testing.assert_allclose(grey, grey[:, :1].repeat(3, 1), atol=1e-4)
    close(np.mean(grey[:, 0] < 0), p / 2)
    close(np.std(np.log2(np.abs(grey[:, 0]))), 0.5 * np.sqrt(p))
    close(np.std(offset[:, 0] / grey[:, 0]), 0.2 * np.sqrt(p))
    close(np.mean(offset[:, 0] == 0), 1 - p)
    # On the plane of hues, a rotation times saturation times contrast.
    strength = np.linalg.det(gain) / grey[:, 0] / grey[:, 0] ** 2
    close(np.std(np.log2(strength)), 2 * np.sqrt(p))

    values = [maps[n].shift[:, i] for n in ("shift", "fractional_shift") for i in (0, 1)]
    values += [np.log2(maps["scale"].linear[:, 0, 0]), np.log2(maps["stretch"].linear[:, 0, 0])]
    values += [offset[:, 0] / grey[:, 0], np.log2(np.abs(grey[:, 0])), np.log2(strength)]
    assert np.abs(np.corrcoef(values) - np.eye(9)).max() < 0.08
    happened = np.array([values[i] != 0 for i in (0, 2, 4, 5, 6, 7)])
    assert np.abs(np.corrcoef(happened) - np.eye(6)).max() < 0.08

    # In this order: flip, quarter turn, whole shift; then scale, rotation; then part of a shift.
    general = maps["rotation"].linear @ maps["scale"].linear
    linear = general @ maps["quarter_turn"].linear @ maps["flip"].linear
    shift = (general @ maps["shift"].shift[..., None])[..., 0] + maps["fractional_shift"].shift
    np.testing.assert_allclose(maps["several"].linear, linear, atol=1e-5)
    np.testing.assert_allclose(maps["several"].shift, shift, atol=1e-5)


def shares(images, classes):
    """Which of `classes` `[K, H, W, C]` each image is, as shares; every image must be one."""
    same = (np.asarray(images)[:, None] == classes[None]).all(axis=(2, 3, 4))
    assert (same.sum(1) == 1).all()
    return same.mean(0)


TRUTH = np.array([0.7, 0.2, 0.1, 0.0])


@pytest.mark.parametrize("p", [0.6, 0.8])
def test_unequal_quarter_turns_are_told_from_augmented_images(p):
    """Karras et al. 2020, sec. 2.2: the truth is recovered by inverting the known operation."""
    count = 8192
    classes = np.stack([np.rot90(noise("rgb", 1, 4)[0], k) for k in range(4)])
    images = classes[np.searchsorted(np.cumsum(TRUTH), (np.arange(count) + 0.5) / count)]
    call, _ = jitted(space="rgb", oriented=False, geometric=("quarter_turn",), colour=())
    keys = keys_of(7, count)
    seen = shares(call(keys, images, p), classes)
    transition = (1 - p) * np.eye(4) + p / 4
    np.testing.assert_allclose(seen, transition @ TRUTH, atol=0.02)
    np.testing.assert_allclose(np.linalg.solve(transition, seen), TRUTH, atol=0.07)
    # At p = 1 all distributions look alike: nothing could tell them apart.
    np.testing.assert_allclose(shares(call(keys, images, 1.0), classes), 0.25, atol=0.02)
    assert np.linalg.matrix_rank(np.full((4, 4), 0.25)) == 1


def test_unequal_colours_are_told_from_augmented_images():
    count, p, truth = 8192, 0.8, np.array([0.9, 0.1])
    classes = np.stack([np.full((2, 2, 3), value, np.float32) for value in (-0.5, 0.5)])
    images = classes[(np.arange(count) >= truth[0] * count).astype(int)]
    call, _ = jitted(space="rgb", oriented=False, geometric=(), colour=("luma_flip",))
    bright = np.asarray(call(keys_of(8, count), images, p))[:, 0, 0, 0] > 0
    transition = (1 - p) * np.eye(2) + p / 2
    seen = np.array([np.mean(~bright), np.mean(bright)])
    np.testing.assert_allclose(np.linalg.solve(transition, seen), truth, atol=0.05)


def rings(size, centre, space):
    """Fibres along circles whose light varies from fibre to fibre, and where light is enough."""
    row, column = np.mgrid[:size, :size].astype(np.float32)
    radius = np.hypot(row - centre[0], column - centre[1])
    direction = np.arctan2(-(row - centre[0]), column - centre[1]) + np.pi / 2
    steep = np.pi / 2 * (0.45 + 0.25 * np.cos(2 * np.pi * radius / 12))
    return orientation.encode(
        orientation.Orientation(jnp.asarray(direction), jnp.asarray(steep), jnp.ones_like(radius)),
        space,
    )


def disagreement(images, space):
    """Median angle in degrees between directions told by colours and by texture, of each image."""
    shown = DECODED(images, space)
    out = []
    for direction, steep in zip(shown.direction, np.asarray(shown.inclination), strict=True):
        rr, rc, cc = structure_tensor(steep, sigma=2.0, order="rc")
        # The texture's direction is square to its gradient (x = column, y = -row).
        texture = np.arctan2(-2 * rc, cc - rr) / 2 + np.pi / 2
        out.append(np.median(orientation.axial_difference(direction, texture)))
    return np.degrees(out)


@pytest.mark.parametrize("space", ["rgb", "orientation"])
def test_colours_keep_telling_the_direction_of_what_is_seen(space):
    size, count = 64, 6
    tile = rings(size, (-20.0, 45.0), space)
    images = jnp.repeat(tile[None], count, 0)
    assert disagreement(tile[None], space)[0] < 0.5
    call, _ = jitted(
        space=space,
        oriented=True,
        geometric=("flip", "quarter_turn", "scale", "rotation"),
        colour=(),
    )
    moved = call(keys_of(9, count), images, 1.0)
    assert (disagreement(moved, space) < 1).all()
    # In the mirrored borders alone.
    maps = affine_of(affine.rotation(jnp.float32(0.7)))
    turned, mirrored = RESAMPLED(tile[None], maps)
    assert 0.1 < np.mean(mirrored) < 0.4
    told = DECODED(REDIRECTED(turned, maps, mirrored, space), space).direction
    plain = TURNED(turned, jnp.full(1, 0.7), jnp.zeros(1, bool), space)
    wrong = orientation.axial_difference(told, DECODED(plain, space).direction)
    assert np.degrees(np.median(wrong[mirrored])) > 5 and np.max(wrong[~mirrored]) < 1e-3
    # The test would notice directions that stay.
    assert np.median(disagreement(turned, space)) > 20


def test_operations_that_would_change_the_meaning_are_left_out():
    keys = keys_of(10, 4)
    images = rings(16, (3.0, -9.0), "rgb")[None].repeat(4, 0)
    call, _ = jitted(space="rgb", oriented=True, geometric=())
    before = DECODED(images, "rgb").direction
    lit = call(keys, images, 1.0)
    hue = DECODED(lit / jnp.max(jnp.abs(lit)), "rgb").direction  # nothing is clipped
    assert float(jnp.max(orientation.axial_difference(hue, before))) < 1e-2
    assert float(jnp.max(jnp.abs(lit - images))) > 0.1
    assert ada.meaningful(ada.COLOUR, space="orientation", oriented=True) == ()
    assert "stretch" not in ada.meaningful(ada.GEOMETRIC, space="scalar", oriented=True)
    assert ada.meaningful(ada.COLOUR, space="rgb", oriented=False) == ada.COLOUR


def test_a_pair_moves_alike():
    keys, images = keys_of(11, 4), noise("rgb")
    colour, _ = jitted(space="rgb", oriented=False, colour=())
    grey, _ = jitted(space="scalar", oriented=False)
    mean = jnp.mean(images, -1, keepdims=True)
    moved, other = colour(keys, images, 0.9), grey(keys, mean, 0.9)
    moved = np.asarray(jnp.mean(moved, -1))
    for a, b in zip(moved, np.asarray(other[..., 0]), strict=True):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) > 0.9999  # up to light and contrast


def test_the_controller_finds_the_p_at_which_the_target_is_met():
    step = jax.jit(functools.partial(ada.adapted, images=16, kimg=8.0))
    rng = np.random.default_rng(0)
    state, history = ada.Adaptation.start(), []
    for _ in range(800):  # r(p) = 1 - 0.8 p is 0.6 at p = 0.5
        signs = np.where(rng.uniform(size=16) < 1 - 0.4 * state.probability, 1.0, -1.0)
        state = step(state, signs.mean())
        history.append(float(state.probability))
    np.testing.assert_allclose(history[3::4][:40], np.arange(1, 41) * 64 / 8000, rtol=1e-4)
    assert history[0] == history[2] == 0  # p moves at every fourth step
    assert abs(np.mean(history[400:]) - 0.5) < 0.06
    # A discriminator that is never sure needs none; one that always is gets no more than is safe.
    for sign, end in ((-1.0, 0.0), (1.0, ada.SAFE)):
        state = ada.Adaptation.start(0.5)
        for _ in range(300):
            state = step(state, sign)
        np.testing.assert_allclose(state.probability, end, rtol=1e-6)


def test_bad_input_is_named():
    keys, images = keys_of(0, 2), noise("rgb", 2)
    options = {"space": "rgb", "oriented": False}
    with pytest.raises(UserError, match="augment.geometric.*'shear'.*quarter_turn"):
        ada.augment(keys, images, 0.5, geometric=("shear",), **options)
    with pytest.raises(UserError, match=r"augment.colour.*'gamma'.*luma_flip"):
        ada.augment(keys, images, 0.5, colour=("gamma",), **options)
    with pytest.raises(ValueError, match="images: wanted"):
        ada.augment(keys, images[:, :8], 0.5, **options)
    with pytest.raises(ValueError, match="images: wanted"):
        ada.augment(keys, images[..., :1], 0.5, **options)


def test_diff_augment_recolours_as_its_paper_does():
    """Zhao et al. 2020: light within 1/2, saturation 0 to 2, contrast 1/2 to 3/2."""
    count = 2048
    keys = keys_of(12, count)
    images = np.repeat(noise("rgb", 1, 4), count, 0)
    off = {"brightness": 0.0, "saturation": 0.0, "contrast": 0.0}
    recolour = jax.jit(augment.recolour)
    light = np.asarray(recolour(keys, images, **off | {"brightness": 0.5})) - images
    np.testing.assert_allclose(light.std((1, 2, 3)), 0, atol=1e-6)
    contrast = np.asarray(recolour(keys, images, **off | {"contrast": 0.5}))
    np.testing.assert_allclose(contrast.mean((1, 2, 3)), np.mean(images[0]), atol=1e-5)
    depth = contrast.std((1, 2, 3)) / np.std(images[0])
    saturated = np.asarray(recolour(keys, images, **off | {"saturation": 1.0}))
    np.testing.assert_allclose(saturated.mean(-1), images.mean(-1), atol=1e-5)
    vivid = saturated.std(-1).mean((1, 2)) / np.std(images[0], -1).mean()
    drawn = [light.mean((1, 2, 3)), depth, vivid]
    for values, low, high in zip(drawn, (-0.5, 0.5, 0), (0.5, 1.5, 2), strict=True):
        assert low <= values.min() + 1e-4 and values.max() - 1e-4 <= high
        np.testing.assert_allclose(
            np.quantile(values, [0.25, 0.75]),
            [low + (high - low) / 4, high - (high - low) / 4],
            atol=0.07,
        )
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 0.08
    rest = {"translation": 0.2, "cutout": 0.5}
    alone = jax.jit(functools.partial(augment.translate_and_cut, **rest))(keys, images)
    both = jax.jit(functools.partial(augment.diff_augment, **off, **rest))(keys, images)
    np.testing.assert_array_equal(both, alone)
