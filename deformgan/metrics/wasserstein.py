"""Sliced Wasserstein distance between sets of images: a cheap guide to the better checkpoint."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deformgan.filters import gaussian_blur

_DIRECTIONS = 256


def sliced_wasserstein(key: jax.Array, images: jax.Array, real: jax.Array) -> jax.Array:
    """Mean 1-D Wasserstein distance over random projections, fine detail and coarse form alike.

    Rabin et al. 2011; on two levels of a Laplacian pyramid as in Karras et al. 2018, sec. 5. It
    guides the choice of a checkpoint; it is no proof of quality.

    Args:
      key: of the projections; the same key compares checkpoints fairly.
      images: `[N, H, W, C]`.
      real: `[M, H, W, C]`.

    Returns:
      Scalar, 0 for equal sets of equal size.
    """
    quantiles = jnp.linspace(0, 1, 65)[1:-1]
    total = jnp.zeros(())
    blurred = gaussian_blur(images, 2.0), gaussian_blur(real, 2.0)
    for level, (a, b) in enumerate((blurred, (images - blurred[0], real - blurred[1]))):
        size = a[0].size
        directions = jax.random.normal(jax.random.fold_in(key, level), (size, _DIRECTIONS))
        directions /= jnp.linalg.norm(directions, axis=0, keepdims=True)
        projected = [x.reshape(len(x), -1) @ directions for x in (a, b)]
        p, q = (jnp.quantile(x, quantiles, axis=0) for x in projected)
        total += jnp.mean(jnp.abs(p - q))
    return total
