"""Displacement fields: their Jacobian, and points carried along by them.

A field is `[B, H, W, 2]` in pixels, components (row, column); an image is warped backward by it
(`warp.py`), so labels given as points move with its inverse.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deformgan.errors import require_shape
from deformgan.warp import warp_each

POINT_STATUS = ("ok", "folded", "outside", "absent")  # the last: not of this animal
_TOLERANCE = 1e-3  # pixels: two solutions nearer than this are one, met in neighbouring triangles


def jacobian_determinant(displacement: jax.Array) -> jax.Array:
    """Determinant of the Jacobian of x + u(x), by forward differences in every pixel cell.

    Args:
      displacement: `[B, H, W, 2]` in pixels.

    Returns:
      `[B, H-1, W-1]`: 1 where the image keeps its area, negative where the field folds.
    """
    require_shape("displacement", displacement, (None, None, None, 2))
    rows = displacement[:, 1:, :-1] - displacement[:, :-1, :-1]  # d u / d row
    columns = displacement[:, :-1, 1:] - displacement[:, :-1, :-1]  # d u / d column
    return (1 + rows[..., 0]) * (1 + columns[..., 1]) - rows[..., 1] * columns[..., 0]


def folded_fraction(displacement: jax.Array) -> jax.Array:
    """Share of cells with a negative Jacobian determinant, `[B]` in [0, 1]."""
    return jnp.mean(jacobian_determinant(displacement) < 0, axis=(1, 2))


def inverse(displacement: jax.Array, *, iterations: int = 30) -> jax.Array:
    """The displacement v that undoes x + u(x): v(x) = -u(x + v(x)), by fixed-point iteration.

    Converges where u is a contraction (Chen et al. 2008); where it folds there is no inverse, and
    `inverse_error` is large.

    Args:
      displacement: `[B, H, W, 2]` in pixels.
      iterations: fixed.

    Returns:
      `[B, H, W, 2]` in pixels.
    """
    require_shape("displacement", displacement, (None, None, None, 2))

    def step(_: int, v: jax.Array) -> jax.Array:
        return -warp_each(displacement, v)

    return jax.lax.fori_loop(0, iterations, step, -displacement)


def inverse_error(displacement: jax.Array) -> jax.Array:
    """Inverse consistency |v(x) + u(x + v(x))| in pixels, `[B, H, W]`; NaN where x + v(x) is out.

    0 for a field that has an inverse.
    """
    back = inverse(displacement)
    rest = jnp.linalg.norm(back + warp_each(displacement, back), axis=-1)
    _, height, width, _ = displacement.shape
    place = back + jnp.stack(jnp.indices((height, width)), -1)[None]
    inside = (place >= 0) & (place <= jnp.array([height - 1, width - 1])[None, None, None])
    return jnp.where(jnp.all(inside, -1), rest, jnp.nan)


def exponential(velocity: jax.Array, *, squarings: int = 6) -> jax.Array:
    """The displacement u with x + u(x) = exp(v)(x): a stationary velocity followed for unit time.

    Scaling and squaring, Arsigny et al. 2006: u = v / 2^n, then u(x) <- u(x) + u(x + u(x)) n times.
    `exponential(-velocity)` is the inverse.

    Args:
      velocity: `[B, H, W, 2]` in pixels of its own grid, which may be coarser than an image's.
      squarings: n.

    Returns:
      `[B, H, W, 2]` in the same pixels.
    """
    require_shape("velocity", velocity, (None, None, None, 2))

    def square(displacement: jax.Array, _: None) -> tuple[jax.Array, None]:
        return displacement + warp_each(displacement, displacement), None

    return jax.lax.scan(square, velocity / 2**squarings, None, length=squarings)[0]


def smooth_random(
    key: jax.Array, size: tuple[int, int], *, control: int, steepest: float
) -> jax.Array:
    """A random smooth displacement without folds.

    Normal values at `control` x `control` points, interpolated by cubics, scaled so that the
    largest slope is `steepest`: below 1, x + u(x) is one-to-one.

    Args:
      key: PRNG key.
      size: height and width.
      control: points along each axis.
      steepest: norm of the field's Jacobian where it is largest.

    Returns:
      `[1, H, W, 2]` in pixels.
    """
    coarse = jax.random.normal(key, (1, control, control, 2))
    field = jax.image.resize(coarse, (1, *size, 2), "cubic")
    slopes = [jnp.abs(jnp.diff(field, axis=axis)) for axis in (1, 2)]  # per pixel
    largest = jnp.max(slopes[0][:, :, :-1] + slopes[1][:, :-1])
    return field * steepest / largest


def transport_points(points: jax.Array, displacement: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves points of the source image to where a backward warp shows them.

    The source's point p appears at y with y + u(y) = p. Each pixel cell is cut in two triangles,
    on which u is linear; p may lie in none of the mapped triangles (it left the frame), in one, or,
    where the field folds, in several or in one turned over. This finds all of them, so it neither
    diverges nor silently picks one of several answers, as an iteration would.

    Args:
      points: `[P, 2]` (row, column) in pixels of the source.
      displacement: `[B, H, W, 2]` in pixels.

    Returns:
      positions `[B, P, 2]` (row, column), NaN where the status is not ok, and status `[B, P]`
      int32, an index into `POINT_STATUS`.
    """
    require_shape("points", points, (None, 2))
    require_shape("displacement", displacement, (None, None, None, 2))
    _, height, width, _ = displacement.shape
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    grid = grid.astype(displacement.dtype)  # [H, W, 2]

    def one(field: jax.Array) -> tuple[jax.Array, jax.Array]:
        origin, edge_s, edge_t = (_triangles(grid + field, k) for k in range(3))  # [T, 2]
        start, step_s, step_t = (_triangles(grid, k) for k in range(3))
        area = edge_t[:, 0] * edge_s[:, 1] - edge_t[:, 1] * edge_s[:, 0]  # 1 for the identity
        safe = jnp.where(jnp.abs(area) < 1e-9, jnp.inf, area)

        def locate(point: jax.Array) -> tuple[jax.Array, jax.Array]:
            away = point[None] - origin  # [T, 2]
            s = (edge_t[:, 0] * away[:, 1] - edge_t[:, 1] * away[:, 0]) / safe
            t = (away[:, 0] * edge_s[:, 1] - away[:, 1] * edge_s[:, 0]) / safe
            inside = (s >= -1e-5) & (t >= -1e-5) & (s + t <= 1 + 1e-5) & jnp.isfinite(safe)
            found = start + s[:, None] * step_s + t[:, None] * step_t
            low = jnp.min(jnp.where(inside[:, None], found, jnp.inf), axis=0)
            high = jnp.max(jnp.where(inside[:, None], found, -jnp.inf), axis=0)
            folded = jnp.any(inside & (area < 0)) | jnp.any(high - low > _TOLERANCE)
            status = jnp.where(jnp.any(inside), jnp.where(folded, 1, 0), 2)
            return jnp.where(status == 0, (low + high) / 2, jnp.nan), status.astype(jnp.int32)

        return jax.vmap(locate)(points.astype(field.dtype))

    return jax.lax.map(one, displacement)


def _triangles(vertices: jax.Array, part: int) -> jax.Array:
    """Corner (0) and the two edges (1, 2) of both triangles of every cell; `[2 (H-1)(W-1), 2]`."""
    a, b = vertices[:-1, :-1], vertices[:-1, 1:]
    c, d = vertices[1:, :-1], vertices[1:, 1:]
    upper = (a, b - a, c - a)  # edges along the column, then along the row
    lower = (d, c - d, b - d)
    return jnp.concatenate([upper[part].reshape(-1, 2), lower[part].reshape(-1, 2)])
