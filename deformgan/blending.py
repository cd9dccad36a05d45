"""How several predictions of the same pixels become one: a mean, and how far they are apart.

Fibre orientations are axes: colours that encode them have no mean, and neither have angles. Their
mean is taken of m (cos 2φ, sin 2φ), of m |α| and of m, with m the share of tissue: a prediction
counts for a direction as far as it sees a fibre there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.orientation import Orientation, decode, encode

_LARGEST = 90 / math.sqrt(3)  # degrees: standard deviation of directions drawn at random
_NOTHING = 1e-6  # share of tissue


class Blend(NamedTuple):
    """A mean of predictions, taken in two steps: over passes, and over tiles by their weights.

    Attributes:
      channels: A, of what a weighted mean may be taken of.
      merge: predictions `[K, ..., H, W, C]` of K passes -> `[..., H, W, A]`.
      image: such, or weighted means of such -> images `[..., H, W, C]` in [-1, 1].
      spread: the same -> `[..., H, W]`, how far the passes of a tile are apart, in `unit`.
      unit: in words.
      axial: whether images encode directions, as colours do.
    """

    channels: int
    merge: Callable[[jax.Array], jax.Array]
    image: Callable[[jax.Array], jax.Array]
    spread: Callable[[jax.Array], jax.Array]
    unit: str
    axial: bool


def oriented(space: str) -> Blend:
    """The blend of predictions in a coded space of deformgan/orientation.py.

    `image` gives HSV-black colours. `spread` is the `deviation` of the direction modulo 180
    degrees; 0 where there is no tissue.
    """
    unit = "degrees, circular standard deviation of direction modulo 180 degrees over passes"
    merge = functools.partial(_merged_axes, space=space)
    return Blend(5, merge, _axes_image, _axes_spread, unit, axial=True)


def deviation(length: Any) -> Any:
    """Degrees, the circular standard deviation of directions modulo 180 degrees.

    It is sqrt(-2 ln R) of the doubled angles, halved (Mardia & Jupp 2000, sec. 2.3), at most 52
    degrees, which directions drawn at random have.

    Args:
      length: R of the mean of exp(2iφ), an array of NumPy or JAX of any shape.
    """
    xp: Any = jnp if isinstance(length, jax.Array) else np
    degrees = xp.degrees(xp.sqrt(-2 * xp.log(xp.clip(length, 1e-12, 1))) / 2)
    return xp.minimum(degrees, _LARGEST)


def plain(channels: int, grey_levels: float) -> Blend:
    """The blend of images without directions: their mean.

    Args:
      channels: of the images.
      grey_levels: that lie between 0 and 1 in [-1, 1], for the unit of `spread`: the standard
        deviation over passes, as the root of the mean variance of channels.
    """

    def merge(values: jax.Array) -> jax.Array:
        variance = jnp.mean(jnp.var(values, 0), -1, keepdims=True)
        return jnp.concatenate([jnp.mean(values, 0), variance], -1)

    return Blend(
        channels + 1,
        merge,
        lambda merged: merged[..., :channels],
        lambda merged: grey_levels * jnp.sqrt(merged[..., channels]),
        "grey levels, standard deviation over passes",
        axial=False,
    )


def _merged_axes(values: jax.Array, *, space: str) -> jax.Array:
    """Means over passes of m cos 2φ, m sin 2φ, m |α| and m, and the length of the first two."""
    direction, inclination, mask = decode(values, space)
    parts = (jnp.cos(2 * direction), jnp.sin(2 * direction), inclination, jnp.ones_like(mask))
    cosine, sine, steep, tissue = (jnp.mean(mask * part, 0) for part in parts)
    return jnp.stack([cosine, sine, steep, tissue, jnp.hypot(cosine, sine)], -1)


def _axes_image(merged: jax.Array) -> jax.Array:
    cosine, sine, steep, tissue, _ = (merged[..., channel] for channel in range(5))
    inclination = steep / jnp.maximum(tissue, _NOTHING)
    return encode(Orientation(jnp.arctan2(sine, cosine) / 2, inclination, tissue), "rgb")


def _axes_spread(merged: jax.Array) -> jax.Array:
    tissue, length = merged[..., 3], merged[..., 4]
    agreement = length / jnp.maximum(tissue, _NOTHING)  # R
    return jnp.where(tissue > _NOTHING, deviation(agreement), 0.0)
