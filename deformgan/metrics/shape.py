"""Two-sample test on the geometry of somata and neurites, whatever the pixels look like."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage import filters, measure, morphology

from deformgan.metrics.subject import ImageSet
from deformgan.metrics.two_sample import cross_fitted_discriminant

ABOUT = (
    "a linear discriminant on place, size, form and brightness of the two largest somata, and on"
    " length, brightness and place of the neurites"
)
REFITS = True
_SOMATA = 2
_SMOOTH = 1.5 / 128  # blur before measuring, of the image's side
_THIN = 3 / 128  # half the width of what is still a neurite, of the image's side


def classify(sets: list[ImageSet], labels: np.ndarray, fold: np.ndarray, seed: int) -> np.ndarray:
    """Scores `[N, P]` of each image by a discriminant fitted without the image's fold."""
    rows = [geometry(image.mean(-1)) for s in sets for batch in s.batches(64) for image in batch]
    return cross_fitted_discriminant(np.stack(rows), labels, fold)


def geometry(image: np.ndarray) -> np.ndarray:
    """Measures somata and neurites of one image.

    Somata are what is above Otsu's threshold and survives an opening; neurites are ridges (Sato et
    al. 1998) elsewhere, thinned to their centre lines.

    Args:
      image: `[H, W]` in [-1, 1].

    Returns:
      `[D]`, lengths in shares of the side; NaN for what is not there.
    """
    side = max(image.shape)
    smooth = ndimage.gaussian_filter(image, max(_SMOOTH * side, 0.5))
    if np.ptp(smooth) < 1e-6:
        return np.full(9 * _SOMATA + 11, np.nan)
    disk = morphology.disk(max(1, round(_THIN * side)))
    bright = morphology.opening(smooth > filters.threshold_otsu(smooth), disk)
    cells = measure.regionprops(measure.label(bright), intensity_image=smooth)
    cells = sorted(cells, key=lambda cell: -cell.area)
    out: list[float] = [len(cells)]
    centres = np.full((_SOMATA, 2), np.nan)
    for k in range(_SOMATA):
        if k >= len(cells):
            out += [np.nan] * 9
            continue
        cell = cells[k]
        centres[k] = np.array(cell.centroid) / side
        stretch = 1 - cell.axis_minor_length / max(cell.axis_major_length, 1e-6)
        turn = 2 * cell.orientation  # an axis, the same after half a turn
        out += [*centres[k], cell.area / side**2, cell.axis_major_length / side]
        out += [cell.axis_minor_length / side, stretch * np.cos(turn), stretch * np.sin(turn)]
        out += [cell.solidity, cell.intensity_mean]
    out += [*np.subtract(centres[0], centres[1])]
    return np.array(
        out + _neurites(smooth, ndimage.binary_dilation(bright, disk, iterations=2), side)
    )


def _neurites(smooth: np.ndarray, somata: np.ndarray, side: int) -> list[float]:
    widths = (max(1.0, side / 100), max(1.5, side / 50))
    ridges = filters.sato(smooth, sigmas=widths, black_ridges=False)
    lines = morphology.skeletonize((ridges > filters.threshold_otsu(ridges)) & ~somata)
    count = int(measure.label(lines, connectivity=2).max())
    where = np.argwhere(lines)
    if len(where) < 3:
        return [len(where) / side, count, *[np.nan] * 6]
    light = smooth[lines]
    return [
        len(where) / side,
        count,
        float(light.mean()),
        float(light.std()),
        *(where.mean(0) / side),
        *(where.std(0) / side),
    ]
