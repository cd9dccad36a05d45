import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformgan.filters import gaussian_blur
from deformgan.metrics.diversity import diversity_ratio
from deformgan.metrics.wasserstein import sliced_wasserstein

KEY = jax.random.key(0)


def test_blur_agrees_with_scipy():
    from scipy import ndimage

    image = np.random.default_rng(0).normal(size=(1, 20, 24, 1)).astype(np.float32)
    expected = ndimage.gaussian_filter(image[0, ..., 0], 1.5, mode="nearest", truncate=4.0)
    np.testing.assert_allclose(gaussian_blur(image, 1.5)[0, ..., 0], expected, atol=1e-4)


def test_diversity_is_1_for_the_same_distribution_and_0_for_copies():
    blobs = gaussian_blur(jax.random.normal(KEY, (400, 16, 16, 1)), 3.0)
    assert diversity_ratio(blobs[:200], blobs[200:]) == pytest.approx(1, abs=0.15)
    copies = jnp.broadcast_to(blobs[:1], (200, 16, 16, 1))
    assert diversity_ratio(copies, blobs[200:]) == pytest.approx(0, abs=1e-6)
    noisy = copies + 0.05 * jax.random.normal(jax.random.key(1), copies.shape)
    assert diversity_ratio(noisy, blobs[200:]) < 0.2  # noise does not hide collapse


def test_sliced_wasserstein_of_equal_and_of_shifted_sets():
    x = jax.random.normal(KEY, (64, 8, 8, 1))
    assert sliced_wasserstein(KEY, x, x) == 0
    near = sliced_wasserstein(KEY, x, x + 0.1)
    far = sliced_wasserstein(KEY, x, x + 0.5)
    assert 0 < near < far
    np.testing.assert_allclose(far / near, 5, rtol=1e-3)
