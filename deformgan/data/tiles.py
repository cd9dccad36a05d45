"""Tiles of large sections: where they may be taken from, and which of them hold tissue.

A pixel is tissue if its brightest channel lies within the limits of its modality: background is
black in orientation maps and white in transmittance. The second report judges a tile by its median
alone; the share of tissue also refuses tiles that are half background.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from deformgan.errors import UserError, choose

RULES = ("share", "median", "both", "off")
SIZES = (32, 256)  # of a tile, in pixels
_PATIENCE = 2000  # tiles refused in a row before the limits are taken for impossible
_FEW = 2**20  # positions of which a permutation is held
_REPEATS = 4  # at most: of the bands along a section
_TILES_A_REPEAT = 20  # in height, so that gaps take little of it


class Judgement(NamedTuple):
    """What a tile looks like: median brightness, share of tissue, and which rules it passes."""

    median: float
    share: float
    by_median: bool
    by_share: bool


class Area(NamedTuple):
    """Where tiles lie wholly within: rows from `low` up to `high` of a section."""

    section: int
    low: int
    high: int
    columns: int
    unit: int

    @property
    def positions(self) -> int:
        """How many tiles may be taken from it."""
        return max(self.high - self.low - self.unit + 1, 0) * (self.columns - self.unit + 1)


class Place(NamedTuple):
    """The first pixel of a tile."""

    section: int
    row: int
    column: int


@dataclasses.dataclass(frozen=True)
class Draw:
    """Tiles that were drawn.

    Attributes:
      places: those with tissue, in the order they were drawn, all different.
      counts: of tiles: 'drawn', 'rejected', and what each rule refused or would have: 'share',
        'median'.
    """

    places: list[Place]
    counts: collections.Counter[str]


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a bad setting of the `data` block that concerns tiles."""
    choose("data.tissue", config.tissue, RULES)
    if not SIZES[0] <= config.size <= SIZES[1]:
        raise UserError(f"data.size: {config.size}; tiles have {SIZES[0]} to {SIZES[1]} pixels")
    if config.tiles < 2:
        raise UserError(f"data.tiles: {config.tiles}; draw 2 or more")
    if not 0 < config.tissue_share <= 1:
        raise UserError(f"data.tissue_share: {config.tissue_share}; give a share above 0, up to 1")
    _check_colours(config)
    for modality, limits in _limits(config).items():
        if len(limits) != 2 or not limits[0] < limits[1]:
            raise UserError(
                f"data.tissue_{modality}: {limits}; give (low, high), low below high: no tile could"
                " lie between them"
            )


def _check_colours(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for what would change the directions that colours encode."""
    if config.modality != "fom" or config.channels != 3:
        return
    if config.channel >= 0:
        raise UserError(
            f"data.channel: {config.channel}; one channel of an orientation map, three times, is no"
            " direction; set it to -1, or data.channels to 1"
        )
    if config.blur:
        raise UserError(
            f"data.blur: {config.blur}; the colours of orientation maps are angles, which a blur"
            " would change; set it to 0"
        )
    if config.scaling != "range":
        raise UserError(
            f"data.scaling: {config.scaling!r}; the colours of orientation maps are angles, which"
            " percentiles would change; set it to range"
        )


def judge(tile: np.ndarray, modality: str, config: ml_collections.ConfigDict) -> Judgement:
    """Judges a tile `[H, W, C]`, in the units of its file, by the limits of its modality."""
    low, high = _limits(config)[modality]
    brightness = tile.max(-1)
    median = float(np.median(brightness))
    share = float(np.mean((brightness >= low) & (brightness <= high)))
    return Judgement(median, share, low <= median <= high, share >= config.tissue_share)


def bands(
    name: str, low: int, high: int, unit: int, *, validation: float, test: float
) -> dict[str, list[tuple[int, int]]]:
    """Parts rows into bands of each split; training rows keep a tile away from all others.

    From the top: training, a gap, validation, test; tall sections repeat this, every other time
    from the bottom, so that the splits see all of their anatomy and bands of one kind meet.

    Args:
      name: of the section, for messages.
      low: first row.
      high: the row after the last.
      unit: rows of a tile.
      validation: share of the rows; a band has one tile at least, unless the share is 0.
      test: likewise.

    Returns:
      (first, after the last) row of each band, by split.

    Raises:
      UserError: if that leaves less than a tile to train on.
    """
    repeats = min(max((high - low) // (_TILES_A_REPEAT * unit), 1), _REPEATS)
    out: dict[str, list[tuple[int, int]]] = {"train": [], "validation": [], "test": []}
    edges = np.linspace(low, high, repeats + 1).round().astype(int)
    for n, (first, last) in enumerate(itertools.pairwise(edges)):
        rows = int(last - first)
        held = {
            split: max(unit, round(share * rows)) if share else 0
            for split, share in (("validation", validation), ("test", test))
        }
        gap = unit if any(held.values()) else 0
        left = rows - gap - sum(held.values())
        if left < unit:
            wanted = unit + gap + sum(held.values())
            raise UserError(
                f"{name}: {rows} rows with tissue are too few for bands of training, validation"
                f" and test a tile apart ({wanted} or more); choose a finer data.level, a smaller"
                " data.size, data.validation=0 or other sections as data.held_out_sections"
            )
        start = int(first)
        heights = (("train", left), ("", gap), *held.items())
        for split, height in heights[:: -1 if n % 2 else 1]:
            if split and height:
                out[split].append((start, start + height))
            start += height
    return out


def draw(
    areas: Sequence[Area],
    wanted: int,
    rng: np.random.Generator,
    look: Callable[[Place], Mapping[str, np.ndarray]],
    config: ml_collections.ConfigDict,
    what: str,
) -> Draw:
    """Draws places at random, each tile of the areas equally likely, until enough have tissue.

    Args:
      areas: to draw from.
      wanted: how many; fewer are returned if all positions were tried.
      rng: a function of the seed alone, so that a resumed run draws the same tiles.
      look: the tile at a place, by modality: all must pass.
      config: the `data` block: `tissue`, `tissue_share` and the limits.
      what: is drawn from, for messages.

    Raises:
      UserError: if no tile, or hardly any, has tissue.
    """
    places: list[Place] = []
    counts: collections.Counter[str] = collections.Counter()
    medians: dict[str, list[float]] = collections.defaultdict(list)
    refused = 0  # in a row
    for place in _candidates(areas, rng):
        if len(places) == wanted or refused == _PATIENCE:
            break
        found = {m: judge(tile, m, config) for m, tile in look(place).items()}
        fails = {
            "share": not all(f.by_share for f in found.values()),
            "median": not all(f.by_median for f in found.values()),
        }
        asked = {"share": ("share",), "median": ("median",), "both": ("share", "median"), "off": ()}
        rejected = any(fails[rule] for rule in asked[config.tissue])
        counts.update({"drawn": 1, "rejected": rejected, **fails})
        refused = refused + 1 if rejected else 0
        if rejected:
            for m, f in found.items():
                medians[m].append(f.median)
        else:
            places.append(place)
    if not places or refused == _PATIENCE:
        raise UserError(_nothing_found(what, counts, medians, config))
    return Draw(places, counts)


def _candidates(areas: Sequence[Area], rng: np.random.Generator) -> Iterator[Place]:
    """All positions in random order, none twice; of very many, without end."""
    ends = np.cumsum([area.positions for area in areas])
    total = int(ends[-1]) if len(ends) else 0

    def place(index: int) -> Place:
        number = int(np.searchsorted(ends, index, side="right"))
        area = areas[number]
        row, column = divmod(index - int(ends[number]) + area.positions, _across(area))
        return Place(area.section, area.low + row, column)

    if total <= _FEW:
        yield from (place(int(index)) for index in rng.permutation(total))
        return
    seen: set[int] = set()
    while True:
        index = int(rng.integers(total))
        if index not in seen:
            seen.add(index)
            yield place(index)


def _across(area: Area) -> int:
    return area.columns - area.unit + 1


def _limits(config: ml_collections.ConfigDict) -> dict[str, tuple[float, float]]:
    return {
        "fom": tuple(config.tissue_fom),
        "transmittance": tuple(config.tissue_transmittance),
        "retardation": tuple(config.tissue_retardation),
    }


def _nothing_found(
    what: str,
    counts: Mapping[str, int],
    medians: Mapping[str, list[float]],
    config: ml_collections.ConfigDict,
) -> str:
    limits = _limits(config)
    seen = "; ".join(
        f"{m}: medians from {min(values):g} to {max(values):g}, data.tissue_{m} is"
        f" {limits[m][0]:g} to {limits[m][1]:g}"
        for m, values in medians.items()
    )
    kept = counts.get("drawn", 0) - counts.get("rejected", 0)
    found = "no tissue" if not kept else "hardly any tissue"
    share = "" if config.tissue == "median" else f", data.tissue_share {config.tissue_share:g}"
    return (
        f"data.tissue: {found} in {what}: {kept} of {counts.get('drawn', 0)} tiles drawn pass by"
        f" {config.tissue} ({seen}{share}); leave it out or change these limits"
    )
