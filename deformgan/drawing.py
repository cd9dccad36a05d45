"""Where the lines of the page's pictures go: curves of a run, meshes of displacement fields."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np

from deformgan.fields import jacobian_determinant

_MOST_POINTS = 400  # of a curve
_MESH = 8  # lines of a mesh are this many pixels apart, in fields of up to _FINE pixels
_FINE = 128
_LARGEST = 1e300  # of a value that can be drawn
_COLOURS, _UNKNOWN = "inferno", 128  # of maps of errors, and their grey where nothing is judged
_WIDE = 1000  # largest value over the median from which on an axis is logarithmic

Place = Callable[[float], float]  # from a value to a coordinate on the page
PLOT = {"left": 40.0, "right": 252.0, "top": 8.0, "bottom": 142.0}  # axes in a panel of 260 x 164
_PANELS: dict[str, dict[str, Any]] = {
    "Losses": {"names": ("disc/adversarial", "gen/adversarial")},
    "Accuracy of the discriminator": {
        "names": ("disc/accuracy_real", "disc/accuracy_fake"),
        "within": (0.0, 1.0),
        "line": 0.5,
    },
    "Diversity (ideal 1), folded share": {"names": ("diversity", "folded"), "within": (0.0, 1.0)},
    "Gradient norms": {"names": ("disc/gradient_norm", "gen/gradient_norm"), "log": True},
}


def panels(
    records: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Curves of every series in `records`, lines of `metrics.jsonl`.

    Returns:
      panels to show first; panels of all other series, one each; how many values a point is the
      mean of at most, so that a curve has no more than 400 points.
    """
    series = {
        name: _series(records, name)
        for name in dict.fromkeys(name for record in records for name in record if name != "step")
    }
    usual = {name for options in _PANELS.values() for name in options["names"]}
    alone = [name for name in series if name not in usual]
    mine = [name for name in alone if name.startswith("evaluate/")]
    first = [_panel(title, series, **options) for title, options in _PANELS.items()]
    first += [_panel(_plain(name.removeprefix("evaluate/")), series, (name,)) for name in mine]
    other = [_panel(_plain(name), series, (name,)) for name in alone if name not in mine]
    block = max((one["block"] for one in series.values()), default=1)
    return [p for p in first if p], [p for p in other if p], block


def accuracy(records: Sequence[dict[str, Any]], title: str) -> dict[str, Any] | None:
    """The panel of the discriminator's accuracy alone; None if nothing was trained."""
    options = _PANELS["Accuracy of the discriminator"]
    series = {name: _series(records, name) for name in options["names"]}
    return _panel(title, series, **options)


def calibration(
    curve: Sequence[tuple[float, float, float, float]] | None,
) -> dict[str, Any] | None:
    """A plot of error against spread: points, their quartiles, and the line where both are equal.

    Args:
      curve: spread, error and its first and third quartile of each bin, in degrees; None for none.

    Returns:
      its paths and ticks; None if there is nothing to draw.
    """
    points = np.array(curve or [], np.float64).reshape(-1, 4)
    if not len(points) or not np.isfinite(points).all():
        return None
    ticks = _ticks([0, points.max()], most=5)
    x = _place((0, ticks[-1]), (PLOT["left"], PLOT["right"]))
    y = _place((0, ticks[-1]), (PLOT["bottom"], PLOT["top"]))
    centres = [(x(spread), y(error)) for spread, error, _, _ in points]
    return {
        "path": _path(centres),
        "points": centres,
        "bars": [(x(spread), y(low), y(high)) for spread, _, low, high in points],
        "equal": _path([(x(0), y(0)), (x(ticks[-1]), y(ticks[-1]))]),
        "across": [(x(t), _tick(t, ticks[-1])) for t in ticks],
        "up": [(y(t), _tick(t, ticks[-1])) for t in ticks],
    }


def coloured(values: np.ndarray, top: float) -> np.ndarray:
    """Values `[H, W]` from 0 to `top` as colours `[H, W, 3]` uint8; NaN is grey."""
    shades = matplotlib.colormaps[_COLOURS](np.clip(values / top, 0, 1), bytes=True)[..., :3]
    return np.where(np.isnan(values)[..., None], np.uint8(_UNKNOWN), shades)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _series(records: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Means over blocks of values, `[N, 2]` (step, value); the last value; how many it omits."""
    found = [(r["step"], r[name]) for r in records if name in r and "step" in r]
    usable = [(s, v) for s, v in found if isinstance(v, int | float) and abs(v) < _LARGEST]
    points = np.array(usable, np.float64).reshape(-1, 2)
    block = max(1, math.ceil(len(points) / _MOST_POINTS))
    starts = range(0, len(points), block)
    means = np.array([points[i : i + block].mean(axis=0) for i in starts]).reshape(-1, 2)
    return {
        "points": means,
        "block": block,
        "last": usable[-1][1] if usable else None,
        "left_out": len(found) - len(usable),
    }


def _panel(
    title: str,
    series: dict[str, dict[str, Any]],
    names: Sequence[str],
    within: tuple[float, float] | None = None,
    line: float | None = None,
    log: bool = False,
) -> dict[str, Any] | None:
    """Paths, ticks and legend of one panel; None if it has no point to draw.

    Args:
      title: its heading.
      series: all series, by name.
      names: those to draw.
      within: values that the axis must hold.
      line: value of a horizontal line.
      log: an axis of powers of ten, which values of 0 and less are left out of; taken anyway where
        a positive series has values far above its median.
    """
    drawn = {name: series[name] for name in names if name in series}
    values = np.concatenate([[], *(s["points"][:, 1] for s in drawn.values())])
    if not len(values):
        return None
    log = log and values.max() > 0
    log |= bool(values.min() > 0 and values.max() > _WIDE * np.median(values))
    up = _powers(values[values > 0]) if log else _ticks([*values, *(within or ())], most=5)
    last = max(s["points"][:, 0].max(initial=0) for s in series.values())
    x = _place((0, last), (PLOT["left"], PLOT["right"]))
    y = _place((up[0], up[-1]), (PLOT["bottom"], PLOT["top"]), log)
    return {
        "title": title + (", log scale" if log else ""),
        "legend": [{"name": name} | _curve(one, x, y, log) for name, one in drawn.items()],
        "across": [(x(t), _tick(t, last)) for t in _ticks([0, last], most=4) if 0 <= t <= last],
        "up": [(y(t), _tick(t, t if log else max(map(abs, up)))) for t in up],
        "line": None if line is None else y(line),
    }


def _curve(one: dict[str, Any], x: Place, y: Place, log: bool) -> dict[str, Any]:
    points = one["points"][one["points"][:, 1] > 0] if log else one["points"]
    return {
        "last": one["last"],
        "left_out": one["left_out"] + len(one["points"]) - len(points),
        "path": _path([(x(step), y(value)) for step, value in points]),
    }


def _place(from_: tuple[float, float], to: tuple[float, float], log: bool = False) -> Place:
    """The map that takes the first range, or its logarithm, to the second."""
    low, high = np.log10(from_) if log else from_
    scale = (to[1] - to[0]) / ((high - low) or 1)
    return lambda v: round(float(to[0] + scale * ((np.log10(v) if log else v) - low)), 1)


def _path(points: Sequence[tuple[float, float]]) -> str:
    if len(points) == 1:  # a dot, by the round ends of its stroke
        return "M{} {}h0".format(*points[0])
    return "M" + "L".join(f"{a} {b}" for a, b in points) if points else ""


def _ticks(values: Iterable[float], most: int) -> list[float]:
    """Round numbers that enclose the values, about `most` of them."""
    values = list(values)
    low, high = min(values), max(values)
    if high - low <= 1e-9 * abs(high):
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    unit = 10.0 ** math.floor(math.log10((high - low) / (most - 1)))
    step = next(k * unit for k in (1, 2, 5, 10, 20) if k * unit * (most - 1) >= high - low)
    return [k * step for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _powers(values: np.ndarray) -> list[float]:
    """Powers of ten that enclose the values, at most 6 of them."""
    low, high = math.floor(np.log10(values.min())), math.ceil(np.log10(values.max()))
    step = max(1, math.ceil((high - low) / 5))
    count = max(1, math.ceil((high - low) / step))
    return [10.0 ** (low + k * step) for k in range(count + 1)]


def _tick(value: float, largest: float) -> str:
    """A short label, in the unit of an axis up to `largest`: 0.5, 200, 5k, 1.5M, 2e9."""
    size, letter = next((u for u in ((1e6, "M"), (1e3, "k")) if largest >= 10 * u[0]), (1, ""))
    text = re.sub(r"e[+]?(-?)0*", r"e\1", f"{value / size:.4g}")
    return text.replace("-", "\N{MINUS SIGN}") + (letter if value else "")


def spacing(shape: tuple[int, ...]) -> tuple[int, int]:
    """Pixels between the lines of a mesh, and between the points of a line."""
    coarser = max(1, math.ceil(max(shape) / _FINE))
    return _MESH * coarser, coarser


def mesh(field: np.ndarray) -> dict[str, Any]:
    """Paths of the mesh x + u(x) of a field `[H, W, 2]` and of its folds, in tenths of a pixel."""
    if not np.isfinite(field).all():
        return {"lines": None}
    height, width, _ = field.shape
    between, along = spacing((height, width))
    seen = np.indices((height, width)).transpose(1, 2, 0) + field  # source (row, column)
    tenths = np.rint(10 * seen[..., ::-1]).astype(int)  # x, y
    lines = [tenths[r][_every(width, along)] for r in _every(height, between)]
    lines += [tenths[:, c][_every(height, along)] for c in _every(width, between)]
    determinant = jacobian_determinant(jnp.asarray(field, jnp.float32)[None])[0]
    folded = np.asarray(determinant) < 0  # [H-1, W-1]
    margin = math.ceil(max(height, width) / 8)
    return {
        "lines": "".join(map(_polyline, lines)),
        "folds": _fold_runs(seen, folded, margin),
        "folded": float(folded.mean()),
        "box": f"{-10 * margin} {-10 * margin} {10 * (width + 2 * margin)} "
        f"{10 * (height + 2 * margin)}",
        "frame": (10 * width - 10, 10 * height - 10),
    }


def _every(size: int, step: int) -> np.ndarray:
    return np.unique(np.append(np.arange(0, size, step), size - 1))


def _polyline(points: np.ndarray) -> str:
    steps = " ".join(f"{x} {y}" for x, y in np.diff(points, axis=0))
    return f"M{points[0, 0]} {points[0, 1]}l{steps}".replace(" -", "-")


def _fold_runs(seen: np.ndarray, folded: np.ndarray, margin: int) -> str:
    """Row by row, the source pixels that folded cells sample, as horizontal strokes."""
    corners = [seen[r : r - 1 or None, c : c - 1 or None][folded] for r in (0, 1) for c in (0, 1)]
    marked = np.zeros(np.array(seen.shape[:2]) + 2 * margin, np.int8)
    for s, t in np.ndindex(3, 3):
        down, right = (2 * s + 1) / 6, (2 * t + 1) / 6
        weights = ((1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right)
        places = sum(w * c for w, c in zip(weights, corners, strict=True))
        row, column = (np.rint(places) + margin).astype(int).T
        inside = (row >= 0) & (row < marked.shape[0]) & (column >= 0) & (column < marked.shape[1])
        marked[row[inside], column[inside]] = 1
    edges = np.diff(np.pad(marked, ((0, 0), (1, 1))), axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return "".join(
        f"M{10 * (c - margin) - 5} {10 * (r - margin)}h{10 * (end - c)}"
        for (r, c), (_, end) in zip(starts, ends, strict=True)
    )
