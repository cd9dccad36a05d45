"""The image that is warped: a frame of the data, by choice the one nearest to all, or simulated."""

from __future__ import annotations

import dataclasses

import ml_collections
import numpy as np
from scipy import ndimage

from deformgan.data import simulated
from deformgan.data.frames import Frame, Frames, Labels
from deformgan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Source:
    """The image that is warped: `[S, S, C]` float32 in [-1, 1], its labels, where it came from.

    `layers` are images of its structures, whose maximum it is; empty where unknown.
    """

    image: np.ndarray
    labels: Labels | None
    name: str
    layers: tuple[Source, ...] = ()


def choose(
    frames: Frames,
    train: list[int],
    fitted: np.ndarray,
    source: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
) -> tuple[str, Frame]:
    """The image that `source.image` names: auto, simulated, an index or a frame's name."""
    wanted = str(source.image)
    if wanted == "simulated":
        name = source.set or config.set
        frame = simulated.source_image(name, config.size, config.seed, config.layer)
        if config.channels != 1:
            raise UserError("source.image: simulated images are grey; set data.channels to 1")
        return f"simulated:{name}", _in_units_of(frame, fitted)
    if wanted == "auto":
        if frames.reference is not None:
            return "simulated:reference", frames.reference
        return medoid(frames, train, fitted)
    names = list(frames.names)
    if wanted in names:
        index = names.index(wanted)
    elif wanted.isdigit() and int(wanted) < len(names):
        index = int(wanted)
    else:
        raise UserError(
            f"source.image: {wanted!r} is neither 'auto', 'simulated', an index below"
            f" {len(names)} nor the name of a frame such as {names[0]!r}"
        )
    return names[index], frames.read(index)


def _in_units_of(frame: Frame, fitted: np.ndarray) -> Frame:
    """Stretches a simulated image over the intensities of the training frames."""
    low, high = np.percentile(fitted, (0.0, 99.99))
    layers = tuple(_in_units_of(layer, fitted) for layer in frame.layers)
    return dataclasses.replace(frame, image=low + frame.image / 255 * (high - low), layers=layers)


def medoid(frames: Frames, train: list[int], fitted: np.ndarray) -> tuple[str, Frame]:
    """The frame nearest to the mean of the frames `train`, whose images are `fitted`.

    They are `[N, S, S, C]`, and blurred first, so that noise does not decide.
    """
    smooth = ndimage.gaussian_filter(fitted, (0, 2, 2, 0))
    best = train[int(np.argmin(np.square(smooth - smooth.mean(0)).sum((1, 2, 3))))]
    return frames.names[best], frames.read(best)
