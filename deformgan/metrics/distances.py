"""Distances between sets of images in a space of features: Fréchet and kernel (KID).

Only Inception features with the published weights make an "FID"; every other name says which
features it is made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats

from deformgan.metrics.subject import (
    Features,
    Interval,
    Score,
    Subject,
    grouped,
    jackknife_interval,
    unavailable,
)

_GROUPS = 20  # of blocks, left out one at a time for the standard error of KID
_TILE = 1024  # rows of a kernel matrix held at once
_SIZES = 5  # of subsets that the Fréchet distance is extrapolated from
_RANK = 2  # images for each feature that it takes
_FRECHET = (
    "Fréchet distance of Gaussians fitted to features (Heusel et al. 2017); small samples bias it"
    " upwards, so compare it with its floor, of the same n"
)
_INFINITE = "the Fréchet distance extrapolated to infinitely many images (Chong & Forsyth 2020)"
_KERNEL = (
    "unbiased squared maximum mean discrepancy, cubic kernel (Binkowski et al. 2018); pairs of"
    " real images of one block are left out, since they may be near copies"
)


def score(subject: Subject) -> Iterator[tuple[str, Score]]:
    """Fréchet distance, its extrapolation and KID for every kind of features."""
    for name, features in subject.features.items():
        yield from _of_features(subject, name, features)
    for name, reason in subject.missing.items():
        label = "FID" if name == "inception" else f"Fréchet distance, {name} features"
        yield _key(name), unavailable(label, _FRECHET, reason)
        yield f"kid_{name}", unavailable(f"KID, {name} features", _KERNEL, reason)


def _key(name: str) -> str:
    return "fid" if name == "inception" else f"frechet_{name}"


def _of_features(subject: Subject, name: str, features: Features) -> Iterator[tuple[str, Score]]:
    real, fake, seed = features.real, features.fake, subject.seed
    blocks = subject.real.blocks, subject.fake.blocks
    label = "FID" if name == "inception" else f"Fréchet distance, {name} features"
    floor_n = tuple(map(len, features.floor)) if features.floor else ()
    common: dict[str, Any] = {"ideal": 0.0, "n": (len(real), len(fake)), "features": name}
    if min(len(real), len(fake)) < 2:
        for key in (_key(name), f"{_key(name)}_infinite", f"kid_{name}"):
            yield key, unavailable(label, _FRECHET, "2 images of each side are the least")
        return
    floor = None
    if features.floor and floor_n == common["n"]:  # its bias depends on n
        floor = frechet(*features.floor)
    around = jackknife_interval(lambda a, b: frechet(real[a], fake[b]), blocks)
    value = frechet(real, fake)
    yield _key(name), Score(label, _FRECHET, value, around, floor, floor_n=floor_n, **common)
    yield f"{_key(name)}_infinite", _extrapolated(f"{label}, extrapolated", features, blocks, seed)
    floor = None
    if features.floor and subject.floor:
        own = [images.blocks for images in subject.floor]
        floor = kernel_distance(*features.floor, own[0], own[1])[0]
    kid, error = kernel_distance(real, fake, *blocks, paired=subject.paired)
    label = f"KID, {name} features"
    if np.isnan(kid):
        yield f"kid_{name}", unavailable(label, _KERNEL, "images of one block are no sample")
        return
    around = _normal(kid, error)
    yield f"kid_{name}", Score(label, _KERNEL, kid, around, floor, floor_n=floor_n, **common)


def _extrapolated(
    label: str, features: Features, blocks: tuple[np.ndarray, ...], seed: int
) -> Score:
    real, fake = features.real, features.fake
    least = _RANK * real.shape[1]
    if min(len(real), len(fake)) < least:
        reason = f"{real.shape[1]} features need {least} images of each side to extrapolate"
        return unavailable(label, _INFINITE, reason)
    floor: float | None = None
    floor_n: tuple[int, ...] = ()
    if features.floor and min(map(len, features.floor)) >= least:
        floor = frechet_infinite(*features.floor, seed=seed)
        floor_n = tuple(map(len, features.floor))
    return Score(
        label,
        _INFINITE,
        frechet_infinite(real, fake, seed=seed),
        jackknife_interval(lambda a, b: frechet_infinite(real[a], fake[b], seed=seed), blocks),
        floor,
        0.0,
        (len(real), len(fake)),
        features.name,
        floor_n=floor_n,
    )


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance between Gaussians with the means and covariances of two samples.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)). With centred samples A and B over the roots
    of their degrees of freedom, the last trace is the sum of the singular values of A B', which is
    exact and cheap where there are fewer images than features.

    Args:
      a: `[N, D]`.
      b: `[M, D]`.
    """
    (mean_a, a), (mean_b, b) = _centred(a), _centred(b)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    spread = np.square(a).sum() + np.square(b).sum()
    return float(np.square(mean_a - mean_b).sum() + spread - 2 * cross)


def _centred(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and a matrix whose square is the covariance, of at most D rows."""
    x = np.asarray(x, np.float64)
    mean = x.mean(0)
    x = (x - mean) / np.sqrt(len(x) - 1)
    return mean, np.asarray(np.linalg.qr(x, mode="r")) if len(x) > x.shape[1] else x


def frechet_infinite(a: np.ndarray, b: np.ndarray, *, seed: int) -> float:
    """The Fréchet distance at infinitely many images of both kinds.

    Subsets of growing size are compared; the distance is linear in one over their size, and the
    line's value at 0 is the limit (Chong & Forsyth 2020, eq. 6). That holds where images are more
    than features.

    Args:
      a: `[N, D]`.
      b: `[M, D]`.
      seed: of the subsets.
    """
    rng = np.random.default_rng(seed)
    most = min(len(a), len(b))
    sizes = np.linspace(most // 2, most, _SIZES).astype(int)
    orders = rng.permutation(len(a)), rng.permutation(len(b))
    values = [frechet(a[orders[0][:n]], b[orders[1][:n]]) for n in sizes]
    return float(stats.linregress(1 / sizes, values).intercept)


def kernel_distance(
    a: np.ndarray,
    b: np.ndarray,
    blocks_a: np.ndarray,
    blocks_b: np.ndarray,
    *,
    paired: bool = False,
) -> tuple[float, float]:
    """Unbiased kernel distance (KID) and its standard error.

    MMD^2 with k(x, y) = (x . y / D + 1)^3 (Binkowski et al. 2018, sec. 4), means over pairs of
    different blocks; the error by the jackknife that leaves out groups of blocks.

    Args:
      a: `[N, D]`.
      b: `[M, D]`.
      blocks_a: `[N]`; all different for independent images, which gives the usual KID.
      blocks_b: `[M]`.
      paired: whether equal blocks of both sets are of one thing: pairs of a and b in one are then
        left out too.

    Returns:
      both NaN where a set has one block only; the error NaN of fewer than 3 groups.
    """
    groups = grouped(blocks_a, _GROUPS), grouped(blocks_b, _GROUPS)
    count = min(int(g.max()) + 1 for g in groups)
    group_a, group_b = grouped(blocks_a, count), grouped(blocks_b, count)
    aa = _block_sums(a, a, group_a, group_a, blocks_a, blocks_a)
    bb = _block_sums(b, b, group_b, group_b, blocks_b, blocks_b)
    ab = _block_sums(a, b, group_a, group_b, *((blocks_a, blocks_b) if paired else (None, None)))

    def distance(keep: np.ndarray) -> float:
        means = [s[:, keep][..., keep].sum((1, 2)) for s in (aa, bb, ab)]
        if min(pairs for _, pairs in means) == 0:
            return float("nan")
        aa_mean, bb_mean, ab_mean = (total / pairs for total, pairs in means)
        return float(aa_mean + bb_mean - 2 * ab_mean)

    everything = np.arange(count)
    if count < 3:
        return distance(everything), float("nan")
    parts = np.array([distance(everything[everything != g]) for g in everything])
    error = np.sqrt((count - 1) / count * np.square(parts - parts.mean()).sum())
    return distance(everything), float(error)


def _block_sums(
    x: np.ndarray,
    y: np.ndarray,
    group_x: np.ndarray,
    group_y: np.ndarray,
    blocks_x: np.ndarray | None,
    blocks_y: np.ndarray | None,
) -> np.ndarray:
    """Sums of the kernel between groups, and how many pairs they are of, `[2, G, G]`.

    Pairs of one block are left out where blocks are given.
    """
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    into = np.eye(int(group_y.max()) + 1)[group_y]  # [M, G]
    out = np.zeros((2, int(group_x.max()) + 1, into.shape[1]))
    for first in range(0, len(x), _TILE):
        rows = np.s_[first : first + _TILE]
        kernel = (x[rows] @ y.T / x.shape[1] + 1.0) ** 3
        apart = np.ones(kernel.shape, bool)
        if blocks_x is not None and blocks_y is not None:
            apart = blocks_x[rows, None] != blocks_y[None]
        for k, values in enumerate((kernel * apart, apart)):
            np.add.at(out[k], group_x[rows], values.astype(np.float64) @ into)
    return out


def _normal(value: float, error: float) -> Interval | None:
    if not np.isfinite(error):
        return None
    half = float(stats.norm.ppf(0.975)) * error
    return value - half, value + half
