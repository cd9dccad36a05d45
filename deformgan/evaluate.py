"""--mode=evaluate: judges a run on its held-out frames, or any two sets of images."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console
from rich.table import Table

from deformgan import __version__, intake, page, parallel, predictions, subject_files, subjects
from deformgan.checkpoint import Checkpoints, Sampler
from deformgan.errors import UserError, resolve
from deformgan.judge import CONTROLS, check, judge
from deformgan.log import progress, read_metrics, say
from deformgan.metrics.subject import Passes, Subject
from deformgan.sample import generate
from deformgan.verdict import Report
from deformgan.workdir import Workdir


def run(path: str, config: ml_collections.ConfigDict | None, *, step: str) -> page.Pictures:
    """Judges the run in the folder `path` on its test frames.

    Args:
      path: the workdir of a trained run.
      config: its `evaluate` block is used, and of all else the run's own; None for that alone.
      step: of the checkpoint: a number, 'newest' or 'best'.

    Returns:
      The pictures of the report.

    Raises:
      UserError: if there is no checkpoint, or the data are not those of the run.
    """
    start = time.monotonic()
    parallel.keep_compilations()
    workdir = Workdir(path, create=False)
    own = workdir.config()
    if config is not None:
        own.evaluate = config.evaluate
        say("evaluate settings as given, all others those of the run")
    check(own.evaluate)
    checkpoints = Checkpoints(workdir.checkpoints, best=own.checkpoint.best, writable=False)
    sampler = checkpoints.sampler(step)
    checkpoints.close()
    say(f"evaluating step {sampler.step} of {workdir.root} on {parallel.describe()}")
    with workdir.writing():
        dataset = intake.load(own, workdir)
    if dataset.digest() != sampler.meta["frames"]:
        raise UserError(
            "data.path: the frames are no longer split as when this run was trained, so held-out"
            " ones may have been trained on; restore the data"
        )
    usable, _ = subjects.usable_frames(dataset)
    if len(usable) < 2:
        raise UserError(
            f"data.test: {len(usable)} frames were held out of which the source image tells"
            " nothing; train with a larger data.test"
        )
    num, seed, conditions = min(len(usable), own.evaluate.count), own.evaluate.seed, None
    if dataset.conditions is not None:
        chosen, _ = subjects.judged_frames(dataset, num, seed)
        conditions = predictions.Chosen(dataset.conditions.test, chosen)
    drawing = functools.partial(_drawing, sampler)
    with progress(f"sampling {num} images", total=num) as advance:
        parts = drawing(own)(seed=seed, num=num, conditions=conditions)
        found = sampler.constants.get("velocity")
        subject = subjects.of_run(dataset, parts, own, advance, train_velocity=found)
    if conditions is not None:
        subject = dataclasses.replace(subject, passes=_passes(drawing, conditions, own))
    with workdir.writing():
        report = judge(subject, own.evaluate, encoder=workdir.local / "encoder.safetensors")
    made = "samples" if conditions is None else "predictions"
    about = {
        "kind": "run",
        "real": f"test frames of {own.data.source}:{own.data.path or own.data.set}".rstrip(":"),
        "fake": f"{made} of step {sampler.step} of {workdir.root}",
        "split": "test",
        "objective": own.objective,
        "checkpoint": sampler.step,
    }
    return finish(workdir, own, report, subject, about, start)


def _drawing(sampler: Sampler, config: ml_collections.ConfigDict) -> Callable[..., Any]:
    """`generate` with the generator of a checkpoint."""
    create = resolve("objective", "deformgan.objectives", config.objective, "create").create
    return functools.partial(generate, create(config), sampler.variables, sampler.constants)


def _passes(
    drawing: Callable[[ml_collections.ConfigDict], Callable[..., Any]],
    conditions: predictions.Chosen,
    config: ml_collections.ConfigDict,
) -> Passes | None:
    """Repeated predictions of some inputs, dropout on, of a generator of orientations with it."""
    count = config.evaluate.get("passes", 0)
    if not (count and config.model.get("dropout", 0) and predictions.oriented(config)):
        return None
    varied = config.copy_and_resolve_references()
    varied.model.test_dropout = True
    which = predictions.repeated(len(conditions), count)
    again, seed = predictions.Chosen(conditions, which), config.evaluate.seed + 1
    with progress(f"{count} passes of {len(which) // count} inputs", total=len(which)) as advance:
        parts = drawing(varied)(seed=seed, num=len(which), conditions=again)
        return predictions.gathered(parts, which, count, advance)


def run_on_files(
    path: str, config: ml_collections.ConfigDict, *, real: str, fake: str, train: str
) -> None:
    """Judges the images in `fake` by those in `real`, whoever made them.

    Args:
      path: folder to write to; must hold no run and no evaluation.
      config: its `evaluate` block is used.
      real: folder, TIFF stack or .npz file of held-out real images.
      fake: the same of generated ones, of the same size and depth.
      train: the same of the images the generator was trained on, or ''.

    Raises:
      UserError: if images cannot be read or do not fit together.
    """
    start = time.monotonic()
    parallel.keep_compilations()
    check(config.evaluate)
    for flag, value in (("real", real), ("fake", fake)):
        if not value:
            raise UserError(f"{flag}: not set; --real=A and --fake=B go together")
    workdir = Workdir(path, create=True)
    for name in ("config.json", "evaluation.json"):
        if (workdir.root / name).exists():
            raise UserError(f"workdir: {path} holds {name}; choose another --workdir=DIR")
    subject = subject_files.read({"real": real, "fake": fake, "train": train}, config)
    report = judge(subject, config.evaluate)
    about = {"kind": "files", "real": real, "fake": fake, "train": train, "split": "as given"}
    finish(workdir, config, report, subject, about, start)


def finish(
    workdir: Workdir,
    config: ml_collections.ConfigDict,
    report: Report,
    subject: Subject,
    about: dict[str, Any],
    start: float,
) -> page.Pictures:
    """Writes `evaluation.json` and `report.html`, prints the table, returns the pictures.

    Args:
      workdir: to write to.
      config: of the run.
      report: as `judge` gives it.
      subject: what was judged.
      about: of the subject: `kind`, `real` and `fake` in words, `split`.
      start: by the monotonic clock.
    """
    sets = {"real": subject.real, "fake": subject.fake, "train": subject.train}
    about["images"] = {name: len(images) for name, images in sets.items() if images is not None}
    about["size"] = list(subject.real.stored.shape[1:])
    about["blocks"] = len(np.unique(subject.real.blocks))
    judged = (report["metrics"], report["tests"], report["controls"])
    for score in (entry for part in judged for entry in part.values()):
        score["split"] = about["split"]
    report |= {
        "deformgan": __version__,
        "subject": about,
        "seed": subject.seed,
        "devices": parallel.describe(),
        "seconds": round(time.monotonic() - start, 1),
    }
    _print_table(report)
    with workdir.writing():
        workdir.write_json("evaluation.json", report)
        pictures = subjects.gallery(subject)
        page.of_run(workdir, config, read_metrics(workdir), pictures, report)
        workdir.close()
    say(f"  numbers   {workdir.root / 'evaluation.json'}")
    say(f"  report    {workdir.root / 'report.html'}")
    return pictures


def _print_table(report: Report) -> None:
    """One table of everything, then what is missing, the verdict and the warnings."""
    table = Table(box=None, pad_edge=False, header_style="")
    missing: dict[str, list[str]] = {}

    def add(label: str, entry: Report, key: str, floor: float | None, ideal: float | None) -> None:
        if "reason" in entry:
            missing.setdefault(entry["reason"], []).append(label)
        else:
            table.add_row(*_row(label, entry, key, floor, ideal))

    for column in ("score", "value", "95% interval", "floor", "ideal", "n"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for name, test in report["tests"].items():
        floor = test.get("floor", {}).get("accuracy")
        add(f"two-sample test, {name}: accuracy", test, "accuracy", floor, 0.5)
    for name, control in report["controls"].items():
        seen = {True: " (caught)", False: " (NOT caught)"}.get(control.get("caught"), "")
        kind = "control" if name in CONTROLS else "baseline"
        label = f"{kind}, {name.replace('_', ' ')}{seen}"
        add(label, control, "accuracy", None, 1.0)
    for score in report["metrics"].values():
        label = score["label"] + (f", {score['unit']}" if score["unit"] else "")
        add(label, score, "value", score["floor"], score["ideal"])
    console = Console(width=max(120, Console().width), highlight=False, soft_wrap=True)
    console.print(table)
    for reason, labels in missing.items():
        say(f"{reason}: {'; '.join(labels)}")
    say(f"\n{report['verdict']['words']}")
    for warning in report["warnings"]:
        say(f"warning: {warning}")


def _row(
    label: str, entry: Report, key: str, floor: float | None, ideal: float | None
) -> list[str]:
    value = _number(entry[key])
    if entry.get("spread") is not None:
        value += f" ± {_number(entry['spread'])}"
    if entry.get("quartiles") is not None:
        value += f" ({' to '.join(map(_number, entry['quartiles']))})"
    interval = entry.get("interval")
    around = "" if interval is None else " to ".join(map(_number, interval))
    n = " / ".join(map(str, entry.get("n", ())))
    return [label, value, around, _number(floor), _number(ideal), n]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
