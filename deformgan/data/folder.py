"""A folder of PNG, JPEG or TIFF images, or one multi-page TIFF: 8 or 16 bit, grey or colour."""

from __future__ import annotations

import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import ml_collections
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from deformgan.data.frames import Frame, Frames
from deformgan.errors import UserError

STILLS = (".png", ".jpg", ".jpeg")
STACKS = (".tif", ".tiff")
MOST_PIXELS = 2**28  # an image of more is taken for a decompression bomb
_LONG_PAUSE = 8  # a jump in the frame numbers this many times the usual step starts a new stretch
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float64)  # ITU-R BT.601


class Listing(NamedTuple):
    """Images of a folder: name, recording, file and pages of each, and a remark on other files."""

    names: list[str]
    recordings: list[str]
    places: list[tuple[Path, tuple[int, ...]]]
    skipped: str


def read(config: ml_collections.ConfigDict) -> Frames:
    """Lists the images below `data.path`; they are read when asked for."""
    found = listing(config.path)

    def frame(i: int) -> Frame:
        image, colour = load(*found.places[i])
        name = found.names[i]
        return Frame(to_channels(image, config.channel, config.channels, name, colour=colour))

    return framed(found, frame)


def framed(found: Listing, frame: Callable[[int], Frame]) -> Frames:
    """The frames of a listing in its order, each a moment of its own."""
    return Frames(
        names=found.names,
        recordings=found.recordings,
        moments=range(len(found.names)),
        read=frame,
        skipped=found.skipped,
    )


def listing(path: str, key: str = "data.path") -> Listing:
    """Lists the images at or below `path`, which the setting `key` names.

    Sub-folders and stacks are recordings; so are stretches of frames whose numbers follow on
    without a long pause.
    """
    root, files, skipped = find_files(path, STILLS + STACKS, key)
    names: list[str] = []
    recordings: list[str] = []
    places: list[tuple[Path, tuple[int, ...]]] = []
    for file in files:
        name = str(file.relative_to(root))
        frames = _tiff_frames(file) if file.suffix.lower() in STACKS else [(0,)]
        for number, pages in enumerate(frames):
            names.append(name if len(frames) == 1 else f"{name}#{number}")
            recordings.append(str(file.parent.relative_to(root)) if len(frames) == 1 else name)
            places.append((file, pages))
    return Listing(names, _stretches(names, recordings), places, skipped)


def find_files(
    path: str, suffixes: tuple[str, ...], key: str = "data.path"
) -> tuple[Path, list[Path], str]:
    """Files with these suffixes at or below `path`, in natural order.

    Args:
      path: a folder or a file.
      suffixes: in lower case.
      key: the setting that `path` comes from, for messages.

    Returns:
      the folder, its files, and a remark on other files that were left alone ('' if none).
    """
    if not path:
        raise UserError(f"{key}: not set; give a folder or a file (--config.{key}=...)")
    root = Path(path)
    looked = f"looked for {', '.join(suffixes)}"
    if not root.exists():
        raise UserError(f"{key}: {path} does not exist")
    if root.is_file():
        if root.suffix.lower() not in suffixes:
            raise UserError(f"{key}: {path} is not of a type that is read ({looked})")
        return root.parent, [root], ""
    try:
        found = [p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{key}: cannot list {path}: {error.strerror}") from error
    files = [p for p in found if p.suffix.lower() in suffixes]
    if not files:
        raise UserError(f"{key}: no images under {path} ({looked})")
    files.sort(key=lambda p: _natural(str(p.relative_to(root))))
    others = len(found) - len(files)
    return root, files, f"{others} other files left alone" if others else ""


def to_channels(
    image: np.ndarray, channel: int, wanted: int, name: str, *, colour: bool
) -> np.ndarray:
    """Picks or mixes channels: `[H, W]` or `[H, W, K]` to `[H, W, wanted]`.

    `channel` >= 0 picks one. Otherwise one channel is made of colour by its luminance, three of
    grey by repetition; several channels that are no colour must be chosen from.
    """
    image = image[..., None] if image.ndim == 2 else image
    have = image.shape[-1]
    if channel >= have:
        raise UserError(f"data.channel: {channel} asked for, but {name} has {have} channels")
    if channel >= 0:
        image = image[..., channel : channel + 1]
    elif wanted == 1 and have == 3 and colour:
        mixed = image.astype(np.float64) @ _LUMINANCE
        whole = np.issubdtype(image.dtype, np.integer)
        image = (np.round(mixed) if whole else mixed).astype(image.dtype)[..., None]
    elif have > 1 and have != wanted:
        raise UserError(
            f"data.channel: {name} has {have} channels; choose one with"
            f" --config.data.channel=0..{have - 1}"
        )
    return np.repeat(image, wanted, -1) if image.shape[-1] == 1 else image


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sorts t2 before t10."""
    parts = re.split(r"(\d+)", text)
    return [(1, int(p), "") if p.isdigit() else (0, 0, p) for p in parts]


def _stretches(names: list[str], recordings: list[str]) -> list[str]:
    """Cuts each recording where its frames' number makes a long jump.

    Names with several numbers that change (a time and a place, say) tell no order: left whole.
    """
    out: list[str] = []
    for recording in dict.fromkeys(recordings):
        members = [n for n, r in zip(names, recordings, strict=True) if r == recording]
        numbers = [[int(d) for d in re.findall(r"\d+", n)] for n in members]
        aligned = len({len(n) for n in numbers}) == 1
        changing = [c for c in zip(*numbers, strict=True) if len(set(c)) > 1] if aligned else []
        steps = np.abs(np.diff(changing[0])) if len(changing) == 1 else np.zeros(len(members) - 1)
        cuts = steps > _LONG_PAUSE * max(float(np.median(steps)) if len(steps) else 0.0, 1.0)
        stretch = np.concatenate([[0], np.cumsum(cuts)]).astype(int)
        out += [f"{recording}/{s}" if cuts.any() else recording for s in stretch]
    return out


READ_ERRORS = (
    OSError,
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    SyntaxError,  # what Pillow raises on a broken PNG
    RuntimeError,  # what imagecodecs and h5py raise
    EOFError,
    struct.error,
    zlib.error,
    tifffile.TiffFileError,
    UnidentifiedImageError,
)


def _tiff_frames(file: Path) -> list[tuple[int, ...]]:
    """The pages that each frame of a TIFF is made of: one, or one a channel."""
    try:
        with tifffile.TiffFile(file) as tiff:
            axes, shape = tiff.series[0].axes, tiff.series[0].shape
            count, whole = len(tiff.pages), len(tiff.series) == 1
    except READ_ERRORS as error:
        raise UserError(f"{file}: not a readable TIFF ({brief(error)})") from error
    sizes = {a: n for a, n in zip(axes, shape, strict=True) if a not in "YXS" and n > 1}
    if not whole or math.prod(sizes.values()) != count or "C" not in sizes:
        if "Z" in sizes and "T" in sizes:
            raise UserError(
                f"{file}: holds {sizes['T']} times of {sizes['Z']} planes; project or choose planes"
            )
        return [(page,) for page in range(count)]
    pages = np.moveaxis(np.arange(count).reshape(*sizes.values()), list(sizes).index("C"), -1)
    return [tuple(int(p) for p in group) for group in pages.reshape(-1, sizes["C"])]


def load(file: Path, pages: tuple[int, ...] = (0,)) -> tuple[np.ndarray, bool]:
    """`[H, W]` or `[H, W, K]`, transparency left out, and whether the channels are colours."""
    try:
        if file.suffix.lower() in STACKS:
            planes = [_load_page(file, page) for page in pages]
            colour = len(planes) == 1 and planes[0].shape[2:] == (3,)
            return planes[0] if len(planes) == 1 else np.stack(planes, -1), colour
        return _load_still(file), True
    except READ_ERRORS as error:
        raise UserError(f"{file}: unreadable or truncated image ({brief(error)})") from error


def _load_page(file: Path, number: int) -> np.ndarray:
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[number]
        _refuse_bomb(file, int(np.prod(page.shape)))
        end = max(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
        if end > file.stat().st_size:  # tifffile fills what is missing with zeros
            raise OSError("the file ends before its image data")
        image = page.asarray()
    if image.ndim == 3 and page.axes.startswith("S"):  # samples stored plane by plane
        image = np.moveaxis(image, 0, -1)
    if image.ndim not in (2, 3):
        raise UserError(f"{file}: page {number} has shape {image.shape}; wanted rows and columns")
    alpha = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
    transparent = image.ndim == 3 and any(sample in alpha for sample in page.aspage().extrasamples)
    return numeric(file, image[..., :-1] if transparent else image)


def _load_still(file: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            opened = Image.open(file)
        except Image.DecompressionBombError as error:
            raise UserError(f"{file}: refused as a decompression bomb ({error})") from error
    with opened as image:
        _refuse_bomb(file, image.width * image.height)
        if image.mode in ("1", "P", "PA", "CMYK", "YCbCr"):
            plain = np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
        elif image.format == "PNG":  # of which Pillow cuts 16-bit colour to 8
            plain = imagecodecs.png_decode(file.read_bytes())
        else:
            plain = np.asarray(image)
    if plain.ndim == 3 and plain.shape[-1] in (2, 4):
        plain = plain[..., :-1]  # transparency
    return numeric(file, plain)


def _refuse_bomb(file: Path, pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise UserError(
            f"{file}: {pixels} pixels, more than the {MOST_PIXELS} of one image that are read;"
            " cut it into smaller images"
        )


def numeric(file: Path, image: np.ndarray) -> np.ndarray:
    """The image with native byte order, yes and no as 0 and 255; else a `UserError`.

    Wider integers whose values fit are made uint16: label images often come so.
    """
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    wide = image.dtype.kind in "iu" and image.dtype.itemsize > 2
    if wide and image.min() >= 0 and image.max() < 2**16:
        image = image.astype(np.uint16)
    image = image.astype(image.dtype.newbyteorder("="))
    kinds = ("uint8", "uint16", "int8", "int16", "float16", "float32", "float64")
    if image.dtype.name not in kinds:
        raise UserError(
            f"{file}: holds {image.dtype}; integers that fit into 16 bits, or floats, are read"
        )
    if not np.isfinite(image).all():
        raise UserError(f"{file}: holds NaN or infinite values; replace them first")
    return image


def brief(error: BaseException) -> str:
    """An error's message on one line, cut if long."""
    return " ".join(str(error).split())[:120] or type(error).__name__
