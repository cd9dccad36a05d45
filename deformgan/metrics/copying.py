"""Copying: are generated images nearer to the training images than unseen real ones are?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from deformgan.metrics.diversity import smoothed
from deformgan.metrics.neighbours import nearest
from deformgan.metrics.subject import ImageSet, Score, Subject, jackknife_interval, unavailable

_AMONG = 2000  # training images whose own neighbours make the floor
_NEARER = (
    "probability that a generated image is nearer to the training set than a held-out real one is"
    " (Meehan et al. 2020); above 0.5 and above the floor, which is a training image among the"
    " others: it copies"
)
_RATIO = (
    "median distance of generated images to their nearest training image, over that of held-out"
    " real images; far below 1 and below the floor, which is a training image among the others: it"
    " copies"
)


_FIELDS = (
    "median distance of generated velocity fields to the nearest that was found for a training"
    " image, over that of such a field to the nearest other; far below 1: it replays them"
)


def score(subject: Subject) -> Iterator[tuple[str, Score]]:
    """Both measures in blurred pixels and in every kind of features, the second for fields too."""
    if subject.velocity is not None and subject.train_velocity is not None:
        yield "nearest_training_field", _of_fields(subject.velocity, subject.train_velocity)
    if subject.train is None:
        for space in ("pixels", *subject.features):
            reason = "the training images are unknown"
            yield f"copying_{space}", unavailable(f"Copying, {space}", _NEARER, reason)
        return
    sets = {"pixels": (smoothed(subject.real), smoothed(subject.fake), smoothed(subject.train))}
    for name, own in subject.features.items():
        if own.train is not None:
            sets[name] = (own.real, own.fake, own.train)
    for space, (real, fake, train) in sets.items():
        unseen, made = (nearest(x, train, 1)[0][:, 0] for x in (real, fake))
        among = nearest(train[:_AMONG], train, 2)[0][:, 1]  # the nearest is the image itself
        blocks = subject.real.blocks, subject.fake.blocks
        for key, label, about, statistic, ideal, top in (
            ("copying", "Copying", _NEARER, nearer, 0.5, 1.0),
            ("nearest_training_ratio", "Nearest training image", _RATIO, median_ratio, 1.0, np.inf),
        ):
            around = jackknife_interval(
                lambda a, b, s=statistic, x=unseen, y=made: s(x[a], y[b]), blocks
            )
            yield (
                f"{key}_{space}",
                Score(
                    f"{label}, {space}",
                    about,
                    statistic(unseen, made),
                    around and (max(around[0], 0.0), min(around[1], top)),
                    statistic(unseen, among),
                    ideal,
                    (len(real), len(fake), len(train)),
                    space,
                    floor_n=(len(real), len(among)),
                ),
            )


def _of_fields(made: np.ndarray, train: np.ndarray) -> Score:
    rows, found = (x.reshape(len(x), -1) for x in (made, train))
    nearest_found = nearest(rows, found, 1)[0][:, 0]
    among = nearest(found[:_AMONG], found, 2)[0][:, 1]
    around = jackknife_interval(
        lambda a, b: median_ratio(among[a], nearest_found[b]),
        (np.arange(len(among)), np.arange(len(rows))),
    )
    return Score(
        "Nearest training field",
        _FIELDS,
        median_ratio(among, nearest_found),
        around,
        ideal=1.0,
        n=(len(found), len(rows)),
    )


def nearer(unseen: np.ndarray, made: np.ndarray) -> float:
    """P(made < unseen), ties counted half: the Mann-Whitney statistic over all pairs, in [0, 1]."""
    order = np.sort(unseen)
    above = len(order) - np.searchsorted(order, made, "right")
    ties = np.searchsorted(order, made, "right") - np.searchsorted(order, made, "left")
    return float(np.mean(above + 0.5 * ties) / len(order))


def median_ratio(unseen: np.ndarray, made: np.ndarray) -> float:
    """Median of `made` over the median of `unseen`."""
    return float(np.median(made) / max(float(np.median(unseen)), 1e-12))


def neighbours(images: ImageSet, train: ImageSet) -> np.ndarray:
    """Index of the training image nearest to each image, in blurred pixels, `[N]`."""
    return nearest(smoothed(images), smoothed(train), 1)[1][:, 0]
