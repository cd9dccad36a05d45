"""What frames are like before anything is made of them: how deep, and whether all of one size."""

from __future__ import annotations

from typing import NamedTuple

import ml_collections
import numpy as np

from deformgan.data.frames import Frames
from deformgan.data.scaling import Depth
from deformgan.errors import UserError

MANY = 1000  # frames of a set too large to hold that limits are taken from
_MIB = 2**20


class Depths(NamedTuple):
    """How values are held as unsigned integers: those of images and, of pairs, of conditions."""

    image: Depth
    condition: Depth | None


def survey(frames: Frames, config: ml_collections.ConfigDict) -> Depths:
    """How the frames' values are held as unsigned integers.

    Reads all frames (some, of a prepared set too large to hold).

    Raises:
      UserError: if they differ in depth, or in size without a policy for it, or an image from its
        condition.
    """
    step = 1
    first = frames.read(0)
    if frames.surveyed and len(frames) * first.nbytes > config.memory_mib * _MIB:
        step = -(-len(frames) // MANY)
    images, conditions = _Range(frames.names[0]), _Range(f"the input of {frames.names[0]}")
    odd: list[int] = []
    for i in range(0, len(frames), step):
        frame, name = frames.read(i), frames.names[i]
        images.include(frame.image, name)
        if frame.image.shape != first.image.shape:
            odd.append(i)
        if frame.condition is None:
            continue
        if frame.condition.shape[:2] != frame.image.shape[:2]:
            raise UserError(
                f"data.path: {name} is {_size(frame.image)}, but its input"
                f" {_size(frame.condition)}; a pair has one size"
            )
        conditions.include(frame.condition, f"the input of {name}")
    if odd and config.mixed_sizes == "refuse":
        raise UserError(
            f"data.path: mixed sizes: {len(odd)} of {len(frames)} images are not"
            f" {_size(first.image)} (first: {frames.names[odd[0]]} is"
            f" {_size(frames.read(odd[0]).image)}); set data.mixed_sizes=fit to fit each by"
            " data.aspect, or data.screen=drop to leave out those of unusual size"
        )
    return Depths(images.depth(), None if first.condition is None else conditions.depth())


class _Range:
    """The type and the limits of the values seen so far."""

    def __init__(self, first: str) -> None:
        self._first, self._dtype = first, np.dtype(np.uint8)
        self._low, self._high = np.inf, -np.inf

    def include(self, image: np.ndarray, name: str) -> None:
        """Raises `UserError` naming an image of another type than the first."""
        if self._low > self._high:
            self._dtype = image.dtype
        if image.dtype != self._dtype:
            raise UserError(
                f"data.path: mixed depths: {self._first} holds {self._dtype}, {name}"
                f" {image.dtype}; convert them to one"
            )
        self._low = min(self._low, float(image.min()))
        self._high = max(self._high, float(image.max()))

    def depth(self) -> Depth:
        return Depth.of(self._dtype, self._low, self._high)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
