"""How the noise of neighbouring pixels is correlated, measured on the background."""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage

_LAGS = 6  # pixels, as far as correlation reaches
_WIDE = 12.0  # pixels, sigma of what is background rather than noise
_UNCORRELATED = 0.02  # correlation with a neighbour that counts as none


def background_residuals(images: np.ndarray) -> np.ndarray:
    """Images `[N, H, W]` less their smooth background, NaN where there is anything else."""
    smooth = ndimage.gaussian_filter(images, (0, 2, 2))
    level = np.median(smooth, axis=(1, 2), keepdims=True)
    spread = 1.4826 * np.median(np.abs(smooth - level))
    objects = ndimage.median_filter(np.abs(smooth - level) > 2.5 * spread, (1, 3, 3))
    background = ~ndimage.maximum_filter(objects, (1, 7, 7))
    blur = (0, _WIDE, _WIDE)
    weight = ndimage.gaussian_filter(background.astype(np.float64), blur)
    wide = ndimage.gaussian_filter(images * background, blur) / np.maximum(weight, 1e-6)
    return np.where(background, images - wide, np.nan)


def autocorrelation(residuals: np.ndarray) -> np.ndarray:
    """`[2L + 1, 2L + 1]` correlation of pixels up to L = 6 rows and columns apart, 1 at no lag.

    Args:
      residuals: `[N, H, W]`, NaN where there is none.
    """
    known = np.isfinite(residuals)
    centred = np.where(known, residuals - np.nanmean(residuals), 0) if known.any() else 0.0 * known
    size = [fft.next_fast_len(n + _LAGS) for n in residuals.shape[1:]]

    def products(x: np.ndarray) -> np.ndarray:
        power = np.square(np.abs(fft.rfft2(x, size))).sum(0)
        centre = np.roll(fft.irfft2(power, size), (_LAGS, _LAGS), (0, 1))
        return centre[: 2 * _LAGS + 1, : 2 * _LAGS + 1]

    covariance = products(centred) / np.maximum(products(known.astype(np.float64)), 0.5)
    return covariance / max(covariance[_LAGS, _LAGS], 1e-30)


def correlation_kernel(residuals: np.ndarray, *, step: float = 0.0) -> np.ndarray:
    """Kernel that gives white noise the residuals' correlation.

    The square root of the spectrum (the zero-phase one of all such kernels).

    Args:
      residuals: `[N, H, W]` noise, NaN where there is none.
      step: distance of grey levels: rounding adds step² / 12 that is white.

    Returns:
      `[k, k]` float32, squares summing to 1; `[[1]]` if neighbours are not correlated.
    """
    lags = autocorrelation(residuals)
    near = np.delete(lags[_LAGS - 1 : _LAGS + 2, _LAGS - 1 : _LAGS + 2].ravel(), 4)
    chance = 5 / np.sqrt(max(np.isfinite(residuals).sum(), 1))
    if np.abs(near).max() < max(_UNCORRELATED, chance):
        return np.ones((1, 1), np.float32)
    rounding = min(step**2 / 12 / max(np.nanvar(residuals), 1e-30), 0.5)
    lags[_LAGS, _LAGS] = max(1 - rounding, np.abs(near).max())
    size = 4 * _LAGS
    whole = np.zeros((size, size))
    whole[: len(lags), : len(lags)] = lags
    spectrum = fft.fft2(np.roll(whole, (-_LAGS, -_LAGS), (0, 1))).real
    kernel = fft.ifft2(np.sqrt(np.maximum(spectrum, 0))).real
    kernel = np.roll(kernel, (_LAGS, _LAGS), (0, 1))[: len(lags), : len(lags)]
    return (kernel / np.sqrt(np.square(kernel).sum())).astype(np.float32)


def shared_variance(residuals: np.ndarray) -> float:
    """Share of the noise's variance that the four pixels around one have in common."""
    lags = autocorrelation(residuals)
    two, one = _LAGS + 2, _LAGS + 1
    diagonal = lags[one, one] + lags[one, _LAGS - 1]
    return float(2 * diagonal + lags[two, _LAGS] + lags[_LAGS, two]) / 6  # of the six pairs
