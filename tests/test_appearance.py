"""Modes of appearance: found where images vary in them, and not in noise."""

import builders_atlas
import jax.numpy as jnp
import numpy as np
import pytest
from builders_atlas import SHAPE, SIZE, blob

from deformgan.camera import Camera
from deformgan.imaging import appearance, likelihood
from deformgan.imaging.atlas import Fitted, render
from deformgan.imaging.likelihood import Phase

COUNT = 50
NOISE = 0.02
CAMERA = Camera.create(read=NOISE, step=1 / 255)


def two_modes(atlas):
    """One half of a soma lights up alone; the streak fades."""
    half = 0.15 * np.asarray(atlas.somata[0]) * (np.arange(SIZE) < 0.3 * SIZE)[None]
    streak = -0.1 * blob(0.5, 0.5, 0.03, 0.25, 0.8)
    empty = np.zeros((SIZE, SIZE))
    modes = np.stack([[half, empty, empty], [empty, empty, streak]])
    return atlas._replace(modes=jnp.asarray(modes, jnp.float32))


@pytest.fixture(scope="module")
def varying():
    """An atlas whose images vary, their motions and the images without noise."""
    atlas, motion = two_modes(builders_atlas.atlas(blur=1.0)), builders_atlas.motions(0, COUNT)
    amounts = np.random.default_rng(1).normal(size=(COUNT, 2))
    motion = motion._replace(appearance=jnp.asarray(amounts, jnp.float32))
    return atlas, motion, np.asarray(render(atlas, motion, SHAPE.grid))


def noisy(clean, seed=2):
    return np.clip(clean + np.random.default_rng(seed).normal(0, NOISE, clean.shape), 0, 1)


def test_the_modes_that_images_vary_in_are_found(varying):
    atlas, motion, clean = varying
    start = Fitted(
        atlas._replace(modes=jnp.zeros(1)), motion._replace(appearance=jnp.zeros((COUNT, 0)))
    )
    found = appearance.varied(noisy(clean), start, CAMERA, SHAPE.grid)
    before = np.asarray(render(start.atlas, start.motion, SHAPE.grid)) - clean
    after = np.asarray(render(found.atlas, found.motion, SHAPE.grid)) - clean
    assert np.square(after).sum() < 0.15 * np.square(before).sum()
    sizes = np.square(found.atlas.modes).sum((1, 2, 3))  # further ones mend how these were found
    assert sizes[:2].sum() > 0.8 * sizes.sum() and len(sizes) < 10
    np.testing.assert_allclose(np.asarray(found.motion.appearance).std(0), 1, atol=1e-3)


def test_noise_has_no_modes():
    start = Fitted(builders_atlas.atlas(blur=1.0), builders_atlas.motions(0, COUNT))
    images = noisy(np.asarray(render(start.atlas, start.motion, SHAPE.grid)))
    quiet = Camera.create(read=NOISE / 4, step=1 / 255)  # for which noise is left by motions
    assert likelihood.misfit(images, start, quiet, SHAPE.grid) > 0.015
    for count, camera in ((COUNT, quiet), (COUNT, CAMERA), (39, quiet)):
        assert appearance.varied(images[:count], start, camera, SHAPE.grid) is start


@pytest.mark.parametrize("phase", [Phase(1, 0.0, 1), Phase(2, 1.0, 1)])
def test_a_mode_adds_to_the_template_at_every_resolution(varying, phase):
    atlas, _, _ = varying
    amounts = jnp.tile(jnp.array([[0.7, -0.4]]), (4, 1))
    few = builders_atlas.motions(3, 4)
    seen = likelihood.atlas_at(atlas, phase)
    drawn = render(seen, few._replace(appearance=amounts), SHAPE.grid)
    layers = jnp.concatenate([atlas.somata, atlas.rest[None]])
    layers += jnp.tensordot(amounts[0], atlas.modes, 1)
    changed = atlas._replace(somata=layers[:-1], rest=layers[-1], modes=jnp.zeros(1))
    wanted = render(likelihood.atlas_at(changed, phase), few, SHAPE.grid)
    np.testing.assert_allclose(drawn, wanted, atol=1e-5)
    plain = render(seen._replace(modes=jnp.zeros(1)), few, SHAPE.grid)
    assert np.abs(drawn - plain).max() > 0.02
