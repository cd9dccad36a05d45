"""From frames to a dataset: fit, blur, split, scale, choose the source image."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np
from scipy import ndimage

from deformgan.data import geometry, label_image, scaling, simulated, splits
from deformgan.data.frames import Frame, Frames, Labels
from deformgan.errors import UserError, choose, resolve

BLURS = (0, 3, 11, 51, 127)
_SURVEY = 1000  # frames of a set too large to hold that the intensity limits are taken from
_VALIDATION = 512  # validation frames that are held, at most
_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Source:
    """The image that is warped: `[S, S, C]` float32 in [-1, 1], its labels, where it came from.

    `layers` are images of its structures, whose maximum it is; empty where unknown.
    """

    image: np.ndarray
    labels: Labels | None
    name: str
    layers: tuple[Source, ...] = ()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Frames made ready for training.

    Attributes:
      train: images `[S, S, C]` float32 in [-1, 1] by index: one array if they fit, else read anew.
      validation: `[N, S, S, C]`, at most 512, for choosing checkpoints; may be empty.
      test: by index, read anew each time: for the last judgement alone.
      source: the image to warp.
      scaling: how intensities map to the input's units.
      geometry: how the source frame was fitted to `data.size`.
      split: for the record: its seed, and the names and blocks of the frames of every split.
      prepare: fits, blurs and scales any frame as those above.
    """

    train: Sequence[np.ndarray] | np.ndarray
    validation: np.ndarray
    test: Sequence[np.ndarray]
    source: Source
    scaling: scaling.Scaling
    geometry: geometry.Fit
    split: dict[str, Any]
    prepare: Callable[[Frame], np.ndarray]

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
    for key in ("percentiles", "range"):
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
        frames = frames.subset(_of_recordings(frames.recordings, config.recordings))
    held = len(frames) * frames.read(0).image.nbytes <= config.memory_mib * _MIB
    if not held:
        return frames
    cache: dict[int, Frame] = {}

    def cached(i: int) -> Frame:
        if i not in cache:
            cache[i] = frames.read(i)
        return cache[i]

    return dataclasses.replace(frames, read=cached)


def _of_recordings(recordings: Sequence[str], wanted: str) -> list[int]:
    """Indices of the frames whose recording one of the patterns `wanted` names."""
    patterns = [pattern.strip() for pattern in wanted.split(",")]
    for pattern in patterns:
        if not fnmatch.filter(recordings, pattern):
            known = sorted(set(recordings))
            more = f" and {len(known) - 5} more" if len(known) > 5 else ""
            raise UserError(
                f"data.recordings: no recording is called {pattern!r}; there are"
                f" {', '.join(map(repr, known[:5]))}{more}"
            )
    return [i for i, own in enumerate(recordings) if any(fnmatch.fnmatch(own, p) for p in patterns)]


def build(
    frames: Frames, config: ml_collections.ConfigDict, source: ml_collections.ConfigDict
) -> Dataset:
    """Splits, fits and scales frames.

    Args:
      frames: as screened.
      config: the `data` block.
      source: the `source` block: which image is warped.

    Returns:
      the dataset, its training images in one array if they take at most `data.memory_mib`.

    Raises:
      UserError: naming what does not fit: mixed sizes or depths, an unknown source image.
    """
    depth = survey(frames, config)
    split, block = split_frames(frames, config)
    members = {s: [i for i, own in enumerate(split) if own == s] for s in splits.SPLITS}

    def fit(frame: Frame) -> Frame:
        out = geometry.fitted(frame, config.size, config.aspect)
        return dataclasses.replace(out, image=_blurred(out.image, config.blur))

    chosen = members["train"]
    if len(chosen) < 2:
        raise UserError(
            f"data: {len(chosen)} training frames of {len(frames)}; 2 or more are needed"
        )
    bytes_needed = len(chosen) * config.size**2 * config.channels * 4
    fits = bytes_needed <= config.memory_mib * _MIB
    sample = chosen if fits else chosen[:: -(-len(chosen) // _SURVEY)]
    fitted = np.stack([fit(frames.read(i)).image for i in sample])
    scale = _scaling(fitted, depth, config)

    def prepare(frame: Frame) -> np.ndarray:
        return scale.inward(fit(frame).image)

    def as_source(frame: Frame, name: str) -> Source:
        shown = fit(frame)
        layers = tuple(as_source(layer, name) for layer in frame.layers)
        return Source(scale.inward(shown.image), shown.labels, name, layers)

    train = scale.inward(fitted) if fits else _Lazy(frames, chosen, prepare)
    held = members["validation"]  # of many, some from beginning to end stand for all
    validation = [prepare(frames.read(i)) for i in held[:: -(-len(held) // _VALIDATION) or 1]]
    empty = np.zeros((0, config.size, config.size, config.channels), np.float32)
    name, frame = _choose_source(frames, sample, fitted, source, config)
    if source.mask:
        labels = label_image.labels_in(source.mask, frame.image.shape)
        frame = dataclasses.replace(frame, labels=labels)
    return Dataset(
        train=train,
        validation=np.stack(validation) if validation else empty,
        test=_Lazy(frames, members["test"], prepare),
        source=as_source(frame, name),
        scaling=scale,
        geometry=geometry.fit_to(frame.image.shape, config.size, config.aspect),
        split={
            "seed": config.seed,
            "by": "the data's own split" if frames.splits else "recording or block of time",
            "remarks": frames.skipped,
            "names": {s: [frames.names[i] for i in m] for s, m in members.items()},
            "blocks": {s: [block[i] for i in m] for s, m in members.items()},
        },
        prepare=prepare,
    )


def split_frames(
    frames: Frames, config: ml_collections.ConfigDict
) -> tuple[Sequence[str], list[int]]:
    """The split and the block of each frame: those it came with, else by blocks."""
    if frames.splits is not None:
        return frames.splits, splits.blocks(frames.recordings, frames.moments)
    return splits.assign(
        frames.recordings,
        frames.moments,
        validation=config.validation,
        test=config.test,
        seed=config.seed,
    )


def survey(frames: Frames, config: ml_collections.ConfigDict) -> scaling.Depth:
    """How the frames' values are held as unsigned integers.

    Reads all frames (some, of a prepared set too large to hold).

    Raises:
      UserError: if they differ in depth, or in size without a policy for it.
    """
    step = 1
    if frames.surveyed and len(frames) * frames.read(0).image.nbytes > config.memory_mib * _MIB:
        step = -(-len(frames) // _SURVEY)
    low, high = np.inf, -np.inf
    first = frames.read(0).image
    odd: list[int] = []
    for i in range(0, len(frames), step):
        image = frames.read(i).image
        if image.dtype != first.dtype:
            raise UserError(
                f"data.path: mixed depths: {frames.names[0]} holds {first.dtype},"
                f" {frames.names[i]} {image.dtype}; convert them to one"
            )
        if image.shape != first.shape:
            odd.append(i)
        low, high = min(low, float(image.min())), max(high, float(image.max()))
    if odd and config.mixed_sizes == "refuse":
        h, w, _ = frames.read(odd[0]).image.shape
        raise UserError(
            f"data.path: mixed sizes: {len(odd)} of {len(frames)} images are not"
            f" {first.shape[0]}x{first.shape[1]} (first: {frames.names[odd[0]]} is {h}x{w}); set"
            " data.mixed_sizes=fit to fit each by data.aspect, or data.screen=drop to leave out"
            " those of unusual size"
        )
    return scaling.Depth.of(first.dtype, low, high)


def _scaling(
    fitted: np.ndarray, depth: scaling.Depth, config: ml_collections.ConfigDict
) -> scaling.Scaling:
    if config.scaling == "range":
        low, high = config.range
    else:
        low, high = (float(v) for v in np.percentile(fitted, config.percentiles))
        if not low < high:
            raise UserError(
                f"data.percentiles: {tuple(config.percentiles)} of the training frames are {low:g}"
                f" and {high:g}: the images are constant; check data.path"
            )
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


def _choose_source(
    frames: Frames,
    train: list[int],
    fitted: np.ndarray,
    source: ml_collections.ConfigDict,
    config: ml_collections.ConfigDict,
) -> tuple[str, Frame]:
    """The image that `source.image` names: auto, simulated, an index or a frame's name."""
    wanted = str(source.image)
    if wanted == "simulated":
        name = source.set or config.set
        frame = simulated.source_image(name, config.size, config.seed, config.layer)
        if config.channels != 1:
            raise UserError("source.image: simulated images are grey; set data.channels to 1")
        return f"simulated:{name}", _in_units_of(frame, fitted)
    if wanted == "auto":
        if frames.reference is not None:
            return "simulated:reference", frames.reference
        best = train[_medoid(fitted)]
        return frames.names[best], frames.read(best)
    names = list(frames.names)
    if wanted in names:
        index = names.index(wanted)
    elif wanted.isdigit() and int(wanted) < len(names):
        index = int(wanted)
    else:
        raise UserError(
            f"source.image: {wanted!r} is neither 'auto', 'simulated', an index below"
            f" {len(names)} nor the name of a frame such as {names[0]!r}"
        )
    return names[index], frames.read(index)


def _in_units_of(frame: Frame, fitted: np.ndarray) -> Frame:
    """Stretches a simulated image over the intensities of the training frames."""
    low, high = np.percentile(fitted, (0.0, 99.99))
    layers = tuple(_in_units_of(layer, fitted) for layer in frame.layers)
    return dataclasses.replace(frame, image=low + frame.image / 255 * (high - low), layers=layers)


def _medoid(images: np.ndarray) -> int:
    """The image nearest to the mean of all, blurred so that noise does not decide."""
    smooth = ndimage.gaussian_filter(images, (0, 2, 2, 0))
    return int(np.argmin(np.square(smooth - smooth.mean(0)).sum((1, 2, 3))))


class _Lazy(Sequence[np.ndarray]):
    """Frames of a set too large to hold, read and prepared when asked for."""

    def __init__(
        self, frames: Frames, indices: list[int], prepare: Callable[[Frame], np.ndarray]
    ) -> None:
        self._frames, self._indices, self._prepare = frames, indices, prepare

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: Any) -> Any:
        return self._prepare(self._frames.read(self._indices[i]))
