"""What a data source gives: named frames, read one at a time, some with labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Labels:
    """Annotations of one image.

    Attributes:
      mask: `[H, W]` int32 instance labels, 0 for background; or None where only points exist.
      points: `[P, 2]` float (row, column) in pixels.
      ids: `[P]` int, one identity a point.
    """

    mask: np.ndarray | None
    points: np.ndarray
    ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image `[H, W, C]` in the depth and units it was stored in, and its labels if any.

    Attributes:
      image: the image.
      labels: its annotations, or None.
      layers: images of its structures, whose maximum is this image; empty where unknown.
      condition: `[H, W, K]`, of a pair: the image that this one is to be predicted from; or None.
    """

    image: np.ndarray
    labels: Labels | None = None
    layers: tuple[Frame, ...] = ()
    condition: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """The size in memory of its image and its condition."""
        return self.image.nbytes + (0 if self.condition is None else self.condition.nbytes)


@dataclasses.dataclass(frozen=True)
class Frames:
    """The frames of a data source, in time order within each recording.

    Attributes:
      names: one a frame, unique: a file's path below `data.path`, `#page` added in a stack.
      recordings: one a frame: the recording, or the unbroken stretch of one, it belongs to.
      moments: what was taken at the same moment (the z ranges of a volume) has the same number;
        such frames are never parted by a split.
      read: the frame with a given index; raises `UserError` naming the file if it is unreadable.
      reference: a source image that comes with the data (the simulator's), or None.
      splits: 'train', 'validation' or 'test' for each frame where the data come split, else None.
      surveyed: whether the frames were screened when this set was made.
      skipped: what was found and left alone, in words, to be shown to the user.
    """

    names: Sequence[str]
    recordings: Sequence[str]
    moments: Sequence[int]
    read: Callable[[int], Frame]
    reference: Frame | None = None
    splits: Sequence[str] | None = None
    surveyed: bool = False
    skipped: str = ""

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> Frames:
        """The frames with these indices, in this order."""
        whole = self.read

        def read(i: int) -> Frame:
            return whole(indices[i])

        return dataclasses.replace(
            self,
            names=[self.names[i] for i in indices],
            recordings=[self.recordings[i] for i in indices],
            moments=[self.moments[i] for i in indices],
            splits=None if self.splits is None else [self.splits[i] for i in indices],
            read=read,
        )
