"""--mode=study: trains and judges every row of a table with every seed, and sums up.

A row and seed have a folder of their own below the workdir, an ordinary run with `result.json`
beside its evaluation, so that a study can be stopped, gone on with and shared by processes: each
claims what it runs by a lock that the system lets go of when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from deformgan import evaluate, locks, results, study_page, superpose, train
from deformgan.errors import RunError, UserError
from deformgan.log import say
from deformgan.page import Pictures
from deformgan.workdir import flat, to_json, write_atomically

_RESULT = "result.json"


@dataclasses.dataclass(frozen=True)
class Job:
    """One row of the table with one seed.

    Attributes:
      name: of the row.
      seed: of networks, simulated images and splits.
      row: its line of the table.
      config: complete, for training.
      root: folder of the study.
    """

    name: str
    seed: int
    row: ConfigDict
    config: ConfigDict
    root: Path

    @property
    def folder(self) -> Path:
        """The workdir of its run."""
        return self.root / self.name / str(self.seed)

    @property
    def lock(self) -> Path:
        """Held by the process that runs it."""
        return self.root / "locks" / f"{self.name}-{self.seed}"

    def result(self) -> dict[str, Any]:
        """What became of it: `status`, `reason`, `seconds` and `config`; empty if not run."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.folder / _RESULT).read_text())
            return found
        return {}

    def write(self, status: str, seconds: dict[str, float], reason: str = "") -> None:
        """Writes `result.json`."""
        found = {"status": status, "reason": reason, "seconds": seconds}
        found["config"] = to_json(self.config)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / _RESULT, json.dumps(found, indent=2, sort_keys=True) + "\n")

    def done(self) -> bool:
        """Whether it was trained and judged, by these settings."""
        found = self.result()
        return found.get("status") == "done" and found["config"] == to_json(self.config)


def run(config: ConfigDict, path: str) -> None:
    """Runs what is not done of the study in the folder `path`, and writes what there is so far.

    A row that fails is recorded with its reason, and tried again by the next run of the command.

    Args:
      config: of configs/study.py.
      path: the folder of the study.

    Raises:
      UserError: for a table that names what does not exist, or a folder that cannot be written to.
      Interrupted: on SIGTERM or Ctrl-C while training, after saving.
    """
    if "://" in path:
        raise UserError(f"workdir: {path}; a study is kept in a folder, copy it to a bucket later")
    jobs = plan(config, Path(path))
    began = time.time()
    try:
        (Path(path) / "locks").mkdir(parents=True, exist_ok=True)
        _summarise(config, path, jobs)
        left = sum(not job.done() for job in jobs)
        say(f"study: {len(jobs)} runs, {left} to do, in {path}")
        try:
            # Again and again: what a row waits for may meanwhile be done, by whichever process.
            while any([_attempt(config, path, jobs, job, began) for job in jobs]):
                pass
        finally:
            entries = _summarise(config, path, jobs)
    except OSError as error:
        raise UserError(
            f"workdir: cannot write to {path} ({error.strerror or error}); free some space or"
            " choose another --workdir=DIR"
        ) from error
    results.print_table(entries)
    say(f"\n  numbers   {Path(path) / 'results.json'}, results.csv\n  page      {path}/study.html")


def plan(config: ConfigDict, root: Path) -> list[Job]:
    """The runs asked for, in order: the first rows with all seeds, then a seed of all others."""
    chosen = _chosen(tuple(config.study.order), config.study.only)
    seeds = list(dict.fromkeys(config.study.seeds))
    if not seeds or min(seeds) < 0:
        raise UserError("study.seeds: give one or more, 0 or above")

    def jobs(first: bool) -> list[Job]:
        names = [name for name in chosen if config.rows[name].first == first]
        return [_job(config, name, seed, root) for seed in seeds for name in names]

    return jobs(True) + jobs(False)


def _chosen(names: tuple[str, ...], only: str) -> list[str]:
    """The names that are one of the comma-joined patterns, or failing that hold or match one."""
    wanted: set[str] = set()
    for pattern in filter(None, only.split(",")):
        found = {name for name in names if fnmatch.fnmatch(name, f"*{pattern}*")}
        if not found:
            raise UserError(f"study.only: {pattern!r} is in no row; there are {', '.join(names)}")
        wanted |= {pattern} if pattern in names else found
    return [name for name in names if name in wanted or not only]


def _job(config: ConfigDict, name: str, seed: int, root: Path) -> Job:
    row, study = config.rows[name], config.study
    if row.method not in config.methods:
        raise UserError(
            f"rows.{name}.method: {row.method!r} is none of {', '.join(config.methods)}"
        )
    for part in row.parts:
        if part not in config.rows:
            raise UserError(f"rows.{name}.parts: {part!r} is no row")
    own = ConfigDict(config.methods[row.method].to_dict()).lock()
    try:
        own.update_from_flattened_dict(flat(row.changes.to_dict()))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"rows.{name}.changes: {' '.join(str(error).split())}") from error
    own.seed = own.data.seed = seed
    if own.data.source in ("simulated", "pli"):
        count = study.train + study.validation
        own.data.update(count=count, validation=study.validation / count)
        own.data.update(held_out=study.held_out, held_out_seed=study.held_out_seed)
    elif own.data.path:
        data = study.data or os.environ.get("DEFORMGAN_DATA", "../shared/data")
        own.data.path = str(Path(data) / own.data.path)
    return Job(name, seed, row, own, root)


def _attempt(config: ConfigDict, path: str, jobs: list[Job], job: Job, began: float) -> bool:
    """Runs a job unless it is done, has just failed, is run elsewhere or cannot be run yet."""

    def idle() -> bool:
        return bool(job.done() or _missing(config, job) or _failed_since(job, began))

    if idle():
        return False
    with locks.claim(job.lock) as mine:
        if not mine or idle():
            return False
        say(f"\n{job.name}, seed {job.seed}")
        _perform(job)
    jax.clear_caches()  # compiled programs of a run serve no other, and hold its arrays
    _summarise(config, path, jobs)
    return True


def _perform(job: Job) -> None:
    """Trains and judges, and writes what came of it; time adds up over interruptions."""
    seconds = {"train": 0.0, "evaluate": 0.0} | job.result().get("seconds", {})
    start, part = time.monotonic(), "train"
    job.write("interrupted", seconds)

    def passed() -> dict[str, float]:
        return seconds | {part: seconds[part] + round(time.monotonic() - start, 1)}

    try:
        if not job.row.parts:
            train.run(job.config, str(job.folder))
        seconds, start, part = passed() | {"evaluate": 0.0}, time.monotonic(), "evaluate"
        _draw(job, _judge(job))
    except (UserError, RunError) as error:
        say(f"{job.name}, seed {job.seed}, failed: {error}")
        job.write("failed", passed(), str(error))
    except BaseException:
        job.write("interrupted", passed())
        raise
    else:
        job.write("done", passed())


def _judge(job: Job) -> Pictures:
    if not job.row.parts:
        return evaluate.run(str(job.folder), job.config, step="newest")
    parts = [str(job.root / part / str(job.seed)) for part in job.row.parts]
    return superpose.run(str(job.folder), job.config, parts)


def _draw(job: Job, pictures: Pictures) -> None:
    (job.folder / "strip.png").write_bytes(study_page.strip(pictures))


def _missing(config: ConfigDict, job: Job) -> str:
    """Why a job cannot be run now, or ''."""
    data = job.config.data
    if data.path and not Path(data.path).exists():
        return f"no data at {data.path} (set DEFORMGAN_DATA)"
    for part in job.row.parts:
        if not _job(config, part, job.seed, job.root).done():
            asked = _chosen(tuple(config.study.order), config.study.only)
            left_out = "" if part in asked else ", and study.only leaves it out"
            return f"needs {part}, seed {job.seed}, which is not done{left_out}"
    return ""


def _failed_since(job: Job, began: float) -> bool:
    file = job.folder / _RESULT
    return job.result().get("status") == "failed" and file.stat().st_mtime >= began


def _summarise(config: ConfigDict, path: str, jobs: list[Job]) -> list[results.Entry]:
    """Writes `results.json`, `results.csv` and `study.html` from what lies in the folders.

    Rows that this run leaves out stay in them, if they were run before.
    """
    others = _run_before(config, Path(path), {job.folder for job in jobs})
    entries = [_entry(config, job) for job in [*jobs, *others]]
    results.write(Path(path), entries, to_json(config.study))
    study_page.write(Path(path), entries, to_json(config.study))
    return entries


def _run_before(config: ConfigDict, root: Path, asked: set[Path]) -> list[Job]:
    """The runs below `root` that are not asked for now, in the order of the table."""
    folders = {file.parent for file in root.glob(f"*/[0-9]*/{_RESULT}")} - asked
    return [
        _job(config, name, seed, root)
        for name in config.study.order
        for seed in sorted(int(own.name) for own in folders if own.parent.name == name)
    ]


def _entry(config: ConfigDict, job: Job) -> results.Entry:
    found = job.result()
    status, reason = found.get("status", "not run"), found.get("reason", "")
    if status == "done" and not job.done():
        status, reason = "not run", f"{job.folder} was run with other settings; set them back"
    elif status in ("not run", "interrupted"):
        reason = _missing(config, job)
        if holder := locks.holder(job.lock):
            status, reason = "running", f"by {holder}"
    known = {"row": job.name, "method": job.row.method, "seed": job.seed}
    data = job.config.data  # simulated images are judged by fresh ones, others by a share of them
    known["held_out_seed"] = data.held_out_seed if data.held_out else None
    known |= {"status": status, "reason": reason, "folder": str(job.folder)}
    seconds = found.get("seconds", {})
    return results.entry(known, job.folder, job.row.report.to_dict(), seconds)
