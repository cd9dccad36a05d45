"""Splitting frames into training, validation and test ones, by recording or by block of time.

Never by random frame: consecutive frames of a recording are near copies, and a score on copies of
the training frames is no score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SPLITS = ("train", "validation", "test")
_FEWEST_RECORDINGS = 5  # with fewer, each is cut into blocks of time
_BLOCKS = 30  # of time, that a recording is cut into: 6 of them a test split of a fifth


def blocks(recordings: Sequence[str], moments: Sequence[int]) -> list[int]:
    """The block that each frame belongs to: its recording, or a thirtieth of it where few exist."""
    names = list(dict.fromkeys(recordings))
    if len(names) >= _FEWEST_RECORDINGS:
        number_of = {name: number for number, name in enumerate(names)}
        return [number_of[r] for r in recordings]
    out = [0] * len(recordings)
    first = 0
    for name in names:
        own = [i for i, r in enumerate(recordings) if r == name]
        times = list(dict.fromkeys(moments[i] for i in own))
        parts = np.array_split(times, min(_BLOCKS, len(times)))
        block = {time: first + number for number, part in enumerate(parts) for time in part}
        for i in own:
            out[i] = block[moments[i]]
        first += len(parts)
    return out


def assign(
    recordings: Sequence[str], moments: Sequence[int], *, validation: float, test: float, seed: int
) -> tuple[list[str], list[int]]:
    """Assigns whole blocks to splits.

    Args:
      recordings: the recording of each frame, frames in time order.
      moments: equal for frames of the same moment, which stay together.
      validation: share of the blocks for validation, rounded; may come to none.
      test: share of the blocks for the test; if it is not 0, at least one block of two, and two of
        five or more: with fewer nothing can be judged.
      seed: of the permutation of blocks.

    Returns:
      The split of each frame, one of `SPLITS`, and the block of each frame.
    """
    block = blocks(recordings, moments)
    count = max(block) + 1
    n_test = min(count - 1, max(2 if count >= 5 else 1, round(test * count))) if test else 0
    n_validation = min(count - 1 - n_test, round(validation * count))
    order = np.random.default_rng(seed).permutation(count)
    split = np.full(count, "train", object)
    split[order[:n_test]] = "test"
    split[order[n_test : n_test + n_validation]] = "validation"
    return [split[b] for b in block], block
