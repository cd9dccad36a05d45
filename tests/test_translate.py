"""Whole images through a generator: stand-ins for it whose output is known exactly."""

import json
import math
import tracemalloc
import types

import h5py
import imagecodecs
import jax
import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from configs import base, pix2pix
from deformgan import blending, mosaic, orientation, translate, translator
from deformgan.data import aligned, geometry, raster_writers, sections, whole
from deformgan.data.frames import Frame
from deformgan.data.scaling import Depth, Scaling
from deformgan.errors import UserError
from deformgan.objectives.contract import Samples
from deformgan.translator import Translator

BYTES = Scaling("range", 0.0, 255.0, 0.0, Depth("uint8", 1.0, 0.0))
OUTER = Scaling("range", 0.0, 65535.0, 0.0, Depth("uint16", 1.0, 0.0))


to_hsv_black = jax.jit(orientation.to_hsv_black)
from_hsv_black = jax.jit(orientation.from_hsv_black)


def settings(**values):
    data = base.get_config().data
    data.update({"source": "pyramid", "pairs": True, "channels": 3, "size": 32} | values)
    return data


def smooth(shape, seed=0, low=40.0, high=230.0, blur=4.0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), blur)
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return np.round(low + (high - low) * noise).astype(np.uint8)


def fibres(direction, inclination):
    """The orientation map, `[..., 3]` uint8, of angles in degrees."""
    direction, inclination = (np.radians(np.float32(a)) for a in (direction, inclination))
    mask = np.ones_like(direction)
    seen = orientation.Orientation(direction, inclination, mask)
    return np.round(255 * np.asarray(to_hsv_black(seen))).astype(np.uint8)


def directions(colours):
    return np.degrees(from_hsv_black(np.float32(colours) / 255).direction)


def translating(sample, blend=None, *, size=32, passes=1, seed=0, outward=BYTES):
    """A translator whose generator is (keys `[n]`, conditions) -> images."""

    def full(variables, constants, keys, conditions):
        return Samples(sample(keys, conditions), {}, {})

    blend = blend or blending.plain(1, 127.5)
    objective = types.SimpleNamespace(sample=full)
    predict = translator.predictor(objective, {}, {}, blend, passes=passes, seed=seed)
    return Translator(predict, blend, size, passes, BYTES, outward)


def held(image):
    """An image in memory, as what is to be translated."""
    image = image[..., None] if image.ndim == 2 else image
    return whole.Whole((), "png", 0, image.shape, False, lambda low, high: image[low:high])


def translated(image, by, folder, overlap=0.75):
    done = translator.translated(held(image), by, overlap=overlap, folder=folder, quiet=True)
    return done, done.image.read(0, len(image))


def identity(keys, conditions):
    return conditions


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_weights_of_all_tiles_sum_to_one_at_every_pixel(overlap):
    for length in (1, 20, 32, 33, 64, 101):
        cover = mosaic.cover(length, 32, overlap)
        total = np.zeros(length)
        for tile, weights in enumerate(cover.weights):
            index = cover.starts[tile] + np.arange(32)
            inside = (index >= 0) & (index < length)
            np.testing.assert_array_equal(cover.indices(tile)[inside], index[inside])
            np.add.at(total, index[inside], weights[inside])
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert len(cover.starts) == 1 or length > 32
        assert not overlap or (np.diff(cover.starts) % 2 == 1).all()


def test_the_border_is_mirrored():
    cover = mosaic.cover(50, 32, 0.5)
    padded = np.pad(np.arange(50), 32, mode="reflect")
    for tile, start in enumerate(cover.starts):
        np.testing.assert_array_equal(cover.indices(tile), padded[start + 32 : start + 64])
    assert cover.starts[0] == -8 and cover.starts[-1] + 32 >= 58


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
def test_constant_in_constant_out(tmp_path, overlap):
    """To the last bit of the file, in grey and in colours that encode an axis."""
    image = np.full((75, 41), 113, np.uint8)
    _, grey = translated(image, translating(identity), tmp_path, overlap)
    assert (grey == 113).all()
    colour = fibres(70.0, 25.0)

    def one_axis(keys, conditions):
        shown = jnp.asarray(colour, jnp.float32) / 127.5 - 1
        return jnp.broadcast_to(shown, (*conditions.shape[:3], 3))

    by = translating(one_axis, blending.oriented("rgb"))
    done, found = translated(image, by, tmp_path, overlap)
    assert found.shape == (75, 41, 3) and (found == colour).all()
    assert done.seam_ratio is None  # of nothing


def test_identity_in_identity_out(tmp_path):
    grey = smooth((150, 130), blur=2.0)
    done, found = translated(grey, translating(identity), tmp_path)
    np.testing.assert_array_equal(found[..., 0], grey)
    assert done.seam_ratio == pytest.approx(1, abs=0.05)
    turns = np.add.outer(np.linspace(0, 300, 90), np.linspace(0, 80, 70))  # crosses 180 degrees
    colours = fibres(turns % 180, 80 * (smooth((90, 70), 1, blur=1.0) / 255.0))
    by = translating(identity, blending.oriented("rgb"))
    done, found = translated(colours, by, tmp_path)
    assert np.abs(found.astype(int) - colours).max() <= 1
    assert done.seam_ratio == pytest.approx(1, abs=0.05)


def test_seams_of_tiles_that_disagree_are_blended_away_and_measured(tmp_path):
    """Every tile is brighter or darker by a few grey levels of its own."""

    def moody(keys, conditions):
        offsets = 0.2 * (jax.vmap(jax.random.uniform)(keys) - 0.5)
        return conditions + offsets[:, None, None, None]

    image = smooth((200, 200), blur=2.0)
    blended, _ = translated(image, translating(moody), tmp_path)
    abrupt, _ = translated(image, translating(moody), tmp_path, overlap=0.0)
    assert blended.seam_ratio == pytest.approx(1, abs=0.05)
    assert abrupt.seam_ratio > 1.5


def test_a_checkerboard_that_networks_leave_is_cancelled(tmp_path):
    """Each second column of every tile is brighter, as of a transposed convolution."""

    def striped(keys, conditions):
        return conditions + 0.1 * (jnp.arange(32) % 2)[None, None, :, None]

    image = np.full((40, 200), 100, np.uint8)
    left = {}
    for overlap in (0.0, 0.67, 0.75):
        _, found = translated(image, translating(striped), tmp_path, overlap)
        left[overlap] = np.abs(np.diff(found[..., 0].astype(float))).mean()
    assert left[0.0] > 12 and max(left[0.67], left[0.75]) < 0.3 * left[0.0]


def test_a_step_at_a_border_of_tiles_has_the_ratio_it_should():
    rows, columns = (mosaic.cover(64, 32, 0.0) for _ in range(2))
    ramp = np.add.outer(np.arange(64.0), np.arange(64.0))
    ramp[32:] += 3  # one of the two borders is 4 times as steep as everything else
    for parts in ([ramp], np.split(ramp, [5, 32, 50])):
        seams = mosaic.Seams(rows, columns)
        for part in parts:
            seams.add(part[..., None])
        assert seams.ratio() == pytest.approx((4 + 1) / 2)


def test_axes_are_blended_not_colours():
    """5 and 175 degrees make 0; their colours make a darker red. Background does not count."""
    pair = fibres([[[5.0]], [[175.0]]], [[[30.0]], [[50.0]]]) / np.float32(127.5) - 1
    blend = blending.oriented("rgb")
    merge, image = jax.jit(blend.merge), jax.jit(blend.image)
    merged = merge(pair)
    found = from_hsv_black((image(merged) + 1) / 2)
    assert abs((np.degrees(found.direction[0, 0]) + 90) % 180 - 90) < 0.5
    assert np.degrees(found.inclination[0, 0]) == pytest.approx(40, abs=0.5)
    with_background = np.concatenate([pair[:1], np.full((1, 1, 1, 3), -1, np.float32)])
    found = merge(with_background)[0, 0]
    assert found[3] == pytest.approx(0.5)  # half tissue, as steep as that half
    assert math.degrees(found[2] / found[3]) == pytest.approx(30, abs=0.5)
    coded = jax.jit(lambda x: orientation.encode(orientation.decode(x, "rgb"), "orientation"))
    merge = jax.jit(blending.oriented("orientation").merge)
    np.testing.assert_allclose(merge(coded(pair)), merged, atol=1e-5)


def test_orientations_are_blended_where_the_network_makes_them(tmp_path):
    """Of samples in that space, their colours are not looked at."""
    colours = fibres(*np.broadcast_arrays(np.linspace(20, 120, 40)[:, None], np.full((1, 50), 30)))

    def full(variables, constants, keys, conditions):
        seen = orientation.decode(conditions, "rgb")
        fields = {"orientation": orientation.encode(seen, "orientation")}
        return Samples(jnp.zeros_like(conditions), fields, {})

    blend, objective = blending.oriented("orientation"), types.SimpleNamespace(sample=full)
    predict = translator.predictor(objective, {}, {}, blend, passes=1, seed=0)
    _, found = translated(colours, Translator(predict, blend, 32, 1, BYTES, BYTES), tmp_path)
    assert np.abs(found.astype(int) - colours).max() <= 1


def test_spread_is_the_circular_deviation_of_passes():
    blend = blending.oriented("orientation")
    measure = jax.jit(lambda values: blend.spread(blend.merge(values)))

    def spread(degrees, mask=1.0):
        angles = 2 * np.radians(degrees)
        rest = np.ones_like(angles)
        parts = (mask * np.cos(angles), mask * np.sin(angles), -rest, (2 * mask - 1) * rest)
        return float(measure(np.float32(np.stack(parts, -1))[:, None, None])[0, 0])

    expected = math.degrees(math.sqrt(-2 * math.log(math.cos(math.radians(20)))) / 2)
    assert spread([0.0, 20.0]) == pytest.approx(expected, rel=1e-4)
    assert spread([170.0, 10.0]) == pytest.approx(expected, rel=1e-4)
    drawn = np.random.default_rng(0).normal(0, 8, 2000)
    assert spread(drawn) == pytest.approx(8, rel=0.05)
    assert spread([30.0, 30.0]) < 0.05
    assert spread([0.0, 90.0]) == pytest.approx(90 / math.sqrt(3))
    assert spread([0.0, 20.0], mask=0.0) == 0
    grey = blending.plain(1, 127.5)
    values = jnp.asarray([0.1, 0.3])[:, None, None, None]
    assert grey.spread(grey.merge(values))[0, 0] == pytest.approx(12.75, rel=1e-5)


def noisy(keys, conditions):
    shape = conditions.shape[1:]
    return conditions + 0.1 * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def test_passes_are_averaged_and_do_not_depend_on_the_batch(tmp_path, monkeypatch):
    image = smooth((80, 96))
    by = translating(noisy, passes=4)
    done, found = translated(image, by, tmp_path)
    spread = done.spread.read(0, 80)
    monkeypatch.setattr(translator, "_AT_ONCE", 3 * 32**2 * 4)
    again, same = translated(image, by, tmp_path)
    np.testing.assert_array_equal(found, same)
    np.testing.assert_allclose(spread, again.spread.read(0, 80), atol=1e-4)
    _, once = translated(image, translating(noisy), tmp_path)
    _, other = translated(image, translating(noisy, seed=1), tmp_path)
    assert (once != other).mean() > 0.5
    error, error_once = (np.std(f[..., 0] - image.astype(float)) for f in (found, once))
    assert error < 0.6 * error_once  # 1/2 for four passes
    # the root of 3/4 of the variance of one pass, on average
    assert np.sqrt(np.mean(np.square(spread))) == pytest.approx(12.75 * math.sqrt(3 / 4), rel=0.05)


def test_memory_does_not_grow_with_the_height(tmp_path):
    by = translating(identity)

    def peak(height):
        def rows(first, last):
            return np.full((last - first, 256, 1), 90, np.uint8)

        tall = whole.Whole((), "png", 0, (height, 256, 1), False, rows)
        tracemalloc.start()
        translator.translated(tall, by, overlap=0.5, folder=tmp_path, quiet=True)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(128)  # compiles
    added = (2048 - 128) * 256  # bytes of the image, as it is stored
    assert peak(2048) - peak(128) < 0.4 * added  # places and weights of tiles, a few bytes a row


TURN = (70, 52)  # rows, columns: halves need a rule at the border


def input_hdf5(file, image):
    with h5py.File(file, "w") as h5:
        h5.attrs["brain"] = "B1"
        for level, step in enumerate((1, 2, 4)):
            part = image[::step, ::step]
            part = part[:17] if step == 4 else part  # one is rounded up, one down
            like = h5.create_dataset(
                f"pyramid/{level:02d}", data=part, chunks=(16, 13), compression="gzip"
            )
            like.attrs["um"] = 1.3 * step


def input_tiff(file, image):
    with tifffile.TiffWriter(file) as tiff:
        more = {"tile": (32, 16), "resolutionunit": "CENTIMETER", "metadata": None}
        tiff.write(image, subifds=1, resolution=(7692, 7692), **more)
        tiff.write(image[::2, ::2], subfiletype=1, resolution=(3846, 3846), **more)


def input_nifti(file, image):
    affine = np.array([[0.0, -2, 0, 5], [1.5, 0, 0, 7], [0, 0, 3, -1], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.swapaxes(image, 0, 1)[:, :, None], affine), file)


def input_png(file, image):
    file.write_bytes(imagecodecs.png_encode(image))


INPUTS = {
    "B_1_NTransmittance.h5": input_hdf5,
    "B_1_NTransmittance.tif": input_tiff,
    "plain.tif": lambda file, image: tifffile.imwrite(file, image),
    "plain.nii": input_nifti,
    "plain.nii.gz": input_nifti,
    "plain.png": input_png,
}


def to_axes(keys, conditions):
    """Grey to fibres in the plane whose direction, 0 to 180 degrees, is the brightness."""
    angle = (conditions[..., 0] + 1) * (math.pi / 2)
    seen = orientation.Orientation(angle, 0 * angle, jnp.ones_like(angle))
    turn = jax.vmap(lambda key: jax.random.normal(key, ()))(keys)
    return orientation.encode(seen._replace(direction=angle + 0.05 * turn[:, None, None]), "rgb")


def fake_run(monkeypatch, tmp_path, passes=1, scale=1.0, **data):
    """A run folder, and a checkpoint and generator in the place of trained ones."""
    config = base.get_config()
    config.data = settings(**data)
    config.augment.oriented = True
    root = tmp_path / "run"
    root.mkdir()
    (root / "config.json").write_text(config.to_json())
    meta = {
        "config": json.loads(config.to_json()),
        "scaling": BYTES.to_json(),
        "input_scaling": BYTES.to_json(),
        "geometry": {"scale": [scale, scale], "offset": [0, 0]},
    }
    sampler = types.SimpleNamespace(step=7, variables={}, constants={}, meta=meta)
    checkpoints = types.SimpleNamespace(sampler=lambda step: sampler, close=lambda: None)
    monkeypatch.setattr(translate, "Checkpoints", lambda *args, **kwargs: checkpoints)
    by = translating(to_axes, blending.oriented("rgb"), passes=passes)
    monkeypatch.setattr(translate, "translator_of", lambda *args, **kwargs: by)
    return root


def sample(root, files, out="", **values):
    arguments = {"passes": 1, "overlap": 0.75, "level": -1, "seed": 0, "step": "newest"} | values
    translate.run(str(root), None, files=str(files), out=str(out), **arguments)


def read(file):
    """All rows of an output, `[H, W, C]`, whatever its kind."""
    if file.suffix == ".png":
        return imagecodecs.png_decode(file.read_bytes())
    shape, cut = whole.rasters.look_up(file, 0)
    return cut(0, 0, *shape[:2])


@pytest.mark.parametrize("name", list(INPUTS))
def test_every_kind_of_file_comes_back_as_it_is(tmp_path, monkeypatch, capsys, name):
    root = fake_run(monkeypatch, tmp_path, passes=2)
    image = smooth(TURN, blur=8.0)
    INPUTS[name](tmp_path / name, image)
    sample(root, tmp_path / name, tmp_path / "out", passes=2)
    stem, suffix = name.split(".", 1)
    stem = stem.replace("NTransmittance", "FOM") + "_predicted"
    found = read(tmp_path / f"out/{stem}.{suffix}")
    assert found.shape == (*TURN, 3) and found.dtype == np.uint8
    off = np.abs((directions(found) - image * (180 / 255) + 90) % 180 - 90)
    assert off.max() < 10 and np.median(off) < 4  # passes turn by 0.05 radians
    spread = read(tmp_path / f"out/{stem}_spread.{suffix}").astype(float).reshape(TURN)
    spread = spread / 100 if suffix == "png" else spread
    assert 0.1 < np.median(spread) < 5
    manifest = json.loads((tmp_path / f"out/{stem}.json").read_text())
    assert manifest["seam_ratio"] == pytest.approx(1, abs=0.1) and manifest["passes"] == 2
    assert manifest["checkpoint"] == 7 and manifest["config"]["data"]["pairs"]
    assert manifest["input"] == [str(tmp_path / name)] and manifest["remarks"] == []
    assert manifest["colours"] == "HSV black, saturation 1"
    assert manifest["spread"].startswith("hundredths of degrees" if suffix == "png" else "degrees")
    out = capsys.readouterr().out
    assert "seam ratio" in out and f"_spread.{suffix} ({manifest['spread']})" in out
    assert len(list((tmp_path / "out").iterdir())) == 3  # nothing is left over
    with pytest.raises(UserError, match=r"out: .*_predicted\..* is in use"):
        sample(root, tmp_path / name, tmp_path / "out")


def test_an_hdf5_section_keeps_its_pyramid_and_attributes(tmp_path, monkeypatch):
    root = fake_run(monkeypatch, tmp_path)
    image = smooth(TURN, blur=8.0)
    input_hdf5(tmp_path / "B_1_NTransmittance.h5", image)
    sample(root, tmp_path / "B_1_NTransmittance.h5", tmp_path / "map.h5")
    sample(root, tmp_path / "B_1_NTransmittance.h5", tmp_path / "coarse.h5", level=1)
    with h5py.File(tmp_path / "map.h5") as h5:
        levels = h5["pyramid"]
        shapes = {name: levels[name].shape for name in levels}
        assert shapes == {"00": (70, 52, 3), "01": (35, 26, 3), "02": (17, 13, 3)}
        assert levels["01"].chunks == (16, 13, 3) and levels["01"].compression == "gzip"
        assert h5.attrs["brain"] == "B1" and levels["02"].attrs["um"] == 1.3 * 4
        fine, coarse = (directions(levels[n][()]) for n in ("00", "01"))
    doubled = np.exp(2j * np.radians(fine)).reshape(35, 2, 26, 2).mean((1, 3))
    off = (np.degrees(np.angle(doubled)) / 2 - coarse + 90) % 180 - 90
    assert np.abs(off).max() < 1
    with h5py.File(tmp_path / "coarse.h5") as h5:
        assert {n: h5["pyramid"][n].shape for n in h5["pyramid"]} == {
            "01": (35, 26, 3),
            "02": (17, 13, 3),
        }


def test_a_tiff_keeps_its_pyramid_and_resolution(tmp_path, monkeypatch):
    root = fake_run(monkeypatch, tmp_path)
    input_tiff(tmp_path / "section.tif", smooth(TURN))
    sample(root, tmp_path / "section.tif", tmp_path / "map.tif")
    with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
        levels = tiff.series[0].levels
        assert [level.shape for level in levels] == [(70, 52, 3), (35, 26, 3)]
        pages = [level.pages[0].aspage() for level in levels]
        assert [page.resolution for page in pages] == [(7692, 7692), (3846, 3846)]
        assert pages[0].tile == (32, 16) and pages[0].resolutionunit == 3


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_a_nifti_keeps_its_place_in_space(tmp_path, monkeypatch, suffix):
    root = fake_run(monkeypatch, tmp_path)
    input_nifti(tmp_path / f"section.{suffix}", smooth(TURN))
    sample(root, tmp_path / f"section.{suffix}", tmp_path / f"map.{suffix}")
    given, made = (nibabel.load(tmp_path / f"{name}.{suffix}") for name in ("section", "map"))
    np.testing.assert_allclose(made.affine, given.affine)
    assert made.shape == TURN[::-1] and made.dataobj.dtype.names == ("R", "G", "B")


def test_sixteen_bit_colours_in_a_nifti_and_a_png_come_back(tmp_path):
    """Plain colours of 16 bit, that no format holds as pixels of one byte a channel."""
    image = np.random.default_rng(0).integers(0, 65536, (*TURN, 3)).astype(np.uint16)
    rows = raster_writers.Rows(tmp_path, image.shape, image.dtype)
    for part in np.split(image, 7):
        rows.append(part)
    for kind, file, write in (("nifti", "in.nii", input_nifti), ("png", "in.png", input_png)):
        write(tmp_path / file, smooth(TURN))
        layout = raster_writers.layout_of(tmp_path / file, kind, 0, TURN)
        draft = tmp_path / f"map{file[2:]}"
        raster_writers.write(draft, [rows], layout)
        np.testing.assert_array_equal(read(draft), image)


def test_coarser_levels_repeat_the_border_and_average_the_rest(tmp_path):
    image = np.arange(35.0, dtype=np.float32).reshape(5, 7, 1)
    rows = raster_writers.Rows(tmp_path, image.shape, image.dtype)
    rows.append(image)
    layout = raster_writers.Layout(tmp_path, "hdf5", (0, 1), ((5, 7), (3, 3)))
    coarse = raster_writers.pyramid(rows, layout, raster_writers.mean, tmp_path)[1].read(0, 3)
    padded = np.pad(image, ((0, 1), (0, 0), (0, 0)), mode="edge")[:, :6]
    np.testing.assert_allclose(coarse, padded.reshape(3, 2, 3, 2, 1).mean((1, 3)))
    odd = raster_writers.Layout(tmp_path, "hdf5", (0, 1), ((5, 7), (3, 5)))
    with pytest.raises(UserError, match="its pyramid has 3x5 pixels after 5x7, which is no whole"):
        raster_writers.pyramid(rows, odd, raster_writers.mean, tmp_path)


@pytest.mark.parametrize("kind", ["hdf5", "tiff", "nifti", "png"])
def test_values_that_are_stored_in_steps_are_written_in_their_units(tmp_path, kind):
    """PNG alone holds the steps: it has no numbers but whole ones from 0 on."""
    writers = {"hdf5": input_hdf5, "tiff": input_tiff, "nifti": input_nifti, "png": input_png}
    file = tmp_path / f"in.{ {'hdf5': 'h5', 'tiff': 'tif', 'nifti': 'nii', 'png': 'png'}[kind] }"
    writers[kind](file, smooth(TURN))
    layout = raster_writers.layout_of(file, kind, 0, TURN)
    stored = np.random.default_rng(0).integers(0, 256, (*TURN, 3)).astype(np.uint8)
    rows = raster_writers.Rows(tmp_path, stored.shape, stored.dtype)
    rows.append(stored)
    levels = raster_writers.pyramid(rows, layout, raster_writers.mean, tmp_path)
    draft = file.with_stem("out")
    raster_writers.write(draft, levels, layout, (0.25, -3.0))
    np.testing.assert_allclose(read(draft), stored if kind == "png" else stored * 0.25 - 3.0)


def test_a_pyramid_that_holds_a_group_is_read_all_the_same(tmp_path):
    input_hdf5(tmp_path / "in.h5", smooth(TURN))
    with h5py.File(tmp_path / "in.h5", "a") as h5:
        h5.create_group("pyramid/07")
    layout = raster_writers.layout_of(tmp_path / "in.h5", "hdf5", 0, TURN)
    assert layout.levels == (0, 1, 2)


def test_what_lies_beside_a_pyramid_is_copied_if_it_is_small(tmp_path, monkeypatch, capsys):
    root = fake_run(monkeypatch, tmp_path)
    input_hdf5(tmp_path / "in.h5", smooth(TURN))
    with h5py.File(tmp_path / "in.h5", "a") as h5:
        h5["stage/position"] = [3.0, 4.0]
        h5["stage"].attrs["unit"] = "um"
        h5["histogram"] = np.arange(256)
        h5["thumbnail"] = np.zeros((1024, 1024), np.uint8)
        h5["elsewhere"] = h5py.ExternalLink("lost.h5", "/a")
    sample(root, tmp_path / "in.h5", tmp_path / "map.h5")
    with h5py.File(tmp_path / "map.h5") as h5:
        assert set(h5) == {"pyramid", "stage", "histogram"}
        assert h5["stage/position"][1] == 4 and h5["stage"].attrs["unit"] == "um"
    assert "in.h5: elsewhere, thumbnail" in capsys.readouterr().out


def test_the_size_of_a_pixel_is_kept_of_an_ome_tiff_and_a_png(tmp_path, monkeypatch, capsys):
    root = fake_run(monkeypatch, tmp_path)
    size = {"axes": "YX", "PhysicalSizeX": 1.25, "PhysicalSizeY": 0.002}
    size |= {"PhysicalSizeYUnit": "mm"}
    image = smooth(TURN)
    tifffile.imwrite(tmp_path / "in.ome.tif", image, metadata=size)
    sample(root, tmp_path / "in.ome.tif", tmp_path / "map.tif")
    assert "in.ome.tif: ImageDescription" in capsys.readouterr().out
    with tifffile.TiffFile(tmp_path / "map.tif") as tiff:
        page = tiff.pages[0].aspage()
        assert page.resolution == pytest.approx((8000, 5000)) and page.resolutionunit == 3
    Image.fromarray(image).save(tmp_path / "in.png", dpi=(300, 150))
    sample(root, tmp_path / "in.png", tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.info["dpi"] == pytest.approx((300, 150), rel=1e-3)
        assert picture.size == TURN[::-1] and picture.mode == "RGB"


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_computed(
    tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(raster_writers.tempfile, "TemporaryFile", full)
    by = translating(noisy, passes=2)
    by = Translator(None, by.blend, 32, 2, BYTES, BYTES)
    with pytest.raises(UserError, match=r"out: cannot write to .*No space left .*another --out"):
        translated(smooth(TURN), by, tmp_path)


@pytest.mark.parametrize("fails", ["predict", "write"])
def test_a_run_that_dies_leaves_no_file(tmp_path, monkeypatch, fails):
    root = fake_run(monkeypatch, tmp_path)
    input_hdf5(tmp_path / "in.h5", smooth(TURN))
    if fails == "write":

        def die(draft, levels, layout, units):
            draft.write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(raster_writers, "write", die)
    else:
        calls = []

        def predict(conditions, tiles):
            calls.append(tiles)
            if len(calls) == 3:
                assert not list((tmp_path / "out").iterdir())  # nor while it runs
                raise KeyboardInterrupt
            return np.ones((*conditions.shape[:3], 5), np.float32)

        by = Translator(predict, blending.oriented("rgb"), 32, 1, BYTES, BYTES)
        monkeypatch.setattr(translate, "translator_of", lambda *args, **kwargs: by)
    with pytest.raises(KeyboardInterrupt):
        sample(root, tmp_path / "in.h5", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_bad_requests_are_named_before_anything_is_computed(tmp_path, monkeypatch):
    root = fake_run(monkeypatch, tmp_path)
    monkeypatch.setattr(translate, "translator_of", None)
    image = smooth(TURN)
    grey, deep, colour = (tmp_path / f"{name}.h5" for name in ("grey", "deep", "colour"))
    input_hdf5(grey, image)
    for file, other in ((deep, image.astype(np.uint16)), (colour, np.stack([image] * 3, -1))):
        with h5py.File(file, "w") as h5:
            h5["pyramid/00"] = other
    input_png(tmp_path / "grey.png", image)
    refused = {
        "passes: 0": {"passes": 0},
        "overlap: 0.95; give a share": {"overlap": 0.95},
        r"colour.h5: 3 channels, but transmittance, an input of the run, has 1": {"files": colour},
        "deep.h5: holds uint16, but the run was trained on uint8": {"files": deep},
        r"no level 04 in its pyramid, only levels 00, 01, 02; set .* --level": {"level": 4},
        "no level 01, it is no pyramid": {"files": tmp_path / "grey.png", "level": 1},
        "lost.h5 does not exist": {"files": tmp_path / "lost.h5"},
        "input: 2 files .* but the run's inputs are transmittance": {"files": f"{grey},{grey}"},
        r"makes a file of its own kind, .h5": {"out": tmp_path / "map.tif"},
        "out: gs://": {"out": "gs://bucket/map.h5"},
    }
    for message, values in refused.items():
        with pytest.raises(UserError, match=message):
            sample(root, **({"files": grey, "out": tmp_path / "out"} | values))
    for name, other in (("in.nii.gz", "map.nii"), ("in.nii", "map.nii.gz")):
        input_nifti(tmp_path / name, image)
        with pytest.raises(UserError, match=rf"makes a file of its own kind, {name[2:]}$"):
            sample(root, tmp_path / name, tmp_path / other)
    (tmp_path / "map.json").write_text("mine")
    with pytest.raises(UserError, match=r"map.json is in use"):
        sample(root, grey, tmp_path / "map.h5")
    config = json.loads((root / "config.json").read_text())
    config["data"]["pairs"] = False
    (root / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="was not trained on pairs"):
        sample(root, grey)


def test_what_was_predicted_is_never_taken_for_a_measured_section(tmp_path, monkeypatch):
    root = fake_run(monkeypatch, tmp_path, passes=2)
    there = tmp_path / "sections"
    there.mkdir()
    input_hdf5(there / "B_1_left_NTransmittance.h5", smooth(TURN))
    sample(root, there / "B_1_left_NTransmittance.h5", there, passes=2)
    assert len(list(there.iterdir())) == 4
    for path in (there, there / "B_1_left_NTransmittance.h5"):
        found, _ = sections.find(str(path), "fom")
        assert [(s.name, list(s.files)) for s in found] == [("B_1_left", ["transmittance"])]
    (there / "B_1_left_FOM_HSV.h5").touch()
    found, others = sections.find(str(there), "fom")
    assert found[0].files["fom"].name == "B_1_left_FOM_HSV.h5" and others == 3


def test_two_modalities_come_in_two_files(tmp_path):
    data, depth = settings(inputs="transmittance,retardation"), BYTES.depth
    first, second = smooth(TURN), smooth(TURN, 1)
    input_hdf5(tmp_path / "a.h5", first)
    input_hdf5(tmp_path / "b.h5", second)
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    both = whole.open_whole(files, data, depth, level=0)
    assert both.shape == (*TURN, 2)
    np.testing.assert_array_equal(both.rows(10, 20), np.stack([first, second], -1)[10:20])
    input_hdf5(tmp_path / "low.h5", second[:66])
    with pytest.raises(UserError, match="low.h5 has 66x52 pixels, .*a.h5 70x52"):
        files[1] = tmp_path / "low.h5"
        whole.open_whole(files, data, depth, level=0)


def test_images_are_resized_as_those_trained_on(tmp_path):
    data = settings(source="folders", input_channels=3)
    colour = np.stack([smooth((64, 64), seed) for seed in range(3)], -1)
    input_png(tmp_path / "a.png", colour)
    quarter = geometry.Fit((0.25, 0.25), (0, 0))
    opened = whole.open_whole([tmp_path / "a.png"], data, BYTES.depth, level=0, fit=quarter)
    assert opened.remarks == ("resized by 0.25, from 64x64 to 16x16, as in training",)
    wanted = geometry.fitted(Frame(colour), 16, "pad").image
    np.testing.assert_allclose(opened.rows(0, 16), wanted, atol=0.51)
    data.input_channels = 1
    grey = whole.open_whole([tmp_path / "a.png"], data, BYTES.depth, level=0)
    luminance = colour @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(grey.rows(0, 64)[..., 0], luminance, atol=0.51)
    tifffile.imwrite(tmp_path / "a.tif", colour)
    with pytest.raises(UserError, match="trained on images resized by 0.25"):
        whole.open_whole([tmp_path / "a.tif"], data, BYTES.depth, level=0, fit=quarter)


@pytest.mark.parametrize(("aspect", "by"), [("pad", "0.32"), ("stretch", "0.32 x 0.4")])
def test_images_of_mixed_sizes_are_resized_by_their_own(tmp_path, aspect, by):
    image = smooth((100, 81))
    input_png(tmp_path / "a.png", image)
    data = settings(source="folders", mixed_sizes="fit", aspect=aspect)
    other = geometry.Fit((0.5, 0.5), (0, 0))  # of another frame
    opened = whole.open_whole([tmp_path / "a.png"], data, BYTES.depth, level=0, fit=other)
    columns = {"pad": 26, "stretch": 32}[aspect]
    assert opened.remarks == (f"resized by {by}, from 100x81 to 32x{columns}, as in training",)
    wanted = geometry.fitted(Frame(image[..., None]), 32, aspect).image
    left = (32 - columns) // 2
    np.testing.assert_allclose(opened.rows(0, 32), wanted[:, left : left + columns], atol=0.51)
    tiles = settings(mixed_sizes="fit", inputs="transmittance")
    section = whole.open_whole([tmp_path / "a.png"], tiles, BYTES.depth, level=0)
    assert section.shape == (100, 81, 1) and not section.remarks


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
def test_of_a_pair_side_by_side_the_input_is_taken(tmp_path, direction):
    data = settings(source="aligned", direction=direction)
    fit = geometry.fit_to((60, 48), 32, "pad")
    halves = {"AtoB": smooth((60, 48)), "BtoA": smooth((60, 48), 1)}
    pair = np.concatenate(list(halves.values()), 1)
    for name, image in (("pair", pair), ("alone", halves[direction])):
        input_png(tmp_path / f"{name}.png", image)
        tifffile.imwrite(tmp_path / f"{name}.tif", image)

    def opened(name, **values):
        return whole.open_whole([tmp_path / name], data, BYTES.depth, level=0, **values)

    found, alone = opened("pair.png", fit=fit), opened("alone.png", fit=fit)
    assert found.shape == (32, 26, 1)
    np.testing.assert_array_equal(found.rows(0, 32), alone.rows(0, 32))
    side = {"AtoB": "left", "BtoA": "right"}[direction]
    assert found.remarks[0].startswith(f"its {side} half is taken, the input by data.direction=")
    assert alone.remarks[0].startswith("taken for an input alone") and len(alone.remarks) == 2
    with pytest.raises(UserError, match="pair.tif: as wide as two images side by side; give"):
        opened("pair.tif", fit=fit)
    data.source = "folders"
    assert opened("pair.png").shape == (60, 96, 1)


def test_a_real_facade_is_read_as_in_training(real_data):
    values = {"channels": 3, "input_channels": 3, "direction": "BtoA", "size": 64}
    data = settings(source="aligned", path=str(real_data / "facades/train/1.jpg"), **values)
    frame = aligned.read(data).read(0)
    fit = geometry.fit_to(frame.image.shape, 64, "pad")
    opened = whole.open_whole(
        [real_data / "facades/train/1.jpg"], data, BYTES.depth, level=0, fit=fit
    )
    wanted = geometry.fitted(frame, 64, "pad").condition
    np.testing.assert_allclose(opened.rows(0, 64), wanted, atol=0.51)


def test_what_is_made_of_the_input_is_told_and_recorded(tmp_path, monkeypatch, capsys):
    root = fake_run(monkeypatch, tmp_path, scale=0.5, source="aligned")
    left = smooth((64, 64), blur=8.0)
    input_png(tmp_path / "pair.png", np.concatenate([left, smooth((64, 64), 1)], 1))
    sample(root, tmp_path / "pair.png", tmp_path / "map.png")
    assert read(tmp_path / "map.png").shape == (32, 32, 3)
    remarks = json.loads((tmp_path / "map.json").read_text())["remarks"]
    assert remarks == [
        "its left half is taken, the input by data.direction=AtoB",
        "resized by 0.5, from 64x64 to 32x32, as in training",
    ]
    out = capsys.readouterr().out
    assert all(f"pair.png: {remark}" in out for remark in remarks)


@pytest.mark.parametrize("setting", [{"depth": 1}, {"dropout": 0.0}])
def test_passes_that_would_be_alike_are_refused(setting):
    config = pix2pix.get_config("smoke")
    config.model.update(setting)
    with pytest.raises(UserError, match="passes: 8 would be alike: .* no dropout; give 1"):
        translator.translator_of(config, None, passes=8, seed=0)
