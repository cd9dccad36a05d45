"""The adversarial game, written once: a generator's images become both players' losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from deformgan import losses
from deformgan.augment import translate_and_cut
from deformgan.errors import UserError
from deformgan.models import dcgan
from deformgan.objectives.contract import Aux, Constants, Inputs, Metrics, Params
from deformgan.state import Variables


class Generated(NamedTuple):
    """A batch of a generator in training.

    Attributes:
      images: `[b, H, W, C]` in [-1, 1].
      stats: new batch statistics of the generator.
      metrics: scalars by name, reported with its loss.
      penalty: scalar added to its loss.
    """

    images: jax.Array
    stats: Any
    metrics: Metrics
    penalty: jax.Array | float = 0.0


class Game(NamedTuple):
    """The fields of an `Objective` that two players define."""

    disc_loss: Callable[[Params, Inputs], tuple[jax.Array, Aux]]
    gen_loss: Callable[[Params, Inputs], tuple[jax.Array, Aux]]
    penalty: Callable[[Params, Inputs], tuple[jax.Array, Metrics]]
    penalty_every: int


def discriminator(config: ml_collections.ConfigDict) -> dcgan.Discriminator:
    """The discriminator of the `model` block, with the output that the loss asks for.

    Raises:
      UserError: if its widths do not fit images of `data.size`.
    """
    model = config.model
    dcgan.check_widths("model.disc_widths", tuple(model.disc_widths), config.data.size)
    return dcgan.Discriminator(
        widths=tuple(model.disc_widths),
        bounded=losses.bounded_output(config.loss.name),
        batch_norm=model.disc_batch_norm,
        minibatch_stddev=model.minibatch_stddev,
    )


def initial(network: nn.Module, key: jax.Array, image: jax.Array) -> Variables:
    """Variables of a discriminator for images like `image` `[H, W, C]`."""
    return {"batch_stats": {}} | dict(network.init(key, image[None], train=False))


def game(
    generate: Callable[[Variables, Constants, jax.Array], Generated],
    network: nn.Module,
    config: ml_collections.ConfigDict,
) -> Game:
    """The game that the `loss` and `augment` blocks describe.

    Args:
      generate: (variables, constants, keys `[b]`) -> a batch, in training.
      network: the discriminator, as `discriminator` makes it.
      config: of the run.

    Raises:
      UserError: for an unknown loss or a setting out of its range.
    """
    _check(config)
    settings = config.loss
    adversarial = losses.by_name(settings.name, margin=settings.margin)

    def discriminate(
        params: Params, stats: Any, images: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Outputs `[b]` on augmented images, new batch statistics."""
        images = translate_and_cut(
            keys, images, translation=config.augment.translation, cutout=config.augment.cutout
        )
        out, updated = network.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return out, updated.get("batch_stats", stats)

    def both(
        params: Params, stats: Any, real: jax.Array, fake: jax.Array, keys: jax.Array
    ) -> tuple[losses.Adversarial, Any]:
        """Judges real and fake as separate batches, as a DCGAN does."""
        real_keys, fake_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        real_out, stats = discriminate(params, stats, real, real_keys)
        fake_out, stats = discriminate(params, stats, fake, fake_keys)
        return adversarial(real_out, fake_out), stats

    def disc_loss(params: Params, inputs: Inputs) -> tuple[jax.Array, Aux]:
        variables, batch, constants, keys = inputs
        fake = generate(variables.gen, constants, keys).images
        stats = variables.disc["batch_stats"]
        outcome, stats = both(params, stats, batch["images"], fake, keys)
        loss = jnp.mean(outcome.disc)
        metrics = {
            "disc/adversarial": loss,
            "disc/accuracy_real": jnp.mean(outcome.real_correct),
            "disc/accuracy_fake": jnp.mean(outcome.fake_correct),
        }
        return loss, Aux(metrics, stats)

    def gen_loss(params: Params, inputs: Inputs) -> tuple[jax.Array, Aux]:
        variables, batch, constants, keys = inputs
        own = {"params": params, "batch_stats": variables.gen["batch_stats"]}
        fake = generate(own, constants, keys)
        disc = variables.disc
        outcome, _ = both(disc["params"], disc["batch_stats"], batch["images"], fake.images, keys)
        loss = jnp.mean(outcome.gen)
        return loss + fake.penalty, Aux({"gen/adversarial": loss} | fake.metrics, fake.stats)

    def penalty(params: Params, inputs: Inputs) -> tuple[jax.Array, Metrics]:
        variables, batch, constants, keys = inputs
        fake = generate(variables.gen, constants, keys).images

        def of(images: jax.Array, weight: float) -> jax.Array:
            if not weight:
                return jnp.zeros(())
            stats = variables.disc["batch_stats"]
            each = losses.gradient_penalty(
                lambda x: discriminate(params, stats, x, keys)[0], images
            )
            return weight * jnp.mean(each)

        r1, r2 = of(batch["images"], settings.r1), of(fake, settings.r2)
        return r1 + r2, {"disc/r1": r1, "disc/r2": r2}

    every = settings.penalty_every if settings.r1 or settings.r2 else 0
    return Game(disc_loss, gen_loss, penalty, every)


def _check(config: ml_collections.ConfigDict) -> None:
    if not (0 <= config.augment.translation < 0.5 and 0 <= config.augment.cutout < 1):
        raise UserError(
            "augment.translation, augment.cutout: give shares of the side, 0 to 0.5 or 1"
        )
    if not (config.loss.r1 >= 0 and config.loss.r2 >= 0):
        raise UserError("loss.r1, loss.r2: give 0 or more")
    if config.loss.penalty_every < 1:
        raise UserError(f"loss.penalty_every: {config.loss.penalty_every}; give 1 step or more")
