"""Fibre orientation: its colour codes, what a network sees of it, and how it turns with the image.

A fibre is an axis. Its direction φ in [0, π) is counter-clockwise from the +column axis as seen on
screen, its inclination α in [-π/2, π/2] is out of the plane. A fibre orientation map (FOM) shows
both as a colour. The sign of α is unknown in a FOM, so what is read from one is |α|.

The codes are those of fastpli (3d-pli/fastpli, `analysis/images.py`: `fom_hsv_black`, `fom_rgb`)
and of SLIX (3d-pli/SLIX, `visualization.py`: `Colormap.hsv_black`, `hsv_white`, `rgb`). Background
is black in each.

A space is what the channels of an image `[B, H, W, C]` in [-1, 1] mean:
  rgb: HSV-black colours, x = 2 colour - 1;
  orientation: m cos 2φ, m sin 2φ, 4|α|/π - 1 and 2m - 1, with m the mask;
  scalar: any number of values without a direction, such as transmittance or retardation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deformgan.errors import choose, require_shape

CODED = ("rgb", "orientation")
SPACES = (*CODED, "scalar")
DARKEST_TISSUE = 16.5 / 255  # below it (16 grey levels and less) a FOM's hue is mostly rounding
LARGEST_DOUBT = math.radians(10)  # an inclination that is less certain is not to be relied on
_GREY = 1e-3  # chroma, a quarter of a grey level: below it there is no hue


class Orientation(NamedTuple):
    """Fibre axes, one a pixel.

    Attributes:
      direction: φ `[..., H, W]` radians in [0, π).
      inclination: α `[..., H, W]` radians in [-π/2, π/2].
      mask: `[..., H, W]` bool, or share of tissue in [0, 1].
    """

    direction: jax.Array
    inclination: jax.Array
    mask: jax.Array


def to_hsv_black(orientation: Orientation) -> jax.Array:
    """Hue φ/π, saturation 1, value m (1 - 2|α|/π): `[..., H, W, 3]` in [0, 1].

    Steep fibres are black, as the background is.
    """
    value = _flatness(orientation.inclination) * orientation.mask
    return _colour(jnp.zeros_like(value), value, orientation.direction)


def to_hsv_white(orientation: Orientation) -> jax.Array:
    """Hue φ/π, saturation 1 - 2|α|/π, value m: `[..., H, W, 3]` in [0, 1]. Steep is white."""
    chroma = _flatness(orientation.inclination) * orientation.mask
    return _colour(orientation.mask - chroma, chroma, orientation.direction)


def to_rgb_axes(orientation: Orientation) -> jax.Array:
    """m (|x|, |y|, |z|) of the fibre's unit vector: `[..., H, W, 3]` in [0, 1].

    x is along the columns, y up the screen, z out of it. φ and -φ look alike, so there is no way
    back.
    """
    direction, inclination, mask = orientation
    flat = jnp.cos(inclination)
    vector = (flat * jnp.cos(direction), flat * jnp.sin(direction), jnp.sin(inclination))
    return jnp.stack([jnp.abs(component) * mask for component in vector], -1)


def from_hsv_black(rgb: jax.Array) -> Orientation:
    """Orientation of HSV-black colours `[..., H, W, 3]` in [0, 1], |α| for α.

    The hue gives φ, the value |α|, whatever the saturation (`saturation_residual`). The mask is 1
    where the value is above `DARKEST_TISSUE`: a fibre steeper than 84 degrees is taken for
    background. Grey has φ = 0 and no gradient of it.
    """
    value = jnp.max(rgb, -1)
    return Orientation(_hue_direction(rgb), (1 - value) * (math.pi / 2), _tissue(value))


def from_hsv_white(rgb: jax.Array) -> Orientation:
    """Orientation of HSV-white colours `[..., H, W, 3]` in [0, 1]; the background is black."""
    value = jnp.max(rgb, -1)
    return Orientation(_hue_direction(rgb), (1 - _saturation(rgb)) * (math.pi / 2), _tissue(value))


def saturation_residual(rgb: jax.Array) -> jax.Array:
    """How far a map `[..., H, W, 3]` in [0, 1] is from HSV black: 1 - saturation, `[..., H, W]`.

    0 for the code's own colours and for black, 1 for grey.
    """
    return jnp.where(jnp.max(rgb, -1) > 0, 1 - _saturation(rgb), 0.0)


def inclination_doubt(rgb: jax.Array) -> jax.Array:
    """How much |α| read from the value and from the chroma of a map `[..., H, W, 3]` differ.

    `[..., H, W]` radians in [0, π/2]; 0 for HSV black, whose colours have no grey in them.
    """
    return jnp.min(rgb, -1) * (math.pi / 2)


def inclination_reliable(rgb: jax.Array) -> jax.Array:
    """Whether the median doubt about |α| in the tissue of a map is at most `LARGEST_DOUBT`.

    `[..., H, W, 3]` in [0, 1], taken for HSV black, to `[...]` bool; False without tissue.
    """
    tissue = _tissue(jnp.max(rgb, -1)) > 0
    doubt = jnp.where(tissue, inclination_doubt(rgb), jnp.nan)
    return jnp.nanmedian(doubt, axis=(-2, -1)) <= LARGEST_DOUBT


def encode(orientation: Orientation, space: str) -> jax.Array:
    """The images of an orientation in a space (see the module): `[..., H, W, 3 or 4]` in [-1, 1].

    The sign of the inclination is lost. Where the mask is 0, the space "orientation" holds
    (0, 0, 1, -1), whatever the direction and inclination there: as steep as black reads.
    """
    choose("space", space, CODED)
    if space == "rgb":
        return 2 * to_hsv_black(orientation) - 1
    direction, inclination, mask = orientation
    steep = jnp.where(mask > 0, jnp.abs(inclination) * (4 / math.pi) - 1, 1.0)
    cosine, sine = jnp.cos(2 * direction) * mask, jnp.sin(2 * direction) * mask
    return jnp.stack([cosine, sine, steep, 2.0 * mask - 1], -1)


def decode(images: jax.Array, space: str) -> Orientation:
    """The orientation that images `[..., H, W, 3 or 4]` show, |α| for α and a mask in [0, 1].

    A network's output may leave [-1, 1]: inclination and mask are then the nearest possible ones.
    The direction of a zero vector is 0 and has a zero gradient.
    """
    choose("space", space, CODED)
    if space == "rgb":
        return from_hsv_black(jnp.clip((images + 1) / 2, 0, 1))
    cosine, sine, steep, mask = (images[..., channel] for channel in range(4))
    none = jnp.square(cosine) + jnp.square(sine) < 1e-12
    angle = jnp.arctan2(jnp.where(none, 0.0, sine), jnp.where(none, 1.0, cosine))
    inclination = jnp.clip((steep + 1) * (math.pi / 4), 0, math.pi / 2)
    return Orientation(_axial(angle / 2), inclination, jnp.clip((mask + 1) / 2, 0, 1))


def to_rgb(images: jax.Array, space: str) -> jax.Array:
    """Images as they are looked at: `[..., H, W, 3]` in [-1, 1].

    Orientations are shown in HSV black, a scalar of one channel in grey; "rgb", and scalars of more
    channels, are returned as they are.
    """
    choose("space", space, SPACES)
    if space == "orientation":
        return encode(decode(images, space), "rgb")
    return jnp.repeat(images, 3, -1) if images.shape[-1] == 1 else images


def turned(images: jax.Array, angle: jax.Array, mirrored: jax.Array, space: str) -> jax.Array:
    """The values of images whose content was mirrored and then turned; no pixel moves.

    A mirror, left-right or top-bottom, negates a direction; a rotation by θ adds θ. `turned` by -θ
    undoes `turned` by θ in every space. In "rgb" the hue moves by 2θ while the largest and the
    smallest channel keep their values: exact for HSV black, and piecewise linear in any colour,
    without a division, so that gradients are bounded at grey and black as well. Values beyond
    [-1, 1] are treated likewise.

    Args:
      images: `[B, H, W, C]` in [-1, 1].
      angle: θ `[B]` radians, counter-clockwise as seen on screen.
      mirrored: `[B]` bool.
      space: one of `SPACES`.

    Returns:
      `[B, H, W, C]`, of the images' type; the images themselves where θ = 0 and not mirrored.
    """
    choose("space", space, SPACES)
    channels = {"rgb": 3, "orientation": 4, "scalar": None}[space]
    require_shape("images", images, (None, None, None, channels))
    require_shape("angle", angle, (len(images),))
    require_shape("mirrored", mirrored, (len(images),))
    if space == "scalar":
        return images
    angle, mirrored = angle[:, None, None], mirrored[:, None, None]  # [B, 1, 1]
    if space == "rgb":
        red, green, blue = (images[..., channel] for channel in range(3))
        swapped = (jnp.where(mirrored, blue, green), jnp.where(mirrored, green, blue))  # -hue
        colours = jnp.stack([red, *swapped], -1)
        return _hue_rotated(colours, angle).astype(images.dtype)
    cosine, sine = images[..., 0], jnp.where(mirrored, -images[..., 1], images[..., 1])
    by_cosine, by_sine = jnp.cos(2 * angle), jnp.sin(2 * angle)
    vector = (by_cosine * cosine - by_sine * sine, by_sine * cosine + by_cosine * sine)
    return jnp.stack([*vector, images[..., 2], images[..., 3]], -1).astype(images.dtype)


def flipped_and_rotated(
    images: jax.Array, quarter_turns: jax.Array, mirrored: jax.Array, space: str
) -> jax.Array:
    """Square images mirrored left-right and then turned counter-clockwise, values and positions.

    Args:
      images: `[B, S, S, C]` in [-1, 1].
      quarter_turns: `[B]` integers, any; as `numpy.rot90` turns.
      mirrored: `[B]` bool.
      space: one of `SPACES`.

    Returns:
      `[B, S, S, C]`.

    Raises:
      ValueError: if the images are not square.
    """
    require_shape("images", images, (None, images.shape[2], None, None))
    quarters = jnp.mod(quarter_turns, 4)
    images = turned(images, quarters * (math.pi / 2), mirrored, space)

    def only(chosen: jax.Array, changed: jax.Array, kept: jax.Array) -> jax.Array:
        return jnp.where(chosen[:, None, None, None], changed, kept)

    images = only(mirrored, images[:, :, ::-1], images)
    images = only(quarters % 2 == 1, jnp.swapaxes(images, 1, 2), images)
    images = only((quarters == 1) | (quarters == 2), images[:, ::-1], images)
    return only(quarters >= 2, images[:, :, ::-1], images)


def axial_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """Angle between two directions in the plane, modulo π: radians in [0, π/2], any shape."""
    return jnp.abs(jnp.mod(a - b + math.pi / 2, math.pi) - math.pi / 2)


def absolute_axial_error_3d(a: Orientation, b: Orientation) -> jax.Array:
    """Angle between two axes in space, the inclinations without their sign; `[..., H, W]`.

    arccos |u·v| with |α| for α and, of the two ends of each fibre, those that lie on one side in
    the plane: the smallest angle that the unknown signs allow. Written as a haversine, which keeps
    small angles. The masks are not looked at.

    Returns:
      Radians in [0, π/2].
    """
    first, second = jnp.abs(a.inclination), jnp.abs(b.inclination)
    apart = axial_difference(a.direction, b.direction)
    flat = jnp.cos(first) * jnp.cos(second)
    haversine = jnp.sin((first - second) / 2) ** 2 + flat * jnp.sin(apart / 2) ** 2
    positive = haversine > 0
    root = jnp.sqrt(jnp.where(positive, haversine, 1.0))
    return jnp.where(positive, 2 * jnp.arcsin(jnp.minimum(root, 1.0)), 0.0)


def _flatness(inclination: jax.Array) -> jax.Array:
    return 1 - jnp.abs(inclination) * (2 / math.pi)


def _axial(angle: jax.Array) -> jax.Array:
    """An angle modulo π, below π in float32 too."""
    rest = jnp.mod(angle, math.pi)
    return jnp.where(rest >= math.pi, 0.0, rest)


def _tissue(value: jax.Array) -> jax.Array:
    return (value > DARKEST_TISSUE).astype(value.dtype)


def _saturation(rgb: jax.Array) -> jax.Array:
    high = jnp.max(rgb, -1)
    return (high - jnp.min(rgb, -1)) / jnp.where(high > 0, high, 1.0)


def _colour(low: jax.Array, chroma: jax.Array, direction: jax.Array) -> jax.Array:
    return _from_arc(low, chroma, chroma * _axial(direction) * (6 / math.pi))


def _hue_direction(rgb: jax.Array) -> jax.Array:
    _, chroma, arc = _to_arc(rgb)
    grey = chroma < _GREY
    share = jnp.where(grey, 0.0, arc) / jnp.where(grey, 1.0, chroma)
    return _axial(share * (math.pi / 6))


def _hue_rotated(colours: jax.Array, angle: jax.Array) -> jax.Array:
    low, chroma, arc = _to_arc(colours)
    turn = jnp.mod(angle * (6 / math.pi), 6)
    arc = arc + turn * chroma
    arc = jnp.where(arc >= 6 * chroma, arc - 6 * chroma, arc)
    return jnp.where((turn == 0)[..., None], colours, _from_arc(low, chroma, arc))


def _to_arc(rgb: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Smallest channel, chroma c, and hue as the arc along a hexagon of side c, in [0, 6c]."""
    red, green, blue = (rgb[..., channel] for channel in range(3))
    low = jnp.minimum(jnp.minimum(red, green), blue)
    high = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = high - low
    from_green, from_blue = 2 * chroma + blue - red, 4 * chroma + red - green
    arc = jnp.where(red >= high, green - blue, jnp.where(green >= high, from_green, from_blue))
    return low, chroma, jnp.where(arc < 0, arc + 6 * chroma, arc)


def _from_arc(low: jax.Array, chroma: jax.Array, arc: jax.Array) -> jax.Array:
    red = jnp.clip(jnp.abs(arc - 3 * chroma) - chroma, 0, chroma)
    green = jnp.clip(2 * chroma - jnp.abs(arc - 2 * chroma), 0, chroma)
    blue = jnp.clip(2 * chroma - jnp.abs(arc - 4 * chroma), 0, chroma)
    return low[..., None] + jnp.stack([red, green, blue], -1)
