"""Targettrack HDF5 (Park et al. 2024): volumes, instance masks and points of tracked neurons.

`{t}/frame` `[C, W, H, D]`, `{t}/mask` `[W, H, D]`, `pointdat` `[T, N + 1, 3]` voxels (x, y, z) with
row 0 and absent neurons NaN: x comes first throughout. Frames are maximum projections over z.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import ml_collections
import numpy as np

from deformgan.data.folder import MOST_PIXELS, find_files, to_channels
from deformgan.data.frames import Frame, Frames, Labels
from deformgan.errors import UserError


def read(config: ml_collections.ConfigDict) -> Frames:
    """Lists the projections of every volume in the file or files at `data.path`.

    A mask's projection takes the label of the brightest labelled voxel in the column; points are
    those whose z lies in the projected range. Each file is a recording.
    """
    root, files, skipped = find_files(config.path, (".h5", ".hdf5"))
    names: list[str] = []
    recordings: list[str] = []
    moments: list[int] = []
    places: list[tuple[Path, str, tuple[int, int]]] = []
    for file in files:
        for volume, depth in _volumes(file):
            moment = len(set(moments))
            for low, high in z_ranges(config.z_ranges, depth):
                names.append(f"{file.relative_to(root)}#{volume}[{low}:{high}]")
                recordings.append(str(file.relative_to(root)))
                moments.append(moment)
                places.append((file, volume, (low, high)))

    def frame(i: int) -> Frame:
        try:
            return _project(*places[i], config)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{places[i][0]}: volume {places[i][1]} unreadable: {error}") from error

    return Frames(names, recordings, moments, frame, skipped=skipped)


def z_ranges(text: str, depth: int) -> list[tuple[int, int]]:
    """Reads `data.z_ranges`: '' for the whole depth, else planes such as '0:16,16:32'."""
    if not text:
        return [(0, depth)]
    ranges = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        if not (colon and low.strip().isdigit() and high.strip().isdigit()):
            raise UserError(f"data.z_ranges: {part!r} is no range of planes such as 0:16")
        ranges.append((int(low), int(high)))
        if not 0 <= int(low) < int(high) <= depth:
            raise UserError(f"data.z_ranges: {part} is not within the {depth} planes there are")
    return ranges


def _volumes(file: Path) -> list[tuple[str, int]]:
    """The names of the volumes in time order, each with its number of planes."""
    try:
        with h5py.File(file, "r") as h5:
            names = sorted((n for n in h5 if n.isdigit()), key=int)
            names = [n for n in names if isinstance(h5.get(f"{n}/frame"), h5py.Dataset)]
            shapes = [h5[f"{n}/frame"].shape for n in names]
            kinds = {h5[f"{n}/frame"].dtype.kind for n in names}
            points = h5.get("pointdat")
            if points is not None:
                points = getattr(points, "shape", "a group")
    except OSError as error:
        raise UserError(f"{file}: not a readable HDF5 file ({error})") from error
    if not names:
        raise UserError(
            f"{file}: no dataset '0/frame'; the Targettrack layout is '{{t}}/frame' [C, W, H, D],"
            " '{t}/mask' [W, H, D] and 'pointdat' [T, N+1, 3]"
        )
    for name, shape in zip(names, shapes, strict=True):
        if len(shape) != 4:
            raise UserError(f"{file}: '{name}/frame' has shape {shape}; wanted [C, W, H, D]")
        if min(shape) < 1 or np.prod(shape) > MOST_PIXELS:
            raise UserError(
                f"{file}: '{name}/frame' has shape {shape}, empty or too large to be read"
            )
    if kinds - set("iuf"):
        raise UserError(f"{file}: the frames hold no numbers")
    last = int(names[-1])
    if points is not None and not (len(points) == 3 and points[0] > last and points[2] == 3):
        raise UserError(f"{file}: 'pointdat' is {points}; wanted [{last + 1} or more, N + 1, 3]")
    return [(n, s[3]) for n, s in zip(names, shapes, strict=True)]


def _project(
    file: Path, volume: str, z_range: tuple[int, int], config: ml_collections.ConfigDict
) -> Frame:
    low, high = z_range
    with h5py.File(file, "r") as h5:
        frame = h5[f"{volume}/frame"][..., low:high]  # [C, W, H, D]
        mask = h5[f"{volume}/mask"][..., low:high] if f"{volume}/mask" in h5 else None
        points = h5["pointdat"][int(volume)] if "pointdat" in h5 else None  # [N + 1, 3]
    if not np.isfinite(frame).all():
        raise ValueError("the frame holds NaN or infinite values")
    flat = frame.max(-1).transpose(2, 1, 0)  # [H, W, C]
    image = to_channels(flat, config.channel, config.channels, f"{file}", colour=False)
    if mask is None and points is None:
        return Frame(image)
    labelled = None
    if mask is not None:
        if mask.max(initial=0) > 65535:
            raise ValueError("mask labels above 65535")
        if mask.shape != frame.shape[1:]:
            raise ValueError(f"mask {mask.shape} does not match frame {frame.shape}")
        shown = frame[max(config.channel, 0)].astype(np.float64)
        brightest = np.argmax(np.where(mask > 0, shown, -np.inf), axis=-1)[..., None]
        labelled = np.take_along_axis(mask, brightest, -1)[..., 0].T.astype(np.int32)  # [H, W]
    if points is None:
        return Frame(image, Labels(labelled, np.zeros((0, 2)), np.zeros(0, np.int32)))
    ids = np.flatnonzero(np.isfinite(points).all(-1))
    depth = points[ids, 2]
    ids = ids[(depth > low - 0.5) & (depth < high - 0.5)]
    return Frame(image, Labels(labelled, points[ids][:, [1, 0]].astype(np.float64), ids))
