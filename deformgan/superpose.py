"""Several generators, each of one layer of an image, merged by superposition: the report's remedy.

Each layer is its own image with its own noise, and the brightest of them wins at every pixel. So
where images are noisy the background of what is merged is the largest of several draws, brighter
and less noisy than a camera's: a fault of the remedy, not of the merging.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import evaluate, intake, parallel, subjects
from deformgan.checkpoint import Checkpoints
from deformgan.data.scaling import Scaling
from deformgan.errors import UserError, resolve
from deformgan.judge import check, judge
from deformgan.log import progress, say
from deformgan.objectives.contract import Samples
from deformgan.page import Pictures
from deformgan.sample import generate
from deformgan.workdir import Workdir, to_json


def run(path: str, config: ml_collections.ConfigDict, parts: Sequence[str]) -> Pictures:
    """Judges the maximum of the samples of several runs by held-out whole images.

    Args:
      path: folder to write `config.json`, `split.json`, `evaluation.json` and `report.html` to.
      config: its `data` names the whole images; its `evaluate` is used.
      parts: workdirs of the runs, each trained on one layer.

    Returns:
      The pictures of the report.

    Raises:
      UserError: if a part has no checkpoint, or too few images were held out.
    """
    start = time.monotonic()
    parallel.keep_compilations()
    check(config.evaluate)
    workdir = Workdir(path, create=True)
    with workdir.writing():
        dataset = intake.load(config, workdir)
        workdir.write_json("config.json", to_json(config))
        workdir.write_json("split.json", dataset.split)
    usable, _ = subjects.usable_frames(dataset)
    if len(usable) < 2:
        raise UserError(f"data.test: {len(usable)} frames were held out; hold out 2 or more")
    num, seed = min(len(usable), config.evaluate.count), config.evaluate.seed
    say(f"superposing samples of {len(parts)} runs on {parallel.describe()}")
    draws = [drawn(part, seed * len(parts) + k, num) for k, part in enumerate(parts)]
    with progress(f"sampling {num} images", total=num) as advance:
        merged = (
            Samples(
                jnp.asarray(dataset.scaling.inward(functools.reduce(np.maximum, layers))), {}, {}
            )
            for layers in zip(*draws, strict=True)
        )
        subject = subjects.of_run(dataset, merged, config, advance)
    with workdir.writing():
        report = judge(subject, config.evaluate, encoder=workdir.local / "encoder.safetensors")
    about = {
        "kind": "superposition",
        "real": f"test frames of {config.data.source}:{config.data.path or config.data.set}",
        "fake": f"maximum of samples of {', '.join(parts)}",
        "split": "test",
    }
    return evaluate.finish(workdir, config, report, subject, about, start)


def drawn(part: str, seed: int, num: int) -> Iterator[np.ndarray]:
    """Samples of the newest checkpoint of a run, `[b, H, W, C]` in the input's units."""
    workdir = Workdir(part, create=False)
    own = workdir.config()
    checkpoints = Checkpoints(workdir.checkpoints, best=own.checkpoint.best, writable=False)
    sampler = checkpoints.sampler("newest")
    checkpoints.close()
    objective = resolve("objective", "deformgan.objectives", own.objective, "create").create(own)
    scaling = Scaling.from_json(sampler.meta["scaling"])
    depth = scaling.depth
    for part_of in generate(objective, sampler.variables, sampler.constants, seed=seed, num=num):
        yield scaling.outward(np.asarray(part_of.images)) * depth.step + depth.offset
