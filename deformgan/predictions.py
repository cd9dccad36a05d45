"""What is judged of paired translation beside its images: inputs, orientations, repeated passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan.data.pipeline import Dataset
from deformgan.gallery import ErrorMaps, Pictures
from deformgan.log import Advance
from deformgan.metrics import orientation_error
from deformgan.metrics.subject import ImageSet, Passes, Subject
from deformgan.objectives.contract import Samples

_PASSES_OF = 256  # inputs, at most, that are predicted again and again
_LEVELS = 65535  # that orientations are held in
_BRIGHT = 99.5  # percentile of differences that the last colour of a map stands for


class Chosen(Sequence[np.ndarray]):
    """Some of a sequence of images, in any order and as often as one likes; read when asked for."""

    def __init__(self, images: Sequence[np.ndarray] | np.ndarray, which: np.ndarray) -> None:
        self._images, self._which = images, which

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return np.stack([self._images[k] for k in self._which[i]])
        return self._images[self._which[i]]


def oriented(config: ml_collections.ConfigDict) -> bool:
    """Whether the colours of a run's images are fibre orientations."""
    return bool(config.augment.oriented) and config.data.channels == 3


def inputs(dataset: Dataset, split: str, chosen: np.ndarray) -> ImageSet | None:
    """What frames `chosen` of a split are predicted from, at its own depth; None without pairs."""
    if dataset.conditions is None:
        return None
    images, scale = getattr(dataset.conditions, split), dataset.conditions.scaling
    stored = np.concatenate([scale.outward(images[i])[None] for i in chosen])
    blocks = np.asarray(dataset.split["blocks"][split], int)[chosen]
    return ImageSet(stored, *scale.stored_limits(), blocks)


def held_orientations(values: np.ndarray) -> np.ndarray:
    """Images `[N, H, W, 4]` in [-1, 1] of the space "orientation" as uint16."""
    unit = (np.clip(np.asarray(values, np.float32), -1, 1) + 1) / 2
    return np.round(unit * _LEVELS).astype(np.uint16)


def orientation_set(stored: np.ndarray | None, blocks: np.ndarray) -> ImageSet | None:
    """What `held_orientations` gave, as a set; None of None."""
    return None if stored is None else ImageSet(stored, 0.0, float(_LEVELS), blocks)


def repeated(count: int, passes: int) -> np.ndarray:
    """Which of `count` inputs are predicted `passes` times, `[M * passes]`, one after the other."""
    some = np.linspace(0, count - 1, min(count, _PASSES_OF)).round().astype(int)
    return np.repeat(some, passes)


def gathered(parts: Iterable[Samples], which: np.ndarray, passes: int, advance: Advance) -> Passes:
    """The directions that samples show, of inputs as `repeated` gives them.

    Args:
      parts: samples of those inputs, in this order.
      which: as `repeated` gives it.
      passes: as given there.
      advance: called with the number of samples of each part.
    """
    found = []
    for part in parts:
        made, space = part.images, "rgb"
        if "orientation" in part.fields:
            made, space = part.fields["orientation"], "orientation"
        seen = jax.device_get(orientation_error.decoded(jnp.asarray(made), space))
        found.append(np.where(seen.mask >= 0.5, seen.direction, np.nan).astype(np.float16))
        advance(len(found[-1]))
    directions = np.concatenate(found)
    return Passes(which[::passes], directions.reshape(-1, passes, *directions.shape[1:]))


def error_maps(subject: Subject) -> ErrorMaps:
    """Where the fakes of pairs err: angles between fibres in space, or grey levels of 255."""
    if not subject.oriented:
        apart = np.abs(subject.fake.unit() - subject.real.unit()).mean(-1) * 127.5
        top = max(float(np.ceil(np.percentile(apart, _BRIGHT))), 1.0)
        about = "mean absolute difference over channels, in grey levels of 255"
        return ErrorMaps(apart, top, about, "")
    made, space = subject.fake, "rgb"
    if subject.orientation is not None:
        made, space = subject.orientation, "orientation"
    known = orientation_error.orientations(subject.real)
    pairs = zip(orientation_error.orientations(made, space), known, strict=True)
    apart = np.concatenate([np.asarray(orientation_error.angles(*pair).axial) for pair in pairs])
    about = "angle between fibres in space, inclinations without their sign; grey: no tissue"
    return ErrorMaps(apart, 90.0, about, "°")


def gallery(subject: Subject, most: int) -> Pictures:
    """Some pairs from beginning to end, at most `most`, and the maps of their errors."""
    if subject.condition is None:
        raise ValueError("subject.condition: wanted the inputs of the pairs, got None")
    some = np.linspace(0, len(subject.fake) - 1, min(len(subject.fake), most)).round().astype(int)
    taken = dataclasses.replace(
        subject,
        real=subject.real.take(some),
        fake=subject.fake.take(some),
        orientation=None if subject.orientation is None else subject.orientation.take(some),
    )
    return Pictures(
        real=eight_bits(taken.real),
        generated=eight_bits(taken.fake),
        condition=_side_by_side(eight_bits(subject.condition.take(some))),
        error=error_maps(taken),
    )


def eight_bits(images: ImageSet) -> np.ndarray:
    """All images as they are looked at: uint8 `[N, H, W, C]`, clipped to what becomes [-1, 1]."""
    return np.round((np.clip(images.unit(), -1, 1) + 1) * 127.5).astype(np.uint8)


def _side_by_side(images: np.ndarray) -> np.ndarray:
    """Channels that make no colour, `[N, H, W, K]`, as one grey image `[N, H, K W, 1]`."""
    if images.shape[-1] in (1, 3):
        return images
    return np.concatenate(np.split(images, images.shape[-1], -1), 2)
