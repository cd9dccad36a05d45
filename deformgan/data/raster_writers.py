"""Images too large to hold, written in the layout of another file: its pyramid, its metadata.

Rows come one after the other into a file without a name, from which the levels of the pyramid and
then the file itself are made, a few rows at a time: memory is bounded, and nothing half-done is
left where a run was killed before that.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from deformgan.data import raster_metadata
from deformgan.errors import UserError

Pool = Callable[[np.ndarray], np.ndarray]  # [q, n, C], each n of q pixels -> [n, C], their mean
Units = tuple[float, float]  # step and offset: a value is what is stored * step + offset
_AT_ONCE = 2**22  # values
_TIFF_TILE = (256, 256)  # of a file whose model has none
_CLASSIC_TIFF = 2**32 - 2**26  # bytes that its offsets reach
_AS_STORED: Units = (1.0, 0.0)
_HUNDREDTHS = 100  # that a PNG stores, which has no floating-point numbers


class Rows:
    """An image `[H, W, C]` in a file without a name in `folder`: appended to, then read."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (outlives this function)
        weakref.finalize(self, self._file.close)
        self._row_bytes = shape[1] * shape[2] * self.dtype.itemsize

    def append(self, rows: np.ndarray) -> None:
        """Adds rows `[h, W, C]` below those there are."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(rows, self.dtype).tobytes())

    def read(self, first: int, last: int) -> np.ndarray:
        """The rows from `first` up to `last`, `[h, W, C]`."""
        self._file.seek(first * self._row_bytes)
        packed = self._file.read((last - first) * self._row_bytes)
        return np.frombuffer(packed, self.dtype).reshape(-1, *self.shape[1:])

    def blocks(self, rows: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """All rows, so many at a time (0: as fit in little memory), each block with its first."""
        rows = rows or max(_AT_ONCE // (self.shape[1] * self.shape[2]), 1)
        for first in range(0, self.shape[0], rows):
            yield first, self.read(first, min(first + rows, self.shape[0]))


class _InUnits(Rows):
    """Rows that are stored in steps, read as the values they stand for, in float32."""

    def __init__(self, rows: Rows, units: Units) -> None:
        self.shape, self.dtype = rows.shape, np.dtype(np.float32)
        self._rows, self._units = rows, units

    def read(self, first: int, last: int) -> np.ndarray:
        step, offset = self._units
        return (self._rows.read(first, last) * step + offset).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What is taken over from a file.

    Attributes:
      file: the one that is the model.
      kind: of it and of what is written: hdf5, tiff, nifti or png.
      levels: of its pyramid, from that on which is written; level 0 alone where there is none.
      shapes: (rows, columns) of each.
    """

    file: Path
    kind: str
    levels: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]

    def factors(self) -> Iterator[int]:
        """How many pixels of a level make one of the next, along each axis."""
        for (h, w), (own, across) in zip(self.shapes, self.shapes[1:], strict=False):
            factor = round(max(h / own, w / across))
            fits = all(
                a in (n // factor, -(-n // factor)) for n, a in ((h, own), (w, across)) if factor
            )
            if factor < 2 or not fits:
                raise UserError(
                    f"{self.file}: its pyramid has {own}x{across} pixels after {h}x{w}, which is no"
                    " whole fraction; give a file whose levels are, such as halves"
                )
            yield factor


def layout_of(file: Path, kind: str, level: int, shape: tuple[int, int]) -> Layout:
    """Looks up the levels of the pyramid in a file, from `level` on, which has this shape.

    Raises:
      UserError: if a level is no whole fraction of the one before.
    """
    levels: tuple[int, ...] = (level,)
    shapes: tuple[tuple[int, int], ...] = (shape,)
    if kind == "hdf5":
        with h5py.File(file, "r") as h5:
            group = h5["pyramid"]
            there = [n for n in group if isinstance(group.get(n), h5py.Dataset)]
            named = {int(n): group[n].shape for n in there if n.isdigit() and len(n) == 2}
        levels = tuple(sorted(n for n in named if n >= level))
        shapes = tuple((named[n][0], named[n][1]) for n in levels)
    elif kind == "tiff":
        with tifffile.TiffFile(file) as tiff:
            pages = [_page(series) for series in tiff.series[0].levels]
        levels = tuple(range(level, len(pages)))
        shapes = tuple((pages[n].imagelength, pages[n].imagewidth) for n in levels)
    layout = Layout(file, kind, levels, shapes)
    list(layout.factors())  # which refuses what does not fit
    return layout


def pyramid(finest: Rows, layout: Layout, pool: Pool, folder: Path) -> list[Rows]:
    """The levels of an image, each made of the one before."""
    out = [finest]
    for factor, shape in zip(layout.factors(), layout.shapes[1:], strict=True):
        out.append(_shrunk(out[-1], factor, shape, pool, folder))
    return out


def _shrunk(source: Rows, factor: int, shape: tuple[int, int], pool: Pool, folder: Path) -> Rows:
    """Each pixel the mean of factor x factor; the last row or column is repeated if need be."""
    (height, width), channels = shape, source.shape[2]
    out = Rows(folder, (height, width, channels), source.dtype)
    step = max(_AT_ONCE // (source.shape[1] * channels * factor), 1)
    columns = np.minimum(np.arange(width * factor), source.shape[1] - 1)
    for first in range(0, height, step):
        last = min(first + step, height)
        wanted = np.minimum(np.arange(first * factor, last * factor), source.shape[0] - 1)
        part = source.read(wanted[0], wanted[-1] + 1)[wanted - wanted[0]][:, columns]
        part = part.reshape(last - first, factor, width, factor, channels)
        pixels = part.transpose(1, 3, 0, 2, 4).reshape(factor**2, -1, channels)
        out.append(pool(pixels).reshape(-1, width, channels))
    return out


def mean(pixels: np.ndarray) -> np.ndarray:
    """The plain mean over the first axis, in the type of the pixels."""
    whole = np.issubdtype(pixels.dtype, np.integer)
    found = pixels.mean(0, dtype=np.float64)
    return (np.round(found) if whole else found).astype(pixels.dtype)


def write(draft: Path, levels: Sequence[Rows], layout: Layout, units: Units = _AS_STORED) -> None:
    """Writes the levels of an image to the file `draft`, which is then whole.

    Values that are not whole numbers from 0 on are stored in steps: NIfTI says so in its header,
    HDF5 and TIFF hold the values themselves in float32, and PNG, which can do neither, the steps.
    """
    if layout.kind == "nifti":
        _nifti(draft, levels, layout, units)
    elif layout.kind == "png":
        _png(draft, levels, layout)
    else:
        if units != _AS_STORED:
            levels = [_InUnits(rows, units) for rows in levels]
        (_hdf5 if layout.kind == "hdf5" else _tiff)(draft, levels, layout)


def _hdf5(draft: Path, levels: Sequence[Rows], layout: Layout) -> None:
    """`pyramid/NN` with the attributes, chunks and compression of the same level in the model."""
    with h5py.File(layout.file, "r") as old, h5py.File(draft, "w") as new:
        raster_metadata.copy_attributes(old, new)
        raster_metadata.copy_beside(old, new)
        group = new.create_group("pyramid")
        raster_metadata.copy_attributes(old["pyramid"], group)
        for number, rows in zip(layout.levels, levels, strict=True):
            like = old[f"pyramid/{number:02d}"]
            end = rows.shape[2:] if rows.shape[2] > 1 else ()
            shape = (*rows.shape[:2], *end)
            chunks = like.chunks and tuple(map(min, (*like.chunks[:2], *end), shape))
            dataset = group.create_dataset(
                f"{number:02d}",
                shape,
                rows.dtype,
                chunks=chunks,
                compression=like.compression,
                compression_opts=like.compression_opts,
                shuffle=like.shuffle,
            )
            raster_metadata.copy_attributes(like, dataset)
            for first, block in rows.blocks(chunks[0] if chunks else 0):
                dataset[first : first + len(block)] = block.reshape(len(block), *dataset.shape[1:])


def _tiff(draft: Path, levels: Sequence[Rows], layout: Layout) -> None:
    """A tiled TIFF, coarser levels as SubIFDs, with the resolution of the same level."""
    size = sum(math.prod(rows.shape) * rows.dtype.itemsize for rows in levels)
    with (
        tifffile.TiffFile(layout.file) as old,
        tifffile.TiffWriter(draft, bigtiff=size > _CLASSIC_TIFF) as new,
    ):
        series = old.series[0].levels
        for number, rows in zip(layout.levels, levels, strict=True):
            page, first = _page(series[number]), rows is levels[0]
            tile = (page.tilelength, page.tilewidth) if page.is_tiled else _TIFF_TILE
            new.write(
                _tiles(rows, tile),
                shape=rows.shape if rows.shape[2] > 1 else rows.shape[:2],
                dtype=rows.dtype,
                tile=tile,
                photometric="rgb" if rows.shape[2] == 3 else "minisblack",
                compression="zlib",
                subifds=len(levels) - 1 if first else None,
                subfiletype=0 if first else 1,
                metadata=None,
                **raster_metadata.resolution(old, page),
            )


def _page(series: Any) -> Any:
    return series.pages[0].aspage()


def _tiles(rows: Rows, tile: tuple[int, int]) -> Iterator[np.ndarray]:
    for _, block in rows.blocks(tile[0]):
        for column in range(0, rows.shape[1], tile[1]):
            part = block[:, column : column + tile[1]]
            yield np.ascontiguousarray(part if rows.shape[2] > 1 else part[..., 0])


def _nifti(draft: Path, levels: Sequence[Rows], layout: Layout, units: Units) -> None:
    """`[W, H]`, colours of 8 bit as RGB pixels, else `[W, H, 1, C]`, in the model's space."""
    import nibabel  # late: only this format needs it

    rows = levels[0]
    (height, width, channels), colour = rows.shape, [(c, "u1") for c in "RGB"]
    as_pixels = channels == 3 and rows.dtype == np.uint8 and units == _AS_STORED
    model: Any = nibabel.load(layout.file)
    header = model.header.as_byteswapped("<")
    header.set_data_dtype(np.dtype(colour) if as_pixels else rows.dtype)
    whole = (width, height) if as_pixels or channels == 1 else (width, height, 1, channels)
    zooms = (*header.get_zooms(), 1.0, 1.0)
    header.set_data_shape(whole)
    header.set_zooms(zooms[: len(whole)])
    header.set_slope_inter(*units)
    opened = gzip.open if layout.file.name.lower().endswith(".gz") else open
    with opened(draft, "wb") as stream:
        header.write_to(stream)
        for part in [slice(None)] if as_pixels else [slice(c, c + 1) for c in range(channels)]:
            for _, block in rows.blocks():
                stream.write(np.ascontiguousarray(block[..., part]).tobytes())


def _png(draft: Path, levels: Sequence[Rows], layout: Layout) -> None:
    """The whole at once: what is read as PNG or JPEG is small enough."""
    image = levels[0].read(0, levels[0].shape[0])
    if np.issubdtype(image.dtype, np.floating):
        image = np.round(np.clip(image * _HUNDREDTHS, 0, 65535)).astype(np.uint16)
    image = image[..., 0] if image.shape[2] == 1 else image
    if image.dtype == np.uint16 and image.ndim == 3:  # which Pillow cannot write, nor its dpi
        draft.write_bytes(imagecodecs.png_encode(image))
        return
    known = raster_metadata.dpi(layout.file, image.shape[:2])
    Image.fromarray(image).save(draft, "PNG", **known)
