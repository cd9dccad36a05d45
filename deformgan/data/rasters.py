"""Sections too large to hold, read tile by tile: HDF5 pyramids, TIFF, NIfTI, folders of tiles."""

from __future__ import annotations

import dataclasses
import gzip
import math
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import ml_collections
import numpy as np
import tifffile
from numpy.lib.recfunctions import structured_to_unstructured

from deformgan.data import folder
from deformgan.data.folder import READ_ERRORS, brief
from deformgan.errors import UserError

HDF5 = (".h5", ".hdf5")
TIFF = (".tif", ".tiff")
NIFTI = (".nii", ".nii.gz")
CHANNELS = {"fom": 3, "transmittance": 1, "retardation": 1}  # of each modality
_MOST_BYTES = 2**27  # of one compressed piece, which must be unpacked whole for any pixel of it
_MOST_OPEN = 64  # HDF5 files held open, each with
_CACHE = 2**24  # bytes of unpacked chunks
_holders: weakref.WeakSet[_Dataset] = weakref.WeakSet()  # of these files

Tile = Callable[[int, int], np.ndarray]
Cut = Callable[[int, int, int, int], np.ndarray]  # row, column, height, width of what is read


@dataclasses.dataclass(frozen=True)
class Raster:
    """One image of a section, of which tiles are read.

    Attributes:
      file: where it is.
      shape: (rows, columns, channels); of a folder of tiles, (tiles, 1, channels).
      unit: rows and columns that a tile takes of that: its size in pixels; 1 in a folder of tiles.
      tile: (row, column) of its first pixel -> `[size, size, channels]`; raises `UserError` if it
        is unreadable. May be called by several threads at once.
      names: of the tiles of a folder.
    """

    file: Path
    shape: tuple[int, int, int]
    unit: int
    tile: Tile
    names: Sequence[str] = ()

    def label(self, row: int, column: int) -> str:
        """Names a tile, without a comma: lists of names are joined by them."""
        return self.names[row] if self.names else f"r{row}c{column}"


def open_raster(file: Path, modality: str, config: ml_collections.ConfigDict) -> Raster:
    """Looks up shape and layout; pixels are read when asked for.

    Args:
      file: of a type above, or a folder of images.
      modality: one of `CHANNELS`.
      config: the `data` block: `level` of the pyramid, 0 the finest (files without a pyramid have
        that alone), and `size` of a tile.

    Raises:
      UserError: naming the file, if it is unreadable, lacks the level, has a wrong number of
        channels or is smaller than a tile.
    """
    channels, level, size = CHANNELS[modality], config.level, config.size
    if file.is_dir():
        return _tile_folder(file, channels, config)
    shape, read = look_up(file, level)
    if shape[2] != channels:
        kind = "a fibre orientation map" if modality == "fom" else modality
        raise UserError(
            f"{file}: {shape[0]}x{shape[1]} pixels of {shape[2]} channels; {kind} has {channels}"
        )
    if min(shape[:2]) < size:
        raise UserError(
            f"{file}: {shape[0]}x{shape[1]} pixels at level {level}, smaller than a tile of {size};"
            " choose a finer data.level or a smaller data.size"
        )

    return Raster(file, shape, size, lambda row, column: read(row, column, size, size))


def look_up(file: Path, level: int) -> tuple[tuple[int, int, int], Cut]:
    """The shape (rows, columns, channels) of a file's image, and what reads parts of it.

    Args:
      file: HDF5, TIFF or NIfTI.
      level: of its pyramid, 0 the finest.

    Returns:
      the shape, and (row, column, height, width) within it -> `[height, width, channels]`, which
      raises `UserError` if that is unreadable, and may be called by several threads at once.

    Raises:
      UserError: naming the file, if it is unreadable or lacks the level.
    """
    name = file.name.lower()
    known = _hdf5 if name.endswith(HDF5) else _tiff if name.endswith(TIFF) else _nifti
    try:
        shape, read = known(file, level)
    except READ_ERRORS as error:
        raise UserError(f"{file}: unreadable ({brief(error)})") from error

    def cut(row: int, column: int, height: int, width: int) -> np.ndarray:
        try:
            part = read(row, column, height, width)
            return folder.numeric(file, part.reshape(height, width, shape[2]))
        except READ_ERRORS as error:
            raise UserError(
                f"{file}: unreadable at row {row}, column {column} ({brief(error)})"
            ) from error

    return shape, cut


def _hdf5(file: Path, level: int) -> tuple[tuple[int, int, int], Cut]:
    """`pyramid/NN` `[H, W]` or `[H, W, C]`."""
    with h5py.File(file, "r") as h5:
        group = h5.get("pyramid")
        if not isinstance(group, h5py.Group):
            raise UserError(
                f"{file}: no group 'pyramid'; the published layout is 'pyramid/NN', [H, W, 3] of an"
                " orientation map, else [H, W]"
            )
        levels = sorted(n for n in group if isinstance(group.get(n), h5py.Dataset))
        name = f"{level:02d}"
        if name not in levels:
            raise _no_level(file, level, levels)
        shape, chunks, dtype = group[name].shape, group[name].chunks, group[name].dtype
    _refuse_large_piece(file, math.prod(chunks or (0,)) * dtype.itemsize)
    return _with_channels(file, shape), _Dataset(file, f"pyramid/{name}")


class _Dataset:
    """Parts of an HDF5 dataset, whose file is opened at the first of them."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, name
        self._lock = threading.Lock()
        self._held: h5py.Dataset | None = None  # whose cache is lost when it is closed

    def __call__(self, row: int, column: int, height: int, width: int) -> np.ndarray:
        place = np.s_[row : row + height, column : column + width]
        with self._lock:
            if self._held is not None:
                return self._held[place]
            h5 = h5py.File(self._file, "r", rdcc_nbytes=_CACHE, rdcc_nslots=10007)
            if len(_holders) < _MOST_OPEN:
                self._h5, self._held = h5, h5[self._name]
                _holders.add(self)
                return self._held[place]
            with h5:
                return h5[self._name][place]


def _tiff(file: Path, level: int) -> tuple[tuple[int, int, int], Cut]:
    """One image, or a pyramid of it: mapped into memory where stored plainly, else piecewise."""
    with tifffile.TiffFile(file) as tiff:
        levels = tiff.series[0].levels
        if level >= len(levels):
            raise _no_level(file, level, [f"{n:02d}" for n in range(len(levels))])
        pages = levels[level].pages
        if len(pages) != 1 or not isinstance(pages[0], tifffile.TiffPage):
            raise UserError(f"{file}: holds {len(pages)} pages; a section is a single image")
        page, axes = pages[0], pages[0].axes
        if sorted(axes.replace("S", "")) != ["X", "Y"]:
            raise UserError(f"{file}: has axes {axes}; wanted rows and columns")
        planar = axes.startswith("S")
        shape = (page.shape[1:] + page.shape[:1]) if planar else page.shape
        if page.is_memmappable:
            mapped = tifffile.memmap(file, series=0, level=level, mode="r")
            mapped = np.moveaxis(mapped, 0, -1) if planar else mapped
            plain = _cut(mapped)
        else:
            plain = _pieces(file, page)
    return _with_channels(file, shape), plain


def _pieces(file: Path, page: tifffile.TiffPage) -> Cut:
    """Parts of a page stored in strips or tiles, of which only those needed are unpacked."""
    length = page.tilelength if page.is_tiled else page.rowsperstrip
    breadth = page.tilewidth if page.is_tiled else page.imagewidth
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    depth, dtype = page.samplesperpixel // planes, np.dtype(page.dtype)
    _refuse_large_piece(file, length * breadth * depth * dtype.itemsize)
    down, across = -(-page.imagelength // length), -(-page.imagewidth // breadth)
    offsets, counts, decode = page.dataoffsets, page.databytecounts, page.decode
    jpeg = page.compression in (6, 7, 34892, 33007)
    more = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if jpeg else {}

    def needed(row: int, column: int, height: int, width: int) -> Iterator[int]:
        for plane in range(planes):
            for r in range(row // length, (row + height - 1) // length + 1):
                for c in range(column // breadth, (column + width - 1) // breadth + 1):
                    yield (plane * down + r) * across + c

    def cut(row: int, column: int, height: int, width: int) -> np.ndarray:
        out = np.full((height, width, planes * depth), page.nodata, dtype)
        with file.open("rb") as stream:
            for index in needed(row, column, height, width):
                stream.seek(offsets[index])
                packed = stream.read(counts[index])
                if len(packed) < counts[index]:
                    raise OSError("the file ends before its image data")
                piece, (plane, _, top, left, _), _ = decode(packed or None, index, **more)
                if piece is None:  # a sparse file leaves empty pieces out
                    continue
                piece = piece[0, max(row - top, 0) :, max(column - left, 0) :]  # [h, w, depth]
                r, c = max(top - row, 0), max(left - column, 0)
                piece = piece[: height - r, : width - c]
                h, w = piece.shape[:2]
                out[r : r + h, c : c + w, plane * depth : (plane + 1) * depth] = piece
        return out

    return cut


def _nifti(file: Path, level: int) -> tuple[tuple[int, int, int], Cut]:
    """`[W, H]` or `[W, H, 1, C]`, x first as the format has it; or RGB pixels."""
    if level:
        raise _no_level(file, level, ["00"])
    data, slope, offset = _mapped_nifti(file)
    data = data.reshape((*data.shape[:2], *(n for n in data.shape[2:] if n > 1)), order="F")
    data = np.swapaxes(data, 0, 1)  # [H, W] or [H, W, C]
    plain = _cut(data)
    if data.dtype.names:  # an RGB pixel is a record

        def colours(row: int, column: int, height: int, width: int) -> np.ndarray:
            return structured_to_unstructured(plain(row, column, height, width))

        return _with_channels(file, (*data.shape, len(data.dtype.names))), colours
    if (slope, offset) == (1, 0):
        return _with_channels(file, data.shape), plain
    return _with_channels(file, data.shape), lambda *place: plain(*place) * slope + offset


def _mapped_nifti(file: Path) -> tuple[np.ndarray, float, float]:
    """The stored array, in the file's order of axes, and the slope and offset of its units.

    A packed file cannot be entered in its middle: it is unpacked to a temporary file once.
    """
    import nibabel  # late: only this format needs it

    refused = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            plain = file
            if file.suffix.lower() == ".gz":
                plain = Path(scratch) / "section.nii"
                with gzip.open(file) as packed, plain.open("wb") as stream:
                    shutil.copyfileobj(packed, stream, 2**20)
            image: Any = nibabel.load(plain)
            data = image.dataobj.get_unscaled()  # mapped: it outlives the file's name
    except refused as error:
        raise UserError(f"{file}: unreadable ({brief(error)})") from error
    return data, image.dataobj.slope, image.dataobj.inter


def _tile_folder(path: Path, channels: int, config: ml_collections.ConfigDict) -> Raster:
    """Images that are tiles already, as the source `folder` reads them, one after the other."""
    own, size = config.copy_and_resolve_references(), config.size
    own.path, own.channel, own.channels = str(path), -1, channels
    frames = folder.read(own)

    def tile(row: int, column: int) -> np.ndarray:
        image = frames.read(row).image
        if image.shape[:2] != (size, size):
            raise UserError(
                f"{path / frames.names[row]}: a tile of {image.shape[0]}x{image.shape[1]} pixels,"
                f" where data.size is {size}"
            )
        return image

    return Raster(path, (len(frames), 1, channels), 1, tile, frames.names)


def _cut(data: np.ndarray) -> Cut:
    return lambda row, column, height, width: np.array(
        data[row : row + height, column : column + width]
    )


def _with_channels(file: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(shape) not in (2, 3):
        raise UserError(f"{file}: has shape {shape}; wanted rows, columns and at most channels")
    return (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)


def _no_level(file: Path, level: int, levels: Sequence[str]) -> UserError:
    there = f"levels {', '.join(levels)}" if levels else "none"
    return UserError(
        f"{file}: no level {level:02d} in its pyramid, only {there}; set data.level, or"
        " --level to translate it"
    )


def _refuse_large_piece(file: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise UserError(
            f"{file}: stored in pieces of {size / 2**20:.0f} MiB, too large to be unpacked for each"
            " tile; store it in smaller chunks"
        )
