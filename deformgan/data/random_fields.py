"""Random fields that the simulated sections are made of: plane waves, noise, streaks along an axis.

An axis is the unit vector exp(2i direction), the direction counter-clockwise from the +column axis
as seen on screen.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_WAVES = 24  # in a field


def waves(rng: np.random.Generator, size: int, wavelengths: tuple[float, float]) -> np.ndarray:
    """A sum of plane waves in all directions, `[size, size]` float32 of variance 1.

    Args:
      rng: of the waves.
      size: pixels along each side.
      wavelengths: shortest and longest, in pixels.
    """
    return waves_and_gradient(rng, np.arange(size, dtype=np.float32), wavelengths)[0]


def waves_and_gradient(
    rng: np.random.Generator, place: np.ndarray, wavelengths: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """`waves` on the rows and columns `place`; and their gradient x + iy, y upwards on screen."""
    length = rng.uniform(*wavelengths, _WAVES)
    angle, phase = rng.uniform(0, 2 * np.pi, (2, _WAVES))
    by_row, by_column = 2 * np.pi / length * np.array([np.sin(angle), np.cos(angle)])
    rows = place[:, None] * by_row[None] + phase[None]
    columns = place[None] * by_column[:, None]
    cosine, sine = np.cos(columns), np.sin(columns)
    left = np.concatenate([np.cos(rows), np.sin(rows)], 1) * np.sqrt(2 / _WAVES)

    def product(of_cosine: np.ndarray, of_sine: np.ndarray) -> np.ndarray:
        right = np.concatenate([of_cosine, of_sine])
        return left.astype(np.float32) @ right.astype(np.float32)

    value = product(cosine, -sine)  # cos(rows + columns)
    down, right = (-product(k[:, None] * sine, k[:, None] * cosine) for k in (by_row, by_column))
    return value, right - 1j * down


def noise(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    """White noise after a Gaussian blur of `sigma` pixels, `[size, size]` float32 of variance 1."""
    white = rng.standard_normal((size, size), np.float32)
    blurred = ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=3)
    return blurred / blurred.std()


def streaks(rng: np.random.Generator, axis: np.ndarray, width: float, reach: int) -> np.ndarray:
    """Noise drawn out along an axis: a line integral convolution, along straight lines.

    Cabral and Leedom 1993 follow the curved lines; over `reach` pixels they are nearly straight.

    Args:
      rng: of the noise.
      axis: `[S, S]` complex.
      width: sigma of the noise, in pixels.
      reach: to each side, in pixels.

    Returns:
      `[S, S]` float32 of variance 1.
    """
    size = len(axis)
    wide = size + 2 * reach
    source = noise(rng, wide, width).ravel()
    angle = np.angle(axis) / 2
    up, right = np.sin(angle), np.cos(angle)
    place = np.arange(size, dtype=np.float32) + reach
    total = np.zeros(axis.shape, np.float32)
    for along in np.arange(-reach, reach + 0.1, 2 * width, dtype=np.float32):
        row = np.rint(place[:, None] - along * up).astype(np.int32)
        total += source[row * wide + np.rint(place[None] + along * right).astype(np.int32)]
    return total / total.std()
