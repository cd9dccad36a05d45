"""Random fibre architecture of a brain section: folded cortex, white matter, tracts, vessels.

White matter is where a sum of plane waves of the wavelength of gyri exceeds a threshold; the cortex
is a layer of nearly even thickness around it, with a cleft where two layers meet. Fibres follow the
blades of white matter and fan out into the cortex, which they cross radially; tracts cross or
displace them, deep grey nuclei hold thin bundles; each population has streaks along itself. Lengths
are in pixels of the published vervet section (some 60 micrometres), whose sizes these are.

Directions are in radians, counter-clockwise from the +column axis as seen on screen; inside this
module an axis is the unit vector exp(2i direction), which can be blurred and mixed.
"""

from __future__ import annotations

import cmath
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from deformgan.data.random_fields import noise, streaks, waves, waves_and_gradient

_CONTEXT = 64  # laid out around a section, so that distances are right
_GYRI = (140.0, 260.0)  # wavelengths of the folds
_COURSE = (250.0, 700.0)  # and of the course of deep fibres
_CORTEX = 52.0  # mean thickness
_EVERYWHERE = 1e3  # a distance that stands for none


class Fibres(NamedTuple):
    """K populations of fibres in the pixels of a section.

    Attributes:
      density: `[K, S, S]` float32, 1 where dense white matter fills the section.
      direction: `[K, S, S]` float32 in [-pi/2, pi/2], modulo pi.
      inclination: `[K, S, S]` float32 in [-pi/2, pi/2].
      ground: `[S, S]` float32, attenuation by cells, walls and dirt.
      tissue: `[S, S]` bool.
      white: `[S, S]` bool, white matter.
    """

    density: np.ndarray
    direction: np.ndarray
    inclination: np.ndarray
    ground: np.ndarray
    tissue: np.ndarray
    white: np.ndarray


class _Population(NamedTuple):
    density: np.ndarray
    axis: np.ndarray
    inclination: np.ndarray


class _Layout(NamedTuple):
    """Where cortex and white matter are, each `[S, S]`.

    Attributes:
      depth: distance to the white matter, negative inside it.
      pial: distance to the surface of the brain or a cleft, negative outside.
      blade: axis along the blades of white matter, longer where it is certain.
      deep: axis of the course of deep fibres, likewise.
      radial: axis across the cortex.
    """

    depth: np.ndarray
    pial: np.ndarray
    blade: np.ndarray
    deep: np.ndarray
    radial: np.ndarray


def draw(rng: np.random.Generator, size: int) -> Fibres:
    """Draws the architecture of a section of `size` x `size` pixels."""
    layout = _layout(rng, size)
    rough = noise(rng, size, 1.2)
    layout = layout._replace(pial=layout.pial + 0.8 * rough - 1)
    white = _sigmoid(-(layout.depth + 0.3 * rough) / 2)
    main, tract, nucleus = _white_matter(rng, layout, white)
    layer = np.clip(layout.depth / np.maximum(layout.depth + layout.pial, 1), 0, 1)  # 1 at the pia
    rays = _rays(rng, layout, layer, white)
    rim, wisps = _layers(rng, layout, layer, 1 - white)
    strange = _unit(noise(rng, size, 0.7) + 1j * noise(rng, size, 0.7))
    stray = _Population(np.full_like(white, 0.03), strange, np.zeros_like(white))
    lumen, dark = _vessels(rng, layout.radial)

    inside = np.clip(layout.pial / 1.5, 0, 1) * (1 - lumen)
    density, axis, inclination = map(np.stack, zip(main, tract, rays, rim, stray, strict=True))
    density = np.maximum(density, 0) * inside
    density[3] += wisps
    cells = 0.10 - 0.07 * (1 - white) + 0.1 * nucleus + 0.006 * waves(rng, size, (15, 60))
    cells += 0.006 * noise(rng, size, 0.6)
    return Fibres(
        density=density.astype(np.float32),
        direction=np.angle(axis).astype(np.float32) / 2,
        inclination=np.clip(inclination, -np.pi / 2, np.pi / 2).astype(np.float32),
        ground=np.maximum(cells * inside + dark + 0.3 * wisps, 0).astype(np.float32),
        tissue=np.maximum(inside, 3 * wisps) > 0.5,
        white=(layout.depth < 0) & (nucleus < 0.5),
    )


def _layout(rng: np.random.Generator, size: int) -> _Layout:
    """Laid out at half the resolution; it is smooth but for the ridges of distances."""
    place = np.arange(-_CONTEXT, size + _CONTEXT, 2, dtype=np.float32)
    fold, gradient = waves_and_gradient(rng, place, _GYRI)
    angle, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(1 / 400, 1 / 150)
    centred = place - size / 2
    slope = tilt * cmath.rect(1, angle)
    slant = np.tanh(slope.real * centred[None] - slope.imag * centred[:, None])
    fold += 1.3 * slant  # more white matter on one side, less on the other
    gradient += 1.3 * slope * (1 - np.square(slant))
    depth = -_distance(fold > np.quantile(fold, rng.uniform(0.35, 0.9)))
    thickness = _CORTEX + 7 * waves_and_gradient(rng, place, (200, 500))[0]
    depth = _blur(depth, 1)
    by_row, by_column = np.gradient(depth, 2)
    ridge = np.hypot(by_row, by_column) < 0.6  # it is 1 but where the layers of two gyri meet
    surface = (depth > thickness) | (ridge & (depth > 0.6 * thickness))
    course = waves_and_gradient(rng, place, _COURSE)[1]
    fields = _Layout(
        depth=depth,
        pial=_blur(-_distance(surface), 0.8),
        blade=_scaled(_blur(-np.square(gradient), 10)),
        deep=_scaled(-np.square(course)),
        radial=_blur(np.square(by_column - 1j * by_row), 3),
    )
    index = (np.arange(size) + _CONTEXT)[:, None] / 2 - np.arange(len(place))[None]
    linear = np.maximum(1 - np.abs(index), 0).astype(np.float32)
    full = _Layout(*(_along_both(linear, field) for field in fields))
    return full._replace(radial=_unit(full.radial))


def _white_matter(
    rng: np.random.Generator, layout: _Layout, white: np.ndarray
) -> tuple[_Population, _Population, np.ndarray]:
    """Its fibres, a tract that crosses or displaces them, and where a nucleus takes their place."""
    size = len(white)
    share = _ramp(-layout.depth, 10, 70)
    axis = _unit((1 - share) * layout.blade + share * layout.deep)
    fine, coarse = streaks(rng, axis, 0.7, 12), streaks(rng, axis, 2.0, 20)
    nucleus = np.zeros_like(white)
    if rng.random() < 0.25:
        nucleus = _sigmoid((waves(rng, size, (120, 300)) - 0.3) / 0.06)
        nucleus *= _ramp(-layout.depth, 8, 16)
    bundles = _sigmoid((coarse - rng.uniform(0.5, 1.2)) / 0.12)
    texture = 1 + 0.045 * fine + 0.04 * coarse
    dense = white * texture * (1 - 0.35 * _fans(layout)) * rng.uniform(0.8, 1)
    dense *= 1 - nucleus * (0.8 - 0.7 * bundles)

    place = np.arange(size, dtype=np.float32)
    value, gradient = waves_and_gradient(rng, place, (200, 600))
    away = np.abs(value - rng.normal(0, 0.7)) / np.maximum(np.abs(gradient), 1e-4)
    tract = white * _sigmoid((rng.uniform(8, 40) - away) / 3)
    tract *= rng.choice([0.3, 0.5, 0.95])  # the share it takes of the section's thickness
    course = _unit(-np.square(gradient))
    own = streaks(rng, course, 1.0, 16)
    steep = float(rng.choice([-1.3, -0.7, 0, 0, 0.7, 1.3])) + 0.15 * waves(rng, size, (80, 300))
    incline = 0.6 * waves(rng, size, (150, 400)) + rng.normal(0, 0.4)
    return (
        _Population(dense * (1 - tract), _turned(axis, 0.03 * fine), incline + 0.06 * coarse),
        _Population(tract * (1 + 0.08 * own), _turned(course, 0.03 * own), steep + 0.06 * own),
        nucleus,
    )


def _rays(
    rng: np.random.Generator, layout: _Layout, layer: np.ndarray, white: np.ndarray
) -> _Population:
    """Fibres that cross the cortex, and those that fan out towards it from the white matter."""
    lines = streaks(rng, layout.radial, 0.7, 12)
    patches = 1 + 0.25 * waves(rng, len(white), (60, 200))
    cortex = (1 - white) * (0.17 + 0.14 * (1 - layer)) * patches * (1 + 0.1 * lines)
    axis = _turned(layout.radial, 0.03 * lines + 0.15 * waves(rng, len(white), (40, 120)))
    incline = 0.3 * waves(rng, len(white), (80, 250))
    return _Population(cortex + 0.35 * white * _fans(layout), axis, incline)


def _layers(
    rng: np.random.Generator, layout: _Layout, layer: np.ndarray, grey: np.ndarray
) -> tuple[_Population, np.ndarray]:
    """Fibres along the cortex, in its outermost and a middle layer; and shreds of the membranes."""
    size = len(grey)
    patches = _ramp(waves(rng, size, (50, 150)), -0.5, 1)
    density = grey * (0.28 * patches * _bell(layout.pial, 3, 2.5) + 0.08 * _bell(layer, 0.5, 0.1))
    height = 6 + 5 * waves(rng, size, (60, 200))
    shreds = _ramp(waves(rng, size, (30, 90)), 0.7, 1.2) * _bell(layout.pial, -height, 0.9)
    population = _Population(density, -layout.radial, np.zeros_like(grey))
    return population, np.where(layout.pial < -1, 0.4 * shreds, 0)


def _fans(layout: _Layout) -> np.ndarray:
    return np.exp(-np.abs(layout.depth) / 9)


def _vessels(rng: np.random.Generator, radial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lumina, in which there is nothing, and what attenuates: filled vessels, walls of wide ones.

    Narrow vessels are cut across or run along the cortex's rays; wide ones, and bubbles of air in
    the mounting medium beside the tissue, are rings.

    Returns:
      two shares `[S, S]`.
    """
    size = len(radial)
    lumen, dark = np.zeros((2, size, size), np.float32)
    for _ in range(rng.poisson((size / 50) ** 2)):
        row, column = rng.integers(0, size, 2)
        wide = rng.random() < 0.06
        radius = rng.uniform(1.5, 5) if wide else rng.uniform(0.2, 0.6)
        length = 0.0 if wide or rng.random() < 0.5 else rng.exponential(3)
        angle = np.angle(radial[row, column]) / 2 + rng.normal(0, 0.3)
        reach = int(length + radius + 4)
        rows = slice(max(row - reach, 0), row + reach + 1)
        columns = slice(max(column - reach, 0), column + reach + 1)
        up, right = row - np.arange(size)[rows, None], np.arange(size)[None, columns] - column
        along = np.abs(right * np.cos(angle) + up * np.sin(angle))
        aside = up * np.cos(angle) - right * np.sin(angle)
        away = np.hypot(np.maximum(along - length, 0), aside)
        shape = _sigmoid((radius - away) / 0.35)
        if not wide and rng.random() < 0.6:
            dark[rows, columns] += 0.3 * shape
            continue
        shape *= 1.0 if wide else 0.5  # a narrow one runs through a part of the thickness
        lumen[rows, columns] = np.maximum(lumen[rows, columns], shape)
        dark[rows, columns] += 0.6 * wide * _bell(away, radius + 0.8, 0.6)
    return lumen, dark


def _distance(inside: np.ndarray) -> np.ndarray:
    """Signed distance to the border of a region at half resolution, positive inside."""
    if inside.all() or not inside.any():
        return np.where(inside, _EVERYWHERE, -_EVERYWHERE).astype(np.float32)
    inner, outer = (ndimage.distance_transform_edt(region) for region in (inside, ~inside))
    return 2 * (inner - outer)


def _blur(values: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur, normalised at the border."""
    place = np.arange(len(values))
    kernel = np.exp(-np.square((place[:, None] - place[None]) / sigma) / 2).astype(np.float32)
    return _along_both(kernel / kernel.sum(1, keepdims=True), values)


def _along_both(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A real matrix applied along both axes of an array that may be complex."""
    if np.iscomplexobj(values):
        return _along_both(matrix, values.real) + 1j * _along_both(matrix, values.imag)
    return matrix @ values.astype(np.float32) @ matrix.T


def _unit(axis: np.ndarray) -> np.ndarray:
    return axis / np.maximum(np.abs(axis), 1e-9)


def _scaled(axis: np.ndarray) -> np.ndarray:
    return axis / np.sqrt(np.mean(np.square(np.abs(axis))))


def _turned(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return axis * np.exp(2j * angle)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(values / 2)) / 2


def _bell(values: np.ndarray, centre: np.ndarray | float, width: float) -> np.ndarray:
    return np.exp(-np.square((values - centre) / width) / 2)


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) / (high - low), 0, 1)
