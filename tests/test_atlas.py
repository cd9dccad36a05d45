"""The deformable atlas: diffeomorphisms with closed inverses, layers, labels."""

import functools

import builders_atlas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders_atlas import SHAPE, SIZE, motions

from deformgan import fields, splines
from deformgan.data.frames import Labels
from deformgan.imaging import annotation
from deformgan.imaging import atlas as atlases
from deformgan.imaging.atlas import grid, posed_at, still, unposed_at

coordinates = jax.jit(atlases.coordinates, static_argnums=(2, 3))
render = jax.jit(atlases.render, static_argnums=2)


@functools.partial(jax.jit, static_argnums=2)
def unmoved(atlas, motion, layer, places):
    back = annotation.inverse(atlas, motion, SHAPE.grid)
    return annotation.unmoved(atlas, motion, back, layer, places)


@pytest.fixture(scope="module")
def atlas():
    return builders_atlas.atlas()


@pytest.mark.parametrize(("samples", "control"), [(16, 4), (64, 8), (128, 14)])
def test_bsplines_reproduce_lines_and_sum_to_one(samples, control):
    matrix = splines.bspline_matrix(samples, control)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    knots = (np.arange(control) - 1) / (control - 3)  # Greville abscissae
    np.testing.assert_allclose(matrix @ knots, (np.arange(samples) + 0.5) / samples, atol=1e-6)


def test_an_exponential_of_a_constant_is_that_shift_and_its_inverse_undoes_it():
    velocity = jnp.broadcast_to(jnp.array([1.5, -0.75]), (1, 16, 16, 2))
    np.testing.assert_allclose(fields.exponential(velocity), velocity, atol=1e-6)


def test_an_exponential_of_a_linear_velocity_is_the_matrix_exponential():
    rate, size = 0.3, 33
    place = jnp.arange(size) - (size - 1) / 2
    velocity = jnp.stack(jnp.broadcast_arrays(rate * place[:, None], 0 * place[None]), -1)[None]
    grown = fields.exponential(velocity)[0, 8:25, 16, 0]  # away from the border
    np.testing.assert_allclose(grown, (np.exp(rate) - 1) * place[8:25], atol=0.05)


def test_no_motion_is_the_atlas_itself(atlas):
    image = render(atlas, still(SHAPE, 2, 1), SHAPE.grid)[0]
    signal = np.maximum(np.max(atlas.somata, 0), atlas.rest)
    np.testing.assert_allclose(image, 0.1 + signal, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 5.0, 25.0])
def test_no_field_folds_however_large_the_velocity(atlas, scale):
    for seed in range(4):
        where = coordinates(atlas, motions(seed, scale=scale), SIZE, SHAPE.grid)
        for places in (where.shared, where.rest):
            displacement = (places - grid(SIZE)[None]) * SIZE
            assert fields.jacobian_determinant(displacement).min() > 0


def test_a_pose_and_its_inverse_cancel(atlas):
    motion, places = (
        motions(0),
        jnp.asarray(np.random.default_rng(1).random((8, 7, 2)), jnp.float32),
    )
    for soma in range(2):
        back = unposed_at(atlas, motion, soma, posed_at(atlas, motion, soma, places))
        np.testing.assert_allclose(back, places, atol=1e-5)


def test_the_inverse_finds_every_layer_where_it_is_seen(atlas):
    """Reading the coordinates where the inverse says a point is seen gives the point back."""
    motion = motions(3, batch=4)
    where = coordinates(atlas, motion, SIZE, SHAPE.grid)
    points = jnp.asarray(np.random.default_rng(0).uniform(0.3, 0.7, (9, 2)), jnp.float32)
    points = jnp.broadcast_to(points[None], (4, 9, 2))
    for layer, places in enumerate([*where.somata, where.rest]):
        seen = unmoved(atlas, motion, layer, points)
        found = annotation.read(places, seen)
        inside = np.all((seen > 0.02) & (seen < 0.98), -1)
        assert inside.mean() > 0.9
        error = np.linalg.norm(found - points, axis=-1)[inside] * SIZE  # pixels
        assert np.median(error) < 0.02 and error.max() < 0.3


def test_neurites_follow_the_shift_of_their_soma(atlas):
    motion = still(SHAPE, 2, 1)
    shift = jnp.array([0.03, -0.02])
    motion = motion._replace(pose=motion.pose.at[:, 0, :2].set(shift[None]))
    for layer in (0, 2):  # the soma, and the rest anchored to it
        seen = unmoved(atlas, motion, layer, atlas.centres[None, :1])
        np.testing.assert_allclose(seen[0, 0], atlas.centres[0] + shift, atol=0.01)


def test_brightness_belongs_to_the_structure_and_moves_with_it(atlas):
    rest = jnp.asarray(builders_atlas.blob(0.4, 0.4, 0.05, 0.05))
    only = atlas._replace(somata=0 * atlas.somata, rest=rest, background=jnp.float32(0.0))
    here = (jnp.arange(SHAPE.gain) < 3).astype(jnp.float32)  # brighter at the top left
    motion = still(SHAPE, 2, 1)._replace(gain=jnp.outer(here, here)[None])
    moved = motion._replace(shared=motion.shared - 0.3)  # away from there
    peak, plain = render(only, motion, SHAPE.grid).max(), rest.max()
    assert peak > 1.2 * plain
    np.testing.assert_allclose(render(only, moved, SHAPE.grid).max(), peak, rtol=0.06)


def test_the_gradient_reaches_every_part_of_a_motion_at_rest(atlas):
    mode = jnp.concatenate([0.1 * atlas.somata, -0.1 * atlas.rest[None]])
    atlas = atlas._replace(modes=mode[None])
    moved = motions(5, batch=2)._replace(appearance=jnp.ones((2, 1)))
    target = render(atlas, moved, SHAPE.grid)

    def error(motion):
        return jnp.sum(jnp.square(render(atlas, motion, SHAPE.grid) - target))

    slope = jax.grad(error)(still(SHAPE, 2, 2, modes=1))
    for name, part in slope._asdict().items():
        assert jnp.all(jnp.isfinite(part)) and jnp.any(part != 0), name


def test_labels_move_with_the_image(atlas):
    """Annotating one deformed image and moving the labels back gives its labels."""
    motion = motions(7, batch=1)
    where = coordinates(atlas, motion, SIZE, SHAPE.grid)
    lit = render(atlas._replace(background=jnp.float32(0.0)), motion, SHAPE.grid)[0]
    first = render(
        atlas._replace(somata=atlas.somata.at[1].set(0), rest=0 * atlas.rest, background=0.0),
        motion,
        SHAPE.grid,
    )[0]
    mask = np.where((np.asarray(first) > 0.4) & (lit - first < 1e-3), 5, 0).astype(np.int32)
    centre = unmoved(atlas, motion, 0, atlas.centres[None, :1])[0]
    labels = Labels(mask, np.asarray(centre, np.float64) * SIZE - 0.5, np.array([9]))
    found = annotation.annotate(labels, atlas, motion, SHAPE.grid)
    np.testing.assert_allclose(found.points[0], atlas.centres[0], atol=0.005)
    assert found.layer[0] == 0 and found.ids[0] == 9
    again = annotation.moved_masks(found, where)[0, ..., 0]
    dice = 2 * np.sum((again == 5) & (mask == 5)) / (np.sum(again == 5) + np.sum(mask == 5))
    assert dice > 0.95
    points, status = annotation.moved_points(found, atlas, motion, SHAPE.grid)
    np.testing.assert_allclose(points[0, 0], labels.points[0], atol=0.3)
    assert status[0, 0] == 0


def test_a_point_that_leaves_the_frame_is_outside(atlas):
    motion = still(SHAPE, 2, 1)
    motion = motion._replace(shared=motion.shared + 0.5)  # everything moves half a side away
    labels = Labels(None, np.array([[20.0, 20.0]]), np.array([1]))
    found = annotation.annotate(labels, atlas, still(SHAPE, 2, 1), SHAPE.grid)
    points, status = annotation.moved_points(found, atlas, motion, SHAPE.grid)
    assert np.isnan(points).all() and fields.POINT_STATUS[int(status[0, 0])] == "outside"


def test_without_labels_there_is_a_placeholder(atlas):
    found = annotation.annotate(None, atlas, still(SHAPE, 2, 1), SHAPE.grid)
    assert found.ids.tolist() == [annotation.NO_POINT] and not found.masks.any()
