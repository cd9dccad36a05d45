"""How likely images are under motions of an atlas, and how much they tell of them.

At full resolution the likelihood is the camera's, clipping included; coarser and rougher ones are
for finding the way there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.filters import gaussian_blur
from deformgan.imaging import subsampling
from deformgan.imaging.atlas import Atlas, Fitted, Motion, render

CHUNK = 50  # images registered at once: more do not fit the processor's cache
_ROUNDED = 10  # images that the size of a chunk is rounded up to
_ROUGH_NOISE = 0.08  # unit intensity: how exactly blurred images are to be met
_ROUGH_SIDE = 64  # pixels that this holds for
_LEAST = 0.01**2  # variance below which a reduced image is not trusted
_TINY = 1e-8
_LEAST_MISFIT = 0.003  # unit intensity: nearer to a noiseless image no motion is believed to be
EMPTY = 0.01  # of the brightest signal: below it is background
_MISFIT = 0.01  # unit intensity: how far motions are from a noiseless image, if nothing else says


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps at one resolution.

    Attributes:
      reduce: images are averaged over squares of so many pixels.
      blur: Gaussian blur of what is left, in its pixels, for a first, rough alignment.
      steps: of Gauss and Newton.
    """

    reduce: int
    blur: float
    steps: int


def flatten(motion: Motion) -> jax.Array:
    """A batch of motions as rows `[B, D]`."""
    return jnp.concatenate([part.reshape(len(part), -1) for part in motion], 1)


def unflatten(rows: jax.Array, like: Motion) -> Motion:
    """The inverse of `flatten`; only the shapes of `like` are used."""
    sizes = np.cumsum([part[0].size for part in like])[:-1]
    parts = jnp.split(rows, sizes, axis=1)
    shaped = [x.reshape(len(rows), *part.shape[1:]) for x, part in zip(parts, like, strict=True)]
    return Motion(*shaped)


def reduced(images: jax.Array, phase: Phase) -> jax.Array:
    """Images `[N, S, S]` averaged and blurred as the phase sees them."""
    n, size, _ = images.shape
    small = images.reshape(n, size // phase.reduce, phase.reduce, -1, phase.reduce).mean((2, 4))
    if phase.blur:
        small = gaussian_blur(small[..., None], phase.blur)[..., 0]
    return small


def atlas_at(atlas: Atlas, phase: Phase) -> Atlas:
    """The atlas at the resolution of a phase."""
    stack = jnp.concatenate([atlas.somata, atlas.rest[None]])
    stack = reduced(stack, phase)
    cells = atlas.cells if phase.reduce == 1 else jnp.asarray(subsampling.NONE)  # averaged away
    modes = atlas.modes
    if atlas.mode_count:
        flat = modes.reshape(-1, *modes.shape[2:])
        small = reduced(flat, phase)
        modes = small.reshape(*modes.shape[:2], *small.shape[1:])
    return atlas._replace(somata=stack[:-1], rest=stack[-1], cells=cells, modes=modes)


def negative_log_likelihood(
    mean: jax.Array, images: jax.Array, camera: Camera, phase: Phase
) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihood of each pixel `[B, S, S]` and its curvature along the mean.

    Args:
      mean: `[B, S, S]` noiseless unit intensity, at the resolution of the phase.
      images: as `reduced` gives them, of the same shape.
      camera: whose noise is that of unreduced pixels.
      phase: at which they are compared; while it blurs, `_ROUGH_NOISE` stands for the camera's.
    """
    if phase.blur:
        weight = (_ROUGH_SIDE / images.shape[1] / _ROUGH_NOISE) ** 2
        each = 0.5 * weight * jnp.square(images - cameras.expected(mean, camera))
        return each, weight * _slope(mean, camera)
    if phase.reduce > 1:  # averages of several pixels are nearly normal
        variance = cameras.variance(camera, mean) / phase.reduce**2 + _LEAST
        square = jnp.square(images - cameras.expected(mean, camera))
        return 0.5 * (square / variance + jnp.log(variance)), _slope(mean, camera) / variance
    variance = cameras.variance(camera, mean) + camera.step**2 / 12 + _TINY
    each = cameras.negative_log_likelihood(images, mean, camera)
    return each, _slope(mean, camera) / variance


def _slope(mean: jax.Array, camera: Camera) -> jax.Array:
    """Of the expected record along the mean: what clipping leaves of a pixel's information."""
    total = jax.grad(lambda m: jnp.sum(cameras.expected(m, camera)))
    return jnp.clip(total(mean), 0, 1)


def information(
    atlas: Atlas,
    camera: Camera,
    motion: Motion,
    basis: np.ndarray,
    *,
    nodes: int,
    phases: Sequence[Phase],
    reduce: int,
) -> np.ndarray:
    """Fisher information `[P, N, K, K]` of each image about coordinates along `basis` `[D, K]`.

    What the pixels of each of the P `phases` tell, all of one blur, counted at the resolution that
    `reduce` leaves: the derivatives, which take the time, are those of all phases.
    """
    (blur,) = {phase.blur for phase in phases}
    at = atlas_at(atlas, Phase(reduce, blur, 0))
    columns = jnp.asarray(basis.T, jnp.float32)
    out = []
    for own, size in chunks(len(motion.pose)):
        part = jax.tree.map(lambda x, o=own: jnp.asarray(x[o]), motion)
        mean, change = _changes(at, part, columns, nodes=nodes)
        change = np.asarray(change, np.float64)[:size]  # float32 loses what is little known
        told = []
        for phase in phases:
            pixels = 1 if blur else (reduce / phase.reduce) ** 2  # rough noise is that of areas
            each = pixels * _curvature(mean, camera, phase)
            root = np.sqrt(np.asarray(each, np.float64)).reshape(len(each), 1, -1)[:size]
            weighted = change * root
            told.append(weighted @ np.swapaxes(weighted, 1, 2))
        out.append(told)
    return np.concatenate(out, 1)


@functools.partial(jax.jit, static_argnames="nodes")
def _changes(
    at: Atlas, motion: Motion, columns: jax.Array, *, nodes: int
) -> tuple[jax.Array, jax.Array]:
    """Noiseless images `[B, S, S]`, and their change `[B, K, S S]` along each column."""

    def drawn(rows: jax.Array) -> jax.Array:
        return render(at, unflatten(rows, motion), nodes)

    rows = flatten(motion)
    mean, along = jax.linearize(drawn, rows)
    change = jax.lax.map(
        lambda column: along(jnp.broadcast_to(column[None], rows.shape)), columns
    )  # [K, B, S, S]
    return mean, jnp.moveaxis(change, 1, 0).reshape(len(rows), len(columns), -1)


@functools.partial(jax.jit, static_argnames="phase")
def _curvature(mean: jax.Array, camera: Camera, phase: Phase) -> jax.Array:
    return negative_log_likelihood(mean, mean, camera, phase)[1]


def forgiving(camera: Camera, misfit: float = _MISFIT) -> Camera:
    """The camera with what no motion explains added to its noise."""
    return camera._replace(read=jnp.sqrt(camera.read**2 + misfit**2))


def chunks(count: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of chunks of one size, filled up with their own first, and how many count.

    Sets of different sizes share their compiled programs, which take longer than the waste.
    """
    size = min(CHUNK, -(-count // _ROUNDED) * _ROUNDED)
    for first in range(0, count, size):
        own = np.arange(first, min(first + size, count))
        yield np.resize(own, size), len(own)


def by_chunk(
    function: Callable[..., Any], images: np.ndarray, motion: Motion, *shared: Any
) -> Iterator[tuple[np.ndarray, Any]]:
    """Calls `function(images, motion, *shared)` on chunks: indices, and what it returned."""
    for own, size in chunks(len(images)):
        part = jax.tree.map(lambda x, o=own: jnp.asarray(x[o]), motion)
        out = function(jnp.asarray(images[own]), part, *shared)
        yield own[:size], jax.tree.map(lambda x, n=size: np.asarray(x)[:n], out)


def rendered(fitted: Fitted, nodes: int, images: np.ndarray) -> np.ndarray:
    """The noiseless image of each motion, `[N, S, S]` as `images`."""
    out = np.zeros_like(images)
    draw = functools.partial(_drawn, nodes=nodes)
    for own, means in by_chunk(draw, images, fitted.motion, fitted.atlas):
        out[own] = means
    return out


@functools.partial(jax.jit, static_argnames="nodes")
def _drawn(images: jax.Array, motion: Motion, atlas: Atlas, *, nodes: int) -> jax.Array:
    del images
    return render(atlas, motion, nodes)


def misfit(images: np.ndarray, fitted: Fitted, camera: Camera, nodes: int) -> float:
    """How far motions are from the noiseless images where there is structure, unit intensity."""
    means = rendered(fitted, nodes, images)
    background = float(fitted.atlas.background)
    seen = (means - background > EMPTY * (means.max() - background)) & (means < 1)
    seen &= (images > 0) & (images < 1)
    away = np.square(images[seen] - means[seen]) - cameras.variance(camera, means[seen])
    return float(np.sqrt(max(np.mean(away) if seen.any() else 0, _LEAST_MISFIT**2)))
