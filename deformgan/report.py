"""Pictures of a run: sample grids with their fields, training curves, flagged frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deformgan.data.frames import Frames
from deformgan.fields import jacobian_determinant
from deformgan.imaging.screening import Row
from deformgan.objectives.contract import Samples

_COLUMNS = 8
_MESH = 8  # lines of the mesh are this many pixels apart
_MOST_THUMBNAILS = 64


def sample_grid(file: Path, samples: Samples, real: np.ndarray, source: np.ndarray) -> None:
    """Draws real images, generated ones with their points, and their fields.

    A field is shown as the mesh that a regular grid on the source becomes; folds are red.

    Args:
      file: the PNG to write.
      samples: with displacement fields, 7 or more.
      real: `[N, H, W, C]` in [-1, 1], 7 or more.
      source: `[H, W, C]` the image that is warped.
    """
    rows = ("displacement" in samples.fields) + 2
    figure = Figure(figsize=(1.6 * _COLUMNS, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    points = np.asarray(samples.labels["points"]) if "points" in samples.labels else None
    for column in range(_COLUMNS):
        shown = column - 1
        if column == 0:
            _image(axes[0, 0], source, "source")
            _image(axes[1, 0], source, "no deformation")
        else:
            _image(axes[0, column], real[shown % len(real)], "real" if shown == 0 else "")
            _image(axes[1, column], samples.images[shown], "generated" if shown == 0 else "")
            if points is not None:
                axes[1, column].plot(*points[shown].T[::-1], "r.", markersize=2.5)
    if rows == 3:
        field = np.asarray(samples.fields["displacement"][: _COLUMNS - 1])
        field = np.concatenate([np.zeros_like(field[:1]), field])
        folds = np.asarray(jacobian_determinant(jnp.asarray(field))) < 0
        for column in range(_COLUMNS):
            _mesh(axes[2, column], field[column], folds[column])
    figure.savefig(file, dpi=110)


def curves(file: Path, records: Sequence[dict[str, Any]]) -> None:
    """Draws losses, the discriminator's accuracy, diversity and folds against the step."""
    panels = {
        "losses": ("disc/adversarial", "gen/adversarial"),
        "discriminator accuracy": ("disc/accuracy_real", "disc/accuracy_fake"),
        "diversity (1 is ideal), folded share": ("diversity", "folded"),
        "gradient norms": ("disc/gradient_norm", "gen/gradient_norm"),
    }
    figure = Figure(figsize=(13, 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels))
    for axis, (title, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            points = [(r["step"], r[name]) for r in records if name in r]
            axis.plot(*np.array(points).reshape(-1, 2).T, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.legend(fontsize=8)
    axes[1].axhline(0.5, color="0.6", linewidth=0.8)
    axes[1].set_ylim(0, 1)
    axes[3].set_yscale("log")
    figure.savefig(file, dpi=110)


def thumbnails(file: Path, frames: Frames, rows: Sequence[Row], flagged: Sequence[int]) -> None:
    """Draws the flagged frames with their reasons, at most 64 of them."""
    reasons = {row.name: row.reason for row in rows}
    shown = flagged[:_MOST_THUMBNAILS]
    lines = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(1.6 * _COLUMNS, 1.9 * lines + 0.3), layout="constrained")
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, shown, strict=False):
        image = frames.read(i).image.mean(-1)
        axis.imshow(image, cmap="gray", interpolation="nearest")
        axis.set_title(f"{Path(frames.names[i]).name}\n{reasons[frames.names[i]]}", fontsize=6)
    if len(flagged) > len(shown):
        figure.suptitle(f"the first {len(shown)} of {len(flagged)} flagged frames", fontsize=9)
    figure.savefig(file, dpi=110)


def _image(axis: Axes, image: Any, title: str) -> None:
    unit = (np.asarray(image, np.float32) + 1) / 2
    axis.set_axis_off()
    axis.set_title(title, fontsize=9)
    axis.imshow(np.clip(unit, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _mesh(axis: Axes, displacement: np.ndarray, folds: np.ndarray) -> None:
    height, width, _ = displacement.shape
    seen = np.indices((height, width)).transpose(1, 2, 0) + displacement  # source (row, column)
    for component, size in enumerate((height, width)):
        levels = np.arange(0, size, _MESH)
        axis.contour(seen[..., component], levels=levels, colors="0.35", linewidths=0.5)
    if folds.any():
        shown = np.where(folds, 1.0, np.nan)
        axis.imshow(shown, cmap="autumn", vmin=1, vmax=2, alpha=0.6)
    axis.set(
        xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), aspect="equal", xticks=[], yticks=[]
    )
