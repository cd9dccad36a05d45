"""Linear filters on images."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np


def gaussian_blur(images: jax.Array, sigma: float) -> jax.Array:
    """Gaussian blur, cut off at 4 sigma, the border pixel repeated outside.

    Args:
      images: `[B, H, W, C]`, any range.
      sigma: standard deviation in pixels, above 0.

    Returns:
      `[B, H, W, C]`.
    """
    radius = max(1, math.ceil(4 * sigma))
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2)).astype(np.float32)
    taps /= taps.sum()
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (radius, radius)
        padded, size = jnp.pad(images, padding, mode="edge"), images.shape[axis]
        images = sum(
            (
                tap * jax.lax.slice_in_dim(padded, k, k + size, axis=axis)
                for k, tap in enumerate(taps)
            ),
            start=jnp.zeros_like(images),
        )
    return images
