"""What a run says: JSON lines, TensorBoard events, a progress bar or plain lines."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter

from deformgan import parallel
from deformgan.workdir import Workdir, write_atomically

Advance = Callable[[int], None]
_SHOWN = {
    "D real": "disc/accuracy_real",
    "D fake": "disc/accuracy_fake",
    "MSE": "mse",
    "axial error": "axial_error",
    "diversity": "diversity",
    "folded": "folded",
    "steps/s": "steps_per_second",
}


def say(message: str) -> None:
    """Prints a line at once, from one process only."""
    if parallel.is_main():
        print(message, flush=True)


@contextmanager
def progress(label: str, *, total: int | None = None, quiet: bool = False) -> Iterator[Advance]:
    """Shows that something runs: a bar on a terminal, a line elsewhere.

    Args:
      label: what runs.
      total: units of work, or None if it is not known how far it is.
      quiet: show nothing.

    Yields:
      a function to be called with the units just done.
    """
    if quiet or not parallel.is_main():
        yield lambda units: None
    elif not sys.stdout.isatty():
        say(f"  {label} ...")
        yield lambda units: None
    else:
        columns = (TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda units: bar.advance(task, units)


def hush_writers() -> None:
    """Keeps the threads that write checkpoints and events from printing tracebacks of their own.

    A failed write is raised in the main thread by the next save; TensorStore's other writes then
    find their event loop closed, and say so through these hooks, many at a time.
    """
    usual, usual_thread = sys.unraisablehook, threading.excepthook

    def expected(error: BaseException | None) -> bool:
        return isinstance(error, OSError) or str(error) == "Event loop is closed"

    sys.unraisablehook = lambda e: None if expected(e.exc_value) else usual(e)
    threading.excepthook = lambda e: None if expected(e.exc_value) else usual_thread(e)


class Log:
    """Writes metrics to `metrics.jsonl` and TensorBoard, and shows progress.

    On resuming, what was logged after the checkpoint is taken back, since it is done again.
    """

    def __init__(self, workdir: Workdir, *, start: int, total: int) -> None:
        self._total = total
        self._file = workdir.local / "metrics.jsonl"
        self.records = [r for r in read_metrics(workdir) if r["step"] <= start]
        self._main = parallel.is_main()
        if self._main:
            text = "".join(json.dumps(r) + "\n" for r in self.records)
            write_atomically(self._file, text)
            logging.getLogger("tensorboardX").setLevel(logging.ERROR)
            self._events = SummaryWriter(str(workdir.local), purge_step=start + 1)
        self._bar: Progress | None = None
        self._clock = time.monotonic()
        self._step = start

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Logs scalars of `step`."""
        now = time.monotonic()
        rate = (step - self._step) / max(now - self._clock, 1e-9)
        self._clock, self._step = now, step
        record = {"step": step, **metrics, "steps_per_second": round(rate, 3)}
        self.records.append(record)
        if not self._main:
            return
        with self._file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._events.add_scalar("steps_per_second", rate, step)
        shown = _line(record)
        if self._bar:
            self._bar.update(self._task, completed=step)
            self._bar.console.print(f"step {step}  {shown}", highlight=False)
        else:
            left = (self._total - step) / rate if rate else 0.0
            say(f"step {step}/{self._total}  {shown}  {_minutes(left)} left")

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Shows a bar below the lines while training, if this is a terminal."""
        if not (self._main and sys.stdout.isatty()):
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns) as self._bar:
            self._task = self._bar.add_task("training", total=self._total, completed=self._step)
            yield
        self._bar = None

    def restart_clock(self, step: int) -> None:
        """Leaves what came before `step` (compiling, say) out of the next steps per second."""
        self._clock, self._step = time.monotonic(), step

    def close(self) -> None:
        """Flushes the events."""
        if self._main:
            self._events.close()


def read_metrics(workdir: Workdir) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line cut off by a crash is left out."""
    file = workdir.local / "metrics.jsonl"
    records = []
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _line(record: dict[str, Any]) -> str:
    """What of a record is shown; of predictions the error in place of diversity."""
    hidden = "diversity" if "mse" in record else ""
    found = {k: record[v] for k, v in _SHOWN.items() if v in record and v != hidden}
    return "  ".join(f"{k} {v:.3g}" if v < 1000 else f"{k} {v:.0f}" for k, v in found.items())


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
