"""Pairs: an image and the one it is to be predicted from, which is called its input."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np

from deformgan.data import folder
from deformgan.data.rasters import CHANNELS
from deformgan.data.scaling import Scaling
from deformgan.errors import UserError, choose, offering, resolve

_MOST = 4  # channels of an input: those of a PNG


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The inputs of pairs, `[S, S, K]` float32 in [-1, 1], one to one with a dataset's images.

    Attributes:
      train: by index: one array if the dataset's is, else read anew.
      validation: `[N, S, S, K]`.
      test: by index, read anew each time.
      scaling: how their intensities map to the input's units, all channels alike.
    """

    train: Sequence[np.ndarray] | np.ndarray
    validation: np.ndarray
    test: Sequence[np.ndarray]
    scaling: Scaling


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a setting of the `data` block about pairs that does not fit."""
    choose("data.direction", config.direction, ("AtoB", "BtoA"))
    if config.direction == "BtoA" and config.source != "aligned":
        raise UserError(
            f"data.direction: BtoA, but only data.source=aligned has a left and a right half, not"
            f" {config.source}; leave it AtoB"
        )
    if config.input_path and config.source != "folders":
        raise UserError(
            f"data.input_path: only data.source=folders has its inputs apart, not {config.source};"
            " leave it ''"
        )
    if not config.pairs:
        return
    reader = resolve("data.source", "deformgan.data", config.source, "read")
    if not hasattr(reader, "input_channels"):
        raise UserError(
            f"data.pairs: {config.source} has no pairs; set data.source to one of"
            f" {', '.join(offering('deformgan.data', 'input_channels'))}, or data.pairs to False"
        )
    if by_modality(config):
        modalities(config)
    if config.blur:
        raise UserError(f"data.blur: {config.blur}; pairs are not blurred, set it to 0")
    if not 1 <= config.input_channels <= _MOST:
        raise UserError(
            f"data.input_channels: {config.input_channels}; inputs have 1 to {_MOST} channels"
        )


def channels(config: ml_collections.ConfigDict) -> int:
    """How many channels the inputs have, by the `data` block alone; 0 without pairs."""
    if not config.pairs:
        return 0
    reader = resolve("data.source", "deformgan.data", config.source, "input_channels")
    count: int = reader.input_channels(config)
    return count


def by_modality(config: ml_collections.ConfigDict) -> bool:
    """Whether the source's inputs are the modalities `data.inputs`; False without pairs."""
    if not config.pairs:
        return False
    reader = resolve("data.source", "deformgan.data", config.source, "input_channels")
    return reader.input_channels is modality_channels


def given_channels(config: ml_collections.ConfigDict) -> int:
    """The channels of inputs that are made to have so many: `data.input_channels`."""
    return int(config.input_channels)


def modality_channels(config: ml_collections.ConfigDict) -> int:
    """The channels of inputs that are the modalities `data.inputs`."""
    return sum(CHANNELS[name] for name in modalities(config))


def modalities(config: ml_collections.ConfigDict) -> list[str]:
    """The names in `data.inputs` (none without pairs); `UserError` for one unknown or twice."""
    names = [name.strip() for name in config.inputs.split(",")] if config.pairs else []
    for name in names:
        choose("data.inputs", name, tuple(m for m in CHANNELS if m != config.modality))
        if names.count(name) > 1:
            raise UserError(f"data.inputs: {config.inputs} has {name} twice; give each once")
    return names


def apart(images: np.ndarray, config: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    """Inputs `[..., K]` by name where they may have different units: modalities, or channels.

    Grey and colour are one, of no name.
    """
    count = images.shape[-1]
    if by_modality(config):
        sizes = {name: CHANNELS[name] for name in modalities(config)}
    elif count in (1, 3):
        return {"": images}
    else:
        sizes = {f"channel {i}": 1 for i in range(count)}
    ends = np.cumsum(list(sizes.values()))[:-1]
    return dict(zip(sizes, np.split(images, ends, -1), strict=True))


def lose_colour(config: ml_collections.ConfigDict) -> bool:
    """Whether the first input is a colour image that `data.input_channels` makes grey."""
    if not config.pairs or by_modality(config) or config.input_channels != 1:
        return False
    reader = resolve("data.source", "deformgan.data", config.source, "read")
    coloured = ml_collections.ConfigDict(config.to_dict())
    coloured.input_channels = 3
    return bool(np.ptp(reader.read(coloured).read(0).condition, axis=-1).any())


def input_of(
    image: np.ndarray, config: ml_collections.ConfigDict, name: str, *, colour: bool
) -> np.ndarray:
    """An input `[H, W]` or `[H, W, K]` as `[H, W, data.input_channels]`, colour as luminance."""
    have, wanted = 1 if image.ndim == 2 else image.shape[-1], config.input_channels
    if have not in (1, wanted) and not (colour and (have, wanted) == (3, 1)):
        raise UserError(
            f"data.input_channels: {wanted}, but the input {name} has {have} channels; set it to"
            " that"
        )
    return folder.to_channels(image, -1, wanted, name, colour=colour)
