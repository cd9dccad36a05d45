"""What is judged: sets of images, and what is said of them: scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

Interval = tuple[float, float]
_FEWEST = 3  # blocks that an interval can be had from


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images as they are stored, so that all are judged at the same depth and clipping.

    Attributes:
      stored: `[N, H, W, C]` uint8 or uint16.
      low: stored value that is -1 inside the program.
      high: stored value that is 1.
      blocks: `[N]` int: images of one recording or block of time, near copies perhaps, share one.
    """

    stored: np.ndarray
    low: float
    high: float
    blocks: np.ndarray

    def __len__(self) -> int:
        return len(self.stored)

    def unit(self, which: slice | np.ndarray = np.s_[:]) -> np.ndarray:
        """Images `which` as float32 in [-1, 1]."""
        scale = np.float32(2 / (self.high - self.low))
        return (self.stored[which].astype(np.float32) - np.float32(self.low)) * scale - 1

    def take(self, which: np.ndarray) -> ImageSet:
        """The images with these indices."""
        return dataclasses.replace(self, stored=self.stored[which], blocks=self.blocks[which])

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All images in order, as float32 in [-1, 1], at most `size` at a time."""
        for first in range(0, len(self), size):
            yield self.unit(np.s_[first : first + size])

    def map(
        self,
        function: Callable[[np.ndarray], Any],
        size: int,
        step: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """The rows that a compiled function gives for all images, `[N, ...]`.

        It sees batches of one size, the last filled up, so that it is compiled once; `step` is
        called with the number of images done.
        """
        rows = []
        for batch in self.batches(size):
            padded = np.pad(batch, ((0, size - len(batch)), (0, 0), (0, 0), (0, 0)))
            rows.append(np.asarray(function(padded))[: len(batch)])
            step(len(batch))
        return np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class Score:
    """One number and what is needed to believe it.

    Attributes:
      label: in words, with the features it is made of.
      about: what it measures, in a sentence, with its source.
      value: NaN where there is a `reason` instead.
      interval: 95% confidence interval, or None where none is known.
      floor: the same number for real images against real ones, or None.
      floor_n: images of each side that the floor is made of.
      ideal: the value of a perfect generator, or None.
      n: images of each side that it is made of.
      features: name of the features, or ''.
      unit: of the value, or ''.
      spread: standard deviation over images, or None.
      quartiles: the first and the third, of a value that is a median; or None.
      curve: points (x, y, first and third quartile of y) that the value is drawn from; or none.
      reason: why it is not available, or ''.
    """

    label: str
    about: str
    value: float = float("nan")
    interval: Interval | None = None
    floor: float | None = None
    ideal: float | None = None
    n: tuple[int, ...] = ()
    features: str = ""
    unit: str = ""
    spread: float | None = None
    floor_n: tuple[int, ...] = ()
    quartiles: Interval | None = None
    curve: tuple[tuple[float, float, float, float], ...] = ()
    reason: str = ""


def unavailable(label: str, about: str, reason: str) -> Score:
    """A score that could not be computed, and why."""
    return Score(label, about, reason=f"not available: {reason}")


@dataclasses.dataclass(frozen=True)
class Features:
    """Features `[N, D]` of the sets of a `Subject`, None where it has no such set.

    Attributes:
      name: of the features, part of the name of every score made of them.
      about: how they were made.
    """

    real: np.ndarray
    fake: np.ndarray
    train: np.ndarray | None
    floor: tuple[np.ndarray, np.ndarray] | None
    name: str
    about: str = ""


class Passes(NamedTuple):
    """Fibre directions that a generator predicts of one input again and again, by chance.

    Attributes:
      which: indices `[M]` of the real images they predict.
      direction: `[M, P, H, W]` float16 radians in [0, π], of P passes; NaN where a pass has none.
    """

    which: np.ndarray
    direction: np.ndarray


@dataclasses.dataclass(frozen=True)
class Subject:
    """A generator's images beside real ones, and what a family of metrics may need to judge them.

    Attributes:
      real: held out from training and from every choice made on the way.
      fake: generated; every image a block of its own if they are independent.
      train: the real images trained on, or None if unknown.
      seed: of everything random in the evaluation.
      controls: by name, images that a test must tell from real ones, or why there are none.
      displacement: `[N, H, W, 2]` fields of the first fakes in pixels, or None.
      velocity: `[N, h, w, 2]` their stationary velocities in pixels, or None.
      train_velocity: `[M, h, w, 2]` those that were found for the training images, or None.
      paired: whether real image i is the truth that fake i should equal.
      oriented: whether colours are fibre orientations, in HSV black (deformgan/orientation.py).
      condition: of pairs, what fake i was predicted from, `[N, H, W, K]`; or None.
      train_condition: the same of the training images, as many as those; or None.
      orientation: the fakes in the space "orientation", `[N, H, W, 4]`, where they are made in it.
      passes: of a generator that predicts by chance, or None.
      notes: what the reader should know of these images, in sentences.
      floor: two sets of real images; scores of one against the other are what is possible. As
        large as `real` where there are training images, else its halves; None if too few.
      features: by name.
      missing: by name, why features are not there.
    """

    real: ImageSet
    fake: ImageSet
    train: ImageSet | None = None
    seed: int = 0
    controls: Mapping[str, ImageSet | str] = dataclasses.field(default_factory=dict)
    displacement: np.ndarray | None = None
    velocity: np.ndarray | None = None
    train_velocity: np.ndarray | None = None
    paired: bool = False
    oriented: bool = False
    condition: ImageSet | None = None
    train_condition: ImageSet | None = None
    orientation: ImageSet | None = None
    passes: Passes | None = None
    notes: tuple[str, ...] = ()
    floor: tuple[ImageSet, ImageSet] | None = None
    features: Mapping[str, Features] = dataclasses.field(default_factory=dict)
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)


def mean_interval(values: np.ndarray, blocks: np.ndarray) -> Interval | None:
    """95% interval of a mean over images whose blocks, not themselves, are independent.

    The cluster-robust standard error (Liang & Zeger 1986) of `values` `[N]` with `blocks` `[N]`;
    None of fewer than 3 blocks.
    """
    deviation = values - values.mean()
    sums = np.bincount(np.unique(blocks, return_inverse=True)[1], weights=deviation)
    count = len(sums)
    if count < _FEWEST:
        return None
    error = np.sqrt(count / (count - 1) * np.square(sums).sum()) / len(values)
    half = _student(count - 1) * error
    return float(values.mean() - half), float(values.mean() + half)


def share_interval(values: np.ndarray, blocks: np.ndarray) -> Interval | None:
    """95% interval of a share: Wilson's, of as many trials as the blocks are worth.

    Args:
      values: `[N]`, each 0 or 1.
      blocks: `[N]`; None is returned of fewer than 3.
    """
    around = mean_interval(values, blocks)
    if around is None:
        return None
    count, share = len(np.unique(blocks)), float(values.mean())
    error = (around[1] - around[0]) / 2 / _student(count - 1)
    trials = min(share * (1 - share) / error**2, len(values)) if error > 0 else count
    return wilson(share, max(trials, 1.0))


def wilson(share: float, trials: float) -> Interval:
    """Wilson's 95% interval of a share seen in so many independent trials."""
    z = float(stats.norm.ppf(0.975))
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    spread = share * (1 - share) / trials + z**2 / (4 * trials**2)
    half = z * float(np.sqrt(spread)) / (1 + z**2 / trials)
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def jackknife_interval(
    statistic: Callable[..., float], blocks: tuple[np.ndarray, ...], *, groups: int = 10
) -> Interval | None:
    """95% interval of a statistic by the delete-a-group jackknife (Efron & Stein 1981).

    Args:
      statistic: of one boolean selection `[N_i]` for each array of `blocks`.
      blocks: for each sample, the block of each image; a block is left out whole.
      groups: that the blocks are gathered in.

    Returns:
      (low, high) around the statistic of everything; None of fewer than 3 blocks.
    """
    labels = [grouped(own, groups) for own in blocks]
    count = min(int(own.max()) + 1 for own in labels)
    if count < _FEWEST:
        return None
    labels = [grouped(own, count) for own in blocks]
    whole = statistic(*(np.ones(len(own), bool) for own in labels))
    parts = np.array([statistic(*(own != g for own in labels)) for g in range(count)])
    error = np.sqrt((count - 1) / count * np.square(parts - parts.mean()).sum())
    half = _student(count - 1) * error
    return float(whole - half), float(whole + half)


def grouped(blocks: np.ndarray, count: int) -> np.ndarray:
    """Gathers whole blocks in at most `count` groups of like size; `[N]` from 0."""
    names, own, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
    room = np.zeros(min(count, len(names)))
    group = np.zeros(len(names), int)
    for block in np.argsort(-sizes, kind="stable"):
        group[block] = np.argmin(room)
        room[group[block]] += sizes[block]
    return group[own]


def _student(freedom: int) -> float:
    return float(stats.t.ppf(0.975, freedom))
