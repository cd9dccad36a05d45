"""Precision, recall, density and coverage: fidelity and variety, told apart by neighbourhoods.

Where real images come in blocks of near copies their neighbourhoods are small: read each number
beside its floor. Intervals are over the images that are counted, the others taken as given.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from deformgan.metrics.neighbours import nearest, within
from deformgan.metrics.subject import Score, Subject, mean_interval, share_interval, unavailable

_K_PRECISION = 3  # Kynkäänniemi et al. 2019, sec. 3
_K_DENSITY = 5  # Naeem et al. 2020, sec. 3.2
_ABOUT = {
    "precision": "share of generated images near a real one (Kynkäänniemi et al. 2019): fidelity",
    "recall": "share of real images near a generated one (Kynkäänniemi et al. 2019): variety",
    "density": "how many real neighbourhoods a generated image lies in, over the number expected"
    " (Naeem et al. 2020): fidelity, robust to outliers",
    "coverage": "share of real images with a generated one in their neighbourhood (Naeem et al."
    " 2020): variety, robust to outliers",
}


class Memberships(NamedTuple):
    """What each measure is the mean of: over generated images `[M]` or over real ones `[N]`."""

    precision: np.ndarray
    recall: np.ndarray
    density: np.ndarray
    coverage: np.ndarray


def memberships(real: np.ndarray, fake: np.ndarray) -> Memberships:
    """Precision and recall with k = 3, density and coverage with k = 5.

    Args:
      real: features `[N, D]`, N of 6 or more.
      fake: features `[M, D]`, M of 6 or more.

    Returns:
      The means of its members are the four measures.
    """
    real_radii = nearest(real, real, _K_DENSITY + 1)[0]  # the nearest is the image itself
    fake_radii = nearest(fake, fake, _K_PRECISION + 1)[0]
    near_real, _ = within(fake, real, real_radii[:, _K_PRECISION])
    near_fake, _ = within(real, fake, fake_radii[:, _K_PRECISION])
    inside, holding = within(fake, real, real_radii[:, _K_DENSITY])
    return Memberships(near_real > 0, near_fake > 0, inside / _K_DENSITY, holding > 0)


def score(subject: Subject) -> Iterator[tuple[str, Score]]:
    """The four measures for every kind of features."""
    over = {"precision": subject.fake, "density": subject.fake}
    for name, features in subject.features.items():
        if min(len(features.real), len(features.fake)) <= _K_DENSITY:
            reason = f"{_K_DENSITY + 1} images of each side are the least"
            for measure, about in _ABOUT.items():
                yield f"{measure}_{name}", unavailable(measure.capitalize(), about, reason)
            continue
        found = memberships(features.real, features.fake)
        floor = memberships(*features.floor)._asdict() if features.floor else {}
        for measure, values in found._asdict().items():
            blocks = over.get(measure, subject.real).blocks
            interval = mean_interval if measure == "density" else share_interval
            yield (
                f"{measure}_{name}",
                Score(
                    f"{measure.capitalize()}, {name} features",
                    _ABOUT[measure],
                    float(np.mean(values)),
                    interval(np.asarray(values, float), blocks),
                    float(np.mean(floor[measure])) if floor else None,
                    1.0,
                    (len(features.real), len(features.fake)),
                    name,
                    floor_n=tuple(map(len, features.floor)) if features.floor else (),
                ),
            )
    for name, reason in subject.missing.items():
        for measure, about in _ABOUT.items():
            label = f"{measure.capitalize()}, {name} features"
            yield f"{measure}_{name}", unavailable(label, about, reason)
