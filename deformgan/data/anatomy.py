"""Drawing the simulated worm: two somata and the neurites between them.

Coordinates run from -1 to 1 over the image, (x, y) = (column, row).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_CENTRES = np.array([[-0.36, -0.16], [0.36, 0.18]], np.float32)  # (x, y) of the two somata
_SEMI_AXES = np.array([[0.27, 0.15], [0.21, 0.115]], np.float32)
_CANONICAL_ANGLES = np.array([0.6, 2.2], np.float32)  # radians
_CURVE_SAMPLES = 56
POINTS_PER_NEURITE = 5


def pose(key: jax.Array, name: str, canonical: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Centres `[2, 2]`, semi-axes `[2, 2]` and angles `[2]` (radians) of the somata of a set."""
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


def to_pixels(points: jax.Array, size: int) -> jax.Array:
    """From `[P, 2]` (x, y) to (row, column) in pixels."""
    return (points[:, ::-1] + 1) / 2 * size - 0.5


def ellipse(centre: jax.Array, axes: jax.Array, angle: jax.Array, *, size: int) -> jax.Array:
    """`[H, W]` in [0, 1]: 0.5 on the outline, an edge about a pixel wide."""
    x, y = _grid(size)
    dx, dy = x - centre[0], y - centre[1]
    u = (dx * jnp.cos(angle) + dy * jnp.sin(angle)) / axes[0]
    v = (dy * jnp.cos(angle) - dx * jnp.sin(angle)) / axes[1]
    radius = jnp.sqrt(u**2 + v**2)
    return jax.nn.sigmoid((1 - radius) * jnp.min(axes) * size / 2 / 0.6)


def neurites(key: jax.Array, size: int, canonical: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
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
        points = _bezier(control, jnp.linspace(0, 1, POINTS_PER_NEURITE + 2)[1:-1])
        return shape, lit, points

    return jax.vmap(one)(jax.random.split(key), jnp.array([1.0, -1.0]))


def _bezier(control: jax.Array, t: jax.Array) -> jax.Array:
    t = t[:, None]
    weights = jnp.concatenate(
        [(1 - t) ** 3, 3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2, t**3], 1
    )  # Bernstein polynomials
    return weights @ control
