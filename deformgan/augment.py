"""Differentiable augmentation of what the discriminator sees, real and generated alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def translate_and_cut(
    keys: jax.Array, images: jax.Array, *, translation: float, cutout: float
) -> jax.Array:
    """Random translation and cutout of DiffAugment (Zhao et al. 2020, sec. 3).

    Args:
      keys: `[B]` PRNG keys, one an image.
      images: `[B, H, W, C]` in [-1, 1].
      translation: largest shift on each axis, of the image's side; what enters is the border pixel.
      cutout: side of the square set to 0, of the image's side.

    Returns:
      `[B, H, W, C]`; the input itself where both are 0.
    """
    if not translation and not cutout:
        return images
    _, height, width, _ = images.shape

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        shift_key, place_key = jax.random.split(key)
        size = jnp.array([height, width])
        reach = jnp.floor(translation * size).astype(jnp.int32)
        shift = jax.random.randint(shift_key, (2,), -reach, reach + 1)
        rows = jnp.clip(jnp.arange(height) + shift[0], 0, height - 1)
        columns = jnp.clip(jnp.arange(width) + shift[1], 0, width - 1)
        image = image[rows][:, columns]
        centre = jax.random.uniform(place_key, (2,)) * size
        far_row = jnp.abs(jnp.arange(height) + 0.5 - centre[0]) > cutout * height / 2
        far_column = jnp.abs(jnp.arange(width) + 0.5 - centre[1]) > cutout * width / 2
        return jnp.where((far_row[:, None] | far_column[None, :])[..., None], image, 0.0)

    return jax.vmap(one)(keys, images)
