"""Pairs: images and what they are predicted from, from the files to the batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from builders import overridden, smoke, write_images
from PIL import Image

from configs import base
from deformgan import intake, prepare
from deformgan.data import aligned, folders, geometry, pairs, pipeline, scaling, tfds
from deformgan.data.feed import make_feed
from deformgan.data.frames import Frame, Frames
from deformgan.data.splits import SPLITS
from deformgan.errors import UserError
from deformgan.workdir import Workdir

SIZE = 16


def settings(path, source, **overrides):
    """A whole config of pairs of 16x16 pixels, in grey, read and built without a model."""
    config = base.get_config()
    config.data.update({"source": source, "path": str(path), "size": SIZE, "pairs": True})
    return overridden(config, {f"data__{key}": value for key, value in overrides.items()})


def build(config):
    pipeline.check(config.data)
    return pipeline.build(pipeline.open_frames(config.data), config.data, config.source)


def write_aligned(folder, count=12, side=SIZE, colour=True):
    """Side by side: what differs from pair to pair, and its negative."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    left = rng.integers(0, 256, (count, side, side, 3) if colour else (count, side, side))
    left = left.astype(np.uint8)
    for i, image in enumerate(left):
        Image.fromarray(np.concatenate([image, 255 - image], 1)).save(folder / f"t{i}.png")
    return left


def write_two_folders(path, count=20):
    """Targets of 8 bit as PNG; inputs of 16 bit as TIFF, 50 times as bright and 7 more."""
    targets = write_images(path / "targets", count, shape=(SIZE, SIZE))
    (path / "inputs").mkdir()
    for i, image in enumerate(targets):
        tifffile.imwrite(path / f"inputs/frame{i}.tif", 50 * image.astype(np.uint16) + 7)
    return settings(path / "targets", "folders", input_path=str(path / "inputs"))


# Side by side


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize("paired", [True, False])
def test_a_direction_says_which_half_is_the_input(tmp_path, direction, paired):
    left = write_aligned(tmp_path)
    config = settings(
        tmp_path, "aligned", direction=direction, channels=3, input_channels=3, pairs=paired
    ).data
    frames = aligned.read(config)
    assert list(frames.names) == [f"t{i}.png" for i in range(12)]
    for i, image in enumerate(left):
        given, target = (image, 255 - image) if direction == "AtoB" else (255 - image, image)
        np.testing.assert_array_equal(frames.read(i).image, target)
        if paired:
            np.testing.assert_array_equal(frames.read(i).condition, given)
        else:
            assert frames.read(i).condition is None


def test_input_and_target_have_channels_of_their_own(tmp_path):
    left = write_aligned(tmp_path)
    grey = np.round(left @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
    for channels, input_channels in ((1, 3), (3, 1), (1, 1)):
        frame = aligned.read(
            settings(tmp_path, "aligned", channels=channels, input_channels=input_channels).data
        ).read(4)
        given = left[4] if input_channels == 3 else grey[4][..., None]
        np.testing.assert_array_equal(frame.condition, given)
        assert frame.image.shape == (SIZE, SIZE, channels)
    one = aligned.read(settings(tmp_path, "aligned", channel=2).data).read(4)  # of the target
    np.testing.assert_array_equal(one.image[..., 0], 255 - left[4][..., 2])
    np.testing.assert_array_equal(one.condition[..., 0], grey[4])


def test_halves_that_do_not_match_are_named(tmp_path):
    write_aligned(tmp_path, 4, colour=False)
    Image.fromarray(np.eye(SIZE, 2 * SIZE + 1, dtype=np.uint8)).save(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"data\.path: odd\.png is 16x33; .* even width"):
        build(settings(tmp_path, "aligned"))
    Image.fromarray(np.eye(SIZE, 2 * SIZE + 2, dtype=np.uint8)).save(tmp_path / "odd.png")
    with pytest.raises(UserError, match=r"4 of 5 images are not 16x17 \(first: t0\.png is 16x16"):
        build(settings(tmp_path, "aligned"))


def test_real_facades(real_data):
    path = real_data / "facades/train"
    config = settings(path, "aligned", direction="BtoA", channels=3, input_channels=3, size=64)
    frames = pipeline.open_frames(config.data)
    assert len(frames) == 400
    dataset = pipeline.build(frames.subset(range(30)), config.data, config.source)
    assert dataset.train.shape[1:] == dataset.conditions.train.shape[1:] == (64, 64, 3)
    name = dataset.split["names"]["train"][5]
    whole = np.asarray(Image.open(path / name), np.float32)
    quarter = whole.reshape(64, 4, 128, 4, 3).mean((1, 3)) / 127.5 - 1
    got = dataset.train[5].ravel(), dataset.conditions.train[5].ravel()
    halves = quarter[:, :64].ravel(), quarter[:, 64:].ravel()
    # The triangle filter that fits frames looks a little further than a mean of blocks.
    assert np.corrcoef(got[0], halves[0])[0, 1] > 0.98 > np.corrcoef(got[0], halves[1])[0, 1]
    assert np.corrcoef(got[1], halves[1])[0, 1] > 0.98 > np.corrcoef(got[1], halves[0])[0, 1]


# Two folders


def test_partners_are_found_by_path_and_page_whatever_their_suffix(tmp_path):
    stack = np.random.default_rng(0).integers(0, 255, (5, SIZE, SIZE)).astype(np.uint8)
    for side, suffix in (("a", "png"), ("b", "tif")):
        for name in ("worm.1/t2", "worm.1/t10", "t2"):
            image = stack[len(name) % 5] if side == "a" else 255 - stack[len(name) % 5]
            (tmp_path / side / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / side / f"{name}.{suffix}")
    tifffile.imwrite(tmp_path / "a/movie.tif", stack, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b/movie.tiff", 255 - stack, photometric="minisblack")
    (tmp_path / "b/notes.txt").write_text("x")
    frames = folders.read(settings(tmp_path / "a", "folders", input_path=str(tmp_path / "b")).data)
    assert len(frames) == 8 and "movie.tif#3" in frames.names
    assert frames.skipped == "of the inputs 1 other files left alone"
    for i in range(8):
        np.testing.assert_array_equal(frames.read(i).condition, 255 - frames.read(i).image)


def test_those_without_a_partner_are_counted_and_the_first_is_named(tmp_path):
    config = write_two_folders(tmp_path, 6).data
    for i in (2, 3):
        (tmp_path / f"inputs/frame{i}.tif").unlink()
    with pytest.raises(UserError, match=r"2 of 6 targets have no input in .*inputs \(frame2\.png"):
        folders.read(config)
    (tmp_path / "inputs/extra.png").write_bytes((tmp_path / "targets/frame0.png").read_bytes())
    with pytest.raises(UserError, match=r"; 1 of 5 inputs have no target in .*\(extra\.png\)"):
        folders.read(config)
    (tmp_path / "targets/frame0.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.path: frame0\.jpg and frame0\.png in .* suffix"):
        folders.read(config)
    config.input_path = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.input_path: .*nowhere does not exist"):
        folders.read(config)


def test_a_pair_of_two_sizes_is_named_by_its_files(tmp_path):
    config = write_two_folders(tmp_path, 4).data
    tifffile.imwrite(tmp_path / "inputs/frame2.tif", np.ones((SIZE, 20), np.uint16))
    message = r"inputs/frame2\.tif: 16x20 pixels, but its target .*targets/frame2\.png has 16x16"
    with pytest.raises(UserError, match=message):
        folders.read(config).read(2)


def test_channels_that_are_no_colour_are_not_mixed(tmp_path):
    config = write_two_folders(tmp_path, 4)
    for i in range(4):
        planes = np.random.default_rng(i).integers(0, 99, (SIZE, SIZE, 2)).astype(np.uint16)
        file = tmp_path / f"inputs/frame{i}.tif"
        tifffile.imwrite(file, planes, photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match=r"input_channels: 1, but the input frame0\.tif has 2 ch"):
        folders.read(config.data).read(0)
    config.data.input_channels = 2
    assert build(config).conditions.train.shape[1:] == (SIZE, SIZE, 2)


# From frames to batches


@pytest.mark.parametrize("aspect", geometry.ASPECTS)
def test_what_lies_at_one_place_stays_at_one_place(aspect):
    rows, columns = np.indices((33, 47))
    disc = (rows - 18) ** 2 + (columns - 22) ** 2 < 36
    frame = Frame(
        (20 + 200 * disc).astype(np.uint8)[..., None],
        condition=np.stack([900.0 - 800 * disc, 5.0 * disc], -1).astype(np.float32),
    )
    fitted = geometry.fitted(frame, 40, aspect)
    assert fitted.condition.shape == (40, 40, 2) and fitted.condition.dtype == np.float32
    unit = (fitted.image[..., 0] - 20) / 200
    np.testing.assert_allclose((900 - fitted.condition[..., 0]) / 800, unit, atol=1e-4)
    np.testing.assert_allclose(fitted.condition[..., 1] / 5, unit, atol=1e-4)
    with pytest.raises(ValueError, match=r"condition: wanted shape \[33, 47, \*\], got \[33, 40"):
        geometry.fitted(Frame(frame.image, condition=frame.condition[:, :40]), 40, aspect)


def units(scaling, image):
    """As it was stored."""
    return scaling.outward(image).astype(int)


def test_conditions_stand_beside_their_images_in_every_split(tmp_path):
    config = write_two_folders(tmp_path)
    config.data.percentiles = (0.0, 100.0)
    dataset = build(config)
    given = dataset.conditions
    assert dataset.scaling.depth.dtype == "uint8" and given.scaling.depth.dtype == "uint16"
    assert given.scaling.low == 50 * dataset.scaling.low + 7  # of training frames, as the target's
    for split in SPLITS:
        images, conditions = getattr(dataset, split), getattr(given, split)
        assert len(images) == len(conditions) == len(dataset.split["names"][split]) > 0
        for i in range(len(images)):
            assert images[i].shape == conditions[i].shape == (SIZE, SIZE, 1)
            wanted = 50 * units(dataset.scaling, images[i]) + 7
            inside = (wanted > given.scaling.low) & (wanted < given.scaling.high)
            got = units(given.scaling, conditions[i])
            np.testing.assert_array_equal(got[inside], wanted[inside])
            assert inside.mean() > 0.9 and -1 <= conditions[i].min() <= conditions[i].max() <= 1
    frame = pipeline.open_frames(config.data).read(3)
    np.testing.assert_array_equal(
        dataset.prepare_condition(frame), given.scaling.inward(frame.condition)
    )
    with pytest.raises(ValueError, match="condition: this frame has none"):
        dataset.prepare_condition(Frame(frame.image))
    config.data.update({"scaling": "range", "input_range": (0.0, 10_000.0)})
    limits = [(s.low, s.high) for s in (build(config).scaling, build(config).conditions.scaling)]
    assert limits == [(0, 255), (0, 10_000)]


def test_images_are_the_same_with_their_inputs_and_without(tmp_path):
    config = write_two_folders(tmp_path)
    paired = build(config)
    config.data.update({"source": "folder", "pairs": False, "input_path": ""})
    alone = build(config)
    assert alone.conditions is None and alone.prepare_condition is None
    assert alone.split == paired.split and alone.scaling == paired.scaling
    for split in SPLITS:
        for a, b in zip(getattr(alone, split), getattr(paired, split), strict=True):
            np.testing.assert_array_equal(a, b)


def test_batches_hold_pairs_whether_resident_or_streamed(tmp_path):
    config = write_two_folders(tmp_path)
    config.data.percentiles = (0.0, 100.0)
    held = build(config)
    by_image = {a.tobytes(): b for a, b in zip(held.train, held.conditions.train, strict=True)}

    def feed(dataset, conditions, process=0, processes=1):
        return make_feed(
            dataset.train, 4, 0, process=process, processes=processes, conditions=conditions
        )

    def check(batch):
        images, conditions = np.asarray(batch["images"]), batch["conditions"]
        for image, condition in zip(images, conditions, strict=True):
            np.testing.assert_array_equal(by_image[image.tobytes()], condition)

    resident, bare = feed(held, held.conditions.train), feed(held, None)
    key = jax.random.key(0)
    for step in range(5):
        batch = resident.draw(resident.resident, {}, key, step, jnp.arange(4))
        assert sorted(batch) == ["conditions", "images"]
        check(batch)
        without = bare.draw(bare.resident, {}, key, step, jnp.arange(4))
        assert list(without) == ["images"]
        np.testing.assert_array_equal(batch["images"], without["images"])
    config.data.memory_mib = 0
    lazy = build(config)
    assert not isinstance(lazy.conditions.train, np.ndarray)
    whole = feed(lazy, lazy.conditions.train).stream(2)
    shares = [feed(lazy, lazy.conditions.train, p, 2).stream(2) for p in range(2)]
    for _ in range(4):
        batch, parts = next(whole), [next(share) for share in shares]
        check(batch)
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([p[name] for p in parts]))
    with pytest.raises(ValueError, match="conditions: wanted 14, one an image, got 3"):
        feed(held, held.conditions.train[:3])


def test_a_streamed_pair_is_read_once(tmp_path):
    config = write_two_folders(tmp_path)
    config.data.memory_mib = 0
    frames, reads = pipeline.open_frames(config.data), []

    def read(i, whole=frames.read):
        reads.append(i)
        return whole(i)

    counted = frames.subset(range(len(frames)))
    object.__setattr__(counted, "read", read)
    dataset = pipeline.build(counted, config.data, config.source)
    reads.clear()
    for i in range(len(dataset.test)):
        assert dataset.test[i].shape == dataset.conditions.test[i].shape
    assert len(reads) == len(dataset.test)


# Simulated and prepared


def test_simulated_tiles_come_with_the_modalities_asked_for():
    config = settings("", "pli", size=32, channels=3, count=8, scaling="range")
    config.data.inputs = "transmittance, retardation"
    dataset = build(config)
    assert dataset.conditions.train.shape[1:] == (32, 32, 2) and pairs.channels(config.data) == 2
    config.data.inputs = "retardation"
    alone = build(config)
    np.testing.assert_array_equal(alone.conditions.train, dataset.conditions.train[..., 1:])
    np.testing.assert_array_equal(alone.train, dataset.train)
    config.data.inputs = "transmittance,thickness"
    with pytest.raises(UserError, match=r"data\.inputs: unknown name 'thickness'; choose one of"):
        pairs.channels(config.data)
    config.data.pairs = False
    assert pairs.channels(config.data) == 0


def test_prepared_pairs_are_read_back_pixel_for_pixel(tmp_path, capsys):
    config = write_two_folders(tmp_path)
    for i in range(20):  # signed, of two channels
        planes = np.random.default_rng(i).integers(-300, 99, (SIZE, SIZE, 2)).astype(np.int16)
        file = tmp_path / f"inputs/frame{i}.tif"
        tifffile.imwrite(file, planes, photometric="minisblack", planarconfig="contig")
    config.data.input_channels = 2
    prepare.run(config, str(tmp_path / "run"))
    assert "--config.data.pairs=True --config.data.input_channels=2" in capsys.readouterr().out
    direct = pipeline.open_frames(config.data)
    back = settings(tmp_path / "run/dataset", "tfds", input_channels=2)
    stored = pipeline.open_frames(back.data)
    for i, name in enumerate(stored.names):
        a, b = direct.read(list(direct.names).index(name)), stored.read(i)
        assert b.condition.dtype == np.int16 and b.condition.shape == (SIZE, SIZE, 2)
        np.testing.assert_array_equal(a.condition, b.condition)
        np.testing.assert_array_equal(a.image, b.image)
    one, other = build(config), build(back)
    assert one.split["names"] == other.split["names"]
    assert one.conditions.scaling == other.conditions.scaling
    np.testing.assert_array_equal(one.conditions.train, other.conditions.train)
    back.data.pairs = False
    assert pipeline.open_frames(back.data).read(0).condition is None
    back.data.update({"pairs": True, "input_channels": 1})
    with pytest.raises(UserError, match=r"data\.input_channels: 1, but .* has 2 channels"):
        pipeline.open_frames(back.data)


def test_pairs_of_a_dataset_that_this_program_did_not_make(tmp_path):
    """Two image features: data.inputs names that of the inputs."""
    import tensorflow_datasets as official

    rng = np.random.default_rng(0)
    given = rng.integers(0, 255, (6, SIZE, SIZE, 3)).astype(np.uint8)

    class Photos(official.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = official.core.Version("2.0.0")

        def _info(self):
            colours = official.features.Image(shape=(SIZE, SIZE, 3))
            features = official.features.FeaturesDict({"drawing": colours, "photo": colours})
            return official.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(given):
                shown = (Image.fromarray(a) for a in (image, 255 - image))
                yield i, dict(zip(("drawing", "photo"), shown, strict=True))

    Photos(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = settings(tmp_path, "tfds", channels=3, input_channels=3).data
    with pytest.raises(UserError, match=r"image features drawing, photo \(looked for condition or"):
        tfds.read(config)
    config.inputs = "drawing"
    frames = tfds.read(config)
    for frame in map(frames.read, range(6)):
        np.testing.assert_array_equal(frame.condition, 255 - frame.image)


# Settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"source": "folder"},
            "data.pairs: folder has no pairs; set data.source to one of aligned, folders, pli,"
            " pyramid, tfds, or data.pairs to False",
        ),
        ({"direction": "BtoC"}, "data.direction: unknown name 'BtoC'; choose one of AtoB, BtoA"),
        ({"source": "pli", "input_path": "x"}, "data.input_path: only data.source=folders has"),
        ({"input_channels": 5}, "data.input_channels: 5; inputs have 1 to 4 channels"),
        ({"input_range": (3.0, 3.0)}, "data.input_range: (3.0, 3.0); give (low, high)"),
        ({"source": "pli", "direction": "BtoA"}, "data.direction: BtoA, but only data.source=al"),
        (
            {"source": "pyramid", "inputs": "retardation,transmittance,retardation"},
            "data.inputs: retardation,transmittance,retardation has retardation twice",
        ),
        ({"blur": 3}, "data.blur: 3; pairs are not blurred, set it to 0"),
    ],
)
def test_a_setting_of_pairs_that_does_not_fit_is_named(overrides, message):
    with pytest.raises(UserError) as raised:
        pipeline.check(settings("x", **{"source": "aligned"} | overrides).data)
    assert str(raised.value).startswith(message)


def test_limits_that_do_not_fit_the_images_are_named(tmp_path):
    """Values of 0 to 1 or of 16 bit, with the limits of 8 bit."""
    images = write_images(tmp_path / "targets", 12, shape=(SIZE, SIZE))
    (tmp_path / "inputs").mkdir()
    config = settings(tmp_path / "targets", "folders", input_path=str(tmp_path / "inputs"))
    config.data.scaling = "range"
    dim, bright = r"less than 2% of it; set it", r"100% of their pixels would be clipped"
    for scale, dtype, message in ((1 / 255, np.float32, dim), (200.0, np.uint16, bright)):
        for i, image in enumerate(images):
            values = ((image + 2.0) * scale).astype(dtype)
            tifffile.imwrite(tmp_path / f"inputs/frame{i}.tif", values)
        with pytest.raises(UserError, match=rf"data\.input_range: \(0, 255\), but .*{message}"):
            build(config)
    config.data.input_range = (0.0, 65535.0)
    workdir = Workdir(str(tmp_path / "run"), create=True)
    intake.load(config, workdir)
    config.data.range = (1000.0, 2000.0)
    with pytest.raises(UserError, match=r"data\.range: \(1000, 2000\), but the training frames"):
        build(config)


def of_two_units(config, factor=1):
    """Tiles of 16-bit transmittance and retardation of 8 bit, this times `factor`."""
    rng = np.random.default_rng(0)
    given = rng.integers(0, 256, (20, SIZE, SIZE, 2)).astype(np.uint16) * [257, factor]
    given[:, 0, 0], given[:, 0, 1] = 0, (65535, 255 * factor)
    names = [f"t{i}" for i in range(20)]
    frames = Frames(
        names,
        names,
        range(20),
        lambda i: Frame(given[i, ..., :1] // 257, condition=given[i].astype(np.uint16)),
    )
    return pipeline.build(frames, config.data, config.source)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"scaling": "range", "input_range": (0.0, 65535.0)},
            r"data\.input_range: \(0, 65535\), .* \(retardation\) hold 0 to 255, less than 2%",
        ),
        (
            {"scaling": "range", "input_range": (0.0, 255.0)},
            r"data\.input_range: .* \(transmittance\) hold 0 to 65535, and 99% of their pixels",
        ),
        ({}, r"data\.scaling: .* limits \(0, 65535\), .* \(retardation\) hold 0 to 255, less than"),
        ({"source": "folders", "input_channels": 2}, r" \(channel 1\) hold 0 to 255, less than"),
    ],
)
def test_inputs_of_different_units_are_refused(overrides, message):
    both = {"source": "pyramid", "inputs": "transmittance,retardation"}
    config = settings("x", **{**both, **overrides})
    with pytest.raises(UserError, match=message + ".* share it: give limits of all, or files in"):
        of_two_units(config)
    if overrides.get("input_range") != (0.0, 255.0):
        assert of_two_units(config, factor=257).conditions.scaling.high == 65535


def test_limits_that_clip_half_of_the_pixels_are_refused():
    images = {"": np.array([0.0, 1.0, 2.0, 3.0])}
    scaling.check_limits("data.range:", 0, 2, "frames", images)
    with pytest.raises(UserError, match=r"data\.range: \(0, 1\), .* 50% of their pixels would"):
        scaling.check_limits("data.range:", 0, 1, "frames", images)


@pytest.mark.parametrize(
    ("colour", "channels", "said"), [(True, 1, 1), (True, 3, 0), (False, 1, 0)]
)
def test_inputs_that_lose_their_colour_are_pointed_out(tmp_path, capsys, colour, channels, said):
    write_aligned(tmp_path / "pairs", colour=colour)
    config = settings(tmp_path / "pairs", "aligned", input_channels=channels)
    intake.load(config, Workdir(str(tmp_path / "run"), create=True))
    assert capsys.readouterr().out.count("mixed to grey") == said


def test_a_source_image_is_told_where_it_is_warped(tmp_path, capsys):
    write_aligned(tmp_path / "pairs")
    config = settings(tmp_path / "pairs", "aligned", input_channels=3)
    held = build(config).split["names"]["test"][0]
    config.source.image = held
    for objective, told in (("deform", True), ("pix2pix", False), ("unconditional", False)):
        config.objective = objective
        intake.load(config, Workdir(str(tmp_path / "run"), create=True))
        assert ("source image" in capsys.readouterr().out) == told


def test_the_clipped_share_of_inputs_is_said(tmp_path, capsys):
    write_aligned(tmp_path / "pairs", colour=False)
    config = settings(tmp_path / "pairs", "aligned", scaling="range", input_range=(64.0, 256.0))
    intake.load(config, Workdir(str(tmp_path / "run"), create=True))
    said = capsys.readouterr().out
    share = re.search(r"0\.00% of their pixels clipped, (.*)% of their inputs'", said)[1]
    assert float(share) == pytest.approx(25, abs=3)


def test_folders_without_pairs_are_the_source_folder(tmp_path):
    with pytest.raises(UserError, match=r"data\.pairs: False, but data\.source=folders reads"):
        folders.read(settings(tmp_path, "folders", pairs=False).data)


def test_configs_of_worms_have_no_pairs():
    assert pairs.channels(smoke().data) == 0
