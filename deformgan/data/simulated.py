"""The first report's simulator: two somata, neurites between them, deformation, camera noise.

Pure and seeded: image i of a set depends on the seed and on i alone. Coordinates of the anatomy
run from -1 to 1 over the image, (x, y) = (column, row); pixels are (row, column).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan.data.frames import Frame, Frames, Labels
from deformgan.errors import choose
from deformgan.fields import smooth_random, transport_points
from deformgan.filters import gaussian_blur
from deformgan.warp import warp

CLEAN_SETS = ("random_ellipses", "rotated_ellipses", "deformed_ellipses", "neurites")
NOISES = ("gaussian_low", "gaussian_high", "gaussian_very_high", "poisson", "speckle")
SETS = CLEAN_SETS + NOISES

_CENTRES = np.array([[-0.36, -0.16], [0.36, 0.18]], np.float32)  # (x, y) of the two somata
_SEMI_AXES = np.array([[0.27, 0.15], [0.21, 0.115]], np.float32)
_BRIGHTNESS = np.array([1.0, 0.72], np.float32)
_CANONICAL_ANGLES = np.array([0.6, 2.2], np.float32)  # radians
_SIGMA = {"gaussian_low": 0.05, "gaussian_high": 0.15, "gaussian_very_high": 0.30}
_PHOTONS = 30.0  # at full scale
_SPECKLE = 0.35  # standard deviation of the multiplicative noise
_BACKGROUND, _RANGE = 0.08, 0.80  # camera offset and signal of the noisy sets, of full scale
_CONTROL_POINTS = 6  # of the hand-made field, along each axis
_STEEPEST = 0.9  # below 1 the deformation x + u(x) is one-to-one
_BLUR = 0.011  # sigma of the light blur, of the image's width
_CURVE_SAMPLES = 56
_POINTS_PER_NEURITE = 5
_CHUNK = 64  # images drawn at once


class Truth(NamedTuple):
    """One simulated image and everything that is known about it.

    Attributes:
      image: `[H, W, 1]` uint8, with noise if the set has any.
      clean: `[H, W, 1]` float32 in [0, 1], without.
      masks: `[K, H, W]` bool, one a structure: the somata, then the neurites.
      points: `[P, 2]` float32 (row, column): the soma centres, then points along each neurite;
        NaN where the deformation carried one out of the frame.
      ids: `[P]` int32: 1 and 2 for the somata, 100 k + j for point j of structure k.
    """

    image: jax.Array
    clean: jax.Array
    masks: jax.Array
    points: jax.Array
    ids: jax.Array


@functools.partial(jax.jit, static_argnames=("name", "size", "canonical"))
def simulate(
    key: jax.Array,
    *,
    name: str,
    size: int,
    canonical: bool = False,
    amplitude: float = 1.0,
    noise: float = 1.0,
) -> Truth:
    """Draws one image of the set `name`.

    Args:
      key: PRNG key of this image.
      name: one of `SETS`; the noises come on top of `neurites`.
      size: pixels along each side.
      canonical: the set's undeformed source image, somata at their fixed angles.
      amplitude: of the deformation, in that of the set.
      noise: standard deviation of the noise, in that of the set.

    Returns:
      Its truth.
    """
    pose, curve, field, camera = jax.random.split(key, 4)
    centres, axes, angles = _pose(pose, name, canonical)
    layers = jax.vmap(functools.partial(_ellipse, size=size))(centres, axes, angles)  # [2, H, W]
    masks, brightness = layers, layers * _BRIGHTNESS[:, None, None]
    points, ids = _to_pixels(centres, size), jnp.array([1, 2])
    if name not in CLEAN_SETS[:3]:
        shapes, bright, along = _neurites(curve, size, canonical)  # two neurites
        masks, brightness = jnp.concatenate([masks, shapes]), jnp.concatenate([brightness, bright])
        points = jnp.concatenate([points, _to_pixels(along.reshape(-1, 2), size)])
        number = 1 + jnp.arange(_POINTS_PER_NEURITE)
        ids = jnp.concatenate([ids, 300 + number, 400 + number])
    clean = jnp.max(brightness, axis=0)
    if name not in CLEAN_SETS[:2]:
        if not canonical:
            displacement = smooth_random(
                field, (size, size), control=_CONTROL_POINTS, steepest=amplitude * _STEEPEST
            )
            stacked = jnp.moveaxis(jnp.concatenate([clean[None], masks]), 0, -1)
            stacked = warp(stacked, displacement)[0]
            clean, masks = stacked[..., 0], jnp.moveaxis(stacked[..., 1:], -1, 0)
            points = transport_points(points, displacement)[0][0]
        clean = gaussian_blur(clean[None, ..., None], _BLUR * size)[0, ..., 0]
    image = clean if name in CLEAN_SETS else _camera(camera, clean, name, noise)
    image = jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)
    return Truth(image[..., None], clean[..., None], masks > 0.5, points, ids)


@functools.partial(jax.jit, static_argnames=("name", "size"))
def _draw_chunk(
    indices: jax.Array, seed: int, amplitude: float, noise: float, *, name: str, size: int
) -> Truth:
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
    one = functools.partial(simulate, name=name, size=size, amplitude=amplitude, noise=noise)
    return jax.lax.map(one, keys, batch_size=8)


def draw(
    first: int,
    count: int,
    seed: int,
    name: str,
    size: int,
    *,
    amplitude: float = 1.0,
    noise: float = 1.0,
) -> Truth:
    """Images `first` to `first + count` of a set, NumPy arrays with a leading axis.

    Drawn in chunks of one size, so that a set of any size is compiled once.
    """
    parts = []
    for start in range(first, first + count, _CHUNK):
        indices = start + jnp.arange(_CHUNK)
        part = jax.device_get(_draw_chunk(indices, seed, amplitude, noise, name=name, size=size))
        parts.append(jax.tree.map(lambda leaf, n=first + count - start: leaf[:n], part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def read(config: ml_collections.ConfigDict) -> Frames:
    """Simulates `data.count` images of `data.set`, each with its labels."""
    choose("data.set", config.set, SETS)
    truth = draw(0, config.count, config.seed, config.set, config.size)
    names = [f"{config.set}_{i:06d}" for i in range(config.count)]
    return Frames(
        names=names,
        recordings=names,  # images are independent
        moments=range(config.count),
        read=lambda i: to_frame(jax.tree.map(lambda leaf: leaf[i], truth)),
        reference=source_image(config.set, config.size, config.seed),
    )


def controls(config: ml_collections.ConfigDict, count: int) -> dict[str, list[Frame] | str]:
    """Images of the set's model made slightly wrong, which an evaluation must notice.

    Args:
      config: the `data` block.
      count: how many images, none of them in the set.

    Returns:
      by name, `noise_5_percent` and `field_minus_25_percent`: images, or why there are none.
    """

    def varied(**change: float) -> list[Frame]:
        truth = draw(config.count, count, config.seed, config.set, config.size, **change)
        return [Frame(image) for image in truth.image]

    clean, rigid = config.set in CLEAN_SETS, config.set in CLEAN_SETS[:2]
    return {
        "noise_5_percent": "the set has no noise" if clean else varied(noise=1.05),
        "field_minus_25_percent": "the set has no deformation" if rigid else varied(amplitude=0.75),
    }


def source_image(name: str, size: int, seed: int) -> Frame:
    """The set's undeformed image, with the set's noise: what the report warps."""
    choose("source.set", name, SETS)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    return to_frame(jax.device_get(simulate(key, name=name, size=size, canonical=True)))


def to_frame(truth: Truth) -> Frame:
    """A truth as a frame: somata over neurites in the mask, points that stayed in the frame."""
    mask = np.zeros(truth.masks.shape[1:], np.int32)
    for structure in reversed(range(len(truth.masks))):
        mask[truth.masks[structure]] = structure + 1
    there = np.isfinite(truth.points).all(-1)
    labels = Labels(mask, np.asarray(truth.points, np.float64)[there], np.asarray(truth.ids)[there])
    return Frame(np.asarray(truth.image), labels)


def _pose(key: jax.Array, name: str, canonical: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    where, how_large, turn = jax.random.split(key, 3)
    if canonical:
        return jnp.asarray(_CENTRES), jnp.asarray(_SEMI_AXES), jnp.asarray(_CANONICAL_ANGLES)
    angles = jax.random.uniform(turn, (2,), maxval=np.pi)
    if name != "random_ellipses":
        return jnp.asarray(_CENTRES), jnp.asarray(_SEMI_AXES), angles
    low, high = jnp.array([[0.15, 0.09]]), jnp.array([[0.28, 0.16]])
    axes = low + (high - low) * jax.random.uniform(how_large, (2, 2))
    return jax.random.uniform(where, (2, 2), minval=-0.6, maxval=0.6), axes, angles


def _grid(size: int) -> tuple[jax.Array, jax.Array]:
    t = (jnp.arange(size) + 0.5) / size * 2 - 1
    x, y = jnp.meshgrid(t, t, indexing="xy")
    return x, y


def _to_pixels(points: jax.Array, size: int) -> jax.Array:
    return (points[:, ::-1] + 1) / 2 * size - 0.5


def _ellipse(centre: jax.Array, axes: jax.Array, angle: jax.Array, *, size: int) -> jax.Array:
    """`[H, W]` in [0, 1]: 0.5 on the outline, an edge about a pixel wide."""
    x, y = _grid(size)
    dx, dy = x - centre[0], y - centre[1]
    u = (dx * jnp.cos(angle) + dy * jnp.sin(angle)) / axes[0]
    v = (dy * jnp.cos(angle) - dx * jnp.sin(angle)) / axes[1]
    radius = jnp.sqrt(u**2 + v**2)
    return jax.nn.sigmoid((1 - radius) * jnp.min(axes) * size / 2 / 0.6)


def _neurites(key: jax.Array, size: int, canonical: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two cubic Bezier curves between the somata, one on each side.

    Returns:
      shapes `[2, H, W]` in [0, 1], the same times their brightness, and points `[2, P, 2]` (x, y).
    """
    axis = _CENTRES[1] - _CENTRES[0]
    normal = np.array([-axis[1], axis[0]]) / np.linalg.norm(axis)

    def one(key: jax.Array, side: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        keys = jax.random.split(key, 5)
        varies = 0.0 if canonical else 1.0
        out = side * 0.30 + varies * 0.13 * jax.random.normal(keys[0], (2,))
        along = varies * 0.08 * jax.random.normal(keys[1], (2,))
        level = jax.random.uniform(keys[2], minval=0.3, maxval=0.7) if not canonical else 0.5
        wave = varies * jax.random.uniform(keys[3], (2,)) * jnp.array([0.3, 2 * jnp.pi])
        middle = jax.random.uniform(keys[4], minval=0.022, maxval=0.034) if not canonical else 0.028
        control = jnp.stack(
            [
                _CENTRES[0],
                _CENTRES[0] + axis * (1 / 3 + along[0]) + normal * out[0],
                _CENTRES[0] + axis * (2 / 3 + along[1]) + normal * out[1],
                _CENTRES[1],
            ]
        )
        t = jnp.linspace(0, 1, _CURVE_SAMPLES)
        curve = _bezier(control, t)
        width = 0.055 + (middle - 0.055) * jnp.sin(jnp.pi * t)  # thick at the somata
        bright = level * (1 + wave[0] * jnp.sin(2 * jnp.pi * t + wave[1]))
        x, y = _grid(size)

        def stroke(best: tuple[jax.Array, jax.Array], s: jax.Array) -> tuple[tuple, None]:
            px, py, w, b = s
            spot = jnp.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * w**2))
            return (jnp.maximum(best[0], spot), jnp.maximum(best[1], b * spot)), None

        samples = jnp.concatenate([curve, width[:, None], bright[:, None]], 1)
        start = (jnp.zeros((size, size)), jnp.zeros((size, size)))
        (shape, lit), _ = jax.lax.scan(stroke, start, samples)
        points = _bezier(control, jnp.linspace(0, 1, _POINTS_PER_NEURITE + 2)[1:-1])
        return shape, lit, points

    return jax.vmap(one)(jax.random.split(key), jnp.array([1.0, -1.0]))


def _bezier(control: jax.Array, t: jax.Array) -> jax.Array:
    t = t[:, None]
    weights = jnp.concatenate(
        [(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], 1
    )  # Bernstein polynomials
    return weights @ control


def _camera(key: jax.Array, clean: jax.Array, name: str, level: float) -> jax.Array:
    signal = _BACKGROUND + _RANGE * clean
    if name == "poisson":
        photons = _PHOTONS / level**2
        return jax.random.poisson(key, photons * signal, dtype=jnp.int32) / photons
    noise = level * jax.random.normal(key, clean.shape)
    if name == "speckle":
        return signal * (1 + _SPECKLE * noise)
    return signal + _SIGMA[name] * noise
