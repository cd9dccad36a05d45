"""From frames to a dataset: fit, blur, split, scale, choose the source image."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
from scipy import ndimage

from deformgan.data import animals, geometry, label_image, pairs, scaling, source_image, splits
from deformgan.data.animals import Animal
from deformgan.data.frames import Frame, Frames
from deformgan.data.pairs import Conditions
from deformgan.data.source_image import Source
from deformgan.data.survey import MANY, survey
from deformgan.errors import UserError, choose, resolve

BLURS = (0, 3, 11, 51, 127)
_VALIDATION = 512  # validation frames that are held, at most
_RECENT = 16  # fitted frames, of which the image and then the condition are asked for
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Frames made ready for training.

    Attributes:
      train: images `[S, S, C]` float32 in [-1, 1] by index: one array if they fit, else read anew.
      validation: `[N, S, S, C]`, at most 512, for choosing checkpoints; may be empty.
      test: by index, read anew each time: for the last judgement alone.
      source: the image to warp.
      animals: of the training images, each with a source of its own; one unless told otherwise.
      scaling: how intensities map to the input's units.
      geometry: how the source frame was fitted to `data.size`.
      split: for the record: its seed, and the names and blocks of the frames of every split.
      prepare: fits, blurs and scales any frame as those above.
      conditions: of pairs: what each image is to be predicted from; else None.
      prepare_condition: of pairs: fits and scales the condition `[H, W, K]` of any frame likewise.
    """

    train: Sequence[np.ndarray] | np.ndarray
    validation: np.ndarray
    test: Sequence[np.ndarray]
    source: Source
    animals: tuple[Animal, ...]
    scaling: scaling.Scaling
    geometry: geometry.Fit
    split: dict[str, Any]
    prepare: Callable[[Frame], np.ndarray]
    conditions: Conditions | None = None
    prepare_condition: Callable[[Frame], np.ndarray] | None = None

    def digest(self) -> str:
        """Identifies which frames are in which split."""
        names = json.dumps(self.split["names"], sort_keys=True)
        return hashlib.sha256(names.encode()).hexdigest()[:16]


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a bad setting in the `data` block, before anything is read."""
    choose("data.aspect", config.aspect, geometry.ASPECTS)
    choose("data.scaling", config.scaling, scaling.SCALINGS)
    choose("data.mixed_sizes", config.mixed_sizes, ("refuse", "fit"))
    choose("data.screen", config.screen, ("off", "report", "drop"))
    if config.blur not in BLURS:
        raise UserError(f"data.blur: kernel {config.blur}; choose one of {BLURS} (0 for none)")
    if config.size < 8:
        raise UserError(f"data.size: {config.size}; give 8 pixels or more")
    if config.channels not in (1, 3):
        raise UserError(f"data.channels: {config.channels}; images have 1 or 3 channels")
    if not (config.validation >= 0 and config.test >= 0 and config.validation + config.test < 1):
        raise UserError("data.validation, data.test: give shares of the frames, together below 1")
    if config.seed < 0:
        raise UserError(f"data.seed: {config.seed}; give 0 or more")
    pairs.check(config)
    for key in ("percentiles", "range", "input_range"):
        if len(config[key]) != 2 or not config[key][0] < config[key][1]:
            raise UserError(f"data.{key}: {tuple(config[key])}; give (low, high), low below high")
    if not (config.percentiles[0] >= 0 and config.percentiles[1] <= 100):
        raise UserError(f"data.percentiles: {tuple(config.percentiles)} are not within 0 to 100")
    if config.source == "simulated" and config.channels != 1:
        raise UserError(f"data.channels: {config.channels}; simulated worms are grey, set it to 1")
    if config.source == "simulated" and config.count < 1:
        raise UserError(f"data.count: {config.count}; simulate 1 image or more")
    if config.held_out < 0 or config.held_out_seed < 0:
        raise UserError("data.held_out, data.held_out_seed: give 0 or more")
    if config.held_out and config.source not in ("simulated", "pli"):
        raise UserError(
            f"data.held_out: only simulated images can be drawn afresh, not {config.source}; leave"
            " it 0"
        )
    if config.source != "simulated" and config.layer:
        raise UserError(
            f"data.layer: only simulated worms come in layers, not {config.source}; leave it ''"
        )


def open_frames(config: ml_collections.ConfigDict) -> Frames:
    """Opens the source `data.source`; if its images fit in memory, each is read only once."""
    reader = resolve("data.source", "deformgan.data", config.source, "read")
    frames: Frames = reader.read(config)
    if config.recordings:
        wanted = animals.chosen(frames.recordings, config.recordings, "data.recordings")
        frames = frames.subset(wanted)
    held = len(frames) * frames.read(0).nbytes <= config.memory_mib * _MIB
    if not held:
        return frames
    cache: dict[int, Frame] = {}

    def cached(i: int) -> Frame:
        if i not in cache:
            cache[i] = frames.read(i)
        return cache[i]

    return dataclasses.replace(frames, read=cached)


def build(
    frames: Frames,
    config: ml_collections.ConfigDict,
    source: ml_collections.ConfigDict,
    apart: str = "",
) -> Dataset:
    """Splits, fits and scales frames.

    Args:
      frames: as screened.
      config: the `data` block.
      source: the `source` block: which image is warped.
      apart: which recordings are of which animal, as `fit.animals` says.

    Returns:
      the dataset, its training images in one array if they take at most `data.memory_mib`.

    Raises:
      UserError: naming what does not fit: mixed sizes or depths, an unknown source image, animals
        that are not told apart.
    """
    of_each = animals.members(frames.recordings, apart)
    depths = survey(frames, config)
    split, block = split_frames(frames, config, of_each)
    members = {s: [i for i, own in enumerate(split) if own == s] for s in splits.SPLITS}

    chosen, held = members["train"], members["validation"]
    if len(chosen) < 2:
        raise UserError(
            f"data: {len(chosen)} training frames of {len(frames)}; 2 or more are needed"
        )
    held = held[:: -(-len(held) // _VALIDATION) or 1]  # some from beginning to end stand for all
    read = functools.lru_cache(_RECENT)(lambda i: _fit(frames.read(i), config))
    fits = len(chosen) * read(chosen[0]).nbytes <= config.memory_mib * _MIB
    sample = chosen if fits else chosen[:: -(-len(chosen) // MANY)]
    fitted, validation = _stacked(read, sample), _stacked(read, held)

    def arranged(part: str, scale: scaling.Scaling) -> tuple[Any, np.ndarray, _Lazy]:
        def one(i: int) -> np.ndarray:
            return scale.inward(_part(read(i), part))

        train = scale.inward(fitted[part]) if fits else _Lazy(one, chosen)
        kept = scale.inward(validation.get(part, fitted[part][:0]))
        return train, kept, _Lazy(one, members["test"])

    def preparing(part: str, scale: scaling.Scaling) -> Callable[[Frame], np.ndarray]:
        return lambda frame: scale.inward(_part(_fit(frame, config), part))

    def as_source(frame: Frame, name: str) -> Source:
        shown = _fit(frame, config)
        layers = tuple(as_source(layer, name) for layer in frame.layers)
        return Source(scale.inward(shown.image), shown.labels, name, layers)

    scale, conditions = _scaling(fitted["image"], depths.image, "range", config), None
    if depths.condition is not None:
        given = _scaling(fitted["condition"], depths.condition, "input_range", config)
        conditions = Conditions(*arranged("condition", given), given)
    name, frame = source_image.choose(frames, sample, fitted["image"], source, config)
    if source.mask:
        labels = label_image.labels_in(source.mask, frame.image.shape)
        frame = dataclasses.replace(frame, labels=labels)
    warped = as_source(frame, name)

    def start(own: list[int]) -> Source:
        few = own[:: -(-len(own) // MANY)]
        own_name, own_frame = source_image.medoid(frames, few, _stacked(read, few)["image"])
        return as_source(own_frame, own_name)

    return Dataset(
        *arranged("image", scale),
        source=warped,
        animals=animals.told_apart(of_each, chosen, warped, frames.names, start),
        scaling=scale,
        geometry=geometry.fit_to(frame.image.shape, config.size, config.aspect),
        split={
            "seed": config.seed,
            "by": "the data's own split" if frames.splits else "recording or block of time",
            "remarks": frames.skipped,
            "names": {s: [frames.names[i] for i in m] for s, m in members.items()},
            "blocks": {s: [block[i] for i in m] for s, m in members.items()},
        },
        prepare=preparing("image", scale),
        conditions=conditions,
        prepare_condition=preparing("condition", conditions.scaling) if conditions else None,
    )


def split_frames(
    frames: Frames, config: ml_collections.ConfigDict, of_each: animals.Members | None = None
) -> tuple[Sequence[str], list[int]]:
    """The split and the block of each frame: those it came with, else by blocks.

    Each animal of several is split as it would be alone, so that all are trained on and judged.
    """
    if frames.splits is not None:
        return frames.splits, splits.blocks(frames.recordings, frames.moments)
    split, block, count = [""] * len(frames), [0] * len(frames), 0
    for own in (of_each or animals.members(frames.recordings, "")).values():
        found = splits.assign(
            [frames.recordings[i] for i in own],
            [frames.moments[i] for i in own],
            validation=config.validation,
            test=config.test,
            seed=config.seed,
        )
        for i, own_split, own_block in zip(own, *found, strict=True):
            split[i], block[i] = own_split, count + own_block
        count = max(block) + 1
    return split, block


def _fit(frame: Frame, config: ml_collections.ConfigDict) -> Frame:
    out = geometry.fitted(frame, config.size, config.aspect)
    return dataclasses.replace(out, image=_blurred(out.image, config.blur))


def _part(frame: Frame, name: str) -> np.ndarray:
    """Its `image` or its `condition`."""
    value: np.ndarray | None = getattr(frame, name)
    if value is None:
        raise ValueError(f"{name}: this frame has none")
    return value


def _stacked(read: Callable[[int], Frame], indices: Sequence[int]) -> dict[str, np.ndarray]:
    """`image` `[N, S, S, C]` and, of pairs, `condition` `[N, S, S, K]`; nothing of no frames."""
    frames = [read(i) for i in indices]
    parts = [n for n in ("image", "condition") if frames and getattr(frames[0], n) is not None]
    return {name: np.stack([_part(frame, name) for frame in frames]) for name in parts}


def _scaling(
    fitted: np.ndarray, depth: scaling.Depth, limits: str, config: ml_collections.ConfigDict
) -> scaling.Scaling:
    """That of training frames by `data.scaling`: from percentiles, or the setting `limits`."""
    what, apart = "frames", {"": fitted}
    if limits == "input_range":
        what, apart = "frames' inputs", pairs.apart(fitted, config)
    if config.scaling == "range":
        (low, high), given = config[limits], f"data.{limits}:"
    else:
        given = "data.scaling: percentile gives the limits"
        low, high = (float(v) for v in np.percentile(fitted, config.percentiles))
        if not low < high:
            raise UserError(
                f"data.percentiles: {tuple(config.percentiles)} of the training {what} are {low:g}"
                f" and {high:g}: the images are constant; check data.path"
            )
    if config.scaling == "range" or len(apart) > 1:
        scaling.check_limits(given, low, high, what, apart)
    clipped = float(np.mean((fitted < low) | (fitted > high)))
    return scaling.Scaling(config.scaling, float(low), float(high), clipped, depth)


def _blurred(image: np.ndarray, kernel: int) -> np.ndarray:
    """Gaussian blur by kernel size as OpenCV defines it (the report's experiment)."""
    if not kernel:
        return image
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8  # cv2.getGaussianKernel
    radius = (kernel - 1) // 2
    return ndimage.gaussian_filter(
        image, (sigma, sigma, 0), radius=(radius, radius, 0), mode="mirror"
    )


class _Lazy(Sequence[np.ndarray]):
    """Frames of a set too large to hold, read and prepared when asked for."""

    def __init__(self, read: Callable[[int], np.ndarray], indices: list[int]) -> None:
        self._read, self._indices = read, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: Any) -> Any:
        return self._read(self._indices[i])
