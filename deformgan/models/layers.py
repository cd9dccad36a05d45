"""Layers shared by the networks: strided and transposed 4x4 convolutions, normalisation, dropout.

The plain transposed convolution (input dilated by zeros) and its gradient are 4 to 7 times slower
on CPU than the same sum written as one matrix product, and a strided convolution of few channels
is twice as slow: `benchmarks/layers.py` measures both. Accelerators get the plain forms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from deformgan.errors import require_shape

AXIS = "devices"  # the mapped axis that batch statistics are averaged over; bound by parallel.py

Norm = Literal["batch", "instance"]
NORMS: tuple[Norm, ...] = ("batch", "instance")
Upsampling = Literal["transposed", "resize"]
UPSAMPLINGS: tuple[Upsampling, ...] = ("transposed", "resize")

dcgan_init = nn.initializers.normal(0.02)  # Radford et al. 2016, sec. 3


def minibatch_stddev(x: jax.Array, *, group: int = 4) -> jax.Array:
    """Appends a channel with the mean standard deviation over groups of examples.

    Karras et al. 2018, sec. 3. Groups are consecutive, so they do not depend on how many devices
    share a batch as long as each has whole groups; otherwise a device's share is one group.

    Args:
      x: `[B, H, W, C]`.
      group: examples in a group.

    Returns:
      `[B, H, W, C + 1]`.
    """
    batch, height, width, channels = x.shape
    group = group if batch % group == 0 else batch
    parts = x.reshape(batch // group, group, height, width, channels)
    spread = jnp.sqrt(jnp.var(parts, axis=1) + 1e-8)  # [B / G, H, W, C]
    mean = jnp.repeat(jnp.mean(spread, axis=(1, 2, 3)), group)
    plane = jnp.broadcast_to(mean[:, None, None, None], (batch, height, width, 1))
    return jnp.concatenate([x, plane], -1)


def dropout(x: jax.Array, keys: jax.Array | None, layer: int, rate: float) -> jax.Array:
    """Leaves out a share `rate` of the values, scaling up the others; Srivastava et al. 2014.

    Args:
      x: `[B, ...]`.
      keys: `[B]`, so that what is left out does not depend on how a batch is shared out.
      layer: number of the layer, folded into the keys.
      rate: in [0, 1).

    Raises:
      ValueError: without keys.
    """
    if keys is None:
        raise ValueError("dropout: no keys given")

    def kept(key: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(kept)(keys), x / (1 - rate), 0.0)


class MinibatchDiscrimination(nn.Module):
    """`[B, A]` features to `[B, kernels]`: how near each example is to the others of its group.

    Salimans et al. 2016, sec. 3.2: o_b(x_i) = Σ_j exp(-‖M_ib - M_jb‖₁), M = x T, without the
    constant j = i. Groups are consecutive, as in `minibatch_stddev`.

    Attributes:
      kernels: B of the paper.
      components: C of the paper.
      group: examples that are compared.
    """

    kernels: int
    components: int = 5
    group: int = 8

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch = len(x)
        group = self.group if batch % self.group == 0 else batch
        shape = (x.shape[-1], self.kernels * self.components)
        rows = x @ self.param("kernel", dcgan_init, shape)
        rows = rows.reshape(batch // group, group, self.kernels, self.components)
        apart = jnp.sum(jnp.abs(rows[:, :, None] - rows[:, None]), -1)  # [B / G, G, G, kernels]
        return (jnp.sum(jnp.exp(-apart), 2) - 1).reshape(batch, self.kernels)


def strided_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """4x4 convolution with stride 2 and padding 1.

    Args:
      x: `[B, H, W, C]`, H and W even.
      kernel: `[4, 4, C, O]`.

    Returns:
      `[B, H/2, W/2, O]`.
    """
    require_shape("kernel", kernel, (4, 4, x.shape[-1], None))
    # Measured by benchmarks/layers.py: with more channels the plain form wins.
    _, height, width, channels = x.shape
    small = channels <= 8 or height * width <= 16
    fast = _strided_by_patches if small else _strided_plain
    return lax.platform_dependent(x, kernel, cpu=fast, default=_strided_plain)


def transposed_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """4x4 transposed convolution with stride 2 and padding 1: the adjoint of `strided_conv`.

    Args:
      x: `[B, H, W, C]`.
      kernel: `[C, 4, 4, O]`, input channels first as the wide form reads it.

    Returns:
      `[B, 2H, 2W, O]`: `out[2i - 1 + k] += x[i] kernel[k]` on both axes.
    """
    require_shape("kernel", kernel, (x.shape[-1], 4, 4, None))
    fast = _transposed_by_phases if x.shape[-1] <= 64 else _transposed_by_overlap
    return lax.platform_dependent(x, kernel, cpu=fast, default=_transposed_plain)


def _strided_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _strided_by_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Space to depth, four shifted slices side by side, one matrix product."""
    B, H, W, C = x.shape
    h, w, O = H // 2, W // 2, kernel.shape[-1]  # noqa: E741
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(B, h + 1, 2, w + 1, 2, C)
    shifts = [x[:, p : p + h, :, q : q + w] for p in (0, 1) for q in (0, 1)]
    patches = jnp.stack(shifts, 0).reshape(2, 2, B, h, 2, w, 2, C)  # p, q, B, h, r, w, s, C
    patches = patches.transpose(2, 3, 5, 0, 4, 1, 6, 7).reshape(B * h * w, 16 * C)
    return (patches @ kernel.reshape(16 * C, O)).reshape(B, h, w, O)


def _transposed_plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    flipped = kernel.transpose(1, 2, 0, 3)[::-1, ::-1]
    return lax.conv_general_dilated(
        x,
        flipped,
        (1, 1),
        ((2, 2), (2, 2)),
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _transposed_by_phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Sub-pixel form: 2x2 patches times the kernel sorted by output phase, interleaved."""
    B, H, W, C = x.shape
    O = kernel.shape[-1]  # noqa: E741
    # Output row 2(i + p) + r takes kernel row 2 (1 - t) + r from input row i + t.
    phases = kernel.reshape(C, 2, 2, 2, 2, O)[:, ::-1, :, ::-1]  # C, t, r, u, s, O
    phases = phases.transpose(1, 3, 0, 2, 4, 5).reshape(4 * C, 4 * O)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [x[:, t : t + H + 1, u : u + W + 1] for t in (0, 1) for u in (0, 1)]
    out = jnp.concatenate(shifts, -1).reshape(-1, 4 * C) @ phases
    return _interleave(out.reshape(B, H + 1, W + 1, 2, 2, O))


def _transposed_by_overlap(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product to all 16 taps, then four overlapping adds; for many channels."""
    B, H, W, C = x.shape
    O = kernel.shape[-1]  # noqa: E741
    taps = (x.reshape(-1, C) @ kernel.reshape(C, 16 * O)).reshape(B, H, W, 2, 2, 2, 2, O)
    parts = [
        jnp.pad(
            taps[:, :, :, p, :, q],
            ((0, 0), (p, 1 - p), (q, 1 - q), (0, 0), (0, 0), (0, 0)),
        )
        for p in (0, 1)
        for q in (0, 1)
    ]
    return _interleave(functools.reduce(jnp.add, parts))


def _interleave(x: jax.Array) -> jax.Array:
    """`[B, h, w, 2, 2, O]` phases to `[B, 2h - 2, 2w - 2, O]`, without the padding's border."""
    B, h, w, _, _, O = x.shape  # noqa: E741
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, 2 * h, 2 * w, O)[:, 1:-1, 1:-1]


class StridedConv(nn.Module):
    """`strided_conv` with its kernel, without a bias."""

    features: int
    kernel_init: nn.initializers.Initializer = dcgan_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (4, 4, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return strided_conv(x, kernel.astype(x.dtype))


class TransposedConv(nn.Module):
    """`transposed_conv` with its kernel, without a bias."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], 4, 4, self.features)
        kernel = self.param("kernel", dcgan_init, shape)
        return transposed_conv(x, kernel.astype(x.dtype))


class ResizeConv(nn.Module):
    """Twice the size by nearest neighbours, then a 3x3 convolution without a bias.

    Each pixel is made from as much as its neighbours, so there is no checkerboard (Odena et al.
    2016, distill.pub), and no dark frame, as borders are repeated outwards. Computed as a
    `transposed_conv` whose kernel is the 3x3 one spread by a 2x2 box.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], 3, 3, self.features)
        kernel = self.param("kernel", dcgan_init, shape).astype(x.dtype)
        boxed = [
            jnp.pad(kernel, ((0, 0), (p, 1 - p), (q, 1 - q), (0, 0)))
            for p in (0, 1)
            for q in (0, 1)
        ]
        framed = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        return transposed_conv(framed, functools.reduce(jnp.add, boxed))[:, 2:-2, 2:-2]


def upsampling(kind: Upsampling, features: int) -> nn.Module:
    """A layer that doubles the size."""
    return ResizeConv(features) if kind == "resize" else TransposedConv(features)


def batch_norm(train: bool) -> Callable[[jax.Array], jax.Array]:
    """Batch normalisation whose statistics are those of the global batch, over all devices."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, axis_name=AXIS)


def normed(x: jax.Array, norm: Norm, train: bool) -> jax.Array:
    """Normalised features `[B, H, W, C]`, float32: by `batch_norm`, or each image on its own.

    Instance normalisation (Ulyanov et al. 2016) does the same in training and after it.
    """
    if norm == "batch":
        return batch_norm(train)(x)
    out: jax.Array = nn.InstanceNorm(epsilon=1e-5)(x)
    return out


def leaky_relu(x: jax.Array) -> jax.Array:
    """Leaky rectifier of slope 0.2, as in both reports."""
    return nn.leaky_relu(x, 0.2)
