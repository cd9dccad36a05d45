"""Calibration: do repeated predictions differ from each other as much as they err?

A generator that predicts by chance is calibrated if the truth is like one more of its predictions.
Then the mean angle between two passes (the spread) and between a pass and the truth (the error) are
both that between two draws, and equal, for any distribution on the circle and any number of passes;
they are the two terms of the circular ranked probability score (Grimit et al. 2006). Directions are
taken modulo 180 degrees, over the pixels that `orientation_error` judges directions in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from deformgan import blending
from deformgan.metrics import orientation_error
from deformgan.metrics.subject import Score, Subject, jackknife_interval, unavailable
from deformgan.orientation import Orientation

FEWEST = 4  # passes: two for each half
BINS = 10  # of equal counts
_PIXELS = 100_000  # that are looked at, at most
_ABOUT = {
    "calibration_slope": "slope of the error in the plane against the spread of the passes, in"
    f" {BINS} bins of equally many pixels; 1 if the spread foretells the error, above: too sure,"
    " below: it tells little. Bins by the spread of one half of the passes, both means of the"
    " other half, so that chance in the spread does not flatten the line",
    "calibration_ratio": "mean angle between a pass and the target over that between two passes;"
    " above 1: too sure of itself",
    "calibration_rank": "rank correlation (Spearman) of the spread, as a circular standard"
    " deviation, with the error of the mean direction",
    "in_plane_error_mean_of_passes": "in-plane error of the mean direction of all passes; median"
    " and quartiles over the target's tissue",
}
_LABELS = {
    "calibration_slope": "Error against spread, slope",
    "calibration_ratio": "Error over spread",
    "calibration_rank": "Error against spread, rank correlation",
    "in_plane_error_mean_of_passes": "In-plane error of the mean of passes",
}


class Pixels(NamedTuple):
    """Some pixels of tissue.

    Attributes:
      passes: directions `[N, P]`, radians, of P passes.
      truth: `[N]`, radians.
      blocks: `[N]`, of the images they are from.
    """

    passes: np.ndarray
    truth: np.ndarray
    blocks: np.ndarray


def mean_and_spread(direction: np.ndarray, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean direction, radians in [0, π), and spread, degrees, of directions modulo π.

    The spread is `blending.deviation`, at most 52 degrees.
    """
    mean = np.exp(2j * np.asarray(direction, np.float64)).mean(axis)
    return np.mod(np.angle(mean) / 2, np.pi), blending.deviation(np.abs(mean))


def pixels(subject: Subject) -> Pixels:
    """Some pixels of each image in which directions are judged and every pass has one.

    Raises:
      ValueError: if the subject has no passes.
    """
    if subject.passes is None:
        raise ValueError("subject: wanted passes, got None")
    which, made = subject.passes
    rng = np.random.default_rng(subject.seed)
    most = max(_PIXELS // len(which), 1)
    truth = subject.real.take(which)
    known = (own for batch in orientation_error.orientations(truth) for own in _directions(batch))
    parts = []
    for passes, own, block in zip(made, known, truth.blocks, strict=True):
        there = np.isfinite(own) & np.isfinite(passes).all(0)  # [H, W]
        some = rng.permutation(np.flatnonzero(there))[:most]
        rows = passes.reshape(len(passes), -1)[:, some].T.astype(np.float64)
        parts.append((rows, own.reshape(-1)[some], np.full(len(some), block)))
    return Pixels(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def _directions(known: Orientation) -> np.ndarray:
    """Directions `[b, H, W]`, NaN where they are not judged."""
    direction, inclination, mask = map(np.asarray, known)
    judged = (mask >= 0.5) & (np.abs(inclination) <= orientation_error.STEEPEST)
    return np.where(judged, direction, np.nan)


def halves(found: Pixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each half of the passes by the other: what bins are made by, spread and error, `[2 N]`.

    Degrees; the first is the spread of the other half, so that its chance errors are not those of
    the second and third.
    """
    count = found.passes.shape[1] // 2
    parts = []
    for half in (found.passes[:, :count], found.passes[:, count:]):
        pairs = itertools.combinations(range(half.shape[1]), 2)
        spread = np.mean([_apart(half[:, i], half[:, j]) for i, j in pairs], 0)
        parts.append((spread, _apart(half, found.truth[:, None]).mean(1)))
    (first, first_error), (second, second_error) = parts
    key, spread = np.concatenate([first, second]), np.concatenate([second, first])
    return key, spread, np.concatenate([second_error, first_error])


def curve(
    key: np.ndarray, spread: np.ndarray, error: np.ndarray
) -> tuple[tuple[float, float, float, float], ...]:
    """Mean spread, mean error and quartiles of the error in bins of equal counts by `key`."""
    points = []
    for own in np.array_split(np.argsort(key, kind="stable"), BINS):
        low, high = (float(q) for q in np.quantile(error[own], (0.25, 0.75)))
        points.append((float(spread[own].mean()), float(error[own].mean()), low, high))
    return tuple(points)


def slope(key: np.ndarray, spread: np.ndarray, error: np.ndarray) -> float:
    """Of the line through the bins of `curve`."""
    points = np.array(curve(key, spread, error))
    away = points[:, 0] - points[:, 0].mean()
    return float(np.sum(away * points[:, 1]) / max(np.sum(np.square(away)), 1e-12))


def score(subject: Subject) -> Iterator[tuple[str, Score]]:
    """Slope with its curve, ratio, rank correlation, and the error of the mean direction."""
    reason = "" if subject.oriented else "these images are not maps of fibre orientation"
    if subject.passes is None:
        reason = reason or "one pass alone was made (evaluate.passes, model.dropout)"
    elif subject.passes.direction.shape[1] < FEWEST:
        reason = reason or f"{subject.passes.direction.shape[1]} passes; {FEWEST} are the least"
    if subject.passes is not None and not reason:
        found, n = pixels(subject), (len(subject.passes.which),)
        if len(found.truth) >= 10 * BINS and np.ptp(found.passes, 1).max() > 0:
            yield from _of_spread(found, n)
            yield from _of_mean(found, n)
            return
        reason = "the targets show too little tissue, or the passes do not differ"
    for name, about in _ABOUT.items():
        yield name, unavailable(_LABELS[name], about, reason)


def _of_spread(found: Pixels, n: tuple[int]) -> Iterator[tuple[str, Score]]:
    key, spread, error = halves(found)
    blocks = np.tile(found.blocks, 2)

    def ratio(kept: np.ndarray) -> float:
        return float(error[kept].mean() / max(spread[kept].mean(), 1e-12))

    def tilt(kept: np.ndarray) -> float:
        return slope(key[kept], spread[kept], error[kept])

    for name, of, drawn in (
        ("calibration_slope", tilt, curve(key, spread, error)),
        ("calibration_ratio", ratio, ()),
    ):
        whole, around = of(np.ones(len(blocks), bool)), jackknife_interval(of, (blocks,))
        yield name, Score(_LABELS[name], _ABOUT[name], whole, around, ideal=1.0, n=n, curve=drawn)


def _of_mean(found: Pixels, n: tuple[int]) -> Iterator[tuple[str, Score]]:
    mean, width = mean_and_spread(found.passes, 1)
    away = _apart(mean, found.truth)
    name = "calibration_rank"
    around = jackknife_interval(lambda kept: _rank(width[kept], away[kept]), (found.blocks,))
    yield name, Score(_LABELS[name], _ABOUT[name], _rank(width, away), around, n=n)
    name = "in_plane_error_mean_of_passes"
    first, median, third = (float(q) for q in np.quantile(away, (0.25, 0.5, 0.75)))
    around = jackknife_interval(lambda kept: float(np.median(away[kept])), (found.blocks,))
    more: dict[str, Any] = {"unit": "°", "quartiles": (first, third)}
    yield name, Score(_LABELS[name], _ABOUT[name], median, around, ideal=0.0, n=n, **more)


def _rank(width: np.ndarray, away: np.ndarray) -> float:
    """Spearman's correlation; 0 where one of the two does not vary."""
    if min(np.ptp(width), np.ptp(away)) == 0:
        return 0.0
    return float(stats.spearmanr(width, away).statistic)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees in [0, 90] between directions modulo π."""
    return np.degrees(np.abs(np.mod(a - b + np.pi / 2, np.pi) - np.pi / 2))
