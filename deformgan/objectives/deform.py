"""Deformation: a generator of displacement fields that warp one labelled image into new ones.

The first report's GAN: latent z -> field u = max_displacement * tanh(...) -> source(x + u(x)),
against a discriminator that sees real images. With `model.layers` above 1, each layer of the source
has a field of its own, and the maximum of the warped layers is the image; the `displacement` of a
sample is then that of the layer that folds most; `layer_displacements` `[n, L, S, S, 2]` has all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import fields
from deformgan.data.frames import Labels
from deformgan.data.pipeline import Dataset, Source
from deformgan.errors import UserError, choose
from deformgan.metrics.diversity import diversity_ratio
from deformgan.models import dcgan
from deformgan.objectives.adversarial import discriminator, game, initial
from deformgan.objectives.contract import (
    Constants,
    Fit,
    Generated,
    Inputs,
    Metrics,
    Objective,
    Samples,
)
from deformgan.state import Pair, Variables
from deformgan.warp import BORDERS, Border, warp

_NO_LABELS = Labels(None, np.zeros((0, 2)), np.zeros(0, np.int32))
NO_POINT = -1  # identity of the placeholder of a source without points (orbax saves no empty array)


def create(config: ml_collections.ConfigDict) -> Objective:
    """Builds the objective from the `model`, `loss` and `augment` blocks.

    Raises:
      UserError: for an unknown loss or border, or widths that do not fit `data.size`.
    """
    _check(config)
    model = config.model
    generator = dcgan.Generator(widths=tuple(model.gen_widths), channels=2 * model.layers)
    network = discriminator(config)

    def draw(
        variables: Variables, constants: Constants, keys: jax.Array, *, train: bool
    ) -> tuple[jax.Array, list[jax.Array], Any]:
        """Images `[b, S, S, C]`, each layer's field `[b, S, S, 2]` in pixels, batch statistics."""
        z = jax.vmap(lambda key: jax.random.normal(key, (model.latent,)))(keys)  # [b, Z]
        unit, updated = generator.apply(variables, z, train=train, mutable=["batch_stats"])
        displacements = jnp.split(model.max_displacement * unit, model.layers, axis=-1)
        warped = [
            warp(layer, displacement, border=model.border, fill=-1.0)
            for layer, displacement in zip(constants["layers"], displacements, strict=True)
        ]
        return functools.reduce(jnp.maximum, warped), displacements, updated["batch_stats"]

    def generate(variables: Variables, inputs: Inputs) -> Generated:
        drawn = draw(variables, inputs.constants, inputs.keys, train=True)
        images, displacements, stats = drawn
        metrics = {"gen/displacement": jnp.mean(jnp.abs(jnp.stack(displacements)))}  # pixels
        return Generated(images, stats, metrics)

    rules = game(generate, network, config)

    def sample(
        variables: Variables,
        constants: Constants,
        keys: jax.Array,
        conditions: jax.Array | None = None,
    ) -> Samples:
        images, displacements, _ = draw(variables, constants, keys, train=False)
        labels = move_labels(constants, displacements, model.border)
        stacked = jnp.stack(displacements, axis=1)  # [n, L, S, S, 2]
        folded = jnp.stack([fields.folded_fraction(u) for u in displacements], axis=1)
        worst = jnp.argmax(folded, axis=1)[:, None, None, None, None]
        shown = {"displacement": jnp.take_along_axis(stacked, worst, axis=1)[:, 0]}
        if model.layers > 1:
            shown["layer_displacements"] = stacked
        return Samples(images, shown, labels)

    def monitor(samples: Samples, real: jax.Array) -> Metrics:
        displacement = samples.fields["displacement"]
        return {
            "diversity": diversity_ratio(samples.images, real),
            "folded": jnp.mean(fields.folded_fraction(displacement)),
        }

    def init(key: jax.Array, constants: Constants) -> Pair[Variables]:
        gen_key, disc_key = jax.random.split(key)
        z = jnp.zeros((1, model.latent))
        return Pair(
            gen=dict(generator.init(gen_key, z, train=False)),
            disc=initial(network, disc_key, constants["source"], config),
        )

    return Objective(
        fit=lambda dataset, say: Fit(fit(dataset, model.layers), {}),
        init=init,
        disc_loss=rules.disc_loss,
        gen_loss=rules.gen_loss,
        penalty=rules.penalty,
        penalty_every=rules.penalty_every,
        sample=sample,
        monitor=monitor,
    )


def fit(dataset: Dataset, layers: int = 1) -> Constants:
    """The source image and its labels; a source without points gets the placeholder `NO_POINT`.

    Also its layers `[L, S, S, C]`, their masks `[L, S, S, 1]`, and the layer of each point `[P]`.

    Raises:
      UserError: if the source has not so many layers.
    """
    source = dataset.source
    parts = (source,) if layers == 1 else source.layers
    if len(parts) != layers:
        raise UserError(
            f"model.layers: {layers}, but the source image {source.name} has {len(parts)}; only"
            " simulated ones with neurites come in 3 layers"
        )
    points, ids, owners = np.full((1, 2), np.nan), np.array([NO_POINT]), np.zeros(1)
    labels = [part.labels or _NO_LABELS for part in parts]
    if any(len(own.points) for own in labels):
        points = np.concatenate([own.points for own in labels])
        ids = np.concatenate([own.ids for own in labels])
        owners = np.repeat(np.arange(layers), [len(own.points) for own in labels])
    return {
        "source": jnp.asarray(source.image),
        "layers": jnp.stack([jnp.asarray(part.image) for part in parts]),
        "mask": jnp.asarray(_mask(source)),
        "masks": jnp.stack([jnp.asarray(_mask(part)) for part in parts]),
        "points": jnp.asarray(points, jnp.float32),
        "ids": jnp.asarray(ids, jnp.int32),
        "owners": jnp.asarray(owners, jnp.int32),
    }


def _mask(source: Source) -> np.ndarray:
    """`[S, S, 1]` int32, zeros where there is none."""
    if source.labels is None or source.labels.mask is None:
        return np.zeros((*source.image.shape[:2], 1), np.int32)
    return source.labels.mask.astype(np.int32)[..., None]


def move_labels(
    constants: Constants, displacements: Sequence[jax.Array], border: Border
) -> dict[str, jax.Array]:
    """Mask, points and their status, each moved by the field of its own layer; first layers win."""
    moved = [fields.transport_points(constants["points"], u) for u in displacements]
    owners, each = constants["owners"], jnp.arange(len(constants["owners"]))
    points = jnp.stack([points for points, _ in moved])[owners, :, each]  # [P, n, 2]
    status = jnp.stack([status for _, status in moved])[owners, :, each]
    warped = [
        warp(mask, u, border=border, fill=0, order=0)
        for mask, u in zip(constants["masks"], displacements, strict=True)
    ]
    mask = functools.reduce(lambda above, below: jnp.where(above > 0, above, below), warped)
    return {"mask": mask, "points": jnp.moveaxis(points, 0, 1), "status": status.T}


def _check(config: ml_collections.ConfigDict) -> None:
    model = config.model
    choose("model.border", model.border, BORDERS)
    dcgan.check_widths("model.gen_widths", tuple(model.gen_widths), config.data.size)
    if model.layers not in (1, 3):
        raise UserError(f"model.layers: {model.layers}; give 1 or 3")
    if model.latent < 1 or min(*model.gen_widths, *model.disc_widths) < 1:
        raise UserError("model.latent, model.gen_widths, model.disc_widths: give 1 or more")
    if model.max_displacement <= 0:
        raise UserError(f"model.max_displacement: {model.max_displacement}; give pixels above 0")
