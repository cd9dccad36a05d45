"""Checks Inception, block by block, against an implementation of its own in PyTorch.

    python benchmarks/inception_reference.py [--write]

Random weights, two 64x64 images. Prints the largest difference of each block relative to its
largest activation and exits with 1 if one is above 1e-4. `--write` writes what
`tests/test_inception.py` compares with: `tests/golden/inception.npz`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import builders_inception as builders

from deformgan.models import inception

LIMIT = 1e-4
GOLDEN = ROOT / "tests" / "golden" / "inception.npz"


class Reference:
    """The FID variant of Inception-v3, written out after its description.

    A tensor of a wrong shape or without a use raises.
    """

    def __init__(self, tensors):
        self.tensors = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
        self.unused = set(tensors)
        self.blocks = {}

    def _tensor(self, name, *shape):
        tensor = self.tensors[name]
        assert tensor.shape == shape, (name, tuple(tensor.shape), shape)
        self.unused.discard(name)
        return tensor

    def _conv(self, x, name, channels, kernel, stride=1, padding=0):
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        weight = self._tensor(f"{name}.conv.weight", channels, x.shape[1], height, width)
        x = F.conv2d(x, weight, None, stride, padding)
        gamma = self._tensor(f"{name}.bn.weight", channels)
        beta = self._tensor(f"{name}.bn.bias", channels)
        mean = self._tensor(f"{name}.bn.running_mean", channels)
        variance = self._tensor(f"{name}.bn.running_var", channels)
        return torch.relu(F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, 0.001))

    def _block_a(self, x, name, pooled):
        one = self._conv(x, f"{name}.branch1x1", 64, 1)
        five = self._conv(x, f"{name}.branch5x5_1", 48, 1)
        five = self._conv(five, f"{name}.branch5x5_2", 64, 5, padding=2)
        three = self._conv(x, f"{name}.branch3x3dbl_1", 64, 1)
        three = self._conv(three, f"{name}.branch3x3dbl_2", 96, 3, padding=1)
        three = self._conv(three, f"{name}.branch3x3dbl_3", 96, 3, padding=1)
        pool = self._conv(average(x), f"{name}.branch_pool", pooled, 1)
        return torch.cat([one, five, three, pool], 1)

    def _block_b(self, x, name):
        three = self._conv(x, f"{name}.branch3x3", 384, 3, stride=2)
        double = self._conv(x, f"{name}.branch3x3dbl_1", 64, 1)
        double = self._conv(double, f"{name}.branch3x3dbl_2", 96, 3, padding=1)
        double = self._conv(double, f"{name}.branch3x3dbl_3", 96, 3, stride=2)
        return torch.cat([three, double, F.max_pool2d(x, 3, 2)], 1)

    def _block_c(self, x, name, width):
        one = self._conv(x, f"{name}.branch1x1", 192, 1)
        seven = self._conv(x, f"{name}.branch7x7_1", width, 1)
        seven = self._conv(seven, f"{name}.branch7x7_2", width, (1, 7), padding=(0, 3))
        seven = self._conv(seven, f"{name}.branch7x7_3", 192, (7, 1), padding=(3, 0))
        double = self._conv(x, f"{name}.branch7x7dbl_1", width, 1)
        double = self._conv(double, f"{name}.branch7x7dbl_2", width, (7, 1), padding=(3, 0))
        double = self._conv(double, f"{name}.branch7x7dbl_3", width, (1, 7), padding=(0, 3))
        double = self._conv(double, f"{name}.branch7x7dbl_4", width, (7, 1), padding=(3, 0))
        double = self._conv(double, f"{name}.branch7x7dbl_5", 192, (1, 7), padding=(0, 3))
        pool = self._conv(average(x), f"{name}.branch_pool", 192, 1)
        return torch.cat([one, seven, double, pool], 1)

    def _block_d(self, x, name):
        three = self._conv(x, f"{name}.branch3x3_1", 192, 1)
        three = self._conv(three, f"{name}.branch3x3_2", 320, 3, stride=2)
        seven = self._conv(x, f"{name}.branch7x7x3_1", 192, 1)
        seven = self._conv(seven, f"{name}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        seven = self._conv(seven, f"{name}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        seven = self._conv(seven, f"{name}.branch7x7x3_4", 192, 3, stride=2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def _block_e(self, x, name, pool):
        one = self._conv(x, f"{name}.branch1x1", 320, 1)
        three = self._conv(x, f"{name}.branch3x3_1", 384, 1)
        three_a = self._conv(three, f"{name}.branch3x3_2a", 384, (1, 3), padding=(0, 1))
        three_b = self._conv(three, f"{name}.branch3x3_2b", 384, (3, 1), padding=(1, 0))
        double = self._conv(x, f"{name}.branch3x3dbl_1", 448, 1)
        double = self._conv(double, f"{name}.branch3x3dbl_2", 384, 3, padding=1)
        double_a = self._conv(double, f"{name}.branch3x3dbl_3a", 384, (1, 3), padding=(0, 1))
        double_b = self._conv(double, f"{name}.branch3x3dbl_3b", 384, (3, 1), padding=(1, 0))
        pool = self._conv(pool(x), f"{name}.branch_pool", 192, 1)
        return torch.cat([one, three_a, three_b, double_a, double_b, pool], 1)

    def _keep(self, name, x):
        self.blocks[name] = x
        return x

    def __call__(self, x):
        """`[B, 3, 299, 299]` to `[B, 2048]`; leaves the output of every block in `blocks`."""
        x = self._keep("Conv2d_1a_3x3", self._conv(x, "Conv2d_1a_3x3", 32, 3, stride=2))
        x = self._keep("Conv2d_2a_3x3", self._conv(x, "Conv2d_2a_3x3", 32, 3))
        x = self._keep("Conv2d_2b_3x3", self._conv(x, "Conv2d_2b_3x3", 64, 3, padding=1))
        x = F.max_pool2d(x, 3, 2)
        x = self._keep("Conv2d_3b_1x1", self._conv(x, "Conv2d_3b_1x1", 80, 1))
        x = self._keep("Conv2d_4a_3x3", self._conv(x, "Conv2d_4a_3x3", 192, 3))
        x = F.max_pool2d(x, 3, 2)
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self._keep(name, self._block_a(x, name, pooled))
        x = self._keep("Mixed_6a", self._block_b(x, "Mixed_6a"))
        widths = {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}
        for name, width in widths.items():
            x = self._keep(name, self._block_c(x, name, width))
        x = self._keep("Mixed_7a", self._block_d(x, "Mixed_7a"))
        x = self._keep("Mixed_7b", self._block_e(x, "Mixed_7b", average))
        x = self._keep("Mixed_7c", self._block_e(x, "Mixed_7c", maximum))
        assert not self.unused, sorted(self.unused)
        return self._keep("pool3", x.mean((2, 3)))


def average(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def maximum(x):
    return F.max_pool2d(x, 3, 1, 1)


def taps(size):
    """The two source indices of each of 299 destinations, and the second's weight."""
    position = torch.arange(299, dtype=torch.float32) * torch.tensor(size / 299)
    low = position.floor()
    return low.long(), (low.long() + 1).clamp(max=size - 1), position - low


def prepared(images):
    """`[B, H, W, 3]` in [-1, 1] to `[B, 3, 299, 299]`: TensorFlow 1's legacy bilinear resize."""
    levels = (torch.from_numpy(images).permute(0, 3, 1, 2) + 1) / 2 * 255
    above, below, down = taps(images.shape[1])
    left, right, across = taps(images.shape[2])
    rows = levels[:, :, above].lerp(levels[:, :, below], down[:, None])
    return (rows[..., left].lerp(rows[..., right], across) - 128) / 128


def channels_last(x):
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {GOLDEN.relative_to(ROOT)}")
    arguments = parser.parse_args()

    tensors, images = builders.random_weights(0), builders.random_images(1)
    inputs = prepared(images)
    reference = Reference(tensors)
    with torch.no_grad():
        reference(inputs)
    wanted = {"input": inputs} | reference.blocks
    wanted = {name: channels_last(x) for name, x in wanted.items()}

    own = inception.preprocess(images)
    got = {"input": own} | builders.activations(inception.from_torch(tensors), own)
    assert got.keys() == wanted.keys(), got.keys() ^ wanted.keys()
    worst = 0.0
    for name, x in wanted.items():
        assert got[name].shape == x.shape, (name, got[name].shape, x.shape)
        error = builders.difference(got[name], x)
        worst = max(worst, error)
        print(f"{name:14s} {x.shape!s:20s} largest {np.abs(x).max():8.3f}  difference {error:.1e}")
    if arguments.write:
        GOLDEN.parent.mkdir(exist_ok=True)
        np.savez(GOLDEN, **{name: builders.sample(x) for name, x in wanted.items()})
        print(f"{GOLDEN}: {GOLDEN.stat().st_size} bytes")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
