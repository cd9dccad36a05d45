"""White shot noise whose photons add several grey levels each: they can be counted.

Such images hold the grey levels round(dark + gain n) alone, n = 0, 1, 2, ..., like the teeth of a
comb. Spacing and start are the camera's `gain` and `dark`, exactly, whatever the images show.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

_FARTHEST = 0.2  # unit intensity: how far means may be off


class Comb(NamedTuple):
    """Unit intensity that a photon adds, and unit intensity without any."""

    gain: float
    dark: float


def find(images: np.ndarray, step: float) -> Comb | None:
    """The comb of images of any shape, or None if their grey levels are no comb.

    Every spacing that fits is found by linear programming and the middle one taken.
    """
    levels = np.unique(np.round(images / step))
    gaps = np.diff(levels[:-1])  # the last may be clipped
    if len(gaps) < 4 or np.median(gaps) < 2:
        return None
    uneven = np.abs(gaps - np.median(gaps)) > 1
    end = int(np.argmax(uneven)) if uneven.any() else len(gaps)
    if end < 4:
        return None
    n = np.arange(end + 1)
    # Least r with |levels - dark - gain n| <= r, over (gain, dark, r).
    upper = np.stack([n, np.ones_like(n), -np.ones_like(n)], 1)
    lower = np.stack([-n, -np.ones_like(n), -np.ones_like(n)], 1)
    limits = np.concatenate([levels[: end + 1], -levels[: end + 1]])
    found = optimize.linprog(
        [0, 0, 1], np.concatenate([upper, lower]), limits, bounds=[(1, None), (None, None), (0, 1)]
    )
    if not found.success or found.x[2] > 0.5 + 1e-6:
        return None
    return Comb(float(found.x[0]) * step, float(found.x[1]) * step)


def probability(comb: Comb, means: np.ndarray, tops: np.ndarray, step: float) -> np.ndarray:
    """`[L, M]` probability of each bin given each mean.

    Args:
      comb: of the images.
      means: `[M]` noiseless unit intensities.
      tops: `[L - 1]` upper limits of the bins; the last one has none.
      step: distance of two grey levels.
    """
    gain, dark = comb
    photons = np.arange(int(np.ceil((1 - dark) / gain)) + 1)
    photons = np.append(photons, photons[-1] + 1)
    rate = np.maximum((means - dark) / gain, 1e-9)
    chance = stats.poisson.pmf(photons[:-1, None], rate[None])
    chance = np.concatenate([chance, stats.poisson.sf(photons[-2], rate)[None]])
    bins = np.searchsorted(tops, np.round((dark + gain * photons) / step, 6).round() * step)
    table = np.zeros((len(tops) + 1, len(means)))
    np.add.at(table, bins, chance)
    return table


def mean_offset(comb: Comb, image: np.ndarray, mean: np.ndarray, step: float) -> float:
    """What is to be added to the means `[P]` to make the photons of pixels `[P]` most likely."""
    gain, dark = comb
    photons = np.round((image - dark) / gain)
    clipped = image >= 1 - step / 2

    def loss(offset: float) -> float:
        rate = np.maximum((mean + offset - dark) / gain, 1e-6)
        counted = photons * np.log(rate) - rate
        tail = stats.poisson.logsf(photons[clipped] - 1, rate[clipped])
        return -float(np.sum(counted[~clipped]) + np.sum(tail)) / len(rate)

    bounds = (-_FARTHEST, _FARTHEST)
    return float(optimize.minimize_scalar(loss, bounds=bounds, method="bounded").x)
