"""Diversity: do samples differ from each other as much as real images do?"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deformgan.filters import gaussian_blur


def diversity_ratio(images: jax.Array, real: jax.Array, *, sigma: float = 2.0) -> jax.Array:
    """Mean squared distance between pairs of images, over the same for real ones.

    Images are blurred first: independent camera noise makes copies of one image look diverse.

    Args:
      images: `[N, H, W, C]`, N of 2 or more.
      real: `[M, H, W, C]`, M of 2 or more.
      sigma: of the blur, in pixels.

    Returns:
      Scalar: 0 where all images are the same (collapse), 1 is ideal.
    """

    def spread(x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.var(gaussian_blur(x, sigma), axis=0, ddof=1))

    return spread(images) / jnp.maximum(spread(real), 1e-12)
