"""What an evaluation judges: the samples of a run, finished or in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import ml_collections
import numpy as np

from deformgan import fields, predictions
from deformgan.data import pipeline, scaling
from deformgan.errors import UserError, resolve
from deformgan.gallery import Pictures
from deformgan.log import Advance
from deformgan.metrics.copying import neighbours
from deformgan.metrics.subject import ImageSet, Subject
from deformgan.objectives.contract import Samples
from deformgan.warp import warp

_SHOWN = 16  # images of each kind in a report
REFERENCE = 5000  # most training images that others are compared with
_FIELDS = 512  # fields of so many samples are judged
_CONTROL_POINTS, _STEEPEST = 6, 0.9  # of the fields that the control is warped by
UNKNOWN: dict[str, ImageSet | str] = dict.fromkeys(
    ("noise_5_percent", "field_minus_25_percent"),
    "neither the truth nor a fitted model of these images is known",
)


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
      parts: samples, as many as there are usable test frames, or fewer; of pairs, predictions of
        the frames that `judged_frames` names.
      config: of the run.
      advance: called with the number of samples of each part.
      train_velocity: of the training images, where the objective found it.
    """
    scale, seed, paired = dataset.scaling, config.evaluate.seed, dataset.conditions is not None
    stored, made = _collected(parts, scale, advance, paired=paired)
    chosen, notes = judged_frames(dataset, len(stored), seed)

    def held(images: Sequence[np.ndarray] | np.ndarray, split: str, chosen: np.ndarray) -> ImageSet:
        blocks = np.asarray(dataset.split["blocks"][split], int)[chosen]
        own = np.concatenate([scale.outward(images[i])[None] for i in chosen])
        return ImageSet(own, *scale.stored_limits(), blocks)

    real = held(dataset.test, "test", chosen)
    known = drawn(len(dataset.train), min(config.evaluate.count, REFERENCE), seed)
    train = held(dataset.train, "train", known)
    controls: dict[str, ImageSet | str] = {
        "source_warped": warped(dataset.source.image[None], real)
    }
    if "displacement" in made:
        some = np.stack([dataset.train[i] for i in known[: len(real)]])
        controls["elastic"] = warped(some, real)
    reader = resolve("data.source", "deformgan.data", config.data.source, "read")
    if hasattr(reader, "controls"):
        for name, frames in reader.controls(config.data, len(real)).items():
            controls[name] = frames
            if not isinstance(frames, str):
                wrong = np.stack([scale.outward(dataset.prepare(frame)) for frame in frames])
                controls[name] = _independent(wrong, real)
    return Subject(
        real=real,
        fake=dataclasses.replace(real, stored=stored) if paired else _independent(stored, real),
        train=train,
        seed=seed,
        notes=notes,
        controls=UNKNOWN | controls,
        displacement=made.get("displacement"),
        velocity=made.get("velocity"),
        train_velocity=train_velocity,
        paired=paired,
        oriented=predictions.oriented(config),
        condition=predictions.inputs(dataset, "test", chosen),
        train_condition=predictions.inputs(dataset, "train", known),
        orientation=predictions.orientation_set(made.get("held"), real.blocks),
    )


def judged_frames(
    dataset: pipeline.Dataset, count: int, seed: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Indices of the `count` test frames that a run is judged by, and what was left out."""
    usable, notes = usable_frames(dataset)
    return usable[drawn(len(usable), count, seed)], notes


def usable_frames(dataset: pipeline.Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
    """Indices of the test frames that a run may be judged by, and what was left out, in words.

    A source image from the test split has been seen; so has what was taken with it. In pairs it
    plays no part.
    """
    blocks = np.asarray(dataset.split["blocks"]["test"], int)
    names = dataset.split["names"]["test"]
    if dataset.source.name not in names or dataset.conditions is not None:
        return np.arange(len(blocks)), ()
    own = blocks == blocks[names.index(dataset.source.name)]
    note = (
        f"The source image is a test frame: the {np.sum(own)} frames of its block were left out of"
        " this evaluation."
    )
    return np.flatnonzero(~own), (note,)


def of_training(
    dataset: pipeline.Dataset,
    samples: Samples,
    train: ImageSet,
    seed: int,
    *,
    oriented: bool = False,
) -> Subject:
    """Validation frames beside as many samples, for the quick judgement of a run in training.

    Without two validation frames, training frames take their place.

    Args:
      dataset: of the run.
      samples: as many as there are frames, or fewer; of pairs, predictions of those frames.
      train: as `reference` gives it.
      seed: of the evaluation.
      oriented: as `predictions.oriented` tells.
    """
    scale, real = dataset.scaling, train.take(np.arange(min(len(train), len(samples.images))))
    split, paired = "train", dataset.conditions is not None
    if len(dataset.validation) > 1:
        split = "validation"
        frames = dataset.validation[: len(samples.images)]
        blocks = np.asarray(dataset.split["blocks"]["validation"], int)[: len(frames)]
        real = ImageSet(scale.outward(frames), *scale.stored_limits(), blocks)
    made = {name: np.asarray(values) for name, values in samples.fields.items()}
    stored = scale.outward(np.asarray(samples.images[: len(real)]))
    held = None
    if paired and "orientation" in made:
        held = predictions.held_orientations(made["orientation"][: len(real)])
    return Subject(
        real=real,
        fake=dataclasses.replace(real, stored=stored) if paired else _independent(stored, real),
        train=train,
        seed=seed,
        displacement=made.get("displacement"),
        velocity=made.get("velocity"),
        paired=paired,
        oriented=oriented,
        condition=predictions.inputs(dataset, split, np.arange(len(real))),
        orientation=predictions.orientation_set(held, real.blocks),
    )


def reference(dataset: pipeline.Dataset) -> ImageSet:
    """The training frames, or the first `REFERENCE` of them, that samples are compared with."""
    count, scale = min(len(dataset.train), REFERENCE), dataset.scaling
    stored = np.concatenate([scale.outward(dataset.train[i])[None] for i in range(count)])
    blocks = np.asarray(dataset.split["blocks"]["train"], int)[:count]
    return ImageSet(stored, *scale.stored_limits(), blocks)


def gallery(subject: Subject) -> Pictures:
    """The first images of each kind at 8 bits, and the training images nearest to the samples.

    Of pairs with inputs, some from beginning to end, with the maps of their errors.
    """

    def shown(images: ImageSet) -> np.ndarray:
        return predictions.eight_bits(images.take(np.arange(min(_SHOWN, len(images)))))

    if subject.paired and subject.condition is not None:
        return predictions.gallery(subject, _SHOWN)
    fake = subject.fake.take(np.arange(min(_SHOWN, len(subject.fake))))
    near = np.zeros((0, *fake.stored.shape[1:]), np.uint8)
    if subject.train is not None:
        near = shown(subject.train.take(neighbours(fake, subject.train)))
    field = np.zeros((0, *fake.stored.shape[1:3], 2), np.float32)
    if subject.displacement is not None:
        field = np.asarray(subject.displacement[: len(fake)])
    return Pictures(shown(subject.real), shown(fake), near, field)


def _collected(
    parts: Iterable[Samples], scale: scaling.Scaling, advance: Advance, *, paired: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images at the input's depth, and the fields of the first of them; of pairs all, as `held`."""
    images: list[np.ndarray] = []
    made: dict[str, list[np.ndarray]] = {}
    for part in parts:
        images.append(scale.outward(np.asarray(part.images)))
        if paired and "orientation" in part.fields:
            found = predictions.held_orientations(np.asarray(part.fields["orientation"]))
            made.setdefault("held", []).append(found)
        for name, values in part.fields.items():
            own = made.setdefault(name, [])
            own.append(np.asarray(values)[: _FIELDS - sum(map(len, own))])
        advance(len(part.images))
    return np.concatenate(images), {name: np.concatenate(own) for name, own in made.items()}


def drawn(count: int, most: int, seed: int) -> np.ndarray:
    """Indices of all of `count` images, or of `most` chosen at random."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def warped(sources: np.ndarray, real: ImageSet) -> ImageSet:
    """As many images as `real` has: sources `[n, H, W, C]` in turn, each resampled anew.

    Of one source it is the control that every evaluation must catch.
    """
    height, width = sources.shape[1:3]
    if min(height, width) < 16:
        raise UserError(f"real: images of {height}x{width} pixels are too small to be judged")

    @jax.jit
    def draw(key: jax.Array, source: jax.Array) -> jax.Array:
        size = (height, width)
        field = fields.smooth_random(key, size, control=_CONTROL_POINTS, steepest=_STEEPEST)
        return warp(source, field)[0]

    stored = np.empty_like(real.stored)
    for i, key in enumerate(jax.random.split(jax.random.key(0), len(stored))):
        unit = (np.asarray(draw(key, sources[i % len(sources)]), np.float64) + 1) / 2
        stored[i] = np.round(real.low + unit * (real.high - real.low))
    return _independent(stored, real)


def _independent(stored: np.ndarray, like: ImageSet) -> ImageSet:
    """Images at the depth of others, each a block of its own."""
    return dataclasses.replace(like, stored=stored, blocks=np.arange(len(stored)))
