"""A small atlas of smooth shapes, and random motions of it."""

import jax.numpy as jnp
import numpy as np

from deformgan.imaging import subsampling
from deformgan.imaging.atlas import Atlas, Motion, Shape, grid, still

SHAPE = Shape(shared=8, own=8, gain=5, grid=16)
SIZE = 64
_SPREAD = {"shared": 0.05, "own": 0.05, "pose": 0.03, "soma_gain": 0.2, "gain": 0.2}
_SPREAD |= {"appearance": 1.0}


def blob(row, column, along, across, angle=0.0):
    rows, columns = np.moveaxis(grid(SIZE), -1, 0)
    r, c = rows - row, columns - column
    a, b = np.cos(angle) * r + np.sin(angle) * c, -np.sin(angle) * r + np.cos(angle) * c
    return np.exp(-((a / along) ** 2 + (b / across) ** 2)).astype(np.float32)


def atlas(blur=0.0):
    """Two somata and a streak between them; `blur` in pixels."""
    somata = np.stack([blob(0.35, 0.3, 0.1, 0.05, 0.4), 0.7 * blob(0.65, 0.7, 0.06, 0.06)])
    return Atlas(
        somata=jnp.asarray(somata),
        rest=jnp.asarray(0.4 * blob(0.5, 0.5, 0.03, 0.25, 0.8)),
        centres=jnp.array([[0.35, 0.3], [0.65, 0.7]]),
        axes=jnp.array([0.4, 0.0]),
        radii=jnp.array([0.08, 0.06]),
        background=jnp.float32(0.1),
        blur=jnp.float32(blur / SIZE),
        additive=jnp.float32(0),
        cells=jnp.asarray(subsampling.NONE),
        modes=jnp.zeros(1),
    )


def motions(seed, batch=8, scale=1.0):
    rng = np.random.default_rng(seed)
    like = still(SHAPE, 2, batch)
    parts = [
        jnp.asarray(scale * _SPREAD[name] * rng.normal(size=part.shape), jnp.float32)
        for name, part in like._asdict().items()
    ]
    return Motion(*parts)
