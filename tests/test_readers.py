import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from builders import smoke, write_images, write_targettrack
from PIL import Image

from deformgan.data import folder, targettrack
from deformgan.errors import UserError


def settings(path, **overrides):
    config = smoke().data
    config.path = str(path)
    config.update(overrides)
    return config


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", np.uint8), (".png", np.uint16), (".tif", np.uint16), (".tiff", np.uint8)],
)
def test_images_come_back_as_they_were_written(tmp_path, suffix, dtype):
    images = write_images(tmp_path, 12, suffix=suffix, dtype=dtype)
    frames = folder.read(settings(tmp_path))
    assert list(frames.names) == [f"frame{i}{suffix}" for i in range(12)]  # 2 before 10
    for i, image in enumerate(images):
        np.testing.assert_array_equal(frames.read(i).image[..., 0], image)
        assert frames.read(i).image.dtype == dtype


def test_jpeg_colour_and_transparency_become_grey(tmp_path):
    colour = np.zeros((16, 20, 4), np.uint8)
    colour[..., 1], colour[..., 3] = 100, 7
    Image.fromarray(colour).save(tmp_path / "a.png")
    Image.fromarray(colour[..., :3]).save(tmp_path / "b.jpg", quality=100)
    frames = folder.read(settings(tmp_path))
    for i in range(2):
        assert frames.read(i).image.shape == (16, 20, 1)
        assert abs(int(frames.read(i).image[3, 3, 0]) - 59) <= 1  # 0.587 * 100
    green = folder.read(settings(tmp_path, channel=1))
    assert green.read(0).image[3, 3, 0] == 100
    both = folder.read(settings(tmp_path, channels=3))
    np.testing.assert_array_equal(both.read(0).image, colour[..., :3])


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_sixteen_bit_png_of_any_kind_keeps_its_depth(tmp_path, samples):
    image = np.random.default_rng(0).integers(0, 60_000, (9, 11, samples)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(image))
    got = folder.read(settings(tmp_path, channel=0)).read(0).image
    np.testing.assert_array_equal(got[..., 0], image[..., 0])
    if samples > 2:
        colour = folder.read(settings(tmp_path, channels=3)).read(0).image
        np.testing.assert_array_equal(colour, image[..., :3])


def test_channels_of_a_hyperstack_are_chosen_from_not_mixed_with_times(tmp_path):
    stack = np.random.default_rng(0).integers(0, 900, (6, 2, 16, 20)).astype(np.uint16)
    file = tmp_path / "hyper.tif"
    tifffile.imwrite(file, stack, imagej=True, metadata={"axes": "TCYX"})
    frames = folder.read(settings(file, channel=1))
    assert len(frames) == 6
    np.testing.assert_array_equal(frames.read(4).image[..., 0], stack[4, 1])
    with pytest.raises(UserError, match=r"data\.channel: hyper\.tif#0 has 2 channels; choose one"):
        folder.read(settings(file)).read(0)
    volumes = stack.reshape(3, 4, 16, 20)
    tifffile.imwrite(file, volumes, imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(UserError, match=r"hyper\.tif: holds 3 times of 4 planes"):
        folder.read(settings(file))


def test_samples_of_a_tiff_are_channels_unless_marked_transparent(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (16, 20, 2)).astype(np.uint8)
    file = tmp_path / "two.tif"
    tifffile.imwrite(file, image, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(
        folder.read(settings(file, channel=1)).read(0).image, image[..., 1:]
    )
    tifffile.imwrite(
        file, image, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    np.testing.assert_array_equal(folder.read(settings(file)).read(0).image, image[..., :1])


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_pages_of_a_stack_are_frames(tmp_path, compression):
    stack = np.random.default_rng(0).integers(-5, 900, (7, 16, 20)).astype(np.int16)
    file = tmp_path / "movie.tif"
    tifffile.imwrite(file, stack, compression=compression, photometric="minisblack")
    for path in (file, tmp_path):
        frames = folder.read(settings(path))
        assert frames.names[3] == "movie.tif#3"
        assert set(frames.recordings) == {"movie.tif"}
        np.testing.assert_array_equal(frames.read(3).image[..., 0], stack[3])


def test_recordings_are_folders_and_stretches_without_a_long_pause(tmp_path):
    image = np.eye(16, dtype=np.uint8)
    for name in ("a/t000", "a/t001", "a/t003", "a/t100", "a/t101", "b/t000"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    recordings = folder.read(settings(tmp_path)).recordings
    assert recordings == ["a/0", "a/0", "a/0", "a/1", "a/1", "b"]


def test_names_with_a_place_beside_the_time_are_one_recording(tmp_path):
    for name in ("t000_x010", "t000_x500", "t001_x010", "t001_x500"):
        Image.fromarray(np.eye(16, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    assert set(folder.read(settings(tmp_path)).recordings) == {"."}


def test_other_files_are_left_alone_and_counted(tmp_path):
    write_images(tmp_path, 2)
    (tmp_path / "notes.txt").write_text("x")
    assert folder.read(settings(tmp_path)).skipped == "1 other files left alone"


def test_targettrack_projections_masks_and_points(tmp_path):
    file = tmp_path / "worm.h5"
    points = write_targettrack(file)
    frames = targettrack.read(settings(file))
    assert frames.names[2] == "worm.h5#2[0:6]"
    frame = frames.read(2)
    assert frame.image.shape == (32, 48, 1) and frame.image.min() == -1  # [H, W], x first on disk
    np.testing.assert_array_equal(frame.labels.ids, [1, 2])
    for (row, column), n in zip(frame.labels.points, (1, 2), strict=True):
        assert (column, row) == tuple(points[2, n, :2])
        assert frame.labels.mask[round(row), round(column)] == n
        assert frame.image[round(row), round(column), 0] == 100 * n


def test_targettrack_z_ranges_separate_what_lies_at_different_depths(tmp_path):
    file = tmp_path / "worm.h5"
    write_targettrack(file, volumes=1)
    frames = targettrack.read(settings(file, z_ranges="0:3,3:6"))
    assert len(frames) == 2
    assert frames.read(0).labels.ids.tolist() == [1]
    assert frames.read(1).labels.ids.tolist() == [2]


def test_several_channels_must_be_chosen_from(tmp_path):
    file = tmp_path / "two.h5"
    write_targettrack(file, channels=2)
    with pytest.raises(UserError, match=r"data\.channel: .*two\.h5 has 2 channels; choose one"):
        targettrack.read(settings(file)).read(0)
    assert targettrack.read(settings(file, channel=1)).read(0).image.shape == (32, 48, 1)


def test_real_targettrack_masks_and_points_agree(real_data):
    file = real_data / "worms/targettrack/worm_volumes.h5"
    frames = targettrack.read(settings(file))
    assert len(frames) == 4
    hits = total = 0
    for i in range(4):
        frame = frames.read(i)
        assert frame.image.shape == (128, 192, 1)
        for n, (row, column) in zip(frame.labels.ids, frame.labels.points, strict=True):
            hits += frame.labels.mask[round(row), round(column)] == n
            total += 1
    assert total == 40 and hits > 0.7 * total  # others lie behind a brighter neuron or are bent


def test_real_frames_are_read(real_data):
    frames = folder.read(settings(real_data / "worms/zephir"))
    assert len(frames) == 384 and len(set(frames.recordings)) == 8
    assert frames.read(0).image.shape == (128, 128, 1)


BAD_FILES = {
    "truncated.png": lambda good: good.read_bytes()[:90],
    "empty.png": lambda good: b"",
    "text.png": lambda good: b"this is no image",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_unreadable_image_is_named(tmp_path, name):
    write_images(tmp_path, 1)
    (tmp_path / name).write_bytes(BAD_FILES[name](tmp_path / "frame0.png"))
    frames = folder.read(settings(tmp_path))
    bad = next(i for i, n in enumerate(frames.names) if n == name)
    with pytest.raises(UserError, match=f"{name}: unreadable or truncated image"):
        frames.read(bad)


def test_a_truncated_tiff_is_named(tmp_path):
    write_images(tmp_path, 1, shape=(64, 64), suffix=".tif")
    file = tmp_path / "frame0.tif"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"frame0\.tif: (not a readable|unreadable)"):
        folder.read(settings(tmp_path)).read(0)


def test_a_decompression_bomb_is_refused_unread(tmp_path, monkeypatch):
    write_images(tmp_path, 1)
    monkeypatch.setattr(folder, "MOST_PIXELS", 1000)
    with pytest.raises(UserError, match=r"frame0\.png: 1024 pixels, more than the 1000"):
        folder.read(settings(tmp_path)).read(0)


def test_values_that_are_no_numbers_are_refused(tmp_path):
    image = np.zeros((8, 8), np.float32)
    image[2, 2] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", image)
    with pytest.raises(UserError, match=r"a\.tif: holds NaN"):
        folder.read(settings(tmp_path)).read(0)


def test_an_hdf5_of_another_layout_names_the_one_expected(tmp_path):
    file = tmp_path / "other.h5"
    with h5py.File(file, "w") as h5:
        h5["data"] = np.zeros(3)
    with pytest.raises(UserError, match=r"other\.h5: no dataset '0/frame'"):
        targettrack.read(settings(file))
    file.write_bytes(b"no HDF5")
    with pytest.raises(UserError, match=r"other\.h5: not a readable HDF5"):
        targettrack.read(settings(file))


def test_targettrack_datasets_of_another_shape_are_named(tmp_path):
    file = tmp_path / "worm.h5"
    for points in (np.zeros((2, 3, 3)), np.zeros((4, 3))):
        write_targettrack(file)
        with h5py.File(file, "a") as h5:
            del h5["pointdat"]
            h5["pointdat"] = points
        with pytest.raises(UserError, match=r"worm\.h5: 'pointdat' is \(.*wanted \[4 or more"):
            targettrack.read(settings(file))
    with h5py.File(file, "w") as h5:
        h5["0/frame"] = np.full((1, 8, 8, 2), np.nan, np.float32)
    with pytest.raises(UserError, match=r"worm\.h5: volume 0 unreadable: .* NaN"):
        targettrack.read(settings(file)).read(0)


def test_bad_z_ranges_are_named(tmp_path):
    file = tmp_path / "worm.h5"
    write_targettrack(file, volumes=1)
    for text in ("0-3", "3:2", "0:99"):
        with pytest.raises(UserError, match=r"data\.z_ranges"):
            targettrack.read(settings(file, z_ranges=text))
