"""Filtered resampling by 2, alone and with a 3x3 convolution, so that strides do not alias.

The filter is [1, 3, 3, 1] on both axes with zeros outside the image, as in the authors' code of
StyleGAN2 (Karras et al. 2020, sec. 4.1; Zhang 2019 says why); upsampling by it is bilinear.

Sums of slices are 60 times faster on CPU than the filter as a depthwise convolution. Adjoints are
written out, each being one of the forward functions: XLA for CPU has no fast form of the kernel
gradients that autodiff makes of a transposed convolution, so that without this a step of the
generator and R1 take over twice the time. Reverse mode only, of any order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from deformgan.errors import require_shape


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def blur(x: jax.Array, padding: int) -> jax.Array:
    """The filter at stride 1, of sum 1.

    Args:
      x: `[B, H, W, C]`.
      padding: zeros on every side, 0 to 3.

    Returns:
      `[B, H + 2 padding - 3, W + 2 padding - 3, C]`.
    """
    x = _padded(x, padding)
    for axis in (1, 2):
        taps = [lax.slice_in_dim(x, k, x.shape[axis] - 3 + k, axis=axis) for k in (0, 1, 2, 3)]
        x = 0.125 * (taps[0] + taps[3]) + 0.375 * (taps[1] + taps[2])
    return x


blur.defvjp(
    lambda x, padding: (blur(x, padding), None),
    lambda padding, _, gradient: (blur(gradient, 3 - padding),),
)


@jax.custom_vjp
def upsample(x: jax.Array) -> jax.Array:
    """Twice the size: zeros between the pixels, then the filter times 4.

    Args:
      x: `[B, H, W, C]`.

    Returns:
      `[B, 2H, 2W, C]`: `out[2i] = (x[i - 1] + 3 x[i]) / 4`, `out[2i + 1] = (3 x[i] + x[i + 1]) / 4`
      on both axes.
    """
    B, H, W, C = x.shape
    x = _padded(x, 1)
    for axis, size in ((1, H), (2, W)):
        before, here, after = (lax.slice_in_dim(x, k, k + size, axis=axis) for k in (0, 1, 2))
        phases = (0.25 * before + 0.75 * here, 0.75 * here + 0.25 * after)
        x = jnp.stack(phases, axis + 1)
        x = x.reshape(B, 2 * H, W + 2, C) if axis == 1 else x.reshape(B, 2 * H, 2 * W, C)
    return x


@jax.custom_vjp
def downsample(x: jax.Array) -> jax.Array:
    """Half the size: the filter, then every second pixel. A quarter of the adjoint of `upsample`.

    Args:
      x: `[B, H, W, C]`, H and W even.

    Returns:
      `[B, H/2, W/2, C]`: `out[i] = (x[2i - 1] + 3 x[2i] + 3 x[2i + 1] + x[2i + 2]) / 8` on both
      axes.
    """
    _, height, width, _ = x.shape
    x = _padded(x, 1)
    for axis, size in ((1, height), (2, width)):
        taps = [lax.slice_in_dim(x, k, k + size - 1, 2, axis) for k in (0, 1, 2, 3)]
        x = 0.125 * (taps[0] + taps[3]) + 0.375 * (taps[1] + taps[2])
    return x


upsample.defvjp(lambda x: (upsample(x), None), lambda _, gradient: (4 * downsample(gradient),))
downsample.defvjp(lambda x: (downsample(x), None), lambda _, gradient: (upsample(gradient) / 4,))


def conv_down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The filter, then a 3x3 convolution with stride 2.

    Args:
      x: `[B, H, W, C]`, H and W even.
      kernel: `[3, 3, C, O]`.

    Returns:
      `[B, H/2, W/2, O]`.
    """
    require_shape("kernel", kernel, (3, 3, x.shape[-1], None))
    return _gather(blur(x, 2), kernel)


def conv_up(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A transposed 3x3 convolution with stride 2, then the filter times 4.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[3, 3, C, O]`.

    Returns:
      `[B, 2H, 2W, O]`: 4 times the adjoint of `conv_down` with input and output channels swapped.
    """
    require_shape("kernel", kernel, (3, 3, x.shape[-1], None))
    return 4 * blur(_scatter(x, kernel.swapaxes(2, 3)), 1)


# The trilinear form <gather(y, k), x> and its three partial gradients, each the others' derivative.


@jax.custom_vjp
def _gather(y: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[B, 2h + 1, 2w + 1, C]` to `[B, h, w, O]`: `out[i] = y[2i + k] kernel[k]`."""
    return _strided(y, kernel)


@jax.custom_vjp
def _scatter(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[B, h, w, O]` to `[B, 2h + 1, 2w + 1, C]`: `out[2i + k] += x[i] kernel[k]`."""
    B, h, w, _ = x.shape
    like = jax.ShapeDtypeStruct((B, 2 * h + 1, 2 * w + 1, kernel.shape[2]), x.dtype)
    return jax.linear_transpose(lambda y: _strided(y, kernel), like)(x)[0]


@jax.custom_vjp
def _correlate(y: jax.Array, x: jax.Array) -> jax.Array:
    """`[3, 3, C, O]`: `out[k] = sum of y[2i + k] x[i]` over places and examples."""
    like = jax.ShapeDtypeStruct((3, 3, y.shape[-1], x.shape[-1]), y.dtype)
    return jax.linear_transpose(lambda kernel: _strided(y, kernel), like)(x)[0]


_gather.defvjp(
    lambda y, k: (_gather(y, k), (y, k)), lambda r, g: (_scatter(g, r[1]), _correlate(r[0], g))
)
_scatter.defvjp(
    lambda x, k: (_scatter(x, k), (x, k)), lambda r, g: (_gather(g, r[1]), _correlate(g, r[0]))
)
_correlate.defvjp(
    lambda y, x: (_correlate(y, x), (y, x)), lambda r, g: (_scatter(r[1], g), _gather(r[0], g))
)


def _strided(y: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        y, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _padded(x: jax.Array, width: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))
