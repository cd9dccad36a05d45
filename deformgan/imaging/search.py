"""Where to start: the shift and turn of each bright soma, found by correlation.

Descent from zero motion finds neither a soma that is far away nor one that is turned around.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.imaging import likelihood
from deformgan.imaging.atlas import Atlas, Coordinates, Motion, Shape, grid, layers, posed_at, still

_PHASE = likelihood.Phase(reduce=2, blur=1.0, steps=0)
_ANGLES = 16  # over half a turn
_NOISE = 0.08  # unit intensity: how exactly reduced images are met


def poses(
    images: np.ndarray,
    atlas: Atlas,
    camera: Camera,
    motion: Motion,
    *,
    centre: np.ndarray,
    spread: np.ndarray,
) -> Motion:
    """Sets each bright soma's shift and turn to the best, the brightest soma first.

    What is found is taken out of the image before the next is looked for.

    Args:
      images: `[N, S, S]` unit intensity.
      atlas: of the same resolution.
      camera: its noise.
      motion: without velocities.
      centre: `[K, 2]` expected shift of each soma, shares of the side.
      spread: `[K]` its standard deviation.
    """
    at = likelihood.atlas_at(atlas, _PHASE)
    pose = np.array(motion.pose)
    likely = jnp.asarray(centre, jnp.float32), jnp.asarray(spread, jnp.float32)
    for own, found in likelihood.by_chunk(_poses, images, motion, at, camera, *likely):
        pose[own] = found
    return motion._replace(pose=jnp.asarray(pose))


@jax.jit
def _poses(
    images: jax.Array,
    motion: Motion,
    at: Atlas,
    camera: Camera,
    centre: jax.Array,
    spread: jax.Array,
) -> jax.Array:
    """The poses `[B, K, 5]` of each image."""
    size, count = at.rest.shape[0], len(at.centres)
    angles = np.linspace(-np.pi / 2, np.pi / 2, _ANGLES, endpoint=False, dtype=np.float32)
    left, found = _signal(images, at, camera), motion.pose
    for soma in range(count):
        score = _correlate(left, _turned(at, soma, angles))  # [B, A, 2S, 2S]
        away = _shifts(size) - centre[soma][None, None]
        unlikely = jnp.sum(jnp.square(away), -1) / (2 * spread[soma] ** 2)
        score = score / _NOISE**2 - unlikely[None, None]
        top = jnp.argmax(jnp.max(score, (2, 3)), 1)
        shift = _shift_of(jnp.take_along_axis(score, top[:, None, None, None], 1)[:, 0])
        pose = jnp.zeros_like(found[:, soma]).at[:, :2].set(shift)
        found = found.at[:, soma].set(pose.at[:, 2].set(jnp.asarray(angles)[top]))
        own = motion._replace(pose=found)
        here = jnp.broadcast_to(grid(size)[None], (len(images), size, size, 2))
        places = posed_at(at, own, soma, here)
        where = Coordinates(places, [places] * count, places)
        left = left - layers(at, own, where)[:, soma]
    return found


def _signal(images: jax.Array, at: Atlas, camera: Camera) -> jax.Array:
    """What reduced images hold above background."""
    seen = likelihood.reduced(images, _PHASE)
    return seen - cameras.expected(at.background, camera)


def _turned(at: Atlas, soma: int, angles: np.ndarray) -> jax.Array:
    """A soma's template at every angle, `[A, S, S]`."""
    shape = Shape(4, 4, 4, 8)
    motion = still(shape, len(at.centres), len(angles))
    motion = motion._replace(pose=motion.pose.at[:, soma, 2].set(angles))
    places = jnp.broadcast_to(grid(at.rest.shape[0]), (len(angles), *at.rest.shape, 2))
    places = posed_at(at, motion, soma, places)
    return layers(at, motion, Coordinates(places, [places] * len(at.centres), places))[:, soma]


def _correlate(images: jax.Array, templates: jax.Array) -> jax.Array:
    """What placing each template at each shift explains of each image: `[B, A, 2S, 2S]`.

    sum(x t) - sum(t^2) / 2, half the fall of the squared error of an otherwise empty image.
    """
    size = (2 * images.shape[1],) * 2
    image, template = jnp.fft.rfft2(images, size), jnp.fft.rfft2(templates, size)
    product = jnp.fft.irfft2(image[:, None] * jnp.conj(template)[None], size)
    return product - 0.5 * jnp.sum(jnp.square(templates), (1, 2))[None, :, None, None]


@functools.cache
def _shifts(size: int) -> np.ndarray:
    """The shift `[2 size, 2 size, 2]` that each entry of a correlation stands for, in shares."""
    line = np.fft.fftfreq(2 * size, 1 / (2 * size)).astype(np.float32) / size
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1)


def _shift_of(score: jax.Array) -> jax.Array:
    """The shift `[B, 2]` with the highest score, in shares of the side."""
    size = score.shape[1] // 2
    return jnp.asarray(_shifts(size)).reshape(-1, 2)[jnp.argmax(score.reshape(len(score), -1), 1)]
