"""Times the fast CPU forms of the layers and of the warp against their plain forms.

    python benchmarks/layers.py [--batch=16]

Forward and backward, median of 15 runs, jit-compiled; prints plain / fast as a ratio of one run.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from deformgan.models import layers
from deformgan.warp import warp

REPEATS = 15


def seconds(function, *args):
    step = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.square(function(*a))), argnums=(0, 1)))
    jax.block_until_ready(step(*args))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(step(*args))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def plain_warp(source, displacement):
    height, width, _ = source.shape
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))

    def one(field):
        return map_coordinates(source[..., 0], grid + field.transpose(2, 0, 1), 1, "nearest")

    return jax.vmap(one)(displacement)


def report(name, plain, fast, *args):
    slow, quick = seconds(plain, *args), seconds(fast, *args)
    print(
        f"{name:34s} plain {slow * 1e3:8.2f} ms  fast {quick * 1e3:8.2f} ms  {slow / quick:5.2f}x"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    batch = parser.parse_args().batch
    key = jax.random.key(0)
    print(f"{jax.default_backend()}, batch {batch}")
    for size, inputs, outputs in (
        (128, 1, 4),
        (64, 4, 8),
        (32, 8, 16),
        (16, 16, 32),
        (8, 32, 64),
        (32, 64, 128),
        (16, 128, 256),
    ):
        x = jax.random.normal(key, (batch, size, size, inputs))
        kernel = jax.random.normal(key, (4, 4, inputs, outputs))
        name = f"strided    {inputs:3d}->{outputs:3d} from {size:3d}"
        report(name, layers._strided_plain, layers.strided_conv, x, kernel)
    for size, inputs, outputs in (
        (4, 64, 32),
        (8, 32, 16),
        (16, 16, 8),
        (32, 8, 4),
        (64, 4, 2),
        (16, 128, 64),
        (8, 256, 128),
    ):
        x = jax.random.normal(key, (batch, size, size, inputs))
        kernel = jax.random.normal(key, (inputs, 4, 4, outputs))
        name = f"transposed {inputs:3d}->{outputs:3d} from {size:3d}"
        report(name, layers._transposed_plain, layers.transposed_conv, x, kernel)
    source = jax.random.normal(key, (128, 128, 1))
    field = 4 * jax.random.normal(key, (batch, 128, 128, 2))
    report("warp 128x128", plain_warp, warp, source, field)


if __name__ == "__main__":
    main()
