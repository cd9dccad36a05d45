import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from deformgan import fields
from deformgan.warp import warp


def smooth_field(seed, size=64, sigma=8.0, amplitude=4.0):
    noise = np.random.default_rng(seed).normal(size=(2, size, size))
    smooth = np.stack([ndimage.gaussian_filter(n, sigma) for n in noise], -1)
    return jnp.asarray(amplitude * smooth / np.abs(smooth).max(), jnp.float32)[None]


def test_jacobian_of_the_identity_and_of_a_zoom():
    rows, columns = jnp.meshgrid(jnp.arange(8.0), jnp.arange(8.0), indexing="ij")
    grid = jnp.stack([rows, columns], -1)[None]
    np.testing.assert_allclose(fields.jacobian_determinant(0 * grid), 1)
    np.testing.assert_allclose(fields.jacobian_determinant(0.5 * grid), 2.25, rtol=1e-6)
    mirrored = jnp.stack([jnp.zeros_like(rows), -2 * columns], -1)[None]
    np.testing.assert_allclose(fields.folded_fraction(mirrored), 1)
    np.testing.assert_allclose(fields.folded_fraction(grid), 0)


def test_points_follow_a_translation_and_may_leave_the_frame():
    field = jnp.broadcast_to(jnp.array([3.0, -2.0]), (1, 16, 16, 2))
    points = jnp.array([[8.0, 8.0], [8.25, 4.5], [1.0, 8.0]])
    moved, status = fields.transport_points(points, field)
    np.testing.assert_allclose(moved[0, :2], points[:2] - jnp.array([[3.0, -2.0]]), atol=1e-4)
    assert [fields.POINT_STATUS[s] for s in status[0]] == ["ok", "ok", "outside"]
    assert jnp.isnan(moved[0, 2]).all()


def test_points_stay_put_under_the_zero_field_borders_included():
    points = jnp.array([[0.0, 0.0], [15.0, 15.0], [7.0, 3.0], [7.5, 3.5]])
    moved, status = fields.transport_points(points, jnp.zeros((2, 16, 16, 2)))
    assert (status == 0).all()
    np.testing.assert_allclose(moved[1], points, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_transported_points_solve_the_warp_equation(seed):
    field = smooth_field(seed)
    points = jax.random.uniform(jax.random.key(seed), (40, 2), minval=12, maxval=52)
    moved, status = fields.transport_points(points, field)
    assert (status == 0).all()
    for axis in range(2):
        u = ndimage.map_coordinates(field[0, ..., axis], np.asarray(moved[0]).T, order=1)
        np.testing.assert_allclose(moved[0, :, axis] + u, points[:, axis], atol=0.05)


def test_a_folded_place_is_reported_not_guessed():
    field = np.zeros((1, 32, 32, 2), np.float32)
    field[0, :, 12:20, 1] = -2 * (np.arange(12, 20) - 15.5)  # runs backwards over columns 12-19
    moved, status = fields.transport_points(jnp.array([[10.0, 15.5], [10.0, 4.0]]), field)
    assert [fields.POINT_STATUS[s] for s in status[0]] == ["folded", "ok"]
    assert jnp.isnan(moved[0, 0]).all()


@pytest.mark.parametrize("seed", range(3))
def test_points_and_masks_agree_after_a_smooth_warp(seed):
    """The centroid of a warped disc lies within half a pixel of its transported centre."""
    field = smooth_field(seed)
    rows, columns = np.mgrid[:64, :64]
    for centre in [(24.0, 30.0), (40.0, 22.0)]:
        disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= 3.0**2
        warped = warp(jnp.asarray(disc, jnp.int32)[..., None], field, order=0)[0, ..., 0]
        moved, _ = fields.transport_points(jnp.array([centre]), field)
        centroid = ndimage.center_of_mass(np.asarray(warped))
        assert np.abs(moved[0, 0] - np.array(centroid)).max() < 0.5
