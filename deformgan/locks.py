"""Locks that the system lets go of when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def claim(file: Path) -> Iterator[bool]:
    """Whether this process may run what the lock stands for; true in one process at a time."""
    with file.open("a+") as stream:
        if not _locked(stream, fcntl.LOCK_EX, tries=5):  # `holder` holds it for a moment
            yield False
            return
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {platform.node()}")
        stream.flush()
        yield True
        stream.truncate(0)


def holder(file: Path) -> str:
    """The process that holds a lock, in words, or ''; what a dead one left is no lock."""
    if not file.exists():
        return ""
    with file.open() as stream:
        free = _locked(stream, fcntl.LOCK_SH, tries=1)
        return "" if free else stream.read() or "another process"


def _locked(stream: TextIO, kind: int, *, tries: int) -> bool:
    for left in reversed(range(tries)):
        try:
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.1 * bool(left))
        except OSError:  # a file system without locks
            return True
    return False
