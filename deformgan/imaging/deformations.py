"""The distribution of motions over images: a Gaussian, fitted by expectation maximisation.

Each image tells its motion only as well as its noise lets it. The covariance of the best motions
alone would be too small and too smooth, so the posterior covariance of each is added (Tipping and
Bishop 1999; Laplace's approximation around the registered motion, Gauss-Newton Hessian). Poses of
somata need not be normal: each coordinate of a pose is mapped onto its own quantiles (a Gaussian
copula). Motions of training images are never replayed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.imaging import registration
from deformgan.imaging.atlas import POSE, Atlas, Motion, render
from deformgan.imaging.registration import Phase

_INFORMED = 200  # directions in which images may tell more than the prior
_PROBED = 12  # images that show which directions those are
_LEAST = 0.02**2  # variance below which an image is not trusted: the warp's own error
_QUANTILES = 256  # of each coordinate of a pose
_REDUCED = Phase(2, 0.0, 0)  # resolution at which information is counted


class Distribution(NamedTuple):
    """Of motions: rows = mean + root z with z white, poses then mapped onto their quantiles.

    Attributes:
      mean: `[D]`.
      root: `[D, D]`.
      poses: `[K * 5]` int32, the columns that hold poses.
      quantiles: `[K * 5, Q]` of each of them at equal steps of probability.
    """

    mean: jax.Array
    root: jax.Array
    poses: jax.Array
    quantiles: jax.Array


def distribution(
    mean: np.ndarray, covariance: np.ndarray, draws: np.ndarray, motion: Motion
) -> Distribution:
    """The distribution with this mean and covariance, and the poses' quantiles of `draws`."""
    first = motion.shared[0].size + motion.own[0].size
    poses = np.arange(first, first + motion.pose[0].size)
    values = draws[:, poses].copy()
    angles = (poses - first) % len(POSE) == POSE.index("angle")
    values[:, angles] = _unrolled(values[:, angles])
    grid = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    quantiles = np.quantile(values, grid, axis=0).T
    scale = np.sqrt(np.diag(covariance))
    size, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    root = scale[:, None] * vectors * np.sqrt(np.maximum(size, 0))[None]
    return Distribution(
        jnp.asarray(mean, jnp.float32),
        jnp.asarray(root[:, ::-1], jnp.float32),
        jnp.asarray(poses, jnp.int32),
        jnp.asarray(quantiles, jnp.float32),
    )


def _unrolled(angles: np.ndarray) -> np.ndarray:
    """Angles `[N, K]` in a range of one turn that begins where there are fewest of them."""
    out = np.mod(angles, 2 * np.pi)
    for k in range(out.shape[1]):
        order = np.sort(out[:, k])
        gaps = np.diff(np.append(order, order[0] + 2 * np.pi))
        widest = int(np.argmax(gaps))
        start = order[widest] + gaps[widest] / 2
        out[:, k] = np.mod(out[:, k] - start, 2 * np.pi) + start
    return out


def motions(distribution: Distribution, white: jax.Array, like: Motion) -> Motion:
    """Motions of white codes `[B, D]`; only the shapes of `like` are used."""
    mean, root, poses, quantiles = distribution
    away = white @ root.T
    rows = mean[None] + away
    if poses.size:
        spread = jnp.sqrt(jnp.sum(jnp.square(root[poses]), 1))
        place = ndtr(away[:, poses] / spread[None]) * quantiles.shape[1] - 0.5

        def read(place: jax.Array, table: jax.Array) -> jax.Array:
            low = jnp.clip(jnp.floor(place), 0, len(table) - 2)
            index = low.astype(jnp.int32)
            part = jnp.clip(place - low, 0, 1)
            return table[index] + part * (table[index + 1] - table[index])

        read_all = jax.vmap(read, in_axes=(1, 0), out_axes=1)
        rows = rows.at[:, poses].set(read_all(place, quantiles))
    return registration.unflatten(rows, like)


class Posterior(NamedTuple):
    """What images tell of their motions.

    Attributes:
      draws: `[N, D]` one motion of each image's posterior.
      covariance: `[D, D]` the mean posterior covariance.
    """

    draws: np.ndarray
    covariance: np.ndarray


def posterior(
    atlas: Atlas,
    camera: Camera,
    motion: Motion,
    covariance: np.ndarray,
    *,
    nodes: int,
    seed: int,
) -> Posterior:
    """Laplace posterior of each motion under a Gaussian prior of this `[D, D]` covariance.

    The images differ from the prior only in the directions that they are most informative of
    (likelihood-informed subspace, Spantini et al. 2015), found on a few of them.
    """
    rng = np.random.default_rng(seed)
    scale = np.sqrt(np.diag(covariance))
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    root = scale[:, None] * vectors * np.sqrt(np.maximum(values, 0))[None]
    rows = np.concatenate([part.reshape(len(part), -1) for part in motion], 1)
    few = jax.tree.map(lambda x: x[rng.permutation(len(x))[:_PROBED]], motion)
    informed = np.linalg.eigh(_information(atlas, camera, few, root, nodes).mean(0))[1][:, ::-1]
    basis = root @ informed
    known, free = basis[:, :_INFORMED], basis[:, _INFORMED:]
    total, draws = np.zeros((known.shape[1],) * 2), np.array(rows)
    for k, information in enumerate(_information(atlas, camera, motion, known, nodes)):
        inverse = np.linalg.inv(np.linalg.cholesky(np.eye(len(information)) + information))
        total += inverse.T @ inverse
        own = known @ (inverse.T @ rng.normal(size=known.shape[1]))
        draws[k] += own + free @ rng.normal(size=free.shape[1])
    mean = known @ (total / len(rows)) @ known.T + free @ free.T
    return Posterior(draws, mean)


def _information(
    atlas: Atlas, camera: Camera, motion: Motion, basis: np.ndarray, nodes: int
) -> np.ndarray:
    """Fisher information `[N, K, K]` of each image about coordinates along `basis` `[D, K]`."""
    at = registration.atlas_at(atlas, _REDUCED)
    columns = jnp.asarray(basis.T, jnp.float32)
    out = []
    for own, size in registration.chunks(len(motion.shared)):
        part = jax.tree.map(lambda x, o=own: jnp.asarray(x[o]), motion)
        out.append(np.asarray(_informed(at, camera, part, columns, nodes=nodes))[:size])
    return np.concatenate(out)


@functools.partial(jax.jit, static_argnames="nodes")
def _informed(
    at: Atlas, camera: Camera, motion: Motion, columns: jax.Array, *, nodes: int
) -> jax.Array:
    def drawn(rows: jax.Array) -> jax.Array:
        mean = render(at, registration.unflatten(rows, motion), nodes)
        return mean.reshape(len(mean), -1)

    rows = registration.flatten(motion)
    mean, along = jax.linearize(drawn, rows)
    # Clipping hides what lies beyond: the slope of the expected value is the information left.
    slope = jax.vmap(jax.vmap(jax.grad(lambda m: cameras.expected(m, camera))))(mean)
    weight = slope * _REDUCED.reduce**2 / (cameras.variance(camera, mean) + _LEAST)
    root = jnp.sqrt(jnp.maximum(weight, 0))
    change = jax.lax.map(
        lambda column: root * along(jnp.broadcast_to(column[None], rows.shape)), columns
    )  # [K, B, pixels]
    change = jnp.moveaxis(change, 1, 0)
    return change @ jnp.swapaxes(change, 1, 2)
