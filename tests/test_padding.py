import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deformgan import camera
from deformgan.camera import Camera
from deformgan.data import geometry
from deformgan.data.frames import Frame
from deformgan.errors import UserError
from deformgan.imaging import noise, padding

STEP, LEVEL, SIZE = 1 / 255, 0.05, 64


def padded(height, width, count=40):
    """Noisy frames with a blob each, of unit intensity, fitted to a square."""
    rng = np.random.default_rng(0)
    row, column = np.indices((height, width))
    out = []
    for _ in range(count):
        centre = rng.normal((height / 2, width / 2), 3)
        blob = np.exp(-((row - centre[0]) ** 2 + (column - centre[1]) ** 2) / 100)
        frame = 0.2 + 0.5 * blob + LEVEL * rng.normal(size=blob.shape)
        frame = np.round(255 * frame).astype(np.uint8)[..., None]
        out.append(geometry.fitted(Frame(frame), SIZE, "pad").image[..., 0])
    return np.stack(out) / 255


@pytest.mark.parametrize("height,width", [(32, 64), (64, 48), (64, 64)])
def test_noise_is_that_of_what_was_recorded(height, width):
    images = padded(height, width)
    area = padding.recorded(images)
    assert np.diff(area.rows) == height and np.diff(area.columns) == width
    assert area.whole == (height == width)
    found = noise.estimate(area.cut(images), STEP)
    assert found.kind == "gaussian" and found.camera.kernel.shape == (1, 1)
    assert found.camera.read == pytest.approx(LEVEL, rel=0.04)
    again = area.cut(area.paste(area.cut(images)))
    np.testing.assert_array_equal(again, area.cut(images))


def test_new_images_have_no_noise_where_there_is_none():
    images = padded(32, 64)
    area = padding.recorded(images)
    frame = jnp.asarray(area.frame(images))
    own = Camera.create(read=LEVEL, step=STEP)._replace(frame=frame)
    seen = camera.expose(jax.random.key(0), jnp.full((20, SIZE, SIZE, 1), 0.2), own)
    seen = np.asarray(seen)[..., 0]
    assert padding.recorded(seen) == area
    np.testing.assert_allclose(area.cut(seen).std(), LEVEL, rtol=0.05)
    strips = np.unique(seen[:, : area.rows[0]])
    assert len(strips) > 1 and np.isin(strips, np.asarray(frame[4:])).all()


def test_images_of_one_level_are_refused():
    images = np.full((4, SIZE, SIZE), 0.5)
    assert padding.recorded(images).whole
    images[:, 30:34, 30:34] = np.random.default_rng(0).random((4, 4, 4))
    with pytest.raises(UserError, match="only rows 30 to 33, columns 30 to 33 are not"):
        padding.recorded(images)
