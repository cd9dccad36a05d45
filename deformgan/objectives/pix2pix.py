"""Paired translation: an image predicted from another one, such as fibre orientation from light.

Pix2Pix (Isola et al. 2017): a U-Net against a PatchGAN that is shown the input beside the image,
and a distance from the target. Dropout is the generator's only noise.

What physics allows: transmittance does not depend on polarisation, so it holds no direction of
fibres but by texture, of bundles that are wide enough to be seen; along with density it tells of
inclination. Where a tile has no texture, the direction in a prediction is a guess. Retardation adds
how much light is turned, thus inclination, and no direction either.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from deformgan import losses, orientation
from deformgan.data import pairs
from deformgan.data.feed import Batch
from deformgan.data.pipeline import Dataset
from deformgan.errors import UserError, choose
from deformgan.metrics.diversity import diversity_ratio
from deformgan.models import layers, patchgan, unet
from deformgan.objectives import shown
from deformgan.objectives.adversarial import game, initial
from deformgan.objectives.coding import Coding, check_directions, coding
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
from deformgan.objectives.shown import Draw
from deformgan.state import Pair, Variables

DTYPES = ("float32", "bfloat16")


class Networks(NamedTuple):
    """The generator and the discriminator."""

    gen: unet.UNet
    disc: patchgan.PatchGAN


def create(config: ml_collections.ConfigDict) -> Objective:
    """Builds the objective from the `model`, `loss` and `augment` blocks.

    Raises:
      UserError: for settings that are unknown or do not fit together.
    """
    code = coding(config)
    _check(config, code)
    nets, terms = networks(config, code.channels), reconstruction(config)
    space = code.space._replace(channels=code.channels)

    def pair(batch: Batch, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Inputs `[b, S, S, K]` and encoded targets, turned and shifted alike."""
        given, wanted = batch["conditions"], code.encode(batch["images"])
        if config.augment.dihedral:
            given = shown.turned(keys, given, shown.UNCODED)
            wanted = shown.turned(keys, wanted, code.space)
        most = config.augment.jitter
        return shown.shifted(keys, given, most), shown.shifted(keys, wanted, most)

    def predict(
        variables: Variables, given: jax.Array, keys: jax.Array | None, *, train: bool
    ) -> tuple[jax.Array, Any]:
        own = None if keys is None else shown.fold(keys, Draw.DROPOUT)
        made, updated = nets.gen.apply(
            variables, given, train=train, keys=own, mutable=["batch_stats"]
        )
        return made, updated.get("batch_stats", variables["batch_stats"])

    def generate(variables: Variables, inputs: Inputs) -> Generated:
        given, wanted = pair(inputs.batch, inputs.keys)
        made, stats = predict(variables, given, inputs.keys, train=True)
        penalty, metrics = terms(made, wanted)
        return Generated(jnp.concatenate([given, made], -1), stats, metrics, penalty)

    def real(batch: Batch, keys: jax.Array) -> jax.Array:
        return jnp.concatenate(pair(batch, keys), -1)

    def sample(
        variables: Variables,
        constants: Constants,
        keys: jax.Array,
        conditions: jax.Array | None = None,
    ) -> Samples:
        if conditions is None:
            raise ValueError("conditions: pix2pix predicts from inputs [n, H, W, K]; got None")
        own = keys if config.model.test_dropout else None
        return code.show(predict(variables, conditions, own, train=False)[0])

    def init(key: jax.Array, constants: Constants) -> Pair[Variables]:
        gen_key, disc_key = jax.random.split(key)
        inputs = pairs.channels(config.data)
        side = config.data.size
        found = nets.gen.init(gen_key, jnp.zeros((1, side, side, inputs)), train=False)
        image = jnp.zeros((side, side, inputs + code.channels))
        disc = initial(nets.disc, disc_key, image, config)
        disc.pop("features", None)
        return Pair(gen={"batch_stats": {}} | dict(found), disc=disc)

    rules = game(
        generate,
        nets.disc,
        config,
        space=space,
        real=real,
        matching=config.loss.feature_matching,
    )

    def told(dataset: Dataset, say: Say) -> Fit:
        check_directions(space, dataset, config.data.source, say)
        found = fit(dataset, say, nets, config.data.size)
        _tell_of_depth(nets.gen, config, say)
        return found

    return Objective(
        fit=told,
        init=jax.jit(init),
        disc_loss=rules.disc_loss,
        gen_loss=rules.gen_loss,
        penalty=rules.penalty,
        penalty_every=rules.penalty_every,
        sample=sample,
        shared=generate,
        monitor=lambda samples, real: monitor(samples, real, oriented=space.oriented),
    )


def networks(config: ml_collections.ConfigDict, channels: int) -> Networks:
    """Those of the `model` block, for images of `channels` channels.

    Raises:
      UserError: for a setting that is unknown or does not fit `data.size`.
    """
    model, size = config.model, config.data.size
    choose("model.norm", model.norm, layers.NORMS)
    choose("model.upsampling", model.upsampling, layers.UPSAMPLINGS)
    choose("model.dtype", model.dtype, DTYPES)
    patchgan.check("model.disc_layers", model.disc_layers, size)
    if min(model.gen_filters, model.disc_filters) < 1:
        raise UserError("model.gen_filters, model.disc_filters: give 1 or more")
    for name in ("dropout", "disc_dropout"):
        if not 0 <= model[name] < 1:
            raise UserError(f"model.{name}: {model[name]}; give a share from 0 to below 1")
    common = {"norm": model.norm, "dtype": jnp.dtype(model.dtype)}
    depth = unet.depth_for(size, model.depth)
    return Networks(
        gen=unet.UNet(
            channels,
            model.gen_filters,
            depth,
            dropout=model.dropout,
            upsampling=model.upsampling,
            **common,
        ),
        disc=patchgan.PatchGAN(
            model.disc_layers,
            model.disc_filters,
            bounded=losses.bounded_output(config.loss.name),
            dropout=model.disc_dropout,
            **common,
        ),
    )


def reconstruction(config: ml_collections.ConfigDict) -> Any:
    """(predictions, targets) `[b, S, S, C]` -> the weighted distance, scalar, and its parts."""
    settings = config.loss
    distance = losses.distance(settings.pixel)

    def terms(made: jax.Array, wanted: jax.Array) -> tuple[jax.Array, Metrics]:
        parts = {f"gen/{settings.pixel}": jnp.mean(distance(made, wanted))}
        total = settings.pixel_weight * parts[f"gen/{settings.pixel}"]
        if settings.ssim:
            parts["gen/dissimilarity"] = jnp.mean(losses.dissimilarity(made, wanted))
            total = total + settings.ssim * parts["gen/dissimilarity"]
        return total, parts

    return terms


def fit(dataset: Dataset, say: Say, nets: Networks, size: int) -> Fit:
    """Nothing is estimated; tells how large the bottleneck and the patches are.

    Raises:
      UserError: if the data are no pairs.
    """
    if dataset.conditions is None:
        raise UserError("data.pairs: False, but pix2pix predicts from inputs; set it to True")
    side, patch = size // 2**nets.gen.depth, patchgan.receptive_field(nets.disc.strided)
    say(
        f"U-Net of depth {nets.gen.depth}, down to {side}x{side}; PatchGAN of"
        f" {nets.disc.strided} layers, each output sees {patch}x{patch} pixels of {size}x{size}"
    )
    return Fit({}, {})


def _tell_of_depth(gen: unet.UNet, config: ml_collections.ConfigDict, say: Say) -> None:
    """Warns of a U-Net that a size which 2 divides rarely leaves shallow."""
    size = config.data.size
    if not config.model.depth and size // 2**gen.depth > unet.SMALL:
        low, high = unet.sizes_near(size)
        say(
            f"warning: data.size {size} allows a U-Net of depth {gen.depth} alone, in which nothing"
            f" sees a whole tile; {low} and {high} are the nearest sizes that would do"
        )
    if gen.depth == 1 and gen.dropout:
        say("warning: a U-Net of depth 1 has no dropout, so predictions do not vary")


def monitor(samples: Samples, real: jax.Array, *, oriented: bool) -> Metrics:
    """Diversity; of predictions of the first of `real`, mean squared error on 0 to 255.

    And, where colours encode directions, the median angle between fibres in tissue, in degrees.
    """
    wanted = real[: len(samples.images)]
    error = samples.images - wanted
    found = {
        "diversity": diversity_ratio(samples.images, wanted),
        "mse": 127.5**2 * jnp.mean(jnp.square(error)),
    }
    if oriented:
        truth = orientation.decode(wanted, "rgb")
        angle = orientation.absolute_axial_error_3d(
            orientation.decode(samples.images, "rgb"), truth
        )
        angle = jnp.where(truth.mask > 0, angle, jnp.nan)
        found["axial_error"] = jnp.nan_to_num(jnp.nanmedian(angle) * (180 / math.pi))
    return found


def _check(config: ml_collections.ConfigDict, code: Coding) -> None:
    settings, data = config.loss, config.data
    if not data.pairs:
        raise UserError("data.pairs: False, but pix2pix predicts from inputs; set it to True")
    if min(settings.pixel_weight, settings.ssim, settings.feature_matching) < 0:
        raise UserError(
            "loss.pixel_weight, loss.ssim, loss.feature_matching: give weights of 0 or more"
        )
    if settings.pixel == "axial" and code.space.name != "orientation":
        raise UserError(
            "loss.pixel: 'axial' compares directions; set model.space=orientation, or choose l1"
        )
    if settings.ssim and data.size < 11:
        raise UserError("loss.ssim: its window has 11 pixels; raise data.size, or set it to 0")
    if not 0 <= config.augment.jitter < data.size:
        raise UserError(f"augment.jitter: {config.augment.jitter}; give pixels, fewer than a tile")
    turns = config.augment.dihedral or config.augment.adaptive
    if turns and pairs.by_modality(data) and "fom" in pairs.modalities(data):
        raise UserError(
            "data.inputs: 'fom' encodes directions, which are not turned with an input; set"
            " augment.dihedral and augment.adaptive to False"
        )
