"""The generator and discriminator of the first report: DCGANs (Radford et al. 2016) of 4x4 layers.

With widths (64, 32, 16, 8, 4) and (4, 8, 16, 32, 64) at 128x128 they hold the report's 146,048 and
44,608 convolution weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from deformgan.errors import UserError
from deformgan.models import layers


class Generator(nn.Module):
    """`[B, Z]` latents to `[B, S, S, channels]` in [-1, 1], S = 4 * 2^len(widths).

    Transposed convolutions, each but the last with batch norm and leaky ReLU; tanh at the end.
    """

    widths: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        # On a 1x1 input a transposed convolution of stride 1 is a matrix product.
        shape = (z.shape[-1], 4, 4, self.widths[0])
        kernel = self.param("kernel", layers.dcgan_init, shape)
        x = jnp.einsum("bz,zhwc->bhwc", z, kernel)
        for width in (*self.widths[1:], self.channels):
            x = layers.leaky_relu(layers.batch_norm(train)(x))
            x = layers.TransposedConv(width)(x)
        return jnp.tanh(x)


class Discriminator(nn.Module):
    """`[B, S, S, C]` images in [-1, 1] to `[B]`: logits, or tanh outputs if `bounded`.

    Strided convolutions with leaky ReLU, each but the first with batch norm, then one 4x4 product.
    Batch norm can be left out, which gradient penalties want, and the last product shown how much
    the images of a batch differ, so that collapse is seen.
    """

    widths: tuple[int, ...]
    bounded: bool = False
    batch_norm: bool = True
    minibatch_stddev: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        x = images
        for depth, width in enumerate(self.widths):
            x = layers.StridedConv(width)(x)
            normed = self.batch_norm and depth > 0
            x = layers.leaky_relu(layers.batch_norm(train)(x) if normed else x)
        if self.minibatch_stddev:
            x = layers.minibatch_stddev(x)
        kernel = self.param("kernel", layers.dcgan_init, (4, 4, x.shape[-1], 1))
        out = jnp.einsum("bhwc,hwco->bo", x, kernel)[:, 0]
        return jnp.tanh(out) if self.bounded else out


def check_widths(key: str, widths: tuple[int, ...], size: int) -> None:
    """Raises `UserError` unless networks of these widths fit images of `size` pixels."""
    if not widths or 4 * 2 ** len(widths) != size:
        raise UserError(
            f"{key}: {len(widths)} widths make networks for {4 * 2 ** len(widths)}x"
            f"{4 * 2 ** len(widths)} images, but data.size is {size}; give one width for each"
            " halving of the size down to 4"
        )
