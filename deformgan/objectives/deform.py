"""Deformation: a generator of displacement fields that warp one labelled image into new ones.

The first report's GAN: latent z -> field u = max_displacement * tanh(...) -> source(x + u(x)),
against a discriminator that sees real images.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import fields, losses
from deformgan.augment import translate_and_cut
from deformgan.data.pipeline import Dataset
from deformgan.errors import UserError, choose
from deformgan.metrics.diversity import diversity_ratio
from deformgan.models import dcgan
from deformgan.objectives.contract import (
    Aux,
    Constants,
    Inputs,
    Metrics,
    Objective,
    Params,
    Samples,
)
from deformgan.state import Pair, Variables
from deformgan.warp import BORDERS, warp

NO_POINT = -1  # identity of the placeholder of a source without points (orbax saves no empty array)


def create(config: ml_collections.ConfigDict) -> Objective:
    """Builds the objective from the `model`, `loss` and `augment` blocks.

    Raises:
      UserError: for an unknown loss or border, or widths that do not fit `data.size`.
    """
    _check(config)
    model, loss_config = config.model, config.loss
    generator = dcgan.Generator(widths=tuple(model.gen_widths), channels=2)
    discriminator = dcgan.Discriminator(
        widths=tuple(model.disc_widths), bounded=losses.bounded_output(loss_config.name)
    )
    adversarial = losses.by_name(loss_config.name, margin=loss_config.margin)

    def generate(
        variables: Variables, constants: Constants, keys: jax.Array, *, train: bool
    ) -> tuple[jax.Array, jax.Array, Any]:
        """Images `[b, S, S, C]`, displacement `[b, S, S, 2]` in pixels, new batch statistics."""
        z = jax.vmap(lambda key: jax.random.normal(key, (model.latent,)))(keys)  # [b, Z]
        unit, updated = generator.apply(variables, z, train=train, mutable=["batch_stats"])
        displacement = model.max_displacement * unit
        images = warp(constants["source"], displacement, border=model.border, fill=-1.0)
        return images, displacement, updated["batch_stats"]

    def discriminate(
        params: Params, stats: Any, images: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Outputs `[b]` on augmented images, new batch statistics."""
        images = translate_and_cut(
            keys, images, translation=config.augment.translation, cutout=config.augment.cutout
        )
        out, updated = discriminator.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return out, updated["batch_stats"]

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
        fake, _, _ = generate(variables.gen, constants, keys, train=True)
        stats = variables.disc["batch_stats"]
        game, stats = both(params, stats, batch["images"], fake, keys)
        loss = jnp.mean(game.disc)
        metrics = {
            "disc/adversarial": loss,
            "disc/accuracy_real": jnp.mean(game.real_correct),
            "disc/accuracy_fake": jnp.mean(game.fake_correct),
        }
        return loss, Aux(metrics, stats)

    def gen_loss(params: Params, inputs: Inputs) -> tuple[jax.Array, Aux]:
        variables, batch, constants, keys = inputs
        own = {"params": params, "batch_stats": variables.gen["batch_stats"]}
        fake, displacement, stats = generate(own, constants, keys, train=True)
        disc = variables.disc
        game, _ = both(disc["params"], disc["batch_stats"], batch["images"], fake, keys)
        loss = jnp.mean(game.gen)
        metrics = {
            "gen/adversarial": loss,
            "gen/displacement": jnp.mean(jnp.abs(displacement)),  # pixels
        }
        return loss, Aux(metrics, stats)

    def penalty(params: Params, inputs: Inputs) -> tuple[jax.Array, Metrics]:
        variables, batch, constants, keys = inputs
        fake, _, _ = generate(variables.gen, constants, keys, train=True)

        def of(images: jax.Array, weight: float) -> jax.Array:
            if not weight:
                return jnp.zeros(())
            stats = variables.disc["batch_stats"]
            each = losses.gradient_penalty(
                lambda x: discriminate(params, stats, x, keys)[0], images
            )
            return weight * jnp.mean(each)

        r1, r2 = of(batch["images"], loss_config.r1), of(fake, loss_config.r2)
        return r1 + r2, {"disc/r1": r1, "disc/r2": r2}

    def sample(variables: Variables, constants: Constants, keys: jax.Array) -> Samples:
        images, displacement, _ = generate(variables, constants, keys, train=False)
        points, status = fields.transport_points(constants["points"], displacement)
        mask = warp(constants["mask"], displacement, border=model.border, fill=0, order=0)
        return Samples(
            images,
            {"displacement": displacement},
            {"mask": mask, "points": points, "status": status},
        )

    def monitor(samples: Samples, real: jax.Array) -> Metrics:
        displacement = samples.fields["displacement"]
        return {
            "diversity": diversity_ratio(samples.images, real),
            "folded": jnp.mean(fields.folded_fraction(displacement)),
        }

    def init(key: jax.Array, constants: Constants) -> Pair[Variables]:
        gen_key, disc_key = jax.random.split(key)
        z, image = jnp.zeros((1, model.latent)), constants["source"][None]
        return Pair(
            gen=dict(generator.init(gen_key, z, train=False)),
            disc=dict(discriminator.init(disc_key, image, train=False)),
        )

    return Objective(
        fit=fit,
        init=init,
        disc_loss=disc_loss,
        gen_loss=gen_loss,
        penalty=penalty,
        penalty_every=loss_config.penalty_every if loss_config.r1 or loss_config.r2 else 0,
        sample=sample,
        monitor=monitor,
    )


def fit(dataset: Dataset) -> Constants:
    """The source image and its labels; a source without points gets the placeholder `NO_POINT`."""
    labels = dataset.source.labels
    size = dataset.source.image.shape[:2]
    points, ids = np.full((1, 2), np.nan), np.array([NO_POINT])
    mask = np.zeros(size, np.int32)
    if labels is not None:
        if len(labels.points):
            points, ids = labels.points, labels.ids
        if labels.mask is not None:
            mask = labels.mask
    return {
        "source": jnp.asarray(dataset.source.image),
        "mask": jnp.asarray(mask, jnp.int32)[..., None],
        "points": jnp.asarray(points, jnp.float32),
        "ids": jnp.asarray(ids, jnp.int32),
    }


def _check(config: ml_collections.ConfigDict) -> None:
    model = config.model
    choose("model.border", model.border, BORDERS)
    dcgan.check_widths("model.gen_widths", tuple(model.gen_widths), config.data.size)
    dcgan.check_widths("model.disc_widths", tuple(model.disc_widths), config.data.size)
    if model.latent < 1 or min(*model.gen_widths, *model.disc_widths) < 1:
        raise UserError("model.latent, model.gen_widths, model.disc_widths: give 1 or more")
    if not (0 <= config.augment.translation < 0.5 and 0 <= config.augment.cutout < 1):
        raise UserError(
            "augment.translation, augment.cutout: give shares of the side, 0 to 0.5 or 1"
        )
    if not (config.loss.r1 >= 0 and config.loss.r2 >= 0):
        raise UserError("loss.r1, loss.r2: give 0 or more")
    if model.max_displacement <= 0:
        raise UserError(f"model.max_displacement: {model.max_displacement}; give pixels above 0")
    if config.loss.penalty_every < 1:
        raise UserError(f"loss.penalty_every: {config.loss.penalty_every}; give 1 step or more")
