"""Errors of predicted fibre orientations, in degrees, beside what costs nothing to reach.

Over the pixels that show tissue in the target, whatever the prediction shows there. A prediction
without tissue (black) has no direction: it counts as 45 degrees in the plane, the mean error of a
direction drawn at random. The sign of the inclination is unknown in a map, so errors in space are
of its absolute value.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.metrics.image_error import nearest_pair
from deformgan.metrics.subject import (
    ImageSet,
    Interval,
    Score,
    Subject,
    jackknife_interval,
    mean_interval,
    unavailable,
)
from deformgan.orientation import (
    Orientation,
    absolute_axial_error_3d,
    axial_difference,
    decode,
    inclination_reliable,
)

BATCH = 64
# The phase shift goes with cos² of the inclination (Axer et al. 2011, NeuroImage 54:1091): at 60
# degrees the signal is a quarter of that of a flat fibre, and directions of steeper ones are noisy.
STEEPEST = math.radians(60)
_STEP = 0.1  # degrees between the values that errors are counted at
_COUNTED = round(90 / _STEP) + 1
_QUARTERS = (0.25, 0.5, 0.75)
_RELIABLE = "inclination_reliable"
_ABOUT = {
    "absolute_axial_error_3d": "angle between fibres in space, inclinations without their sign;"
    " median and quartiles over the target's tissue",
    "in_plane_error": "angle between directions in the plane, modulo 180°, where the target is"
    " inclined by at most 60°; median and quartiles over the target's tissue",
    "inclination_error": "difference of absolute inclinations; median and quartiles over the"
    " target's tissue",
    "tissue_overlap": "twice the tissue that prediction and target share over the tissue of both"
    " (Dice 1945); where a prediction shows none, 45° stand for its error in the plane",
    _RELIABLE: "share of targets whose inclination can be read to 10°; in others errors of"
    " inclination and in space mean little",
}
_LABELS = {
    "absolute_axial_error_3d": "Absolute axial error in 3-D",
    "in_plane_error": "In-plane error",
    "inclination_error": "Inclination error",
    "tissue_overlap": "Overlap of tissue",
    _RELIABLE: "Targets with reliable inclination",
}
ERRORS = ("absolute_axial_error_3d", "in_plane_error", "inclination_error")
BASELINES = ("mean_orientation", "nearest_training", "random_orientation")


class Angles(NamedTuple):
    """Errors `[..., H, W]` in degrees, NaN where they are not judged.

    Attributes:
      axial: between axes in space, in [0, 90].
      in_plane: modulo 180 degrees, in [0, 90]; also NaN where the target is steeper than 60.
      inclination: of absolute inclinations, in [0, 90].
    """

    axial: jax.Array
    in_plane: jax.Array
    inclination: jax.Array


class Counts(NamedTuple):
    """How often errors occur.

    Attributes:
      errors: `[N, 3, 901]`: pixels of each image by kind of error, in steps of 0.1 degrees.
      shared: `[N, 2]`: pixels of tissue in both, and in prediction plus target.
    """

    errors: np.ndarray
    shared: np.ndarray


@jax.jit
def angles(predicted: Orientation, target: Orientation) -> Angles:
    """The three errors at every pixel of the target's tissue.

    Args:
      predicted: `[..., H, W]`, or of a shape that broadcasts to it by ones.
      target: `[..., H, W]`.
    """
    lost = predicted.mask < 0.5
    aside = target.direction + math.pi / 4
    predicted = predicted._replace(direction=jnp.where(lost, aside, predicted.direction))
    there = target.mask >= 0.5
    first, second = jnp.abs(predicted.inclination), jnp.abs(target.inclination)

    def shown(error: jax.Array, where: jax.Array) -> jax.Array:
        return jnp.where(where, jnp.degrees(error), jnp.nan)

    return Angles(
        axial=shown(absolute_axial_error_3d(predicted, target), there),
        in_plane=shown(
            axial_difference(predicted.direction, target.direction), there & (second <= STEEPEST)
        ),
        inclination=shown(jnp.abs(first - second), there),
    )


def orientations(images: ImageSet, space: str = "rgb") -> Iterator[Orientation]:
    """What images in a space show, `[b, H, W]`, in batches of `BATCH`."""
    return (decoded(jnp.asarray(batch), space) for batch in images.batches(BATCH))


def count(predicted: Iterable[Orientation], truth: ImageSet) -> Counts:
    """The errors of predictions, in batches as `orientations` gives them, of all of `truth`."""
    parts = []
    for made, known in zip(predicted, orientations(truth), strict=True):
        errors = np.stack(jax.device_get(angles(made, known)), 1)  # [b, 3, H, W]
        tissue = [np.asarray(o.mask) >= 0.5 for o in (made, known)]
        both = np.sum(tissue[0] & tissue[1], (1, 2))
        parts.append((_counted(errors), np.stack([both, sum(t.sum((1, 2)) for t in tissue)], 1)))
    return Counts(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def _counted(errors: np.ndarray) -> np.ndarray:
    """Histograms `[b, 3, 901]` of errors `[b, 3, H, W]`; NaN is not counted."""
    rows = errors.reshape(-1, errors.shape[-2] * errors.shape[-1])
    there = np.isfinite(rows)
    place = np.round(np.where(there, rows, 0) / _STEP).astype(int)
    place += _COUNTED * np.arange(len(rows))[:, None]
    found = np.bincount(place[there], minlength=_COUNTED * len(rows))
    return found.reshape(*errors.shape[:2], _COUNTED).astype(np.int32)


def quantiles(counts: np.ndarray) -> tuple[float, float, float]:
    """Quartiles and median, degrees, of errors counted in steps of 0.1: `[901]`, not all 0.

    Of the mid-distribution function (Ma, Genton & Parzen 2011), which is exact for equal values.
    """
    share = (np.cumsum(counts) - counts / 2) / counts.sum()
    first, median, third = np.interp(_QUARTERS, share, _STEP * np.arange(_COUNTED))
    return float(first), float(median), float(third)


def baselines(subject: Subject) -> dict[str, Iterable[Orientation] | str]:
    """Predictions that cost nothing to make, in batches as `count` takes them, or why not.

    `mean_orientation` is the axial mean of the directions and the mean absolute inclination of the
    training tissue (that of the targets, where no training images are known); `random_orientation`
    is uniform on the sphere.
    """
    truth, train = subject.real, subject.train
    mean = mean_orientation(truth if train is None else train)
    rng = np.random.default_rng(subject.seed)

    def random(shape: tuple[int, ...]) -> Orientation:
        return _held(rng.uniform(0, math.pi, shape), np.arcsin(rng.uniform(0, 1, shape)))

    shapes = [(len(batch), *truth.stored.shape[1:3]) for batch in truth.batches(BATCH)]
    near = nearest_pair(subject)
    known = "the inputs of the training pairs are unknown"
    return {
        "mean_orientation": (
            _held(np.full(s, mean.direction), np.full(s, mean.inclination)) for s in shapes
        ),
        "nearest_training": known
        if near is None or train is None
        else orientations(train.take(near)),
        "random_orientation": (random(s) for s in shapes),
    }


def mean_orientation(images: ImageSet) -> Orientation:
    """Of the tissue of all images: axial mean direction, mean absolute inclination; scalars."""
    sums = sum(np.asarray(_sums(o)) for o in orientations(images))
    cosine, sine, inclination, pixels = np.asarray(sums, np.float64)
    direction = np.mod(np.arctan2(sine, cosine) / 2, math.pi)
    mean = (direction, inclination / max(pixels, 1), pixels > 0)
    return Orientation(*(jnp.asarray(v, jnp.float32) for v in mean))


def score(subject: Subject) -> Iterator[tuple[str, Score]]:
    """The three errors, those of the baselines, and what they rest on."""
    truth = subject.real
    reason = "no truth is known for each image" if not subject.paired else ""
    if not subject.oriented:
        reason = "these images are not maps of fibre orientation"
    if not reason and not any(np.any(o.mask) for o in orientations(truth)):
        reason = "the targets show no tissue"
    if reason:
        for name, about in _ABOUT.items():
            yield name, unavailable(_LABELS[name], about, reason)
        return
    own = orientations(subject.fake)
    if subject.orientation is not None:
        own = orientations(subject.orientation, "orientation")
    found = count(own, truth)
    yield from _summary("", found, truth.blocks)
    for name, predicted in baselines(subject).items():
        if isinstance(predicted, str):
            for kind in ERRORS:
                label = f"{_LABELS[kind]} of {name.replace('_', ' ')}"
                yield f"{kind}_{name}", unavailable(label, _ABOUT[kind], predicted)
        else:
            yield from _summary(name, count(predicted, truth), truth.blocks)
    yield "tissue_overlap", _overlap(found.shared, truth.blocks)
    yield _RELIABLE, _reliable(truth)


def _summary(baseline: str, found: Counts, blocks: np.ndarray) -> Iterator[tuple[str, Score]]:
    for kind, name in enumerate(ERRORS):
        counts = found.errors[:, kind]
        key, words = name, ""
        if baseline:
            key, words = f"{name}_{baseline}", f" of {baseline.replace('_', ' ')}"
        if not counts.any():
            reason = "no tissue is inclined by less than 60°"
            yield key, unavailable(f"{_LABELS[name]}{words}", _ABOUT[name], reason)
            continue
        first, median, third = quantiles(counts.sum(0))
        yield (
            key,
            Score(
                f"{_LABELS[name]}{words}",
                _ABOUT[name],
                median,
                _median_interval(counts, blocks),
                ideal=None if baseline else 0.0,
                n=(len(counts),),
                unit="°",
                quartiles=(first, third),
            ),
        )


def _median_interval(counts: np.ndarray, blocks: np.ndarray) -> Interval | None:
    def median(kept: np.ndarray) -> float:
        left = counts[kept].sum(0)
        return quantiles(left)[1] if left.any() else quantiles(counts.sum(0))[1]

    around = jackknife_interval(median, (blocks,))
    return around and (max(around[0], 0.0), min(around[1], 90.0))


def _overlap(shared: np.ndarray, blocks: np.ndarray) -> Score:
    around = jackknife_interval(lambda kept: _dice(shared[kept]), (blocks,))
    return Score(
        _LABELS["tissue_overlap"],
        _ABOUT["tissue_overlap"],
        _dice(shared),
        around and (max(around[0], 0.0), min(around[1], 1.0)),
        ideal=1.0,
        n=(len(shared),),
    )


def _dice(shared: np.ndarray) -> float:
    both, sizes = shared.sum(0)
    return float(2 * both / max(sizes, 1))


def _reliable(truth: ImageSet) -> Score:
    shown = (jnp.asarray((batch + 1) / 2) for batch in truth.batches(BATCH))
    read = [np.asarray(inclination_reliable(colours)) for colours in shown]
    share = np.concatenate(read).astype(np.float64)
    around = mean_interval(share, truth.blocks)
    around = around and (max(around[0], 0.0), min(around[1], 1.0))
    return Score(
        _LABELS[_RELIABLE], _ABOUT[_RELIABLE], float(share.mean()), around, n=(len(share),)
    )


@functools.partial(jax.jit, static_argnames="space")
def decoded(images: jax.Array, space: str) -> Orientation:
    """`orientation.decode`, compiled."""
    return decode(images, space)


@jax.jit
def _sums(known: Orientation) -> jax.Array:
    """Over tissue: cosine and sine of twice the direction, inclination, and pixels; `[4]`."""
    values = (jnp.cos(2 * known.direction), jnp.sin(2 * known.direction), known.inclination)
    return jnp.stack([jnp.sum(v * known.mask) for v in (*values, jnp.ones_like(known.mask))])


def _held(direction: np.ndarray, inclination: np.ndarray) -> Orientation:
    """With tissue everywhere."""
    values = (direction, inclination, np.ones(direction.shape))
    return Orientation(*(jnp.asarray(v, jnp.float32) for v in values))
