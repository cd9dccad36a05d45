"""Two-sample test by a linear discriminant on statistics that a network may overlook.

What betrays a resampled or wrongly noised image is spread over all its pixels: its spectrum, its
noise against its brightness. A few sums see that with certainty.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.filters import gaussian_blur
from deformgan.metrics.subject import ImageSet
from deformgan.metrics.two_sample import cross_fitted_discriminant

ABOUT = (
    "a linear discriminant on intensity quantiles, radial spectrum, residual noise against"
    " intensity, gradients and moments of shape"
)
REFITS = True
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
_RINGS = 16  # of the spectrum
_LEVELS = 5  # of brightness at which noise is measured
_BATCH = 64


def classify(sets: list[ImageSet], labels: np.ndarray, fold: np.ndarray, seed: int) -> np.ndarray:
    """Scores `[N, P]` of each image by a discriminant fitted without the image's fold."""
    return cross_fitted_discriminant(of_sets(sets), labels, fold)


def of_sets(sets: list[ImageSet]) -> np.ndarray:
    """Statistics of all images, `[N, D]`; levels of brightness are those of all sets together."""
    some = np.concatenate([s.unit(np.s_[:128]) for s in sets])
    levels = np.quantile(some, np.linspace(0, 1, _LEVELS + 1)[1:-1])
    levels = jnp.asarray(levels, jnp.float32)
    rows = [images.map(lambda batch: image_statistics(batch, levels), _BATCH) for images in sets]
    return np.concatenate(rows).astype(np.float64)


@jax.jit
def image_statistics(images: jax.Array, levels: jax.Array) -> jax.Array:
    """Statistics of each channel of each image.

    Args:
      images: `[B, H, W, C]` in [-1, 1].
      levels: brightness limits between which residual noise is measured.

    Returns:
      `[B, C * D]`.
    """
    moved = jnp.moveaxis(images, -1, 1)
    flat = moved.reshape(-1, *images.shape[1:3])  # [B C, H, W]
    parts = [_intensity(flat), _spectrum(flat), _residual(flat, levels), _edges(flat), _shape(flat)]
    return jnp.concatenate(parts, 1).reshape(len(images), -1)


def _intensity(x: jax.Array) -> jax.Array:
    flat = x.reshape(len(x), -1)
    quantiles = jnp.quantile(flat, jnp.array(_QUANTILES), axis=1).T
    ends = [jnp.mean(flat <= -1, 1), jnp.mean(flat >= 1, 1)]  # clipped
    return jnp.concatenate([quantiles, jnp.stack([flat.mean(1), flat.std(1), *ends], 1)], 1)


def _spectrum(x: jax.Array) -> jax.Array:
    """Log power in rings of equal width, up to the Nyquist frequency."""
    height, width = x.shape[1:]
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    ring = np.minimum(2 * _RINGS * np.hypot(rows, columns), _RINGS).astype(int)
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)[None]
    power = jnp.square(jnp.abs(jnp.fft.rfft2((x - x.mean((1, 2), keepdims=True)) * window)))
    members = [
        jnp.asarray(ring == r, jnp.float32)[None] for r in range(_RINGS + 1) if (ring == r).any()
    ]
    return jnp.stack([jnp.log(jnp.sum(power * m, (1, 2)) / m.sum() + 1e-8) for m in members], 1)


def _residual(x: jax.Array, levels: jax.Array) -> jax.Array:
    """Log variance of what a blur leaves, by brightness, and its correlation with neighbours."""
    smooth = gaussian_blur(x[..., None], 1.5)[..., 0]
    rest = x - smooth
    level = jnp.searchsorted(levels, smooth)
    out = []
    for k in range(len(levels) + 1):
        inside = level == k
        count = jnp.maximum(inside.sum((1, 2)), 1)
        out.append(jnp.log(jnp.sum(jnp.square(rest) * inside, (1, 2)) / count + 1e-8))
    power = jnp.mean(jnp.square(rest), (1, 2)) + 1e-8
    out += [jnp.mean(rest[:, 1:] * rest[:, :-1], (1, 2)) / power]
    out += [jnp.mean(rest[:, :, 1:] * rest[:, :, :-1], (1, 2)) / power]
    out += [jnp.mean(rest[:, 2:] * rest[:, :-2], (1, 2)) / power]
    out += [jnp.mean(rest[:, :, 2:] * rest[:, :, :-2], (1, 2)) / power]
    out += [jnp.mean(rest**3, (1, 2)) / power**1.5, jnp.log(jnp.mean(rest**4, (1, 2)) / power**2)]
    return jnp.stack(out, 1)


def _edges(x: jax.Array) -> jax.Array:
    """Quantiles of the gradient's length, as it is and on a blurred image."""
    out = []
    for image in (x, gaussian_blur(x[..., None], 2.0)[..., 0]):
        rows, columns = (
            image[:, 1:, :-1] - image[:, :-1, :-1],
            image[:, :-1, 1:] - image[:, :-1, :-1],
        )
        length = jnp.hypot(rows, columns).reshape(len(x), -1)
        out.append(jnp.quantile(length, jnp.array([0.25, 0.5, 0.75, 0.9, 0.99]), axis=1).T)
        out.append(jnp.log(length.mean(1, keepdims=True) + 1e-6))
    return jnp.concatenate(out, 1)


def _shape(x: jax.Array) -> jax.Array:
    """Of the blurred image: area at four levels, centroid, second moments, peak."""
    height, width = x.shape[1:]
    smooth = gaussian_blur(x[..., None], 3.0)[..., 0]
    low, high = smooth.min((1, 2), keepdims=True), smooth.max((1, 2), keepdims=True)
    mass = (smooth - low) / jnp.maximum(high - low, 1e-6)
    out = [jnp.mean(mass > t, (1, 2)) for t in (0.2, 0.4, 0.6, 0.8)]
    rows = jnp.linspace(-1, 1, height)[None, :, None]
    columns = jnp.linspace(-1, 1, width)[None, None]
    weight = mass / jnp.maximum(mass.sum((1, 2), keepdims=True), 1e-6)
    r, c = jnp.sum(weight * rows, (1, 2)), jnp.sum(weight * columns, (1, 2))
    dr, dc = rows - r[:, None, None], columns - c[:, None, None]
    out += [r, c]
    out += [jnp.sum(weight * a * b, (1, 2)) for a, b in ((dr, dr), (dc, dc), (dr, dc))]
    return jnp.stack([*out, smooth.max((1, 2)), smooth.std((1, 2))], 1)
