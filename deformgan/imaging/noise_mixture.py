"""Maximum likelihood of a noise model from flat patches whose means are unknown.

The noise's level and the distribution of the means are fitted together (Kiefer and Wolfowitz 1956;
Laird 1978), clipping and rounding included: means lie on a grid, weights say how many have each
value, and EM alternates between the patches' means and the level.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse, special

from deformgan.imaging import flat_patches, photon_comb
from deformgan.imaging.flat_patches import Curve, Patches
from deformgan.imaging.photon_comb import Comb

# What is fitted, simplest first: a more complicated one must explain the held-out images better.
_MODELS = {
    "gaussian": ("read",),
    "poisson": ("gain",),
    "speckle": ("speckle",),
    "poisson, dark": ("gain", "dark"),
    "speckle, dark": ("speckle", "dark"),
    "poisson_gaussian": ("gain", "read"),
}
_BETTER = 0.005  # nats a pixel, which leftover structure or means slightly off may bring
_LEVELS = 512  # grey levels are joined until there are no more than these
_MEANS = 300  # points, at most, that means are distributed on
_ROUNDS = 12  # of EM, at most
_STEPS = (1.0, 0.5, 0.25, 0.1, 0.03)  # lengths that a step is tried with
_RAREST = 1e-7  # weight of a mean; without any it could never return
_CONVERGED = 3e-4  # relative change of a level in a round
_ANYTHING = 1e-4  # share of pixels that may have any value


class Fit(NamedTuple):
    """A fitted model.

    Attributes:
      level: what `Camera.create` takes: some of gain, read, speckle, dark.
      means: `[M]` unit intensities.
      weights: `[M]` how common they are, summing to 1.
      held_out: log-likelihood per pixel of each held-out patch.
    """

    level: dict[str, float]
    means: np.ndarray
    weights: np.ndarray
    held_out: np.ndarray


class _Grid(NamedTuple):
    means: np.ndarray  # [M] that patches may have
    tops: np.ndarray  # [L - 1] upper limits of the bins pixels are counted in; the last has none
    step: float  # distance of two grey levels


def choose_and_fit(patches: Patches, step: float, comb: Comb | None) -> tuple[str, Fit]:
    """Kind of the noise by the held-out balanced patches, its level by all patches."""
    few = Patches(*(part[: flat_patches.CHOICE] for part in patches))
    fits = {name: _fit(few, name, step, comb) for name in _MODELS}
    held_out = {name: fit.held_out for name, fit in fits.items()}
    name = simplest(held_out, few.brightness[few.held_out])
    everything = patches._replace(held_out=np.zeros(len(patches.pixels), bool))
    return name.split(",")[0], _fit(everything, name, step, comb, fits[name].level)


def simplest(held_out: dict[str, np.ndarray], brightness: np.ndarray) -> str:
    """The first model that none beats by more than chance and a slight misfit explain.

    Every class of brightness has the same say, or the background would decide alone.

    Args:
      held_out: by model, simplest first: `[P]` log-likelihoods, per pixel.
      brightness: `[P]` class of each.
    """
    groups = [brightness == k for k in np.unique(brightness)]
    groups = [g for g in groups if g.sum() >= flat_patches.FEWEST]
    groups = groups or [np.ones(len(brightness), bool)]
    best = max(held_out, key=lambda name: np.mean([held_out[name][g].mean() for g in groups]))
    for name, own in held_out.items():
        leads = [held_out[best][g] - own[g] for g in groups]
        error = np.sqrt(sum(lead.var() / len(lead) for lead in leads)) / len(leads)
        if np.mean([lead.mean() for lead in leads]) <= _BETTER + 2 * error:
            return name
    return best


def background(fit: Fit) -> float:
    """Mean of the means within 0.1 of the median one: most of a frame is background."""
    cumulated = np.cumsum(fit.weights)
    median = fit.means[np.searchsorted(cumulated, 0.5)]
    near = np.abs(fit.means - median) < 0.1
    return float(np.average(fit.means[near], weights=fit.weights[near]))


def _fit(
    patches: Patches,
    name: str,
    step: float,
    comb: Comb | None,
    level: dict[str, float] | None = None,
) -> Fit:
    """Level of one model by EM: posterior of each patch's mean, then the likelihood's maximum."""
    curve = flat_patches.variance_curve(patches)
    noise = np.sqrt(np.maximum(curve.variance, step**2 / 12))
    grid = _Grid(_mean_grid(patches.pixels, noise), _bin_tops(step), step)
    counts = _counts(patches.pixels, grid.tops)
    trained, tested = counts[~patches.held_out], counts[patches.held_out]
    weights = np.full(len(grid.means), 1 / len(grid.means))
    if name == "poisson" and comb is not None:
        table = _logarithm(photon_comb.probability(comb, *grid))
        likelihood = _likelihood(trained, table)[0]
        for _ in range(_ROUNDS):
            weights, _ = _em_step(likelihood, weights)
        return Fit(comb._asdict(), grid.means, weights, _score(tested, table, weights))
    level = level or _initial(name, curve, noise)
    for _ in range(_ROUNDS):
        weights, posterior = _em_step(_likelihood(trained, _table(level, grid))[0], weights)
        level, before = _maximise(level, trained.T @ posterior, grid), level
        if all(abs(level[k] - before[k]) <= _CONVERGED * abs(before[k]) for k in level):
            break
    return Fit(level, grid.means, weights, _score(tested, _table(level, grid), weights))


def _mean_grid(pixels: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Means a third of the least noise apart, beyond [0, 1] where noise is clipped."""
    low, high = pixels.mean(1).min() - noise.max(), pixels.mean(1).max() + noise.max()
    count = int(np.clip((high - low) / (noise.min() / 3), 30, _MEANS))
    return np.linspace(low, high, count)


def _bin_tops(step: float) -> np.ndarray:
    joined = int(np.ceil(round(1 / step) / _LEVELS))
    return (np.arange(0, round(1 / step), joined) + 0.5) * step


def _counts(pixels: np.ndarray, tops: np.ndarray) -> sparse.csr_matrix:
    """`[P, L]`: how many of a patch's pixels lie in each bin."""
    bins = np.searchsorted(tops, pixels.ravel())
    owner = np.repeat(np.arange(len(pixels)), pixels.shape[1])
    shape = (len(pixels), len(tops) + 1)
    return sparse.csr_matrix((np.ones(len(bins)), (owner, bins)), shape=shape)


def _initial(name: str, curve: Curve, noise: np.ndarray) -> dict[str, float]:
    mean = np.maximum(curve.mean, 1e-3)
    value = {
        "read": float(np.median(noise)),
        "gain": float(np.median(curve.variance / mean)),
        "speckle": float(np.median(noise / mean)),
        "dark": 0.0,
    }
    return {part: value[part] for part in _MODELS[name]}


def _table(level: dict[str, float], grid: _Grid) -> np.ndarray:
    """`[L, M]` log-probability of each bin given each mean, for normal noise."""
    light = np.maximum(grid.means - level.get("dark", 0.0), 0)
    variance = level.get("read", 0.0) ** 2 + level.get("gain", 0.0) * light
    variance += (level.get("speckle", 0.0) * light) ** 2
    sigma = np.sqrt(variance + (grid.step / 10) ** 2)
    below = special.ndtr((grid.tops[:, None] - grid.means[None]) / sigma[None])
    return _logarithm(np.diff(below, axis=0, prepend=0, append=1))


def _logarithm(probability: np.ndarray) -> np.ndarray:
    return np.log((1 - _ANYTHING) * np.maximum(probability, 0) + _ANYTHING / len(probability))


def _likelihood(counts: sparse.csr_matrix, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[P, M]` likelihood of each mean for each patch over the greatest, `[P]` log of that."""
    logarithm = counts @ table
    top = logarithm.max(1)
    return np.exp(logarithm - top[:, None]), top


def _score(counts: sparse.csr_matrix, table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[P]` log-likelihood of each patch, per pixel."""
    likelihood, top = _likelihood(counts, table)
    return (np.log(likelihood @ weights) + top) / 4


def _em_step(likelihood: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Better weights `[M]`, and the posterior `[P, M]` of the means that they come from."""
    scale = 1 / (likelihood @ weights)
    weights = np.maximum(weights * (scale @ likelihood) / len(likelihood), _RAREST)
    ratio = likelihood / (likelihood @ weights)[:, None]  # over the likelihood of the mixture
    return _improved(ratio, weights), ratio * weights[None]


def _improved(ratio: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A step of sequential quadratic programming (Kim et al. 2020, mixsqp) for the weights.

    EM alone would take hundreds of rounds to narrow the distribution of means.
    """
    gradient = ratio.mean(0)
    hessian = ratio.T @ ratio / len(ratio)
    hessian[np.diag_indices(len(weights))] += 1e-8 * np.trace(hessian) / len(weights)
    root = np.linalg.cholesky(hessian)
    target = np.linalg.solve(root, 2 * gradient - 1)
    step = optimize.nnls(root.T, target)[0] - weights
    change = ratio @ step
    gains = [np.log(np.maximum(1 + a * change, 1e-30)).mean() - a * step.sum() for a in _STEPS]
    better = np.maximum(weights + _STEPS[int(np.argmax(gains))] * step, _RAREST)
    return better / better.sum()


def _maximise(level: dict[str, float], counts: np.ndarray, grid: _Grid) -> dict[str, float]:
    """A few steps towards the most likely level, given `[L, M]` expected counts."""
    total = counts.sum()

    def loss(vector: np.ndarray) -> float:
        return -float(np.sum(counts * _table(_unpacked(level, vector), grid))) / total

    start = [v if part == "dark" else np.log(max(v, 1e-6)) for part, v in level.items()]
    found = optimize.minimize(loss, start, method="BFGS", options={"maxiter": 3})
    return _unpacked(level, found.x)


def _unpacked(level: dict[str, float], vector: np.ndarray) -> dict[str, float]:
    """Dark as it is, the others by their logarithm.

    Dark is not negative: shot noise from there would be that from 0 with read noise.
    """
    return {
        part: max(float(v), 0.0) if part == "dark" else float(np.exp(np.clip(v, -14, 2)))
        for part, v in zip(level, vector, strict=True)
    }
