import collections
import concurrent.futures
import gzip
import subprocess
import sys
import weakref
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
from builders import smoke
from PIL import Image

from configs import base
from deformgan import prepare
from deformgan.data import pipeline, pyramid, rasters
from deformgan.errors import UserError

ROOT = Path(__file__).parent.parent
SIZE = 32


def settings(path, **overrides):
    config = base.get_config().data
    config.update({"path": str(path), "source": "pyramid", "size": SIZE, "channels": 3})
    config.update({"tiles": 40, "scaling": "range", "screen": "off"})
    config.update(overrides)
    return config


def orientation_map(shape=(400, 150)):
    """Every pixel tells where it is: (row, column) modulo 200; the third channel is bright."""
    rows, columns = np.indices(shape)
    return np.stack([rows % 200, columns % 200, np.full(shape, 220)], -1).astype(np.uint8)


def transmittance(shape=(400, 150)):
    rows, columns = np.indices(shape)
    return ((7 * rows + columns) % 199).astype(np.uint8)


def write_h5(file, image, levels=2):
    with h5py.File(file, "w") as h5:
        for level in range(levels):
            own = image[:: 2**level, :: 2**level]
            h5.create_dataset(f"pyramid/{level:02d}", data=own, chunks=True, compression="gzip")


def write_section(folder, name="B1_s0001_left", shape=(400, 150)):
    folder.mkdir(parents=True, exist_ok=True)
    write_h5(folder / f"{name}_FOM_HSV.h5", orientation_map(shape))
    write_h5(folder / f"{name}_NTransmittance.h5", transmittance(shape))


def place(name):
    row, column = name.split("#r")[1].split("c")
    return int(row), int(column)


def members(frames, split):
    return [i for i, own in enumerate(frames.splits) if own == split]


# Files


def write_nifti(file, array):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), file)


def write_levels(file, image):
    with tifffile.TiffWriter(file) as tiff:
        layout = {"tile": (64, 48), "compression": "zlib", "photometric": "rgb"}
        tiff.write(np.repeat(np.repeat(image, 2, 0), 2, 1), subifds=1, **layout)
        tiff.write(image, subfiletype=1, **layout)


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
WRITERS = {
    "plain.tif": lambda f, x: tifffile.imwrite(f, x),
    "planar.tif": lambda f, x: tifffile.imwrite(
        f, np.moveaxis(x, -1, 0), photometric="rgb", planarconfig="separate"
    ),
    "tiled.tif": lambda f, x: tifffile.imwrite(f, x, tile=(64, 48), compression="zlib"),
    "strips.tiff": lambda f, x: tifffile.imwrite(f, x, rowsperstrip=23, compression="lzw"),
    "planar_tiled.tif": lambda f, x: tifffile.imwrite(
        f,
        np.moveaxis(x, -1, 0),
        photometric="rgb",
        planarconfig="separate",
        tile=(48, 64),
        compression="zlib",
        predictor=True,
    ),
    "big_endian.tif": lambda f, x: tifffile.imwrite(f, x.astype(">u2"), photometric="rgb"),
    "levels.tif": write_levels,
    "map.nii": lambda f, x: write_nifti(f, np.swapaxes(x, 0, 1)),
    "planes.nii": lambda f, x: write_nifti(f, np.swapaxes(x, 0, 1)[:, :, None]),
    "rgb.nii.gz": lambda f, x: write_nifti(f, np.swapaxes(x, 0, 1).copy().view(RGB)),
    "map.nii.gz": lambda f, x: write_nifti(f, np.swapaxes(x, 0, 1)),
    "map.h5": write_h5,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_any_tile_of_any_format_is_that_part_of_the_image(tmp_path, kind):
    image = orientation_map((211, 150))
    file = tmp_path / kind
    WRITERS[kind](file, image)
    config = settings(tmp_path, level=int(kind == "levels.tif"))
    raster = rasters.open_raster(file, "fom", config)
    assert raster.shape == (211, 150, 3)
    places = [(0, 0), (179, 118), (0, 118), (179, 0), (61, 40), (100, 5)]
    for row, column in places:
        wanted = image[row : row + SIZE, column : column + SIZE]
        np.testing.assert_array_equal(raster.tile(row, column), wanted)
    assert raster.tile(0, 0).dtype.isnative
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for (row, column), tile in zip(
            8 * places, threads.map(lambda p: raster.tile(*p), 8 * places), strict=True
        ):
            assert tuple(tile[0, 0, :2]) == (row, column)


def test_tiles_of_a_jpeg_compressed_section_are_those_of_its_whole(tmp_path):
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, orientation_map((200, 150)), tile=(64, 64), compression="jpeg")
    whole = tifffile.imread(file)
    tile = rasters.open_raster(file, "fom", settings(file)).tile(50, 40)
    np.testing.assert_array_equal(tile, whole[50:82, 40:72])


@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"rowsperstrip": 64}])
def test_only_the_pieces_of_a_tiff_that_a_tile_lies_in_are_read(tmp_path, layout):
    file = tmp_path / "a.tif"
    image = orientation_map((256, 128))
    tifffile.imwrite(file, image, compression="zlib", photometric="rgb", **layout)
    with tifffile.TiffFile(file) as tiff:
        offsets, counts = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    with file.open("r+b") as stream:
        for offset, count in list(zip(offsets, counts, strict=True))[len(offsets) // 2 :]:
            stream.seek(offset)
            stream.write(bytes(count))
    raster = rasters.open_raster(file, "fom", settings(file))
    np.testing.assert_array_equal(raster.tile(96, 96), image[96:128, 96:128])
    with pytest.raises(UserError, match=r"a\.tif: unreadable at row 97, column 96"):
        raster.tile(97, 96)


def test_a_scaled_nifti_is_in_its_own_units(tmp_path):
    file = tmp_path / "a.nii"
    image = nibabel.Nifti1Image(transmittance((90, 60)).T.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, file)
    raster = rasters.open_raster(file, "transmittance", settings(file))
    stored = np.asarray(nibabel.load(file).dataobj).T[:SIZE, 4 : 4 + SIZE, None]
    np.testing.assert_allclose(raster.tile(0, 4), stored)


def test_more_files_than_may_be_open_are_read_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "_MOST_OPEN", 1)
    monkeypatch.setattr(rasters, "_holders", weakref.WeakSet())
    opened = []
    for i in range(4):
        write_h5(tmp_path / f"{i}.h5", orientation_map((100 + i, 90)))
        opened.append(rasters.open_raster(tmp_path / f"{i}.h5", "fom", settings(tmp_path)))
    for _ in range(2):
        assert [r.tile(r.shape[0] - SIZE, 0)[0, 0, 0] for r in opened] == [68, 69, 70, 71]
    assert len(rasters._holders) == 1


MEASURE = """
import re, sys
from configs import base
from deformgan.data import pyramid

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024

config = base.get_config().data
config.path, config.channels, config.tiles, config.size = sys.argv[1], 3, 100, 64
config.scaling = "range"
before = peak()
frames = pyramid.read(config)
total = sum(int(frames.read(i).image.sum()) for i in range(len(frames)))
print(len(frames), total > 0, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_stays_bounded_on_a_section_of_400_million_pixels(tmp_path):
    """1.2 GB unpacked; what is not written is 120."""
    with h5py.File(tmp_path / "B1_s0001_FOM_HSV.h5", "w") as h5:
        layout = {"chunks": (256, 256, 3), "compression": "gzip", "fillvalue": 120}
        data = h5.create_dataset("pyramid/00", (20_000, 20_000, 3), np.uint8, **layout)
        for column in range(0, 2048, 256):
            data[9984:10_240, column : column + 256] = np.full((256, 256, 3), 60, np.uint8)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, nonzero, grown = done.stdout.split()
    assert (count, nonzero) == ("130", "True")
    assert float(grown) < 100  # MiB


# Frames


def test_frames_are_the_tiles_that_their_names_tell(tmp_path):
    write_section(tmp_path)
    frames = pyramid.read(settings(tmp_path))
    assert collections.Counter(frames.splits) == {"train": 40, "validation": 4, "test": 8}
    assert len(set(frames.names)) == len(frames)
    for i, name in enumerate(frames.names):
        row, column = place(name)
        image = frames.read(i).image
        assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
        assert tuple(image[0, 0]) == (row % 200, column % 200, 220)
        assert tuple(image[-1, -1, :2]) == ((row + 31) % 200, (column + 31) % 200)
        assert frames.read(i).condition is None


def test_a_coarser_level_and_another_modality(tmp_path):
    write_section(tmp_path)
    frames = pyramid.read(settings(tmp_path, level=1, modality="transmittance", channels=1))
    row, column = place(frames.names[5])
    wanted = transmittance()[::2, ::2][row : row + SIZE, column : column + SIZE, None]
    np.testing.assert_array_equal(frames.read(5).image, wanted)


def test_a_pair_shows_one_place_in_two_modalities(tmp_path):
    write_section(tmp_path)
    write_h5(tmp_path / "B1_s0001_left_NRetardation.h5", 255 - transmittance())
    for inputs in ("transmittance", "transmittance, retardation"):
        frames = pyramid.read(settings(tmp_path, pairs=True, inputs=inputs))
        for i in (0, 20):
            row, column = place(frames.names[i])
            own = transmittance()[row : row + SIZE, column : column + SIZE]
            wanted = np.stack([own, 255 - own], -1)[..., : inputs.count(",") + 1]
            np.testing.assert_array_equal(frames.read(i).condition, wanted)
            assert tuple(frames.read(i).image[0, 0, :2]) == (row % 200, column % 200)


def test_held_out_rows_are_a_tile_away_from_the_training_rows(tmp_path):
    write_section(tmp_path)
    config = settings(tmp_path, tiles=400, seed=5)
    frames = pyramid.read(config)
    rows = {s: {place(frames.names[i])[0] for i in members(frames, s)} for s in set(frames.splits)}
    for held in rows["validation"] | rows["test"]:
        assert min(abs(held - row) for row in rows["train"]) >= 2 * SIZE
    assert not set(range(*(min(rows["test"]), max(rows["test"]) + SIZE))) & rows["validation"]
    blocks = pipeline.split_frames(frames, config)[1]
    of = {s: {blocks[i] for i in members(frames, s)} for s in rows}
    assert len(of["test"]) >= 3 and len(of["train"]) >= 6
    for moment in set(frames.moments):
        assert (
            len({s for s, m in zip(frames.splits, frames.moments, strict=True) if m == moment}) == 1
        )


def test_held_out_sections_are_the_test_alone(tmp_path):
    for name in ("B1_s0001_left", "B1_s0002_left", "B2_s0001_left", "B2_s0003"):
        write_section(tmp_path / name.split("_")[0], name, (200, 150))
    frames = pyramid.read(settings(tmp_path, tiles=1000, held_out_sections="s0002, B2_s0001"))
    assert {frames.recordings[i] for i in members(frames, "test")} == {
        "B1_s0002_left",
        "B2_s0001_left",
    }
    for split in ("train", "validation"):
        others = {frames.recordings[i] for i in members(frames, split)}
        assert others == {"B1_s0001_left", "B2_s0003"}
    few = pyramid.read(settings(tmp_path, brains="B2", sections="s0001"))
    assert set(few.recordings) == {"B2_s0001_left"}


def test_tiles_are_the_same_at_every_start_and_others_by_another_seed(tmp_path):
    write_section(tmp_path)

    def names(**overrides):
        frames = pyramid.read(settings(tmp_path, **overrides))
        return {s: {frames.names[i] for i in members(frames, s)} for s in set(frames.splits)}

    assert names() == names()
    assert names(tiles=80)["train"] > names()["train"]
    first, other = names(tiles=400), names(tiles=400, seed=1)
    assert first["train"] != other["train"] and first["test"] != other["test"]
    rows = [{place(n)[0] for n in found["test"]} for found in (first, other)]
    assert abs(min(rows[0]) - min(rows[1])) < 5  # the same band


def test_tissue_is_found_and_the_share_rejected_told(tmp_path):
    image = orientation_map()
    image[:, :75] = 0
    image[:90] = 3
    write_h5(tmp_path / "B1_s0001_FOM_HSV.h5", image)
    frames = pyramid.read(settings(tmp_path, tiles=200))
    columns = np.array([place(name) for name in frames.names])
    assert columns[:, 1].min() >= 75 - 8 and columns[:, 0].min() >= 90 - 8
    rejected, _, drawn = frames.skipped.split()[:3]
    assert int(drawn) - int(rejected) == len(frames)
    positions = np.arange(119) >= 75 - 8  # of columns, each equally likely, in rows with tissue
    assert abs(int(rejected) / int(drawn) - (1 - positions.mean())) < 0.12
    loose = pyramid.read(settings(tmp_path, tiles=200, tissue="off"))
    assert loose.skipped.startswith("0 of 260 tiles drawn")
    assert any(not loose.read(i).image.any() for i in range(len(loose)))


def test_other_files_are_counted_and_sections_without_a_pair_left_out(tmp_path):
    write_section(tmp_path)
    write_section(tmp_path, "B1_s0002_left")
    (tmp_path / "B1_s0002_left_NTransmittance.h5").unlink()
    (tmp_path / "notes.txt").write_text("x")
    Image.fromarray(orientation_map((40, 40))).save(tmp_path / "B1_s0001_left_FOM_HSV.png")
    write_h5(tmp_path / "B1_s0001_left_Mask.h5", transmittance((40, 40)))
    frames = pyramid.read(settings(tmp_path))
    assert frames.skipped.startswith("3 other files left alone; ")
    assert len(set(frames.recordings)) == 2
    pairs = pyramid.read(settings(tmp_path, pairs=True))
    assert "; 1 sections left out for lack of a modality, such as B1_s0002_left; " in pairs.skipped
    assert set(pairs.recordings) == {"B1_s0001_left"}


def test_orientation_maps_of_another_coding_are_left_alone(tmp_path):
    for number, coding in enumerate(("FOM", "FOM_HSV_black", "fom_hsv")):
        write_h5(tmp_path / f"B1_s{number}_{coding}.h5", orientation_map())
    for coding in ("FOM_RGB", "FOM_HSV_white", "FOM_predicted", "FOM_predicted_spread"):
        write_h5(tmp_path / f"B1_s8_{coding}.h5", orientation_map())
    frames = pyramid.read(settings(tmp_path))
    assert set(frames.recordings) == {f"B1_s{number}" for number in range(3)}
    assert frames.skipped.startswith("4 other files left alone; ")


def test_of_both_transmittances_the_normalised_one_is_read(tmp_path):
    write_section(tmp_path)
    write_h5(tmp_path / "B1_s0001_left_Transmittance.h5", 255 - transmittance())
    for path in (tmp_path, tmp_path / "B1_s0001_left_FOM_HSV.h5"):
        frames = pyramid.read(settings(path, pairs=True))
        row, column = place(frames.names[3])
        wanted = transmittance()[row : row + SIZE, column : column + SIZE, None]
        np.testing.assert_array_equal(frames.read(3).condition, wanted)
        assert frames.skipped.startswith(
            "1 files left alone for the normalised ones beside them, such as"
            " B1_s0001_left_Transmittance.h5; "
        )
    (tmp_path / "B1_s0001_left_NTransmittance.h5").unlink()
    frames = pyramid.read(settings(tmp_path, pairs=True))
    row, column = place(frames.names[3])
    assert frames.read(3).condition[0, 0, 0] == 255 - transmittance()[row, column]
    assert "normalised" not in frames.skipped


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("B_0001_FOM_HSV.png", r"is called like a section, but .* HDF5, TIFF or NIfTI alone; conv"),
        ("B_0001_NTransmittance.jpg", r"is called like a section"),
        ("B_0001_FOM_predicted.tif", r"FOM_predicted\.tif is predicted, not measured; keep"),
        ("B_0001_NTransmittance_predicted_spread.tiff", r"is predicted, not measured"),
        ("t1_predicted.png", r"is predicted, not measured"),
    ],
)
def test_images_that_are_no_tiles_by_their_names_are_refused(tmp_path, name, message):
    image = orientation_map((SIZE, SIZE))
    Image.fromarray(image).save(tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=message):
            pyramid.read(settings(path))


def test_tiles_of_another_coding_are_no_section_either(tmp_path):
    (tmp_path / "B1_s1_FOM_RGB").mkdir()
    for i in range(40):
        tile = orientation_map((SIZE, SIZE)) + np.uint8(i)
        Image.fromarray(tile).save(tmp_path / f"B1_s1_FOM_RGB/t{i}.png")
    for path in (tmp_path, tmp_path / "B1_s1_FOM_RGB"):
        with pytest.raises(UserError, match=r"no sections at .*FOM_HSV\.h5"):
            pyramid.read(settings(path))


def test_floats_in_other_units_than_the_range_are_refused(tmp_path):
    unit = (transmittance() / 199).astype(np.float32)
    write_h5(tmp_path / "B1_s0001_NTransmittance.h5", unit)
    config = settings(tmp_path, modality="transmittance", channels=1)
    message = r"B1_s0001_NTransmittance\.h5: values from 0 to 0\.99\d*, all alike in data\.range"
    with pytest.raises(UserError, match=message + r" \(0, 255\); .* data\.tissue_transmittance"):
        pyramid.read(config)
    config.update({"range": (0.0, 1.0), "tissue_transmittance": (0.0, 0.99)})
    assert len(pyramid.read(config)) == 52
    write_h5(tmp_path / "B1_s0001_FOM_HSV.h5", orientation_map())
    paired = settings(tmp_path, pairs=True)
    with pytest.raises(UserError, match=r"all alike in data\.input_range"):
        pyramid.read(paired)
    write_h5(tmp_path / "B1_s0001_NTransmittance.h5", 199 * unit)
    assert pyramid.read(paired).read(0).condition.dtype == np.float32


def test_one_file_brings_its_pair_along_and_no_other_section(tmp_path):
    write_section(tmp_path)
    write_section(tmp_path, "B1_s0002_left")
    frames = pyramid.read(settings(tmp_path / "B1_s0002_left_FOM_HSV.h5", pairs=True))
    assert set(frames.recordings) == {"B1_s0002_left"}
    assert frames.read(0).condition.shape == (SIZE, SIZE, 1)


@pytest.mark.parametrize("names", [("B1_s0001_FOM_HSV", "B1_s0001_NTransmittance"), ("cut",)])
def test_folders_of_tiles_are_sections_of_tiles(tmp_path, names):
    for folder, image in zip(
        names, (orientation_map((64, 64)), transmittance((64, 64))), strict=False
    ):
        (tmp_path / folder).mkdir()
        for i in range(40):
            tile = image.copy()[:SIZE, :SIZE]
            tile[0, 0] = i + 20
            Image.fromarray(tile).save(tmp_path / folder / f"t{i}.png")
    paired = len(names) == 2
    path = tmp_path if paired else tmp_path / names[0]
    frames = pyramid.read(settings(path, tiles=100, pairs=paired, inputs="transmittance"))
    held = {n.split("#")[1]: s for n, s in zip(frames.names, frames.splits, strict=True)}
    assert collections.Counter(held.values()) == {"train": 26, "validation": 4, "test": 8}
    assert set(held) == {f"t{i}.png" for i in range(40)} - {"t13.png", "t26.png"}  # the gaps
    assert "only 26 train tiles of 100: there are no more" in frames.skipped
    for i, name in enumerate(frames.names):
        number = int(name.split("#t")[1].split(".")[0])
        assert (frames.read(i).image[0, 0] == number + 20).all()
        if paired:
            assert frames.read(i).condition[0, 0, 0] == number + 20


def test_prepared_tiles_are_read_back_with_their_splits(tmp_path):
    write_section(tmp_path / "data")
    config = smoke()
    config.data = settings(tmp_path / "data", tiles=12)
    prepare.run(config, str(tmp_path / "run"))
    back = config.copy_and_resolve_references()
    back.data.update({"source": "tfds", "path": str(tmp_path / "run/dataset")})
    direct, stored = (
        pipeline.build(pipeline.open_frames(c.data), c.data, c.source) for c in (config, back)
    )
    assert direct.split["names"] == stored.split["names"]
    np.testing.assert_array_equal(direct.train, stored.train)
    row, column = place(direct.split["names"]["train"][3])
    wanted = orientation_map()[row : row + SIZE, column : column + SIZE]
    np.testing.assert_array_equal(direct.scaling.outward(direct.train[3]), wanted)


# Real sections


def test_real_section(real_data):
    config = settings(real_data / "pli/vervet", size=64, tiles=60, pairs=True)
    frames = pyramid.read(config)
    assert "other files" not in frames.skipped
    assert set(frames.recordings) == {"Vervet1818_s0000_left"}
    assert collections.Counter(frames.splits) == {"train": 60, "validation": 6, "test": 12}
    for i in range(len(frames)):
        frame = frames.read(i)
        assert frame.image.shape == (64, 64, 3) and frame.condition.shape == (64, 64, 1)
        assert np.mean(frame.image.max(-1) >= 16) >= 0.75
        assert np.mean(frame.condition <= 235) >= 0.75
        bright = frame.image.max(-1).astype(float)
        assert bright.std() > 5  # no flat tile
    coarse = pyramid.read(settings(real_data / "pli/vervet", level=1))
    assert max(place(name)[0] for name in coarse.names) <= 248 - SIZE
    with pytest.raises(UserError, match="_FOM_HSV.h5: no level 03 .* only levels 00, 01, 02"):
        pyramid.read(settings(real_data / "pli/vervet", level=3))


# Bad input


def replaced(folder, image, modality="FOM_HSV", levels=2):
    write_h5(folder / f"B1_s0001_left_{modality}.h5", image, levels)


def emptied(folder):
    with h5py.File(folder / "B1_s0001_left_FOM_HSV.h5", "w") as h5:
        h5["Image"] = orientation_map((90, 90))


def one_chunk(folder):
    with h5py.File(folder / "B1_s0001_left_FOM_HSV.h5", "w") as h5:
        shape = (8192, 8192, 3)
        h5.create_dataset("pyramid/00", shape, np.uint8, chunks=shape, compression="gzip")


def spoilt(folder):
    with h5py.File(folder / "B1_s0001_left_FOM_HSV.h5", "a") as h5:
        data = h5["pyramid/00"]
        for chunk in range(data.id.get_num_chunks()):
            data.id.write_direct_chunk(data.id.get_chunk_info(chunk).chunk_offset, b"nothing")


NAN = np.full((400, 150), np.nan, np.float32)
BAD = [
    ({"level": 4}, None, r"_FOM_HSV\.h5: no level 04 in its pyramid, only levels 00, 01; set"),
    ({"level": -1}, None, r"data\.level: -1"),
    ({}, emptied, r"_FOM_HSV\.h5: no group 'pyramid'"),
    (
        {},
        lambda f: replaced(f, transmittance((401, 150)), "NTransmittance"),
        r"B1_s0001_left: its images differ in size .*_FOM_HSV\.h5 400x150 and .* 401x150;",
    ),
    (
        {},
        lambda f: replaced(f, np.zeros((400, 150, 3), np.uint8)),
        r"data\.tissue: no tissue in B1_s0001_left: 0 of 2000 tiles .* medians from 0 to 0, data",
    ),
    (
        {"tissue_fom": (230.0, 255.0)},
        None,
        r"no tissue .*medians from 220 to 220, .* is 230 to 255",
    ),
    ({"tissue_fom": (230.0, 16.0)}, None, r"data\.tissue_fom: .* low below high"),
    ({}, lambda f: replaced(f, transmittance()), r"400x150 pixels of 1 channels; a fibre .* has 3"),
    (
        {"pairs": True},
        lambda f: replaced(f, orientation_map(), "NTransmittance"),
        r"_NTransmittance\.h5: 400x150 pixels of 3 channels; transmittance has 1",
    ),
    ({"channels": 1}, None, r"data\.channels: 1; orientation maps have 3 channels"),
    ({"size": 256}, None, r"400x150 pixels at level 0, smaller than a tile of 256"),
    ({"size": 128}, None, r"B1_s0001_left: 400 rows with tissue are too few for bands"),
    ({"modality": "fibres"}, None, r"data\.modality: unknown name 'fibres'; choose one of fom"),
    (
        {"modality": "retardation", "channels": 1},
        None,
        r"no section has retardation; B1_s0001_left",
    ),
    ({"pairs": True, "inputs": "fom"}, None, r"data\.inputs: unknown name 'fom'"),
    ({"pairs": True, "inputs": "retardation"}, None, r"no section has fom and retardation"),
    ({"brains": "B7"}, None, r"data\.brains: no 'B7'; there are B1"),
    ({"sections": "s9"}, None, r"data\.sections: no 's9'; there are B1_s0001_left"),
    ({"held_out_sections": "s9"}, None, r"data\.held_out_sections: no 's9'"),
    (
        {"held_out_sections": "s0002", "pairs": True},
        lambda f: write_h5(f / "B1_s0002_left_FOM_HSV.h5", orientation_map()),
        r"data\.held_out_sections: B1_s0002_left has no transmittance; choose others",
    ),
    ({"held_out_sections": "s0001"}, None, r"data\.held_out_sections: no other section is left"),
    ({"held_out_sections": "s0001", "test": 0.0}, None, r"data\.held_out_sections: given, but"),
    ({}, lambda f: replaced(f, np.stack([NAN] * 3, -1)), r"_FOM_HSV\.h5: holds NaN"),
    ({}, one_chunk, r"_FOM_HSV\.h5: stored in pieces of 192 MiB"),
    ({}, spoilt, r"_FOM_HSV\.h5: unreadable at row \d+, column \d+"),
    ({}, lambda f: (f / "B1_s0001_left_FOM_HSV.h5").write_bytes(b"x"), r"_HSV\.h5: unreadable"),
    ({}, lambda f: (f / "B1_s0001_left_FOM_HSV.tif").write_bytes(b"x"), r"has two files of fom"),
    ({"path": ""}, None, r"data\.path: not set"),
    ({"path": "/nowhere"}, None, r"data\.path: /nowhere does not exist"),
]


@pytest.mark.parametrize(("overrides", "damage", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_named(tmp_path, overrides, damage, message):
    write_section(tmp_path)
    if damage:
        damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        pyramid.read(settings(**{"path": tmp_path, **overrides}))
    assert "\n" not in str(error.value)


def test_bad_files_of_other_formats_are_named(tmp_path):
    packed = tmp_path / "B1_s0001_FOM.nii.gz"
    write_nifti(packed, np.swapaxes(orientation_map(), 0, 1))
    packed.write_bytes(packed.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"_FOM\.nii\.gz: unreadable \(Compressed file ended"):
        pyramid.read(settings(packed))
    with gzip.open(packed, "wb") as stream:
        stream.write(b"no NIfTI" * 100)
    with pytest.raises(UserError, match=r"_FOM\.nii\.gz: unreadable"):
        pyramid.read(settings(packed))
    tiff = tmp_path / "B2_s0001_FOM.tif"
    for stack in (orientation_map()[None].repeat(3, 0), orientation_map()):
        tifffile.imwrite(tiff, stack, photometric="rgb", tile=(64, 64), compression="zlib")
        if len(stack) != 3:
            tiff.write_bytes(tiff.read_bytes()[:20_000])
        with pytest.raises(UserError, match=r"_FOM\.tif: (holds 3 pages|unreadable)"):
            frames = pyramid.read(settings(tiff))
            [frames.read(i) for i in range(len(frames))]


def test_a_folder_without_sections_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no sections at .* \(looked for <brain>_<section>"):
        pyramid.read(settings(tmp_path))
    (tmp_path / "cut").mkdir()
    for i in range(30):
        Image.fromarray(orientation_map((SIZE, 40))).save(tmp_path / f"cut/{i}.png")
    with pytest.raises(
        UserError, match=r"cut/\d+\.png: a tile of 32x40 pixels, where data\.size is 32"
    ):
        pyramid.read(settings(tmp_path / "cut"))
