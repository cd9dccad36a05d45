"""One .npz file with an array `images` `[N, H, W]` or `[N, H, W, C]`, as sampling writes it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import ml_collections
import numpy as np

from deformgan.data.folder import to_channels
from deformgan.data.frames import Frame, Frames
from deformgan.errors import UserError


def read(config: ml_collections.ConfigDict) -> Frames:
    """Reads `images` from the file `data.path`; they are one recording in order of time."""
    path = config.path
    if not Path(path).is_file():
        what = f"{path} does not exist" if path else "not set"
        raise UserError(f"data.path: {what}; give an .npz file with an array 'images'")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = getattr(file, "files", [])
            images = file["images"] if "images" in names else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"data.path: {path} is no readable .npz file ({error})") from error
    if images is None:
        raise UserError(f"data.path: {path} has no array 'images', only {names}")
    if images.ndim not in (3, 4) or len(images) == 0:
        raise UserError(f"data.path: {path} holds images of shape {images.shape}; wanted [N, H, W]")
    if not np.isfinite(images).all():
        raise UserError(f"data.path: {path} holds NaN or infinite values; replace them first")
    names = [f"{Path(path).name}#{i}" for i in range(len(images))]
    colour = images.ndim == 4 and images.shape[-1] == 3
    return Frames(
        names=names,
        recordings=[Path(path).name] * len(images),
        moments=range(len(images)),
        read=lambda i: Frame(
            to_channels(images[i], config.channel, config.channels, names[i], colour=colour)
        ),
    )
