"""What files tell of an image beside its pixels, as far as it is taken over into another file."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import tifffile
from PIL import Image

_MOST_BYTES = 2**20  # of what is copied beside a pyramid
_CENTIMETRE = {"nm": 1e7, "µm": 1e4, "um": 1e4, "mm": 10.0, "cm": 1.0}  # of each unit in one


def copy_attributes(old: Any, new: Any) -> None:
    """All but references to other objects of the file, which would point nowhere."""
    for name, value in old.attrs.items():
        if h5py.check_ref_dtype(np.asarray(value).dtype) is None:
            new.attrs[name] = value


def copy_beside(old: h5py.File, new: h5py.File) -> None:
    """Datasets and groups outside the pyramid, of less than 1 MiB each."""
    for name in old:
        if name != "pyramid" and _is_small(old, name):
            old.copy(old[name], new, name)


def _is_small(file: h5py.File, name: str) -> bool:
    """Whether something of its own is there, not a link, that takes less than 1 MiB."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        return False
    sizes = [getattr(file[name], "nbytes", 0)]
    if isinstance(file[name], h5py.Group):
        file[name].visititems(lambda _, item: sizes.append(getattr(item, "nbytes", 0)))
    return sum(sizes) < _MOST_BYTES


def resolution(tiff: tifffile.TiffFile, page: Any) -> dict[str, Any]:
    """That of a page, as `TiffWriter.write` takes it; of OME-TIFF, by its size of a pixel."""
    known = _ome_resolution(tiff, page)
    if known:
        return {"resolution": known, "resolutionunit": "CENTIMETER"}
    tags = [page.tags.get(name) for name in ("XResolution", "YResolution", "ResolutionUnit")]
    if not tags[0] or not tags[1]:
        return {}
    unit = {"resolutionunit": tags[2].value} if tags[2] else {}
    return {"resolution": (tags[0].value, tags[1].value), **unit}


def _ome_resolution(tiff: tifffile.TiffFile, page: Any) -> tuple[float, float] | None:
    """Pixels in a centimetre, along x and y, of a page; None where OME-XML does not tell."""
    try:
        root = ElementTree.fromstring(tiff.ome_metadata or "")
    except ElementTree.ParseError:
        return None
    pixels = next((node for node in root.iter() if node.tag.endswith("}Pixels")), None)
    found = []
    for axis, count in (("X", page.imagewidth), ("Y", page.imagelength)):
        size = float(pixels.get(f"PhysicalSize{axis}", 0)) if pixels is not None else 0.0
        if pixels is None or not size:
            return None
        unit = _CENTIMETRE.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"), 0.0)
        found.append(unit / size * count / int(pixels.get(f"Size{axis}", count)))
    return (found[0], found[1]) if min(found) > 0 else None


def dpi(model: Path, shape: tuple[int, int]) -> dict[str, Any]:
    """That of an image for one of (rows, columns) made of it, as Pillow's `save` takes it."""
    with Image.open(model) as image:
        known, (across, down) = image.info.get("dpi"), image.size
    if not known or not all(float(d) > 0 for d in known):
        return {}
    return {"dpi": (float(known[0]) * shape[1] / across, float(known[1]) * shape[0] / down)}


def left_out(file: Path, kind: str) -> list[str]:
    """What a file tells beside its pixels that is not taken over."""
    if kind == "hdf5":
        with h5py.File(file, "r") as h5:
            return [name for name in h5 if name != "pyramid" and not _is_small(h5, name)]
    if kind == "tiff":
        with tifffile.TiffFile(file) as tiff:
            first: Any = tiff.series[0].levels[0].pages[0]
            tags = first.aspage().tags
            names = ("ImageDescription", "InterColorProfile", "ModelPixelScaleTag", "XMP")
            return [name for name in names if name in tags]
    if kind == "nifti":
        import nibabel  # late: only this format needs it

        header: Any = nibabel.load(file).header
        return ["header extensions"] if len(getattr(header, "extensions", ())) else []
    with Image.open(file) as image:
        return [name for name in ("icc_profile", "exif", "xmp") if name in image.info]
