"""TensorFlow Datasets in ArrayRecord shards, read and written without TensorFlow.

`read` takes any prepared dataset with an image feature; `write` makes one from any other source.
Images are stored as PNG of 8 or 16 bit, as any TFDS user expects; signed and floating-point input
is shifted to unsigned, and the shift is kept in the dataset's metadata. Pairs are an `image` and
the `condition` that it is to be predicted from.
"""

from __future__ import annotations

import atexit
import collections
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import imagecodecs
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from deformgan.data.folder import to_channels
from deformgan.data.frames import Frame, Frames, Labels
from deformgan.data.pairs import given_channels, input_of
from deformgan.data.scaling import Depth
from deformgan.data.splits import SPLITS
from deformgan.data.survey import Depths
from deformgan.errors import UserError

input_channels = given_channels  # by which it is known for a source of pairs
_VERSION = "1.0.0"
_METADATA = "deformgan"


def read(config: ml_collections.ConfigDict) -> Frames:
    """Opens the prepared dataset at `data.path`; images are decoded when asked for.

    If it has other splits than one, they are kept: train, validation, test. Its frames keep the
    recordings and labels that `write` stored. With `data.pairs` a frame's condition is the feature
    `condition`, or of other datasets the image feature that `data.inputs` names.
    """
    builder = _builder(config.path)
    features = builder.info.features
    images = sorted(n for n, f in features.items() if isinstance(f, tfds.features.Image))
    if not images:
        raise UserError(f"data.path: {config.path} has no image feature, only {list(features)}")
    metadata = (builder.info.metadata or {}).get(_METADATA, {})
    chosen = _chosen(images, ("condition",) if metadata else ("condition", config.inputs), config)
    decoders = {n: tfds.decode.SkipDecoding() for n in images}
    sources = {}
    for split in builder.info.splits:
        try:
            sources[split] = builder.as_data_source(split=split, decoders=decoders)
        except (OSError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"data.path: {config.path} cannot be read without TensorFlow ({error}); prepare it"
                " with file_format='array_record'"
            ) from error
    places = [(split, i) for split, source in sources.items() for i in range(len(source))]
    if not places:
        raise UserError(f"data.path: {config.path} holds no examples")

    def frame(i: int) -> Frame:
        split, position = places[i]
        return _frame(sources[split][position], chosen, metadata, config, f"{split}[{position}]")

    known = set(sources) <= set(SPLITS) and len(sources) > 1
    stored = metadata.get("frames", {})  # {split: {names, recordings}}

    def listed(what: str, otherwise: Callable[[str, int], Any]) -> list[Any]:
        return [stored[s][what][i] if s in stored else otherwise(s, i) for s, i in places]

    return Frames(
        names=listed("names", lambda s, i: f"{s}[{i}]"),
        recordings=listed("recordings", lambda s, i: s),
        moments=listed("moments", lambda s, i: i),
        read=frame,
        splits=[s for s, _ in places] if known else None,
        surveyed=bool(metadata),
    )


def _chosen(
    images: Sequence[str], inputs: Sequence[str], config: ml_collections.ConfigDict
) -> tuple[str, str]:
    """The features of the image and, among `inputs`, of its condition ('' without pairs)."""
    condition = next((n for n in inputs if n in images), "") if config.pairs else ""
    others = [n for n in ("image", *images) if n in images and n != condition]
    if config.pairs and not (condition and others):
        raise UserError(
            f"data.pairs: no pairs in {config.path}, which has the image features"
            f" {', '.join(images)} (looked for {' or '.join(inputs)}); prepare it with"
            " data.pairs=True, name the inputs' feature in data.inputs or set data.pairs=False"
        )
    return others[0], condition


def write(frames: Frames, splits: Sequence[str], depths: Depths, path: str, name: str) -> str:
    """Writes frames as a dataset `path/name/1.0.0` and returns that folder.

    Args:
      frames: to be written in this order, in their own size, with their conditions if any.
      splits: of each frame.
      depths: how values are stored as unsigned integers.
      path: local folder or gs:// bucket; made if absent.
      name: of the dataset, in snake case.

    Raises:
      UserError: if the dataset exists or cannot be written.
    """
    target = epath.Path(path) / name / _VERSION
    if target.exists():
        raise UserError(f"workdir: {target} exists; remove it or choose another --workdir")
    order: dict[str, list[int]] = collections.defaultdict(list)
    for i, split in enumerate(splits):
        order[split].append(i)
    first = frames.read(0)
    metadata = {
        **_units(first.image, depths.image),
        "frames": {
            split: {
                "names": [frames.names[i] for i in members],
                "recordings": [frames.recordings[i] for i in members],
                "moments": [frames.moments[i] for i in members],
            }
            for split, members in order.items()
        },
    }
    if first.condition is not None and depths.condition is not None:
        metadata["condition"] = _units(first.condition, depths.condition)
    tfds.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as staging:  # ArrayRecord writes to local files only
            local = staging if "://" in path else path
            _Writer(
                frames=frames,
                order=order,
                depths=depths,
                metadata=metadata,
                name=name,
                data_dir=local,
            ).download_and_prepare()
            if local == staging:
                _copy(epath.Path(staging) / name / _VERSION, target)
    except OSError as error:
        raise UserError(f"workdir: cannot write {target} ({error})") from error
    return str(target)


def _units(image: np.ndarray, depth: Depth) -> dict[str, Any]:
    """How stored values are read back: what `_restored` undoes."""
    return {"dtype": image.dtype.name, "step": depth.step, "offset": depth.offset}


def _copy(source: epath.Path, target: epath.Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        file.copy(target / file.name, overwrite=True)


class _Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A one-off builder over frames in memory."""

    VERSION = tfds.core.Version(_VERSION)

    def __init__(
        self,
        *,
        frames: Frames,
        order: Mapping[str, list[int]],
        depths: Depths,
        metadata: dict[str, Any],
        name: str,
        data_dir: str,
    ) -> None:
        self._frames, self._order, self._depths = frames, order, depths
        self._frames_metadata = metadata
        self.name = name
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        first, (image, condition) = self._frames.read(0), self._depths
        png = functools.partial(tfds.features.Image, encoding_format="png")
        features: dict[str, Any] = {
            "image": png(shape=(None, None, first.image.shape[-1]), dtype=np.dtype(image.dtype)),
            "mask": png(shape=(None, None, 1), dtype=np.uint16),
            "labelled": np.bool_,  # whether mask and points say anything
            "masked": np.bool_,
            "points": tfds.features.Sequence(
                {"id": np.int32, "row": np.float32, "column": np.float32}
            ),
        }
        if first.condition is not None and condition is not None:
            shape = (None, None, first.condition.shape[-1])
            features["condition"] = png(shape=shape, dtype=np.dtype(condition.dtype))
        return tfds.core.DatasetInfo(
            builder=self,
            description="Microscopy frames with their labels, written by deformgan.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict({_METADATA: self._frames_metadata}),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        return {split: self._generate_examples(members) for split, members in self._order.items()}

    def _generate_examples(self, members: list[int]) -> Iterator[tuple[int, dict]]:
        for number, i in enumerate(members):
            frame, (depth, depth_of_condition) = self._frames.read(i), self._depths
            paired = {}
            if frame.condition is not None and depth_of_condition is not None:
                paired = {"condition": _png(_stored(frame.condition, depth_of_condition))}
            labels = frame.labels
            mask = None if labels is None else labels.mask
            shown = np.zeros(frame.image.shape[:2], np.uint16) if mask is None else mask
            yield (
                number,
                {
                    **paired,
                    "image": _png(_stored(frame.image, depth)),
                    "mask": _png(shown.astype(np.uint16)),
                    "labelled": labels is not None,
                    "masked": mask is not None,
                    "points": [
                        {"id": identity, "row": row, "column": column}
                        for identity, (row, column) in (
                            zip(labels.ids, labels.points, strict=True) if labels else ()
                        )
                    ],
                },
            )


def _stored(image: np.ndarray, depth: Depth) -> np.ndarray:
    return np.round((image.astype(np.float64) - depth.offset) / depth.step).astype(depth.dtype)


def _restored(image: np.ndarray, units: Mapping[str, Any]) -> np.ndarray:
    dtype = np.dtype(units["dtype"])
    value = image.astype(np.float64) * units["step"] + units["offset"]
    return value.astype(dtype) if dtype != image.dtype else image


def _png(image: np.ndarray) -> bytes:
    flat = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(flat)))


def _builder(path: str) -> tfds.core.DatasetBuilder:
    if not path:
        raise UserError("data.path: not set; give the folder of a prepared TFDS dataset")
    root = epath.Path(path)
    if not root.exists():
        raise UserError(f"data.path: {path} does not exist")
    depths = ("*/" * depth for depth in range(4))  # path/name/config/version
    versions = sorted(i.parent for d in depths for i in root.glob(f"{d}dataset_info.json"))
    if not versions:
        raise UserError(
            f"data.path: no prepared TFDS dataset under {path} (looked for dataset_info.json)"
        )
    if len(versions) > 1:
        raise UserError(
            f"data.path: {len(versions)} datasets under {path}; give one of"
            f" {', '.join(str(v) for v in versions)}"
        )
    folder = versions[0]
    if "://" in path:  # ArrayRecord reads local files only
        local = epath.Path(tempfile.mkdtemp(prefix="deformgan-tfds-"))
        atexit.register(shutil.rmtree, local, ignore_errors=True)
        _copy(folder, local)
        folder = local
    return tfds.builder_from_directory(folder)


def _frame(
    example: dict[str, Any],
    chosen: tuple[str, str],
    metadata: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    name: str,
) -> Frame:
    image_name, condition_name = chosen
    image = _decoded(example[image_name], metadata, name)
    image = to_channels(image, config.channel, config.channels, name, colour=not metadata)
    condition = None
    if condition_name:
        given = _decoded(example[condition_name], metadata, name)
        condition = input_of(given, config, name, colour=not metadata)
    if not metadata:
        return Frame(image, condition=condition)
    image = _restored(image, metadata)
    if condition is not None:
        condition = _restored(condition, metadata["condition"])
    if not example["labelled"]:
        return Frame(image, condition=condition)
    mask = None
    if example["masked"]:
        mask = imagecodecs.png_decode(bytes(example["mask"])).astype(np.int32)
    points = example["points"]
    positions = np.stack([points["row"], points["column"]], -1).astype(np.float64)
    labels = Labels(mask, positions.reshape(-1, 2), np.asarray(points["id"]))
    return Frame(image, labels, condition=condition)


def _decoded(encoded: bytes, metadata: Mapping[str, Any], name: str) -> np.ndarray:
    try:
        image = np.asarray(imagecodecs.imread(bytes(encoded)))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"data.path: example {name} holds an unreadable image") from error
    if not metadata and image.ndim == 3 and image.shape[-1] in (2, 4):
        return image[..., :-1]  # transparency
    return image
