"""Random weights and images that Inception is compared on, here and in PyTorch."""

import jax
import numpy as np

from deformgan.models import inception


def random_weights(seed):
    """He-scaled weights under their published names; statistics and biases are not trivial."""
    # RandomState, unlike Generator, never changes its stream: the golden values depend on it.
    rng = np.random.RandomState(seed)
    shapes = inception.torch_shapes()
    tensors = {}
    for name in sorted(n for n in shapes if n.endswith("conv.weight")):
        shape = shapes[name]
        norm = name.replace("conv.weight", "bn")
        variance = rng.uniform(0.05, 1.5, shape[0])
        tensors |= {
            name: rng.randn(*shape) * np.sqrt(2 / np.prod(shape[1:])),
            f"{norm}.weight": rng.uniform(0.7, 1.3, shape[0]) * np.sqrt(variance),
            f"{norm}.bias": rng.normal(0, 0.2, shape[0]),
            f"{norm}.running_mean": rng.normal(0, 0.2, shape[0]),
            f"{norm}.running_var": variance,
        }
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def random_images(seed):
    """`[2, 64, 64, 3]` noise in [-1, 1]."""
    return np.random.RandomState(seed).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)


@jax.jit
def activations(variables, images):
    """The output of every block and convolution of the stem, by name, and `pool3`."""
    features, state = inception.Inception().apply(
        variables, images, capture_intermediates=lambda module, _: len(module.path) <= 1
    )
    blocks = {n: v["__call__"][0] for n, v in state["intermediates"].items() if n != "__call__"}
    return blocks | {"pool3": features}


def sample(x):
    """What is kept of `[2, H, W, C]`: of 32 channels, from all branches, mean and first pixel."""
    if x.ndim == 2:  # pool3, kept whole
        return np.asarray(x)
    x = np.asarray(x)[..., np.linspace(0, x.shape[-1] - 1, min(32, x.shape[-1])).astype(int)]
    return np.stack([x.mean((1, 2)), x[:, 0, 0]])


def difference(got, wanted):
    """The largest difference, relative to the largest of the wanted values."""
    return np.max(np.abs(np.asarray(got) - wanted)) / np.max(np.abs(wanted))
