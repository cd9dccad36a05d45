"""Inception-v3 (Szegedy et al. 2016) in the variant whose features the published FID compares.

The variant is that of TensorFlow's graph of 2015-12-05, as in pytorch-fid and torch-fidelity:
average pools leave the padding out of the mean, and the last block pools by maximum.
`benchmarks/inception_reference.py` checks every block against PyTorch.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import linen as nn
from jax import lax

from deformgan.errors import UserError, require_shape

SIZE = 299  # pixels, the side of the network's input
# SHA-256 of pt_inception-2015-12-05-6726825d.pth, the weights of pytorch-fid: 95,628,359 bytes.
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PRECISION = lax.Precision.HIGHEST  # float32 on every device, or scores would depend on the device

Step = Callable[[jax.Array], jax.Array]


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm of fixed statistics, rectifier."""

    features: int
    kernel: tuple[int, int]
    stride: int
    padding: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = nn.Conv(
            self.features,
            self.kernel,
            (self.stride, self.stride),
            self.padding,
            use_bias=False,
            precision=PRECISION,
            name="conv",
        )
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")
        return nn.relu(norm(conv(x)))


class Mixed(nn.Module):
    """Branches side by side, concatenated over channels."""

    branches: tuple[Step, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.concatenate([branch(x) for branch in self.branches], axis=-1)


class Inception(nn.Module):
    """`[B, 299, 299, 3]` images from `preprocess` to `[B, 2048]` features, the layer pool3.

    Submodules bear the published names, so `capture_intermediates` reaches every block. Smaller
    images, of 75 pixels at least, give features too.
    """

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        require_shape("images", images, (None, None, None, 3))
        x = images
        for step in NETWORK:
            x = step(x)
        return jnp.mean(x, axis=(1, 2))


def _conv(name: str, features: int, height: int, width: int, *stride_padding: Any) -> Step:
    stride, padding = stride_padding or (1, "SAME")
    return lambda x: ConvNorm(features, (height, width), stride, padding, name=name)(x)


def _branch(name: str, *layers: tuple | list[tuple], pool: Step | None = None) -> Step:
    """Layers (features, height, width[, stride, padding]) in turn; those of a list side by side.

    Names as published: numbered where there are several, with a letter where side by side.
    """

    def run(x: jax.Array) -> jax.Array:
        x = x if pool is None else pool(x)
        for number, layer in enumerate(layers, 1):
            if isinstance(layer, list):
                forks = zip("ab", layer, strict=True)
                sides = [_conv(f"{name}_{number}{letter}", *side)(x) for letter, side in forks]
                x = jnp.concatenate(sides, axis=-1)
            else:
                x = _conv(f"{name}_{number}" if len(layers) > 1 else name, *layer)(x)
        return x

    return run


def _mixed(name: str, *branches: Step) -> Step:
    return lambda x: Mixed(branches, name=name)(x)


def _halve(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


def _maximum(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _average(x: jax.Array) -> jax.Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _mixed_a(name: str, pooled: int) -> Step:
    return _mixed(
        name,
        _branch("branch1x1", (64, 1, 1)),
        _branch("branch5x5", (48, 1, 1), (64, 5, 5)),
        _branch("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        _branch("branch_pool", (pooled, 1, 1), pool=_average),
    )


def _mixed_c(name: str, n: int) -> Step:
    return _mixed(
        name,
        _branch("branch1x1", (192, 1, 1)),
        _branch("branch7x7", (n, 1, 1), (n, 1, 7), (192, 7, 1)),
        _branch("branch7x7dbl", (n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)),
        _branch("branch_pool", (192, 1, 1), pool=_average),
    )


def _mixed_e(name: str, pool: Step) -> Step:
    fork = [(384, 1, 3), (384, 3, 1)]
    return _mixed(
        name,
        _branch("branch1x1", (320, 1, 1)),
        _branch("branch3x3", (384, 1, 1), fork),
        _branch("branch3x3dbl", (448, 1, 1), (384, 3, 3), fork),
        _branch("branch_pool", (192, 1, 1), pool=pool),
    )


NETWORK = (
    _conv("Conv2d_1a_3x3", 32, 3, 3, 2, "VALID"),  # 149 x 149
    _conv("Conv2d_2a_3x3", 32, 3, 3, 1, "VALID"),
    _conv("Conv2d_2b_3x3", 64, 3, 3),
    _halve,  # 73 x 73
    _conv("Conv2d_3b_1x1", 80, 1, 1),
    _conv("Conv2d_4a_3x3", 192, 3, 3, 1, "VALID"),
    _halve,  # 35 x 35
    _mixed_a("Mixed_5b", 32),
    _mixed_a("Mixed_5c", 64),
    _mixed_a("Mixed_5d", 64),
    _mixed(
        "Mixed_6a",  # 17 x 17
        _branch("branch3x3", (384, 3, 3, 2, "VALID")),
        _branch("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3, 2, "VALID")),
        _halve,
    ),
    _mixed_c("Mixed_6b", 128),
    _mixed_c("Mixed_6c", 160),
    _mixed_c("Mixed_6d", 160),
    _mixed_c("Mixed_6e", 192),
    _mixed(
        "Mixed_7a",  # 8 x 8
        _branch("branch3x3", (192, 1, 1), (320, 3, 3, 2, "VALID")),
        _branch("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2, "VALID")),
        _halve,
    ),
    _mixed_e("Mixed_7b", _average),
    _mixed_e("Mixed_7c", _maximum),
)


def preprocess(images: jax.Array) -> jax.Array:
    """Scales images to the network's input as the published FID does.

    Args:
      images: `[B, H, W, C]` in [-1, 1]; C is 3, or 1 for grey, which is repeated.

    Returns:
      `[B, 299, 299, 3]` in [-1, 127/128], resized like TensorFlow 1's `resize_bilinear`.
    """
    channels = 1 if images.shape[-1] == 1 else 3
    require_shape("images", images, (None, None, None, channels))
    rows, columns = resize_matrix(images.shape[1], SIZE), resize_matrix(images.shape[2], SIZE)
    x = (images + 1) * 127.5  # levels, 0 to 255
    x = jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision=PRECISION)
    return jnp.broadcast_to((x - 128) / 128, (*x.shape[:-1], 3))


def resize_matrix(size: int, wanted: int) -> np.ndarray:
    """`[wanted, size]` weights of a linear resize without TensorFlow 2's half-pixel offset."""
    index = np.arange(wanted)
    # float32 as in TensorFlow's resize_bilinear_op.cc.
    position = index.astype(np.float32) * (np.float32(size) / np.float32(wanted))
    low = position.astype(int)
    fraction = position - low.astype(np.float32)
    matrix = np.zeros((wanted, size), np.float32)
    matrix[index, low] = 1 - fraction
    matrix[index, np.minimum(low + 1, size - 1)] += fraction  # the last pixel is repeated
    return matrix


@dataclass(frozen=True)
class Weights:
    """Weights of `Inception` and where they come from."""

    variables: dict[str, Any]
    source_sha256: str  # of the PyTorch file they were converted from
    published: bool  # whether that is the file behind the published FID


def load(path: str) -> Weights:
    """Reads weights that `python -m deformgan.models.convert_inception` wrote.

    Raises `UserError` for a file that is missing, damaged or of another kind.
    """
    key = f"evaluate.inception_weights: {path}"
    advice = "convert the PyTorch file with `python -m deformgan.models.convert_inception`"
    if not Path(path).is_file():
        raise UserError(f"{key} is not a file; {advice}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if not {"source_sha256", "tensors_sha256"} <= metadata.keys():
                raise UserError(f"{key} records no checksum; {advice}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{key} is not a whole safetensors file ({error}); {advice}") from error
    if checksum(tensors) != metadata["tensors_sha256"]:
        raise UserError(f"{key} is damaged: its tensors have another checksum; {advice} again")
    source = metadata["source_sha256"]
    return Weights(from_torch(tensors, source=path), source, published=source == PUBLISHED)


def from_torch(tensors: dict[str, np.ndarray], *, source: str = "the state dict") -> dict[str, Any]:
    """Turns a PyTorch state dict under the published names into variables of `Inception`.

    The classifier and the counts of batches are left out. Raises `UserError`, naming `source`,
    unless every other tensor has its place and shape.
    """
    tensors = {name: tensor for name, tensor in tensors.items() if is_used(name)}
    shapes = torch_shapes()
    faults = [f"{name} is missing" for name in shapes if name not in tensors]
    for name, tensor in tensors.items():
        if name not in shapes:
            faults.append(f"{name} has no place")
        elif tensor.shape != shapes[name]:
            faults.append(f"{name} has shape {tensor.shape}, not {shapes[name]}")
    if faults:
        raise UserError(
            f"evaluate.inception_weights: {source} does not hold the FID variant of Inception-v3"
            f" ({len(faults)} faults: {', '.join(faults[:4])}); convert"
            " pt_inception-2015-12-05-6726825d.pth"
        )

    def place(path: tuple, _: Any) -> np.ndarray:
        tensor = np.asarray(tensors[_torch_name(path)], np.float32)
        # Kernels from [O, I, H, W] to [H, W, I, O].
        return np.ascontiguousarray(tensor.transpose(2, 3, 1, 0)) if tensor.ndim == 4 else tensor

    return jax.tree.map_with_path(place, _template())


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """The PyTorch shapes of all weights, under their published names."""
    shapes = {
        _torch_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(_template())
    }
    return {n: (s[3], s[2], s[0], s[1]) if len(s) == 4 else s for n, s in shapes.items()}


def is_used(name: str) -> bool:
    """Whether the features depend on this tensor of a published state dict."""
    return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


def checksum(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, in order of name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


@functools.cache
def _template() -> dict[str, Any]:
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)


def _torch_name(path: tuple) -> str:
    """`params, Mixed_5b, branch1x1, conv, kernel` becomes `Mixed_5b.branch1x1.conv.weight`."""
    leaves = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    _, *modules, leaf = [entry.key for entry in path]
    return ".".join([*modules, leaves.get(leaf, leaf)])
