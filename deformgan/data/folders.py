"""Pairs in two folders: targets below one, inputs of the same names below the other."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

import ml_collections

from deformgan.data import folder
from deformgan.data.frames import Frame, Frames
from deformgan.data.pairs import given_channels, input_of
from deformgan.errors import UserError

input_channels = given_channels  # by which it is known for a source of pairs
_NAME = re.compile(r"(?P<stem>.+)\.[^./]+?(?P<page>#\d+)?")  # as `folder` names an image


def read(config: ml_collections.ConfigDict) -> Frames:
    """Lists the targets below `data.path` and finds the input of each below `data.input_path`.

    They match by their path in either folder, without the suffix, and by the page of a stack.

    Raises:
      UserError: counting those without a partner and naming the first, or if two images of a
        folder have one name.
    """
    if not config.pairs:
        raise UserError(
            "data.pairs: False, but data.source=folders reads pairs; set it to True, or"
            " data.source=folder for the images below data.path alone"
        )
    targets = folder.listing(config.path)
    inputs = folder.listing(config.input_path, "data.input_path")
    partners = _matched(config, targets.names, inputs.names)

    def frame(i: int) -> Frame:
        place, name = inputs.places[partners[i]], inputs.names[partners[i]]
        image, colour = folder.load(*targets.places[i])
        image = folder.to_channels(
            image, config.channel, config.channels, targets.names[i], colour=colour
        )
        given, colour = folder.load(*place)
        if given.shape[:2] != image.shape[:2]:
            (h, w), (rows, columns) = image.shape[:2], given.shape[:2]
            raise UserError(
                f"{place[0]}: {rows}x{columns} pixels, but its target {targets.places[i][0]} has"
                f" {h}x{w}; a pair has one size"
            )
        return Frame(image, condition=input_of(given, config, name, colour=colour))

    remarks = (targets.skipped, inputs.skipped and f"of the inputs {inputs.skipped}")
    return folder.framed(targets._replace(skipped="; ".join(filter(None, remarks))), frame)


def _matched(
    config: ml_collections.ConfigDict, targets: Sequence[str], inputs: Sequence[str]
) -> list[int]:
    """The index of each target's input."""
    wanted = _by_stem(targets, "data.path", config.path)
    given = _by_stem(inputs, "data.input_path", config.input_path)
    missing = []
    for own, other, what, lacks in (
        (wanted, given, "targets", f"input in {config.input_path}"),
        (given, wanted, "inputs", f"target in {config.path}"),
    ):
        lonely = [names[0] for stem, names in own.items() if stem not in other]
        if lonely:
            missing.append(f"{len(lonely)} of {len(own)} {what} have no {lacks} ({lonely[0]})")
    if missing:
        raise UserError(
            f"data.input_path: {'; '.join(missing)}, the first in brackets; pairs have the same"
            " path in both folders, whatever their suffixes"
        )
    position = {name: i for i, name in enumerate(inputs)}
    return [position[given[stem][0]] for stem in wanted]


def _by_stem(names: Sequence[str], key: str, path: str) -> dict[str, list[str]]:
    """Names by what is to match, in their order, one to each."""
    out: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        parts = _NAME.fullmatch(name)
        out[parts["stem"] + (parts["page"] or "") if parts else name].append(name)
    for shared in out.values():
        if len(shared) > 1:
            raise UserError(
                f"{key}: {shared[0]} and {shared[1]} in {path} differ in nothing but the suffix;"
                " pairs are matched without it, leave one out"
            )
    return dict(out)
