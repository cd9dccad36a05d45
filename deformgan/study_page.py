"""`study.html`: one page over all runs of a study, in a file that needs no other."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from deformgan import __version__, drawing, page, results

_COLUMNS = 6  # images of each kind in a strip


def strip(pictures: page.Pictures) -> bytes:
    """A PNG: the first real images, below them as many generated ones."""
    rows = [np.concatenate(list(x[:_COLUMNS]), 1) for x in (pictures.real, pictures.generated)]
    width = min(row.shape[1] for row in rows)
    joined = np.concatenate([row[:, :width] for row in rows])
    return bytes(imagecodecs.png_encode(joined[..., 0] if joined.shape[-1] == 1 else joined))


def write(folder: Path, entries: Sequence[results.Entry], settings: dict[str, Any]) -> None:
    """Writes the page.

    Args:
      folder: of the study.
      entries: one a run, in order.
      settings: the `study` block.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in entries:
        shown = one | {"cells": results.cells(one), "panel": _panel(one)}
        groups.setdefault(one["row"], []).append(shown)
    done = [one for one in entries if one["status"] == "done"]
    page.render(
        folder / "study.html",
        "study.html.j2",
        title=folder.resolve().name,
        version=__version__,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        done=len(done),
        total=len(entries),
        seconds=sum(v for one in entries for k, v in one.items() if k.startswith("seconds_")),
        columns={k: v for k, v in results.COLUMNS.items() if k != "row"},
        groups=groups,
        strips={name: found for name, own in groups.items() if (found := _strip(own))},
        differs=[one for one in done if one["differs"]],
        settings=settings,
        plot=drawing.PLOT,
    )


def _panel(one: results.Entry) -> dict[str, Any] | None:
    return drawing.accuracy(results.records(one), f"{one['row']}, seed {one['seed']}")


def _strip(own: Sequence[results.Entry]) -> dict[str, Any] | None:
    """The images of the first run of a row that has any."""
    for one in own:
        file = Path(one["folder"]) / "strip.png"
        if one["status"] == "done" and file.is_file():
            uri = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
            return {"seed": one["seed"], "image": uri}
    return None
