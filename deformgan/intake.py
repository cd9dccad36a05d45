"""From the source to a dataset: read, screen, split and scale, and write down what was found."""

from __future__ import annotations

import ml_collections

from deformgan import parallel, report
from deformgan.data import pairs, pipeline
from deformgan.data.frames import Frames
from deformgan.imaging import screening
from deformgan.log import say
from deformgan.workdir import Workdir

_OF_ANIMALS = "atlas"  # the objective that tells animals apart
_WARPING = ("atlas", "deform")  # objectives that the source image plays a part in


def load(config: ml_collections.ConfigDict, workdir: Workdir) -> pipeline.Dataset:
    """Reads, screens, splits and scales the data; says and writes what was found."""
    frames = pipeline.open_frames(config.data)
    screened = screen(frames, config.data, workdir)
    apart = config.fit.get("animals", "") if config.objective == _OF_ANIMALS else ""
    dataset = pipeline.build(screened, config.data, config.source, apart)
    counts = ", ".join(f"{len(names)} {split}" for split, names in dataset.split["names"].items())
    clipped = f"{dataset.scaling.clipped:.2%} of their pixels clipped"
    if dataset.conditions is not None:
        clipped += f", {dataset.conditions.scaling.clipped:.2%} of their inputs'"
    warped = config.objective in _WARPING
    say(f"frames: {counts}; {clipped}" + warped * f"; source image {dataset.source.name}")
    for animal in dataset.animals if len(dataset.animals) > 1 else ():
        say(f"animal {animal.name}: {len(animal.train)} frames; source image {animal.source.name}")
    for name in ("validation", "test") if warped else ():
        if dataset.source.name in dataset.split["names"][name]:
            say(
                f"warning: the source image is a {name} frame: scores on that split will flatter;"
                " choose one of the training frames in split.json with --config.source.image"
            )
    return dataset


def screen(frames: Frames, config: ml_collections.ConfigDict, workdir: Workdir) -> Frames:
    """Screens frames, says what was found, writes `screening.csv` and a picture of the flagged."""
    if frames.skipped:
        say(f"data.path: {frames.skipped}")
    if pairs.lose_colour(config):
        say("colour inputs are mixed to grey; to keep their colours set data.input_channels=3")
    screened = screening.screen(frames, config)
    if screened.rows and parallel.is_main():
        say(screening.summary(screened))
        screening.write_csv(screened.rows, workdir.local / "screening.csv")
        if screened.flagged:
            file = workdir.local / "screening.png"
            report.thumbnails(file, frames, screened.rows, screened.flagged)
            say(f"  see {workdir.root / 'screening.csv'} and screening.png")
    return screened.kept
