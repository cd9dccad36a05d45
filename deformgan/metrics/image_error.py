"""Errors of images that should equal known ones, beside what costs nothing to reach."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np

from deformgan.metrics.copying import neighbours
from deformgan.metrics.subject import ImageSet, Score, Subject, mean_interval, unavailable

BATCH = 64
_ABOUT = {
    "mse": "mean squared error on intensities from 0 to 255; mean over images",
    "psnr": "peak signal-to-noise ratio; mean over images that are not identical",
    "ssim": "structural similarity, Gaussian window of 11 pixels (Wang et al. 2004)",
}
_UNITS = {"mse": "", "psnr": "dB", "ssim": ""}
_IDEAL = {"mse": 0.0, "psnr": None, "ssim": 1.0}


class Errors(NamedTuple):
    """Of each image `[N]`; PSNR is infinite for identical images."""

    mse: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


@jax.jit
def _errors(images: jax.Array, truth: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    a, b = (images + 1) / 2, (truth + 1) / 2
    mse = jnp.mean(jnp.square(a - b), (1, 2, 3))
    return 255.0**2 * mse, -10 * jnp.log10(mse), dm_pix.ssim(a, b, max_val=1.0)


def errors(images: Iterable[np.ndarray], truth: ImageSet) -> Errors:
    """MSE (0-255), PSNR (dB) and SSIM of each image.

    Args:
      images: predictions in [-1, 1], in batches of `BATCH` as `truth.batches` gives them.
      truth: `[N, H, W, C]`, sides of 11 pixels or more.
    """
    pairs = zip(images, truth.batches(BATCH), strict=True)
    parts = [jax.device_get(_errors(jnp.asarray(a), jnp.asarray(b))) for a, b in pairs]
    return Errors(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def baselines(
    truth: ImageSet, train: ImageSet | None, neighbour: np.ndarray | None
) -> dict[str, Iterable[np.ndarray] | str]:
    """Predictions that cost nothing to make, in batches as `errors` takes them, or why not.

    Args:
      truth: what should be predicted; its mean colour counts where there are no training images.
      train: targets of the training pairs, or None.
      neighbour: for each image, the training pair whose input is nearest to its own
        (`copying.neighbours` of the inputs), or None.
    """

    def everywhere(colour: np.ndarray) -> Iterable[np.ndarray]:
        colour = np.asarray(colour, np.float32)
        return (np.broadcast_to(colour, batch.shape) for batch in truth.batches(BATCH))

    known = truth if train is None else train
    mean = sum(batch.sum((0, 1, 2)) for batch in known.batches(BATCH))
    mean = mean / np.prod(known.stored.shape[:3])
    near: Iterable[np.ndarray] | str = "the inputs of the training pairs are unknown"
    if train is not None and neighbour is not None:
        near = train.take(neighbour).batches(BATCH)
    black = np.full(truth.stored.shape[-1], -1.0)
    return {
        "all_black": everywhere(black),
        "mean_colour": everywhere(mean),
        "nearest_training": near,
    }


def nearest_pair(subject: Subject) -> np.ndarray | None:
    """For each pair, the training pair whose input is nearest to its own; None if unknown."""
    if subject.condition is None or subject.train_condition is None:
        return None
    return neighbours(subject.condition, subject.train_condition)


def score(subject: Subject) -> Iterator[tuple[str, Score]]:
    """The three errors and those of the baselines; only for images that come in pairs."""
    if not subject.paired:
        reason = "no truth is known for each image; for files in pairs set evaluate.paired"
        for name, about in _ABOUT.items():
            yield name, unavailable(name.upper(), about, reason)
        return
    truth = subject.real
    yield from _summary("", errors(subject.fake.batches(BATCH), truth), truth.blocks)
    for name, prediction in baselines(truth, subject.train, nearest_pair(subject)).items():
        if isinstance(prediction, str):
            label = f"MSE of {name.replace('_', ' ')}"
            yield f"mse_{name}", unavailable(label, _ABOUT["mse"], prediction)
        else:
            yield from _summary(name, errors(prediction, truth), truth.blocks)


def _summary(baseline: str, found: Errors, blocks: np.ndarray) -> Iterator[tuple[str, Score]]:
    """Mean and standard deviation over images; identical images have no finite PSNR."""
    for name, values in found._asdict().items():
        there = np.isfinite(values)
        key, words = name, ""
        if baseline:
            key, words = f"{name}_{baseline}", f" of {baseline.replace('_', ' ')}"
        finite = values[there].astype(np.float64)
        apart = "" if there.all() else f"; {np.sum(~there)} identical apart"
        if not len(finite):
            label = f"{name.upper()}{words}"
            yield key, unavailable(label, _ABOUT[name], "all images are identical")
            continue
        yield (
            key,
            Score(
                f"{name.upper()}{words}",
                f"{_ABOUT[name]}{apart}",
                float(finite.mean()),
                mean_interval(finite, blocks[there]),
                ideal=None if baseline else _IDEAL[name],
                n=(len(finite),),
                unit=_UNITS[name],
                spread=float(finite.std()),
            ),
        )
