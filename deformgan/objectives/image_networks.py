"""The networks that make images from nothing but noise: a DCGAN, or StyleGAN2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from deformgan import losses
from deformgan.errors import UserError, choose
from deformgan.models import dcgan, layers, stylegan2
from deformgan.models.styles import latents
from deformgan.objectives.adversarial import discriminator
from deformgan.objectives.contract import Generate, Generated, Inputs, Params
from deformgan.state import Variables

NAMES = ("dcgan", "stylegan2")
_DTYPES = ("float32", "bfloat16")


class StyleSpace(NamedTuple):
    """A generator's own functions that `contract.Styles` is made of."""

    of: Callable[[Variables, jax.Array], jax.Array]
    render: Callable[[Variables, jax.Array, jax.Array], jax.Array]


class Networks(NamedTuple):
    """A generator and its discriminator.

    Attributes:
      init: key -> the generator's variables.
      generate: (variables, inputs) -> a batch, in training.
      show: (variables, keys `[n]`) -> images `[n, S, S, C]`, nominally in [-1, 1].
      discriminator: the network that judges them.
      path_length: (parameters, batch statistics, keys `[b]`) -> the regularisation; None if the
        generator has no styles, or its weight is 0.
      styles: None if the generator has none.
    """

    init: Callable[[jax.Array], Variables]
    generate: Generate
    show: Callable[[Variables, jax.Array], jax.Array]
    discriminator: nn.Module
    path_length: Callable[[Params, Any, jax.Array], stylegan2.PathLength] | None = None
    styles: StyleSpace | None = None


def networks(config: ml_collections.ConfigDict, channels: int) -> Networks:
    """Those of the `model` block, for images of `channels` channels.

    Raises:
      UserError: for an unknown network or sizes that do not fit.
    """
    choose("model.name", config.model.name, NAMES)
    if config.model.latent < 1:
        raise UserError(f"model.latent: {config.model.latent}; give 1 component or more")
    _check_settings(config.model)
    if config.loss.path_length < 0 or config.loss.path_length_every < 1:
        raise UserError("loss.path_length: give 0 or more; loss.path_length_every: 1 or more")
    return (_dcgan if config.model.name == "dcgan" else _stylegan2)(config, channels)


def _dcgan(config: ml_collections.ConfigDict, channels: int) -> Networks:
    model = config.model
    dcgan.check_widths("model.gen_widths", tuple(model.gen_widths), config.data.size)
    if config.loss.path_length:
        raise UserError("loss.path_length: a DCGAN has no styles; set it to 0")
    choose("model.upsampling", model.upsampling, layers.UPSAMPLINGS)
    generator = dcgan.Generator(tuple(model.gen_widths), channels, model.upsampling)

    def make(variables: Variables, keys: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        z = latents(keys, model.latent)
        images, updated = generator.apply(variables, z, train=train, mutable=["batch_stats"])
        return images, updated["batch_stats"]

    def generate(variables: Variables, inputs: Inputs) -> Generated:
        images, stats = make(variables, inputs.keys, train=True)
        return Generated(images, stats, {})

    return Networks(
        init=lambda key: dict(generator.init(key, jnp.zeros((1, model.latent)), train=False)),
        generate=generate,
        show=lambda variables, keys: make(variables, keys, train=False)[0],
        discriminator=discriminator(config),
    )


def _stylegan2(config: ml_collections.ConfigDict, channels: int) -> Networks:
    model, size = config.model, config.data.size
    stylegan2.check(size, channels, model.channel_base, model.channel_max)
    _check_styles(model)
    widths = stylegan2.widths_for(size, base=model.channel_base, most=model.channel_max)
    dtype = jnp.dtype(model.dtype)
    generator = stylegan2.Generator(
        widths, channels, model.latent, model.mapping_layers, model.mixing, dtype
    )
    judge = stylegan2.Discriminator(widths, losses.bounded_output(config.loss.name), dtype)

    def init(key: jax.Array) -> Variables:
        return dict(generator.init(key, jax.random.split(key, 1), train=False))

    def generate(variables: Variables, inputs: Inputs) -> Generated:
        images, updated = generator.apply(
            variables, inputs.keys, train=True, mutable=["batch_stats"]
        )
        return Generated(images, updated["batch_stats"], {})

    def show(variables: Variables, keys: jax.Array) -> jax.Array:
        images: Any = generator.apply(variables, keys, train=False)
        return images

    def path_length(params: Params, stats: Any, keys: jax.Array) -> stylegan2.PathLength:
        return stylegan2.path_length(generator, {"params": params, "batch_stats": stats}, keys)

    def of(variables: Variables, keys: jax.Array) -> jax.Array:
        w: Any = generator.apply(variables, latents(keys, model.latent), method="map")
        return w

    def render(variables: Variables, w: jax.Array, keys: jax.Array) -> jax.Array:
        images: Any = generator.apply(variables, w, keys, method="synthesise")
        return images

    regularised = path_length if config.loss.path_length else None
    return Networks(init, generate, show, judge, regularised, StyleSpace(of, render))


def _check_settings(model: ml_collections.ConfigDict) -> None:
    """Of whichever network, so that a config that is turned to StyleGAN2 holds no surprise."""
    choose("model.dtype", model.dtype, _DTYPES)
    if model.mapping_layers < 1:
        raise UserError(f"model.mapping_layers: {model.mapping_layers}; give 1 or more")
    if not 0 <= model.mixing <= 1:
        raise UserError(f"model.mixing: {model.mixing}; give a probability, 0 to 1")


def _check_styles(model: ml_collections.ConfigDict) -> None:
    if not model.minibatch_stddev:
        raise UserError(
            "model.minibatch_stddev: False, but StyleGAN2 always has it; set it to True"
        )
    plain = {
        "disc_batch_norm": model.disc_batch_norm,
        "minibatch_discrimination": model.minibatch_discrimination,
        "disc_dropout": model.disc_dropout,
        "spectral_norm": model.spectral_norm,
    }
    for name, value in plain.items():
        if value:
            raise UserError(f"model.{name}: {value}; only the discriminator of a DCGAN has it")
