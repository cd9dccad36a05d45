"""Simulated tiles of 3-D polarised light imaging (3D-PLI): fibres, their light, its analysis.

A section of random fibres (`fibres`) is measured as a polarimeter does (`polarimetry`), and tiles
are cut from it at random, a few from each. Pure and seeded: tile i depends on the seed, its size
and the share of tissue asked for, and on i alone. Sections are independent of each other; tiles of
one may overlap, so splits keep a section's tiles together.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan.data import fibres, polarimetry, splits, tiles
from deformgan.data.frames import Frame, Frames
from deformgan.data.pairs import modalities, modality_channels
from deformgan.errors import UserError, choose
from deformgan.orientation import Orientation, to_hsv_black

input_channels = modality_channels  # by which it is known for a source of pairs
MODALITIES = ("fom", "transmittance", "retardation")
_PHOTONS = 3000.0  # where the intensity is 1; an empty pixel has half of it at each angle
_TILES = 16  # of a section, at most
_SECTIONS = (128, 512)  # least and most pixels along a side
_POSITIONS = 2048  # that are tried in a section
_ATTEMPTS = 32  # sections drawn until one has enough tissue
_COUNTED = 4  # sections from which the share of rejected positions is told
_to_colours = jax.jit(to_hsv_black)


class Tile(NamedTuple):
    """What a polarimeter measures of a tile, or of a section.

    Attributes:
      transmittance: `[S, S]` float32, 1 without tissue but for noise.
      retardation: `[S, S]` float32 in [0, 1] but for noise.
      direction: `[S, S]` float32 in [0, pi), counter-clockwise from the +column axis on screen;
        noise where nothing retards.
      inclination: `[S, S]` float32 in [0, pi/2], from the retardation alone, as of dense fibres.
      mask: `[S, S]` bool, tissue (known here, not measured).
      fom: `[S, S, 3]` uint8, the fibre orientation map in HSV black.
    """

    transmittance: np.ndarray
    retardation: np.ndarray
    direction: np.ndarray
    inclination: np.ndarray
    mask: np.ndarray
    fom: np.ndarray


class _Section(NamedTuple):
    measured: Tile
    corners: np.ndarray  # [T, 2], the first pixel of each tile
    rejected: float  # share of the positions with too little tissue
    by_median: float  # share of them whose median has none, as the second report's rule asks


def measure(rng: np.random.Generator, section: fibres.Fibres, photons: float = _PHOTONS) -> Tile:
    """What a polarimeter with shot noise tells of a section."""
    relative = polarimetry.relative_thickness()
    density, direction, inclination = section.density, section.direction, section.inclination
    light = polarimetry.intensities(
        polarimetry.transmittance(density, inclination, section.ground),
        polarimetry.retardance(density, direction, inclination, relative),
    )
    signal = polarimetry.analyse(polarimetry.photograph(rng, light, photons))
    steep = polarimetry.inclination(signal.retardation, relative)
    seen = Orientation(*map(jnp.asarray, (signal.direction, steep, section.tissue)))
    return Tile(*signal, steep, section.tissue, _to_bytes(np.asarray(_to_colours(seen))))


def tile(index: int, seed: int, size: int, *, tissue: float = 0.75) -> Tile:
    """Tile `index` of a set, with all its modalities.

    Args:
      index: of the tile; neighbours come from the same section, the last of which are held.
      seed: of the set.
      size: pixels along each side, 32 to 256.
      tissue: least share of its pixels that are tissue.

    Raises:
      UserError: if hardly any tile has so much tissue.
    """
    number, place = divmod(index, tiles_per_section(size))
    section = _section(seed, number, size, tissue)
    row, column = section.corners[place]
    return Tile(*(a[row : row + size, column : column + size] for a in section.measured))


def tiles_per_section(size: int) -> int:
    """How many tiles are cut from a section: as many as cover it, 16 at most."""
    return min(_TILES, (_side(size) // size) ** 2)


def rejected(seed: int, size: int, tissue: float) -> tuple[float, float]:
    """Share of random positions refused for lack of tissue, in the first few sections of a set.

    And the share that would be refused by the median alone: tissue on less than half of a tile.
    """
    sections = [_section(seed, i, size, tissue) for i in range(_COUNTED)]
    own, median = np.mean([(s.rejected, s.by_median) for s in sections], axis=0)
    return float(own), float(median)


def read(config: ml_collections.ConfigDict) -> Frames:
    """`data.count` tiles, simulated when they are first asked for, whole sections to each split.

    `data.modality` is the image; with `data.pairs` those of `data.inputs` are its condition. With
    `data.held_out`, as many more tiles from `data.held_out_seed` alone are the test split.
    `data.tissue_share` is the least share of tissue by the rules share and both, half by median.

    Raises:
      UserError: for a setting that does not fit.
    """
    inputs = _check(config)
    least = {"off": 0.0, "median": 0.5}.get(config.tissue, config.tissue_share)
    numbers = [(config.seed, i) for i in range(config.count)]
    numbers += [(config.held_out_seed, i) for i in range(config.held_out)]
    each = tiles_per_section(config.size)
    moments = [i // each for _, i in numbers]
    recordings = [f"seed_{s}_section_{k:05d}" for (s, _), k in zip(numbers, moments, strict=True)]
    split = None
    if config.held_out:
        shares = {"validation": config.validation, "test": 0.0, "seed": config.seed}
        own = slice(config.count)
        split, _ = splits.assign(recordings[own], moments[own], **shares)
        split += ["test"] * config.held_out

    def frame(i: int) -> Frame:
        seed, index = numbers[i]
        measured = tile(index, seed, config.size, tissue=least)
        condition = [_image(measured, name) for name in inputs]
        return Frame(
            _image(measured, config.modality),
            condition=np.concatenate(condition, -1) if condition else None,
        )

    refused, by_median = rejected(config.seed, config.size, least)
    return Frames(
        names=[f"{r}_tile_{i % each:02d}" for r, (_, i) in zip(recordings, numbers, strict=True)],
        recordings=recordings,
        moments=moments,
        read=frame,
        splits=split,
        skipped=f"{refused:.0%} of positions refused, with tissue on less than {least:g} of the"
        f" tile (by median {by_median:.0%})",
    )


def _check(config: ml_collections.ConfigDict) -> list[str]:
    """The modalities of a pair's input; raises `UserError` for a setting that does not fit."""
    choose("data.modality", config.modality, MODALITIES)
    tiles.check(config)
    if config.count < 1:
        raise UserError(f"data.count: {config.count}; simulate 1 tile or more")
    channels = 3 if config.modality == "fom" else 1
    if config.channels != channels:
        raise UserError(
            f"data.channels: {config.channels}; a simulated {config.modality} has {channels}, set"
            " it to that"
        )
    if config.held_out and config.held_out_seed == config.seed:
        raise UserError(
            f"data.held_out_seed: {config.seed}, as data.seed, draws the training tiles again;"
            " choose another"
        )
    return modalities(config)


@functools.lru_cache(maxsize=16)
def _section(seed: int, number: int, size: int, tissue: float) -> _Section:
    """Section `number` of a set; drawn anew, the others untouched, until it has enough tissue."""
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng([seed, number, attempt])
        drawn = fibres.draw(rng, _side(size))
        corners, refused, by_median = _corners(rng, drawn.tissue, size, tissue)
        if len(corners) == tiles_per_section(size):
            return _Section(measure(rng, drawn), corners, refused, by_median)
    raise UserError(
        f"data.tissue_share: {tissue}; hardly any simulated tile has so much tissue, give less"
    )


def _corners(
    rng: np.random.Generator, tissue: np.ndarray, size: int, least: float
) -> tuple[np.ndarray, float, float]:
    """The first random positions whose tile has enough tissue, and the shares refused till then."""
    places = rng.integers(0, len(tissue) - size + 1, (_POSITIONS, 2))
    summed = np.pad(tissue.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    row, column = places.T
    inside = summed[row + size, column + size] - summed[row, column + size]
    inside += summed[row, column] - summed[row + size, column]
    passed = np.flatnonzero(inside >= least * size**2)[: tiles_per_section(size)]
    tried = passed[-1] + 1 if len(passed) else _POSITIONS
    by_median = float(np.mean(inside[:tried] < size**2 / 2))
    return places[passed], 1 - len(passed) / tried, by_median


def _side(size: int) -> int:
    return max(_SECTIONS[0], min(4 * size, _SECTIONS[1]))


def _image(measured: Tile, modality: str) -> np.ndarray:
    values: np.ndarray = getattr(measured, modality)
    return values if modality == "fom" else _to_bytes(values)[..., None]


def _to_bytes(values: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)
