"""Random tiles with tissue from published sections of 3-D polarised light imaging (3D-PLI).

Files of a section are described in deformgan/data/sections.py. All positions are drawn at the
start, from `data.seed` alone; a tile is read when it is asked for, so that sections may be larger
than memory.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np

from deformgan.data import tiles
from deformgan.data.folder import to_channels
from deformgan.data.frames import Frame, Frames
from deformgan.data.pairs import modalities, modality_channels
from deformgan.data.rasters import CHANNELS, Raster
from deformgan.data.sections import find, open_section, select
from deformgan.data.splits import SPLITS
from deformgan.data.tiles import Area, Place
from deformgan.errors import UserError, choose

input_channels = modality_channels  # by which it is known for a source of pairs
_ONE_SHADE = 0.01  # of a range: floats within it are in other units
_LOOKED_AT = 16  # tiles of a section whose values are compared with data.range
_SURVEY = 128  # tiles with tissue that tell which rows of a section have any


def read(config: ml_collections.ConfigDict) -> Frames:
    """Draws the tiles of every split from the sections at `data.path`.

    The test tiles are those of `data.held_out_sections`; without any, of bands of rows in each
    section, a tile away from its training rows. Validation tiles are of such bands. With
    `data.pairs` a frame has a condition: the modalities `data.inputs` at its place, as channels.
    """
    inputs = _check(config)
    wanted = [config.modality, *inputs]
    found, others = find(config.path, config.modality)
    chosen, held_out, remark = select(found, wanted, config)
    opened = [open_section(section, wanted, config) for section in chosen]
    names = [section.name for section in chosen]

    def look(place: Place) -> dict[str, np.ndarray]:
        return {m: opened[place.section][m].tile(place.row, place.column) for m in wanted}

    main = [rasters[config.modality] for rasters in opened]
    areas = _areas(names, main, held_out, look, config)
    drawn, remarks = _drawn(areas, look, config)
    _check_ranges([place for place, _ in drawn], opened, config)
    placed = sorted((_cell(place, main), place, split) for place, split in drawn)
    labels = [f"{names[p.section]}#{main[p.section].label(p.row, p.column)}" for _, p, _ in placed]

    def frame(i: int) -> Frame:
        shown = look(placed[i][1])
        image = to_channels(
            shown[config.modality],
            config.channel,
            config.channels,
            labels[i],
            colour=config.modality == "fom",
        )
        condition = np.concatenate([shown[m] for m in inputs], -1) if inputs else None
        return Frame(image, condition=condition)

    left = f"{others} other files left alone" if others else ""
    return Frames(
        names=labels,
        recordings=[names[place.section] for _, place, _ in placed],
        moments=[cell for cell, _, _ in placed],
        read=frame,
        splits=[split for _, _, split in placed],
        skipped="; ".join(filter(None, [left, remark, *remarks])),
    )


def _check(config: ml_collections.ConfigDict) -> list[str]:
    """The modalities of a pair's input (none without pairs); `UserError` for a bad setting."""
    choose("data.modality", config.modality, tuple(CHANNELS))
    tiles.check(config)
    if not 0 <= config.level <= 99:
        raise UserError(f"data.level: {config.level}; pyramids have levels from 0, the finest")
    if config.modality == "fom" and config.channels != 3 and config.channel < 0:
        raise UserError(
            f"data.channels: {config.channels}; orientation maps have 3 channels, set it to 3"
        )
    if config.held_out_sections and not config.test:
        raise UserError("data.held_out_sections: given, but data.test, the share of tiles, is 0")
    return modalities(config)


def _areas(
    names: Sequence[str],
    rasters: Sequence[Raster],
    held_out: set[str],
    look: Callable[[Place], Mapping[str, np.ndarray]],
    config: ml_collections.ConfigDict,
) -> dict[str, list[Area]]:
    """Where the tiles of each split may lie."""
    out: dict[str, list[Area]] = {split: [] for split in SPLITS}
    for number, (name, raster) in enumerate(zip(names, rasters, strict=True)):
        area = Area(number, 0, raster.shape[0], raster.shape[1], raster.unit)
        if config.tissue != "off":
            # Not drawn from data.seed: runs that differ in it hold out the same rows.
            rng = np.random.default_rng(0)
            rows = [p.row for p in tiles.draw([area], _SURVEY, rng, look, config, name).places]
            margin = max(raster.unit // 2, raster.shape[0] // _SURVEY)  # that it may have missed
            low, high = min(rows) - margin, max(rows) + raster.unit + margin
            area = area._replace(low=max(low, 0), high=min(high, raster.shape[0]))
        if name in held_out:
            out["test"].append(area)
            continue
        parted = tiles.bands(
            name,
            area.low,
            area.high,
            area.unit,
            validation=config.validation,
            test=0.0 if held_out else config.test,
        )
        for split, bands in parted.items():
            out[split] += [area._replace(low=low, high=high) for low, high in bands]
    return out


def _drawn(
    areas: Mapping[str, Sequence[Area]],
    look: Callable[[Place], Mapping[str, np.ndarray]],
    config: ml_collections.ConfigDict,
) -> tuple[list[tuple[Place, str]], list[str]]:
    """`data.tiles` places to train on, its shares of others, and what is to be said of them."""
    out: list[tuple[Place, str]] = []
    counts: collections.Counter[str] = collections.Counter()
    remarks = []
    shares = {"train": 1.0, "validation": config.validation, "test": config.test}
    for number, (split, share) in enumerate(shares.items()):
        if not share:
            continue
        wanted = max(round(config.tiles * share), 1)
        rng = np.random.default_rng([config.seed, number])
        draw = tiles.draw(areas[split], wanted, rng, look, config, f"the {split} rows")
        counts.update(draw.counts)
        out += [(place, split) for place in draw.places]
        if len(draw.places) < wanted:
            remarks.append(f"only {len(draw.places)} {split} tiles of {wanted}: there are no more")
    share_of = {k: f"{counts[k] / counts['drawn']:.1%}" for k in ("rejected", "share", "median")}
    remarks.append(
        f"{counts['rejected']} of {counts['drawn']} tiles drawn had too little tissue and were"
        f" rejected ({share_of['rejected']}; by share of tissue {share_of['share']}, by median"
        f" {share_of['median']})"
    )
    return out, remarks


def _check_ranges(
    places: Sequence[Place],
    opened: Sequence[Mapping[str, Raster]],
    config: ml_collections.ConfigDict,
) -> None:
    """Raises `UserError` for floats of so small a range that all would be of one brightness."""
    if config.scaling != "range":
        return
    for number, rasters in enumerate(opened):
        own = [place for place in places if place.section == number]
        chosen = own[:: -(-len(own) // _LOOKED_AT) or 1]
        for modality, raster in rasters.items():
            key = "range" if modality == config.modality else "input_range"
            _check_range(raster, chosen, f"data.{key}", config[key], modality)


def _check_range(
    raster: Raster, places: Sequence[Place], key: str, limits: Sequence[float], modality: str
) -> None:
    low, high = math.inf, -math.inf
    for place in places:
        tile = raster.tile(place.row, place.column)
        if not np.issubdtype(tile.dtype, np.floating):
            return
        low, high = min(low, float(tile.min())), max(high, float(tile.max()))
    if places and high - low <= _ONE_SHADE * (limits[1] - limits[0]):
        raise UserError(
            f"{raster.file}: values from {low:g} to {high:g}, all alike in {key}"
            f" ({limits[0]:g}, {limits[1]:g}); set {key} to the limits of the file's own units, and"
            f" data.tissue_{modality} too"
        )


def _cell(place: Place, rasters: Sequence[Raster]) -> int:
    """The number of the tile-sized cell a tile begins in: cells, not tiles, are independent."""
    before = 0
    for raster in rasters[: place.section]:
        before += -(-raster.shape[0] // raster.unit) * -(-raster.shape[1] // raster.unit)
    own = rasters[place.section]
    across = -(-own.shape[1] // own.unit)
    return before + place.row // own.unit * across + place.column // own.unit
