"""The adversarial game, written once: a generator's images become both players' losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn
from jax import lax

from deformgan import losses
from deformgan.adaptive_augment import adapted
from deformgan.data.feed import Batch
from deformgan.errors import UserError
from deformgan.models import dcgan
from deformgan.models.layers import AXIS
from deformgan.objectives import shown
from deformgan.objectives.contract import (
    Aux,
    Generate,
    Generated,
    Inputs,
    Metrics,
    Params,
    Penalty,
)
from deformgan.objectives.shown import Draw, Space
from deformgan.state import Variables


class Judged(NamedTuple):
    """Outputs `[b]` or `[b, h, w]` on augmented images, new batch statistics, sown features."""

    out: jax.Array
    stats: Any
    features: list[jax.Array]


class Game(NamedTuple):
    """The fields of an `Objective` that two players define."""

    disc_loss: Callable[[Params, Inputs], tuple[jax.Array, Aux]]
    gen_loss: Callable[[Params, Inputs], tuple[jax.Array, Aux]]
    penalty: Penalty
    penalty_every: int


def discriminator(config: ml_collections.ConfigDict) -> dcgan.Discriminator:
    """The discriminator of the `model` block, with the output that the loss asks for.

    Raises:
      UserError: if its widths do not fit images of `data.size`, or for a setting out of its range.
    """
    model = config.model
    dcgan.check_halvings("model.disc_widths", tuple(model.disc_widths), config.data.size)
    if not 0 <= model.disc_dropout < 1:
        raise UserError(f"model.disc_dropout: {model.disc_dropout}; give a share from 0 to below 1")
    if model.minibatch_discrimination < 0:
        raise UserError("model.minibatch_discrimination: give 0 kernels or more")
    return dcgan.Discriminator(
        widths=tuple(model.disc_widths),
        bounded=losses.bounded_output(config.loss.name),
        batch_norm=model.disc_batch_norm,
        minibatch_stddev=model.minibatch_stddev,
        minibatch_discrimination=model.minibatch_discrimination,
        dropout=model.disc_dropout,
        spectral_norm=model.spectral_norm,
    )


def initial(
    network: nn.Module, key: jax.Array, image: jax.Array, config: ml_collections.ConfigDict
) -> Variables:
    """Variables of a discriminator for images like `image` `[H, W, C]`."""
    variables = dict(network.init(key, image[None], train=False))
    return variables | {"batch_stats": variables.get("batch_stats", {}) | shown.start(config)}


def game(
    generate: Generate,
    network: nn.Module,
    config: ml_collections.ConfigDict,
    *,
    space: Space = shown.UNCODED,
    real: Callable[[Batch, jax.Array], jax.Array] = lambda batch, keys: batch["images"],
    matching: float = 0.0,
) -> Game:
    """The game that the `loss` and `augment` blocks describe.

    Args:
      generate: (the generator's variables, inputs) -> a batch, in training.
      network: the discriminator, as `discriminator` makes it; or one that judges patches, whose
        outputs `[b, h, w]` count alike.
      config: of the run.
      space: what the channels of the images that it judges mean.
      real: (batch, keys `[b]`) -> what the discriminator is shown of it.
      matching: weight of `losses.feature_matching`, of a network that sows its features.

    Raises:
      UserError: for an unknown loss or a setting out of its range.
    """
    _check(config)
    settings = config.loss
    adversarial = losses.by_name(
        settings.name, margin=settings.margin, smoothing=settings.label_smoothing
    )
    show = shown.augmentation(config, space)

    def made(variables: Variables, inputs: Inputs) -> Generated:
        return inputs.replay(variables["params"]) if inputs.replay else generate(variables, inputs)

    def discriminate(
        params: Params, stats: Any, images: jax.Array, keys: jax.Array, step: jax.Array | int
    ) -> Judged:
        images = show(keys, images, stats, step)
        out, updated = network.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            keys=shown.fold(keys, Draw.DISC_DROPOUT),
            mutable=["batch_stats", "features"] if matching else ["batch_stats"],
        )
        features = jax.tree.leaves(updated.get("features", ()))
        return Judged(out, updated.get("batch_stats", stats), features)

    def both(
        params: Params, stats: Any, fake: jax.Array, inputs: Inputs
    ) -> tuple[losses.Adversarial, Any]:
        """Judges real and fake as separate batches, as a DCGAN does."""
        keys, step = inputs.keys, inputs.step
        real_keys, fake_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        images = real(inputs.batch, keys)
        real_out, stats, _ = discriminate(params, stats, images, real_keys, step)
        fake_out, stats, _ = discriminate(params, stats, fake, fake_keys, step)
        return adversarial(real_out, fake_out), stats

    def mismatch(fake: jax.Array, inputs: Inputs) -> jax.Array:
        """Distance `[b]` of the discriminator's features of pairs, both augmented alike."""
        disc, keys, step = inputs.variables.disc, inputs.keys, inputs.step
        found = [
            discriminate(disc["params"], disc["batch_stats"], images, keys, step).features
            for images in (fake, real(inputs.batch, keys))
        ]
        return losses.feature_matching(*found)

    def disc_loss(params: Params, inputs: Inputs) -> tuple[jax.Array, Aux]:
        variables = inputs.variables
        fake = made(variables.gen, inputs).images
        outcome, stats = both(params, variables.disc["batch_stats"], fake, inputs)
        loss = jnp.mean(outcome.disc)
        metrics = {
            "disc/adversarial": loss,
            "disc/accuracy_real": jnp.mean(outcome.real_correct),
            "disc/accuracy_fake": jnp.mean(outcome.fake_correct),
        }
        if config.augment.adaptive:
            stats, more = _adapt(stats, outcome, config)
            metrics |= more
        return loss, Aux(metrics, stats)

    def gen_loss(params: Params, inputs: Inputs) -> tuple[jax.Array, Aux]:
        variables = inputs.variables
        own = {"params": params, "batch_stats": variables.gen["batch_stats"]}
        fake = made(own, inputs)
        disc = variables.disc
        outcome, _ = both(disc["params"], disc["batch_stats"], fake.images, inputs)
        loss = jnp.mean(outcome.gen)
        metrics = {"gen/adversarial": loss} | fake.metrics
        total = loss + fake.penalty
        if matching:
            metrics["gen/features"] = jnp.mean(mismatch(fake.images, inputs))
            total = total + matching * metrics["gen/features"]
        return total, Aux(metrics, fake.stats)

    def penalty(params: Params, inputs: Inputs) -> tuple[jax.Array, Aux]:
        keys, stats = inputs.keys, inputs.variables.disc["batch_stats"]

        def of(images: jax.Array, weight: float) -> jax.Array:
            if not weight:
                return jnp.zeros(())

            def judged(x: jax.Array) -> jax.Array:
                out = discriminate(params, stats, x, keys, inputs.step).out
                return out if out.ndim == 1 else jnp.mean(out, (1, 2))

            return weight * jnp.mean(losses.gradient_penalty(judged, images))

        fake = generate(inputs.variables.gen, inputs).images
        r1, r2 = of(real(inputs.batch, keys), settings.r1), of(fake, settings.r2)
        return r1 + r2, Aux({"disc/r1": r1, "disc/r2": r2}, stats)

    every = settings.penalty_every if settings.r1 or settings.r2 else 0
    return Game(disc_loss, gen_loss, penalty, every)


def _adapt(
    stats: Any, outcome: losses.Adversarial, config: ml_collections.ConfigDict
) -> tuple[Any, Metrics]:
    """Batch statistics with the probability of augmentation after this batch."""
    settings = config.augment
    sign = lax.pmean(jnp.mean(2.0 * outcome.real_correct - 1), AXIS)
    new = adapted(
        stats["adaptation"],
        sign,
        config.train.batch_size,
        target=settings.target,
        kimg=settings.kimg,
        interval=settings.interval,
        highest=settings.highest,
    )
    metrics = {"disc/augment_probability": new.probability, "disc/sign": sign}
    return stats | {"adaptation": new}, metrics


def _check(config: ml_collections.ConfigDict) -> None:
    if not (config.loss.r1 >= 0 and config.loss.r2 >= 0):
        raise UserError("loss.r1, loss.r2: give 0 or more")
    if config.loss.penalty_every < 1:
        raise UserError(f"loss.penalty_every: {config.loss.penalty_every}; give 1 step or more")
