"""Which recordings are of which animal: one of several in a set, each with a source of its own."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence

import numpy as np

from deformgan.data.source_image import Source
from deformgan.errors import UserError

EACH = "each"  # the setting by which every recording is an animal
_FEWEST = 2  # training images that a template needs
_NAMED = 5  # recordings in a message, at most

Members = dict[str, list[int]]  # indices of frames by the name of their animal


@dataclasses.dataclass(frozen=True)
class Animal:
    """One animal of a set.

    Attributes:
      name: as `fit.animals` gives it; '' where all images are of one.
      train: `[n]` int, which training images are of it.
      source: the image that its template starts from.
    """

    name: str
    train: np.ndarray
    source: Source


def chosen(recordings: Sequence[str], wanted: str, key: str) -> list[int]:
    """Indices of the frames whose recording one of the patterns `wanted` names.

    Raises:
      UserError: for a pattern that names none; it begins with the setting `key`.
    """
    patterns = _listed(wanted)
    known = sorted(set(recordings))
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
            raise UserError(
                f"{key}: no recording is called {pattern!r}; there are"
                f" {', '.join(map(repr, known[:_NAMED]))}{more}"
            )
    return [i for i, own in enumerate(recordings) if any(fnmatch.fnmatch(own, p) for p in patterns)]


def members(recordings: Sequence[str], wanted: str) -> Members:
    """The frames of each animal.

    Args:
      recordings: the recording of each frame.
      wanted: `fit.animals`: a pattern an animal, joined by commas; `each`; '' for one of all.

    Raises:
      UserError: unless every recording is of exactly one animal, and none is a single image.
    """
    if not wanted:
        return {"": list(range(len(recordings)))}
    if wanted == EACH:
        out: Members = {}
        for i, recording in enumerate(recordings):
            out.setdefault(recording, []).append(i)
        if len(out) == len(recordings):
            raise UserError(
                "fit.animals: each of these images is a recording of its own, so that 'each' would"
                " make every image an animal; give a pattern an animal, or '' for one of all"
            )
        return out
    patterns = _listed(wanted)
    chosen(recordings, wanted, "fit.animals")
    for recording in dict.fromkeys(recordings):
        named = [pattern for pattern in patterns if fnmatch.fnmatch(recording, pattern)]
        if len(named) != 1:
            what = "several patterns match" if named else "no pattern matches"
            raise UserError(
                f"fit.animals: {what} the recording {recording!r} ({wanted}); each recording is of"
                " one animal (data.recordings leaves some out)"
            )
    return {pattern: chosen(recordings, pattern, "fit.animals") for pattern in patterns}


def told_apart(
    of_each: Members,
    train: Sequence[int],
    source: Source,
    names: Sequence[str],
    start: Callable[[list[int]], Source],
) -> tuple[Animal, ...]:
    """The animals of a set, each with the image that its template starts from.

    That is `source` for the animal it shows, and for all of them if it is no frame of the set.

    Args:
      of_each: as `members` gives it.
      train: the frame that each training image is.
      source: that `source.image` names.
      names: of all frames.
      start: the source of an animal that `source` does not show, of its training frames.

    Raises:
      UserError: naming an animal with fewer than 2 training images.
    """
    place = {frame: i for i, frame in enumerate(train)}
    own_train = {name: [i for i in own if i in place] for name, own in of_each.items()}
    for name, own in own_train.items():
        if len(own) < _FEWEST:
            raise UserError(
                f"fit.animals: {name!r} has {len(own)} training images, of"
                f" {len(of_each[name])} in all; {_FEWEST} or more are needed: leave it out with"
                " data.recordings, or lower data.validation and data.test"
            )
    shown = names.index(source.name) if source.name in names else None
    out = []
    for name, own in own_train.items():
        shared = len(of_each) == 1 or shown is None or shown in of_each[name]
        which = np.array([place[i] for i in own])
        out.append(Animal(name, which, source if shared else start(own)))
    return tuple(out)


def _listed(patterns: str) -> list[str]:
    return [pattern.strip() for pattern in patterns.split(",")]
