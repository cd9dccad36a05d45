import builders_atlas
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deformgan.filters import gaussian_blur
from deformgan.imaging import likelihood, subsampling
from deformgan.imaging.atlas import render
from deformgan.imaging.likelihood import Phase

GREEN = 0.413  # of a pure green, G = Y - 0.344 U - 0.714 V of BT.601


@pytest.fixture(scope="module")
def smooth():
    """Moving blobs on a dark background."""
    seen = render(builders_atlas.atlas(blur=1.0), builders_atlas.motions(0, 24), 16)
    return np.asarray(seen)


def cells(share=GREEN, row=0, column=1):
    return jnp.array([share, row, column], jnp.float32)


def test_a_share_of_one_repeats_pixels():
    image = jnp.arange(16.0).reshape(1, 4, 4)
    blocks = np.asarray(image).reshape(1, 2, 2, 2, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(subsampling.stored(image, cells(1, 0, 0)), blocks)
    rows = np.asarray(image).reshape(1, 2, 2, 4).mean(2).repeat(2, 1)
    np.testing.assert_allclose(subsampling.stored(image, cells(1, 0, -1)), rows)
    odd = np.asarray(subsampling.stored(image, cells(1, -1, 1)))[0, 0]
    np.testing.assert_allclose(odd, [0, 1.5, 1.5, 3])  # the first and the last have no partner
    half = subsampling.stored(image, cells(0.5, 0, 0))
    np.testing.assert_allclose(half, (np.asarray(image) + blocks) / 2)
    assert subsampling.stored(image, jnp.asarray(subsampling.NONE)) is image


@pytest.mark.parametrize("row,column", [(0, 0), (0, 1), (1, 0), (1, -1), (-1, 0)])
def test_cells_are_found_where_they_are(smooth, row, column):
    seen = np.asarray(subsampling.stored(jnp.asarray(smooth), cells(GREEN, row, column)))
    noisy = seen + np.random.default_rng(0).normal(0, 0.002, seen.shape)
    share, *where = subsampling.found(noisy)
    assert where == [row, column] and abs(share - GREEN) < 0.08
    share, *where = subsampling.refined(noisy, smooth, np.array([share, *where]))
    assert where == [row, column] and abs(share - GREEN) < 0.01


def test_other_images_have_none(smooth):
    rng = np.random.default_rng(0)
    still = np.repeat(gaussian_blur(rng.normal(size=(1, 32, 32, 1)), 1.0)[..., 0], 50, 0)
    for images in (smooth, smooth + rng.normal(0, 0.05, smooth.shape), still):
        assert subsampling.found(np.asarray(images)).shape == subsampling.NONE.shape
        given = subsampling.refined(images, images, subsampling.NONE)
        assert given.shape == subsampling.NONE.shape
    assert subsampling.in_words(subsampling.NONE) == "each its own"


def test_an_atlas_is_rendered_with_its_cells_at_full_resolution_alone(smooth):
    atlas = builders_atlas.atlas(blur=1.0)._replace(cells=cells())
    seen = render(atlas, builders_atlas.motions(0, 24), 16)
    np.testing.assert_allclose(seen, subsampling.stored(jnp.asarray(smooth), cells()), atol=1e-6)
    assert likelihood.atlas_at(atlas, Phase(1, 0.0, 1)).cells.shape == (3,)
    assert likelihood.atlas_at(atlas, Phase(2, 0.0, 1)).cells.shape == subsampling.NONE.shape


def test_frames_of_a_video_show_the_cells_of_its_colour(real_data):
    """ZephIR's green channel from an odd column: its movie.mp4 is 4:2:0."""
    files = sorted((real_data / "worms" / "zephir").glob("*.png"))[::8]
    images = np.stack([np.asarray(Image.open(file), np.float32) / 255 for file in files])
    share, row, column = subsampling.found(images)
    assert (row, column) == (0, 1) and 0.25 < share < GREEN
    assert subsampling.in_words(np.array([share, row, column])).endswith("2x2, as in colour video")
