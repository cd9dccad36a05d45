"""TensorFlow Datasets in ArrayRecord shards, read and written without TensorFlow.

`read` takes any prepared dataset with an image feature; `write` makes one from any other source.
Images are stored as PNG of 8 or 16 bit, as any TFDS user expects; signed and floating-point input
is shifted to unsigned, and the shift is kept in the dataset's metadata.
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
from deformgan.data.scaling import Depth
from deformgan.data.splits import SPLITS
from deformgan.errors import UserError

_VERSION = "1.0.0"
_METADATA = "deformgan"


def read(config: ml_collections.ConfigDict) -> Frames:
    """Opens the prepared dataset at `data.path`; images are decoded when asked for.

    If it has other splits than one, they are kept: train, validation, test. Its frames keep the
    recordings and labels that `write` stored.
    """
    builder = _builder(config.path)
    features = builder.info.features
    images = [n for n, f in features.items() if isinstance(f, tfds.features.Image)]
    image_name = next((n for n in ("image", *images) if n in images), None)
    if image_name is None:
        raise UserError(f"data.path: {config.path} has no image feature, only {list(features)}")
    metadata = (builder.info.metadata or {}).get(_METADATA, {})
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
        return _frame(
            sources[split][position], image_name, metadata, config, f"{split}[{position}]"
        )

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


def write(frames: Frames, splits: Sequence[str], depth: Depth, path: str, name: str) -> str:
    """Writes frames as a dataset `path/name/1.0.0` and returns that folder.

    Args:
      frames: to be written in this order, in their own size.
      splits: of each frame.
      depth: how input values are stored as unsigned integers.
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
    dtype = frames.read(0).image.dtype.name
    metadata = {
        "dtype": dtype,
        "step": depth.step,
        "offset": depth.offset,
        "frames": {
            split: {
                "names": [frames.names[i] for i in members],
                "recordings": [frames.recordings[i] for i in members],
                "moments": [frames.moments[i] for i in members],
            }
            for split, members in order.items()
        },
    }
    tfds.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as staging:  # ArrayRecord writes to local files only
            local = staging if "://" in path else path
            _Writer(
                frames=frames,
                order=order,
                depth=depth,
                metadata=metadata,
                name=name,
                data_dir=local,
            ).download_and_prepare()
            if local == staging:
                _copy(epath.Path(staging) / name / _VERSION, target)
    except OSError as error:
        raise UserError(f"workdir: cannot write {target} ({error})") from error
    return str(target)


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
        depth: Depth,
        metadata: dict[str, Any],
        name: str,
        data_dir: str,
    ) -> None:
        self._frames, self._order, self._depth = frames, order, depth
        self._frames_metadata = metadata
        self.name = name
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        channels = self._frames.read(0).image.shape[-1]
        png = functools.partial(tfds.features.Image, encoding_format="png")
        features: dict[str, Any] = {
            "image": png(shape=(None, None, channels), dtype=np.dtype(self._depth.dtype)),
            "mask": png(shape=(None, None, 1), dtype=np.uint16),
            "labelled": np.bool_,  # whether mask and points say anything
            "masked": np.bool_,
            "points": tfds.features.Sequence(
                {"id": np.int32, "row": np.float32, "column": np.float32}
            ),
        }
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
            frame = self._frames.read(i)
            stored = np.round(
                (frame.image.astype(np.float64) - self._depth.offset) / self._depth.step
            )
            labels = frame.labels
            mask = None if labels is None else labels.mask
            shown = np.zeros(stored.shape[:2], np.uint16) if mask is None else mask
            yield (
                number,
                {
                    "image": _png(stored.astype(self._depth.dtype)),
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
    image_name: str,
    metadata: Mapping[str, Any],
    config: ml_collections.ConfigDict,
    name: str,
) -> Frame:
    encoded = example[image_name]
    try:
        image = np.asarray(imagecodecs.imread(bytes(encoded)))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"data.path: example {name} holds an unreadable image") from error
    if not metadata and image.ndim == 3 and image.shape[-1] in (2, 4):
        image = image[..., :-1]  # transparency
    image = to_channels(image, config.channel, config.channels, name, colour=not metadata)
    if not metadata:
        return Frame(image)
    dtype = np.dtype(metadata["dtype"])
    value = image.astype(np.float64) * metadata["step"] + metadata["offset"]
    image = value.astype(dtype) if dtype != image.dtype else image
    if not example["labelled"]:
        return Frame(image)
    mask = None
    if example["masked"]:
        mask = imagecodecs.png_decode(bytes(example["mask"])).astype(np.int32)
    points = example["points"]
    positions = np.stack([points["row"], points["column"]], -1).astype(np.float64)
    return Frame(image, Labels(mask, positions.reshape(-1, 2), np.asarray(points["id"])))
