import numpy as np
import pytest
import tifffile
from PIL import Image

from configs import worms
from deformgan import train
from deformgan.camera import Camera
from deformgan.data import label_image
from deformgan.data.frames import Labels
from deformgan.errors import UserError
from deformgan.imaging import annotation, template

MASK = np.zeros((32, 48), np.uint8)
MASK[4:12, 6:14], MASK[20:28, 30:42] = 3, 7


def written(folder, image, name="labels.png"):
    Image.fromarray(image).save(folder / name)
    return str(folder / name)


def test_a_label_image_gives_masks_and_their_centres(tmp_path):
    labels = label_image.labels_in(written(tmp_path, MASK), (32, 48, 1))
    np.testing.assert_array_equal(labels.mask, MASK)
    np.testing.assert_array_equal(labels.ids, [3, 7])
    np.testing.assert_allclose(labels.points, [[7.5, 9.5], [23.5, 35.5]])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (MASK[:-1], "31x48, the source image 32x48"),
        (np.zeros((32, 48), np.uint8), "holds no labels"),
        (np.zeros((32, 48, 3), np.uint8), "32x48x3"),
        (None, "no file"),
    ],
)
def test_a_bad_label_image_is_named(tmp_path, image, words):
    path = str(tmp_path / "absent.png") if image is None else written(tmp_path, image)
    with pytest.raises(UserError, match=words):
        label_image.labels_in(path, (32, 48, 1))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64])
def test_wide_integers_are_labels_if_they_fit(tmp_path, dtype):
    file = tmp_path / "labels.tif"
    tifffile.imwrite(file, MASK.astype(dtype) * 1000)
    labels = label_image.labels_in(str(file), (32, 48, 1))
    np.testing.assert_array_equal(labels.ids, [3000, 7000])
    tifffile.imwrite(file, MASK.astype(dtype) * 100_000)
    with pytest.raises(UserError, match="fit into 16 bits"):
        label_image.labels_in(str(file), (32, 48, 1))


def test_a_missing_mask_is_told_before_anything_is_read():
    config = worms.get_config("smoke")
    config.source.mask = "absent.png"
    with pytest.raises(UserError, match="source.mask: no file"):
        train.check(config)


def test_chosen_labels_become_the_layers_that_move_on_their_own():
    square = MASK[:, :32].astype(np.int32)
    square[20:28] = 0
    square[20:28, 16:26] = 7
    labels = Labels(square, np.zeros((0, 2)), np.zeros(0, np.int32))
    outlines = annotation.outlines(labels, (7,))
    signal = np.where(square == 3, 0.9, np.where(square == 7, 0.4, 0.05))
    found = template.first_atlas(signal, 0.05, Camera.create(step=1 / 255), 2, outlines)
    np.testing.assert_allclose(found.centres * 32 - 0.5, [[23.5, 20.5]])  # the dimmer one alone
    assert float(found.rest[8, 10]) > 0.7 and float(found.rest[23, 20]) == 0
    for none, words in ((labels, r"\[5\].*\[3, 7\]"), (None, "source.mask")):
        with pytest.raises(UserError, match=words):
            annotation.outlines(none, (5,))
