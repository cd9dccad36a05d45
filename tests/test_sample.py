import csv
import json
from types import SimpleNamespace

import imagecodecs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from builders import smoke, write_images, write_targettrack
from scipy import ndimage

from deformgan import sample, train
from deformgan.errors import UserError
from deformgan.objectives.contract import Samples


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on Targettrack volumes, which are removed after training."""
    folder = tmp_path_factory.mktemp("sample")
    data = folder / "worm.h5"
    write_targettrack(data, volumes=6)
    config = smoke(data__source="targettrack", data__path=str(data), data__screen="off")
    config.model.max_displacement = 1.0
    path = folder / "run"
    train.run(config, str(path))
    data.unlink()
    return path


def draw(run, out, form="npz", seed=0, num=5, step="newest", config=None):
    sample.run(str(run), config, num=num, out=str(out), form=form, seed=seed, step=step)
    return out


def test_samples_are_what_the_manifest_says(run, tmp_path):
    out = draw(run, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    saved = np.load(out / "samples.npz", allow_pickle=False)
    assert saved["images"].shape == (5, 32, 32, 1) and saved["images"].dtype == np.uint8
    assert saved["displacement"].shape == (5, 32, 32, 2)
    assert saved["displacement"].dtype == np.float32
    assert saved["masks"].shape == (5, 32, 32, 1)
    assert manifest["checkpoint"] == 20 and manifest["seed"] == 0 and manifest["images"] == 5
    assert manifest["scaling"]["depth"]["offset"] == -1
    assert manifest["config"]["data"]["source"] == "targettrack"
    assert sum(manifest["points"].values()) == pytest.approx(1)


def test_masks_and_points_move_with_the_image(run, tmp_path):
    """Bright cells of known grey value, their masks and their points agree in every sample."""
    out = draw(run, tmp_path / "out")
    saved = np.load(out / "samples.npz")
    with (out / "points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [r["id"] for r in rows] == ["1", "2"] * 5
    checked = 0
    for row in rows:
        if row["status"] != "ok":
            assert row["row"] == row["column"] == "nan"
            continue
        n, point = int(row["sample"]), (float(row["row"]), float(row["column"]))
        mask = saved["masks"][n, ..., 0] == int(row["id"])
        assert np.abs(np.array(ndimage.center_of_mass(mask)) - point).max() < 1.0
        inside = saved["images"][n, ..., 0][mask].astype(float) - 1  # the recorded offset
        assert inside.mean() == pytest.approx(100 * int(row["id"]), rel=0.3)
        checked += 1
    assert checked >= 8


def test_the_same_seed_gives_the_same_bytes(run, tmp_path):
    outs = [draw(run, tmp_path / name, seed=s) for name, s in (("a", 3), ("b", 3), ("c", 4))]
    for file in ("samples.npz", "points.csv", "manifest.json"):
        first, second, other = ((out / file).read_bytes() for out in outs)
        assert first == second and first != other
    more = draw(run, tmp_path / "more", seed=3, num=7)
    few, many = (np.load(out / "samples.npz")["images"] for out in (outs[0], more))
    np.testing.assert_array_equal(few, many[:5])


def test_every_format_holds_the_same_images(run, tmp_path):
    npz = np.load(draw(run, tmp_path / "npz") / "samples.npz")
    png = draw(run, tmp_path / "png", "png")
    tiff = draw(run, tmp_path / "tiff", "tiff")
    for i in range(5):
        for name in ("images", "masks"):
            read = imagecodecs.imread(png / name / f"{i:06d}.png")
            np.testing.assert_array_equal(read, npz[name][i, ..., 0])
    for name in ("images", "masks"):
        np.testing.assert_array_equal(tifffile.imread(tiff / f"{name}.tif"), npz[name][..., 0])
    for out in (png, tiff):
        field = np.load(out / "displacement.npy", allow_pickle=False)
        np.testing.assert_array_equal(field, npz["displacement"])


def test_sixteen_bit_input_gives_sixteen_bit_samples(tmp_path):
    images = write_images(tmp_path / "images", 12, dtype=np.uint16)
    path = tmp_path / "run"
    config = smoke(data__source="folder", data__path=str(tmp_path / "images"), train__steps=2)
    train.run(config, str(path))
    out = draw(path, tmp_path / "out", "tiff", step="2")
    stack = tifffile.imread(out / "images.tif")
    assert stack.dtype == np.uint16 and 10_000 < stack.max() <= np.max(images)
    assert not (out / "points.csv").exists() and not (out / "masks.tif").exists()


def test_an_earlier_checkpoint_is_sampled_on_request(run, tmp_path):
    early = draw(run, tmp_path / "early", step="10")
    assert json.loads((early / "manifest.json").read_text())["checkpoint"] == 10
    with pytest.raises(
        UserError, match=r"no checkpoint of step 7; give newest, best or one of \[10, 20\]"
    ):
        draw(run, tmp_path / "other", step="7")


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    with pytest.raises(UserError, match="out: .* is in use"):
        draw(run, tmp_path / "out")


def test_bad_requests_are_named(run, tmp_path):
    with pytest.raises(UserError, match="format: unknown name 'gif'; choose one of npz, png, tiff"):
        draw(run, tmp_path / "a", "gif")
    with pytest.raises(UserError, match="num: 0"):
        draw(run, tmp_path / "b", num=0)
    with pytest.raises(UserError, match="holds no run"):
        draw(tmp_path / "nowhere", tmp_path / "c")
    with pytest.raises(UserError, match=r"with other settings \(.*data\.source was 'targettrack'"):
        draw(run, tmp_path / "d", config=smoke())


def test_a_run_of_pairs_is_sampled_from_its_input(run, tmp_path):
    (tmp_path / "pairs").mkdir()
    config = json.loads((run / "config.json").read_text())
    config["data"]["pairs"] = True
    (tmp_path / "pairs/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"input: this run predicts from inputs; give --input=FILE"):
        draw(tmp_path / "pairs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sampling_without_a_checkpoint_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    text = (run / "config.json").read_text()
    (tmp_path / "empty/config.json").write_text(text)
    with pytest.raises(UserError, match="no checkpoint under .*; train first"):
        draw(tmp_path / "empty", tmp_path / "out")


def test_sampling_leaves_the_run_as_it_was(run, tmp_path):
    def listing():
        return sorted((str(p), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file())

    before = listing()
    draw(run, tmp_path / "out")
    assert listing() == before
    assert jax.tree.leaves(before)


def test_samples_that_are_not_finite_are_refused():
    def images(variables, constants, keys, given):
        return Samples(jnp.full((len(keys), 4, 4, 1), constants["value"]), {}, {})

    broken = SimpleNamespace(sample=images)
    (made,) = sample.generate(broken, {}, {"value": 0.0}, seed=0, num=3)
    assert made.images.shape == (3, 4, 4, 1)
    with pytest.raises(UserError, match="not finite"):
        list(sample.generate(broken, {}, {"value": np.nan}, seed=0, num=3))
