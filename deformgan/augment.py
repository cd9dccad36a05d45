"""Differentiable augmentation of what the discriminator sees, real and generated alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def diff_augment(
    keys: jax.Array,
    images: jax.Array,
    *,
    brightness: float,
    saturation: float,
    contrast: float,
    translation: float,
    cutout: float,
) -> jax.Array:
    """DiffAugment (Zhao et al. 2020, sec. 3): `recolour`, then `translate_and_cut`.

    The paper's strengths are 0.5, 1, 0.5, 1/8 and 1/2, always applied. Where channels encode fibre
    orientations `saturation` has to be 0, and in the space "orientation" all three of colour.

    Args:
      keys: `[B]` PRNG keys, one an image.
      images: `[B, H, W, C]` in [-1, 1].
      brightness: see `recolour`, and so are `saturation` and `contrast`.
      saturation: of a grey image, does nothing.
      contrast: of the whole image.
      translation: see `translate_and_cut`, and so is `cutout`.
      cutout: of the image's side.

    Returns:
      `[B, H, W, C]`; colours may leave [-1, 1].
    """
    if brightness or saturation or contrast:
        own = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)  # `split` below gives 0 and 1
        images = recolour(
            own, images, brightness=brightness, saturation=saturation, contrast=contrast
        )
    return translate_and_cut(keys, images, translation=translation, cutout=cutout)


def recolour(
    keys: jax.Array, images: jax.Array, *, brightness: float, saturation: float, contrast: float
) -> jax.Array:
    """Random brightness, saturation and contrast of DiffAugment, uniform, in this order.

    Args:
      keys: `[B]` PRNG keys, one an image.
      images: `[B, H, W, C]` in [-1, 1].
      brightness: largest value added to all of an image.
      saturation: largest relative change of the distances from each pixel's mean over channels.
      contrast: largest relative change of the distances from the image's mean.

    Returns:
      `[B, H, W, C]`; values may leave [-1, 1].
    """

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        light, colour, depth = jax.random.uniform(key, (3,), minval=-1.0)
        image = image + light * brightness
        grey = jnp.mean(image, -1, keepdims=True)
        image = grey + (image - grey) * (1 + colour * saturation)
        mean = jnp.mean(image)
        return mean + (image - mean) * (1 + depth * contrast)

    return jax.vmap(one)(keys, images)


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
