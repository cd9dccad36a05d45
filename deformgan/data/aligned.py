"""Aligned pairs: images that hold A in their left half and B in their right (Isola et al. 2017)."""

from __future__ import annotations

import ml_collections
import numpy as np

from deformgan.data import folder
from deformgan.data.frames import Frame, Frames
from deformgan.data.pairs import given_channels, input_of
from deformgan.errors import UserError

input_channels = given_channels  # by which it is known for a source of pairs


def read(config: ml_collections.ConfigDict) -> Frames:
    """Lists the images below `data.path`, of which one half is the input and one the target.

    `data.direction` AtoB predicts the right half from the left, BtoA the left from the right.
    Without `data.pairs` the targets come alone. Names and recordings are those of the source
    `folder`.
    """
    found = folder.listing(config.path)

    def frame(i: int) -> Frame:
        file, pages = found.places[i]
        image, colour = folder.load(file, pages)
        name = found.names[i]
        given, target = parted(image, config, name)
        return Frame(
            folder.to_channels(target, config.channel, config.channels, name, colour=colour),
            condition=input_of(given, config, name, colour=colour) if config.pairs else None,
        )

    return folder.framed(found, frame)


def parted(
    image: np.ndarray, config: ml_collections.ConfigDict, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The halves of `[H, W, ...]`: the input and the target by `data.direction`."""
    height, width = image.shape[:2]
    if width % 2:
        raise UserError(
            f"data.path: {name} is {height}x{width}; a pair side by side has an even width, two"
            " images of one size"
        )
    left, right = image[:, : width // 2], image[:, width // 2 :]
    return (left, right) if config.direction == "AtoB" else (right, left)
