"""Affine maps of square images: resampling, and what they do to fibre directions."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import orientation
from deformgan.errors import require_shape
from deformgan.splines import expand


class Affine(NamedTuple):
    """What happens to the plane of each image, about its centre: `x` moves to `linear x + shift`.

    Attributes:
      linear: `[B, 2, 2]` on (row, column).
      shift: `[B, 2]` in pixels.
    """

    linear: jax.Array
    shift: jax.Array


def resampled(images: jax.Array, affine: Affine) -> tuple[jax.Array, jax.Array]:
    """Moves each image by its map; outside, the image is mirrored about its border pixels' centres.

    Twice the resolution is made by 8-point Lagrange interpolation and read linearly, once, at the
    places asked for: flips, quarter turns and whole shifts are exact. Turned by any angle, waves of
    0.1, 0.25 and 0.4 cycles a pixel keep 99, 94 and 78 % of their amplitude (97, 81 and 57 % if the
    image itself is read linearly; a cubic B-spline: 100, 99 and 90 %). Nothing is filtered before a
    map that shrinks: what passes the Nyquist frequency aliases.

    Args:
      images: `[B, S, S, C]`, any range; S 2 or more.
      affine: of B images.

    Returns:
      images: `[B, S, S, C]`.
      mirrored: `[B, S, S]` bool, where what is seen lies in a mirror.
    """
    size = images.shape[1]
    require_shape("images", images, (len(affine.shift), None, size, None))
    a, b, c, d = _entries(affine.linear)
    centre = (size - 1) / 2
    own = np.arange(size, dtype=np.float32) - np.float32(centre)
    row = own[None, :, None] - affine.shift[:, 0, None, None]
    column = own[None, None, :] - affine.shift[:, 1, None, None]
    determinant = a * d - b * c
    rows, row_mirrored = _folded((d * row - b * column) / determinant + centre, size)
    columns, column_mirrored = _folded((a * column - c * row) / determinant + centre, size)
    fine = expand(_doubling(size), images)  # [B, 2S, 2S, C]
    return _bilinear(fine, 2 * rows, 2 * columns), row_mirrored ^ column_mirrored


def redirected(images: jax.Array, affine: Affine, mirrored: jax.Array, space: str) -> jax.Array:
    """The values of `resampled` images that encode fibre directions, which their maps have turned.

    Args:
      images: `[B, S, S, C]` in [-1, 1], as `resampled` returned them.
      affine: of B images; maps that flip, turn, scale and shift, but do not stretch.
      mirrored: `[B, S, S]` bool, as `resampled` returned it.
      space: one of `orientation.SPACES`.

    Returns:
      `[B, S, S, C]`; the images themselves where nothing was mirrored or turned.
    """
    a, b, c, d = _entries(affine.linear)  # of a rotation, after the left-right flip if mirroring
    angle = jnp.broadcast_to(jnp.arctan2(c, a), mirrored.shape).reshape(-1)
    negated = (mirrored ^ (a * d - b * c < 0)).reshape(-1)
    pixels = images.reshape(-1, 1, 1, images.shape[-1])  # an image each: their mirrors differ
    return orientation.turned(pixels, angle, negated, space).reshape(images.shape)


def product(a: jax.Array | np.ndarray, b: jax.Array | np.ndarray) -> jax.Array:
    """Matrix product in full precision, which an accelerator's default is not."""
    return jnp.matmul(a, b, precision="highest")


def rotation(angle: jax.Array) -> jax.Array:
    """Counter-clockwise as seen on screen, on (row, column): scalar to `[2, 2]`."""
    return _rotation(jnp.cos(angle), jnp.sin(angle))


def quarter_turns(turns: jax.Array) -> jax.Array:
    """`rotation` by 0 to 3 right angles, exactly: scalar int32 to `[2, 2]`."""
    cosines, sines = jnp.array([1.0, 0.0, -1.0, 0.0]), jnp.array([0.0, 1.0, 0.0, -1.0])
    return _rotation(cosines[turns], sines[turns])


def _rotation(cosine: jax.Array, sine: jax.Array) -> jax.Array:
    return jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])])


def _entries(linear: jax.Array) -> jax.Array:
    """`[B, 2, 2]` to `[4, B, 1, 1]`, row by row."""
    return linear.reshape(-1, 4).T[..., None, None]


@functools.cache
def _doubling(size: int) -> np.ndarray:
    """Interpolation at pixels and half a pixel behind each `[2 size, size]`, ends mirrored."""
    out = np.zeros((2 * size, size), np.float32)
    out[::2] = np.eye(size)
    own = np.arange(size)
    # The polynomial through 8 points, in their middle.
    for offset, tap in zip(range(-3, 5), (-5, 49, -245, 1225, 1225, -245, 49, -5), strict=True):
        place = np.mod(own + offset, 2 * size - 2)
        np.add.at(out, (2 * own + 1, np.minimum(place, 2 * size - 2 - place)), tap / 2048)
    return out


def _folded(place: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Places in an image that is mirrored without end, and whether they lie in a mirror."""
    period = 2 * (size - 1)
    place = jnp.mod(place, period)
    return jnp.minimum(place, period - place), place > size - 1


def _bilinear(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Reads `[B, H, W, C]` at places `[B, H', W']` from 0 to below H - 1 and W - 1.

    All channels of a pixel at once, which is faster on CPU than one after the other.
    """
    batch, height, width, channels = images.shape
    top, left = jnp.floor(rows), jnp.floor(columns)
    first = np.arange(batch, dtype=np.int32)[:, None, None] * (height * width)
    index = (top * width + left).astype(jnp.int32) + first
    flat = images.reshape(-1, channels)
    down, right = (rows - top)[..., None], (columns - left)[..., None]

    def corner(offset: int) -> jax.Array:
        return flat.at[index + offset].get(mode="promise_in_bounds")

    upper = corner(0) + right * (corner(1) - corner(0))
    lower = corner(width) + right * (corner(width + 1) - corner(width))
    return upper + down * (lower - upper)
