"""What a study found: one entry a row and seed, read from the folder of its run."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from deformgan import __version__
from deformgan.log import read_metrics, say
from deformgan.verdict import COLLAPSED
from deformgan.workdir import Workdir, write_atomically

Entry = dict[str, Any]
_DIFFERS = 0.1  # in the discriminator's accuracy, from which on the report's figure is not ours
_SPACES = ("encoder", "random", "pixels")  # features, the first that there are
_COMPARED = ("frechet", "kid", "coverage")  # whose intervals and floors tell what is decided

COLUMNS = {
    "row": "row",
    "seed": "seed",
    "n": "n",
    "test": "worst test",
    "accuracy": "accuracy",
    "interval": "95% interval",
    "floor": "floor",
    "controls": "controls caught",
    "frechet": "Fréchet",
    "kid": "KID",
    "diversity": "diversity",
    "coverage": "coverage",
    "folded": "folded",
    "copying": "copying",
    "nearest_training": "nearest training",
    "disc_fake": "D on fakes",
    "disc_real": "D on real",
    "report": "report",
    "seconds_train": "training, s",
    "seconds_evaluate": "evaluation, s",
}


def entry(known: Entry, folder: Path, report: dict[str, Any], seconds: dict[str, float]) -> Entry:
    """Sums up one run.

    Args:
      known: `row`, `method`, `seed`, `held_out_seed`, `status`, `reason`, `folder`.
      folder: of the run.
      report: what the report said of it: `accuracy` of D on fakes (-1 for none), `collapse`,
        `words`.
      seconds: it took, `train` and `evaluate`.

    Returns:
      `known`, `report` in words, `seconds_train`, `seconds_evaluate`, and where it is done: `n`,
      `split`, `test` (the worst), `accuracy`, `interval`, `p_value_adjusted`, `decision`, `floor`,
      `tests`, `controls`, `frechet`, `kid` and `coverage` (each with its `_interval` and `_floor`),
      `diversity`, `folded`, `copying`, `nearest_training`, `disc_fake` and `disc_real` (means over
      the last quarter of training), `steps` and `differs`: in which points it is not what the
      report said. None where there is no such number.
    """
    out = known | {f"seconds_{k}": v for k, v in seconds.items()} | {"report": report["words"]}
    if known["status"] != "done":
        return out
    workdir = Workdir(str(folder), create=False)
    evaluation, records = workdir.read_json("evaluation.json") or {}, read_metrics(workdir)
    out |= _judged(evaluation) | {f"disc_{k}": last_quarter(records, k) for k in ("fake", "real")}
    out |= {"split": "test", "steps": records[-1]["step"] if records else None}
    return out | {"differs": _differs(out, report)}


def last_quarter(records: list[dict[str, Any]], kind: str) -> float | None:
    """Mean accuracy of the discriminator in training on 'fake' or 'real' images; None if none."""
    name, last = f"disc/accuracy_{kind}", records[-1]["step"] if records else 0
    values = [r[name] for r in records if name in r and r["step"] > 0.75 * last]
    return float(np.mean(values)) if values else None


def _judged(evaluation: dict[str, Any]) -> Entry:
    metrics, verdict = evaluation.get("metrics", {}), evaluation.get("verdict", {})

    def spaced(name: str, key: str = "value") -> Any:
        found = (metrics.get(f"{name}_{space}", {}) for space in _SPACES)
        return next((one.get(key) for one in found if one.get("value") is not None), None)

    keep = ("test", "accuracy", "interval", "p_value_adjusted", "decision", "floor", "n")
    return {key: verdict.get(key) for key in keep} | {
        "tests": {k: t.get("accuracy") for k, t in evaluation.get("tests", {}).items()},
        "controls": {
            k: {"accuracy": c.get("accuracy"), "caught": c.get("caught"), "reason": c.get("reason")}
            for k, c in evaluation.get("controls", {}).items()
        },
        "diversity": metrics.get("diversity", {}).get("value"),
        "copying": spaced("copying"),
        "nearest_training": spaced("nearest_training_ratio"),
        "folded": metrics.get("folded", {}).get("value"),
        **{name: spaced(name) for name in _COMPARED},
        **{f"{name}_{k}": spaced(name, k) for name in _COMPARED for k in ("interval", "floor")},
    }


def _differs(found: Entry, report: dict[str, Any]) -> list[str]:
    """Where a run is not what the report says of it, in words."""
    out, accuracy, diversity = [], found["disc_fake"], found["diversity"]
    known = report["accuracy"] >= 0 and accuracy is not None
    if known and abs(accuracy - report["accuracy"]) > _DIFFERS:
        out.append(f"D on fakes {accuracy:.0%}, in the report {report['accuracy']:.0%}")
    if report["collapse"] and diversity is not None and diversity >= COLLAPSED:
        out.append(f"no collapse: diversity {diversity:.2f}")
    return out


def write(folder: Path, entries: list[Entry], settings: dict[str, Any]) -> None:
    """Writes `results.json` and `results.csv`, each whole or not at all."""
    whole = {"deformgan": __version__, "study": settings, "rows": entries}
    text = json.dumps(whole, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / "results.json", text)
    stream = io.StringIO(newline="")
    names = [*COLUMNS, *(f"{name}_{k}" for name in _COMPARED for k in ("interval", "floor"))]
    names += ["status", "reason", "differs", "method", "steps", "split", "held_out_seed"]
    writer = csv.DictWriter(stream, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in entries:
        compared = {key: _around(one, key) for key in names if key.endswith("_interval")}
        words = {"differs": "; ".join(one.get("differs", ()))}
        writer.writerow(one | cells(one) | compared | words)
    write_atomically(folder / "results.csv", stream.getvalue())


def cells(one: Entry) -> dict[str, str]:
    """The columns of an entry as short text, '' where there is nothing."""
    shown = {name: one.get(name) for name in COLUMNS}
    shown["n"] = " / ".join(map(_number, one.get("n") or ()))
    shown["interval"] = _around(one, "interval")
    tried = {k: c for k, c in one.get("controls", {}).items() if c["caught"] is not None}
    caught = sum(bool(c["caught"]) for c in tried.values())
    shown["controls"] = f"{caught} of {len(tried)}" if tried else ""
    return {k: v if isinstance(v, str) else _number(v) for k, v in shown.items()}


def print_table(entries: list[Entry]) -> None:
    """Prints a line for each run, 'not run' and why where there is none, then what differs."""
    table = Table(box=None, pad_edge=False, header_style="")
    for name, heading in COLUMNS.items():
        side: Any = "left" if name in ("row", "test") else "right"
        table.add_column(heading, justify=side, no_wrap=True)
    reasons: dict[str, list[str]] = {}
    for one in entries:
        label = f"{one['row']} {one['seed']}"
        if one["status"] == "done":
            table.add_row(*cells(one).values())
        else:
            table.add_row(one["row"], str(one["seed"]), "", one["status"])
        if one["status"] != "done" and one["reason"]:
            reasons.setdefault(f"{one['status']}: {one['reason']}", []).append(label)
    console = Console(width=max(280, Console().width), highlight=False, soft_wrap=True)
    console.print(table)
    for reason, labels in reasons.items():
        say(f"{reason}: {', '.join(labels)}")
    for one in entries:
        for words in one.get("differs", ()):
            say(f"not as in the report: {one['row']} {one['seed']}: {words}")


def _around(one: Entry, key: str) -> str:
    return " to ".join(map(_number, one.get(key) or ()))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def records(one: Entry) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` of a run that has begun; empty if it has not."""
    with contextlib.suppress(OSError):
        return read_metrics(Workdir(one["folder"], create=False))
    return []
