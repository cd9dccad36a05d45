"""What an evaluation judges: the samples of a run, or sets of images that lie on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import fields
from deformgan.data import arrays, folder, pipeline, scaling, splits
from deformgan.data.frames import Frame, Frames
from deformgan.errors import UserError, resolve
from deformgan.log import Advance, say
from deformgan.metrics.copying import neighbours
from deformgan.metrics.subject import ImageSet, Subject
from deformgan.objectives.contract import Samples
from deformgan.page import Pictures
from deformgan.warp import warp

_SHOWN = 16  # images of each kind in a report
REFERENCE = 5000  # most training images that others are compared with
_FIELDS = 512  # fields of so many samples are judged
_CONTROL_POINTS, _STEEPEST = 6, 0.9  # of the fields that the control is warped by
_LOOKED_AT = 16  # images that show whether a set is in colour
_UNKNOWN = "neither the truth nor a fitted model of these images is known"
_MODEL_CONTROLS = ("noise_5_percent", "field_minus_25_percent")


def of_run(
    dataset: pipeline.Dataset,
    parts: Iterable[Samples],
    config: ml_collections.ConfigDict,
    advance: Advance,
    *,
    train_velocity: np.ndarray | None = None,
) -> Subject:
    """Test frames, samples and training frames, all at the input's depth and clipping.

    Args:
      dataset: of the run.
      parts: samples, as many as there are usable test frames, or fewer.
      config: of the run.
      advance: called with the number of samples of each part.
      train_velocity: of the training images, where the objective found it.
    """
    scale, seed = dataset.scaling, config.evaluate.seed
    stored, made = _collected(parts, scale, advance)
    usable, notes = usable_frames(dataset)

    def held(images: Sequence[np.ndarray] | np.ndarray, split: str, chosen: np.ndarray) -> ImageSet:
        blocks = np.asarray(dataset.split["blocks"][split], int)[chosen]
        own = np.concatenate([scale.outward(images[i])[None] for i in chosen])
        return ImageSet(own, *scale.stored_limits(), blocks)

    real = held(dataset.test, "test", usable[_chosen(len(usable), len(stored), seed)])
    most = min(config.evaluate.count, REFERENCE)
    train = held(dataset.train, "train", _chosen(len(dataset.train), most, seed))
    controls: dict[str, ImageSet | str] = {"source_warped": _warped(dataset.source.image, real)}
    reader = resolve("data.source", "deformgan.data", config.data.source, "read")
    if hasattr(reader, "controls"):
        for name, frames in reader.controls(config.data, len(real)).items():
            controls[name] = frames
            if not isinstance(frames, str):
                wrong = np.stack([scale.outward(dataset.prepare(frame)) for frame in frames])
                controls[name] = _independent(wrong, real)
    return Subject(
        real=real,
        fake=_independent(stored, real),
        train=train,
        seed=seed,
        notes=notes,
        controls=dict.fromkeys(_MODEL_CONTROLS, _UNKNOWN) | controls,
        displacement=made.get("displacement"),
        velocity=made.get("velocity"),
        train_velocity=train_velocity,
    )


def usable_frames(dataset: pipeline.Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Indices of the test frames that a run may be judged by, and what was left out, in words.

    A source image from the test split has been seen; so has what was taken with it.
    """
    blocks = np.asarray(dataset.split["blocks"]["test"], int)
    names = dataset.split["names"]["test"]
    if dataset.source.name not in names:
        return np.arange(len(blocks)), ()
    own = blocks == blocks[names.index(dataset.source.name)]
    note = (
        f"The source image is a test frame: the {np.sum(own)} frames of its block were left out of"
        " this evaluation."
    )
    return np.flatnonzero(~own), (note,)


def of_training(dataset: pipeline.Dataset, samples: Samples, train: ImageSet, seed: int) -> Subject:
    """Validation frames beside as many samples, for the quick judgement of a run in training.

    Without two validation frames, training frames take their place.

    Args:
      dataset: of the run.
      samples: as many as there are frames, or fewer.
      train: as `reference` gives it.
      seed: of the evaluation.
    """
    scale, real = dataset.scaling, train.take(np.arange(min(len(train), len(samples.images))))
    if len(dataset.validation) > 1:
        frames = dataset.validation[: len(samples.images)]
        blocks = np.asarray(dataset.split["blocks"]["validation"], int)[: len(frames)]
        real = ImageSet(scale.outward(frames), *scale.stored_limits(), blocks)
    made = {name: np.asarray(values) for name, values in samples.fields.items()}
    return Subject(
        real=real,
        fake=_independent(scale.outward(np.asarray(samples.images[: len(real)])), real),
        train=train,
        seed=seed,
        displacement=made.get("displacement"),
        velocity=made.get("velocity"),
    )


def reference(dataset: pipeline.Dataset) -> ImageSet:
    """The training frames, or the first `REFERENCE` of them, that samples are compared with."""
    count, scale = min(len(dataset.train), REFERENCE), dataset.scaling
    stored = np.concatenate([scale.outward(dataset.train[i])[None] for i in range(count)])
    blocks = np.asarray(dataset.split["blocks"]["train"], int)[:count]
    return ImageSet(stored, *scale.stored_limits(), blocks)


def gallery(subject: Subject) -> Pictures:
    """The first images of each kind at 8 bits, and the training images nearest to the samples."""

    def shown(images: ImageSet) -> np.ndarray:
        unit = np.clip(images.unit(np.s_[:_SHOWN]), -1, 1)
        return np.round((unit + 1) * 127.5).astype(np.uint8)

    fake = subject.fake.take(np.arange(min(_SHOWN, len(subject.fake))))
    near = np.zeros((0, *fake.stored.shape[1:]), np.uint8)
    if subject.train is not None:
        near = shown(subject.train.take(neighbours(fake, subject.train)))
    field = np.zeros((0, *fake.stored.shape[1:3], 2), np.float32)
    if subject.displacement is not None:
        field = np.asarray(subject.displacement[: len(fake)])
    return Pictures(shown(subject.real), shown(fake), near, field)


def _collected(
    parts: Iterable[Samples], scale: scaling.Scaling, advance: Advance
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images at the input's depth, and the fields of the first of them."""
    images: list[np.ndarray] = []
    made: dict[str, list[np.ndarray]] = {}
    for part in parts:
        images.append(scale.outward(np.asarray(part.images)))
        for name, values in part.fields.items():
            own = made.setdefault(name, [])
            own.append(np.asarray(values)[: _FIELDS - sum(map(len, own))])
        advance(len(part.images))
    return np.concatenate(images), {name: np.concatenate(own) for name, own in made.items()}


def of_files(paths: Mapping[str, str], config: ml_collections.ConfigDict) -> Subject:
    """Sets of images as they are on disk: 'real', 'fake' and perhaps 'train'.

    Args:
      paths: a folder, TIFF stack or .npz file for each; '' for none.
      config: its `evaluate` block and `data.channel` are used.

    Raises:
      UserError: naming the set whose images cannot be read or are of another size or depth.
    """
    paths, settings = {flag: path for flag, path in paths.items() if path}, config.evaluate
    channel = config.data.channel
    coloured = any(_is_colour(_open(flag, path, channel, 3)) for flag, path in paths.items())
    names: dict[str, list[str]] = {}
    values: dict[str, np.ndarray] = {}
    blocks: dict[str, np.ndarray] = {}
    chosen = np.zeros(0, int)
    for flag, path in paths.items():  # one at a time: a reader may hold all its images
        frames = _open(flag, path, channel, 3 if coloured else 1)
        names[flag] = [name.partition("#")[2] or Path(name).stem for name in frames.names]
        if flag == "fake" and settings.paired:
            chosen = _partners(names["real"], names["fake"])[chosen]
        else:
            most = REFERENCE if flag == "train" else settings.count
            chosen = _chosen(len(frames), min(most, settings.count), settings.seed)
        values[flag] = _read(flag, frames, chosen)
        own = np.asarray(splits.blocks(frames.recordings, frames.moments))[chosen]
        blocks[flag] = np.arange(len(chosen)) if flag == "fake" else own
        _check_alike(flag, values[flag], values["real"])
        say(f"{flag}: {len(chosen)} of {len(frames)} images, {path}")
    ends = [(float(x.min()), float(x.max())) for x in values.values()]
    depth = scaling.Depth.of(
        values["real"].dtype, min(low for low, _ in ends), max(high for _, high in ends)
    )
    sets = {}
    for flag in list(values):
        stored = values.pop(flag)
        if stored.dtype != depth.dtype:
            stored = np.round((stored - depth.offset) / depth.step).astype(depth.dtype)
        if flag == "real":  # cameras of 12 bits leave most of 16 unused
            limits = (0.0, 255.0)
            if depth.dtype != "uint8":
                limits = (float(stored.min()), float(max(stored.max(), stored.min() + 1)))
        sets[flag] = ImageSet(stored, *limits, blocks[flag])
    real = sets["real"]
    return Subject(
        real=real,
        fake=sets["fake"],
        train=sets.get("train"),
        seed=settings.seed,
        controls=dict.fromkeys(_MODEL_CONTROLS, _UNKNOWN)
        | {"source_warped": _warped(real.unit(np.s_[:1])[0], real)},
        paired=settings.paired,
    )


def _check_alike(flag: str, images: np.ndarray, real: np.ndarray) -> None:
    """Raises `UserError` unless there are some images, of the size and depth of the real ones."""
    if len(images) < 2:
        raise UserError(f"{flag}: 1 image; give 2 or more")
    shape, wanted = images.shape[1:3], real.shape[1:3]
    if shape != wanted:
        raise UserError(f"{flag}: images of size {shape}, those of real {wanted}; resize them")
    if images.dtype != real.dtype:
        raise UserError(
            f"{flag}: images hold {images.dtype}, those of real {real.dtype}; convert them to one"
            " depth and range"
        )


def _partners(real: Sequence[str], fake: Sequence[str]) -> np.ndarray:
    """For each real image, the index of the fake of the same name, or number in its file."""
    place = {name: i for i, name in enumerate(fake)}
    alone = [name for name in real if name not in place]
    if alone or len(place) < len(fake) or len(set(real)) < len(real):
        what = f"no fake is named {alone[0]!r}" if alone else "some names occur twice"
        raise UserError(f"evaluate.paired: {what}; pairs of real and fake need equal file names")
    return np.array([place[name] for name in real])


def _chosen(count: int, most: int, seed: int) -> np.ndarray:
    """Indices of all of `count` images, or of `most` chosen at random."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _open(flag: str, path: str, channel: int, channels: int) -> Frames:
    """The images at `path`; its errors start with the flag that named it."""
    config = ml_collections.ConfigDict({"path": path, "channel": channel, "channels": channels})

    def named(error: UserError) -> UserError:
        return UserError(f"{flag}: {str(error).removeprefix('data.path: ')}")

    try:
        frames: Frames = (arrays if path.endswith(".npz") else folder).read(config)
    except UserError as error:
        raise named(error) from error

    def read(i: int) -> Frame:
        try:
            return frames.read(i)
        except UserError as error:
            raise named(error) from error

    return dataclasses.replace(frames, read=read)


def _is_colour(frames: Frames) -> bool:
    """Whether some image of a few has channels that differ."""
    few = range(0, len(frames), -(-len(frames) // _LOOKED_AT))
    images = (frames.read(i).image for i in few)
    return any((image != image[..., :1]).any() for image in images)


def _read(flag: str, frames: Frames, chosen: np.ndarray) -> np.ndarray:
    """The chosen images in one array."""
    first = frames.read(chosen[0]).image
    out = np.empty((len(chosen), *first.shape), first.dtype)
    for place, i in enumerate(chosen):
        image = frames.read(i).image
        if image.shape != first.shape or image.dtype != first.dtype:
            raise UserError(
                f"{flag}: {frames.names[i]} is {image.shape} {image.dtype}, but"
                f" {frames.names[chosen[0]]} {first.shape} {first.dtype}; make them alike"
            )
        out[place] = image
    return out


def _warped(source: np.ndarray, real: ImageSet) -> ImageSet:
    """The control that every evaluation must catch: one image, resampled as often as needed."""
    height, width = source.shape[:2]
    if min(height, width) < 16:
        raise UserError(f"real: images of {height}x{width} pixels are too small to be judged")

    @jax.jit
    def draw(key: jax.Array) -> jax.Array:
        size = (height, width)
        field = fields.smooth_random(key, size, control=_CONTROL_POINTS, steepest=_STEEPEST)
        return warp(jnp.asarray(source), field)[0]

    stored = np.empty_like(real.stored)
    for i, key in enumerate(jax.random.split(jax.random.key(0), len(stored))):
        unit = (np.asarray(draw(key), np.float64) + 1) / 2
        stored[i] = np.round(real.low + unit * (real.high - real.low))
    return _independent(stored, real)


def _independent(stored: np.ndarray, like: ImageSet) -> ImageSet:
    """Images at the depth of others, each a block of its own."""
    return dataclasses.replace(like, stored=stored, blocks=np.arange(len(stored)))
