"""Separating the structures of one clean image: bright somata, other somata, neurites.

One template is enough: what is found on it holds for every image that it is warped into.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage import feature, filters, measure, morphology, segmentation

_SMOOTH = 1.5 / 128  # blur before thresholds, of the side
_THICK = 3.0 / 128  # half the width of the thickest neurite, of the side
_BRIGHT = 0.35  # of the brightest soma's peak: what is still a bright soma
_SEEN = 0.03  # of the brightest peak: what is still a structure


class Layers(NamedTuple):
    """Structures of an image with S x S pixels.

    Attributes:
      bright: `[K, S, S]` bool, a bright soma each, the brightest first.
      dim: `[S, S]` int32 labels of the other somata, 0 elsewhere.
      neurites: `[S, S]` bool.
    """

    bright: np.ndarray
    dim: np.ndarray
    neurites: np.ndarray


def separate(signal: np.ndarray, most: int) -> Layers:
    """Finds the structures of a clean image.

    Bright somata are what Otsu's threshold and an opening wider than any neurite leave, parted by
    a watershed of the distance to their outline; other somata are blobs (determinant of the
    Hessian) of what is left, neurites its ridges (Sato et al. 1998).

    Args:
      signal: `[S, S]` above background, 0 or more.
      most: bright somata to tell apart; further ones count as dim.

    Returns:
      the layers, without bright somata if nothing stands out.
    """
    size = len(signal)
    smooth = ndimage.gaussian_filter(signal, max(_SMOOTH * size, 0.5))
    empty = Layers(
        np.zeros((0, size, size), bool),
        np.zeros((size, size), np.int32),
        np.zeros((size, size), bool),
    )
    if np.ptp(smooth) < 1e-6:
        return empty
    cells = _cells(smooth, filters.threshold_otsu(smooth), size)
    peaks = {label: smooth[cells == label].max() for label in np.unique(cells) if label}
    order = sorted(peaks, key=lambda label: -smooth[cells == label].sum())
    order = [label for label in order if peaks[label] > _BRIGHT * max(peaks.values())][:most]
    bright = np.stack([cells == label for label in order]) if order else empty.bright
    taken = ndimage.binary_dilation(bright.any(0), iterations=max(1, round(2 * size / 128)))
    left = np.where(taken, 0, smooth)
    seen = left > _SEEN * smooth.max()
    dim = _dim(left, seen, size)
    widths = (max(1.0, size / 100), max(1.5, size / 50))
    ridges = filters.sato(left, sigmas=widths, black_ridges=False)
    neurites = seen & (ridges > filters.threshold_otsu(ridges)) & (dim == 0)
    return Layers(bright, dim, neurites)


def _cells(smooth: np.ndarray, threshold: float, size: int) -> np.ndarray:
    """Labels of thick structures, those that touch parted at their waist."""
    disk = morphology.disk(max(1, round(_THICK * size)))
    thick = morphology.opening(smooth > threshold, disk)
    inside = ndimage.distance_transform_edt(thick)
    apart = max(2, round(8 * size / 128))
    inside = ndimage.gaussian_filter(inside, max(0.5, size / 64))
    tops = feature.peak_local_max(inside, min_distance=apart, labels=measure.label(thick))
    seeds = np.zeros(smooth.shape, np.int32)
    seeds[tuple(tops.T)] = 1 + np.arange(len(tops))
    return segmentation.watershed(-inside, seeds, mask=thick)


def _dim(left: np.ndarray, seen: np.ndarray, size: int) -> np.ndarray:
    """Labels of round structures among the rest."""
    blobs = feature.blob_doh(
        left / max(left.max(), 1e-9), min_sigma=size / 64, max_sigma=size / 16, threshold=0.005
    )
    seeds = np.zeros(left.shape, np.int32)
    near = np.zeros(left.shape, bool)
    rows, columns = np.indices(left.shape)
    for number, (row, column, sigma) in enumerate(blobs):
        seeds[int(row), int(column)] = number + 1
        near |= np.hypot(rows - row, columns - column) < 1.2 * sigma
    return segmentation.watershed(-left, seeds, mask=near & seen)
