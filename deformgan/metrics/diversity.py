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
_COLUMNS = 256  # components of vectors copied at once
_RATIO = (
    "variance between generated images over that between real ones, both blurred by 2 pixels"
    " because noise makes copies look diverse; 0 is collapse"
)
_BIRTHDAY = (
    "how many different images the generator seems to have (birthday paradox: Arora & Zhang 2017):"
    " pairs nearer to each other than any two real images of different blocks count as duplicates"
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
    parts = []
    for batch in images.batches(_BATCH):
        padded = np.concatenate([batch, np.zeros((_BATCH - len(batch), *batch.shape[1:]))])
        parts.append(np.asarray(_blurred(padded.astype(np.float32)))[: len(batch)])
    return np.concatenate(parts).reshape(len(images), -1)


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
    real, fake = smoothed(subject.real), smoothed(subject.fake)
    n = (len(real), len(fake))

    def ratio(a: np.ndarray, b: np.ndarray) -> float:
        return _variance(fake, b) / max(_variance(real, a), 1e-12)

    interval = jackknife_interval(ratio, (subject.real.blocks, subject.fake.blocks))
    value = ratio(np.ones(n[0], bool), np.ones(n[1], bool))
    floor = None
    if subject.floor is not None:
        known, other = (_variance(smoothed(s), np.ones(len(s), bool)) for s in subject.floor)
        floor = other / max(known, 1e-12)
    yield "diversity", Score("Diversity", _RATIO, value, interval, floor, 1.0, n)
    threshold = _closest_pair(real, subject.real.blocks)
    if not np.isfinite(threshold):
        reason = "the real images are of one block, so no two of them are independent"
        yield "support", unavailable("Different images", _BIRTHDAY, reason)
        return
    size, pairs = support(fake, threshold)
    possible = len(fake) * (len(fake) - 1) / 2
    words = f"{pairs} duplicates among {possible:.0f} pairs"
    value = min(size, possible)
    label = f"Different images ({words}{'; at least' if pairs == 0 else ''})"
    yield "support", Score(label, _BIRTHDAY, value, None, None, None, n, unit="images")


def _variance(vectors: np.ndarray, chosen: np.ndarray) -> float:
    """Mean over components of the variance of the chosen vectors, a few components at a time."""
    columns = range(0, vectors.shape[1], _COLUMNS)
    sums = [np.var(vectors[chosen, c : c + _COLUMNS], 0, ddof=1).sum() for c in columns]
    return float(np.sum(sums) / vectors.shape[1])


def _closest_pair(vectors: np.ndarray, blocks: np.ndarray) -> float:
    """Smallest distance between vectors of different blocks."""
    count = min(len(vectors), int(np.unique(blocks, return_counts=True)[1].max()) + 1)
    distance, index = nearest(vectors, vectors, count)
    apart = blocks[index] != blocks[:, None]
    return float(np.min(distance[apart], initial=np.inf))
