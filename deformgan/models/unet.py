"""The U-Net of Pix2Pix (Isola et al. 2017, appendix 6.1): from one image to another of its size.

Strided convolutions down to the bottleneck and layers that double the size back up, each level up
also seeing the features of its own size on the way down. It is fully convolutional: what is made
for tiles of one size takes any whose sides are multiples of 2^depth.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from deformgan.errors import UserError
from deformgan.models import layers

_WIDEST = 8  # channels of the deepest levels, in multiples of those of the first
SMALL = 4  # pixels along the side of a bottleneck that still has the whole tile in view
_DROPPED = 3  # levels on the way up, from the bottleneck, that dropout is the noise of


class UNet(nn.Module):
    """`[B, H, W, K]` images in [-1, 1] to `[B, H, W, channels]` in [-1, 1].

    As in the authors' code, the first level down and the bottleneck are not normalised: one pixel
    has nothing to be compared with.

    Attributes:
      channels: of the output.
      filters: channels after the first level (ngf); they double at every level, up to 8 times that.
      depth: how often the size is halved, 1 or more.
      norm: one of `layers.NORMS`.
      dropout: share of features left out next to the bottleneck, where keys are given.
      upsampling: one of `layers.UPSAMPLINGS`; the paper's is transposed.
      dtype: of the convolutions; parameters, normalisation and output are float32.
    """

    channels: int
    filters: int = 64
    depth: int = 6
    norm: layers.Norm = "batch"
    dropout: float = 0.5
    upsampling: layers.Upsampling = "transposed"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, keys: jax.Array | None = None
    ) -> jax.Array:
        skipped, x = [], images
        for level in range(self.depth):
            x = x if level == 0 else layers.leaky_relu(x)
            x = layers.StridedConv(self._width(level))(x.astype(self.dtype))
            x = x if level in (0, self.depth - 1) else layers.normed(x, self.norm, train)
            skipped.append(x)
        for level in reversed(range(self.depth - 1)):
            x = self._up(x, self._width(level), train)
            if keys is not None and self.dropout and self.depth - 2 - level < _DROPPED:
                x = layers.dropout(x, keys, level, self.dropout)
            x = jnp.concatenate([x, skipped[level].astype(x.dtype)], -1)
        x = layers.upsampling(self.upsampling, self.channels)(nn.relu(x).astype(self.dtype))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        return jnp.tanh(x.astype(jnp.float32) + bias[None, None, None])

    def _up(self, x: jax.Array, width: int, train: bool) -> jax.Array:
        x = layers.upsampling(self.upsampling, width)(nn.relu(x).astype(self.dtype))
        return layers.normed(x, self.norm, train)

    def _width(self, level: int) -> int:
        return self.filters * min(2**level, _WIDEST)


def depth_for(size: int, depth: int) -> int:
    """How often a U-Net halves tiles of `size` pixels: `depth`, or if that is 0 as often as it can.

    That is down to 1x1 if the size is a power of 2.

    Raises:
      UserError: if the size cannot be halved so often.
    """
    most = (size & -size).bit_length() - 1  # how often 2 divides the size
    if not 0 <= depth <= most or not most:
        raise UserError(
            f"model.depth: {depth} halvings do not fit data.size {size}; give 1 to {most}, 0 for as"
            " many as there are, or choose a size that is a multiple of a higher power of 2"
        )
    return depth or most


def sizes_near(size: int) -> tuple[int, int]:
    """The nearest sizes below and above `size`, 8 or more, that a U-Net halves to `SMALL`."""
    good = [odd * 2**k for odd in (1, 3) for k in range(1, size.bit_length() + 1)]
    return max(s for s in good if s < size), min(s for s in good if s > size)
