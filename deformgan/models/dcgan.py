"""The generator and discriminator of the reports: DCGANs (Radford et al. 2016) of 4x4 layers.

With widths (64, 32, 16, 8, 4) and (4, 8, 16, 32, 64) at 128x128 they hold the first report's
146,048 and 44,608 convolution weights. The generator makes fields or images, as its user scales
what it gives.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from deformgan.errors import UserError
from deformgan.models import layers


class Generator(nn.Module):
    """`[B, Z]` latents to `[B, S, S, channels]` in [-1, 1], S = 4 * 2^len(widths).

    Layers that double the size, after batch norm and leaky ReLU; tanh at the end.
    """

    widths: tuple[int, ...]
    channels: int
    upsampling: layers.Upsampling = "transposed"

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        # On a 1x1 input a transposed convolution of stride 1 is a matrix product.
        shape = (z.shape[-1], 4, 4, self.widths[0])
        kernel = self.param("kernel", layers.dcgan_init, shape)
        x = jnp.einsum("bz,zhwc->bhwc", z, kernel)
        for width in (*self.widths[1:], self.channels):
            x = layers.leaky_relu(layers.batch_norm(train)(x))
            x = layers.upsampling(self.upsampling, width)(x)
        return jnp.tanh(x)


class Discriminator(nn.Module):
    """`[B, S, S, C]` images in [-1, 1] to `[B]`: logits, or tanh outputs if `bounded`.

    Strided convolutions with leaky ReLU, each but the first with batch norm, then one product with
    all that is left. Batch norm can be left out, which gradient penalties want, and the last
    product shown how much the images of a batch differ, so that collapse is seen.

    Attributes:
      widths: channels of each layer, halving the size; down to 4x4, or fewer for a weaker judge.
      bounded: whether the output ends in tanh.
      batch_norm: whether all layers but the first are normalised.
      minibatch_stddev: whether the last product sees `layers.minibatch_stddev`.
      minibatch_discrimination: kernels of `layers.MinibatchDiscrimination` that it sees, or 0.
      dropout: share of the features that is left out after every layer, in training.
      spectral_norm: whether weights are divided by their largest singular value (Miyato et al.
        2018), which is followed in the batch statistics.
    """

    widths: tuple[int, ...]
    bounded: bool = False
    batch_norm: bool = True
    minibatch_stddev: bool = False
    minibatch_discrimination: int = 0
    dropout: float = 0.0
    spectral_norm: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, keys: jax.Array | None = None
    ) -> jax.Array:
        x = images
        for depth, width in enumerate(self.widths):
            x = self._bound(layers.StridedConv(width), train)(x)
            normed = self.batch_norm and depth > 0
            x = layers.leaky_relu(layers.batch_norm(train)(x) if normed else x)
            if train and self.dropout:
                x = layers.dropout(x, keys, depth, self.dropout)
        if self.minibatch_stddev:
            x = layers.minibatch_stddev(x)
        if self.minibatch_discrimination or self.spectral_norm:
            out = self._last(x.reshape(len(x), -1), train)
        else:
            kernel = self.param("kernel", layers.dcgan_init, (*x.shape[1:], 1))
            out = jnp.einsum("bhwc,hwco->bo", x, kernel)[:, 0]
        return jnp.tanh(out) if self.bounded else out

    def _last(self, x: jax.Array, train: bool) -> jax.Array:
        if self.minibatch_discrimination:
            apart = layers.MinibatchDiscrimination(self.minibatch_discrimination)(x)
            x = jnp.concatenate([x, apart], -1)
        dense = nn.Dense(1, use_bias=False, kernel_init=layers.dcgan_init)
        return self._bound(dense, train)(x)[:, 0]

    def _bound(self, layer: nn.Module, train: bool) -> Callable[[jax.Array], jax.Array]:
        if not self.spectral_norm:
            return layer
        norm = nn.SpectralNorm(layer, collection_name="batch_stats")
        return lambda x: norm(x, update_stats=train)


def check_widths(key: str, widths: tuple[int, ...], size: int) -> None:
    """Raises `UserError` unless networks of these widths fit images of `size` pixels."""
    if not widths or 4 * 2 ** len(widths) != size:
        raise UserError(
            f"{key}: {len(widths)} widths make networks for {4 * 2 ** len(widths)}x"
            f"{4 * 2 ** len(widths)} images, but data.size is {size}; give one width for each"
            " halving of the size down to 4"
        )


def check_halvings(key: str, widths: tuple[int, ...], size: int) -> None:
    """Raises `UserError` unless `size` pixels can be halved so often, down to 4 at least."""
    if not widths or size % 2 ** len(widths) or size // 2 ** len(widths) < 4:
        raise UserError(
            f"{key}: {len(widths)} widths, one a halving, do not fit data.size {size}; give fewer,"
            " down to 4 pixels at least"
        )
