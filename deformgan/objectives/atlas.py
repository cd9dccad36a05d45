"""Deformation, estimated and then learned: an atlas, its deformations and a camera, refined.

`fit` estimates from the training images what no adversary can teach: a clean template in layers,
the camera's noise, and a Gaussian over the diffeomorphisms that carry it to each image. A latent is
a white code of that Gaussian, so the generator starts with the variety of the data; training
against a discriminator adds a correction to the codes and to the template, both zero at first. Of
several animals (`fit.animals`) each has all of this apart, and each latent is of one of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import camera as cameras
from deformgan import fields
from deformgan.data.animals import Animal
from deformgan.data.pipeline import Dataset
from deformgan.errors import UserError
from deformgan.imaging import animals, annotation, deformations, estimation
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


class Drawn(NamedTuple):
    """Images of one animal, and what they are made of.

    Attributes:
      images: `[b, S, S, 1]` in [-1, 1].
      model: the refined one.
      motion: of each image.
      change: `[b, D]` of the codes by refinement.
    """

    images: jax.Array
    model: Model
    motion: Motion
    change: jax.Array


def create(config: ml_collections.ConfigDict) -> Objective:
    """Builds the objective from the `fit`, `model`, `loss` and `augment` blocks.

    Raises:
      UserError: for settings that do not fit together, or images in colour.
    """
    _check(config)
    plan = settings(config.fit)
    refiner = Refiner(width=config.model.refiner_width)
    network = discriminator(config)

    def draw(params: Any, model: Model, keys: jax.Array) -> Drawn:
        code_keys, camera_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        length = len(model.distribution.root)
        white = jax.vmap(lambda key: jax.random.normal(key, (length,)))(code_keys)  # [b, D]
        refined: Any = refiner.apply({"params": params["codes"]}, white)
        change = _TEMPLATE_RATE * params["template"]
        atlas = model.atlas._replace(
            somata=model.atlas.somata + change[:-1], rest=model.atlas.rest + change[-1]
        )
        like = still(plan.shape, len(atlas.centres), 1, atlas.mode_count)
        motion = deformations.motions(model.distribution, refined, like)
        mean = render(atlas, motion, plan.nodes)[..., None]
        recorded = jax.vmap(lambda key, image: cameras.expose(key, image, model.camera))
        images = 2 * recorded(camera_keys, mean) - 1
        return Drawn(images, model._replace(atlas=atlas), motion, refined - white)

    def draw_each(variables: Variables, constants: Constants, keys: jax.Array) -> list[Drawn]:
        """What each animal would give for the keys `[b]`."""
        params, models = animals.apart(variables["params"]), animals.models(constants)
        return [draw(own, model, keys) for own, model in zip(params, models, strict=True)]

    def generate(variables: Variables, inputs: Inputs) -> Generated:
        of_each = draw_each(variables, inputs.constants, inputs.keys)
        shown = [(own.images, jnp.mean(jnp.square(own.change), -1)) for own in of_each]
        images, change = animals.of_its_own(inputs.constants, inputs.keys, shown)
        away = jnp.mean(change)
        metrics = {"gen/code_change": away}
        return Generated(images, {}, metrics, config.loss.code_change * away)

    rules = game(generate, network, config)

    def sample(
        variables: Variables,
        constants: Constants,
        keys: jax.Array,
        conditions: jax.Array | None = None,
    ) -> Samples:
        parts = [_shown(own, plan.nodes) for own in draw_each(variables, constants, keys)]
        samples = animals.of_its_own(constants, keys, parts)
        whose = {"animal": animals.drawn(constants, keys)} if len(parts) > 1 else {}
        return samples._replace(labels=samples.labels | whose)

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
        models, keys = animals.models(constants), [gen_key]
        if len(models) > 1:
            keys = [jax.random.fold_in(gen_key, number) for number in range(len(models))]
        params = []
        for model, own_key in zip(models, keys, strict=True):
            layers = (len(model.atlas.centres) + 1, *model.atlas.rest.shape)
            codes = refiner.init(own_key, jnp.zeros((1, len(model.distribution.root))))["params"]
            params.append({"codes": codes, "template": jnp.zeros(layers)})
        image = jnp.zeros((*models[0].atlas.rest.shape, 1))
        return Pair(
            gen={"params": animals.joined(params), "batch_stats": {}},
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
    """Estimates the model of each animal from its training images, at most `plan.images` each."""
    if plan.layers:  # unknown ones are told before anything is estimated
        annotation.outlines(dataset.source.labels, plan.layers)
    models, velocities, evidence = [], [], {}
    for animal in dataset.animals:
        model, found, evidence[animal.name] = _fitted(dataset, animal, plan, seed, say)
        models.append(model)
        velocities.append(found)
    counts = [len(animal.train) for animal in dataset.animals]
    constants = animals.packed(models, counts) | {"velocity": jnp.concatenate(velocities)}
    return Fit(constants, evidence)


def _fitted(
    dataset: Dataset, animal: Animal, plan: Settings, seed: int, say: Say
) -> tuple[Model, jax.Array, dict[str, np.ndarray]]:
    """The model of one animal, the velocities of its images, and the evidence."""
    order = np.random.default_rng(seed).permutation(len(animal.train))[: plan.images]
    images = np.stack([dataset.train[i][..., 0] for i in animal.train[np.sort(order)]])
    scaling = dataset.scaling
    if animal.source is not dataset.source:  # whose labels these are
        plan = dataclasses.replace(plan, layers=())
    whose = f"{animal.name}: " if len(dataset.animals) > 1 else ""
    try:
        model, motion, evidence = estimation.estimate(
            (images + 1) / 2,
            (animal.source.image[..., 0] + 1) / 2,
            animal.source.labels,
            scaling.depth.step / (scaling.high - scaling.low),
            plan,
            seed=seed,
            say=lambda text: say(whose + text),
        )
    except UserError as error:
        if not whose:
            raise
        raise UserError(f"fit.animals: {whose}{error}") from error
    return model, velocity(motion, images.shape[1], plan.nodes), evidence


def _shown(drawn: Drawn, nodes: int) -> Samples:
    """Images of one animal with their fields and labels."""
    images, model, motion, _ = drawn
    size = images.shape[1]
    where = coordinates(model.atlas, motion, size, nodes)
    points, status = annotation.moved_points(model.annotation, model.atlas, motion, nodes)
    mask = annotation.moved_masks(model.annotation, where)
    return Samples(
        images,
        _fields(where, size) | {"velocity": velocity(motion, size, nodes)},
        {"mask": mask, "points": points, "status": status},
    )


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
