"""Images whose pixels are not all their own: colours of a video, enlarged images.

Video stores brightness for every pixel, but colour for cells of 2x2 (4:2:0) or of 1x2 (4:2:2)
alone. Of a channel taken from it, a share then has half the resolution: of a green fluorophore's
0.41 (ITU-R BT.601: G = Y - 0.344 U - 0.714 V). Of an image enlarged by repeating its pixels, all.
Steps between cells are steeper than those within one, by which any classifier knows such frames.

The cells are an array `[3]`: the share; then for rows and columns, whether cells begin at even
places (0), odd ones (1) or are a single pixel wide (-1). `NONE` is `[1]`: no cells at all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.errors import require_shape

NONE = np.zeros(1, np.float32)
_LEAST = 0.15  # share below which steps that differ may be those of the structures
_AGREE = 0.9  # share of images that must show the same


def stored(images: jax.Array, cells: jax.Array) -> jax.Array:
    """`[B, S, S]` images, of which a share is the mean of each pixel's cell; linear in them."""
    if cells.shape == NONE.shape:
        return images
    coarse = images
    for axis in (1, 2):
        coarse = jnp.where(cells[axis] < 0, coarse, _paired(coarse, cells[axis], axis))
    return images + cells[0] * (coarse - images)


def _paired(images: jax.Array, first: jax.Array, axis: int) -> jax.Array:
    """Each pixel the mean of its pair along an axis; one without a partner as it is."""
    size = images.shape[axis]
    place = jnp.arange(size)
    partner = jnp.where((place + first.astype(jnp.int32)) % 2 == 0, place + 1, place - 1)
    pairs = jax.nn.one_hot(jnp.clip(partner, 0, size - 1), size)
    pairs = (pairs + jnp.eye(size)) / 2
    return jnp.moveaxis(jnp.tensordot(pairs, images, (1, axis), precision="highest"), 0, axis)


def found(images: np.ndarray) -> np.ndarray:
    """The cells of `[N, S, S]` images, `NONE` if nearly every pixel is its own.

    Where a share s of smooth images is stored in cells of two, steps within a cell are 1 - s of
    what they would be, steps between cells 1 + s.
    """
    require_shape("images", images, (None, None, None))
    ways = [_along(images, axis) for axis in (1, 2)]
    shares = [share for share, _ in ways if share >= _LEAST]
    if not shares:
        return NONE
    firsts = [first if share >= _LEAST else -1 for share, first in ways]
    return np.array([np.mean(shares), *firsts], np.float32)


def _along(images: np.ndarray, axis: int) -> tuple[float, int]:
    """The share that is stored in cells of two along an axis, 0 if none, and where they begin."""
    steps = np.square(np.diff(images, axis=axis))
    power = [
        np.take(steps, np.arange(k, steps.shape[axis], 2), axis).mean((1, 2), dtype=np.float64)
        for k in (0, 1)
    ]
    first = int(power[1].sum() < power[0].sum())
    within, between = power[first], power[1 - first]
    if np.mean(within < between) < _AGREE:
        return 0.0, first
    ratio = np.sqrt(between.sum() / max(within.sum(), 1e-12))
    return float((ratio - 1) / (ratio + 1)), first


def refined(images: np.ndarray, means: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The cells with the share that fits best, given what the images would be without cells.

    Args:
      images: `[N, S, S]` unit intensity; pixels at 0 and 1 have no say.
      means: noiseless, as if every pixel were its own, of the same shape.
      cells: where they are.
    """
    if cells.shape == NONE.shape:
        return cells
    whole = np.array([1, *cells[1:]], np.float32)
    change = np.asarray(stored(jnp.asarray(means), jnp.asarray(whole))) - means
    change = np.where((images > 0) & (images < 1), change, 0)
    share = np.sum((images - means) * change) / max(np.sum(np.square(change)), 1e-12)
    return np.array([np.clip(share, 0, 1), *cells[1:]], np.float32)


def in_words(cells: np.ndarray | jax.Array) -> str:
    """Such as "41% of each is shared by cells of 2x2"."""
    if cells.shape == NONE.shape:
        return "each its own"
    share, *firsts = np.asarray(cells)
    rows, columns = (1 if first < 0 else 2 for first in firsts)
    return f"{share:.0%} of each is shared by cells of {rows}x{columns}, as in colour video"
