"""Deformation, estimated and then learned: an atlas, its deformations and a camera, refined.

`fit` estimates from the training images what no adversary can teach: a clean template in layers,
the camera's noise, and a Gaussian over the diffeomorphisms that carry it to each image. A latent is
a white code of that Gaussian, so the generator starts with the variety of the data; training
against a discriminator adds a correction to the codes and to the template, both zero at first.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import camera as cameras
from deformgan import fields
from deformgan.data.pipeline import Dataset
from deformgan.errors import UserError
from deformgan.imaging import annotation, deformations, estimation
from deformgan.imaging.atlas import (
    Coordinates,
    Motion,
    Shape,
    coordinates,
    grid,
    render,
    shared_velocity,
    still,
)
from deformgan.imaging.estimation import Model
from deformgan.imaging.template import Settings
from deformgan.metrics.diversity import diversity_ratio
from deformgan.models.refiner import Refiner
from deformgan.objectives.adversarial import discriminator, game, initial
from deformgan.objectives.contract import (
    Constants,
    Fit,
    Generated,
    Inputs,
    Metrics,
    Objective,
    Samples,
    Say,
)
from deformgan.state import Pair, Variables

_TEMPLATE_RATE = 0.05  # of the template's learning rate in that of the codes


def create(config: ml_collections.ConfigDict) -> Objective:
    """Builds the objective from the `fit`, `model`, `loss` and `augment` blocks.

    Raises:
      UserError: for settings that do not fit together, or images in colour.
    """
    _check(config)
    plan = settings(config.fit)
    refiner = Refiner(width=config.model.refiner_width)
    network = discriminator(config)

    def draw(
        variables: Variables, constants: Constants, keys: jax.Array
    ) -> tuple[jax.Array, Model, Motion, jax.Array]:
        """Images `[b, S, S, 1]` in [-1, 1], the refined model, its motions, the codes' change."""
        model: Model = estimation.unpacked(constants)
        code_keys, camera_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        length = len(model.distribution.root)
        white = jax.vmap(lambda key: jax.random.normal(key, (length,)))(code_keys)  # [b, D]
        params = variables["params"]
        refined: Any = refiner.apply({"params": params["codes"]}, white)
        change = _TEMPLATE_RATE * params["template"]
        atlas = model.atlas._replace(
            somata=model.atlas.somata + change[:-1], rest=model.atlas.rest + change[-1]
        )
        like = still(plan.shape, len(atlas.centres), 1)
        motion = deformations.motions(model.distribution, refined, like)
        mean = render(atlas, motion, plan.nodes)[..., None]
        recorded = jax.vmap(lambda key, image: cameras.expose(key, image, model.camera))
        images = 2 * recorded(camera_keys, mean) - 1
        return images, model._replace(atlas=atlas), motion, refined - white

    def generate(variables: Variables, inputs: Inputs) -> Generated:
        images, _, _, change = draw(variables, inputs.constants, inputs.keys)
        away = jnp.mean(jnp.square(change))
        metrics = {"gen/code_change": away}
        return Generated(images, {}, metrics, config.loss.code_change * away)

    rules = game(generate, network, config)

    def sample(
        variables: Variables,
        constants: Constants,
        keys: jax.Array,
        conditions: jax.Array | None = None,
    ) -> Samples:
        images, model, motion, _ = draw(variables, constants, keys)
        size = images.shape[1]
        where = coordinates(model.atlas, motion, size, plan.nodes)
        labels, nodes = model.annotation, plan.nodes
        points, status = annotation.moved_points(labels, model.atlas, motion, nodes)
        mask = annotation.moved_masks(labels, where)
        return Samples(
            images,
            _fields(where, size) | {"velocity": velocity(motion, size, nodes)},
            {"mask": mask, "points": points, "status": status},
        )

    def monitor(samples: Samples, real: jax.Array) -> Metrics:
        folded = [
            jnp.mean(fields.folded_fraction(samples.fields[name]))
            for name in ("displacement", "displacement_rest")
        ]
        return {
            "diversity": diversity_ratio(samples.images, real),
            "folded": jnp.maximum(*folded),
        }

    def init(key: jax.Array, constants: Constants) -> Pair[Variables]:
        gen_key, disc_key = jax.random.split(key)
        model = estimation.unpacked(constants)
        layers = (len(model.atlas.centres) + 1, *model.atlas.rest.shape)
        codes = refiner.init(gen_key, jnp.zeros((1, len(model.distribution.root))))["params"]
        image = jnp.zeros((*model.atlas.rest.shape, 1))
        return Pair(
            gen={"params": {"codes": codes, "template": jnp.zeros(layers)}, "batch_stats": {}},
            disc=initial(network, disc_key, image, config),
        )

    return Objective(
        fit=lambda dataset, say: fit(dataset, plan, config.seed, say),
        init=init,
        disc_loss=rules.disc_loss,
        gen_loss=rules.gen_loss,
        penalty=rules.penalty,
        penalty_every=rules.penalty_every,
        sample=sample,
        monitor=monitor,
    )


def fit(dataset: Dataset, plan: Settings, seed: int, say: Say) -> Fit:
    """Estimates the model from the training images, at most `plan.images` of them."""
    count = min(len(dataset.train), plan.images)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(dataset.train))[:count])
    images = np.stack([dataset.train[i][..., 0] for i in chosen])
    scaling, source = dataset.scaling, dataset.source
    step = scaling.depth.step / (scaling.high - scaling.low)
    model, motion, evidence = estimation.estimate(
        (images + 1) / 2,
        (source.image[..., 0] + 1) / 2,
        source.labels,
        step,
        plan,
        seed=seed,
        say=say,
    )
    ids = {"ids": model.annotation.ids, "mask": model.annotation.masks}
    found = {"velocity": velocity(motion, images.shape[1], plan.nodes)}
    return Fit(estimation.packed(model) | ids | found, evidence)


def velocity(motion: Motion, size: int, nodes: int) -> jax.Array:
    """The shared velocities `[N, n, n, 2]` on the integration grid, in pixels."""
    return shared_velocity(motion, nodes) * (size / nodes)


def _fields(where: Coordinates, size: int) -> dict[str, jax.Array]:
    """Displacements in pixels: of what all layers share, and of the neurites in all."""
    still_there = grid(size)[None]
    return {
        "displacement": (where.shared - still_there) * size,
        "displacement_rest": (where.rest - still_there) * size,
    }


def settings(config: ml_collections.ConfigDict) -> Settings:
    """How an atlas is built, from the `fit` block."""
    shape = Shape(
        shared=config.shared_control,
        own=config.own_control,
        gain=config.gain_control,
        grid=config.grid,
    )
    layers = tuple(int(label) for label in _listed(config.layers))
    return Settings(shape, config.somata, config.subset, config.images, layers)


def _listed(labels: str) -> list[str]:
    return [label.strip() for label in labels.split(",") if label.strip()]


def _check(config: ml_collections.ConfigDict) -> None:
    if config.data.channels != 1:
        raise UserError(
            f"data.channels: {config.data.channels}; an atlas is grey, set it to 1 (data.channel"
            " chooses one of several)"
        )
    if config.data.size % 4 or config.data.size < 32:
        raise UserError(f"data.size: {config.data.size}; give a multiple of 4, 32 or more")
    fit_config = config.fit
    labels = _listed(fit_config.layers)
    if not all(map(str.isdecimal, labels)) or len(set(labels)) < len(labels):
        raise UserError(f"fit.layers: {fit_config.layers!r}; give different labels, as 1,2")
    for key in ("shared_control", "own_control", "gain_control"):
        if fit_config[key] < 4:
            raise UserError(f"fit.{key}: {fit_config[key]}; cubic splines need 4 or more")
    if not (fit_config.somata >= 1 and fit_config.subset >= 2 and fit_config.images >= 2):
        raise UserError("fit.somata: give 1 or more; fit.subset, fit.images: 2 or more")
    if fit_config.grid < max(fit_config.shared_control, fit_config.own_control):
        raise UserError(
            f"fit.grid: {fit_config.grid} is coarser than the control points of the velocities"
        )
