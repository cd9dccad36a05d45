"""--mode=sample: images, fields and moved labels from a checkpoint, without the training data.

Generators with styles also give strips between samples, and the style of a given image.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tifffile

from deformgan import __version__, parallel, styling
from deformgan.checkpoint import Checkpoints, Sampler
from deformgan.data.scaling import Scaling
from deformgan.errors import UserError, choose, resolve
from deformgan.fields import POINT_STATUS
from deformgan.log import say
from deformgan.objectives.contract import Constants, Objective, Samples
from deformgan.state import Variables
from deformgan.step import Purpose, example_keys
from deformgan.styling import Made
from deformgan.workdir import Workdir

FORMATS = ("npz", "png", "tiff")
_CHUNK = 64


def run(
    path: str,
    config: ml_collections.ConfigDict | None,
    *,
    num: int,
    out: str,
    form: str,
    seed: int,
    step: str,
    truncation: float = 1.0,
    interpolate: int = 0,
    project: str = "",
) -> None:
    """Samples from the run in the folder `path`.

    Args:
      path: the workdir of a trained run.
      config: refused if it differs from the run's own; None to use that.
      num: of images.
      out: folder to write to; must be absent or empty. '' for one inside the workdir.
      form: one of `FORMATS`.
      seed: the same seed gives the same bytes.
      step: of the checkpoint: a number, 'newest' or 'best'.
      truncation: factor on the distance of styles to their mean; 1 for none.
      interpolate: images on the way from each sample to the next; also drawn as `strip.png`.
      project: file of an image whose style is looked for; what was found is written, with
        `projection.npz` (`w`, and the `target` as the run sees it) and `strip.png`. '' for none.

    Raises:
      UserError: if there is no checkpoint, the output folder is in use, or the generator has no
        styles that the last three could be made of.
    """
    parallel.keep_compilations()
    choose("format", form, FORMATS)
    _check(num, truncation, interpolate, project)
    workdir = Workdir(path, create=False)
    own = workdir.config()
    if config is not None:
        workdir.check_same(config)
    if own.data.get("pairs", False):
        raise UserError("input: this run predicts from inputs; give --input=FILE")
    checkpoints = Checkpoints(workdir.checkpoints, best=own.checkpoint.best, writable=False)
    sampler = checkpoints.sampler(step)
    checkpoints.close()
    scaling = Scaling.from_json(sampler.meta["scaling"])
    if form == "png" and scaling.depth.dtype == "uint16" and own.data.channels == 3:
        raise UserError("format: 16-bit colour does not fit every PNG reader; use tiff or npz")
    objective = resolve("objective", "deformgan.objectives", own.objective, "create").create(own)
    target = styling.read_target(project, own.data, scaling) if project else None
    if interpolate or project:
        styling.styles_of(objective, "project" if project else "interpolate")
    if truncation != 1:
        objective = styling.truncated(objective, truncation)
    folder = _output_folder(
        out or str(workdir.root / "samples" / f"seed_{seed}_step_{sampler.step}")
    )
    say(f"sampling from step {sampler.step} of {workdir.root} (compiling first) ...")
    about: dict[str, Any] = {"seed": seed, "truncation": truncation}
    if target is not None:
        made = styling.project(objective, sampler.variables, target, seed=seed)
        say(f"error {made.said['error']:.3f}, root mean square; images have a range of 2")
        about["project"] = project
    elif interpolate:
        made = styling.strips(objective, sampler.variables, num=num, between=interpolate, **about)
    else:
        parts = generate(objective, sampler.variables, sampler.constants, seed=seed, num=num)
        samples: Samples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        made = Made(samples, None, {}, {})
    _keep(folder, made, sampler, scaling, form, about)
    say(f"wrote {len(made.samples.images)} images as {form} to {folder}")


def _keep(
    folder: Path, made: Made, sampler: Sampler, scaling: Scaling, form: str, about: dict[str, Any]
) -> None:
    """Writes what was made and its manifest."""
    try:
        written = write(folder, made.samples, sampler.constants, scaling, form)
        if "animal" in made.samples.labels:
            which = np.asarray(made.samples.labels["animal"])
            written["animals"] = _write_animals(folder, which, sampler.meta["animals"])
        if made.arrays:
            np.savez_compressed(folder / "projection.npz", allow_pickle=False, **made.arrays)
        if made.strip is not None:
            _write_strip(folder / "strip.png", made.strip)
        manifest = {
            "deformgan": __version__,
            "images": len(made.samples.images),
            "checkpoint": sampler.step,
            "config": sampler.meta["config"],
            "source": sampler.meta["source"],
            "geometry": sampler.meta["geometry"],
            "scaling": sampler.meta["scaling"],
            **about,
            **made.said,
            **written,
        }
        text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
        (folder / "manifest.json").write_text(text)
    except OSError as error:
        raise UserError(f"out: cannot write to {folder} ({error.strerror or error})") from error


def _check(num: int, truncation: float, interpolate: int, project: str) -> None:
    if num < 1:
        raise UserError(f"num: {num}; sample 1 image or more")
    if not 0 <= truncation <= 1:
        raise UserError(f"truncation: {truncation}; give a factor from 0 (the mean) to 1 (none)")
    if interpolate < 0 or (interpolate and num < 2):
        raise UserError(f"interpolate: {interpolate}; give 0 or more, with --num=2 or more")
    if project and (interpolate or truncation != 1):
        raise UserError("project: give it without --interpolate and --truncation")


def generate(
    objective: Objective,
    variables: Variables,
    constants: Constants,
    *,
    seed: int,
    num: int,
    conditions: Sequence[np.ndarray] | np.ndarray | None = None,
) -> Iterator[Samples]:
    """Draws `num` samples, a chunk at a time, as NumPy arrays; the same for any number of devices.

    Chunks are always whole inside, so that `num` does not change what a sample is.

    Args:
      objective: that the variables are of.
      variables: of the generator.
      constants: of the objective.
      seed: of the draws.
      num: of samples.
      conditions: `num` inputs `[H, W, K]` in [-1, 1], of an objective that predicts from them;
        read when their chunk is drawn.

    Raises:
      UserError: if an image is not finite.
    """
    if conditions is not None and len(conditions) < num:
        raise ValueError(f"conditions: wanted {num}, one a sample, got {len(conditions)}")
    held = jax.tree.map(jnp.asarray, dict(constants))
    draw = jax.jit(lambda keys, given: objective.sample(variables, held, keys, given))
    for first in range(0, num, _CHUNK):
        indices = jnp.arange(first, first + _CHUNK)
        keys = example_keys(jax.random.key(seed), 0, Purpose.SAMPLE, indices)
        given = None
        if conditions is not None:  # the last ones fill up the last chunk
            own = np.minimum(np.arange(first, first + _CHUNK), num - 1)
            given = parallel.spread(np.stack([conditions[int(i)] for i in own]))
        part = jax.device_get(draw(parallel.spread(keys), given))
        if not np.isfinite(part.images).all():
            raise UserError(
                f"samples {first} to {first + _CHUNK - 1} are not finite: this checkpoint is"
                " broken; choose an earlier one with --step, or train again"
            )
        yield jax.tree.map(lambda leaf, n=num - first: leaf[:n], part)


def write(
    folder: Path,
    samples: Samples,
    constants: Constants,
    scaling: Scaling,
    form: str,
) -> dict[str, Any]:
    """Writes samples in the input's depth; returns what the manifest says of them.

    `npz` puts images, fields and masks in one `samples.npz`; `png` and `tiff` write images and
    masks as pictures (a folder of PNG, or one stack each) and fields as `.npy`. Points go to
    `points.csv`: sample, id, row, column, status.
    """
    images = scaling.outward(np.asarray(samples.images))
    arrays: dict[str, np.ndarray] = {k: np.asarray(v) for k, v in samples.fields.items()}
    pictures = {"images": images}
    ids = np.asarray(constants.get("ids", np.zeros(0, np.int32)))
    if "mask" in samples.labels and np.any(constants["mask"]):
        pictures["masks"] = np.asarray(samples.labels["mask"]).astype(np.uint16)
    if form == "npz":
        np.savez_compressed(folder / "samples.npz", allow_pickle=False, **pictures, **arrays)
    else:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        for name, stack in pictures.items():
            (_write_png if form == "png" else _write_tiff)(folder, name, stack)
    said: dict[str, Any] = {"dtype": images.dtype.name, "shape": list(images.shape)}
    if "points" in samples.labels and (ids >= 0).any():
        points, status = (np.asarray(samples.labels[k]) for k in ("points", "status"))
        _write_points(folder / "points.csv", points, status, ids)
        said["points"] = {
            name: float(np.mean(status == code)) for code, name in enumerate(POINT_STATUS)
        }
    return said


def _write_png(folder: Path, name: str, stack: np.ndarray) -> None:
    (folder / name).mkdir()
    for i, image in enumerate(stack):
        flat = image[..., 0] if image.shape[-1] == 1 else image
        (folder / name / f"{i:06d}.png").write_bytes(imagecodecs.png_encode(flat))


def _write_strip(file: Path, image: np.ndarray) -> None:
    """Draws an image `[H, W, C]` in [-1, 1] at 8 bits."""
    stored = np.round((np.clip(image, -1, 1) + 1) * 127.5).astype(np.uint8)
    file.write_bytes(imagecodecs.png_encode(stored[..., 0] if stored.shape[-1] == 1 else stored))


def _write_tiff(folder: Path, name: str, stack: np.ndarray) -> None:
    grey = stack.shape[-1] == 1
    tifffile.imwrite(
        folder / f"{name}.tif",
        stack[..., 0] if grey else stack,
        photometric="minisblack" if grey else "rgb",
        compression="zlib",
    )


def _write_points(file: Path, points: np.ndarray, status: np.ndarray, ids: np.ndarray) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sample", "id", "row", "column", "status"])
        for number, (positions, codes) in enumerate(zip(points, status, strict=True)):
            for identity, (row, column), code in zip(ids, positions, codes, strict=True):
                place = (f"{row:.3f}", f"{column:.3f}") if code == 0 else ("nan", "nan")
                writer.writerow([number, int(identity), *place, POINT_STATUS[code]])


def _write_animals(folder: Path, which: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """Writes which animal each sample `[N]` is of to `animals.csv`; returns how many each has."""
    with (folder / "animals.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["sample", "animal"])
        writer.writerows((number, names[own]) for number, own in enumerate(which))
    return {name: int(np.sum(which == own)) for own, name in enumerate(names)}


def _output_folder(out: str) -> Path:
    if "://" in out:
        raise UserError(f"out: {out or 'not set'}; give a local folder, and copy it to a bucket")
    folder = Path(out)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"out: {out} is in use; choose a new or an empty folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: cannot write to {out} ({error.strerror or error})") from error
    return folder
