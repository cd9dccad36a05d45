"""The PatchGAN discriminator of Pix2Pix (Isola et al. 2017, sec. 3.2.2 and appendix 6.1.2).

It judges every patch of an image on its own; how large these are follows from its layers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from deformgan.errors import UserError
from deformgan.models import layers

MOST_LAYERS = 5
_WIDEST = 8  # channels of the deepest layers, in multiples of those of the first


class PatchGAN(nn.Module):
    """`[B, S, S, K]` images, the condition's channels first, to outputs `[B, h, w]`, one a patch.

    `strided` layers of 4x4 with stride 2, one more with stride 1, and the output's, all with
    padding 1, so that h = S / 2^strided - 2. With none, 1x1 convolutions judge every pixel. The
    features of each layer but the last are sown into the collection `features`.

    Attributes:
      strided: layers that halve the size, 0 to 5; see `receptive_field`.
      filters: channels of the first (ndf); they double at every layer, up to 8 times that.
      bounded: whether outputs end in tanh; they are logits otherwise.
      norm: one of `layers.NORMS`, of every layer but the first.
      dropout: share of the features that is left out after every layer, in training.
      dtype: of the convolutions; parameters, normalisation and output are float32.
    """

    strided: int = 3
    filters: int = 64
    bounded: bool = False
    norm: layers.Norm = "batch"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, keys: jax.Array | None = None
    ) -> jax.Array:
        x = images
        for depth in range(max(self.strided, 1) + 1):
            width = self.filters * min(2**depth, _WIDEST)
            x = self._convolved(x, width, halve=depth < self.strided)
            x = layers.leaky_relu(layers.normed(x, self.norm, train) if depth else x)
            if train and self.dropout:
                x = layers.dropout(x, keys, depth, self.dropout)
            self.sow("features", "layer", x)
        out = self._convolved(x, 1, halve=False)[..., 0].astype(jnp.float32)
        out = out + self.param("bias", nn.initializers.zeros, ())
        return jnp.tanh(out) if self.bounded else out

    def _convolved(self, x: jax.Array, width: int, *, halve: bool) -> jax.Array:
        x = x.astype(self.dtype)
        if halve:
            return layers.StridedConv(width)(x)
        side, padding = (4, 1) if self.strided else (1, 0)
        convolution = nn.Conv(
            width,
            (side, side),
            padding=padding,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.dcgan_init,
        )
        return convolution(x)


def receptive_field(strided: int) -> int:
    """Side in pixels of the patch that one output of a `PatchGAN` sees: 1, 16, 34, 70, 142, 286.

    From the output backwards a layer of 4x4 and stride s makes a patch of n pixels one of
    s (n - 1) + 4.
    """
    if not strided:
        return 1
    side = 7  # the two layers with stride 1
    for _ in range(strided):
        side = 2 * (side - 1) + 4
    return side


def check(key: str, strided: int, size: int) -> None:
    """Raises `UserError` unless a `PatchGAN` of so many layers has an output on `size` pixels."""
    if not 0 <= strided <= MOST_LAYERS:
        raise UserError(f"{key}: {strided}; give 0 to {MOST_LAYERS} layers")
    if strided and (size % 2**strided or size // 2**strided < 3):
        raise UserError(
            f"{key}: {strided} halvings do not fit data.size {size}; give fewer, down to 3 pixels"
            " at least"
        )
