"""Unconditional generation: images from noise alone, such as tiles of fibre orientation maps.

The second report's basic GAN and its successors. The networks make images in the space
`model.space`; see `coding`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from deformgan.data.feed import Batch
from deformgan.data.pipeline import Dataset
from deformgan.metrics.diversity import diversity_ratio
from deformgan.objectives import shown
from deformgan.objectives.adversarial import game, initial
from deformgan.objectives.coding import check_directions, coding
from deformgan.objectives.contract import (
    Aux,
    Constants,
    Fit,
    Inputs,
    Metrics,
    Objective,
    Params,
    Samples,
    Say,
    Styles,
)
from deformgan.objectives.image_networks import Networks, networks
from deformgan.objectives.shown import Space
from deformgan.state import Pair, Variables

Encode = Callable[[jax.Array], jax.Array]
Show = Callable[[jax.Array], Samples]


def create(config: ml_collections.ConfigDict) -> Objective:
    """Builds the objective from the `model`, `loss` and `augment` blocks.

    Raises:
      UserError: for settings that are unknown or do not fit together.
    """
    space, channels, encode, show = coding(config)
    nets = networks(config, channels)

    def real(batch: Batch, keys: jax.Array) -> jax.Array:
        images = encode(batch["images"])
        return shown.turned(keys, images, space) if config.augment.dihedral else images

    rules = game(nets.generate, nets.discriminator, config, space=space, real=real)

    def gen_penalty(params: Params, inputs: Inputs) -> tuple[jax.Array, Aux]:
        assert nets.path_length is not None
        found = nets.path_length(params, inputs.variables.gen["batch_stats"], inputs.keys)
        penalty = config.loss.path_length * found.penalty
        return penalty, Aux({"gen/path_penalty": penalty, "gen/path": found.length}, found.stats)

    def monitor(samples: Samples, real: jax.Array) -> Metrics:
        return {"diversity": diversity_ratio(samples.images, real)}

    def init(key: jax.Array, constants: Constants) -> Pair[Variables]:
        gen_key, disc_key = jax.random.split(key)
        image = jnp.zeros((config.data.size, config.data.size, channels))
        return Pair(
            gen=nets.init(gen_key), disc=initial(nets.discriminator, disc_key, image, config)
        )

    return Objective(
        fit=lambda dataset, say: fit(dataset, say, space, config.data.source),
        init=jax.jit(init),  # op by op, StyleGAN2 takes a minute
        disc_loss=rules.disc_loss,
        gen_loss=rules.gen_loss,
        penalty=rules.penalty,
        penalty_every=rules.penalty_every,
        sample=lambda variables, constants, keys, conditions=None: show(nets.show(variables, keys)),
        monitor=monitor,
        gen_penalty=gen_penalty,
        gen_penalty_every=config.loss.path_length_every if nets.path_length else 0,
        styles=_styles(nets, encode, show),
    )


def fit(dataset: Dataset, say: Say, space: Space, source: str) -> Fit:
    """Nothing is estimated; tells if colours of a source are taken for directions unasked."""
    check_directions(space, dataset, source, say)
    return Fit({}, {})


def _styles(nets: Networks, encode: Encode, show: Show) -> Styles | None:
    if nets.styles is None:
        return None
    return Styles(
        of=nets.styles.of,
        mean=lambda variables: variables["batch_stats"]["mean_w"],
        render=nets.styles.render,
        encode=encode,
        show=show,
    )
