"""The strips along the borders of images that no camera recorded.

Frames that are not square are padded with one level each (data/geometry.py); stitched or turned
ones come with black borders. Such strips are flatter than any background: taken for one, they would
make the noise seem weaker, or correlated. They hold no noise in new images either.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from deformgan.errors import UserError, require_shape

_FEWEST = 16  # pixels a side that noise can be estimated from
_LEVELS = 256  # of strips that are kept, at most


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The rectangle that was recorded: rows and columns, from the first to before the last."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    size: int

    @property
    def whole(self) -> bool:
        """Whether nothing was padded."""
        return self.rows == self.columns == (0, self.size)

    def cut(self, images: np.ndarray) -> np.ndarray:
        """The rectangle of `[N, S, S]` images."""
        return images[:, slice(*self.rows), slice(*self.columns)]

    def paste(self, cut: np.ndarray) -> np.ndarray:
        """The inverse of `cut`, 0 in the strips."""
        ends = [(first, self.size - last) for first, last in (self.rows, self.columns)]
        return np.pad(cut, [(0, 0), *ends])

    def frame(self, images: np.ndarray) -> np.ndarray:
        """For `Camera.frame`: the rectangle, and the levels of the strips of `[N, S, S]` images."""
        strips = np.ones((self.size, self.size), bool)
        strips[slice(*self.rows), slice(*self.columns)] = False
        some = images[np.unique(np.linspace(0, len(images) - 1, _LEVELS).astype(int))]
        return np.array([*self.rows, *self.columns, *some[:, strips].mean(1)], np.float32)


def recorded(images: np.ndarray) -> Recorded:
    """Finds the rectangle outside of which every row and column of `[N, S, S]` images is constant.

    Raises:
      UserError: if hardly anything is left.
    """
    require_shape("images", images, (None, None, images.shape[1]))
    size, ends = images.shape[1], []
    for axis in (2, 1):
        varied = np.flatnonzero(np.ptp(images, axis=axis).any(0))
        ends.append((int(varied[0]), int(varied[-1]) + 1) if len(varied) else (0, size))
    rows, columns = ends
    if min(last - first for first, last in ends) < _FEWEST:
        raise UserError(
            f"data.aspect: of images of {size}x{size} pixels only rows {rows[0]} to {rows[1] - 1},"
            f" columns {columns[0]} to {columns[1] - 1} are not of one level; set it to crop, raise"
            " data.size, or check data.path"
        )
    return Recorded(rows, columns, size)
