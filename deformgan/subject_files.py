"""What an evaluation judges: sets of images that lie on disk, whoever made them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from deformgan.data import arrays, folder, scaling, splits
from deformgan.data.frames import Frame, Frames
from deformgan.errors import UserError
from deformgan.log import say
from deformgan.metrics.subject import ImageSet, Subject
from deformgan.subjects import REFERENCE, UNKNOWN, drawn, warped

_LOOKED_AT = 16  # images that show whether a set is in colour


def read(paths: Mapping[str, str], config: ml_collections.ConfigDict) -> Subject:
    """Sets of images as they are on disk: 'real', 'fake' and perhaps 'train'.

    Args:
      paths: a folder, TIFF stack or .npz file for each; '' for none.
      config: its `evaluate` block, `data.channel` and `augment.oriented` are used.

    Raises:
      UserError: naming the set whose images cannot be read or are of another size or depth.
    """
    paths, settings = {flag: path for flag, path in paths.items() if path}, config.evaluate
    channel = config.data.channel
    coloured = any(_is_colour(_open(flag, path, channel, 3)) for flag, path in paths.items())
    names: dict[str, list[str]] = {}
    values: dict[str, np.ndarray] = {}
    blocks: dict[str, np.ndarray] = {}
    chosen = np.zeros(0, int)
    for flag, path in paths.items():  # one at a time: a reader may hold all its images
        frames = _open(flag, path, channel, 3 if coloured else 1)
        names[flag] = [name.partition("#")[2] or Path(name).stem for name in frames.names]
        if flag == "fake" and settings.paired:
            chosen = _partners(names["real"], names["fake"])[chosen]
        else:
            most = REFERENCE if flag == "train" else settings.count
            chosen = drawn(len(frames), min(most, settings.count), settings.seed)
        values[flag] = _read(flag, frames, chosen)
        own = np.asarray(splits.blocks(frames.recordings, frames.moments))[chosen]
        blocks[flag] = np.arange(len(chosen)) if flag == "fake" else own
        if flag == "fake" and settings.paired:
            blocks[flag] = blocks["real"]
        _check_alike(flag, values[flag], values["real"])
        say(f"{flag}: {len(chosen)} of {len(frames)} images, {path}")
    ends = [(float(x.min()), float(x.max())) for x in values.values()]
    depth = scaling.Depth.of(
        values["real"].dtype, min(low for low, _ in ends), max(high for _, high in ends)
    )
    sets = {}
    for flag in list(values):
        stored = values.pop(flag)
        if stored.dtype != depth.dtype:
            stored = np.round((stored - depth.offset) / depth.step).astype(depth.dtype)
        if flag == "real":  # cameras of 12 bits leave most of 16 unused
            limits = (0.0, 255.0)
            if depth.dtype != "uint8":
                limits = (float(stored.min()), float(max(stored.max(), stored.min() + 1)))
        sets[flag] = ImageSet(stored, *limits, blocks[flag])
    real = sets["real"]
    return Subject(
        real=real,
        fake=sets["fake"],
        train=sets.get("train"),
        seed=settings.seed,
        controls=UNKNOWN | {"source_warped": warped(real.unit(np.s_[:1]), real)},
        paired=settings.paired,
        oriented=settings.paired and coloured and bool(config.augment.oriented),
    )


def _check_alike(flag: str, images: np.ndarray, real: np.ndarray) -> None:
    """Raises `UserError` unless there are some images, of the size and depth of the real ones."""
    if len(images) < 2:
        raise UserError(f"{flag}: 1 image; give 2 or more")
    shape, wanted = images.shape[1:3], real.shape[1:3]
    if shape != wanted:
        raise UserError(f"{flag}: images of size {shape}, those of real {wanted}; resize them")
    if images.dtype != real.dtype:
        raise UserError(
            f"{flag}: images hold {images.dtype}, those of real {real.dtype}; convert them to one"
            " depth and range"
        )


def _partners(real: Sequence[str], fake: Sequence[str]) -> np.ndarray:
    """For each real image, the index of the fake of the same name, or number in its file."""
    place = {name: i for i, name in enumerate(fake)}
    alone = [name for name in real if name not in place]
    if alone or len(place) < len(fake) or len(set(real)) < len(real):
        what = f"no fake is named {alone[0]!r}" if alone else "some names occur twice"
        raise UserError(f"evaluate.paired: {what}; pairs of real and fake need equal file names")
    return np.array([place[name] for name in real])


def _open(flag: str, path: str, channel: int, channels: int) -> Frames:
    """The images at `path`; its errors start with the flag that named it."""
    config = ml_collections.ConfigDict({"path": path, "channel": channel, "channels": channels})

    def named(error: UserError) -> UserError:
        return UserError(f"{flag}: {str(error).removeprefix('data.path: ')}")

    try:
        frames: Frames = (arrays if path.endswith(".npz") else folder).read(config)
    except UserError as error:
        raise named(error) from error

    def read(i: int) -> Frame:
        try:
            return frames.read(i)
        except UserError as error:
            raise named(error) from error

    return dataclasses.replace(frames, read=read)


def _is_colour(frames: Frames) -> bool:
    """Whether some image of a few has channels that differ."""
    few = range(0, len(frames), -(-len(frames) // _LOOKED_AT))
    images = (frames.read(i).image for i in few)
    return any((image != image[..., :1]).any() for image in images)


def _read(flag: str, frames: Frames, chosen: np.ndarray) -> np.ndarray:
    """The chosen images in one array."""
    first = frames.read(chosen[0]).image
    out = np.empty((len(chosen), *first.shape), first.dtype)
    for place, i in enumerate(chosen):
        image = frames.read(i).image
        if image.shape != first.shape or image.dtype != first.dtype:
            raise UserError(
                f"{flag}: {frames.names[i]} is {image.shape} {image.dtype}, but"
                f" {frames.names[chosen[0]]} {first.shape} {first.dtype}; make them alike"
            )
        out[place] = image
    return out
