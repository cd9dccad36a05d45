import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.ndimage import map_coordinates

from deformgan.warp import warp

KEY = jax.random.key(0)
SCIPY_MODE = {"nearest": "nearest", "constant": "constant", "mirror": "mirror"}


def coordinates(displacement):
    axes = [jnp.arange(n, dtype=jnp.float32) for n in displacement.shape[:-1]]
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"))
    return grid + jnp.moveaxis(displacement, -1, 0)


@pytest.mark.parametrize("border", ["nearest", "constant", "mirror"])
def test_zero_field_is_the_identity(border):
    image = jax.random.uniform(KEY, (9, 7, 3))
    np.testing.assert_array_equal(warp(image, jnp.zeros((2, 9, 7, 2)), border=border)[1], image)


def test_integer_shift_moves_pixels_backward():
    image = jax.random.uniform(KEY, (8, 8, 1))
    shift = jnp.broadcast_to(jnp.array([2.0, -3.0]), (1, 8, 8, 2))
    out = warp(image, shift, border="constant", fill=-1.0)[0]
    np.testing.assert_array_equal(out[:6, 3:], image[2:, :5])
    assert (out[6:] == -1).all() and (out[:, :3] == -1).all()


@pytest.mark.parametrize("border", ["nearest", "constant", "mirror"])
@pytest.mark.parametrize("shape", [(12, 9), (6, 7, 5)])
def test_agrees_with_map_coordinates(border, shape):
    image = jax.random.uniform(KEY, (*shape, 1))
    field = 6 * jax.random.normal(KEY, (2, *shape, len(shape)))
    out = warp(image, field, border=border, fill=0.25)
    for b in range(2):
        expected = map_coordinates(
            image[..., 0], coordinates(field[b]), 1, SCIPY_MODE[border], 0.25
        )
        np.testing.assert_allclose(out[b, ..., 0], expected, atol=2e-5)


def test_nearest_pixel_keeps_labels():
    labels = jax.random.randint(KEY, (10, 10, 1), 0, 50)
    out = warp(labels, 3 * jax.random.normal(KEY, (4, 10, 10, 2)), order=0)
    assert out.dtype == labels.dtype
    assert set(np.unique(out)) <= set(np.unique(labels))


def test_gradient_at_the_zero_field_is_the_image_gradient():
    image = jax.random.uniform(KEY, (8, 8, 1))
    gradient = jax.grad(lambda u: jnp.sum(warp(image, u)))(jnp.zeros((1, 8, 8, 2)))[0]
    interior = (slice(1, -1), slice(1, -1))
    down = (jnp.roll(image, -1, 0) - image)[..., 0]
    right = (jnp.roll(image, -1, 1) - image)[..., 0]
    np.testing.assert_allclose(gradient[interior][..., 0], down[interior], atol=1e-6)
    np.testing.assert_allclose(gradient[interior][..., 1], right[interior], atol=1e-6)
    assert jnp.min(jnp.abs(gradient[interior])) > 0


def test_gradient_agrees_with_finite_differences():
    image = jax.random.uniform(KEY, (8, 8, 2))
    field = jax.random.uniform(KEY, (1, 8, 8, 2), minval=0.2, maxval=0.7)
    weights = jax.random.normal(jax.random.key(1), (1, 8, 8, 2))

    def total(t):
        return jnp.sum(weights * warp(image, field + t * weights))

    gradient = jax.grad(total)(0.0)
    step = 1e-3
    np.testing.assert_allclose(gradient, (total(step) - total(-step)) / (2 * step), rtol=2e-2)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="source: wanted"):
        warp(jnp.zeros((8, 8)), jnp.zeros((1, 8, 8, 2)))
    with pytest.raises(ValueError, match="displacement: wanted"):
        warp(jnp.zeros((8, 8, 1)), jnp.zeros((8, 8, 2)))
