"""The distribution of motions over images: a Gaussian copula, fitted by expectation maximisation.

Each image tells its motion only as well as its noise lets it. The covariance of the best motions
alone would be too small and too smooth, so the posterior covariance of each is added (Tipping and
Bishop 1999; Laplace's approximation around the registered motion, Gauss-Newton Hessian). Motions
need not be normal: each coordinate is mapped onto its own quantiles. Nor need they depend on each
other as normal ones do: how a soma is turned decides what of its surroundings it hides, and a turn
has a period, so the mean of all other coordinates is regressed on harmonics of the turns. Motions
of training images are never replayed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from deformgan.camera import Camera
from deformgan.imaging import likelihood
from deformgan.imaging.atlas import POSE, Atlas, Motion
from deformgan.imaging.likelihood import Phase

_INFORMED = 200  # directions in which images may tell more than the prior
_PROBED = 12  # images that show which directions those are
_QUANTILES = 256  # of each coordinate
_REDUCED = Phase(2, 0.0, 0)  # resolution at which images are seen
_HARMONICS = (1, 2)  # of a turn: the second is that of an ellipse
_RIDGES = 10.0 ** np.arange(-2, 7)  # penalties tried, of which cross-validation chooses
_ENOUGH = 10  # images a harmonic: with fewer, cross-validation is chance
_COUNTED = 64  # pixels a side at which what they tell is counted, or of halved images


class Distribution(NamedTuple):
    """Of motions: the rows of `root` times white codes, mapped onto quantiles; then turns act.

    Attributes:
      root: `[D, D]`; the squares of each row sum to 1.
      quantiles: `[D, Q]` of each coordinate of a motion, less what the somata's turns explain of
        it, at equal steps of probability.
      of_turns: `[D, H]` what each harmonic of the turns adds to it; 0 for the turns themselves.
    """

    root: jax.Array
    quantiles: jax.Array
    of_turns: jax.Array


class Gaussian(NamedTuple):
    """Of flattened motions.

    Attributes:
      rows: `[N, D]` the best motion of each image.
      left_open: `[D, D]` covariance of what images leave open, on average.
      draws: `[N, D]` one motion of each image's posterior.
    """

    rows: np.ndarray
    left_open: np.ndarray
    draws: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """`[D]`."""
        return self.rows.mean(0)

    @property
    def covariance(self) -> np.ndarray:
        """`[D, D]`."""
        return np.cov(self.rows.T) + self.left_open


def distribution(gaussian: Gaussian, motion: Motion) -> Distribution:
    """The copula with the correlations of a Gaussian and the quantiles of its draws.

    Args:
      gaussian: of flattened motions.
      motion: whose shapes say which coordinates are angles.
    """
    turns = _turns(motion)
    waves, of_draws = (
        np.asarray(_harmonics(x[:, turns]), np.float64) for x in (gaussian.rows, gaussian.draws)
    )
    of_turns = _regressed(gaussian.rows, waves)
    of_turns[turns] = 0
    rows, draws = gaussian.rows - waves @ of_turns.T, gaussian.draws - of_draws @ of_turns.T
    draws[:, turns] = _unrolled(draws[:, turns])
    root = square_root(gaussian._replace(rows=rows).covariance)
    root /= np.sqrt(np.sum(np.square(root), 1, keepdims=True))
    grid = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return Distribution(
        jnp.asarray(root[:, ::-1], jnp.float32),
        jnp.asarray(np.quantile(draws, grid, axis=0).T, jnp.float32),
        jnp.asarray(of_turns, jnp.float32),
    )


def _turns(motion: Motion) -> np.ndarray:
    """Which coordinates of a flattened motion are angles."""
    first = motion.shared[0].size + motion.own[0].size
    return first + np.arange(POSE.index("angle"), motion.pose[0].size, len(POSE))


def _harmonics(angles: jax.typing.ArrayLike) -> jax.Array:
    """`[B, H]` cosines and sines of the angles `[B, K]`."""
    waves = [wave(order * angles) for order in _HARMONICS for wave in (jnp.cos, jnp.sin)]
    return jnp.concatenate(waves, 1)


def _regressed(values: np.ndarray, waves: np.ndarray) -> np.ndarray:
    """Slopes `[D, H]` of the values `[N, D]` along the waves `[N, H]`, by ridge regression.

    Each value has the penalty of its own generalised cross-validation (Golub, Heath and Wahba
    1979): where turns explain nothing, nearly nothing is left of the slopes. Of too few images
    nothing is learned.
    """
    if len(values) < _ENOUGH * waves.shape[1]:
        return np.zeros((values.shape[1], waves.shape[1]))
    values, waves = values - values.mean(0), waves - waves.mean(0)
    spread = np.maximum(waves.std(0), 1e-12)
    left, sizes, right = np.linalg.svd(waves / spread, full_matrices=False)
    along = left.T @ values  # [H, D]
    shares = np.square(sizes) / (np.square(sizes) + _RIDGES[:, None])  # [R, H]
    explained = np.einsum("rh,hd->rd", shares * (2 - shares), np.square(along))
    error = np.sum(np.square(values), 0) - explained
    error /= np.square(1 - (1 + shares.sum(1, keepdims=True)) / len(values))
    best = shares[np.argmin(error, 0)].T / np.maximum(sizes, 1e-12)[:, None]  # [H, D]
    return (right.T @ (best * along)).T / spread


def square_root(covariance: np.ndarray) -> np.ndarray:
    """R `[D, D]` with R R^T = covariance, its columns by growing eigenvalue."""
    scale = np.sqrt(np.diag(covariance))  # coordinates have different units
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    return scale[:, None] * vectors * np.sqrt(np.maximum(values, 1e-8))[None]


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
    root, quantiles, of_turns = distribution
    place = ndtr(white @ root.T) * quantiles.shape[1] - 0.5

    def read(place: jax.Array, table: jax.Array) -> jax.Array:
        low = jnp.clip(jnp.floor(place), 0, len(table) - 2)
        index = low.astype(jnp.int32)
        part = jnp.clip(place - low, 0, 1)
        return table[index] + part * (table[index + 1] - table[index])

    rows = jax.vmap(read, in_axes=(1, 0), out_axes=1)(place, quantiles)
    rows += _harmonics(rows[:, _turns(like)]) @ of_turns.T
    return likelihood.unflatten(rows, like)


def information(
    atlas: Atlas, camera: Camera, motion: Motion, basis: np.ndarray, *, nodes: int
) -> np.ndarray:
    """`likelihood.information` `[N, K, K]` along `basis` `[D, K]`, as finely as it needs."""
    reduce = max(_REDUCED.reduce, atlas.rest.shape[0] // _COUNTED)
    return likelihood.information(
        atlas, camera, motion, basis, nodes=nodes, phases=[_REDUCED], reduce=reduce
    )[0]


def fit(
    atlas: Atlas,
    camera: Camera,
    motion: Motion,
    covariance: np.ndarray,
    *,
    nodes: int,
    seed: int,
) -> Gaussian:
    """The Gaussian of motions: that of the registered ones, widened by what images leave open.

    The images differ from the prior only in the directions that they are most informative of
    (likelihood-informed subspace, Spantini et al. 2015), found on a few of them.

    Args:
      atlas: of the images.
      camera: their noise.
      motion: of the images, registered under the prior.
      covariance: `[D, D]` of the prior.
      nodes: of the grid that velocities are integrated on.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    root = square_root(covariance)
    rows = np.concatenate([part.reshape(len(part), -1) for part in motion], 1).astype(np.float64)
    few = jax.tree.map(lambda x: x[rng.permutation(len(x))[:_PROBED]], motion)
    counted = functools.partial(information, atlas, camera, nodes=nodes)
    informed = np.linalg.eigh(counted(few, root).mean(0))[1][:, ::-1]
    basis = root @ informed
    known, free = basis[:, :_INFORMED], basis[:, _INFORMED:]
    total, draws = np.zeros((known.shape[1],) * 2), rows.copy()
    for k, told in enumerate(counted(motion, known)):
        inverse = np.linalg.inv(np.linalg.cholesky(np.eye(len(told)) + told))
        total += inverse.T @ inverse
        draws[k] += known @ (inverse.T @ rng.normal(size=known.shape[1]))
        draws[k] += free @ rng.normal(size=free.shape[1])
    left_open = known @ (total / len(rows)) @ known.T + free @ free.T
    return Gaussian(rows, left_open, draws)
