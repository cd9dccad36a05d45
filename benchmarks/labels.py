r"""Do labels move with the image? One simulated image's masks and points, carried to new ones.

    python -m deformgan.main --config=configs/worms.py --workdir=RUN
    python benchmarks/labels.py --run=RUN [--count=100]

Draws images that the run has not seen, registers them to its atlas, moves the source's labels along
and compares them with the simulator's truth: Dice of each soma's mask, distance of the points.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from deformgan.checkpoint import Checkpoints
from deformgan.data import simulated
from deformgan.data.scaling import Scaling
from deformgan.imaging import annotation, estimation, template
from deformgan.imaging.atlas import coordinates
from deformgan.objectives.atlas import settings
from deformgan.workdir import Workdir

SEED = 77005  # of the images drawn


def main() -> None:
    """Prints mean, standard deviation and least of the Dice of each soma, errors of the points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="workdir of a run on simulated images")
    parser.add_argument("--count", type=int, default=100, help="images to move labels to")
    args = parser.parse_args()
    workdir = Workdir(args.run, create=False)
    config = workdir.config()
    saved = Checkpoints(workdir.checkpoints, best=config.checkpoint.best, writable=False)
    state = saved.sampler("newest")
    model = jax.tree.map(jnp.asarray, estimation.unpacked(state.constants))
    truth = simulated.draw(0, args.count, SEED, config.data.set, config.data.size)
    images = (Scaling.from_json(state.meta["scaling"]).inward(truth.image)[..., 0] + 1) / 2
    masks, points = moved(model, np.asarray(images, np.float32), settings(config.fit))
    print(f"{config.data.set}, {args.count} new images")
    for soma in (1, 2):
        there = truth.masks[:, soma - 1]
        both = np.sum((masks == soma) & there, (1, 2))
        dice = 2 * both / (np.sum(masks == soma, (1, 2)) + np.sum(there, (1, 2)))
        print(f"  soma {soma}: Dice {dice.mean():.3f} +- {dice.std():.3f}, least {dice.min():.3f}")
    ids = truth.ids[0].tolist()
    order = [ids.index(k) for k in np.asarray(model.annotation.ids)]
    away = np.linalg.norm(points - truth.points[:, order], axis=-1)  # pixels
    for name, chosen in (("somata", np.less), ("neurites", np.greater)):
        error = away[:, chosen(np.asarray(model.annotation.ids), 100)]
        near = np.nanmean(error < 3)
        print(f"  points on {name}: median {np.nanmedian(error):.2f} px, {near:.0%} within 3 px")


def moved(
    model: estimation.Model, images: np.ndarray, plan: template.Settings
) -> tuple[np.ndarray, np.ndarray]:
    """The run's labels on images `[N, S, S]` in unit intensity: masks and points."""
    motion = template.placed(images, model.atlas, model.camera, plan)
    size = images.shape[1]
    masks, points = [], []
    for first in range(0, len(images), 20):
        part = jax.tree.map(lambda x, i=first: jnp.asarray(x[i : i + 20]), motion)
        where = coordinates(model.atlas, part, size, plan.nodes)
        masks.append(annotation.moved_masks(model.annotation, where)[..., 0])
        found = annotation.moved_points(model.annotation, model.atlas, part, plan.nodes)
        points.append(found[0])
    return np.concatenate(masks), np.concatenate(points)


if __name__ == "__main__":
    main()
