"""--mode=prepare: any source to a TFDS dataset in ArrayRecord shards."""

from __future__ import annotations

import ml_collections

from deformgan.data import pipeline, tfds
from deformgan.intake import screen
from deformgan.log import say
from deformgan.workdir import Workdir


def run(config: ml_collections.ConfigDict, path: str) -> None:
    """Screens and splits the frames of `config.data` and writes them, in their own size.

    Raises:
      UserError: for bad input, or if the dataset exists already.
    """
    pipeline.check(config.data)
    workdir = Workdir(path, create=True)
    frames = screen(pipeline.open_frames(config.data), config.data, workdir)
    depths = pipeline.survey(frames, config.data)
    split, _ = pipeline.split_frames(frames, config.data)
    target = tfds.write(frames, split, depths, str(workdir.root / "dataset"), "frames")
    counts = ", ".join(f"{split.count(s)} {s}" for s in dict.fromkeys(split))
    given, paired = frames.read(0).condition, ""
    if given is not None:
        paired = f" --config.data.pairs=True --config.data.input_channels={given.shape[-1]}"
    say(
        f"wrote {counts} frames to {target}\n"
        f"  train on them with --config.data.source=tfds --config.data.path={target}{paired}"
    )
    workdir.close()
