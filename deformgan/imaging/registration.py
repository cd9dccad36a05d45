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

CHUNK = 60  # images registered at once: more do not fit the processor's cache
_ROUNDED = 10  # images that the size of a chunk is rounded up to
_ROUGH_NOISE = 0.08  # unit intensity: how exactly blurred images are to be met
_ROUGH_SIDE = 64  # pixels that this holds for
_LEAST = 0.01**2  # variance below which a reduced image is not trusted
_RATES: dict[str, Any] = {  # of Adam, for each part: about the largest change in one step
    "shared": 0.0025,
    "own": 0.0025,
    "pose": np.array([0.005, 0.005, 0.06, 0.03, 0.03], np.float32),
    "soma_gain": 0.03,
    "gain": 0.04,
}


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps at one resolution.

    Attributes:
      reduce: images are averaged over squares of so many pixels.
      blur: Gaussian blur of what is left, in its pixels, for a first, rough alignment.
      steps: of Adam.
      rate: of all rates.
    """

    reduce: int
    blur: float
    steps: int
    rate: float = 1.0


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


def energy(
    motion: Motion,
    images: jax.Array,
    atlas: Atlas,
    camera: Camera,
    prior: Prior,
    *,
    nodes: int,
    phase: Phase,
) -> jax.Array:
    """Negative log posterior of each motion up to a constant, `[B]`."""
    mean = render(atlas, motion, nodes)
    if phase.blur:
        scale = (_ROUGH_SIDE / images.shape[1] / _ROUGH_NOISE) ** 2
        each = 0.5 * scale * jnp.square(images - cameras.expected(mean, camera))
    elif phase.reduce > 1:  # averages of several pixels are nearly normal
        variance = cameras.variance(camera, mean) / phase.reduce**2 + _LEAST
        square = jnp.square(images - cameras.expected(mean, camera))
        each = 0.5 * (square / variance + jnp.log(variance))
    else:
        each = cameras.negative_log_likelihood(images, mean, camera)
    away = (flatten(motion) - prior.mean[None]) @ prior.whiten.T
    return jnp.sum(each, (1, 2)) + 0.5 * jnp.sum(jnp.square(away), 1)


@functools.partial(jax.jit, static_argnames=("nodes", "phase"))
def _step(
    carry: tuple[Motion, Motion, Motion],
    count: jax.Array,
    rate: jax.Array,
    images: jax.Array,
    atlas: Atlas,
    camera: Camera,
    prior: Prior,
    *,
    nodes: int,
    phase: Phase,
) -> tuple[Motion, Motion, Motion]:
    """One step of Adam (Kingma and Ba 2015); images are independent of each other."""
    motion, first, second = carry

    def total(motion: Motion) -> jax.Array:
        return jnp.sum(energy(motion, images, atlas, camera, prior, nodes=nodes, phase=phase))

    slope = jax.grad(total)(motion)
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, slope)
    second = jax.tree.map(lambda v, g: 0.97 * v + 0.03 * jnp.square(g), second, slope)

    def moved(x: jax.Array, m: jax.Array, v: jax.Array, own: Any) -> jax.Array:
        m, v = m / (1 - 0.9**count), v / (1 - 0.97**count)
        own = jnp.broadcast_to(jnp.asarray(own), x.shape[-1:]).reshape((1,) * (x.ndim - 1) + (-1,))
        return x - rate * own * m / (jnp.sqrt(v) + 1e-3)

    parts = zip(motion, first, second, _RATES.values(), strict=True)
    return Motion(*(moved(*part) for part in parts)), first, second


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
    parts = []
    for own, size in chunks(len(images)):
        motion = jax.tree.map(lambda x, own=own: jnp.asarray(x[own]), start)
        for phase, at in zip(phases, atlases, strict=True):
            seen = reduced(jnp.asarray(images[own]), phase)
            zeros = jax.tree.map(jnp.zeros_like, motion)
            carry = (motion, zeros, zeros)
            for step in range(phase.steps):
                late = 1.0 if step < 0.6 * phase.steps else 0.3
                carry = _step(
                    carry,
                    jnp.float32(step + 1),
                    jnp.float32(phase.rate * late),
                    seen,
                    at,
                    camera,
                    prior,
                    nodes=nodes,
                    phase=dataclasses.replace(phase, steps=0, rate=1.0),
                )
            motion = carry[0]
        parts.append(jax.tree.map(lambda x, n=size: np.asarray(x)[:n], motion))
        say(f"  {own[size - 1] + 1} of {len(images)} images")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def chunks(count: int) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of chunks of one size, filled up with their own first, and how many count.

    Sizes are rounded up, so that sets of nearly the same size share their compiled programs.
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
