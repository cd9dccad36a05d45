r"""The purpose: do generated pairs help where one volume is annotated and three are not?

    python -m deformgan.main --config=configs/worms.py --workdir=RUN \
        --config.data.source=targettrack --config.data.path=worm_volumes.h5 \
        --config.data.z_ranges=0:32,8:16,12:20,16:24 --config.data.validation=0 \
        --config.data.test=0 --config.source.image='worm_volumes.h5#0[0:32]' --config.train.steps=0
    python -m deformgan.main --mode=sample --workdir=RUN --num=256 --out=PAIRS
    python benchmarks/purpose.py --generated=PAIRS --unlabelled [--out=purpose.json]

Trains a small U-Net (benchmarks/segmenter.py) that names cells on the projections of one annotated
volume of shared/data/worms/targettrack/worm_volumes.h5 and tests it on the same projections of the
others, which are of the same worm at other moments, with the same identities. Arms have the same
steps, batch size and learning rate; generated pairs are half of each batch of their arms. Seeds
change the network's initialisation, batches and augmentation, not the generator: the spread says
nothing of other generators, worms or volumes.

The generator above sees the images of all four volumes, the masks of volume 0 alone; that is
refused without --unlabelled. One volume's projections show no motion, so a generator of those alone
has none to learn. To keep a test volume from the generator altogether, leave its frames out by
--config.data.exclude (a file of their names) and test on it alone with --test.

Measured, mean and standard deviation of 5 seeds, 300 steps of 4, 9 minutes on one busy core (and 4
for the generator), Dice of all cells and of the five identities that every volume shows:

                     Dice, all cells   Dice, identity    found in 5 px
  none                0.633 +- 0.036   0.241 +- 0.027   0.251 +- 0.090
  flips_rotations     0.760 +- 0.011   0.368 +- 0.078   0.450 +- 0.095
  elastic             0.715 +- 0.022   0.343 +- 0.067   0.429 +- 0.170
  both                0.762 +- 0.019   0.361 +- 0.057   0.411 +- 0.069
  generated           0.692 +- 0.007   0.414 +- 0.018   0.580 +- 0.052
  generated_elastic   0.702 +- 0.009   0.429 +- 0.020   0.617 +- 0.077
  generated_both      0.744 +- 0.014   0.400 +- 0.043   0.421 +- 0.099

Generated pairs, alone or with elastic ones, find cells better than any arm without them; they also
have the highest Dice by identity, but beside flips and rotations within the spread of seeds. At
outlining all cells they beat no augmentation (5 of 5 seeds), not flips and rotations; added to all
others they change nothing clearly. One worm, one training volume, one generator (commit 882e3a6).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import segmenter
from benchmarks.segmenter import Pairs
from configs import base
from deformgan import parallel
from deformgan.data import geometry, pipeline, targettrack
from deformgan.data.scaling import Scaling
from deformgan.errors import UserError
from deformgan.imaging import screening

ARMS = {  # the augmentation, and whether half of the batch is generated
    "none": ("none", False),
    "flips_rotations": ("flips_rotations", False),
    "elastic": ("elastic", False),
    "both": ("both", False),
    "generated": ("none", True),
    "generated_elastic": ("elastic", True),
    "generated_both": ("both", True),
}


class Volumes(NamedTuple):
    """The projections of each volume by its number, and the intensities they were scaled by."""

    pairs: dict[str, Pairs]
    scaling: tuple[float, float]


def volume_of(name: str) -> str:
    """'0' of the frame 'worm_volumes.h5#0[0:32]'."""
    return name.rpartition("#")[2].partition("[")[0]


def class_of(masks: np.ndarray, identities: list[int]) -> np.ndarray:
    """Classes of instance masks: 0 background, 1.. the identities, last every other cell."""
    table = np.full(65536, len(identities) + 1, np.int32)
    table[0] = 0
    table[identities] = np.arange(1, len(identities) + 1)
    return table[masks]


def read(arguments: argparse.Namespace) -> Volumes:
    """Projections, fitted to the size and scaled to [-1, 1] by the training volume's limits."""
    config = base.get_config().data
    config.path, config.z_ranges = str(arguments.data), arguments.z_ranges
    frames = targettrack.read(config)
    by_volume: dict[str, list[Any]] = {}
    for i, name in enumerate(frames.names):
        frame = geometry.fitted(frames.read(i), arguments.size, config.aspect)
        if frame.labels is None or frame.labels.mask is None:
            raise UserError(f"data: {name} has no mask")
        by_volume.setdefault(volume_of(name), []).append(frame)
    for volume in (arguments.train, *arguments.test):
        if volume not in by_volume:
            raise UserError(f"train, test: no volume {volume}; there are {', '.join(by_volume)}")
    known = np.stack([frame.image for frame in by_volume[arguments.train]])
    low, high = (float(v) for v in np.percentile(known, config.percentiles))
    pairs = {
        volume: Pairs(
            scaled(np.stack([frame.image for frame in own]), low, high),
            class_of(np.stack([frame.labels.mask for frame in own]), arguments.identities),
        )
        for volume, own in by_volume.items()
    }
    return Volumes(pairs, (low, high))


def scaled(images: np.ndarray, low: float, high: float) -> np.ndarray:
    """Images in their own units to float32 in [-1, 1]."""
    return (2 * np.clip((images - low) / (high - low), 0, 1) - 1).astype(np.float32)


def read_generated(
    folder: Path, volumes: Volumes, arguments: argparse.Namespace
) -> tuple[Pairs, dict[str, Any]]:
    """The pairs that sample mode wrote, and what their generator saw.

    Raises:
      UserError: if it was shown a test volume's mask, or images without --unlabelled, or if the
        pairs have no masks or another size.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        with np.load(folder / "samples.npz") as arrays:
            stored = {name: arrays[name] for name in ("images", "masks")}
    except (OSError, KeyError) as error:
        raise UserError(f"generated: {folder} holds no pairs of sample mode ({error})") from error
    size = arguments.size
    if stored["images"].shape[1:] != (size, size, 1):
        raise UserError(
            f"generated: images {stored['images'].shape}; wanted [N, {size}, {size}, 1]"
        )
    source, config = manifest["source"], ml_collections.ConfigDict(manifest["config"])
    if volume_of(source) != arguments.train:
        raise UserError(f"generated: masks are those of {source}, not of volume {arguments.train}")
    seen = volumes_seen(config.data)
    leaked = sorted(set(seen) & set(arguments.test))
    if leaked and not arguments.unlabelled:
        raise UserError(
            f"generated: the generator saw images of test volumes {', '.join(leaked)}; say"
            " --unlabelled to allow that, or leave them out of its training or of --test"
        )
    depth = Scaling.from_json(manifest["scaling"]).depth
    images = scaled(stored["images"] * depth.step + depth.offset, *volumes.scaling)
    facts = {"folder": str(folder), "pairs": len(images), "objective": config.objective}
    facts |= {"mask_of": source, "images_of_volumes": seen, "test_images_seen": leaked}
    masks = stored["masks"].reshape(images.shape[:3])
    return Pairs(images, class_of(masks, arguments.identities)), facts


def volumes_seen(config: ml_collections.ConfigDict) -> list[str]:
    """The volumes among the training frames of a run with this `data` block."""
    frames = screening.screen(targettrack.read(config), config).kept
    split = pipeline.split_frames(frames, config)[0]
    trained = [name for name, own in zip(frames.names, split, strict=True) if own == "train"]
    return sorted({volume_of(name) for name in trained})


def score(params: Any, volumes: Volumes, arguments: argparse.Namespace) -> dict[str, Any]:
    """Dice of all cells and of each identity, in each test volume, its projections pooled."""
    count = len(arguments.identities)
    out: dict[str, Any] = {}
    for volume in arguments.test:
        images, truth = volumes.pairs[volume]
        guess = segmenter.predict(params, images, count + 2)
        named = [(guess == c, truth == c) for c in range(1, count + 1)]
        out[volume] = {
            "foreground": segmenter.dice(guess > 0, truth > 0),
            "identities": [segmenter.dice(*pair) for pair in named],
            "found": [segmenter.found(*pair) for pair in named],
        }
    return out


def average(scores: dict[str, Any]) -> dict[str, float]:
    """Each score's mean over volumes, and over the identities there are."""
    return {
        name: float(np.mean([np.nanmean(own[name]) for own in scores.values()]))
        for name in ("foreground", "identities", "found")
    }


def measure(
    volumes: Volumes, generated: Pairs | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Trains and tests every arm with every seed, saying each as it is done."""
    results: dict[str, Any] = {}
    for arm in arguments.arms:
        kind, mixed = ARMS[arm]
        results[arm] = {"runs": []}
        for seed in range(arguments.seeds):
            start = time.perf_counter()
            params = segmenter.trained(
                volumes.pairs[arguments.train],
                generated if mixed else None,
                kind=kind,
                classes=len(arguments.identities) + 2,
                steps=arguments.steps,
                batch=arguments.batch,
                seed=seed,
            )
            own = score(params, volumes, arguments)
            seconds = time.perf_counter() - start
            run = {"seed": seed, "seconds": seconds, "mean": average(own), "volumes": own}
            results[arm]["runs"].append(run)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in run["mean"].items())
            print(f"{arm:18s} seed {seed}: {shown}  ({seconds:.0f} s)", flush=True)
        for name in run["mean"]:
            values = [run["mean"][name] for run in results[arm]["runs"]]
            std = np.std(values, ddof=int(len(values) > 1))
            results[arm][name] = {"mean": np.mean(values), "std": std}
    return results


def table(results: dict[str, Any]) -> str:
    """One line an arm: mean and standard deviation over seeds."""
    lines = [f"{'arm':18s} {'Dice, all cells':>16s} {'Dice, identity':>16s} {'found in 5 px':>16s}"]
    for arm, own in results.items():
        cells = [own[name] for name in ("foreground", "identities", "found")]
        lines.append(f"{arm:18s} " + " ".join(f"{c['mean']:8.3f} ± {c['std']:.3f}" for c in cells))
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    home = Path(os.environ.get("DEFORMGAN_DATA", "../shared/data"))
    data = home / "worms" / "targettrack" / "worm_volumes.h5"
    listed = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=data, help="Targettrack file with masks")
    parser.add_argument("--generated", type=Path, help="folder of sample mode; else no such arms")
    parser.add_argument("--unlabelled", action="store_true", help="it may see test images")
    parser.add_argument("--train", default="0", help="the annotated volume")
    parser.add_argument("--test", type=listed, default=["1", "2", "3"], help="volumes")
    parser.add_argument("--z_ranges", default="0:32,8:16,12:20,16:24", help="planes to project")
    parser.add_argument("--identities", type=listed, default=["6", "7", "8", "10", "12"])
    parser.add_argument("--arms", type=listed, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=128, help="multiple of 16")
    parser.add_argument("--out", type=Path, default=Path("purpose.json"))
    arguments = parser.parse_args(argv)
    arguments.identities = [int(i) for i in arguments.identities]
    if set(arguments.arms) - set(ARMS):
        parser.error(f"--arms: choose from {', '.join(ARMS)}")
    if arguments.train in arguments.test:
        parser.error(f"--test: volume {arguments.train} is the one trained on")
    if arguments.generated is None:
        arguments.arms = [arm for arm in arguments.arms if not ARMS[arm][1]]
    return arguments


def main(argv: list[str] | None = None) -> None:
    start = time.perf_counter()
    arguments = parse(argv)
    parallel.keep_memory()
    volumes = read(arguments)
    generated, facts = None, None
    if arguments.generated is not None:
        generated, facts = read_generated(arguments.generated, volumes, arguments)
        print(f"generator: {json.dumps(facts)}", flush=True)
    results = measure(volumes, generated, arguments)
    print(table(results))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    record = {
        "command": " ".join(sys.argv if argv is None else ["benchmarks/purpose.py", *argv]),
        "settings": settings,
        "split": {"train": arguments.train, "test": arguments.test},
        "generator": facts,
        "seconds": time.perf_counter() - start,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, {parallel.describe()}",
        "jax": jax.__version__,
        "results": results,
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {arguments.out} after {record['seconds']:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"purpose: {error}")
