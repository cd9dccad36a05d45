"""A plain Pix2Pix in PyTorch: the recipe of Isola et al. 2017 as their code has it, in float32.

    python benchmarks/pix2pix_torch.py FOLDER compare|time|train

`pix2pix_reference.py` calls it, in a process and perhaps an environment of its own: it needs
PyTorch and NumPy alone. FOLDER holds `job.json`, the blocks of a config of ours and a `Plan`, and
`pairs.npz`: images `[N, H, W, C]` in [-1, 1] of train pairs (`given`, `wanted`) and inputs of the
test (`test`). A step predicts once, for both players, on one draw of augmentation.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS_A_ROUND, WARM = 10, 5  # that are timed, and before them
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
    return nn.BatchNorm2d(width) if kind == "batch" else nn.InstanceNorm2d(width, 1e-5, affine=True)


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
        """See the class."""
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
        """See the class."""
        return self.layers(x)


class Networks(NamedTuple):
    """The generator and the discriminator."""

    gen: UNet
    disc: PatchGAN


class Plan(NamedTuple):
    """What a config says not in so many words.

    Attributes:
      inputs: channels of the inputs.
      outputs: of the targets.
      depth: of the U-Net.
      meaning: of the targets' channels: scalar, rgb or orientation.
    """

    inputs: int
    outputs: int
    depth: int
    meaning: str


def networks(plan: Plan, model: SimpleNamespace) -> Networks:
    gen = UNet(plan.inputs, plan.outputs, plan.depth, model)
    disc = PatchGAN(plan.inputs + plan.outputs, model)
    return Networks(initialised(gen), initialised(disc))


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
    given: torch.Tensor, wanted: torch.Tensor, config: SimpleNamespace, meaning: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of pairs, epoch after epoch, turned and shifted alike as the config says."""
    rng, size, most = np.random.default_rng(config.seed), wanted.shape[-1], config.augment.jitter
    order: list[int] = []
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

    def __init__(
        self,
        config: SimpleNamespace,
        plan: Plan,
        given: torch.Tensor,
        wanted: torch.Tensor,
    ) -> None:
        torch.manual_seed(config.seed)
        self.nets, self.loss = networks(plan, config.model), config.loss
        self.batches = batches(given, wanted, config, plan.meaning)
        steps = config.train.steps
        rest = max((1 - config.optimiser.decay_from) * steps, 1)
        self.optimisers, self.schedules = [], []
        for net, player in zip(self.nets, ("gen", "disc"), strict=True):
            own = getattr(config.optimiser, player)
            adam = torch.optim.Adam(net.parameters(), own.learning_rate, (own.beta1, own.beta2))
            self.optimisers.append(adam)
            fade = torch.optim.lr_scheduler.LambdaLR(adam, lambda n: min(1, (steps - n) / rest))
            self.schedules.append(fade)

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


@torch.no_grad()
def predicted(gen: UNet, given: torch.Tensor, seed: int, chunk: int = 64) -> torch.Tensor:
    """Predictions `[N, C, S, S]` from inputs `[N, K, S, S]`, by the running averages."""
    torch.manual_seed(seed)
    gen.eval()
    return torch.cat([gen(part) for part in given.split(chunk)])


def inside(images: np.ndarray) -> torch.Tensor:
    """Images `[N, H, W, C]` as `[N, C, H, W]` on the device."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(DEVICE)


def outside(images: torch.Tensor) -> np.ndarray:
    """And back."""
    return images.detach().cpu().numpy().transpose(0, 2, 3, 1)


def copy_weights(params: dict[str, np.ndarray], net: nn.Module) -> None:
    """Gives a network the weights of ours, by names such as BatchNorm_1/scale."""

    def in_order(kinds: tuple[str, ...], name: str) -> list[np.ndarray]:
        keys = [f"{kind}_{i}/{name}" for kind in kinds for i in range(99)]
        return [params[key] for key in keys if key in params]

    def layers(*kinds: type[nn.Module]) -> list[Any]:
        return [layer for layer in net.modules() if isinstance(layer, kinds)]

    def fill(own: torch.Tensor, values: np.ndarray) -> None:
        with torch.no_grad():
            own.copy_(torch.from_numpy(np.ascontiguousarray(values)))

    kernels = in_order(("StridedConv", "TransposedConv", "Conv"), "kernel")
    convs = layers(nn.Conv2d, nn.ConvTranspose2d)
    for conv, kernel in zip(convs, kernels, strict=True):
        order = (0, 3, 1, 2) if isinstance(conv, nn.ConvTranspose2d) else (3, 2, 0, 1)
        fill(conv.weight, kernel.transpose(order))
    fill(convs[-1].bias, params["bias"].reshape(-1))
    norms = layers(nn.BatchNorm2d, nn.InstanceNorm2d)
    for name, own in (("scale", "weight"), ("bias", "bias")):
        values = in_order(("BatchNorm", "InstanceNorm"), name)
        for norm, value in zip(norms, values, strict=True):
            fill(getattr(norm, own), value)


def compared(folder: Path, config: SimpleNamespace, plan: Plan) -> dict[str, Any]:
    """Parameters, and the largest difference from our outputs in training, dropout off.

    It is relative to the largest output. `weights.npz` holds, for `gen` and `disc`, the weights
    (`gen/bias`, ...), the images (`gen`) and our outputs of them (`gen out`).
    """
    config.model.dropout = config.model.disc_dropout = 0.0
    nets, stored, apart = networks(plan, config.model), dict(np.load(folder / "weights.npz")), []
    for name, net in nets._asdict().items():
        own = {k.removeprefix(f"{name}/"): v for k, v in stored.items() if k.startswith(f"{name}/")}
        copy_weights(own, net)
        wanted = stored[f"{name} out"]
        found = outside(net(inside(stored[name]))).reshape(wanted.shape)
        apart.append(float(np.abs(found - wanted).max() / np.abs(wanted).max()))
    return {"parameters": [sum(p.numel() for p in n.parameters()) for n in nets], "apart": apart}


def timed(training: Training) -> dict[str, float]:
    """Wall and CPU seconds of a step, once warm."""
    for _ in range(WARM):
        training.step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(STEPS_A_ROUND):
        training.step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall / STEPS_A_ROUND, "cpu": cpu / STEPS_A_ROUND}


def trained(training: Training, steps: int) -> float:
    """Trains to the end; seconds."""
    start = time.perf_counter()
    for step in range(1, steps + 1):
        training.step()
        if step % max(steps // 10, 1) == 0:
            print(f"  step {step}, {time.perf_counter() - start:.0f} s", flush=True)
    return time.perf_counter() - start


def read_job(folder: Path) -> tuple[SimpleNamespace, Plan]:
    text = (folder / "job.json").read_text()
    config = json.loads(text, object_hook=lambda own: SimpleNamespace(**own))
    return config, Plan(**vars(config.plan))


def main() -> None:
    """Does what the mode says, and leaves `result.json` and, of training, `made.npy`."""
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    config, plan = read_job(folder)
    torch.set_num_threads(config.threads)
    images = np.load(folder / "pairs.npz")
    if mode == "compare":
        result = compared(folder, config, plan)
    else:
        training = Training(config, plan, *(inside(images[name]) for name in ("given", "wanted")))
        if mode == "time":
            result = timed(training)
        else:
            result = {"seconds": trained(training, config.train.steps), "device": DEVICE}
            made = predicted(training.nets.gen, inside(images["test"]), config.evaluate.seed)
            np.save(folder / "made.npy", outside(made))
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
