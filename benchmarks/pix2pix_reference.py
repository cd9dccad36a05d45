r"""A plain Pix2Pix in PyTorch beside a run of ours: same pairs, networks, steps and judge.

    python -m deformgan.main --config=configs/pix2pix.py:facades --workdir=RUN \
        --config.data.path=../shared/data/facades/train
    python benchmarks/pix2pix_reference.py --run=RUN [--out=FILE.json] [--picture=FILE.png]

Needs PyTorch (pip install -e '.[bench]'), or in --torch_python a Python that has it. The reference,
`pix2pix_torch.py`, is the recipe of Isola et al. 2017 in eager float32 with all that the run's
config says: widths, norms, dropout, initial spread, losses, Adam and its decay, batch size, jitter,
flips, steps, seed. In both, as in their code, a step predicts once for both players. Both
predict the test pairs with the last weights and the running averages of batch norm, and are judged
as in --mode=evaluate. Steps are timed by turns, each in its own process, in seconds of wall and of
CPU. First of all, both networks must have equally many parameters and, of the same weights, the
same outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

sys.path.insert(0, str(Path(__file__).parent.parent))
from deformgan import intake, optim, parallel, predictions, subjects
from deformgan.checkpoint import Checkpoints, Sampler
from deformgan.data import pairs
from deformgan.data.feed import make_feed
from deformgan.data.pipeline import Dataset
from deformgan.errors import RunError, UserError
from deformgan.judge import judge
from deformgan.metrics.subject import Subject
from deformgan.models.layers import AXIS
from deformgan.models.unet import depth_for
from deformgan.objectives import pix2pix
from deformgan.objectives.coding import coding
from deformgan.sample import generate
from deformgan.state import Pair
from deformgan.step import initial_state, make_step
from deformgan.workdir import Workdir, flat, to_json

KEEP_MEMORY = os.environ | {  # as parallel.keep_memory tells glibc in our process
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
}
RECIPE = Path(__file__).with_name("pix2pix_torch.py")
NAMES = ("non_saturating", "least_squares", "hinge")  # losses that it has
WAITING = {"default": {}, "passive": {"OMP_WAIT_POLICY": "PASSIVE"}}  # of threads
LIMIT = 1e-4  # of the difference of the networks' outputs
STEPS_A_ROUND, WARM, CHUNK, SHOWN = 10, 5, 64, 6
METRICS = ("image_error", "orientation_error", "distances")
BASELINES = {"mean": ("mean_colour", "mean_orientation"), "nearest": ("nearest_training",)}
PLAIN = {  # what the reference has not
    "objective": "pix2pix",
    "model.dtype": "float32",
    "model.upsampling": "transposed",
    **dict.fromkeys(("loss.label_smoothing", "loss.ssim", "loss.feature_matching"), 0),
    **dict.fromkeys(("loss.r1", "loss.r2"), 0),
    **{f"augment.{n}": 0 for n in ("translation", "cutout", "brightness", "saturation")},
    **{f"augment.{n}": 0 for n in ("contrast", "noise", "adaptive")},
    **{f"optimiser.{n}": 0 for n in ("gen.delay", "disc.delay", "ema_decay", "ema_images")},
    **{f"train.{n}": 1 for n in ("disc_updates", "gen_updates")},
}


def lacking(config: ml_collections.ConfigDict) -> list[str]:
    """The settings of a run that the reference has not, as key=value."""
    own = flat(to_json(config))
    lost = [key for key, wanted in PLAIN.items() if own[key] != wanted]
    lost += [] if own["loss.name"] in NAMES else ["loss.name"]
    return [f"{key}={own[key]}" for key in lost]


class Reference:
    """The reference of a run, in a process of its own for every call."""

    def __init__(
        self, folder: Path, python: str, config: ml_collections.ConfigDict, threads: int
    ) -> None:
        code = coding(config)
        meaning = code.space.name if code.space.oriented else "scalar"
        depth = depth_for(config.data.size, config.model.depth)
        self.folder, self.python = folder, python
        self.plan = {"inputs": pairs.channels(config.data), "outputs": code.channels}
        job = to_json(config) | {"plan": self.plan | {"depth": depth, "meaning": meaning}}
        (folder / "job.json").write_text(json.dumps(job | {"threads": threads}))

    def __call__(self, mode: str, waiting: str = "passive") -> Any:
        """What `pix2pix_torch.py` finds, its threads waiting for each other as `WAITING` says."""
        own = KEEP_MEMORY | WAITING[waiting]
        subprocess.run([self.python, RECIPE, self.folder, mode], check=True, env=own)
        return json.loads((self.folder / "result.json").read_text())


def write_weights(file: Path, config: ml_collections.ConfigDict, reference: Reference) -> list[int]:
    """Writes weights of ours, images and outputs of them in training, dropout off.

    Returns:
      the number of parameters of both networks.
    """
    config = config.copy_and_resolve_references()
    config.model.update({"dropout": 0.0, "disc_dropout": 0.0})
    rng, size = np.random.default_rng(0), config.data.size
    variables = pix2pix.create(config).init(jax.random.key(0), {})
    inputs, outputs = reference.plan["inputs"], reference.plan["outputs"]
    arrays, counts = {}, []
    for name, net, channels in zip(
        ("gen", "disc"), pix2pix.networks(config, outputs), (inputs, inputs + outputs), strict=True
    ):
        own = jax.tree.map(
            lambda p: np.float32(p + 0.02 * rng.normal(size=p.shape)), getattr(variables, name)
        )
        images = rng.uniform(-1, 1, (4, size, size, channels)).astype(np.float32)

        def applied(x: jax.Array, net: Any = net, own: Any = own) -> jax.Array:
            return net.apply(own, x, train=True, mutable=["batch_stats"])[0]

        out = jax.jit(jax.vmap(applied, axis_name=AXIS))(images[None])[0]
        flat_params = traverse_util.flatten_dict(own["params"], sep="/")
        arrays |= {f"{name}/{key}": value for key, value in flat_params.items()}
        arrays |= {name: images, f"{name} out": np.asarray(out)}
        counts.append(sum(value.size for value in flat_params.values()))
    np.savez(file, **arrays)
    return counts


def step_of_ours(
    config: ml_collections.ConfigDict, given: np.ndarray, wanted: np.ndarray
) -> Callable[[], Any]:
    """A function that takes a step as --mode=train does, from the beginning."""
    objective = pix2pix.create(config)
    optimisers = optim.make(config.optimiser, Pair(0, 0), optim.updates(config.train))
    config = config.copy_and_resolve_references()
    config.train.steps_per_call = 1
    size = config.train.batch_size
    feed = make_feed(wanted, size, config.seed, process=0, processes=1, conditions=given)
    call = parallel.map_devices(make_step(objective, optimisers, feed, config), axis_name=AXIS)
    resident = parallel.replicate(feed.resident)
    state = parallel.replicate(initial_state(objective, optimisers, {}, config.seed))

    def step() -> Any:
        nonlocal state
        state, metrics = call(state, {}, resident, {}, parallel.positions(size))
        return metrics

    return step


def timed(ours: Callable[[], Any], reference: Reference, rounds: int) -> dict[str, Any]:
    """Seconds a step by turns: of each of `rounds` wall and CPU time; and of our compilation.

    The reference's threads wait for each other by spinning, as by default, which is several times
    as slow where other jobs want the cores, or passively; the faster one counts.
    """
    start = time.perf_counter()
    jax.block_until_ready(ours())
    found: dict[str, Any] = {"compilation": time.perf_counter() - start, "ours": []}
    found |= {waiting: [] for waiting in WAITING}
    for _ in range(WARM):
        jax.block_until_ready(ours())
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS_A_ROUND):
            out = ours()
        jax.block_until_ready(out)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        found["ours"].append({"wall": wall / STEPS_A_ROUND, "cpu": cpu / STEPS_A_ROUND})
        for waiting in WAITING:
            found[waiting].append(reference("time", waiting))
    return found


def read(run: str) -> tuple[Workdir, ml_collections.ConfigDict, Sampler, Dataset]:
    """A finished run, its last checkpoint and its data.

    Raises:
      UserError: if it is not finished, its data have changed, or the reference cannot follow it.
    """
    workdir = Workdir(run, create=False)
    config = workdir.config()
    if lost := lacking(config):
        raise UserError(f"run: {run} has {', '.join(lost)}, which the reference has not")
    checkpoints = Checkpoints(workdir.checkpoints, best=config.checkpoint.best, writable=False)
    sampler = checkpoints.sampler("newest")
    checkpoints.close()
    if sampler.step != config.train.steps:
        raise UserError(f"run: {run} is at step {sampler.step} of {config.train.steps}; finish it")
    dataset = intake.load(config, workdir)
    if dataset.digest() != sampler.meta["frames"]:
        raise UserError(f"run: the data of {run} are not those it was trained on; restore them")
    return workdir, config, sampler, dataset


def test_pairs(config: ml_collections.ConfigDict, dataset: Dataset) -> predictions.Chosen:
    """The inputs that a run is judged by."""
    usable, _ = subjects.usable_frames(dataset)
    num = min(len(usable), config.evaluate.count)
    chosen, _ = subjects.judged_frames(dataset, num, config.evaluate.seed)
    return predictions.Chosen(dataset.conditions.test, chosen)


def judged_by(
    config: ml_collections.ConfigDict, dataset: Dataset, sampler: Sampler, made: np.ndarray
) -> dict[str, Subject]:
    """Predictions of the same test pairs by both; the reference `made` its in our space."""
    inputs, code, seed = test_pairs(config, dataset), coding(config), config.evaluate.seed
    parts = {
        "ours": generate(
            pix2pix.create(config),
            sampler.variables,
            sampler.constants,
            seed=seed,
            num=len(inputs),
            conditions=inputs,
        ),
        "reference": (
            code.show(jnp.asarray(made[i : i + CHUNK])) for i in range(0, len(made), CHUNK)
        ),
    }
    return {
        name: subjects.of_run(dataset, own, config, lambda done: None)
        for name, own in parts.items()
    }


def table(reports: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Rows of each metric that both have, with its interval, and what costs nothing to reach."""
    free = [name for names in BASELINES.values() for name in names]
    free += ["all_black", "random_orientation"]
    ours, reference = reports["ours"], reports["reference"]
    rows = [["metric", "ours", "PyTorch", *BASELINES]]
    for name, own in ours.items():
        if "reason" in own or "reason" in reference[name] or name.endswith(tuple(free)):
            continue
        beside = [
            next((f"{ours[k]['value']:.3g}" for b in names if (k := f"{name}_{b}") in ours), "")
            for names in BASELINES.values()
        ]
        rows.append([name, *(worded(reports[side][name]) for side in reports), *beside])
    return rows


def worded(score: dict[str, Any]) -> str:
    around = score["interval"]
    return f"{score['value']:.3g}" + (f" ({around[0]:.3g} to {around[1]:.3g})" if around else "")


def draw(file: Path, judged: dict[str, Subject]) -> None:
    """Rows of input, target, our prediction and the reference's."""
    ours = judged["ours"]
    some = np.linspace(0, len(ours.real) - 1, SHOWN).round().astype(int)
    sets = [ours.condition, ours.real, ours.fake, judged["reference"].fake]
    columns = [predictions.eight_bits(images.take(some))[..., :3] for images in sets]
    colours = [np.broadcast_to(c, (*c.shape[:-1], 3)) if c.shape[-1] == 1 else c for c in columns]
    picture = np.concatenate([np.concatenate(list(column)) for column in colours], 1)
    file.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(picture)))


def compared(
    run: str, folder: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Subject]]:
    """Everything that is found, as JSON holds it, and what was judged.

    Raises:
      RunError: if the networks are not the same.
    """
    workdir, config, sampler, dataset = read(run)
    reference = Reference(folder, arguments.torch_python, config, arguments.threads)
    data = dataset.conditions.train, dataset.train, test_pairs(config, dataset)
    given, images, test = (np.stack([np.asarray(x, np.float32) for x in part]) for part in data)
    wanted = np.asarray(coding(config).encode(jnp.asarray(images)))
    np.savez(folder / "pairs.npz", given=given, wanted=wanted, test=test)
    print(f"{len(given)} train pairs of {given.shape[1:]} and {wanted.shape[1:]}")
    counts = write_weights(folder / "weights.npz", config, reference)
    theirs = reference("compare")
    print(f"parameters of U-Net and PatchGAN: {counts}, reference {theirs['parameters']}")
    print(f"same weights, their outputs differ by {max(theirs['apart']):.1e} of the largest")
    if counts != theirs["parameters"] or not max(theirs["apart"]) < LIMIT:
        raise RunError("the networks are not the same")
    seconds = timed(step_of_ours(config, given, images), reference, arguments.rounds)
    print(f"compiling our step: {seconds['compilation']:.1f} s; then, median (least) of a step:")
    medians = {}
    for name in ("ours", *WAITING):
        for kind in ("cpu", "wall"):
            own = [one[kind] for one in seconds[name]]
            medians[name] = statistics.median(own)  # of wall, the last
            label = "ours" if name == "ours" else f"PyTorch, {name} threads"
            print(f"  {label:24s} {kind:4s} {medians[name]:.4f} s ({min(own):.4f})")
    best = min(WAITING, key=medians.__getitem__)
    print(f"load {os.getloadavg()[0]:.1f}; training the reference, {best} threads ...", flush=True)
    about = reference("train", best)
    print(f"  {about['seconds'] / config.train.steps:.4f} s a step, on {about['device']}")
    judged = judged_by(config, dataset, sampler, np.load(folder / "made.npy"))
    print(f"{len(test)} test pairs, after {config.train.steps} steps of each")
    reports = scored(judged, config.evaluate, arguments.features, workdir.local)
    found = {"parameters": counts, "apart": theirs["apart"], "seconds": seconds}
    found |= {
        "training": about | {"waiting": best},
        "threads": arguments.threads,
        "config": to_json(config),
    }
    return found | {"metrics": reports}, judged


def scored(
    judged: dict[str, Subject], settings: ml_collections.ConfigDict, features: str, local: Path
) -> dict[str, Any]:
    """The metrics of both by the judge of --mode=evaluate."""
    settings.update({"tests": (), "metrics": METRICS})
    settings.features = tuple(filter(None, features.split(",")))
    encoder = local / "encoder.safetensors"
    return {
        name: judge(own, settings, encoder=encoder, quiet=True)["metrics"]
        for name, own in judged.items()
    }


def main() -> None:
    """Compares, prints the table, writes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="workdir of a finished run of ours")
    parser.add_argument("--torch_python", default=sys.executable, help="one that has PyTorch")
    parser.add_argument("--threads", type=int, default=2, help="processor cores that both use")
    parser.add_argument("--rounds", type=int, default=5, help=f"of {STEPS_A_ROUND} timed steps")
    parser.add_argument("--features", default="random,encoder", help="of distances, see evaluate")
    parser.add_argument("--out", type=Path, help="JSON file of everything")
    parser.add_argument("--picture", type=Path, help="PNG file of some predictions")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)  # before jax counts them
    parallel.keep_memory()
    with tempfile.TemporaryDirectory(prefix="pix2pix-") as folder:
        found, judged = compared(arguments.run, Path(folder), arguments)
    for row in table(found["metrics"]):
        print(f"{row[0]:26s} {row[1]:30s} {row[2]:30s} {row[3]:>9s} {row[4]:>9s}")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n")
    if arguments.picture:
        draw(arguments.picture, judged)


if __name__ == "__main__":
    main()
