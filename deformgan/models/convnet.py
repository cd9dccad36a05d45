"""A small stack of strided convolutions: the trunk of the networks that judge images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from deformgan.models.layers import StridedConv, leaky_relu


class ConvNet(nn.Module):
    """`[B, H, W, C]` images to the feature maps of every layer, each half the size of the last.

    4x4 convolutions with stride 2, no normalisation: a statistic of the batch or of the image
    would hide the level differences that a judge must see.

    Attributes:
      widths: channels of each layer.
    """

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array) -> list[jax.Array]:
        x = images
        maps: list[jax.Array] = []
        for width in self.widths:
            odd = [(0, size % 2) for size in x.shape[1:3]]
            x = jnp.pad(x, [(0, 0), *odd, (0, 0)], mode="edge")
            x = leaky_relu(StridedConv(width, kernel_init=nn.initializers.he_normal())(x))
            x = x + self.param(f"bias_{len(maps)}", nn.initializers.zeros, (1, 1, 1, width))
            maps.append(x)
        return maps


def widths_for(size: int, *, first: int, most: int, smallest: int = 8) -> tuple[int, ...]:
    """Widths doubling from `first` up to `most`, one a halving of `size` down to `smallest`."""
    widths: list[int] = []
    while size > smallest or not widths:
        widths.append(min(first * 2 ** len(widths), most))
        size = -(-size // 2)
    return tuple(widths)
