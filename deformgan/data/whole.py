"""Whole images and sections as the inputs of a trained run, read a few rows at a time."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image

from deformgan.data import aligned, folder, geometry, pairs, rasters
from deformgan.data.rasters import HDF5, NIFTI, TIFF
from deformgan.data.scaling import Depth
from deformgan.errors import UserError

KINDS = {"hdf5": HDF5, "tiff": TIFF, "nifti": NIFTI, "png": folder.STILLS}
_UNFITTED = geometry.Fit((1.0, 1.0), (0, 0))
_ALIKE = 0.1  # relative difference of proportions, which are known to a fitted pixel


@dataclasses.dataclass(frozen=True)
class Whole:
    """An image, of one file or of a file for each modality.

    Attributes:
      files: where it is.
      kind: of the files, one of `KINDS`.
      level: of their pyramids, 0 the finest.
      shape: (rows, columns, channels).
      colour: whether three channels are a colour.
      rows: (first, after the last) -> `[h, W, C]` in the files' units.
      remarks: what was made of the file for that, in words.
    """

    files: tuple[Path, ...]
    kind: str
    level: int
    shape: tuple[int, int, int]
    colour: bool
    rows: Callable[[int, int], np.ndarray]
    remarks: tuple[str, ...] = ()


def kind_of(file: Path) -> str:
    """The kind of a file by its suffix, or ''."""
    return next((kind for kind, ends in KINDS.items() if file.name.lower().endswith(ends)), "")


def suffix_of(file: Path) -> str:
    """The suffix that its kind is known by, as written: both of a packed file."""
    ends = [end for end in KINDS[kind_of(file)] if file.name.lower().endswith(end)]
    return file.name[-len(max(ends, key=len)) :]


def open_whole(
    files: Sequence[Path],
    data: ml_collections.ConfigDict,
    depth: Depth,
    *,
    level: int,
    fit: geometry.Fit = _UNFITTED,
) -> Whole:
    """Opens what a run of pairs is to translate.

    A PNG or JPEG is made into what training made of its frames. Of a run of `data.source=aligned`,
    one twice as wide as a frame, in proportion, is a pair: the half that is the input is taken. It
    is resized as the frames were; with `data.mixed_sizes=fit`, to `data.size` by its own size.

    Args:
      files: of the modalities `data.inputs`, in their order; one file where inputs are no
        modalities.
      data: the run's `data` block.
      depth: of the inputs that it was trained on.
      level: of the pyramid.
      fit: of the frames it was trained on.

    Raises:
      UserError: naming the file that is unreadable, or lacks the level, or differs from the run's
        inputs in channels or depth, or would have to be cut or resized and is no PNG or JPEG.
    """
    by_modality = pairs.by_modality(data)
    names = pairs.modalities(data) if by_modality else [""] * len(files)
    if len(files) != len(names):
        raise UserError(
            f"input: {len(files)} files ({', '.join(map(str, files))}), but the run's inputs are"
            f" {' and '.join(names)}; give a file of each, in this order, joined by commas"
        )
    kinds = {kind_of(file) for file in files}
    if len(kinds) > 1:
        raise UserError("input: files of several kinds; give one kind for all modalities")
    for file in files:
        if not kind_of(file) or not file.is_file():
            looked = ", ".join(suffix for ends in KINDS.values() for suffix in ends)
            fault = "does not exist" if not file.exists() else f"is none of {looked}"
            raise UserError(f"input: {file} {fault}; give an image")
    parts = [_open(f, n, level, data, fit) for f, n in zip(files, names, strict=True)]
    if not by_modality and len(files) == 1:
        parts = [_made_to_fit(parts[0], data)]
    for file, part in zip(files, parts, strict=True):
        _check_depth(file, part.rows(0, 1).dtype, depth)
        if part.shape[:2] != parts[0].shape[:2]:
            (h, w), (own, across) = parts[0].shape[:2], part.shape[:2]
            raise UserError(
                f"input: {file} has {own}x{across} pixels, {files[0]} {h}x{w}; the modalities of a"
                " section must match pixel by pixel"
            )

    def rows(first: int, last: int) -> np.ndarray:
        return np.concatenate([part.rows(first, last) for part in parts], -1)

    channels, wanted = sum(part.shape[2] for part in parts), pairs.channels(data)
    if channels != wanted:
        raise UserError(
            f"input: {channels} channels together, but the run's inputs have {wanted}; give the"
            " files of its inputs, joined by commas"
        )
    shape = (*parts[0].shape[:2], channels)
    return dataclasses.replace(parts[0], files=tuple(files), shape=shape, rows=rows)


def _open(
    file: Path, modality: str, level: int, data: ml_collections.ConfigDict, fit: geometry.Fit
) -> Whole:
    """One file; that of a modality must have its channels."""
    remarks: tuple[str, ...] = ()
    if kind_of(file) == "png":
        if level:
            raise UserError(f"{file}: no level {level:02d}, it is no pyramid; set --level=0")
        image, colour = folder.load(file)
        image = image[..., None] if image.ndim == 2 else image
        image, remarks = _as_trained(image, file, data, fit)
        shape, rows = image.shape, functools.partial(_cut, image)
    else:
        shape, read = rasters.look_up(file, level)
        if _is_pair(shape, data, fit):
            raise UserError(
                f"{file}: as wide as two images side by side; give the half that is the input, or"
                " both as PNG (those are cut here)"
            )
        scale = _scale(shape, data, fit)
        if scale != (1.0, 1.0):
            raise UserError(
                f"{file}: the run was trained on images resized by {scale[0]:.4g}; give it resized"
                " likewise, or as PNG (those are resized here)"
            )
        rows, colour = functools.partial(_read, read, shape), shape[2] == 3
    if modality and shape[2] != rasters.CHANNELS[modality]:
        raise UserError(
            f"{file}: {shape[2]} channels, but {modality}, an input of the run, has"
            f" {rasters.CHANNELS[modality]}"
        )
    return Whole((file,), kind_of(file), level, shape, colour, rows, remarks)


def _as_trained(
    image: np.ndarray, file: Path, data: ml_collections.ConfigDict, fit: geometry.Fit
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The part of `[H, W, C]` that is the input, resized, and what is to be said of that."""
    remarks = []
    if _is_pair(image.shape, data, fit):
        image, _ = aligned.parted(image, data, str(file))
        side = "left" if data.direction == "AtoB" else "right"
        remarks.append(f"its {side} half is taken, the input by data.direction={data.direction}")
    elif data.source == "aligned":
        remarks.append("taken for an input alone: it is not as wide as a pair side by side")
    scale = _scale(image.shape, data, fit)
    resized = _resized(image, scale)
    if scale != (1.0, 1.0):
        by = " x ".join(dict.fromkeys(f"{s:.2g}" for s in scale))
        (h, w), (rows, columns) = image.shape[:2], resized.shape[:2]
        remarks.append(f"resized by {by}, from {h}x{w} to {rows}x{columns}, as in training")
    return resized, tuple(remarks)


def _is_pair(shape: tuple[int, ...], data: ml_collections.ConfigDict, fit: geometry.Fit) -> bool:
    """Whether a file holds two images side by side, each in proportion as those trained on."""
    if data.source != "aligned" or shape[1] % 2:
        return False
    rows, columns = ((data.size - 2 * o) / s for o, s in zip(fit.offset, fit.scale, strict=True))
    return bool(abs(shape[1] / shape[0] / (2 * columns / rows) - 1) < _ALIKE)


def _scale(
    shape: tuple[int, ...], data: ml_collections.ConfigDict, fit: geometry.Fit
) -> tuple[float, float]:
    """(row, column) magnification of an image of this shape, as training would fit it."""
    if data.mixed_sizes == "fit" and not pairs.by_modality(data):
        return geometry.fit_to(shape, data.size, data.aspect).scale
    return fit.scale


def _made_to_fit(image: Whole, data: ml_collections.ConfigDict) -> Whole:
    """The image with the channels that training made of such: colour as luminance, grey as is."""

    def rows(first: int, last: int) -> np.ndarray:
        part = image.rows(first, last)
        return pairs.input_of(part, data, str(image.files[0]), colour=image.colour)

    shape = (*image.shape[:2], rows(0, 1).shape[-1])
    return dataclasses.replace(image, shape=shape, rows=rows)


def _cut(image: np.ndarray, first: int, last: int) -> np.ndarray:
    return image[first:last]


def _read(read: rasters.Cut, shape: tuple[int, int, int], first: int, last: int) -> np.ndarray:
    return read(first, 0, last - first, shape[1])


def _resized(image: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """As `geometry.fitted` resamples frames, back in the depth of the image."""
    if scale == (1.0, 1.0):
        return image
    rows, columns = (max(1, round(n * s)) for n, s in zip(image.shape[:2], scale, strict=True))
    planes = [
        Image.fromarray(plane.astype(np.float32)).resize((columns, rows), Image.Resampling.BILINEAR)
        for plane in np.moveaxis(image, -1, 0)
    ]
    resized = np.stack([np.asarray(plane) for plane in planes], -1)
    whole = np.issubdtype(image.dtype, np.integer)
    return (np.round(resized) if whole else resized).astype(image.dtype)


def _check_depth(file: Path, dtype: np.dtype, depth: Depth) -> None:
    """Raises `UserError` if values of a type cannot be in the units that a run was trained on."""
    whole = depth.step == 1
    if dtype.name in ("uint8", "uint16"):
        fits = whole and depth.offset == 0 and depth.dtype == dtype.name
    else:
        fits = np.issubdtype(dtype, np.integer) == whole
    if not fits:
        of_run = depth.dtype if whole else "floating-point numbers"
        raise UserError(f"{file}: holds {dtype}, but the run was trained on {of_run}; convert it")
