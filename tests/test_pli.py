import h5py
import numpy as np
import pytest
from scipy import ndimage

from configs import base
from deformgan.data import fibres, pipeline, pli, polarimetry, random_fields, splits
from deformgan.data.polarimetry import ANGLES
from deformgan.errors import UserError
from deformgan.orientation import from_hsv_black

RELATIVE = polarimetry.relative_thickness()
SIZE = 192  # of a section that is looked at


def apart(a, b):
    """Angle between two axes, in degrees."""
    return np.degrees(np.abs((a - b + np.pi / 2) % np.pi - np.pi / 2))


def gradient_axis(image, sigma=4.0):
    """The axis along which an image changes least, by its structure tensor."""
    down, right = (ndimage.gaussian_filter(image, 1, order=o) for o in ((1, 0), (0, 1)))
    tensor = -np.square(right - 1j * down)
    smooth = [ndimage.gaussian_filter(part, sigma) for part in (tensor.real, tensor.imag)]
    return np.arctan2(smooth[1], smooth[0]) / 2


def one_population(density, direction, inclination, ground=0.0):
    """Transmittance and phase shift of a single population of fibres."""
    density, direction, inclination = (
        np.asarray(a)[None] for a in np.broadcast_arrays(density, direction, inclination)
    )
    shift = polarimetry.retardance(density, direction, inclination, RELATIVE)
    return polarimetry.transmittance(density, inclination, ground), shift


@pytest.fixture(scope="module")
def sections():
    """Three sections: their fibres, and what is measured of them."""
    out = []
    for seed in range(3):
        rng = np.random.default_rng([seed, 5])
        drawn = fibres.draw(rng, SIZE)
        out.append((drawn, pli.measure(rng, drawn)))
    return out


def inner(region, margin=6):
    return ndimage.binary_erosion(region, iterations=margin)


def config(**changes):
    data = base.get_config().data
    data.update({"source": "pli", "size": 32, "channels": 3, "count": 8, "scaling": "range"})
    data.update(changes)
    return data


def jones(direction, shift, rho):
    """Light through polariser, retarder, quarter-wave plate and crossed analyser, turned by rho."""

    def turned(angle, matrix):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return turn @ matrix @ turn.T

    def retarder(angle, phase):
        return turned(angle, np.diag([np.exp(-0.5j * phase), np.exp(0.5j * phase)]))

    light = np.array([np.cos(rho), np.sin(rho)])
    light = retarder(rho - np.pi / 4, np.pi / 2) @ retarder(direction, shift) @ light
    return np.abs(np.array([-np.sin(rho), np.cos(rho)]) @ light) ** 2


def test_the_intensities_are_those_of_jones_matrices():
    direction, inclination = np.array([0.0, 0.4, 1.3, 2.9]), np.array([0.0, 0.5, -0.9, 1.2])
    passed, shift = one_population(0.8, direction, inclination)
    phase = 2 * np.pi * 0.8 * polarimetry.THICKNESS * polarimetry.BIREFRINGENCE
    phase = phase / polarimetry.WAVELENGTH * np.cos(inclination) ** 2
    expected = [
        [t * jones(*fibre, rho) for t, *fibre in zip(passed, direction, phase, strict=True)]
        for rho in ANGLES
    ]
    np.testing.assert_allclose(polarimetry.intensities(passed, shift), expected, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_the_fourier_analysis_inverts_the_forward_model(dtype, tolerance):
    rng = np.random.default_rng(0)
    edges = [0.0, 1e-6, np.pi / 2, np.pi - 1e-6]
    direction = np.concatenate([edges, rng.uniform(0, np.pi, 996)]).astype(dtype)
    density, inclination = rng.uniform(0.3, 1, (2, 1000)).astype(dtype)
    passed, shift = one_population(density, direction, inclination, rng.uniform(0, 1, 1000))
    light = polarimetry.intensities(passed.astype(dtype), shift)
    assert light.dtype == dtype
    signal = polarimetry.analyse(light)
    assert (signal.direction >= 0).all() and (signal.direction < np.pi).all()
    # The direction is the angle of a vector as long as the retardation, 0.07 at least here.
    assert apart(signal.direction, direction).max() < np.degrees(tolerance) / 0.1
    retards = np.sin(np.pi / 2 * RELATIVE * density * np.cos(inclination) ** 2)
    np.testing.assert_allclose(signal.retardation, retards, atol=tolerance)
    np.testing.assert_allclose(signal.transmittance, passed, atol=tolerance)


def test_retardation_falls_with_the_inclination_as_the_formula_says():
    steep = np.linspace(-np.pi / 2, np.pi / 2, 37)
    signal = polarimetry.analyse(polarimetry.intensities(*one_population(1.0, 0.7, steep)))
    expected = np.sin(np.pi / 2 * (4 * 60e-6 * 1.75e-3 / 525e-9) * np.cos(steep) ** 2)
    np.testing.assert_allclose(signal.retardation, expected, atol=1e-12)
    told = polarimetry.inclination(signal.retardation, RELATIVE)
    np.testing.assert_allclose(told, np.abs(steep), atol=1e-6)
    assert polarimetry.inclination(np.array([1.0, 1.3]), RELATIVE).max() == 0  # noise above flat


def test_crossing_fibres_cancel_and_parallel_ones_add():
    density, flat = np.array([[0.3], [0.3]]), np.zeros((2, 1))

    def total(directions):
        return abs(polarimetry.retardance(density, np.array(directions), flat, RELATIVE)).item()

    assert total([[0.2], [0.2 + np.pi / 2]]) == pytest.approx(0, abs=1e-12)
    assert total([[0.2], [0.2 + np.pi]]) == pytest.approx(np.pi / 2 * RELATIVE * 0.6)


def test_light_is_attenuated_exponentially_and_more_by_steep_fibres():
    density = np.linspace(0, 1, 5)

    def slope(inclination):
        log = -np.log(one_population(density, 0.0, inclination, ground=0.2)[0])
        assert log[0] == pytest.approx(0.2)
        np.testing.assert_allclose(np.diff(log, 2), 0, atol=1e-12)  # Beer-Lambert: a straight line
        return log[-1] - log[0]

    flat, upright = slope(0.0), slope(np.pi / 2)
    assert flat == pytest.approx(polarimetry.ATTENUATION)
    assert np.exp(flat - upright) < 0.5  # less than half the light: Menzel et al. 2020


@pytest.mark.parametrize("retardation", [0.1, 0.2, 0.4])
def test_the_directions_error_grows_as_the_retardation_falls(retardation):
    """By the propagation of shot noise through the Fourier analysis."""
    photons, shape = 2000.0, (200, 200)
    direction = np.linspace(0, 3, shape[1], dtype=np.float32)[None].repeat(shape[0], 0)
    shift = (np.arcsin(retardation) * np.exp(2j * direction)).astype(np.complex64)
    light = polarimetry.intensities(np.full(shape, 0.5, np.float32), shift)
    noisy = polarimetry.photograph(np.random.default_rng(0), light, photons)
    error = polarimetry.analyse(noisy).direction - direction
    error = (error + np.pi / 2) % np.pi - np.pi / 2
    expected = np.sqrt(2 / len(ANGLES) / (0.25 * photons)) / (2 * retardation)
    assert error.std() == pytest.approx(expected, rel=0.03)


def test_waves_have_their_gradient_and_variance():
    place = np.arange(400, dtype=np.float32)
    value, gradient = random_fields.waves_and_gradient(np.random.default_rng(0), place, (30, 60))
    down, right = np.gradient(value)
    inside = np.s_[1:-1, 1:-1]
    np.testing.assert_allclose(gradient[inside].real, right[inside], atol=0.01)
    np.testing.assert_allclose(gradient[inside].imag, -down[inside], atol=0.01)
    assert value.std() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_streaks_run_along_their_axis_as_seen_on_screen(degrees):
    axis = np.full((96, 96), np.exp(2j * np.radians(degrees)), np.complex64)
    drawn = random_fields.streaks(np.random.default_rng(degrees), axis, 0.7, 12)
    error = apart(gradient_axis(drawn), np.radians(degrees))
    assert np.median(error) < 4 and np.percentile(error, 95) < 20


def test_texture_in_the_transmittance_runs_along_the_fibres(sections):
    """Measured on 24 sections: a median of 7 degrees in white matter; chance is 45.

    The cortex also has layers, across its fibres: without its coarse brightness, 9 to 16 degrees.
    """
    errors = {"white": [], "grey": []}
    for drawn, measured in sections:
        whole = measured.transmittance
        own = inner(drawn.white & drawn.tissue)
        errors["white"].append(apart(gradient_axis(whole), measured.direction)[own])
        fine = whole - ndimage.gaussian_filter(whole, 3)
        own = inner(~drawn.white & drawn.tissue)
        errors["grey"].append(apart(gradient_axis(fine), measured.direction)[own])
    assert np.median(np.concatenate(errors["white"])) < 12
    assert np.median(np.concatenate(errors["grey"])) < 22


def test_white_matter_is_darker_and_retards_more_than_the_cortex(sections):
    for drawn, measured in sections:
        white, grey = inner(drawn.white & drawn.tissue), inner(~drawn.white & drawn.tissue)
        assert white.any() and grey.any()
        median = [[np.median(a[own]) for own in (white, grey)] for a in measured[:2]]
        assert median[0][0] < 0.6 * median[0][1]
        assert median[1][0] > 1.2 * median[1][1]


def test_the_shades_are_those_of_a_published_section(sections, real_data):
    """Medians of transmittance and of the orientation map's value, in white and grey matter."""
    folder = real_data / "pli" / "vervet"
    if not folder.is_dir():
        pytest.skip(f"no section at {folder}")
    stem = folder / "Vervet1818_s0000_left_"
    with h5py.File(f"{stem}FOM_HSV.h5") as fom, h5py.File(f"{stem}NTransmittance.h5") as other:
        value, shade = fom["pyramid/00"][()].max(-1), other["pyramid/00"][()]
    simulated = [(t.fom.max(-1), np.clip(255 * t.transmittance, 0, 255)) for _, t in sections]
    simulated = [np.concatenate(parts) for parts in zip(*simulated, strict=True)]

    def medians(value, shade):
        tissue = value > 16
        regions = [inner(tissue & m, 3) for m in (shade < 110, (shade > 130) & (shade < 235))]
        return [np.median(image[region]) for image in (value, shade) for region in regions]

    np.testing.assert_allclose(medians(*simulated), medians(value, shade), atol=45)


def test_the_map_shows_the_measured_orientation_of_the_tissue(sections):
    for drawn, measured in sections:
        seen = from_hsv_black(measured.fom / np.float32(255))
        bright = measured.fom.max(-1) > 60
        assert bright.mean() > 0.3 and (measured.fom[~drawn.tissue] == 0).all()
        assert apart(np.asarray(seen.direction), measured.direction)[bright].max() < 1
        steep = np.abs(np.asarray(seen.inclination) - measured.inclination)[bright]
        assert np.degrees(steep).max() < 0.5


def test_a_tile_depends_on_the_seed_and_its_index_alone():
    first = [pli.tile(i, 0, 32) for i in (17, 0)]
    pli._section.cache_clear()
    again = [pli.tile(i, 0, 32) for i in (0, 17)]
    for one, other in zip(first, reversed(again), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    shown = [pli.tile(i, s, 32).fom for i, s in ((0, 0), (1, 0), (17, 0), (0, 1))]
    assert len({image.tobytes() for image in shown}) == 4


@pytest.mark.parametrize("size", [32, 100, 256])
def test_tiles_of_every_size_have_their_tissue(size):
    tiles = [pli.tile(i, 0, size, tissue=0.8) for i in range(2)]
    assert all(a.shape[:2] == (size, size) for tile in tiles for a in tile)
    assert min(tile.mask.mean() for tile in tiles) >= 0.8
    assert pli.tiles_per_section(size) >= 4


def test_more_tissue_is_had_by_refusing_more():
    both = [pli.rejected(0, 32, least) for least in (0.0, 0.5, 1.0)]
    shares = [own for own, _ in both]
    assert both[1][1] == pytest.approx(both[1][0])  # half of a tile is what the median asks
    assert shares[0] == 0 and shares[0] < shares[1] < shares[2] < 1


def test_sections_without_tissue_are_refused_not_drawn_forever(monkeypatch):
    empty = fibres.Fibres(*[np.zeros((128, 128), bool)] * 6)
    monkeypatch.setattr(fibres, "draw", lambda rng, size: empty)
    with pytest.raises(UserError, match=r"data\.tissue_share: 0\.75; hardly any"):
        pli.tile(0, 123, 32)


def test_sections_stay_whole_in_the_splits():
    data = config(count=64, tissue="off")
    frames = pli.read(data)
    split, _ = pipeline.split_frames(frames, data)
    owners = {
        r: {s for s, own in zip(split, frames.recordings, strict=True) if own == r}
        for r in frames.recordings
    }
    assert len(owners) == 4 and all(len(own) == 1 for own in owners.values())
    assert set().union(*owners.values()) >= {"train", "test"}
    assert len(set(frames.names)) == 64 and set(splits.SPLITS) >= set(split)


def test_frames_are_the_modality_asked_for_and_pairs_of_one_place():
    colour = pli.read(config(pairs=True, inputs="transmittance, retardation")).read(3)
    grey = pli.read(config(modality="transmittance", channels=1)).read(3)
    assert colour.image.shape == (32, 32, 3) and colour.image.dtype == np.uint8
    assert colour.condition.shape == (32, 32, 2) and grey.condition is None
    np.testing.assert_array_equal(colour.condition[..., :1], grey.image)
    tile = pli.tile(3, 0, 32)
    np.testing.assert_array_equal(colour.image, tile.fom)
    np.testing.assert_allclose(colour.condition[..., 1] / 255, tile.retardation, atol=0.01)


def test_held_out_tiles_are_the_test_split_whatever_the_seed():
    frames = [pli.read(config(held_out=3, seed=seed)) for seed in (0, 1)]
    for one in frames:
        assert one.splits[8:] == ["test"] * 3 and "test" not in one.splits[:8]
    np.testing.assert_array_equal(frames[0].read(9).image, frames[1].read(9).image)
    assert (frames[0].read(0).image != frames[1].read(0).image).any()
    assert frames[0].names[9] == frames[1].names[9] != frames[0].names[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modality": "sign"}, r"data\.modality: unknown name 'sign'.*retardation"),
        ({"channels": 1}, r"data\.channels: 1; a simulated fom has 3"),
        ({"modality": "retardation"}, r"data\.channels: 3; a simulated retardation has 1"),
        ({"pairs": True, "inputs": "fom"}, r"data\.inputs: unknown name 'fom'"),
        ({"size": 300}, r"data\.size: 300"),
        ({"count": 0}, r"data\.count: 0"),
        ({"held_out": 2, "held_out_seed": 0}, r"data\.held_out_seed: 0, as data\.seed"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        pli.read(config(**changes))
