"""Reading a label image: the masks of a frame that comes without any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import ndimage

from deformgan.data import folder
from deformgan.data.frames import Labels
from deformgan.errors import UserError


def check(path: str) -> None:
    """Raises `UserError` if `source.mask` names a file that is not there."""
    if path and not Path(path).expanduser().is_file():
        raise UserError(f"source.mask: no file {path}; give a PNG or TIFF label image")


def labels_in(path: str, shape: tuple[int, ...]) -> Labels:
    """The labels of a frame `[H, W, ...]` from a PNG or TIFF of its size.

    Args:
      path: grey levels are identities, 0 is background.
      shape: of the frame, as stored.

    Returns:
      its masks, and a point in the middle of each.

    Raises:
      UserError: naming the file, if it is missing, in colour, of another size or empty.
    """
    check(path)
    image, _ = folder.load(Path(path).expanduser())
    if image.shape != shape[:2]:
        raise UserError(
            f"source.mask: {path} is {_size(image.shape)}, the source image {_size(shape[:2])};"
            " labels must have one channel and the source's size"
        )
    mask = np.rint(image).astype(np.int32)
    ids = np.unique(mask[mask > 0])
    if not np.array_equal(mask, image) or mask.min() < 0 or not len(ids):
        raise UserError(
            f"source.mask: {path} holds no labels: its grey levels must be whole numbers, 0 for"
            " background and one above it for each structure"
        )
    centres = ndimage.center_of_mass(mask > 0, mask, ids)
    return Labels(mask, np.array(centres, np.float64).reshape(-1, 2), ids)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
