"""Cubic splines on regular grids over the unit square, as matrices along one axis.

A point of an image with S pixels along an axis lies at (i + 1/2) / S, so that a grid of any size
describes the same square and images of all sizes can share it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def bspline_matrix(samples: int, control: int) -> np.ndarray:
    """Uniform cubic B-splines `[samples, control]` at the pixel centres; each row sums to 1.

    Args:
      samples: pixels along the axis.
      control: control points along it, 4 or more, `control - 3` of whose intervals lie in [0, 1].
    """
    if control < 4:
        raise ValueError(f"control: {control}; cubic B-splines need 4 control points or more")
    place = (np.arange(samples) + 0.5) / samples * (control - 3)
    first = np.minimum(np.floor(place), control - 4).astype(int)
    out = np.zeros((samples, control), np.float32)
    for k, weight in enumerate(_weights(place - first)):
        out[np.arange(samples), first + k] = weight
    return out


@functools.cache
def smoothing_matrix(samples: int, nodes: int) -> np.ndarray:
    """Cubic B-splines `[samples, nodes]` with a control point at each of `nodes` pixel centres.

    Smooths a little where interpolation would overshoot, and so fold a field that does not; ends
    are repeated outside. Each row sums to 1 and is not negative.
    """
    place = (np.arange(samples) + 0.5) / samples * nodes - 0.5
    low = np.floor(place)
    out = np.zeros((samples, nodes), np.float32)
    for k, weight in enumerate(_weights(place - low)):
        node = np.clip(low.astype(int) - 1 + k, 0, nodes - 1)
        np.add.at(out, (np.arange(samples), node), weight)
    return out


def _weights(t: np.ndarray) -> list[np.ndarray]:
    """The four cubic B-splines that reach over the place `t` in [0, 1] of an interval."""
    terms = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    return [term / 6 for term in terms]


def expand(matrix: np.ndarray | jax.Array, values: jax.Array) -> jax.Array:
    """Applies `matrix` `[S, P]` along both axes of `values` `[..., P, P, C]`: `[..., S, S, C]`."""
    return jnp.einsum(
        "si,...ijc,tj->...stc",
        matrix,
        values,
        matrix,
        optimize="optimal",
        precision="highest",  # coordinates of pixels: an accelerator's default is too coarse
    )
