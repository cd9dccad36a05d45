"""All that is estimated from training images before any network sees them, in order.

Noise from the images alone; an atlas from a subset of them; the motion of every image; the noise
again, now that each noiseless image is known; the distribution of the motions; the labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage
from skimage.filters import apply_hysteresis_threshold

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.data.frames import Labels
from deformgan.errors import UserError
from deformgan.imaging import annotation as labelling
from deformgan.imaging import (
    appearance,
    deformations,
    likelihood,
    noise,
    padding,
    parts,
    point_spread,
    reconstruction,
    registration,
    subsampling,
    superposition,
    template,
)
from deformgan.imaging import layers as structures
from deformgan.imaging.annotation import Annotation
from deformgan.imaging.atlas import Atlas, Fitted, Motion
from deformgan.imaging.deformations import Distribution
from deformgan.imaging.template import Settings

_PLAIN = 2.0  # times that: what of compressed frames is a structure
_SHOWN = 8  # registered images in the report
_STEPS = 8  # of the last reconstruction
_TOO_LITTLE = 0.7  # of the variance, explained by one template: zephir's frames reach 0.98
_COARSE = likelihood.Phase(4, 0.0, 0)  # resolution that it is counted at
_EM_ROUNDS = 3
_EM_PHASES = (likelihood.Phase(2, 0.0, 2), likelihood.Phase(1, 0.0, 2))
_EM_IMAGES = 200  # that the distribution is fitted to in all rounds but the last


class Model(NamedTuple):
    """What images are generated from; a pytree of arrays.

    Attributes:
      atlas: the template's layers.
      camera: its noise, rounding and clipping.
      distribution: of motions.
      annotation: labels on the template.
    """

    atlas: Atlas
    camera: Camera
    distribution: Distribution
    annotation: Annotation


def packed(model: Model) -> dict[str, dict[str, jax.Array]]:
    """The model as nested dicts, as a checkpoint holds it."""
    return {name: part._asdict() for name, part in model._asdict().items()}


def unpacked(constants: dict[str, Any]) -> Model:
    """The inverse of `packed`; other entries are left alone.

    Raises:
      UserError: if the model was estimated by a version that describes it by other quantities.
    """
    try:
        return Model(
            Atlas(**constants["atlas"]),
            Camera(**constants["camera"]),
            Distribution(**constants["distribution"]),
            Annotation(**constants["annotation"]),
        )
    except TypeError as error:
        raise UserError(
            "checkpoint: its model was estimated by another version of deformgan; estimate it"
            f" again in a new workdir, or sample it with that version ({error})"
        ) from error


@jax.default_matmul_precision("highest")
def estimate(
    images: np.ndarray,
    source: np.ndarray,
    labels: Labels | None,
    step: float,
    settings: Settings,
    *,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Model, Motion, dict[str, np.ndarray]]:
    """Estimates everything: the model, the motion of each image, and evidence for the report.

    Args:
      images: `[N, S, S]` unit intensity in [0, 1], the training images.
      source: `[S, S]` the image to start from; it bears the labels.
      labels: of the source, or None.
      step: distance of two grey levels.
      settings: how.
      seed: of all random choices.
      say: told what is being done.
    """
    outlines = labelling.outlines(labels, settings.layers) if settings.layers else None
    say("noise: estimating from the images alone")
    area = padding.recorded(images)
    found = noise.estimate(area.cut(images), step, seed)
    say(f"noise: {_in_words(found.kind, found.camera)}")
    if found.kind != "none" and not area.whole:
        (top, bottom), (left, right) = area.rows, area.columns
        say(f"noise: in rows {top} to {bottom - 1}, columns {left} to {right - 1} alone")
    camera, background = found.camera, found.background
    some = np.random.default_rng(seed).permutation(len(images))[: settings.subset]
    say(f"template: registering {len(some)} of {len(images)} images to each other")
    fitted = template.build(images[some], source, background, camera, settings, outlines, say)
    focus = functools.partial(point_spread.focused, camera=camera, settings=settings, seed=seed)
    atlas = focus(images[some], fitted, search=point_spread.ROUGH)  # too much blur moves outlines
    fitted = Fitted(atlas, fitted.motion)
    settings, fitted = parts.chosen(images[some], fitted, camera, settings)
    say(f"template: motions {parts.in_words(settings)}")
    say(f"registering all {len(images)} images, and the source")
    images = np.concatenate([images, source[None]])
    fitted = template.fit_all(images, fitted.atlas, camera, settings, say)
    fitted = superposition.chosen(images, fitted, camera, settings)
    way = "add up" if fitted.atlas.additive else "hide each other"
    say(f"template: layers {way} where they overlap")
    fitted = _with_cells(images, fitted, settings)
    say(f"pixels: {subsampling.in_words(fitted.atlas.cells)}")
    fitted = fitted._replace(atlas=focus(images, fitted, search=point_spread.FINE))
    atlas = reconstruction.re_estimated(images, fitted, camera, settings.nodes, steps=_STEPS)
    atlas = reconstruction.smoothed(atlas, camera, len(images))
    say(f"point spread: {float(atlas.blur) * images.shape[1]:.2f} pixels")
    fitted = fitted._replace(atlas=atlas)
    fitted = appearance.varied(images, fitted, camera, settings.nodes)
    say(f"template: {fitted.atlas.mode_count or 'no'} modes of appearance")
    refit = functools.partial(refitted, images, kind=found.kind, settings=settings, seed=seed)
    kind, camera, atlas = refit(fitted, camera=found.camera)
    say(f"noise: {_in_words(kind, camera)}, background {float(atlas.background):.4f}")
    fitted = Fitted(atlas, fitted.motion)
    share = explained(images, fitted, camera, settings.nodes)
    say(f"template: explains {share:.1%} of what the images show")
    if share < _TOO_LITTLE:
        say(
            "warning: the images differ by more than deformation: if they show several animals or"
            " views, give each a template of its own (fit.animals), or start from another"
            " source.image"
        )
    distribution, motion = learn(images, fitted, camera, settings, seed=seed, say=say)
    if kind == "mixed":  # what motions do not explain is among it, and that is less now
        kind, camera, atlas = refit(Fitted(atlas, motion), camera=found.camera)
        say(f"noise: {_in_words(kind, camera)}, by the final motions")
    last = jax.tree.map(lambda x: x[-1:], motion)
    annotation = labelling.annotate(labels, atlas, last, settings.nodes)
    model = Model(atlas, camera, distribution, annotation)
    motion = jax.tree.map(lambda x: x[:-1], motion)
    return model, motion, _evidence(found.curve, kind, images[:-1], model, motion, settings)


def _with_cells(images: np.ndarray, fitted: Fitted, settings: Settings) -> Fitted:
    """The atlas with the share of subsampling that the images show."""
    cells = np.asarray(fitted.atlas.cells)
    plain = fitted.atlas._replace(cells=jnp.asarray(subsampling.NONE))
    if cells.shape != subsampling.NONE.shape:
        means = likelihood.rendered(Fitted(plain, fitted.motion), settings.nodes, images)
        cells = subsampling.refined(images, means, cells)
    return fitted._replace(atlas=plain._replace(cells=jnp.asarray(cells)))


def refitted(
    images: np.ndarray,
    fitted: Fitted,
    camera: Camera,
    kind: str,
    settings: Settings,
    seed: int,
) -> tuple[str, Camera, Atlas]:
    """Kind and level of the noise and the background again, by maximum likelihood.

    Correlated noise is of no one kind: that of real cameras, and what compression left of it.
    """
    area, atlas = padding.recorded(images), fitted.atlas
    whole, images = images, area.cut(images)
    means = area.cut(likelihood.rendered(fitted, settings.nodes, whole))
    background = float(atlas.background)
    empty = means - background < likelihood.EMPTY * (means.max() - background)
    if camera.kernel.shape != (1, 1):
        kind, of_background = "mixed", camera.kernel
        camera, offset = noise.refit_correlated(images, means, camera, mask=empty, seed=seed)
        atlas = _without_haze(atlas)
        means = area.cut(likelihood.rendered(fitted._replace(atlas=atlas), settings.nodes, whole))
        bank = noise.recorded_backgrounds(
            images,
            means + offset,
            camera._replace(kernel=of_background),
            mask=means - background < camera.step / 2,
            seed=seed,
        )
        camera = camera._replace(bank=jnp.asarray(area.paste(bank)))
    else:
        if kind != "none":
            kind = noise.choose_kind(images, means, camera, seed=seed)
        mask = noise.telling(images, means, camera, kind, empty=empty, seed=seed)
        camera, offset = noise.refit(images, means, camera, kind, mask=mask, seed=seed)
    if kind != "none" and not area.whole:
        camera = camera._replace(frame=jnp.asarray(area.frame(whole)))
    background += offset
    if kind == "none":
        background = max(background, 0.0)  # nothing could take it back above black
    return kind, camera, atlas._replace(background=jnp.float32(background))


def _without_haze(atlas: Atlas) -> Atlas:
    """The layers without what is so faint that it counts as background.

    Of what is faint only what belongs to something brighter is kept (hysteresis thresholding, Canny
    1986): what compression leaves in the same place of many frames is of no animal.
    """
    held = np.concatenate([atlas.somata, atlas.rest[None]])
    faint = likelihood.EMPTY * held.max()
    smooth = ndimage.gaussian_filter(held, (0, 1, 1))
    plain = np.stack([apply_hysteresis_threshold(x, faint, _PLAIN * faint) for x in smooth])
    share = jnp.asarray(plain * np.clip(2 * held / faint - 1, 0, 1), jnp.float32)
    kept = jnp.asarray(held) * share
    modes = atlas.modes * share if atlas.mode_count else atlas.modes
    return atlas._replace(somata=kept[:-1], rest=kept[-1], modes=modes)


def _evidence(
    curve: noise.Curve,
    kind: str,
    images: np.ndarray,
    model: Model,
    motion: Motion,
    settings: Settings,
) -> dict[str, np.ndarray]:
    """What `report.evidence` shows."""
    few = np.linspace(0, len(images) - 1, min(len(images), _SHOWN)).astype(int)
    some = Fitted(model.atlas, jax.tree.map(lambda x: x[few], motion))
    layers = np.concatenate([model.atlas.somata, model.atlas.rest[None]])
    kinds = structures.separate(layers.max(0), len(model.atlas.centres))
    labels = np.where(kinds.neurites, 1, 0) + np.where(kinds.dim > 0, 2, 0)
    levels = jnp.linspace(0, 1, 101)
    return {
        "layers": layers,
        "modes": np.asarray(model.atlas.modes),
        "structures": np.where(kinds.bright.any(0), 3, labels).astype(np.uint8),
        "noise_mean": curve.mean,
        "noise_variance": curve.variance,
        "noise_levels": np.asarray(levels),
        "noise_model": np.asarray(cameras.variance(model.camera, levels)),
        "kernel": np.asarray(model.camera.kernel),
        "point_spread": np.asarray(model.atlas.blur * images.shape[1]),
        "observed": images[few],
        "explained": likelihood.rendered(some, settings.nodes, images[few]),
        "in_words": np.array(_in_words(kind, model.camera)),
    }


def learn(
    images: np.ndarray,
    fitted: Fitted,
    camera: Camera,
    settings: Settings,
    *,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Distribution, Motion]:
    """The distribution of motions by expectation maximisation, and the motions under it.

    The last image is the source: it is registered with the others, but none of them.
    """
    atlas, motion = fitted
    camera = likelihood.forgiving(camera, likelihood.misfit(images, fitted, camera, settings.nodes))
    covariance = template.start_covariance(settings, len(atlas.centres), atlas.mode_count)
    for number in range(_EM_ROUNDS):
        last = number == _EM_ROUNDS - 1
        count = len(images) - 1 if last else min(len(images) - 1, _EM_IMAGES)
        chosen = np.linspace(0, len(images) - 2, count).astype(int)
        some = jax.tree.map(lambda x, own=chosen: x[own], motion)
        found = deformations.fit(
            atlas, camera, some, covariance, nodes=settings.nodes, seed=seed + number
        )
        covariance = found.covariance
        say(f"deformations: round {number + 1} of {_EM_ROUNDS}")
        if not last:
            prior = registration.prior_of(found.mean, covariance)
            motion = registration.register(
                images, atlas, camera, prior, motion, _EM_PHASES, nodes=settings.nodes
            )
    return deformations.distribution(found, motion), motion


def explained(images: np.ndarray, fitted: Fitted, camera: Camera, nodes: int) -> float:
    """Share of the images' variance around the background that the motions explain, less noise."""
    means = jnp.asarray(likelihood.rendered(fitted, nodes, images))
    seen, drawn = likelihood.reduced(jnp.asarray(images), _COARSE), cameras.expected(means, camera)
    dark = cameras.expected(fitted.atlas.background, camera)
    noise_power = jnp.mean(cameras.variance(camera, means)) / _COARSE.reduce**2
    away = jnp.mean(jnp.square(seen - likelihood.reduced(drawn, _COARSE))) - noise_power
    shown = jnp.mean(jnp.square(seen - dark)) - noise_power
    return float(jnp.clip(1 - away / jnp.maximum(shown, 1e-12), 0, 1))


def _in_words(kind: str, camera: Camera) -> str:
    parts = {"gain": "gain", "read": "read noise", "speckle": "speckle"}
    levels = [f"{text} {float(getattr(camera, k)):.4f}" for k, text in parts.items()]
    shown = [level for level in levels if not level.endswith(" 0.0000")]
    spatial = "" if camera.kernel.shape == (1, 1) else ", correlated between pixels"
    return ", ".join([kind.replace("_", "-"), *shown]) + spatial
