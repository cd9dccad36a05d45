"""Which files are sections of 3-D polarised light imaging (3D-PLI), and which belong together.

A section has a file for each modality: `<brain>_<section>[_<region>]_FOM_HSV`, `..._NTransmittance`
and `..._NRetardation`, as HDF5, TIFF or NIfTI, or a folder of that name that holds tiles as images.
Orientation maps are read in HSV black alone: of another coding, such as `_FOM_RGB`, the colours
mean other directions. What this program predicted, `_predicted`, is no measurement: it is left
alone.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from deformgan.data.folder import STACKS, STILLS
from deformgan.data.rasters import HDF5, NIFTI, TIFF, Raster, open_raster
from deformgan.errors import UserError

_NAME = re.compile(
    r"(?P<section>[^_]+(?:_[^_]+)+?)"
    r"_(?:(?P<map>FOM)(?:_HSV(?:_black)?)?|(?P<other>N?(?:Transmittance|Retardation)))",
    re.IGNORECASE,
)
# A map in other colours; tiles may be called after a map, if not by letters alone.
_CODED = re.compile(r".+_FOM_(?!HSV)[a-z]+(?:_[a-z]+)*(?:\..+)?", re.IGNORECASE)
_PREDICTED = re.compile(r"_predicted(?:_spread)?(?:\.[a-z0-9]+)+$", re.IGNORECASE)
_LOOKED = "looked for <brain>_<section>[_<region>]_FOM_HSV.h5, ..._NTransmittance.h5 or the like"


@dataclasses.dataclass(frozen=True)
class Section:
    """A section and its images.

    Attributes:
      name: `<brain>_<section>[_<region>]`.
      files: its file, or folder, of each modality; the normalised one where both are there.
      passed_over: those that are not normalised, beside one that is.
    """

    name: str
    files: Mapping[str, Path]
    passed_over: tuple[Path, ...] = ()

    @property
    def brain(self) -> str:
        """The first part of its name."""
        return self.name.split("_")[0]

    def answers_to(self, wanted: str) -> bool:
        """Whether `wanted` is its name, `<brain>_<section>` or `<section>`."""
        parts = self.name.split("_")
        return wanted in (self.name, "_".join(parts[:2]), parts[min(1, len(parts) - 1)])


def find(path: str, modality: str) -> tuple[list[Section], int]:
    """The sections at or below `path`, sorted by name.

    Args:
      path: a folder, or one file (or folder of tiles) of a section, which brings its others along.
      modality: of a folder of images without any section's name: they are taken for tiles.

    Returns:
      the sections, and how many other files there are.
    """
    if not path:
        raise UserError("data.path: not set; give a folder or a file (--config.data.path=...)")
    root = Path(path)
    if not root.exists():
        raise UserError(f"data.path: {path} does not exist")
    own = _meaning(root)
    try:
        if own is None:
            entries = list(root.rglob("*"))
        else:
            entries = [e for e in root.parent.iterdir() if (_meaning(e) or ("",))[0] == own[0]]
            entries += [file for e in entries if e.is_dir() for file in e.rglob("*")]
        files = sorted(e for e in entries if e.is_file() and not e.name.startswith("."))
    except OSError as error:
        raise UserError(f"data.path: cannot list {path}: {error.strerror}") from error
    by_name, others = _grouped(files, root if own is None else root.parent)
    if by_name:
        return [_section(name, by_name[name]) for name in sorted(by_name)], others
    images = [f for f in files if f.suffix.lower() in STILLS + STACKS]
    _check_names([root, *images])
    inside = [root.resolve().name, *(part for f in images for part in f.relative_to(root).parts)]
    if not images or root.is_file() or any(map(_CODED.fullmatch, inside)):
        raise UserError(f"data.path: no sections at {root} ({_LOOKED})")
    return [Section(root.resolve().name, {modality: root})], others - len(images)


def _section(name: str, files: Mapping[str, Path]) -> Section:
    raw = {kind: file for kind, file in files.items() if f"n{kind}" in files}
    read = {kind.removeprefix("n"): file for kind, file in files.items() if kind not in raw}
    return Section(name, read, tuple(raw.values()))


def _check_names(files: Sequence[Path]) -> None:
    """Raises `UserError` for what is no tile by its name."""
    for file in files:
        if _PREDICTED.search(file.name):
            raise UserError(
                f"data.path: {file} is predicted, not measured; keep predictions in a folder apart"
            )
        if file.suffix.lower() in STILLS and _NAME.fullmatch(file.stem):
            raise UserError(
                f"data.path: {file} is called like a section, but sections are read from HDF5, TIFF"
                " or NIfTI alone; convert it to one of these"
            )


def _grouped(files: Sequence[Path], root: Path) -> tuple[dict[str, dict[str, Path]], int]:
    """Files, or folders of tiles below `root`, by section and kind; the number of others."""
    by_name: dict[str, dict[str, Path]] = collections.defaultdict(dict)
    others = 0
    for file in files:
        entry: Path | None = file
        if _meaning(file) is None:
            inside = [root / p for p in file.relative_to(root).parents]
            is_tile = file.suffix.lower() in STILLS + STACKS
            entry = next((p for p in inside if is_tile and p != root and _meaning(p)), None)
        meaning = entry and _meaning(entry)
        if not entry or not meaning:
            others += 1
            continue
        section, kind = meaning
        first = by_name[section].setdefault(kind, entry)
        if first != entry:
            raise UserError(
                f"data.path: {section} has two files of {kind}, {first} and {entry};"
                " keep one of them"
            )
    return by_name, others


def _meaning(entry: Path) -> tuple[str, str] | None:
    """The section and the kind that the name of a file or folder tells, if any.

    A kind is a modality; before it stands an n where that is normalised: ntransmittance.
    """
    name = entry.name
    if not entry.is_dir():
        suffix = next((s for s in HDF5 + TIFF + NIFTI if name.lower().endswith(s)), "")
        if not suffix:
            return None
        name = name[: -len(suffix)]
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return match["section"], (match["map"] or match["other"]).lower()


def select(
    found: Sequence[Section], wanted: Sequence[str], config: ml_collections.ConfigDict
) -> tuple[list[Section], set[str], str]:
    """Those of `data.brains` and `data.sections` that have the modalities wanted.

    Returns:
      the sections, the names of those held out, and a remark on what was left out ('' if nothing).

    Raises:
      UserError: naming a brain or section that does not exist, or if none is left (to train on).
    """
    brains = _listed(config.brains)
    for brain in brains:
        if all(s.brain != brain for s in found):
            there = ", ".join(sorted({s.brain for s in found}))
            raise UserError(f"data.brains: no {brain!r}; there are {there}")
    of_brains = [s for s in found if not brains or s.brain in brains]
    asked = _named("data.sections", config.sections, of_brains) or of_brains
    held_out = _named("data.held_out_sections", config.held_out_sections, asked)
    whole = [s for s in asked if set(wanted) <= set(s.files)]
    if not whole:
        raise UserError(
            f"data.modality, data.inputs: no section has {' and '.join(wanted)};"
            f" {asked[0].name} has {', '.join(asked[0].files)}"
        )
    for section in held_out:
        missing = [m for m in wanted if m not in section.files]
        if missing:
            raise UserError(
                f"data.held_out_sections: {section.name} has no {' and no '.join(missing)};"
                " choose others"
            )
    if all(s in held_out for s in whole):
        raise UserError("data.held_out_sections: no other section is left to train on")
    return whole, {s.name for s in held_out}, _left_out(asked, whole)


def _left_out(asked: Sequence[Section], whole: Sequence[Section]) -> str:
    lacking = [s.name for s in asked if s not in whole]
    raw = [file.name for s in whole for file in s.passed_over]
    remarks = []
    if lacking:
        remarks.append(
            f"{len(lacking)} sections left out for lack of a modality, such as {lacking[0]}"
        )
    if raw:
        remarks.append(
            f"{len(raw)} files left alone for the normalised ones beside them, such as {raw[0]}"
        )
    return "; ".join(remarks)


def _named(key: str, text: str, sections: Sequence[Section]) -> list[Section]:
    names = _listed(text)
    for name in names:
        if not any(s.answers_to(name) for s in sections):
            known = ", ".join(s.name for s in sections[:9]) + ", ..." * (len(sections) > 9)
            raise UserError(f"{key}: no {name!r}; there are {known}")
    return [s for s in sections if any(s.answers_to(name) for name in names)]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def open_section(
    section: Section, wanted: Sequence[str], config: ml_collections.ConfigDict
) -> dict[str, Raster]:
    """Opens the modalities wanted; all of a section's images must be of one size."""
    rasters = {m: open_raster(section.files[m], m, config) for m in wanted}
    for modality, file in section.files.items():
        if modality in wanted:
            continue
        try:
            rasters[modality] = open_raster(file, modality, config)
        except UserError:  # of an image that is not asked for
            continue
    first = rasters[wanted[0]]
    for other in rasters.values():
        if other.shape[:2] != first.shape[:2]:
            sizes = " and ".join(f"{r.file.name} {r.shape[0]}x{r.shape[1]}" for r in (first, other))
            raise UserError(
                f"{section.name}: its images differ in size at data.level={config.level}: {sizes};"
                " the images of a section must match pixel by pixel"
            )
    return {m: rasters[m] for m in wanted}
