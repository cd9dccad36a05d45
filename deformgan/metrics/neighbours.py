"""Nearest neighbours among feature vectors, without holding all distances at once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_TILE = 512


@functools.partial(jax.jit, static_argnames="count")
def _tile(queries: jax.Array, points: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    near, index = jax.lax.top_k(-_squared(queries, points), count)
    return jnp.sqrt(jnp.maximum(-near, 0.0)), index


@jax.jit
def _squared(queries: jax.Array, points: jax.Array) -> jax.Array:
    """Squared Euclidean distances `[Q, P]`."""
    product = jnp.matmul(queries, points.T, precision="highest")
    ends = jnp.sum(queries**2, 1)[:, None] + jnp.sum(points**2, 1)[None]
    return jnp.maximum(ends - 2 * product, 0.0)


def nearest(queries: np.ndarray, points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest points of each query: distances and indices `[Q, count]`, nearest first.

    Both sets are moved to the mean of `points` first, which keeps single precision accurate.
    """
    centre = points.mean(0)
    held = jnp.asarray(points - centre, jnp.float32)
    parts = []
    for first in range(0, len(queries), _TILE):
        chunk = np.asarray(queries[first : first + _TILE] - centre, np.float32)
        padded = np.pad(chunk, ((0, _TILE - len(chunk)), (0, 0)))
        out = jax.device_get(_tile(jnp.asarray(padded), held, count))
        parts.append([leaf[: len(chunk)] for leaf in out])
    return tuple(np.concatenate(leaves) for leaves in zip(*parts, strict=True))  # type: ignore


def close_pairs(points: np.ndarray, distance: float) -> int:
    """How many pairs of different points are nearer to each other than `distance`."""
    held = jnp.asarray(points - points.mean(0), jnp.float32)
    count = 0
    for first in range(0, len(points), _TILE):
        near = np.array(_squared(held[first : first + _TILE], held) < distance**2)
        rows = np.arange(len(near))
        near[rows, first + rows] = False  # a point and itself
        count += int(near.sum())
    return count // 2


def within(queries: np.ndarray, points: np.ndarray, radii: np.ndarray) -> tuple:
    """Which queries lie within which points' balls.

    Returns:
      for each query, how many balls it lies in `[Q]`; for each ball, how many queries are in it
      `[P]`.
    """
    centre = points.mean(0)
    held, limit = jnp.asarray(points - centre, jnp.float32), jnp.asarray(np.square(radii))[None]
    per_query, per_ball = [], np.zeros(len(points), int)
    for first in range(0, len(queries), _TILE):
        chunk = jnp.asarray(queries[first : first + _TILE] - centre, jnp.float32)
        inside = np.asarray(_squared(chunk, held) <= limit)
        per_query.append(inside.sum(1))
        per_ball += inside.sum(0)
    return np.concatenate(per_query), per_ball
