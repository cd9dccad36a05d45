"""The layers of an atlas from all images: what errors of the motions leave in them."""

import jax.numpy as jnp
import numpy as np
import pytest

from deformgan.camera import Camera
from deformgan.data import simulated
from deformgan.imaging import reconstruction, template

SIZE, SIGMA = 64, 1.4
RUFFLE = 0.05 * np.cos(np.pi * 0.8 * np.arange(SIZE))[:, None] * np.ones(SIZE)


def atlas_of(image):
    outlines = np.zeros((1, SIZE, SIZE), bool)
    outlines[0, 10:20, 10:20] = True
    atlas = template.of_signal(image, 0.0, outlines)
    rest, somata = jnp.asarray(image, jnp.float32), jnp.zeros_like(atlas.somata)
    return atlas._replace(somata=somata, rest=rest, blur=jnp.float32(SIGMA / SIZE))


@pytest.fixture(scope="module")
def smooth():
    """Somata and neurites, blurred as by the optics."""
    return simulated.draw(0, 1, 0, "neurites", SIZE).clean[0, ..., 0] + 0.2


def test_ruffles_finer_than_the_optics_pass_are_left_out_and_the_rest_is_kept(smooth):
    camera = Camera.create()
    found = reconstruction.smoothed(atlas_of(smooth + RUFFLE), camera, 300)
    left = np.asarray(found.rest) - smooth
    assert np.abs(left).mean() < 0.2 * np.abs(RUFFLE).mean()
    assert abs(left.mean()) < 1e-3


def test_more_images_and_independent_noise_leave_less_to_smooth(smooth):
    clear, noisy = Camera.create(), Camera.create(read=0.3)
    changed = [
        np.abs(np.asarray(reconstruction.smoothed(atlas_of(smooth), camera, n).rest) - smooth).max()
        for camera, n in ((clear, 30), (clear, 3000), (noisy, 3000))
    ]
    assert changed[0] > changed[1] > changed[2]
