"""--mode=sample --input=FILE: a whole image or section through the generator of a run of pairs.

Of a run with several `data.inputs`, FILE is a file of each, joined by commas in their order. The
image, the spread of several passes and a manifest are written in the kind of file that came.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from deformgan import __version__, blending, parallel
from deformgan.checkpoint import Checkpoints
from deformgan.data import raster_metadata, raster_writers
from deformgan.data.geometry import Fit
from deformgan.data.raster_writers import Layout, layout_of
from deformgan.data.scaling import Scaling
from deformgan.data.whole import Whole, kind_of, open_whole, suffix_of
from deformgan.errors import UserError
from deformgan.log import say
from deformgan.translator import Translation, Translator, translated, translator_of, unwritable
from deformgan.workdir import Workdir

_POOLED = 2**16  # pixels that are averaged at once for a coarser level
_LARGEST_OVERLAP = 0.9
_OUTPUTS = {"fom": "FOM", "transmittance": "NTransmittance", "retardation": "NRetardation"}
_INPUT = re.compile(r"_N?(transmittance|retardation)$", re.IGNORECASE)


def run(
    path: str,
    config: ml_collections.ConfigDict | None,
    *,
    files: str,
    out: str,
    passes: int,
    overlap: float,
    level: int,
    seed: int,
    step: str,
) -> None:
    """Translates a whole image with the run in the folder `path`.

    Args:
      path: the workdir of a trained run of pairs.
      config: refused if it differs from the run's own; None to use that.
      files: the input; of several modalities a file each, joined by commas in the run's order. Of a
        run of `data.source=aligned`, the half that is the input or a pair side by side.
      out: file to write, of the same kind, or a folder; '' for one inside the workdir. A manifest
        `.json` and, of several passes, a `_spread` of the same kind are written beside it.
      passes: with dropout, whose mean is taken.
      overlap: of neighbouring tiles, a share of their size.
      level: of the pyramid; -1 for the one that the run was trained on.
      seed: of the dropout.
      step: of the checkpoint: a number, 'newest' or 'best'.

    Raises:
      UserError: before anything is computed, if the run is not of pairs, the input does not fit
        it, or the output exists.
    """
    parallel.keep_compilations()
    _check(passes, overlap, level)
    workdir = Workdir(path, create=False)
    own = workdir.config()
    if config is not None:
        workdir.check_same(config)
    if not own.data.get("pairs", False):
        raise UserError(
            f"input: the run in {workdir.root} was not trained on pairs (data.pairs), so it has"
            " nothing to translate; sample from it without --input"
        )
    checkpoints = Checkpoints(workdir.checkpoints, best=own.checkpoint.best, writable=False)
    sampler = checkpoints.sampler(step)
    checkpoints.close()
    fit = sampler.meta["geometry"]
    whole = open_whole(
        [Path(name.strip()) for name in files.split(",")],
        own.data,
        Scaling.from_json(sampler.meta["input_scaling"]).depth,
        level=own.data.level if level < 0 else level,
        fit=Fit(tuple(fit["scale"]), tuple(fit["offset"])),
    )
    layout = layout_of(whole.files[0], whole.kind, whole.level, whole.shape[:2])
    target = output_file(out or str(workdir.root / "translated"), whole, own.data.modality)
    translator = translator_of(own, sampler, passes=passes, seed=seed)
    for remark in whole.remarks:
        say(f"{whole.files[0]}: {remark}")
    size = f"{whole.shape[0]}x{whole.shape[1]} pixels"
    say(f"translating {size} with step {sampler.step} of {workdir.root} (compiling first) ...")
    done = translated(whole, translator, overlap=overlap, folder=target.parent)
    about = {
        "checkpoint": sampler.step,
        "config": sampler.meta["config"],
        "input_scaling": sampler.meta["input_scaling"],
        "scaling": sampler.meta["scaling"],
        "overlap": overlap,
        "seed": seed,
    }
    keep(target, done, whole, layout, translator, about)
    _tell(target, done, layout, translator)


def _check(passes: int, overlap: float, level: int) -> None:
    if passes < 1:
        raise UserError(f"passes: {passes}; give 1 or more")
    if not 0 <= overlap <= _LARGEST_OVERLAP:
        raise UserError(f"overlap: {overlap}; give a share of a tile, 0 to {_LARGEST_OVERLAP}")
    if not -1 <= level <= 99:
        raise UserError(f"level: {level}; pyramids have levels from 0, the finest")


def output_file(out: str, whole: Whole, modality: str) -> Path:
    """The file that `out` means, a file or a folder, which is made.

    Raises:
      UserError: if it, or what is written beside it, exists or is of another kind than the input.
    """
    if "://" in out:
        raise UserError(f"out: {out}; give a local file or folder, and copy it to a bucket")
    given, file = Path(out), whole.files[0]
    suffix = ".png" if whole.kind == "png" else suffix_of(file)
    if kind_of(given) and not given.is_dir():
        target = given
        exact = whole.kind in ("nifti", "png")  # of which a suffix tells whether it is packed
        if kind_of(target) != whole.kind or (exact and suffix_of(target).lower() != suffix.lower()):
            raise UserError(f"out: {out}, but {file} makes a file of its own kind, {suffix}")
    else:
        stem = file.name[: -len(suffix_of(file))]
        if _INPUT.search(stem):
            stem = _INPUT.sub(f"_{_OUTPUTS[modality]}", stem)
        target = given / f"{stem}_predicted{suffix}"
    for written in (target, _spread_file(target), _manifest_file(target)):
        if written.exists():
            raise UserError(f"out: {written} is in use; choose another file or folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"out: cannot write to {target.parent} ({error.strerror or error})"
        ) from error
    return target


def _spread_file(target: Path) -> Path:
    suffix = suffix_of(target)
    return target.with_name(f"{target.name[: -len(suffix)]}_spread{suffix}")


def _manifest_file(target: Path) -> Path:
    return target.with_name(f"{target.name[: -len(suffix_of(target))]}.json")


def keep(
    target: Path,
    done: Translation,
    whole: Whole,
    layout: Layout,
    translator: Translator,
    about: dict[str, Any],
) -> None:
    """Writes the image, its spread and a manifest, each under a name of its own until whole.

    Raises:
      UserError: if that fails; nothing is left of it then.
    """
    folder, outward = target.parent, translator.outward.depth
    pools = {target: _pool(translator), _spread_file(target): raster_writers.mean}
    found = {target: done.image, _spread_file(target): done.spread}
    manifest, units = _manifest_file(target), (outward.step, outward.offset)
    drafts = {file: file.with_name(f".{file.name}.draft") for file in (*found, manifest)}
    try:
        for file, rows in found.items():
            if rows is not None:
                levels = raster_writers.pyramid(rows, layout, pools[file], folder)
                of_file = units if file == target else (1.0, 0.0)
                raster_writers.write(drafts[file], levels, layout, of_file)
        said = _said(done, whole, layout, translator) | about
        drafts[manifest].write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")
        for file, draft in drafts.items():
            if draft.exists():
                if file.exists():
                    raise UserError(f"out: {file} has come into use; choose another file or folder")
                draft.rename(file)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _said(
    done: Translation, whole: Whole, layout: Layout, translator: Translator
) -> dict[str, Any]:
    """What a manifest says of an image."""
    said = {
        "deformgan": __version__,
        "input": [str(file.resolve()) for file in whole.files],
        "remarks": list(whole.remarks),
        "level": whole.level,
        "shape": list(done.image.shape),
        "dtype": done.image.dtype.name,
        "tile": translator.size,
        "passes": translator.passes,
        "seam_ratio": done.seam_ratio,
    }
    if translator.blend.axial:
        said["colours"] = "HSV black, saturation 1"
    if done.spread is not None:
        said["spread"] = _spread_unit(layout, translator)
    return said


def _spread_unit(layout: Layout, translator: Translator) -> str:
    return f"{'hundredths of ' if layout.kind == 'png' else ''}{translator.blend.unit}"


def _pool(translator: Translator) -> raster_writers.Pool:
    """The mean of pixels as they are stored, of axes where they encode them."""
    scaling = translator.outward
    if not translator.blend.axial:
        return raster_writers.mean
    blend = blending.oriented("rgb")
    mean = jax.jit(lambda values: blend.image(blend.merge(values)))  # [q, n, 3] -> [n, 3]

    def pool(pixels: np.ndarray) -> np.ndarray:
        out = np.empty(pixels.shape[1:], pixels.dtype)
        for first in range(0, len(out), _POOLED):
            part = scaling.inward(_in_units(pixels[:, first : first + _POOLED], scaling))
            count = part.shape[1]
            filled = np.pad(part, ((0, 0), (0, _POOLED - count), (0, 0)))
            out[first : first + count] = scaling.outward(jax.device_get(mean(filled))[:count])
        return out

    return pool


def _in_units(stored: np.ndarray, scaling: Scaling) -> np.ndarray:
    return stored * scaling.depth.step + scaling.depth.offset


def _tell(target: Path, done: Translation, layout: Layout, translator: Translator) -> None:
    seams = "not measured: no tile ends within the image, or it is constant"
    if done.seam_ratio is not None:
        seams = f"{done.seam_ratio:.3f} (differences at borders of tiles over those elsewhere)"
    say(f"seam ratio {seams}\nwrote {target}")
    depth, missed = translator.outward.depth, raster_metadata.left_out(layout.file, layout.kind)
    if layout.kind == "png" and (depth.step, depth.offset) != (1, 0):
        say(f"      its values are those stored * {depth.step:g} + {depth.offset:g}")
    if missed:
        say(f"      not taken over from {layout.file}: {', '.join(missed)}")
    if done.spread is not None:
        say(f"      {_spread_file(target)} ({_spread_unit(layout, translator)})")
