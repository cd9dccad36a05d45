"""Layers with an equalised learning rate, and convolutions modulated by a style.

Weights are drawn from N(0, 1) and scaled by 1 / sqrt(fan in) where they are used, not where they
are drawn, so that Adam moves all of them at one relative speed (Karras et al. 2018, sec. 4.1).
Parameters are float32; `dtype` is what convolutions compute in. bfloat16 has the range of float32,
so none of the clamping is needed that float16 asks for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from deformgan.models.layers import leaky_relu
from deformgan.models.resample import conv_down, conv_up

_normal = nn.initializers.normal(1.0)


def activate(x: jax.Array) -> jax.Array:
    """Leaky rectifier times sqrt(2), which keeps the power of N(0, 1) inputs up to 4%."""
    return leaky_relu(x) * 2**0.5


class Dense(nn.Module):
    """`[B, I]` to `[B, features]` in float32.

    Attributes:
      features: outputs.
      rate: learning-rate multiplier (Karras et al. 2019, appendix C): the weights are drawn as
        much larger as they are scaled down, so outputs begin the same and move `rate` times as
        far for a step of Adam.
      bias: what the bias begins as.
    """

    features: int
    rate: float = 1.0
    bias: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1 / self.rate), shape)
        start = nn.initializers.constant(self.bias / self.rate)
        bias = self.param("bias", start, (self.features,))
        gain = self.rate / x.shape[-1] ** 0.5
        return x @ (gain * kernel) + self.rate * bias[None]


class Conv(nn.Module):
    """`[B, H, W, C]` to `[B, H, W, features]`, or `[B, H/2, W/2, features]` if `down`.

    Attributes:
      features: output channels.
      size: side of the kernel, 1 or 3.
      down: whether to filter and take every second pixel; 3x3 only.
      use_bias: whether to add a bias.
      dtype: of the computation and of the output.
    """

    features: int
    size: int = 3
    down: bool = False
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = _kernel(self, x.shape[-1], self.features, self.size).astype(self.dtype)
        x = x.astype(self.dtype)
        y = conv_down(x, kernel) if self.down else _conv(x, kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(y.dtype)[None, None, None]
        return y.astype(self.dtype)


class ModulatedConv(nn.Module):
    """A convolution whose input channels a style scales; Karras et al. 2020, eqs. 1-3.

    Called with `[B, H, W, C]` features and `[B, W]` w, it returns `[B, H, W, features]`, or twice
    the size if `up`. Modulation scales the input and demodulation the output, which equals scaling
    each example's weights and needs no weights of its own for each example.

    Attributes:
      features: output channels.
      size: side of the kernel, 1 or 3.
      up: whether to double the size, filtered; 3x3 only.
      demodulate: whether to give outputs unit variance for inputs of unit variance.
      dtype: of the convolution and of the output, but 1x1 ones return the float32 that they add
        up in; the demodulation is computed in float32.
    """

    features: int
    size: int = 3
    up: bool = False
    demodulate: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        style = Dense(x.shape[-1], bias=1.0, name="style")(w)  # [B, C]
        kernel = _kernel(self, x.shape[-1], self.features, self.size)
        x = x.astype(self.dtype) * style.astype(self.dtype)[:, None, None]
        convolve = conv_up if self.up else _conv
        y = convolve(x, kernel.astype(self.dtype))
        if self.demodulate:
            power = jnp.sum(jnp.square(kernel), axis=(0, 1))  # [C, O]
            total = jnp.matmul(jnp.square(style), power, precision=lax.Precision.HIGHEST)
            y = y * lax.rsqrt(total + 1e-8).astype(self.dtype)[:, None, None]
        return y


def _kernel(module: nn.Module, inputs: int, outputs: int, size: int) -> jax.Array:
    kernel = module.param("kernel", _normal, (size, size, inputs, outputs))
    return kernel / (inputs * size**2) ** 0.5


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    if kernel.shape[0] == 1:
        sums = {"preferred_element_type": jnp.float32}
        return jnp.einsum("bhwc,co->bhwo", x, kernel[0, 0], **sums)
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
