"""The folder of a run: its config, its place on disk or in a bucket, what may change on resuming.

`config.json`, `checkpoints/<step>/`, `metrics.jsonl`, `samples/`, `screening.csv`, `split.json`,
`evaluation.json`, `report.html` and TensorBoard events. Files are written to `local`; for a bucket
that is a temporary folder which `publish` copies from, since files in a bucket cannot be appended
to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections
from etils import epath

from deformgan import locks, parallel
from deformgan.errors import UserError

# Settings that do not change what is computed, only how far, how fast and what is written of it.
_FREE = ("train.steps", "train.steps_per_call", "log.", "checkpoint.", "evaluate.")


class Workdir:
    """A run's folder, made and found writable, or `UserError`."""

    def __init__(self, path: str, *, create: bool) -> None:
        self._remote = "://" in path
        self._sent: dict[Path, int] = {}
        try:
            self.root = epath.Path(path)
            if create:
                self.root.mkdir(parents=True, exist_ok=True)
            if self._remote:
                self.local = Path(tempfile.mkdtemp(prefix="deformgan-"))
                self._fetch(
                    ("config.json", "metrics.jsonl", "evaluation.json", "encoder.safetensors")
                )
            else:
                self.local = Path(path)
            if create:
                probe = self.local / f".writable-{os.getpid()}"
                probe.write_text("")
                probe.unlink()
                (self.local / "samples").mkdir(exist_ok=True)
        except KeyError as error:  # how etils says that it knows no such file system
            raise UserError(
                f"workdir: {path} is no place that can be written to; give a folder or gs://BUCKET"
            ) from error
        except ImportError as error:  # of a bucket's file system
            raise UserError(
                f"workdir: {path} needs the extra gcs: pip install -e '.[gcs]' ({error})"
            ) from error
        except OSError as error:
            raise UserError(
                f"workdir: cannot write to {path} ({error.strerror or error}); choose another with"
                " --workdir=DIR"
            ) from error

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Keeps other processes from training here; of the processes of one run, the main one does.

        Raises:
          UserError: if another process does. Not for a bucket, which has no locks.
        """
        if self._remote or not parallel.is_main():
            yield
            return
        file = self.local / ".lock"
        with locks.claim(file) as mine:
            if not mine:
                raise UserError(
                    f"workdir: {self.root} is being trained in by {locks.holder(file)}; wait until"
                    " it ends, or choose another --workdir=DIR"
                )
            yield

    @property
    def checkpoints(self) -> epath.Path:
        """Where orbax keeps one folder a step."""
        return self.root / "checkpoints"

    def write_json(self, name: str, value: Any) -> None:
        """Writes `value` whole or not at all."""
        write_atomically(self.local / name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turns a failure to write into this folder into a `UserError`."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"workdir: cannot write to {self.root} ({error.strerror or error}); free some"
                " space, or see who may write there"
            ) from error

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote under this name, or None if that is absent or damaged."""
        file = self.local / name
        try:
            return json.loads(file.read_text()) if file.is_file() else None
        except ValueError:
            return None

    def check_space(self, needed: int) -> None:
        """Raises `UserError` unless the disk of this folder has `needed` bytes free."""
        free = shutil.disk_usage(self.local).free
        if free < needed:
            raise UserError(
                f"workdir: the disk of {self.root} has {free / 2**20:.1f} MiB free, but the"
                f" checkpoints take {needed / 2**20:.1f} MiB; free some space or choose another"
                " --workdir=DIR"
            )

    def publish(self) -> None:
        """Copies what is new or changed to the bucket, from one process; a disk needs nothing."""
        if not (self._remote and parallel.is_main()):
            return
        for file in self.local.rglob("*"):
            if file.is_file() and self._sent.get(file) != file.stat().st_mtime_ns:
                target = self.root / str(file.relative_to(self.local))
                target.parent.mkdir(parents=True, exist_ok=True)
                self._sent[file] = file.stat().st_mtime_ns
                target.write_bytes(file.read_bytes())

    def config(self) -> ml_collections.ConfigDict:
        """The config this run was started with."""
        file = self.local / "config.json"
        if not file.is_file():
            raise UserError(
                f"workdir: {self.root} holds no run (no config.json); give the folder of a trained"
                " run with --workdir=DIR"
            )
        try:
            return ml_collections.ConfigDict(json.loads(file.read_text()))
        except (ValueError, OSError) as error:
            raise UserError(f"workdir: {file} is damaged ({error}); restore it") from error

    def check_same(self, config: ml_collections.ConfigDict) -> None:
        """Raises `UserError` unless `config` computes the same as the run in this folder."""
        old, new = flat(to_json(self.config())), flat(to_json(config))
        missing = "(absent)"
        changed = [
            f"{key} was {old.get(key, missing)!r}, now {new.get(key, missing)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, missing) != new.get(key, missing) and not key.startswith(_FREE)
        ]
        if changed:
            raise UserError(
                f"workdir: {self.root} holds a run with other settings ({'; '.join(changed)}); set"
                " them back to go on with it, or choose another --workdir=DIR"
            )

    def _fetch(self, names: tuple[str, ...]) -> None:
        for name in names:
            if (self.root / name).exists():
                (self.local / name).write_bytes((self.root / name).read_bytes())

    def close(self) -> None:
        """Publishes what is left and removes the temporary folder of a bucket."""
        self.publish()
        if self._remote:
            shutil.rmtree(self.local, ignore_errors=True)


def write_atomically(file: Path, text: str) -> None:
    """Writes a file that is either the old one or the new one, whenever the process dies."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(file)


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as JSON gives it back: tuples as lists."""
    plain: dict[str, Any] = json.loads(config.to_json())
    return plain


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value
    return out
