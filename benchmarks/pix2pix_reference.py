r"""A plain Pix2Pix in PyTorch beside a run of ours: same pairs, networks, steps and judge.

    python -m deformgan.main --config=configs/pix2pix.py:facades --workdir=RUN \
        --config.data.path=../shared/data/facades/train
    python benchmarks/pix2pix_reference.py --run=RUN [--out=FILE.json] [--picture=FILE.png]

Needs PyTorch: pip install -e '.[bench]'. The reference is the recipe of Isola et al. 2017 as their
code has it, eager and in float32, with everything that the run's config says: widths, norms,
dropout, initial spread, losses, Adam and its decay, batch size, jitter, flips, seed. It differs
from ours where theirs does: a step predicts once, for both players, on one draw of augmentation.
Both predict the test pairs with the last weights and running averages of batch norm; the metrics
are those of --mode=evaluate. A step is timed in this process, alternately, compilation apart.
Before that, the networks must give the same outputs for the same weights, and have equally many.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from deformgan import intake, optim, parallel, predictions, subjects
from deformgan.checkpoint import Checkpoints, Sampler
from deformgan.data import pairs
from deformgan.data.feed import make_feed
from deformgan.data.pipeline import Dataset
from deformgan.errors import UserError
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

LIMIT = 1e-4  # of the difference of the networks' outputs
STEPS_A_ROUND, CHUNK, SHOWN = 5, 64, 6
METRICS = ("image_error", "orientation_error", "distances")
BASELINES = {"mean": ("mean_colour", "mean_orientation"), "nearest": ("nearest_training",)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = {  # what the reference has not
    "objective": "pix2pix",
    "model.dtype": "float32",
    **dict.fromkeys(("loss.label_smoothing", "loss.ssim", "loss.feature_matching"), 0),
    **dict.fromkeys(("loss.r1", "loss.r2"), 0),
    **{f"augment.{n}": 0 for n in ("translation", "cutout", "brightness", "saturation")},
    **{f"augment.{n}": 0 for n in ("contrast", "noise", "adaptive")},
    **{f"optimiser.{n}": 0 for n in ("gen.delay", "disc.delay", "ema_decay", "ema_images")},
    **{f"train.{n}": 1 for n in ("disc_updates", "gen_updates")},
}
LOSSES = {  # of the discriminator (real, fake) and of the generator (fake)
    "non_saturating": (
        lambda real, fake: F.softplus(-real) + F.softplus(fake),
        lambda fake: F.softplus(-fake),
    ),
    "least_squares": (
        lambda real, fake: ((real - 1).square() + fake.square()) / 2,
        lambda fake: (fake - 1).square() / 2,
    ),
    "hinge": (lambda real, fake: F.relu(1 - real) + F.relu(1 + fake), lambda fake: -fake),
}


def axial(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """`losses.axial` of `[B, 4, H, W]`."""
    apart, tissue = made - wanted, (wanted[:, 3] + 1) / 2
    length = (apart[:, :2].square().sum(1) + 1e-12).sqrt() - 1e-6
    weight = tissue * torch.cos((wanted[:, 2] + 1) * (torch.pi / 4)) + 1 - tissue
    return (weight * length + apart[:, 2:].abs().sum(1)).mean()


DISTANCES = {"l1": F.l1_loss, "l2": F.mse_loss, "axial": axial}


def norm_of(kind: str, width: int) -> nn.Module:
    return (
        nn.BatchNorm2d(width) if kind == "batch" else nn.InstanceNorm2d(width, 1e-5, affine=True)
    )


def initialised(net: nn.Module) -> nn.Module:
    """Weights N(0, 0.02), biases 0; norms are born with 1 and 0."""
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return net.to(DEVICE)


class UNet(nn.Module):
    """`[B, K, S, S]` to `[B, C, S, S]`; Isola et al. 2017, appendix 6.1."""

    def __init__(self, inputs: int, outputs: int, depth: int, model: Any) -> None:
        super().__init__()
        widths = [model.gen_filters * min(2**level, 8) for level in range(depth)]
        before = [inputs, *widths[:-1]]
        down, up = [], []
        for level, width in enumerate(widths):
            conv = nn.Conv2d(before[level], width, 4, 2, 1, bias=False)
            bare = level in (0, depth - 1)
            down.append((conv, nn.Identity() if bare else norm_of(model.norm, width)))
        seen = widths[-1]
        for width in widths[-2::-1]:
            conv = nn.ConvTranspose2d(seen, width, 4, 2, 1, bias=False)
            up.append((conv, norm_of(model.norm, width)))
            seen = 2 * width
        self.down = nn.ModuleList(nn.Sequential(*layers) for layers in down)
        self.up = nn.ModuleList(nn.Sequential(*layers) for layers in up)
        self.out = nn.ConvTranspose2d(seen, outputs, 4, 2, 1)
        self.dropout, self.test_dropout = model.dropout, model.test_dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skipped = []
        for level, layer in enumerate(self.down):
            x = layer(F.leaky_relu(x, 0.2) if level else x)
            skipped.append(x)
        for number, layer in enumerate(self.up):
            x = layer(F.relu(x))
            if number < 3:
                x = F.dropout(x, self.dropout, self.training or self.test_dropout)
            x = torch.cat([x, skipped[-2 - number]], 1)
        return torch.tanh(self.out(F.relu(x)))


class PatchGAN(nn.Module):
    """`[B, K + C, S, S]` to logits `[B, 1, h, w]`; Isola et al. 2017, appendix 6.1.2."""

    def __init__(self, inputs: int, model: Any) -> None:
        super().__init__()
        strided, layers = model.disc_layers, []
        side, padding = (4, 1) if strided else (1, 0)
        for number in range(max(strided, 1) + 1):
            width = model.disc_filters * min(2**number, 8)
            stride = 2 if number < strided else 1
            layers.append(nn.Conv2d(inputs, width, side, stride, padding, bias=False))
            layers += [norm_of(model.norm, width)] if number else []
            layers += [nn.LeakyReLU(0.2), nn.Dropout(model.disc_dropout)]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 1, side, 1, padding))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Networks(NamedTuple):
    """The generator and the discriminator."""

    gen: UNet
    disc: PatchGAN


def networks(config: ml_collections.ConfigDict) -> Networks:
    inputs, outputs = pairs.channels(config.data), coding(config).channels
    depth = depth_for(config.data.size, config.model.depth)
    gen = initialised(UNet(inputs, outputs, depth, config.model))
    return Networks(gen, initialised(PatchGAN(inputs + outputs, config.model)))


def moved(
    given: torch.Tensor, wanted: torch.Tensor, quarters: int, mirrored: bool, meaning: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair `[K, S, S]`, `[C, S, S]` mirrored, then turned; directions in the target as well.

    Args:
      given: the input, of plain brightness.
      wanted: the target.
      quarters: turns, counter-clockwise.
      mirrored: left-right.
      meaning: of the target: scalar, rgb or orientation.
    """
    if mirrored:
        given, wanted = given.flip(-1), wanted.flip(-1)
        if meaning == "rgb":  # the hue is negated
            wanted = wanted[[0, 2, 1]]
        elif meaning == "orientation":
            wanted = wanted * wanted.new_tensor([1, -1, 1, 1])[:, None, None]
    if quarters % 2 and meaning == "rgb":  # and goes half around
        wanted = wanted.amax(0) + wanted.amin(0) - wanted
    elif quarters % 2 and meaning == "orientation":
        wanted = wanted * wanted.new_tensor([-1, -1, 1, 1])[:, None, None]
    return tuple(torch.rot90(x, quarters, (1, 2)) for x in (given, wanted))


def batches(
    given: torch.Tensor, wanted: torch.Tensor, config: ml_collections.ConfigDict
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of pairs, epoch after epoch, turned and shifted alike as the config says."""
    rng, size, most = np.random.default_rng(config.seed), config.data.size, config.augment.jitter
    space, order = coding(config).space, []
    meaning = space.name if space.oriented else "scalar"
    while True:
        both = []
        while len(order) < config.train.batch_size:
            order.extend(rng.permutation(len(given)))
        for i in (order.pop(0) for _ in range(config.train.batch_size)):
            pair = given[i], wanted[i]
            if config.augment.dihedral:
                pair = moved(*pair, int(rng.integers(4)), bool(rng.integers(2)), meaning)
            if most:
                shifts = rng.integers(-most, most + 1, (2, 1)) + np.arange(size)[None]
                rows, columns = torch.from_numpy(np.clip(shifts, 0, size - 1)).to(DEVICE)
                pair = tuple(x[:, rows][:, :, columns] for x in pair)
            both.append(pair)
        yield tuple(torch.stack(parts) for parts in zip(*both, strict=True))


class Training:
    """The reference in training."""

    def __init__(self, config: ml_collections.ConfigDict, given: Any, wanted: Any) -> None:
        torch.manual_seed(config.seed)
        self.nets, self.loss = networks(config), config.loss
        self.batches = batches(given, wanted, config)
        steps = config.train.steps
        rest = max((1 - config.optimiser.decay_from) * steps, 1)
        self.optimisers, self.schedules = [], []
        for net, player in zip(self.nets, ("gen", "disc"), strict=True):
            own = config.optimiser[player]
            adam = torch.optim.Adam(net.parameters(), own.learning_rate, (own.beta1, own.beta2))
            self.optimisers.append(adam)
            self.schedules.append(
                torch.optim.lr_scheduler.LambdaLR(adam, lambda count: min(1, (steps - count) / rest))
            )

    def step(self) -> None:
        """The discriminator's update, then the generator's."""
        (gen, disc), (of_gen, of_disc) = self.nets, self.optimisers
        disc_loss, gen_loss = LOSSES[self.loss.name]
        given, wanted = next(self.batches)
        made = gen(given)
        real, fake = disc(torch.cat([given, wanted], 1)), disc(torch.cat([given, made.detach()], 1))
        of_disc.zero_grad()
        disc_loss(real, fake).mean().backward()
        of_disc.step()
        disc.requires_grad_(False)
        adversarial = gen_loss(disc(torch.cat([given, made], 1))).mean()
        of_gen.zero_grad()
        distance = DISTANCES[self.loss.pixel](made, wanted)
        (adversarial + self.loss.pixel_weight * distance).backward()
        of_gen.step()
        disc.requires_grad_(True)
        for schedule in self.schedules:
            schedule.step()


def lacking(config: ml_collections.ConfigDict) -> list[str]:
    """The settings of a run that the reference has not, as key=value."""
    own = flat(to_json(config))
    lost = [f"{key}={own[key]}" for key, wanted in PLAIN.items() if own[key] != wanted]
    return lost + ([] if own["loss.name"] in LOSSES else [f"loss.name={own['loss.name']}"])


def inside(images: Any) -> torch.Tensor:
    """Images `[N, H, W, C]` as `[N, C, H, W]` on the device."""
    held = np.stack([np.asarray(image, np.float32) for image in images])
    return torch.from_numpy(held.transpose(0, 3, 1, 2).copy()).to(DEVICE)


def outside(images: torch.Tensor) -> np.ndarray:
    return images.detach().cpu().numpy().transpose(0, 2, 3, 1)


def count(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def copy_weights(params: Any, net: nn.Module) -> None:
    """Gives a network the weights of ours."""

    def in_order(kinds: tuple[str, ...]) -> list[Any]:
        return [params[f"{k}_{i}"] for k in kinds for i in range(99) if f"{k}_{i}" in params]

    def layers(kinds: Any) -> list[Any]:
        return [layer for layer in net.modules() if isinstance(layer, kinds)]

    kernels = in_order(("StridedConv", "TransposedConv", "Conv"))
    convs = layers((nn.Conv2d, nn.ConvTranspose2d))
    scales = in_order(("BatchNorm", "InstanceNorm"))
    norms = layers((nn.BatchNorm2d, nn.InstanceNorm2d))
    with torch.no_grad():
        for conv, own in zip(convs, kernels, strict=True):
            order = (0, 3, 1, 2) if isinstance(conv, nn.ConvTranspose2d) else (3, 2, 0, 1)
            conv.weight.copy_(torch.from_numpy(np.transpose(own["kernel"], order).copy()))
        for norm, own in zip(norms, scales, strict=True):
            norm.weight.copy_(torch.from_numpy(np.array(own["scale"])))
            norm.bias.copy_(torch.from_numpy(np.array(own["bias"])))
        convs[-1].bias.copy_(torch.from_numpy(np.array(params["bias"]).reshape(-1)))


def disagreement(config: ml_collections.ConfigDict) -> float:
    """Largest difference of outputs in training, dropout off, relative to the largest output."""
    config = config.copy_and_resolve_references()
    config.model.update({"dropout": 0.0, "disc_dropout": 0.0})
    channels, rng, size = coding(config).channels, np.random.default_rng(0), config.data.size
    ours = pix2pix.networks(config, channels)
    variables = pix2pix.create(config).init(jax.random.key(0), {})
    inputs = pairs.channels(config.data)
    worst = 0.0
    for net, reference, own, seen in zip(
        ours,
        networks(config),
        (variables.gen, variables.disc),
        (inputs, inputs + channels),
        strict=True,
    ):
        images = rng.uniform(-1, 1, (4, size, size, seen)).astype(np.float32)
        changed = jax.tree.map(lambda p: np.float32(p + 0.02 * rng.normal(size=p.shape)), own)
        copy_weights(changed["params"], reference)
        keys = jax.random.split(jax.random.key(0), len(images))

        def applied(x: jax.Array, net: Any = net, given: Any = changed, keys: Any = keys) -> Any:
            return net.apply(given, x, train=True, keys=keys, mutable=["batch_stats"])[0]

        wanted = np.asarray(jax.jit(jax.vmap(applied, axis_name=AXIS))(images[None]))[0]
        found = outside(reference(inside(images))).reshape(wanted.shape)
        worst = max(worst, float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return worst


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


def timed(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the first step, and medians over rounds of wall and CPU seconds of later ones."""
    found: dict[str, dict[str, Any]] = {}
    for name, step in steps.items():
        start = time.perf_counter()
        jax.block_until_ready(step())
        found[name] = {"first": time.perf_counter() - start, "wall": [], "cpu": []}
    for _ in range(rounds):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(STEPS_A_ROUND):
                out = step()
            jax.block_until_ready(out)
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            found[name]["wall"].append((time.perf_counter() - wall) / STEPS_A_ROUND)
            found[name]["cpu"].append((time.process_time() - cpu) / STEPS_A_ROUND)
    medians = {"wall": statistics.median, "cpu": statistics.median}
    return {n: f | {k: m(f[k]) for k, m in medians.items()} for n, f in found.items()}
