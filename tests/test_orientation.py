"""Fibre orientation: colours against independent code, turning against measured texture."""

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate
from skimage.color import hsv2rgb

from deformgan import orientation
from deformgan.errors import UserError
from deformgan.orientation import Orientation

# Compiled as wholes: faster than one operation at a time, and how they are used.
to_hsv_black, to_hsv_white = jax.jit(orientation.to_hsv_black), jax.jit(orientation.to_hsv_white)
from_hsv_black = jax.jit(orientation.from_hsv_black)
from_hsv_white = jax.jit(orientation.from_hsv_white)
to_rgb_axes = jax.jit(orientation.to_rgb_axes)
axial_difference = jax.jit(orientation.axial_difference)
absolute_axial_error_3d = jax.jit(orientation.absolute_axial_error_3d)
encode, decode, to_rgb = (
    jax.jit(f, static_argnums=1)
    for f in (orientation.encode, orientation.decode, orientation.to_rgb)
)
turned, flipped_and_rotated = (
    jax.jit(f, static_argnums=3) for f in (orientation.turned, orientation.flipped_and_rotated)
)

KEY = jax.random.key(0)
GROUP = [(k, m) for m in (False, True) for k in range(4)]
QUARTERS, MIRRORED = (np.array(choices) for choices in zip(*GROUP, strict=True))


def random_orientation(shape=(2, 32, 32)):
    keys = jax.random.split(KEY, 3)
    direction = jax.random.uniform(keys[0], shape, maxval=np.pi)
    inclination = jax.random.uniform(keys[1], shape, minval=-np.pi / 2, maxval=np.pi / 2)
    return Orientation(direction, inclination, jax.random.bernoulli(keys[2], 0.8, shape))


def degrees_apart(a, b):
    return np.degrees(np.asarray(axial_difference(jnp.asarray(a), jnp.asarray(b))))


def grey_levels(rgb):
    return np.round(255 * np.asarray(rgb)).astype(np.uint8)


def texture_direction(grey):
    """Of the lines in `[H, W]` by the structure tensor: from the columns, rows counted upwards."""
    down, right = (gaussian_filter(grey, 1.5, order) for order in ((1, 0), (0, 1)))
    xx, yy, xy = (gaussian_filter(p, 3.0) for p in (right**2, down**2, -down * right))
    strength = np.hypot(xx - yy, 2 * xy)
    return (np.arctan2(2 * xy, xx - yy) / 2 + np.pi / 2) % np.pi, strength


def rings(size=72, centre=(130.0, -40.0)):
    """Arcs about a point outside the tile, and the direction of their tangent."""
    row, column = np.indices((size, size)).astype(np.float32)
    up, right = centre[0] - row, column - centre[1]
    grey = np.sin(np.hypot(up, right) * 2 * np.pi / 7).astype(np.float32)
    direction = ((np.arctan2(up, right) + np.pi / 2) % np.pi).astype(np.float32)
    return grey, direction


def flat(direction):
    return Orientation(*(jnp.broadcast_to(v, direction.shape) for v in (direction, 0.3, 1.0)))


@pytest.mark.parametrize("white", [False, True])
def test_colours_are_those_of_the_published_code(white):
    known = random_orientation()
    hue = np.asarray(known.direction) / np.pi
    level = 1 - 2 * np.abs(known.inclination) / np.pi
    one = np.ones_like(level)
    wanted = hsv2rgb(np.stack([hue, level, one] if white else [hue, one, level], -1))
    got = (to_hsv_white if white else to_hsv_black)(known)
    np.testing.assert_allclose(got, wanted * np.asarray(known.mask)[..., None], atol=2e-6)


@pytest.mark.parametrize(
    ("render", "read"), [(to_hsv_black, from_hsv_black), (to_hsv_white, from_hsv_white)]
)
def test_round_trip_through_bytes_is_right_to_one_grey_level(render, read):
    known = random_orientation()
    image = grey_levels(render(known))
    found = read(jnp.asarray(image / np.float32(255)))
    tissue = image.max(-1) > 16
    assert 0.5 < tissue.mean() < 0.9
    np.testing.assert_array_equal(found.mask, tissue)
    difference = np.abs(grey_levels(render(found)).astype(int) - image)
    assert difference[tissue].max() <= 1 and (grey_levels(render(found))[~tissue] == 0).all()
    steepness = np.degrees(np.abs(np.abs(known.inclination) - found.inclination))
    assert steepness[tissue].max() <= 90 * 0.51 / 255
    chroma = np.ptp(image.astype(float), -1)
    hue_step = 30 / np.maximum(chroma, 1)  # degrees of direction by one grey level
    apart = degrees_apart(known.direction, found.direction)
    assert (apart <= 1.01 * hue_step)[tissue & (chroma > 0)].all()
    assert np.max(found.direction) < np.pi and np.min(found.direction) >= 0


def test_axes_are_the_unit_vector_without_signs():
    known = random_orientation()
    rgb = to_rgb_axes(known)
    np.testing.assert_allclose(jnp.sum(rgb**2, -1), known.mask, atol=1e-6)
    up = Orientation(*(jnp.full((1, 1), v) for v in (np.pi / 2, 0.0, 1.0)))  # along y
    np.testing.assert_allclose(to_rgb_axes(up)[0, 0], [0, 1, 0], atol=1e-6)
    mirrored = to_rgb_axes(known._replace(direction=np.pi - known.direction))
    np.testing.assert_allclose(mirrored, rgb, atol=1e-6)


@pytest.mark.parametrize("space", ["rgb", "orientation"])
def test_what_the_network_sees_is_decoded(space):
    known = random_orientation()
    images = encode(known, space)
    assert images.shape == (2, 32, 32, {"rgb": 3, "orientation": 4}[space])
    assert float(jnp.max(jnp.abs(images))) <= 1
    found = decode(images, space)
    seen = np.asarray(known.mask) & (np.abs(known.inclination) < np.radians(80))
    np.testing.assert_array_equal(np.asarray(found.mask)[seen], 1)
    np.testing.assert_array_equal(np.asarray(found.mask)[~np.asarray(known.mask)], 0)
    assert degrees_apart(known.direction, found.direction)[seen].max() < 0.01
    apart = np.abs(np.abs(known.inclination) - found.inclination)
    assert apart[seen].max() < 1e-5
    np.testing.assert_allclose(to_rgb(images, space), encode(known, "rgb"), atol=1e-5)


def test_a_mask_may_be_soft_and_outputs_out_of_range():
    half = Orientation(*(jnp.full((1, 1), v) for v in (2.0, 0.5, 0.5)))
    found = decode(encode(half, "orientation"), "orientation")
    np.testing.assert_allclose(jnp.stack(found)[:, 0, 0], [2.0, 0.5, 0.5], atol=1e-6)
    wild = decode(jnp.array([[[3.0, 4.0, -7.0, 9.0]]]), "orientation")
    np.testing.assert_allclose(jnp.stack(wild)[:, 0, 0], [np.arctan2(4, 3) / 2, 0, 1], atol=1e-6)


def test_directions_just_below_zero_stay_below_pi():
    images = jnp.array([[[1.0, -1e-9, 0, 1], [1.0, -1e-3, 0, 1]]])
    just = np.asarray(decode(images, "orientation").direction)
    assert just[0, 0] == 0 and np.pi - 1e-3 < just[0, 1] < np.pi


def test_scalars_are_looked_at_in_grey():
    grey = jax.random.normal(KEY, (2, 4, 4, 1))
    np.testing.assert_array_equal(to_rgb(grey, "scalar")[..., 2], grey[..., 0])
    with pytest.raises(UserError, match="space: unknown name 'hsv'; choose one of rgb"):
        to_rgb(grey, "hsv")
    with pytest.raises(ValueError, match="images: wanted shape .*3"):
        turned(grey, jnp.zeros(2), jnp.zeros(2, bool), "rgb")


@pytest.mark.parametrize("space", ["rgb", "orientation"])
def test_colour_and_texture_turn_together_under_the_dihedral_group(space):
    grey, direction = rings()
    inner = (slice(12, -12),) * 2
    assert degrees_apart(texture_direction(grey)[0], direction)[inner].max() < 0.05  # as drawn
    colours = np.repeat(np.asarray(encode(flat(direction), space))[None], 8, 0)
    found = decode(flipped_and_rotated(colours, QUARTERS, MIRRORED, space), space)
    textures = np.repeat(grey[None, ..., None], 8, 0)
    textures = np.asarray(flipped_and_rotated(textures, QUARTERS, MIRRORED, "scalar"))[..., 0]
    for i, (quarters, mirrored) in enumerate(GROUP):
        moved = np.rot90(grey[:, ::-1] if mirrored else grey, quarters)
        np.testing.assert_array_equal(textures[i], moved)
        measured = texture_direction(textures[i])[0]
        assert degrees_apart(measured, found.direction[i])[inner].max() < 0.1
        np.testing.assert_allclose(found.inclination[i], 0.3, atol=1e-5)
    moved = np.rot90(direction)  # the pixels alone are not enough
    assert degrees_apart(texture_direction(np.rot90(grey))[0], moved)[inner].min() > 80


@pytest.mark.parametrize("degrees", [-37.0, 20.0, 145.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_colour_and_texture_turn_together_by_any_angle(degrees, mirrored):
    grey, direction = rings()
    images = np.asarray(encode(flat(direction), "orientation"))
    if mirrored:
        grey, images = grey[:, ::-1], images[:, ::-1]
    # scipy turns from the first axis given to the second: (column, row) is counter-clockwise
    measured = texture_direction(rotate(grey, degrees, (0, 1), reshape=False, order=3))[0]
    moved = jnp.asarray(rotate(images, degrees, (0, 1), reshape=False, order=1))[None]
    angle, choice = jnp.radians(jnp.array([degrees])), jnp.array([mirrored])
    row, column = np.indices(grey.shape) - (len(grey) - 1) / 2
    disc = np.hypot(row, column) < 22
    found = decode(turned(moved, angle, choice, "orientation"), "orientation").direction[0]
    assert degrees_apart(measured, found)[disc].max() < 1
    colours = turned(to_rgb(moved, "orientation"), angle, choice, "rgb")
    assert degrees_apart(measured, decode(colours, "rgb").direction[0])[disc].max() < 1


@pytest.mark.parametrize(("space", "channels"), [("rgb", 3), ("orientation", 4), ("scalar", 2)])
def test_flips_and_rotations_are_a_group(space, channels):
    """(k, m) then (l, n) is (l ± k, m xor n), also for colours that no code makes."""
    first, second = np.indices((8, 8)).reshape(2, -1)
    images = jnp.repeat(jax.random.normal(KEY, (1, 6, 6, channels)), 64, 0)

    def act(x, quarters, mirrored):
        return flipped_and_rotated(x, quarters, mirrored, space)

    twice = act(act(images, QUARTERS[first], MIRRORED[first]), QUARTERS[second], MIRRORED[second])
    quarters = QUARTERS[second] + np.where(MIRRORED[second], -1, 1) * QUARTERS[first]
    once = act(images, quarters, MIRRORED[first] ^ MIRRORED[second])
    np.testing.assert_allclose(twice, once, atol=1e-5)
    all_eight = np.asarray(twice[:8])  # after the identity
    assert min(np.abs(all_eight[i] - all_eight[j]).max() for i in range(8) for j in range(i)) > 0.1
    np.testing.assert_array_equal(all_eight[0], images[0])


@pytest.mark.parametrize(("space", "channels"), [("rgb", 3), ("orientation", 4)])
def test_turns_by_any_angle_are_a_group(space, channels):
    keys = jax.random.split(KEY, 4)
    images = jax.random.normal(keys[0], (32, 3, 3, channels))
    first, second = jax.random.uniform(keys[1], (2, 32), minval=-7, maxval=7)
    mirror, again = jax.random.bernoulli(keys[2], 0.5, (2, 32))
    twice = turned(turned(images, first, mirror, space), second, again, space)
    angle = second + jnp.where(again, -first, first)
    np.testing.assert_allclose(twice, turned(images, angle, mirror ^ again, space), atol=2e-5)
    still = turned(images, jnp.zeros(32), jnp.zeros(32, bool), space)
    np.testing.assert_array_equal(still, images)
    if space == "rgb":  # value and saturation stay
        for extreme in (jnp.max, jnp.min):
            np.testing.assert_allclose(extreme(twice, -1), extreme(images, -1), atol=2e-6)


@pytest.mark.parametrize("space", ["rgb", "orientation"])
def test_turning_is_exact_for_the_codes_own_images(space):
    known = random_orientation((4, 16, 16))._replace(mask=jnp.ones((4, 16, 16)))
    angle = jnp.array([0.0, 0.3, 1.9, -2.5])
    mirrored = jnp.array([False, True, False, True])
    sign = jnp.where(mirrored, -1, 1)[:, None, None]
    wanted = known._replace(direction=jnp.mod(sign * known.direction + angle[:, None, None], np.pi))
    got = turned(encode(known, space), angle, mirrored, space)
    np.testing.assert_allclose(got, encode(wanted, space), atol=5e-6)


def test_gradients_of_turning_are_bounded_at_every_colour():
    levels = jnp.linspace(-1, 1, 5)
    corners = jnp.stack(jnp.meshgrid(levels, levels, levels), -1).reshape(-1, 3)  # ties, greys
    colours = jnp.concatenate([corners + e * jnp.array([[1, -1, 0.5]]) for e in (0, 1e-7, 1e-3)])
    angles = jnp.linspace(-3, 3, len(colours))

    def one(colour, angle):
        turned_colour = turned(colour[None, None, None], angle[None], jnp.array([True]), "rgb")
        return turned_colour[0, 0, 0]

    slopes = jax.jit(jax.vmap(jax.jacrev(one)))(colours, angles)
    assert np.isfinite(slopes).all() and np.abs(slopes).max() < 12
    # grey follows grey: what all channels share passes with slope 1 wherever the colour lies
    np.testing.assert_allclose(jnp.sum(slopes, -1), 1, atol=1e-4)


def test_gradient_of_turning_agrees_with_finite_differences():
    images, along = jax.random.normal(KEY, (2, 8, 8, 8, 3))
    angle = jnp.linspace(0.1, 6, 8)
    mirrored = jnp.arange(8) % 2 == 0

    @jax.jit
    def moved(t):
        return turned(images + t * along, angle, mirrored, "rgb")

    step = 1e-3
    differences = (moved(step) - moved(-step)) / (2 * step)
    slopes = jax.jit(jax.jacfwd(moved))(0.0)
    assert np.mean(np.abs(slopes - differences) < 2e-3) > 0.97  # the rest straddle a kink


@pytest.mark.parametrize(("space", "channels"), [("rgb", 3), ("orientation", 4)])
@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_gradients_of_reading_are_finite_at_black_grey_and_zero(space, channels, level):
    images = jnp.full((1, 2, 2, channels), level)

    def total(x):
        return sum(jnp.sum(part) for part in decode(x, space)) + jnp.sum(to_rgb(x, space))

    assert np.isfinite(jax.jit(jax.grad(total))(images)).all()


def test_gradients_of_rendering_are_finite_at_zero():
    def total(known):
        shown = (to_hsv_black(known), to_hsv_white(known), to_rgb_axes(known))
        coded = (encode(known, "rgb"), encode(known, "orientation"))
        return sum(jnp.sum(image) for image in shown + coded)

    slopes = jax.jit(jax.grad(total))(Orientation(*jnp.zeros((3, 1, 2, 2))))
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_a_network_learns_a_direction_through_the_colours():
    """Descent on the rendered image finds the direction: the gradient points the right way."""
    wanted = encode(flat(jnp.full((1, 2, 2), 1.0)), "rgb")
    images = encode(flat(jnp.full((1, 2, 2), 0.6)), "orientation")
    slope = jax.jit(jax.grad(lambda x: jnp.sum((to_rgb(x, "orientation") - wanted) ** 2)))
    for _ in range(100):
        images = images - 0.01 * slope(images)
    assert degrees_apart(decode(images, "orientation").direction, 1.0).max() < 1


def test_axial_difference_knows_no_ends():
    a = jnp.radians(jnp.array([1.0, 10.0, 0.0, 170.0]))
    b = jnp.radians(jnp.array([179.0, 100.0, 0.0, 20.0]))
    np.testing.assert_allclose(np.degrees(axial_difference(a, b)), [2, 90, 0, 30], atol=1e-4)


def test_error_in_space_is_the_smallest_that_unknown_signs_allow():
    a = random_orientation()
    b = Orientation(*(jnp.flip(part, (0, 1)) for part in a))
    cosines = []
    for sign in (1, -1):
        u, v = (
            np.stack([np.cos(i) * np.cos(d), np.cos(i) * np.sin(d), np.sin(i)])
            for d, i in ((a.direction, a.inclination), (b.direction, sign * b.inclination))
        )
        cosines.append(np.abs((u * v).sum(0)))
    wanted = np.arccos(np.clip(np.maximum(*cosines), 0, 1))
    np.testing.assert_allclose(absolute_axial_error_3d(a, b), wanted, atol=1e-3)
    below = a._replace(inclination=-a.inclination)
    np.testing.assert_allclose(absolute_axial_error_3d(a, below), 0, atol=1e-6)
    tilted = Orientation(jnp.array([1e-3]), jnp.array([0.0]), jnp.ones(1))  # no loss near 0
    error = absolute_axial_error_3d(tilted._replace(direction=jnp.zeros(1)), tilted)
    np.testing.assert_allclose(error, 1e-3, rtol=1e-4)
    slopes = jax.jit(jax.grad(lambda o: jnp.sum(absolute_axial_error_3d(o, a))))(
        a._replace(mask=jnp.ones(1))
    )
    assert np.isfinite(slopes.direction).all() and np.isfinite(slopes.inclination).all()


def test_grey_mixed_into_a_map_is_told_as_residual_and_doubt():
    pure = to_hsv_black(flat(jnp.full((4, 4), 1.0)))  # value 1 - 0.6/π
    value = 1 - 0.6 / np.pi
    mixed = 0.6 * pure + 0.4 * value  # as bright, of saturation 0.6
    residuals = orientation.saturation_residual(jnp.stack([pure, mixed, 0 * pure]))
    np.testing.assert_allclose(residuals[:, 0, 0], [0, 0.4, 0], atol=1e-6)
    doubt = orientation.inclination_doubt(mixed)
    np.testing.assert_allclose(doubt, 0.4 * value * np.pi / 2, rtol=1e-5)
    reliable = orientation.inclination_reliable(jnp.stack([pure, mixed, 0 * pure]))
    np.testing.assert_array_equal(reliable, [True, False, False])


def real_map(root, name):
    if name == "slix":
        folder = root / "pli/slix"
        return tuple(np.asarray(Image.open(folder / f)) for f in ("fom.png", "average.png"))
    stem = str(root / "pli/vervet/Vervet1818_s0000_left_")
    with h5py.File(stem + "FOM_HSV.h5") as fom, h5py.File(stem + "NTransmittance.h5") as grey:
        return fom["pyramid/00"][:], grey["pyramid/00"][:]


@pytest.mark.parametrize(
    ("name", "above", "saturation", "reliable"),
    [("slix", 40, 0.85, True), ("vervet", 16, 0.38, False)],
)
def test_real_maps_keep_their_hue_and_tell_how_far_they_are_from_the_code(
    real_data, name, above, saturation, reliable
):
    image, grey = real_map(real_data, name)
    rgb = jnp.asarray(image / np.float32(255))
    found = from_hsv_black(rgb)
    tissue = image.max(-1) > above  # SLIX: scattering in the background reaches higher
    coloured = tissue & (np.ptp(image, -1) > 0)  # grey has no hue to keep
    assert coloured.mean() > 0.5
    again = from_hsv_black(jnp.asarray(grey_levels(to_hsv_black(found)) / np.float32(255)))
    apart = degrees_apart(found.direction, again.direction)[coloured]
    assert np.median(apart) < 0.1 and apart.max() < 1
    assert np.median(1 - orientation.saturation_residual(rgb)[tissue]) == pytest.approx(
        saturation, abs=0.01
    )
    assert bool(orientation.inclination_reliable(rgb)) == reliable
    # Directions are counter-clockwise: the lines in the grey image run along the hue.
    measured, strength = texture_direction(grey.astype(np.float32))
    lined = coloured & (strength > np.percentile(strength[coloured], 90))
    along = degrees_apart(measured, found.direction)[lined]
    mirrored = degrees_apart(measured, -found.direction)[lined]
    assert np.median(along) < 20 and np.median(mirrored) > 40  # chance is 45
