import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from builders import smoke, write_images, write_targettrack
from scipy import ndimage

from deformgan import intake
from deformgan.data import geometry, pipeline, splits
from deformgan.data.feed import draw_indices, make_feed
from deformgan.data.frames import Frame, Labels
from deformgan.data.scaling import Depth, Scaling
from deformgan.errors import UserError
from deformgan.workdir import Workdir


def build(config):
    return pipeline.build(pipeline.open_frames(config.data), config.data, config.source)


# Geometry


def disc_frame(shape, centre, radius=5.0):
    rows, columns = np.indices(shape)
    disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    image = (20 + 200 * disc).astype(np.uint8)[..., None]
    labels = Labels(disc.astype(np.int32), np.array([centre]), np.array([1]))
    return Frame(image, labels)


@pytest.mark.parametrize("aspect", geometry.ASPECTS)
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (33, 47), (20, 20)])
def test_labels_stay_on_the_image_when_it_is_fitted(aspect, shape):
    frame = disc_frame(shape, (shape[0] / 2 + 1.5, shape[1] / 2 - 2.0), radius=6)
    fitted = geometry.fitted(frame, 40, aspect)
    assert fitted.image.shape == (40, 40, 1) and fitted.labels.mask.shape == (40, 40)
    bright = ndimage.center_of_mass(fitted.image[..., 0] > 120)
    np.testing.assert_allclose(fitted.labels.points[0], bright, atol=0.6)
    np.testing.assert_allclose(ndimage.center_of_mass(fitted.labels.mask), bright, atol=0.6)


def test_padding_is_the_background_and_a_crop_drops_the_points_it_cuts_off():
    frame = disc_frame((20, 60), (10.0, 5.0), radius=3)
    padded = geometry.fitted(frame, 30, "pad")
    assert (padded.image[:9] == 20).all() and (padded.image[-9:] == 20).all()
    cropped = geometry.fitted(frame, 20, "crop")
    assert len(cropped.labels.points) == 0 and not cropped.labels.mask.any()


def test_a_frame_of_the_right_size_is_untouched():
    frame = disc_frame((32, 32), (10.0, 12.0))
    np.testing.assert_array_equal(geometry.fitted(frame, 32, "pad").image, frame.image)


# Intensities


@pytest.mark.parametrize(
    ("dtype", "low", "high", "depth"),
    [
        ("uint8", 3, 200, Depth("uint8", 1.0, 0.0)),
        ("uint16", 3, 60000, Depth("uint16", 1.0, 0.0)),
        ("int16", -1, 211, Depth("uint8", 1.0, -1.0)),
        ("int16", -1, 5000, Depth("uint16", 1.0, -1.0)),
    ],
)
def test_integers_come_back_exactly(dtype, low, high, depth):
    values = np.linspace(low, high, 50).round().astype(dtype)
    assert Depth.of(np.dtype(dtype), low, high) == depth
    scaling = Scaling("range", low, high, 0.0, depth)
    inward = scaling.inward(values)
    assert inward.min() == -1 and inward.max() == 1
    stored = scaling.outward(inward)
    np.testing.assert_array_equal(stored * depth.step + depth.offset, values)
    assert Scaling.from_json(scaling.to_json()) == scaling


def test_integers_beyond_16_bits_are_refused():
    with pytest.raises(UserError, match="int32 values from 0 to 70000 do not fit in 16 bits"):
        Depth.of(np.dtype("int32"), 0, 70000)


def test_floats_come_back_within_a_step():
    values = np.linspace(-2.5, 7.25, 1000)
    depth = Depth.of(np.dtype("float32"), -2.5, 7.25)
    scaling = Scaling("range", -2.5, 7.25, 0.0, depth)
    back = scaling.outward(scaling.inward(values)) * depth.step + depth.offset
    assert np.abs(back - values).max() <= depth.step


# Splits


def test_blocks_of_time_are_never_cut():
    split, block = splits.assign(["movie"] * 120, range(120), validation=0.1, test=0.2, seed=3)
    assert split.count("test") == 24 and split.count("validation") == 12
    assert len({b for b, own in zip(block, split, strict=True) if own == "test"}) == 6
    for b in set(block):
        members = [i for i, own in enumerate(block) if own == b]
        assert members == list(range(members[0], members[0] + len(members)))
        assert len({split[i] for i in members}) == 1


def test_recordings_are_chosen_by_name_or_pattern(tmp_path):
    for name in ("worm1", "worm2", "other"):
        write_images(tmp_path / name, 4)
    config = smoke(data__source="folder", data__path=str(tmp_path)).data
    for wanted, kept in (("worm*", {"worm1", "worm2"}), ("other, worm2", {"other", "worm2"})):
        config.recordings = wanted
        frames = pipeline.open_frames(config)
        assert set(frames.recordings) == kept and len(frames) == 8
    config.recordings = "worm3"
    with pytest.raises(UserError, match=r"'worm3'; there are 'other', 'worm1', 'worm2'"):
        pipeline.open_frames(config)


def test_with_enough_recordings_whole_ones_are_held_out():
    recordings = [f"worm{i // 7}" for i in range(70)]
    split, _ = splits.assign(recordings, range(70), validation=0.1, test=0.2, seed=0)
    held_out = {r for r, s in zip(recordings, split, strict=True) if s == "test"}
    kept = {r for r, s in zip(recordings, split, strict=True) if s != "test"}
    assert len(held_out) == 2 and not held_out & kept


@pytest.mark.parametrize("count", [5, 6, 7])
def test_of_few_recordings_two_are_held_out_to_be_judged_by(count):
    recordings = [f"worm{i // 10}" for i in range(10 * count)]
    moments = range(len(recordings))
    split, _ = splits.assign(recordings, moments, validation=0.1, test=0.2, seed=0)
    assert split.count("test") == 20


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_frames_leave_something_to_train_on(count):
    split, _ = splits.assign(["r"] * count, range(count), validation=0.1, test=0.2, seed=0)
    assert split.count("train") >= 1
    assert split.count("test") == (1 if count > 1 else 0)


def test_what_was_taken_at_one_moment_stays_together(tmp_path):
    """Two z ranges of a volume never lie on both sides of a split."""
    write_targettrack(tmp_path / "worm.h5", volumes=6)
    config = smoke(data__source="targettrack", data__path=str(tmp_path / "worm.h5"))
    config.data.z_ranges = "0:3,3:6"
    frames = pipeline.open_frames(config.data)
    split, _ = pipeline.split_frames(frames, config.data)
    sides = {}
    for moment, side in zip(frames.moments, split, strict=True):
        sides.setdefault(moment, set()).add(side)
    assert len(sides) == 6 and all(len(side) == 1 for side in sides.values())


def test_a_split_is_that_of_its_seed():
    def held_out(seed):
        return splits.assign(["r"] * 50, range(50), validation=0.0, test=0.2, seed=seed)[0]

    assert held_out(1) == held_out(1)
    assert any(held_out(1) != held_out(s) for s in range(2, 6))


# The feed


def test_epochs_are_permutations_across_batches():
    key = jax.random.key(0)
    draw = jax.jit(lambda step: draw_indices(key, step, jnp.arange(6), batch_size=6, count=9))
    drawn = np.concatenate([draw(step) for step in range(9)])  # six epochs of nine
    for epoch in drawn.reshape(6, 9):
        assert sorted(epoch) == list(range(9))
    assert len({tuple(epoch) for epoch in drawn.reshape(6, 9)}) > 1


def test_batches_do_not_depend_on_the_device_count():
    key = jax.random.key(0)
    for count in (5, 40):  # with replacement, and without

        def draw(positions, count=count):
            return draw_indices(key, 7, positions, batch_size=8, count=count)

        halves = np.concatenate([draw(jnp.arange(4)), draw(jnp.arange(4, 8))])
        np.testing.assert_array_equal(draw(jnp.arange(8)), halves)


def test_a_large_set_is_streamed_and_every_process_reads_its_share(tmp_path):
    write_images(tmp_path, 20)
    config = smoke(data__source="folder", data__path=str(tmp_path), data__size=32)
    held = build(config)
    config.data.memory_mib = 0
    dataset = build(config)
    assert not isinstance(dataset.train, np.ndarray)
    np.testing.assert_allclose(np.stack(list(dataset.train)), held.train, atol=1e-6)

    def batches(start, count, process=0, processes=1):
        feed = make_feed(dataset.train, 4, 0, process=process, processes=processes)
        stream = feed.stream(start)
        return [next(stream)["images"] for _ in range(count)]

    whole = batches(0, 6)
    np.testing.assert_array_equal(np.stack(batches(3, 3)), np.stack(whole[3:]))  # resumed
    shares = [batches(0, 6, process=p, processes=2) for p in range(2)]
    for full, first, second in zip(whole, *shares, strict=True):
        np.testing.assert_array_equal(full, np.concatenate([first, second]))


# Building


def test_signed_input_records_its_offset(tmp_path):
    write_targettrack(tmp_path / "worm.h5")
    config = smoke(data__source="targettrack", data__path=str(tmp_path / "worm.h5"))
    dataset = build(config)
    assert dataset.scaling.depth.offset == -1
    assert dataset.source.labels.ids.tolist() == [1, 2]


def test_the_source_image_is_named_numbered_or_simulated(tmp_path):
    images = write_images(tmp_path, 12)
    config = smoke(data__source="folder", data__path=str(tmp_path), data__size=32)
    for wanted, name in (("3", "frame3.png"), ("frame5.png", "frame5.png")):
        config.source.image = wanted
        source = build(config).source
        assert source.name == name
        spread = np.corrcoef(source.image.ravel(), images[int(name[5])].ravel())[0, 1]
        assert spread > 0.99
    config.source.image, config.source.set = "simulated", "rotated_ellipses"
    source = build(config).source
    assert source.name == "simulated:rotated_ellipses" and source.labels is not None
    assert source.image.max() > 0.8
    config.source.image = "frame99.png"
    with pytest.raises(UserError, match=r"source\.image: 'frame99\.png' is neither"):
        build(config)


def test_a_source_image_that_is_held_out_is_pointed_out(tmp_path, capsys):
    write_images(tmp_path / "images", 12)
    config = smoke(data__source="folder", data__path=str(tmp_path / "images"))
    split = build(config).split["names"]
    workdir = Workdir(str(tmp_path / "run"), create=True)
    for name, warned in ((split["test"][0], True), (split["train"][0], False)):
        config.source.image = name
        intake.load(config, workdir)
        assert ("warning: the source image is a test frame" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("kernel", [3, 11, 51, 127])
def test_blur_smooths_more_with_a_larger_kernel(kernel):
    impulse = np.zeros((255, 255, 1), np.float32)
    impulse[127, 127] = 1
    blurred = pipeline._blurred(impulse, kernel)
    assert blurred.sum() == pytest.approx(1, rel=1e-4)
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    expected = np.exp(-((np.arange(-(kernel // 2), kernel // 2 + 1)) ** 2) / (2 * sigma**2))
    line = blurred[127, 127 - kernel // 2 : 128 + kernel // 2, 0]
    np.testing.assert_allclose(line / line.sum(), expected / expected.sum(), atol=1e-6)


def test_mixed_sizes_need_a_policy(tmp_path):
    write_images(tmp_path / "a", 6, shape=(32, 32))
    write_images(tmp_path / "b", 2, shape=(32, 48))
    config = smoke(data__source="folder", data__path=str(tmp_path))
    with pytest.raises(UserError, match=r"mixed sizes: 2 of 8 images are not 32x32 \(first: b/"):
        build(config)
    config.data.mixed_sizes = "fit"
    assert build(config).train.shape[1:] == (32, 32, 1)


def test_mixed_depths_and_constant_images_are_refused(tmp_path):
    write_images(tmp_path / "a", 2)
    write_images(tmp_path / "b", 2, dtype=np.uint16)
    config = smoke(data__source="folder", data__path=str(tmp_path))
    with pytest.raises(UserError, match="mixed depths: a/frame0.png holds uint8"):
        build(config)
    (tmp_path / "c").mkdir()
    for i in range(3):
        tifffile.imwrite(tmp_path / "c" / f"{i}.tif", np.full((32, 32), 7, np.uint8))
    config.data.path = str(tmp_path / "c")
    with pytest.raises(UserError, match="the images are constant"):
        build(config)


def test_real_frames_are_split_by_their_blocks_of_time(real_data):
    path = str(real_data / "worms/zephir")
    config = smoke(data__source="folder", data__path=path, data__size=128)
    dataset = build(config)
    assert dataset.train.shape == (240, 128, 128, 1)
    blocks = {s: set(members) for s, members in dataset.split["blocks"].items()}
    assert [len(blocks[s]) for s in splits.SPLITS] == [5, 1, 2]
    assert not blocks["train"] & blocks["test"]
