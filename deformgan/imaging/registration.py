"""Registration of many images to an atlas at once: the motion of each that explains it best.

The energy of a motion is the negative log likelihood of its image (`likelihood.py`) plus that of
the motion under a Gaussian prior: first one that asks for smoothness, later the one learned from
all images (`deformations.py`). Coefficients of a spline are too correlated for gradient descent,
so each step is one of Gauss and Newton.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.camera import Camera
from deformgan.imaging import likelihood
from deformgan.imaging.atlas import Atlas, Motion, Shape, render
from deformgan.imaging.likelihood import Phase

_TINY = 1e-8
_CONJUGATE = 8  # iterations that solve for one step
_SHARES = (1.0, 0.4, 0.1)  # of a step that are tried
_PROBED = 10  # images that the preconditioner is made from
_COARSE = 4  # pixels averaged for it, along each axis


class Prior(NamedTuple):
    """A Gaussian over flattened motions: `whiten @ (x - mean)` has unit covariance."""

    mean: jax.Array
    whiten: jax.Array


def smooth_covariance(
    shape: Shape, somata: int, modes: int, *, pose_spread: np.ndarray
) -> np.ndarray:
    """Covariance `[D, D]` of motions before any has been seen: smooth fields, free poses.

    A field of P x P coefficients has precision a I + b L with the grid's Laplacian L.

    Args:
      shape: of the motions.
      somata: K.
      modes: Q.
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
        np.eye(modes),
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
        return render(atlas, likelihood.unflatten(rows, like), nodes)

    def energy(mean: jax.Array, rows: jax.Array) -> jax.Array:
        away = (rows - prior.mean[None]) @ prior.whiten.T
        pixels = likelihood.negative_log_likelihood(mean, images, camera, phase)[0]
        return jnp.sum(pixels, (1, 2)) + 0.5 * jnp.sum(jnp.square(away), 1)

    def dot(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(a * b, 1, keepdims=True)

    mean, along = jax.linearize(drawn, rows)
    back = jax.linear_transpose(along, rows)
    weight = likelihood.negative_log_likelihood(mean, images, camera, phase)[1]
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
    atlases = [likelihood.atlas_at(atlas, phase) for phase in phases]
    ready = _preconditioners(atlas, camera, prior, start, nodes=nodes, phases=phases)
    like = jax.tree.map(lambda x: jnp.asarray(x[:1]), start)
    parts = []
    for own, size in likelihood.chunks(len(images)):
        rows = likelihood.flatten(jax.tree.map(lambda x, own=own: jnp.asarray(x[own]), start))
        for phase, at, precondition in zip(phases, atlases, ready, strict=True):
            seen = likelihood.reduced(jnp.asarray(images[own]), phase)
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
    return jax.tree.map(np.asarray, likelihood.unflatten(jnp.asarray(np.concatenate(parts)), like))


def _preconditioners(
    atlas: Atlas,
    camera: Camera,
    prior: Prior,
    motion: Motion,
    *,
    nodes: int,
    phases: tuple[Phase, ...],
) -> list[jax.Array]:
    """The inverse of the mean Hessian `[D, D]` of a few images in each phase, seen coarsely."""
    few = np.linspace(0, len(motion.pose) - 1, min(len(motion.pose), _PROBED)).astype(int)
    some = jax.tree.map(lambda x: x[few], motion)
    whiten = np.asarray(prior.whiten, np.float64)
    every = np.eye(len(whiten))
    out: dict[Phase, jax.Array] = {}
    for blur in {phase.blur for phase in phases}:
        alike = [phase for phase in phases if phase.blur == blur]
        told = likelihood.information(
            atlas, camera, some, every, nodes=nodes, phases=alike, reduce=_COARSE
        )
        for phase, seen in zip(alike, told, strict=True):
            hessian = seen.mean(0) + whiten.T @ whiten
            scale = np.sqrt(np.diag(hessian))
            inverse = np.linalg.inv(hessian / np.outer(scale, scale) + 1e-3 * np.eye(len(scale)))
            out[phase] = jnp.asarray(inverse / np.outer(scale, scale), jnp.float32)
    return [out[phase] for phase in phases]
