"""Motions found again from images; layers and the point spread from images and motions."""

import builders_atlas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders_atlas import SHAPE, SIZE

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.imaging import (
    likelihood,
    point_spread,
    reconstruction,
    registration,
    superposition,
    template,
)
from deformgan.imaging.atlas import Fitted, render, still
from deformgan.imaging.likelihood import Phase
from deformgan.imaging.template import Settings

SETTINGS = Settings(SHAPE, somata=2, subset=8, images=8)
PHASES = (Phase(2, 1.0, 4), Phase(1, 0.0, 4))


def images(atlas, motion, camera):
    mean = jax.jit(render, static_argnums=2)(atlas, motion, SHAPE.grid)
    seen = cameras.expose(jax.random.key(0), mean[..., None], camera)[..., 0]
    return np.asarray(mean), np.asarray(seen)


@pytest.mark.parametrize(("read", "limit"), [(0.0, 0.004), (0.1, 0.02)])
def test_motions_are_found_again(read, limit):
    atlas, camera = builders_atlas.atlas(1.0), Camera.create(read=read, step=1 / 255)
    mean, seen = images(atlas, builders_atlas.motions(0, scale=0.5), camera)
    start = jax.tree.map(np.asarray, still(SHAPE, 2, len(seen)))
    tolerant = likelihood.forgiving(camera, 0.003)
    prior = template.start_prior(SETTINGS, 2)
    found = registration.register(seen, atlas, tolerant, prior, start, PHASES, nodes=SHAPE.grid)
    again, before = (np.asarray(render(atlas, m, SHAPE.grid)) for m in (found, start))
    error = np.sqrt(np.mean(np.square(again - mean)))
    assert error < limit < 0.5 * np.sqrt(np.mean(np.square(before - mean)))


def test_layers_are_reconstructed_without_the_noise():
    camera = Camera.create(read=0.1, step=1 / 255)
    atlas, motion = builders_atlas.atlas(1.0), builders_atlas.motions(0, batch=40)
    mean, seen = images(atlas, motion, camera)
    dim = atlas._replace(somata=0.7 * atlas.somata, rest=0.5 * atlas.rest)
    fitted = Fitted(dim, jax.tree.map(np.asarray, motion))
    found = reconstruction.re_estimated(seen, fitted, camera, SHAPE.grid, steps=12)
    again = np.asarray(render(found, motion, SHAPE.grid))
    assert np.sqrt(np.mean(np.square(again - mean))) < 0.015


def test_the_point_spread_is_that_of_the_images():
    camera = Camera.create(step=1 / 255)
    motion = builders_atlas.motions(0, batch=20)
    _, seen = images(builders_atlas.atlas(2.0), motion, camera)
    fitted = Fitted(builders_atlas.atlas(1.2), jax.tree.map(np.asarray, motion))
    found = point_spread.focused(seen, fitted, camera, SETTINGS, point_spread.ROUGH, seed=0)
    assert abs(float(found.blur) * SIZE - 2.0) < 0.2


def test_a_shift_that_turns_with_its_soma_goes_to_the_template():
    atlas = builders_atlas.atlas(1.0)
    one = {name: getattr(atlas, name)[:1] for name in ("somata", "centres", "axes", "radii")}
    atlas = atlas._replace(**one, rest=jnp.zeros_like(atlas.rest))
    turns = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    motion = still(SHAPE, 1, len(turns))
    shift = 0.04 * np.stack([np.cos(turns), np.sin(turns)], -1)  # one shift in the soma's frame
    shared = jnp.asarray(shift, jnp.float32)[:, None, None] + motion.shared
    pose = motion.pose.at[..., 2].set(jnp.asarray(turns, jnp.float32)[:, None])
    motion = motion._replace(shared=shared, pose=pose)
    middle = reconstruction.in_the_middle(Fitted(atlas, motion), SHAPE.grid)
    kept = motion._replace(shared=jnp.zeros_like(shared))
    wanted, found = render(atlas, motion, SHAPE.grid), render(middle, kept, SHAPE.grid)
    before = np.abs(render(atlas, kept, SHAPE.grid) - wanted).max()
    assert np.abs(found - wanted).max() < 0.1 < 0.3 < before


def test_a_mean_shift_goes_to_the_template_and_its_centre():
    """Images of somata far from where the template has them stay the same."""
    atlas, motion = builders_atlas.atlas(1.0), builders_atlas.motions(0, scale=0.3)
    kept = motion._replace(  # what else has a mean is not put back
        shared=motion.shared - motion.shared.mean(0, keepdims=True),
        own=jnp.zeros_like(motion.own),
        pose=(motion.pose - motion.pose.mean(0, keepdims=True)).at[..., 3:].set(0),
        soma_gain=jnp.zeros_like(motion.soma_gain),
        gain=jnp.zeros_like(motion.gain),
    )
    away = jnp.array([[0.1, -0.05], [-0.12, 0.03]])  # 6 to 8 pixels
    moved = kept._replace(pose=kept.pose.at[..., :2].add(away[None]))
    made = template.centred(Fitted(atlas._replace(rest=jnp.zeros_like(atlas.rest)), moved))
    assert np.abs(made.motion.pose[..., :2].mean(0)).max() < 1e-6
    np.testing.assert_allclose(made.atlas.centres, atlas.centres + away, atol=1e-6)
    before, _ = images(atlas._replace(rest=jnp.zeros_like(atlas.rest)), moved, Camera.create())
    after, _ = images(made.atlas, made.motion, Camera.create())
    assert np.abs(after - before).max() < 0.03  # of templates interpolated once more


@pytest.mark.parametrize("additive", [0.0, 1.0])
def test_held_out_images_tell_whether_layers_add_up(additive):
    camera = Camera.create(read=0.03, step=1 / 255)
    motion = builders_atlas.motions(0, batch=40)
    turns = jnp.linspace(-1.5, 1.5, 40)[:, None]  # of the somata, which leave the streak alone
    motion = motion._replace(pose=motion.pose.at[..., 2].set(turns))
    streak = jnp.asarray(0.4 * builders_atlas.blob(0.5, 0.5, 0.05, 0.4, -0.6))  # over both somata
    atlas = builders_atlas.atlas(1.0)._replace(rest=streak)
    _, seen = images(atlas._replace(additive=jnp.float32(additive)), motion, camera)
    fitted = Fitted(atlas, jax.tree.map(np.asarray, motion))
    found = superposition.chosen(seen, fitted, camera, SETTINGS)
    assert float(found.atlas.additive) == additive


def test_chunks_cover_every_image_once_and_share_their_size():
    for count in (1, 7, 60, 61, 119, 421):
        parts = list(likelihood.chunks(count))
        assert len({len(own) for own, _ in parts}) == 1
        assert np.concatenate([own[:size] for own, size in parts]).tolist() == list(range(count))


def test_flattened_motions_come_back():
    motion = builders_atlas.motions(3)
    back = likelihood.unflatten(likelihood.flatten(motion), motion)
    jax.tree.map(np.testing.assert_array_equal, back, motion)
    assert jnp.all(jnp.isfinite(likelihood.flatten(motion)))
