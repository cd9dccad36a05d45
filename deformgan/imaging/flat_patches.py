"""Where images are flat, the spread of pixels is noise.

A patch is four pixels that share one unknown mean: those around a white square of a chessboard. The
white squares say how bright and how steep a place is, the black ones how noisy, so being chosen as
flat tells nothing about a patch's noise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

CHOICE = 6000  # patches, balanced in brightness, that decide on the kind
_PER_CLASS = 8000  # pixels of known mean, at most, of a class of brightness
_LEVEL = 40000  # patches, at most, for its level: 0.3% without clipping
_CLASSES = 16  # of brightness, among which patches are balanced
_BLUR = 2.0  # pixels, sigma of the blur whose gradient tells what is flat
_FLATTEST = 0.4  # share of the patches or pixels of a class that are used
_FLAT = 8.0  # times the gradient of noise alone: structure adds up to 1% of variance
FEWEST = 30  # patches of a class of brightness that has a say


class Curve(NamedTuple):
    """Noise against brightness as measured, clipped values included; each `[K]`."""

    mean: np.ndarray
    variance: np.ndarray
    patches: np.ndarray


class Patches(NamedTuple):
    """Flat patches: `[P, 4]` pixels, `[P]` class of brightness, `[P]` which are held out."""

    pixels: np.ndarray
    brightness: np.ndarray
    held_out: np.ndarray


def find(images: np.ndarray, step: float, rng: np.random.Generator) -> Patches:
    """Patches where pixels of the other colour of a chessboard show no gradient.

    Args:
      images: `[N, H, W]` unit intensity, at least 16 pixels a side.
      step: distance of two grey levels.
      rng: chooses patches and which are held out.

    Returns:
      patches, the first `CHOICE` balanced in brightness as far as there are enough.
    """
    brightness, steepness, pixels = _patches(images)
    held_out = held_out_half(brightness.shape, rng)
    _, steep, white = _patches(rng.normal(size=(32, 64, 64)))
    noise = _flattest(steep.ravel(), white.reshape(-1, 4), 0.0)[1]
    group = _classes(brightness)
    flat, ratio = {}, {}
    for k in np.unique(group):
        members = np.flatnonzero(group == k)
        chosen, ratio[k] = _flattest(steepness.flat[members], pixels.reshape(-1, 4)[members], step)
        flat[k] = members[chosen]
    least = min(ratio.values())
    used = {k for k in ratio if ratio[k] <= max(_FLAT * noise, 1.5 * least)}
    bright = [k for k in ratio if k >= _CLASSES // 2 and len(flat[k]) >= FEWEST]
    if bright and least > 0:  # noise differs most from kind to kind where it is brightest
        used.add(min(bright, key=lambda k: ratio[k]))
    index = _balanced([flat[k] for k in used], rng)
    return Patches(pixels.reshape(-1, 4)[index], group.flat[index], held_out.flat[index])


def held_out_half(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """True for half of the images of values of shape `[N, ...]`, or half of the values of few."""
    if shape[0] <= 3:
        return rng.random(shape) < 0.5
    held_out = np.zeros(shape, bool)
    held_out[rng.permutation(shape[0])[: shape[0] // 2]] = True
    return held_out


def variance_curve(patches: Patches) -> Curve:
    """Variance against mean, a point for each class of brightness."""
    groups = [patches.pixels[patches.brightness == k] for k in np.unique(patches.brightness)]
    means = np.array([group.mean() for group in groups])
    variances = np.array([group.var(1, ddof=1).mean() for group in groups])
    return Curve(means, variances, np.array([len(group) for group in groups]))


def flat_pixels(
    mean: np.ndarray, mask: np.ndarray | None, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels where the noiseless image is flattest, balanced in brightness as far as possible.

    Args:
      mean: `[N, H, W]` noiseless intensity.
      mask: of the same shape, True for pixels that count; all if None.
      rng: chooses among them.

    Returns:
      `[P]` flat indices and `[P]` classes of brightness.
    """
    steepness = np.sum(np.square(np.gradient(mean, axis=(1, 2))), 0)
    counted = np.arange(mean.size) if mask is None else np.flatnonzero(mask)
    group = _classes(mean.flat[counted])
    used, classes = [], []
    for k in np.unique(group):
        members = counted[group == k]
        steep = steepness.flat[members]
        flat = members[steep <= np.quantile(steep, _FLATTEST)]
        used.append(rng.permutation(flat)[:_PER_CLASS])
        classes.append(np.full(len(used[-1]), k))
    return np.concatenate(used), np.concatenate(classes)


def _classes(brightness: np.ndarray) -> np.ndarray:
    """Class of each value, from 0 for the darkest; classes are equally wide."""
    edges = np.linspace(brightness.min(), np.quantile(brightness, 0.9999), _CLASSES + 1)
    return np.clip(np.digitize(brightness, edges) - 1, 0, _CLASSES - 1)


def _balanced(flat: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Indices from every class, `CHOICE` that are balanced before the others."""
    chosen = np.concatenate([rng.permutation(own)[: CHOICE // len(flat)] for own in flat])
    others = rng.permutation(np.setdiff1d(np.concatenate(flat), chosen))
    missing = CHOICE - len(chosen)
    first = rng.permutation(np.concatenate([chosen, others[:missing]]))
    return np.concatenate([first, others[missing:]])[:_LEVEL]


def _flattest(steepness: np.ndarray, pixels: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """Which patches are flattest, and their squared gradient over their variance."""
    flat = steepness <= np.quantile(steepness, _FLATTEST)
    noise = pixels[flat].var(1, ddof=1).mean()
    return flat, 0.0 if noise < step**2 / 4 else float(steepness[flat].mean() / noise)


def _patches(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every second pixel's brightness and squared gradient `[N, P]`, and neighbours `[N, P, 4]`.

    Brightness and gradient come from pixels of its own colour, its neighbours have the other one.
    """
    rows, columns = np.indices(images.shape[1:])
    own = ((rows + columns) % 2 == 0).astype(np.float64)
    weight = ndimage.gaussian_filter(own, _BLUR)[None]
    smooth = ndimage.gaussian_filter(images * own[None], (0, _BLUR, _BLUR)) / weight
    gradient = np.gradient(smooth, axis=(1, 2))
    inside = (rows > 1) & (rows < rows.max() - 1) & (columns > 1) & (columns < columns.max() - 1)
    centres = inside & (own == 1)
    around = [np.roll(images, shift, axis)[:, centres] for shift in (1, -1) for axis in (1, 2)]
    steepness = np.square(gradient[0]) + np.square(gradient[1])
    return smooth[:, centres], steepness[:, centres], np.stack(around, -1)
