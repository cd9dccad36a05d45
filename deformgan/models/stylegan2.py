"""StyleGAN2 (Karras et al. 2020): mapping, skip generator, residual discriminator.

Widths are given from 4x4 up, one a resolution; both networks of a game take the same. With those
of `widths_for(1024)`, latents of 512 and a mapping of 2 layers they hold the 28,794,124 and
29,012,513 parameters that the authors' code prints.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from deformgan import losses
from deformgan.errors import UserError, require_shape
from deformgan.models.equalised import Conv, Dense, ModulatedConv, activate
from deformgan.models.layers import AXIS, minibatch_stddev
from deformgan.models.resample import downsample, upsample
from deformgan.models.styles import Use, fold, latents, mix, noise
from deformgan.state import Variables

MEAN_W_DECAY = 0.995  # a step, of the mean w that truncation pulls to; as in the authors' code
SIZES = (32, 64, 128, 256)  # pixels along each side
CHANNELS = (1, 3, 4)


class Mapping(nn.Module):
    """Latents `[B, Z]` to w `[B, Z]`: z at unit power, then `layers` dense layers.

    Karras et al. 2019, sec. 2; their learning-rate multiplier of 0.01 is in appendix C.
    """

    layers: int = 8
    rate: float = 0.01

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = z * lax.rsqrt(jnp.mean(jnp.square(z), axis=1, keepdims=True) + 1e-8)
        for _ in range(self.layers):
            x = activate(Dense(z.shape[-1], rate=self.rate)(x))
        return x


class StyledLayer(nn.Module):
    """Modulated 3x3 convolution, noise of learnt strength on each pixel, bias, rectifier.

    Karras et al. 2020, fig. 2d. Noise `[B, H, W, 1]` is that of the output.
    """

    features: int
    up: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array, noise: jax.Array) -> jax.Array:
        x = ModulatedConv(self.features, up=self.up, dtype=self.dtype, name="conv")(x, w)
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x + (strength * noise).astype(self.dtype) + bias.astype(self.dtype)[None, None, None]
        return activate(x)


class ToImage(nn.Module):
    """Features to image channels by a modulated 1x1 convolution, in float32."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
        conv = ModulatedConv(self.channels, 1, demodulate=False, dtype=self.dtype, name="conv")
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        return conv(x, w) + bias[None, None, None]


class Synthesis(nn.Module):
    """w of each layer `[B, L, W]` and keys `[B]` to images `[B, S, S, channels]`, unbounded.

    L = 2 len(widths), S = 4 * 2^(len(widths) - 1). Every resolution adds to an image that is
    upsampled from the one below: the skip generator of Karras et al. 2020, fig. 7b. The keys are
    those of the noise: a key's noise is the same for every w.
    """

    widths: tuple[int, ...]
    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, w: jax.Array, keys: jax.Array) -> jax.Array:
        require_shape("w", w, (None, style_count(self.widths), None))
        planes = iter(noise(keys, len(self.widths)))
        constant = self.param("constant", nn.initializers.normal(1.0), (4, 4, self.widths[0]))
        x = jnp.broadcast_to(constant[None], (len(w), *constant.shape))
        images: jax.Array | None = None
        layer = 0
        for level, width in enumerate(self.widths):
            for up in (True, False) if level else (False,):
                styled = StyledLayer(width, up, self.dtype, name=f"layer_{layer}")
                x = styled(x, w[:, layer], next(planes))
                layer += 1
            to_image = ToImage(self.channels, self.dtype, name=f"image_{level}")
            added = to_image(x, w[:, layer])  # the w of the next layer, as the authors' code does
            images = added if images is None else upsample(images) + added
        assert images is not None
        return images


class Generator(nn.Module):
    """Mapping and synthesis, with the running means of w and of path lengths as batch statistics.

    Called with one key an example, `[B]`, it returns `[B, S, S, channels]` images, nominally in
    [-1, 1]; in training, of mixed styles.

    Attributes:
      widths: channels of each resolution, from 4x4 up.
      channels: of the images.
      latent: components of z and of w.
      mapping_layers: of the mapping network.
      mixing: probability that an example of training has two styles (Karras et al. 2019, sec. 3.1).
      dtype: convolutions compute in this; mapping, demodulation and images are float32.
    """

    widths: tuple[int, ...]
    channels: int
    latent: int = 512
    mapping_layers: int = 8
    mixing: float = 0.9
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.mapping = Mapping(self.mapping_layers)
        self.synthesis = Synthesis(self.widths, self.channels, self.dtype)
        self.mean_w = self.variable("batch_stats", "mean_w", jnp.zeros, (self.latent,))
        self.path_length = self.variable("batch_stats", "path_length", jnp.zeros, ())

    def __call__(self, keys: jax.Array, *, train: bool) -> jax.Array:
        w = self.styles(keys) if train else self.map(latents(keys, self.latent))
        return self.synthesise(w, keys)

    def map(self, z: jax.Array) -> jax.Array:
        """The w `[B, L, W]` of latents `[B, Z]`, the same for all layers."""
        w = self.mapping(z)
        return jnp.repeat(w[:, None], style_count(self.widths), axis=1)

    def styles(self, keys: jax.Array) -> jax.Array:
        """The w `[B, L, W]` of a batch in training: mixed, and counted in the mean w.

        Needs `mutable=["batch_stats"]` and the mapped axis `layers.AXIS`.
        """
        w = self.map(latents(keys, self.latent))
        batch_mean = lax.pmean(lax.stop_gradient(jnp.mean(w[:, 0], axis=0)), AXIS)
        self.mean_w.value += (1 - MEAN_W_DECAY) * (batch_mean - self.mean_w.value)
        if not self.mixing:
            return w
        other = self.map(latents(keys, self.latent, use=Use.OTHER_LATENT))
        return mix(w, other, keys, probability=self.mixing)

    def synthesise(self, w: jax.Array, keys: jax.Array) -> jax.Array:
        """Images of w `[B, L, W]` with the noise of keys `[B]`."""
        return self.synthesis(w, keys)


class Discriminator(nn.Module):
    """`[B, S, S, C]` images in [-1, 1] to `[B]`: logits, or tanh outputs if `bounded`.

    Residual blocks (Karras et al. 2020, fig. 7c), minibatch standard deviation, and at 4x4 a
    convolution and two dense layers in float32.

    Attributes:
      widths: channels of each resolution, from 4x4 up.
      bounded: whether the output ends in tanh.
      dtype: of the residual blocks.
    """

    widths: tuple[int, ...]
    bounded: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, keys: jax.Array | None = None
    ) -> jax.Array:
        del train, keys  # the same in training, and nothing random
        side = 4 * 2 ** (len(self.widths) - 1)
        require_shape("images", images, (None, side, side, None))
        x = activate(Conv(self.widths[-1], 1, name="from_image")(images)).astype(self.dtype)
        for level in range(len(self.widths) - 1, 0, -1):
            x = Residual(self.widths[level - 1], self.dtype, name=f"block_{level}")(x)
        x = minibatch_stddev(x.astype(jnp.float32))
        x = activate(Conv(self.widths[0], name="conv")(x))
        x = activate(Dense(self.widths[0], name="dense")(x.reshape(len(x), -1)))
        out = Dense(1, name="out")(x)[:, 0]
        return jnp.tanh(out) if self.bounded else out


class Residual(nn.Module):
    """Two 3x3 convolutions to half the size, beside a filtered 1x1 one; the sum at unit power."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skip = Conv(self.features, 1, use_bias=False, dtype=self.dtype, name="skip")
        first = Conv(x.shape[-1], dtype=self.dtype, name="conv_0")
        second = Conv(self.features, down=True, dtype=self.dtype, name="conv_1")
        return (activate(second(activate(first(x)))) + skip(downsample(x))) * 0.5**0.5


class PathLength(NamedTuple):
    """Path-length regularisation of a batch.

    Attributes:
      penalty: scalar, to be weighted (2 in the authors' code) and added to the generator's loss.
      length: mean path length of the batch on all devices, scalar.
      stats: new batch statistics of the generator, with its running mean.
    """

    penalty: jax.Array
    length: jax.Array
    stats: dict[str, jax.Array]


def path_length(
    generator: Generator,
    variables: Variables,
    keys: jax.Array,
    *,
    shrink: int = 2,
    decay: float = 0.01,
) -> PathLength:
    """The penalty of Karras et al. 2020, eq. 4, on every `shrink`-th example.

    Args:
      generator: whose gradient with respect to w is wanted at one length everywhere.
      variables: its parameters and newest batch statistics, which `stats` carries on.
      keys: `[b]`, one an example; runs inside the mapped axis `layers.AXIS`.
      shrink: 2 for half of the batch, as in the authors' code, which saves time and memory.
      decay: of the running mean, a call.
    """
    keys = keys[::shrink]
    w, updated = generator.apply(variables, keys, mutable=["batch_stats"], method="styles")

    def synthesise(w: jax.Array) -> jax.Array:
        images: Any = generator.apply(variables, w, keys, method="synthesise")
        return images

    lengths = losses.path_lengths(synthesise, w, fold(keys, Use.PATH))
    length = lax.pmean(lax.stop_gradient(jnp.mean(lengths)), AXIS)
    old = variables["batch_stats"]["path_length"]
    mean = old + decay * (length - old)
    stats = updated["batch_stats"] | {"path_length": mean}
    return PathLength(jnp.mean(losses.path_length_penalty(lengths, mean)), length, stats)


def style_count(widths: tuple[int, ...]) -> int:
    """How many w a synthesis takes: one a convolution, and one for the last image."""
    return 2 * len(widths)


def widths_for(size: int, *, base: int = 32768, most: int = 512) -> tuple[int, ...]:
    """Channels `base / S` at S pixels, `most` at most, from 4x4 up to `size`."""
    sides = (4 * 2**level for level in range(size.bit_length() - 2))
    return tuple(min(base // side, most) for side in sides)


def check(size: int, channels: int, base: int, most: int) -> None:
    """Raises `UserError` unless networks of `widths_for(size, base, most)` suit such images."""
    if size not in SIZES or channels not in CHANNELS:
        raise UserError(
            f"data.size, data.channels: {size}, {channels}; StyleGAN2 makes images of"
            f" {', '.join(map(str, SIZES))} pixels and {', '.join(map(str, CHANNELS))} channels"
        )
    if most < 1 or base < size:
        raise UserError(
            f"model.channel_base, model.channel_max: {base}, {most}; give {size} or more, for one"
            " channel at full size, and 1 or more"
        )
