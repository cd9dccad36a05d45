"""Pictures of a run: sample grids with their fields, training curves, flagged frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from deformgan.data.frames import Frames
from deformgan.fields import jacobian_determinant
from deformgan.imaging.screening import Row
from deformgan.objectives.contract import Samples

_COLUMNS = 8
_SHOWN_MODES = 8
_AMOUNT = 2  # standard deviations of a mode
_MESH = 8  # lines of the mesh are this many pixels apart
_MOST_THUMBNAILS = 64


def sample_grid(
    file: Path,
    samples: Samples,
    real: np.ndarray,
    source: np.ndarray,
    inputs: np.ndarray | None = None,
) -> None:
    """Draws real images, generated ones with their points, and their fields.

    A field is shown as the mesh that a regular grid on the source becomes; folds are red. The
    source is shown where there are fields. Of pairs, rows of inputs, predictions and targets.

    Args:
      file: the PNG to write.
      samples: 8 or more.
      real: `[N, H, W, C]` in [-1, 1].
      source: `[H, W, C]` the image that is warped.
      inputs: `[N, H, W, K]` in [-1, 1] of pairs: what the first samples were predicted from, and
        `real` are their targets. Of inputs that are not grey or in colour, the first channel.
    """
    if inputs is not None:
        _pairs(file, samples, real, inputs)
        return
    warped = int("displacement" in samples.fields)
    rows = warped + 2
    figure = Figure(figsize=(1.6 * _COLUMNS, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False)
    points = np.asarray(samples.labels["points"]) if "points" in samples.labels else None
    for column in range(_COLUMNS):
        shown = column - warped
        if shown < 0:
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


def _pairs(file: Path, samples: Samples, real: np.ndarray, inputs: np.ndarray) -> None:
    """Rows of inputs, predictions and targets."""
    seen = inputs if inputs.shape[-1] == 3 else inputs[..., :1]
    rows = {"input": seen, "prediction": np.asarray(samples.images), "target": real}
    figure = Figure(figsize=(1.6 * _COLUMNS, 1.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), _COLUMNS, squeeze=False)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        for column, axis in enumerate(row):
            _image(axis, images[column % len(images)], "" if column else name)
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


def evidence(folder: Path, found: dict[str, dict[str, np.ndarray]]) -> None:
    """Writes what was estimated before training to `folder/estimation`: a file and three pictures.

    Of several animals, each has a folder of these there, by its number; `animals.json` names them.

    Args:
      folder: of the run.
      found: by the name of each animal `layers` `[K + 1, S, S]` and `structures` `[S, S]` (1
        neurites, 2 dim, 3 bright somata) of the template and its `modes` `[Q, K + 1, S, S]` of
        appearance, `[1]` for none; the noise's variance against brightness, measured (`noise_mean`,
        `noise_variance`) and of the model (`noise_levels`, `noise_model`), its `kernel` and
        `in_words`; and images `observed` and `explained` `[N, S, S]`; all in unit intensity. The
        `point_spread` is a standard deviation in pixels.
    """
    out = folder / "estimation"
    out.mkdir(exist_ok=True)
    if len(found) > 1:
        (out / "animals.json").write_text(json.dumps(list(found)))
    for number, own in enumerate(found.values()):
        place = out / f"{number:03d}" if len(found) > 1 else out
        place.mkdir(exist_ok=True)
        np.savez_compressed(place / "estimation.npz", allow_pickle=False, **own)
        _template(place / "template.png", own["layers"], own["structures"])
        if own["modes"].ndim > 1:
            _modes(place / "modes.png", own["layers"], own["modes"])
        _noise(place / "noise.png", own)
        _registered(place / "registration.png", own["observed"], own["explained"])


def _template(file: Path, layers: np.ndarray, structures: np.ndarray) -> None:
    """Draws the template, its layers and what its structures are taken for."""
    columns = len(layers) + 2
    figure = Figure(figsize=(1.9 * columns, 2.1), layout="constrained")
    axes = figure.subplots(1, columns)
    names = ["template", *(f"soma {k + 1}" for k in range(len(layers) - 1)), "rest"]
    for axis, name, layer in zip(axes, names, [layers.max(0), *layers], strict=False):
        axis.imshow(layer, cmap="gray", vmin=0, vmax=layers.max(), interpolation="nearest")
        axis.set_title(name, fontsize=9)
    kinds = ListedColormap(["black", "tab:green", "tab:orange", "tab:blue"])
    axes[-1].imshow(structures, cmap=kinds, vmin=0, vmax=3, interpolation="nearest")
    axes[-1].set_title("bright, dim somata, neurites", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(file, dpi=110)


def _modes(file: Path, layers: np.ndarray, modes: np.ndarray) -> None:
    """Draws the template with each of its first modes taken away and added."""
    shown = modes[:_SHOWN_MODES]
    figure = Figure(figsize=(1.6 * len(shown), 3.5), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for k, mode in enumerate(shown):
        for axis, amount in zip(axes[:, k], (-_AMOUNT, _AMOUNT), strict=True):
            varied = np.maximum(layers + amount * mode, 0).max(0)
            axis.imshow(varied, cmap="gray", vmin=0, vmax=layers.max(), interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(f"mode {k + 1}: {amount:+d} sd", fontsize=9)
    figure.savefig(file, dpi=110)


def _noise(file: Path, found: dict[str, np.ndarray]) -> None:
    """Draws the noise's standard deviation against brightness, and its correlation."""
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    curve, spatial = figure.subplots(1, 2, width_ratios=(3, 1))
    curve.plot(found["noise_levels"], np.sqrt(found["noise_model"]), label="model, before clipping")
    measured = np.sqrt(np.maximum(found["noise_variance"], 0))
    curve.plot(found["noise_mean"], measured, "o", markersize=4, label="measured, clipped")
    curve.set(xlabel="unit intensity", ylabel="standard deviation", ylim=(0, None))
    curve.set_title(f"noise: {found['in_words']}", fontsize=9)
    curve.legend(fontsize=8)
    spatial.imshow(found["kernel"], cmap="gray", interpolation="nearest")
    spread = f"point spread {found['point_spread']:.2f} px"
    spatial.set_title(f"correlation kernel\n{spread}", fontsize=9)
    spatial.set_axis_off()
    figure.savefig(file, dpi=110)


def _registered(file: Path, observed: np.ndarray, explained: np.ndarray) -> None:
    """Draws images, what the atlas makes of each, and what it leaves."""
    figure = Figure(figsize=(1.6 * len(observed), 5.1), layout="constrained")
    axes = figure.subplots(3, len(observed), squeeze=False)
    rest = observed - explained
    most = max(float(np.abs(rest).max()), 1e-6)
    for column in range(len(observed)):
        axes[0, column].imshow(observed[column], cmap="gray", vmin=0, vmax=1)
        axes[1, column].imshow(explained[column], cmap="gray", vmin=0, vmax=1)
        axes[2, column].imshow(rest[column], cmap="RdBu", vmin=-most, vmax=most)
    for axis, name in zip(axes[:, 0], ("training image", "registered", "residual"), strict=True):
        axis.set_title(name, fontsize=9)
    for axis in axes.ravel():
        axis.set_axis_off()
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
