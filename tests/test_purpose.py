"""The benchmark of the purpose: labels move with images, scores, and who may see the test set."""

import functools
import json

import builders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import purpose, segmenter
from configs import base
from deformgan.errors import UserError


@pytest.mark.parametrize("kind", segmenter.AUGMENTATIONS)
def test_classes_move_with_their_images(kind):
    rows, columns = np.indices((32, 32))
    classes = ((rows - 18) ** 2 + (columns - 12) ** 2 < 36).astype(np.int32)
    images = (2.0 * classes - 1).astype(np.float32)[..., None]
    moved, labels = segmenter.augmented(
        jax.random.key(0), jnp.asarray([images] * 4), jnp.asarray([classes] * 4), kind=kind
    )
    inside = np.asarray(moved)[..., 0] > -0.2
    assert all(segmenter.dice(a, b == 1) > 0.9 for a, b in zip(inside, labels, strict=True))
    assert np.all(np.any(np.asarray(labels) != classes, (1, 2))) == (kind != "none")


def test_a_rotation_keeps_the_areas_of_a_centred_disc():
    rows, columns = np.indices((32, 32))
    disc = ((rows - 15.5) ** 2 + (columns - 15.5) ** 2 < 64).astype(np.int32)[None]
    images = jnp.zeros((1, 32, 32, 1))
    _, labels = segmenter.augmented(
        jax.random.key(1), images, jnp.asarray(disc), kind="flips_rotations"
    )
    assert segmenter.dice(np.asarray(labels) == 1, disc == 1) > 0.95


def test_dice_and_found():
    truth = np.zeros((2, 16, 16), bool)
    truth[0, 2:6, 2:6] = True
    assert segmenter.dice(truth, truth) == 1
    assert segmenter.dice(np.roll(truth, 2, 1), truth) == 0.5
    assert np.isnan(segmenter.dice(truth[1], truth[1]))
    assert segmenter.found(np.roll(truth, 2, 1), truth) == 1  # of the one image that has it
    assert segmenter.found(np.roll(truth, 7, 1), truth) == 0
    assert segmenter.found(np.zeros_like(truth), truth) == 0


def test_classes_of_identities():
    assert list(purpose.class_of(np.array([0, 7, 3, 9]), [3, 7])) == [0, 2, 1, 3]


@pytest.fixture
def pairs(tmp_path):
    """Four volumes, and the folder that sample mode would write of a run on all of them."""
    data = tmp_path / "v.h5"
    builders.write_targettrack(data)
    config = base.get_config()
    config.data.source, config.data.path, config.data.z_ranges = "targettrack", str(data), "0:3,3:6"
    config.data.validation = config.data.test = 0.0
    folder = tmp_path / "pairs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (6, 32, 32, 1)).astype(np.uint8)
    np.savez(folder / "samples.npz", images=images, masks=(images > 150).astype(np.uint16))
    depth = {"dtype": "uint8", "step": 1.0, "offset": -1.0}
    scaling = {"method": "range", "low": -1.0, "high": 200.0, "clipped": 0.0, "depth": depth}
    manifest = {"config": config.to_dict(), "source": "v.h5#0[0:3]", "scaling": scaling}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    flags = f"--data={data} --generated={folder} --z_ranges=0:3,3:6 --identities=1,2 --seeds=1"
    return [*flags.split(), "--steps=2", "--batch=2", "--size=32", f"--out={tmp_path / 'o.json'}"]


def test_every_arm_is_measured_and_the_record_says_what_was_seen(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(segmenter, "UNet", functools.partial(segmenter.UNet, widths=(4,)))
    purpose.main([*pairs, "--unlabelled", "--arms=none,generated"])
    record = json.loads((tmp_path / "o.json").read_text())
    assert list(record["results"]) == ["none", "generated"]
    for own in record["results"].values():
        assert 0 <= own["foreground"]["mean"] <= 1
        assert list(own["runs"][0]["volumes"]) == ["1", "2", "3"]
    assert record["generator"]["test_images_seen"] == ["1", "2", "3"]


def test_a_generator_that_saw_test_volumes_is_refused(pairs):
    with pytest.raises(UserError, match="saw images of test volumes 1, 2, 3"):
        purpose.main(pairs)
    with pytest.raises(UserError, match="masks are those of"):
        purpose.main([*pairs, "--train=1", "--test=2"])
