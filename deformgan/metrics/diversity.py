"""Diversity: do samples differ from each other as much as real images do?"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.filters import gaussian_blur
from deformgan.metrics.neighbours import close_pairs, nearest
from deformgan.metrics.subject import ImageSet, Score, Subject, jackknife_interval, unavailable

_SIGMA = 2.0  # pixels: below this, what differs is noise
_STRIDE = 4  # pixels: what a blur of 2 pixels leaves has no finer detail
_BATCH = 64
_CONSTANT = 1e-9  # variance of real images that are all the same
_FEWEST = 20  # independent images that duplicates can be counted by
_AT_LEAST = {True: "", False: ": at least"}
_COLUMNS = 256  # components of vectors copied at once
_RATIO = (
    "variance between generated images over that between real ones, both blurred by 2 pixels"
    " because noise makes copies look diverse; 0 is collapse"
)
_BIRTHDAY = (
    "how many different images the generator seems to have (birthday paradox: Arora & Zhang 2017):"
    " pairs nearer to each other than any two of as many independent real images are duplicates"
)


def diversity_ratio(images: jax.Array, real: jax.Array, *, sigma: float = _SIGMA) -> jax.Array:
    """Mean squared distance between pairs of images, over the same for real ones.

    Images are blurred first: independent camera noise makes copies of one image look diverse.

    Args:
      images: `[N, H, W, C]`, N of 2 or more.
      real: `[M, H, W, C]`, M of 2 or more.
      sigma: of the blur, in pixels.

    Returns:
      Scalar: 0 where all images are the same (collapse), 1 is ideal.
    """

    def spread(x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.var(gaussian_blur(x, sigma), axis=0, ddof=1))

    return spread(images) / jnp.maximum(spread(real), 1e-12)


@jax.jit
def _blurred(images: jax.Array) -> jax.Array:
    return gaussian_blur(images, _SIGMA)[:, ::_STRIDE, ::_STRIDE]


def smoothed(images: ImageSet) -> np.ndarray:
    """Images blurred by 2 pixels and every fourth pixel of them, as vectors `[N, D]` float32."""
    return images.map(_blurred, _BATCH).reshape(len(images), -1)


def support(fake: np.ndarray, threshold: float) -> tuple[float, int]:
    """Estimated number of different images, and how many pairs are duplicates.

    Among N images drawn from S equally likely ones, N (N - 1) / 2 S pairs are expected to be the
    same.

    Args:
      fake: vectors `[N, D]`.
      threshold: distance below which two are duplicates.

    Returns:
      S, infinite where there is no duplicate, and the number of duplicate pairs.
    """
    pairs = close_pairs(fake, threshold)
    possible = len(fake) * (len(fake) - 1) / 2
    return (possible / pairs if pairs else float("inf")), pairs


def score(subject: Subject) -> Iterator[tuple[str, Score]]:
    """The diversity ratio and the size of the generator's support."""
    if min(len(subject.real), len(subject.fake)) < 2:
        yield "diversity", unavailable("Diversity", _RATIO, "2 images of each side are the least")
        return
    real, fake = smoothed(subject.real), smoothed(subject.fake)
    n = (len(real), len(fake))

    def ratio(a: np.ndarray, b: np.ndarray) -> float:
        return _variance(fake, b) / max(_variance(real, a), 1e-12)

    if _variance(real, np.ones(n[0], bool)) < _CONSTANT:
        for key, label, about in (
            ("diversity", "Diversity", _RATIO),
            ("support", "Different images", _BIRTHDAY),
        ):
            yield key, unavailable(label, about, "the real images do not vary")
        return
    interval = jackknife_interval(ratio, (subject.real.blocks, subject.fake.blocks))
    value = ratio(np.ones(n[0], bool), np.ones(n[1], bool))
    floor = None
    if subject.floor is not None:
        known, other = (_variance(smoothed(s), np.ones(len(s), bool)) for s in subject.floor)
        floor = other / max(known, 1e-12)
    yield "diversity", Score("Diversity", _RATIO, value, interval, floor, 1.0, n)
    yield "support", _support(subject, real, fake)


def _support(subject: Subject, real: np.ndarray, fake: np.ndarray) -> Score:
    """One real image a block and as many fakes, so that chance makes as many pairs of both."""
    label, rng = "Different images", np.random.default_rng(subject.seed)
    lone = np.unique(subject.real.blocks, return_index=True)[1]
    count = min(len(lone), len(fake))
    if count < _FEWEST:
        reason = f"{count} independent images of each side; {_FEWEST} are the least"
        return unavailable(label, _BIRTHDAY, reason)
    known = real[lone[:count]]
    chosen = fake[np.sort(rng.permutation(len(fake))[:count])]
    closest = float(nearest(known, known, 2)[0][:, 1].min())
    size, pairs = support(chosen, closest)
    possible = count * (count - 1) / 2
    words = f"{label} ({pairs} duplicates among {possible:.0f} pairs{_AT_LEAST[pairs > 0]})"
    value = min(size, possible)
    return Score(words, _BIRTHDAY, value, None, possible, None, (count, count), unit="images")


def _variance(vectors: np.ndarray, chosen: np.ndarray) -> float:
    """Mean over components of the variance of the chosen vectors, a few components at a time."""
    columns = range(0, vectors.shape[1], _COLUMNS)
    sums = [np.var(vectors[chosen, c : c + _COLUMNS], 0, ddof=1).sum() for c in columns]
    return float(np.sum(sums) / vectors.shape[1])
