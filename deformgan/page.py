"""`report.html`: one page about a run and its evaluation, in a file that needs no other.

This module says what is shown, `drawing.py` where its lines go, and `page.html.j2` lays it out.
Whatever comes from outside is escaped by the template, and its content security policy allows the
page neither a connection nor any script but its own.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import math
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import ml_collections
import numpy as np

from deformgan import __version__, drawing, gallery, parallel
from deformgan.gallery import Pictures
from deformgan.workdir import Workdir, to_json, write_atomically

_LEVEL = 0.05  # of significance
_DASH, _MINUS, _TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
_LARGEST = 1e300  # of a number that can be drawn

_ESTIMATED = {  # files of a run's folder estimation/, without .png
    "template": "The template, built from noisy training images alone, its layers, and what its"
    " structures are taken for.",
    "modes": "How the brightness of structures varies beyond that: the template with each of the"
    " first modes of appearance taken away and added.",
    "noise": "The camera's noise: standard deviation against brightness, and the kernel that gives"
    " it its correlation.",
    "registration": "Training images, the atlas carried to each of them, and what is left, which"
    " should be noise.",
}
_FAMILIES = {
    "distances": "Distances between real and generated",
    "manifold": "Fidelity and coverage",
    "copying": "Copying of training images",
    "image_error": "Image error",
    "orientation_error": "Error of fibre orientation",
    "calibration": "Calibration of the passes",
    "field_health": "Health of the fields",
}


def of_run(
    workdir: Workdir,
    config: ml_collections.ConfigDict,
    records: Sequence[dict[str, Any]],
    pictures: Pictures,
    evaluation: dict[str, Any] | None,
) -> None:
    """Writes `report.html` of the run or evaluation in `workdir`.

    Args:
      workdir: its name and files are shown.
      config: of the run.
      records: lines of `metrics.jsonl`; empty if nothing was trained.
      pictures: the first 24 of each kind are shown.
      evaluation: as in `evaluation.json`; None if the run has not been evaluated.
    """
    versions = {name: metadata.version(name) for name in ("jax", "flax", "numpy")}
    facts = {
        "workdir": str(workdir.root),
        "version": __version__,
        "devices": parallel.describe(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "libraries": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    if records:
        steps = np.diff([0] + [r["step"] for r in records])
        rates = np.array([max(r["steps_per_second"], 1e-3) for r in records])
        seconds = float(np.sum(steps / rates))
        facts["duration"] = f"{seconds / 60:.1f} min of training to step {records[-1]['step']:,}"
    if evaluation is not None:
        about = evaluation["subject"]
        facts["real images"], facts["generated images"] = about["real"], about["fake"]
        for name, how in evaluation["features"].items():
            facts[f"{name} features"] = how
        facts["evaluation"] = f"{evaluation['seconds']:.0f} s on {evaluation['devices']}"
    if remarks := (workdir.read_json("split.json") or {}).get("remarks"):
        facts["data"] = remarks
    facts["config"] = json.dumps(to_json(config), indent=2, sort_keys=True)
    write(
        workdir.local / "report.html",
        title=workdir.root.name or "deformgan",
        facts=facts,
        evaluation=evaluation,
        records=records,
        pictures=pictures,
        warnings=(),
        estimation=_estimation(workdir),
    )


def _estimation(workdir: Workdir) -> list[dict[str, str]]:
    """The pictures of what was estimated before training, if anything was, of each animal."""
    folder, found = workdir.local / "estimation", []
    animals = workdir.read_json("estimation/animals.json")
    places = {"": folder}
    if animals:
        places = {f"{name}. ": folder / f"{n:03d}" for n, name in enumerate(animals)}
    for animal, place in places.items():
        for name, about in _ESTIMATED.items():
            file = place / f"{name}.png"
            if file.is_file():
                uri = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
                found.append({"name": name, "about": animal + about, "uri": uri})
    return found


def write(
    file: Path,
    *,
    title: str,
    facts: dict[str, str],
    evaluation: dict[str, Any] | None,
    records: Sequence[dict[str, Any]],
    pictures: Pictures,
    warnings: Sequence[str],
    estimation: Sequence[dict[str, str]] = (),
) -> None:
    """Writes the page, whole or not at all.

    Args:
      file: the HTML file.
      title: its heading.
      facts: what was run. `version`, `devices`, `date` and `duration` also go to the head,
        `workdir` into the command to evaluate, `config` (JSON) into a box of its own.
      evaluation: as in `evaluation.json`; None if the run has not been evaluated. A number may be
        null, and an entry with a `reason` has none.
      records: lines of `metrics.jsonl`; keys may be missing.
      pictures: the first 24 of each kind are shown.
      warnings: shown with those of the evaluation, each once.
      estimation: pictures of what was estimated before training: `name`, `about`, `uri`.

    Raises:
      ValueError: if the pictures do not fit each other or are not uint8.
    """
    gallery.check(pictures)
    found: dict[str, Any] = _finite(evaluation) or {}
    metrics = found.get("metrics") or {}
    workdir = shlex.quote(facts["workdir"]) if "workdir" in facts else "WORKDIR"
    main, other, block = drawing.panels(records)
    render(
        file,
        "page.html.j2",
        title=title,
        facts=facts,
        version=found.get("deformgan") or facts.get("version") or __version__,
        evaluated=evaluation is not None,
        evaluation=found,
        command=f"python -m deformgan.main --mode=evaluate --workdir={workdir}",
        badge=_badge(found),
        rows=(rows := _rows(found)),
        forest_low=_lowest(rows),
        tests=found.get("tests") or {},
        families=_by_family(metrics),
        example=next((m for m in metrics.values() if m.get("value") is not None), None),
        warnings=list(dict.fromkeys([*warnings, *(found.get("warnings") or [])])),
        gallery=gallery.images(pictures),
        pairs=gallery.pairs(pictures),
        calibration=drawing.calibration((metrics.get("calibration_slope") or {}).get("curve")),
        estimation=estimation,
        panels=main,
        other_panels=other,
        lines=len(records),
        block=block,
        plot=drawing.PLOT,
        level=_LEVEL,
    )


def render(file: Path, template: str, **values: Any) -> None:
    """Fills a template of this folder with `values`, escaped, and writes the page whole."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "sha256": _sha256}
    text = environment.get_template(template).render(**values)
    # Characters beyond ASCII become references, so the locale's encoding of files does not matter.
    write_atomically(file, text.encode("ascii", "xmlcharrefreplace").decode("ascii"))


def number(value: Any) -> str:
    """Three significant digits, whole numbers in full; a dash for None and what is not finite.

    Of a list, each number.
    """
    if isinstance(value, list | tuple):
        return " / ".join(map(number, value))
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _DASH
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) and abs(value) < 1e9:
        return f"{value:,}".replace("-", _MINUS)
    exponent = math.floor(math.log10(abs(value))) if value else 0
    if -4 <= exponent < 6:
        rounded = round(value, 2 - exponent)
        text = f"{rounded:,.0f}" if abs(rounded) >= 1000 else f"{rounded:.3g}"
    else:
        mantissa, power = f"{value:.2e}".split("e")
        raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        text = f"{float(mantissa):g} {_TIMES} 10{raised}"
    return text.replace("-", _MINUS)


def percent(value: Any) -> str:
    """A share of 1 as percent with three significant digits; a dash for None."""
    plain = isinstance(value, int | float) and math.isfinite(value)
    return f"{number(100 * value)}%" if plain else number(value)


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _finite(tree: Any) -> Any:
    """The same tree with None for every number that is not finite."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _badge(evaluation: dict[str, Any]) -> tuple[str, str]:
    """State (`apart`, `alike` or `open`) and the few words that go with it."""
    verdict = evaluation.get("verdict") or {}
    p_value = verdict.get("p_value_adjusted")
    controls = (evaluation.get("controls") or {}).values()
    caught = [c["caught"] for c in controls if isinstance(c.get("caught"), bool)]
    if not evaluation:
        return "open", "not evaluated"
    if p_value is None:
        return "open", "no verdict"
    if verdict.get("decision") == "apart":
        return "apart", "told apart"
    if verdict.get("decision") == "open":
        return "open", "undecided: too few blocks for this test"
    if caught and not any(caught):
        return "open", "not told apart, but no control was caught either"
    return "alike", "indistinguishable within this test's power"


def _rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines of the forest plot and its table: tests, then controls, each under a heading."""
    rows: list[dict[str, Any]] = []
    for kind, heading in (("tests", "Generated against real"), ("controls", "Controls")):
        found = evaluation.get(kind) or {}
        rows += [{"kind": "heading", "label": heading, "of": {}}] if found else []
        rows += [{"kind": kind[:-1], "label": _plain(k), "of": v or {}} for k, v in found.items()]
    return rows


def _lowest(rows: list[dict[str, Any]]) -> float:
    """Where the axis of the forest plot begins: 0.4, or the tenth below the lowest number."""
    both = [part for row in rows for part in (row["of"], row["of"].get("floor") or {})]
    shown = [n for part in both for n in (part.get("accuracy"), *(part.get("interval") or []))]
    return max(0.0, math.floor(10 * min(0.4, *(n for n in shown if n is not None), 0.4)) / 10)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _by_family(metrics: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each family's table; what a metric is, is said in the first row of its kind."""
    families: dict[str, list[dict[str, Any]]] = {}
    said: set[str] = set()
    for name, metric in metrics.items():
        family, about = metric.get("family") or "other", metric.get("about") or ""
        if about in said:
            metric = {**metric, "about": ""}
        said.add(about)
        row = {"label": metric.get("label") or _plain(name), "of": metric, "bar": _bar(metric)}
        families.setdefault(_FAMILIES.get(family, _plain(family)), []).append(row)
    return families


def _bar(metric: dict[str, Any]) -> dict[str, float] | None:
    """Places in [0, 1] of the value, its interval, floor and ideal, on a scale of their own."""
    low, high = metric.get("interval") or (None, None)
    known = {"low": low, "high": high} | {k: metric.get(k) for k in ("value", "floor", "ideal")}
    places = {k: v for k, v in known.items() if v is not None and abs(v) < _LARGEST}
    least, most = min(places.values(), default=0), max(places.values(), default=0)
    if "value" not in places or not {"floor", "ideal"} & places.keys() or least == most:
        return None
    return {k: (v - least) / (most - least) for k, v in places.items()}
