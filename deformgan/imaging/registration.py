"""Registration of many images to an atlas at once: the motion of each that explains it best.

The energy of a motion is the negative log likelihood of its image, clipped camera noise included,
plus that of the motion under a Gaussian prior: first one that asks for smoothness, later the one
learned from all images (`deformations.py`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.filters import gaussian_blur
from deformgan.imaging.atlas import Atlas, Motion, Shape, render

CHUNK = 50  # images registered at once: more do not fit the processor's cache
_ROUNDED = 10  # images that the size of a chunk is rounded up to
_ROUGH_NOISE = 0.08  # unit intensity: how exactly blurred images are to be met
_ROUGH_SIDE = 64  # pixels that this holds for
_LEAST = 0.01**2  # variance below which a reduced image is not trusted
_TINY = 1e-8
_MISFIT = 0.01  # unit intensity: how far motions are from a noiseless image, if nothing else says
_CONJUGATE = 8  # iterations that solve for one step
_SHARES = (1.0, 0.4, 0.1)  # of a step that are tried
_PROBED = 10  # images that the preconditioner is made from
_COARSE = 4  # pixels averaged for it, along each axis


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


class Prior(NamedTuple):
    """A Gaussian over flattened motions: `whiten @ (x - mean)` has unit covariance."""

    mean: jax.Array
    whiten: jax.Array


def flatten(motion: Motion) -> jax.Array:
    """A batch of motions as rows `[B, D]`."""
    return jnp.concatenate([part.reshape(len(part), -1) for part in motion], 1)


def unflatten(rows: jax.Array, like: Motion) -> Motion:
    """The inverse of `flatten`; only the shapes of `like` are used."""
    sizes = np.cumsum([part[0].size for part in like])[:-1]
    parts = jnp.split(rows, sizes, axis=1)
    shaped = [x.reshape(-1, *part.shape[1:]) for x, part in zip(parts, like, strict=True)]
    return Motion(*shaped)


def smooth_covariance(shape: Shape, somata: int, *, pose_spread: np.ndarray) -> np.ndarray:
    """Covariance `[D, D]` of motions before any has been seen: smooth fields, free poses.

    A field of P x P coefficients has precision a I + b L with the grid's Laplacian L.

    Args:
      shape: of the motions.
      somata: K.
      pose_spread: `[5]` standard deviations, as `POSE`.
    """

    def smooth(control: int, amount: float, roughness: float) -> np.ndarray:
        steps = np.diff(np.eye(control), axis=0)
        line = steps.T @ steps
        laplacian = np.kron(line, np.eye(control)) + np.kron(np.eye(control), line)
        return np.linalg.inv(amount * np.eye(control**2) + roughness * laplacian)

    per_share = 24.0**2  # the prototype's cells; SCIENCE.md, settings that worked
    blocks = [
        np.kron(smooth(shape.shared, 0.3, 1.0), np.eye(2)) / per_share,
        np.kron(smooth(shape.own, 0.3, 1.0), np.eye(2)) / per_share,
        np.diag(np.tile(np.square(pose_spread), somata)),
        np.eye(somata) * 0.3**2,
        smooth(shape.gain, 6.0, 6.0),
    ]
    size = sum(len(block) for block in blocks)
    out, first = np.zeros((size, size)), 0
    for block in blocks:
        out[first : first + len(block), first : first + len(block)] = block
        first += len(block)
    return out


def prior_of(mean: np.ndarray, covariance: np.ndarray) -> Prior:
    """The prior with this mean `[D]` and covariance `[D, D]`."""
    scale = np.sqrt(np.diag(covariance))  # parts have different units
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    values = np.maximum(values, 1e-4 * values.max())
    whiten = (vectors / np.sqrt(values)[None]).T / scale[None]
    return Prior(jnp.asarray(mean, jnp.float32), jnp.asarray(whiten, jnp.float32))


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
    return atlas._replace(somata=stack[:-1], rest=stack[-1])


def _unlikely(
    mean: jax.Array, images: jax.Array, camera: Camera, phase: Phase
) -> tuple[jax.Array, jax.Array]:
    """Negative log likelihood of each pixel `[B, S, S]` and its curvature along the mean."""
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


@functools.partial(jax.jit, static_argnames=("nodes", "phase"))
def _step(
    rows: jax.Array,
    images: jax.Array,
    atlas: Atlas,
    camera: Camera,
    prior: Prior,
    precondition: jax.Array,
    like: Motion,
    *,
    nodes: int,
    phase: Phase,
) -> jax.Array:
    """One step of Gauss and Newton on each image's own motion, `[B, D]` to `[B, D]`.

    Its linear equations are solved roughly, by preconditioned conjugate gradients (Nocedal and
    Wright 2006, algorithms 5.3 and 7.1); a step that does not lower the energy is shortened.
    """

    def drawn(rows: jax.Array) -> jax.Array:
        return render(atlas, unflatten(rows, like), nodes)

    def energy(mean: jax.Array, rows: jax.Array) -> jax.Array:
        away = (rows - prior.mean[None]) @ prior.whiten.T
        pixels = _unlikely(mean, images, camera, phase)[0]
        return jnp.sum(pixels, (1, 2)) + 0.5 * jnp.sum(jnp.square(away), 1)

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, 1, keepdims=True)

    mean, along = jax.linearize(drawn, rows)
    back = jax.linear_transpose(along, rows)
    weight = _unlikely(mean, images, camera, phase)[1]
    of_mean, of_rows = jax.grad(lambda *at: jnp.sum(energy(*at)), (0, 1))(mean, rows)
    slope = back(of_mean)[0] + of_rows

    def hessian(x: jax.Array) -> jax.Array:
        return back(weight * along(x))[0] + (x @ prior.whiten.T) @ prior.whiten

    def iterate(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], None]:
        x, residual, direction, size = carry
        image = hessian(direction)
        far = size / (dot(direction, image) + _TINY)
        x, residual = x + far * direction, residual - far * image
        towards = residual @ precondition
        new = dot(residual, towards)
        return (x, residual, towards + new / (size + _TINY) * direction, new), None

    towards = -slope @ precondition
    start = (jnp.zeros_like(rows), -slope, towards, dot(-slope, towards))
    step = jax.lax.scan(iterate, start, None, length=_CONJUGATE)[0][0]

    def tried(
        carry: tuple[jax.Array, jax.Array], share: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        best, lowest = carry
        moved = rows + share * step
        value = energy(drawn(moved), moved)
        better = value < lowest
        best = jnp.where(better[:, None], moved, best)
        return (best, jnp.where(better, value, lowest)), None

    unmoved = (rows, energy(mean, rows))
    return jax.lax.scan(tried, unmoved, jnp.asarray(_SHARES, jnp.float32))[0][0]


def register(
    images: np.ndarray,
    atlas: Atlas,
    camera: Camera,
    prior: Prior,
    start: Motion,
    phases: tuple[Phase, ...],
    *,
    nodes: int,
    say: Callable[[str], None] = lambda text: None,
) -> Motion:
    """The motion of each image, by descent from `start` through the phases, coarse to fine.

    Args:
      images: `[N, S, S]` unit intensity.
      atlas: of the same resolution.
      camera: its noise.
      prior: over flattened motions.
      start: of N images.
      phases: in order.
      nodes: of the grid that velocities are integrated on.
      say: told how many images are done.

    Returns:
      NumPy arrays, as `start`.
    """
    atlases = [atlas_at(atlas, phase) for phase in phases]
    ready = [
        _preconditioner(atlas, camera, prior, start, nodes=nodes, phase=phase) for phase in phases
    ]
    like = jax.tree.map(lambda x: jnp.asarray(x[:1]), start)
    parts = []
    for own, size in chunks(len(images)):
        rows = flatten(jax.tree.map(lambda x, own=own: jnp.asarray(x[own]), start))
        for phase, at, precondition in zip(phases, atlases, ready, strict=True):
            seen = reduced(jnp.asarray(images[own]), phase)
            for _ in range(phase.steps):
                rows = _step(
                    rows,
                    seen,
                    at,
                    camera,
                    prior,
                    precondition,
                    like,
                    nodes=nodes,
                    phase=dataclasses.replace(phase, steps=0),
                )
        parts.append(np.asarray(rows)[:size])
        say(f"  {own[size - 1] + 1} of {len(images)} images")
    return jax.tree.map(np.asarray, unflatten(jnp.asarray(np.concatenate(parts)), like))


def _preconditioner(
    atlas: Atlas, camera: Camera, prior: Prior, motion: Motion, *, nodes: int, phase: Phase
) -> jax.Array:
    """The inverse of the mean Hessian of a few images, `[D, D]`, seen coarsely."""
    few = np.linspace(0, len(motion.pose) - 1, min(len(motion.pose), _PROBED)).astype(int)
    some = jax.tree.map(lambda x: x[few], motion)
    whiten = np.asarray(prior.whiten, np.float64)
    seen = information(
        atlas, camera, some, np.eye(len(whiten)), nodes=nodes, phase=phase, reduce=_COARSE
    )
    hessian = seen.mean(0) + whiten.T @ whiten
    scale = np.sqrt(np.diag(hessian))
    inverse = np.linalg.inv(hessian / np.outer(scale, scale) + 1e-3 * np.eye(len(scale)))
    return jnp.asarray(inverse / np.outer(scale, scale), jnp.float32)


def information(
    atlas: Atlas,
    camera: Camera,
    motion: Motion,
    basis: np.ndarray,
    *,
    nodes: int,
    phase: Phase,
    reduce: int,
) -> np.ndarray:
    """Fisher information `[N, K, K]` of each image about coordinates along `basis` `[D, K]`.

    What the pixels of `phase` tell, counted at the resolution that `reduce` leaves.
    """
    at = atlas_at(atlas, Phase(reduce, phase.blur, 0))
    columns = jnp.asarray(basis.T, jnp.float32)
    out = []
    for own, size in chunks(len(motion.pose)):
        part = jax.tree.map(lambda x, o=own: jnp.asarray(x[o]), motion)
        mean, change = _changes(at, part, columns, nodes=nodes)
        each = (reduce / phase.reduce) ** 2 * _curvature(mean, camera, phase)
        root = np.sqrt(np.asarray(each, np.float64)).reshape(len(each), 1, -1)[:size]
        change = np.asarray(change, np.float64)[:size] * root  # float32 loses what is little known
        out.append(change @ np.swapaxes(change, 1, 2))
    return np.concatenate(out)


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
    return _unlikely(mean, mean, camera, phase)[1]


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
