import itertools

import numpy as np
import pytest

from configs import base
from deformgan.data import tiles
from deformgan.data.tiles import Area, Place
from deformgan.errors import UserError


def settings(**overrides):
    config = base.get_config().data
    config.size = 32
    config.update(overrides)
    return config


def looker(*images, modality="fom"):
    """The tile of 32 pixels at a place of some images `[H, W, C]`."""
    return lambda p: {modality: images[p.section][p.row : p.row + 32, p.column : p.column + 32]}


def half(height=40, width=100, edge=50):
    """Black left of `edge`, tissue on its right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, edge:, 1] = 90
    return image


def everything(areas, look, config):
    return tiles.draw(areas, 10**6, np.random.default_rng(0), look, config, "all")


# Bands of rows


@pytest.mark.parametrize("rows", [200, 496, 1500, 20_000])
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.0, 0.2), (0.1, 0.0)])
def test_held_out_bands_are_a_tile_away_from_the_training_rows(rows, validation, test):
    unit = 32
    bands = tiles.bands("a", 7, 7 + rows, unit, validation=validation, test=test)
    taken = np.zeros(7 + rows, int)
    for split, own in bands.items():
        assert bool(own) == (
            split == "train" or {"validation": validation, "test": test}[split] > 0
        )
        for low, high in own:
            assert low >= 7 and high <= 7 + rows and high - low >= unit
            taken[low:high] += 1
    assert taken.max() == 1
    held = bands["validation"] + bands["test"]
    for (low, high), (first, last) in itertools.product(bands["train"], held):
        assert first - high >= unit or low - last >= unit
    if rows > 1000:
        share = sum(high - low for low, high in bands["test"]) / rows
        assert abs(share - test) < 0.01
        assert sum(high - low for low, high in bands["train"]) / rows > 0.94 - validation - test


def test_tall_sections_have_each_band_at_several_heights():
    bands = tiles.bands("a", 0, 20_000, 64, validation=0.1, test=0.2)
    assert [round(low, -3) for low, _ in bands["train"]] == [0, 7000, 10000, 17000]
    assert len(bands["test"]) == 4 and bands["test"][0][1] == bands["test"][1][0]  # they meet


def test_too_few_rows_for_the_bands():
    tiles.bands("a", 0, 4 * 32, 32, validation=0.1, test=0.2)
    with pytest.raises(UserError, match=r"a: 127 rows .* too few .* \(128 or more\); choose"):
        tiles.bands("a", 0, 4 * 32 - 1, 32, validation=0.1, test=0.2)
    assert tiles.bands("a", 0, 40, 32, validation=0.0, test=0.0)["train"] == [(0, 40)]


# Tissue


def test_brightness_is_that_of_the_brightest_channel():
    tile = np.zeros((32, 32, 3), np.uint8)
    tile[:24, :, 0], tile[:8, :, 2] = 16, 200
    found = tiles.judge(tile, "fom", settings(tissue_share=0.75))
    assert found == (16, 0.75, True, True)
    assert not tiles.judge(tile, "fom", settings(tissue_share=0.76)).by_share
    assert not tiles.judge(tile, "fom", settings(tissue_fom=(17.0, 255.0))).by_median


@pytest.mark.parametrize(
    ("rule", "tissue_columns"), [("share", 24), ("median", 16), ("both", 24), ("off", 0)]
)
def test_each_rule_passes_the_tiles_it_should_and_counts_the_others(rule, tissue_columns):
    area = Area(0, 0, 40, 100, 32)
    draw = everything([area], looker(half()), settings(tissue=rule))
    first = 50 - 32 + tissue_columns if tissue_columns else 0  # whose tile has as many of tissue
    wanted = {Place(0, r, c) for r in range(9) for c in range(first, 69)}
    assert set(draw.places) == wanted and len(draw.places) == len(wanted)
    assert draw.counts["drawn"] == area.positions == 9 * 69
    assert draw.counts["rejected"] == 9 * first
    assert draw.counts["share"] == 9 * (50 - 32 + 24) and draw.counts["median"] == 9 * (50 - 16)


def test_every_image_of_a_pair_must_have_tissue():
    fom, light = half(edge=30), np.full((40, 100, 1), 255, np.uint8)
    light[:, 40:] = 120

    def look(p):
        return {**looker(fom)(p), **looker(light, modality="transmittance")(p)}

    draw = everything([Area(0, 0, 40, 100, 32)], look, settings())
    assert min(p.column for p in draw.places) == 40 - 8


@pytest.mark.parametrize("rule", ["share", "median", "both"])
def test_limits_that_no_tile_meets_are_an_error_not_an_endless_loop(rule):
    looked = []

    def look(place):
        looked.append(place)
        return {"fom": np.full((32, 32, 3), 7, np.uint8)}

    areas = [Area(0, 0, 20_000, 20_000, 32)]
    config = settings(tissue=rule, tissue_fom=(90.0, 255.0))
    message = rf"data\.tissue: no tissue in S_1: 0 of 2000 .* by {rule} \(fom: medians from 7 to 7,"
    with pytest.raises(UserError, match=message + r" data\.tissue_fom is 90 to 255"):
        tiles.draw(areas, 10, np.random.default_rng(0), look, config, "S_1")
    assert len(looked) == 2000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"tissue": "mean"}, "data.tissue: unknown name 'mean'; choose one of share, median"),
        ({"tissue_fom": (200.0, 16.0)}, r"data\.tissue_fom: \(200\.0, 16\.0\); give \(low, high\)"),
        ({"tissue_share": 1.5}, r"data\.tissue_share: 1\.5; give a share"),
        ({"tiles": 1}, r"data\.tiles: 1; draw 2 or more"),
        ({"size": 300}, r"data\.size: 300; tiles have 32 to 256 pixels"),
        ({"size": 31}, r"data\.size: 31"),
        (
            {"channels": 3, "channel": 0},
            r"data\.channel: 0; .* set it to -1, or data\.channels to 1",
        ),
        ({"channels": 3, "blur": 3}, r"data\.blur: 3; the colours of orientation maps are angles"),
        (
            {"channels": 3, "scaling": "percentile"},
            r"data\.scaling: 'percentile'; .* set it to range",
        ),
    ],
)
def test_bad_settings_are_named(overrides, message):
    with pytest.raises(UserError, match=message):
        tiles.check(settings(**overrides))


# Drawing


def test_a_draw_is_a_function_of_the_seed_and_begins_as_a_shorter_one():
    areas, look = [Area(0, 0, 300, 5000, 32)], looker(half(300, 5000, 900))

    def places(seed, count):
        return tiles.draw(areas, count, np.random.default_rng(seed), look, settings(), "all").places

    assert places(3, 60) == places(3, 60)
    assert places(3, 60)[:20] == places(3, 20)
    assert not set(places(3, 60)) & set(places(4, 60))
    assert all(p.column >= 900 - 8 for p in places(3, 60))


@pytest.mark.parametrize("scale", [1, 100])  # a permutation; too many positions for one
def test_every_tile_of_all_areas_is_equally_likely_and_none_comes_twice(scale):
    columns = 31 + 100 * scale
    areas = [
        Area(0, 10, 10 + 31 + 30 * scale, columns, 32),
        Area(0, 5000, 5000, columns, 32),  # too low for a tile
        Area(1, 0, 31 + 10 * scale, columns, 32),
    ]
    tile = np.full((32, 32, 3), 99, np.uint8)
    draw = tiles.draw(
        areas, 2000, np.random.default_rng(0), lambda p: {"fom": tile}, settings(), "all"
    )
    assert len(set(draw.places)) == 2000
    per_section = [np.array([p[1:] for p in draw.places if p.section == s]) for s in (0, 1)]
    assert abs(len(per_section[0]) - 1500) < 5 * np.sqrt(2000 * 0.75 * 0.25)
    for own, (low, count) in zip(per_section, ((10, 30 * scale), (0, 10 * scale)), strict=True):
        assert own[:, 0].min() >= low and own[:, 0].max() < low + count
        assert own[:, 1].min() >= 0 and own[:, 1].max() < 100 * scale
        middle = np.mean(own, 0) - (low + count / 2, 50 * scale)
        spread = np.array([count, 100 * scale]) / np.sqrt(12 * len(own))
        assert (np.abs(middle + 0.5) < 5 * spread).all()
