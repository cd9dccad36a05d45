"""Translates a synthetic transmittance section, and tells how much memory and time that takes.

    python benchmarks/translate_section.py [--side=8000] [--tile=64] [--filters=16] [--overlap=0.75]

The section is an HDF5 pyramid in a temporary folder, drawn band by band; the U-Net is untrained, so
that what it predicts means nothing. Peak memory is that of the whole process, compilation included,
as the kernel counts it; pixels are those of the finest level, with all levels written.
"""

import argparse
import resource
import sys
import tempfile
import time
import types
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent.parent))
from configs import base
from deformgan import blending, parallel, translate
from deformgan.data.raster_writers import layout_of
from deformgan.data.scaling import Depth, Scaling
from deformgan.data.whole import open_whole
from deformgan.models.unet import UNet, depth_for
from deformgan.objectives.contract import Samples
from deformgan.translator import Translator, predictor, translated

BYTES = Scaling("range", 0.0, 255.0, 0.0, Depth("uint8", 1.0, 0.0))
LEVELS, BAND = 4, 64


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def draw(file, side):
    """Smooth noise in `pyramid/00`, every second pixel of it in each level above."""
    rng = np.random.default_rng(0)
    with h5py.File(file, "w") as h5:
        sides = [side >> level for level in range(LEVELS)]
        levels = [
            h5.create_dataset(
                f"pyramid/{n:02d}", (s, s), np.uint8, chunks=(BAND, BAND), compression="gzip"
            )
            for n, s in enumerate(sides)
        ]
        for row in range(0, side, BAND):
            noise = ndimage.gaussian_filter(rng.normal(size=(min(BAND, side - row), side)), 3)
            band = np.clip(150 + 600 * noise, 0, 255).astype(np.uint8)
            for n, level in enumerate(levels):
                part = band[:: 2**n, :: 2**n][: level.shape[0] - (row >> n), : level.shape[1]]
                level[row >> n : (row >> n) + len(part)] = part


def untrained(size, filters, passes):
    """Translates transmittance to orientation maps, with dropout if there are several passes."""
    network = UNet(3, filters=filters, depth=depth_for(size, 0), upsampling="resize")
    variables = network.init(jax.random.key(0), jnp.zeros((1, size, size, 1)), train=False)

    def sample(variables, constants, keys, conditions):
        drawn = keys if passes > 1 else None
        return Samples(network.apply(variables, conditions, train=False, keys=drawn), {}, {})

    blend, objective = blending.oriented("rgb"), types.SimpleNamespace(sample=sample)
    predict = predictor(objective, variables, {}, blend, passes=passes, seed=0)
    return Translator(predict, blend, size, passes, BYTES, BYTES)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=8000)
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--filters", type=int, default=16)
    parser.add_argument("--passes", type=int, default=1)
    parser.add_argument("--overlap", type=float, default=0.75)
    arguments = parser.parse_args()
    data = base.get_config().data
    data.source, data.pairs = "pyramid", True
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "S_1_NTransmittance.h5"
        draw(file, arguments.side)
        print(f"{parallel.describe()}; {arguments.side}x{arguments.side}, {peak_mib():.0f} MiB")
        whole = open_whole([file], data, BYTES.depth, level=0)
        layout = layout_of(file, whole.kind, 0, whole.shape[:2])
        target = translate.output_file(scratch, whole, "fom")
        by = untrained(arguments.tile, arguments.filters, arguments.passes)
        start = time.perf_counter()
        done = translated(whole, by, overlap=arguments.overlap, folder=target.parent)
        translating = time.perf_counter() - start
        translate.keep(target, done, whole, layout, by, {})
        seconds = time.perf_counter() - start
        pixels = arguments.side**2
        print(
            f"peak memory {peak_mib():.0f} MiB; {pixels / seconds:.3g} pixels/s"
            f" ({translating:.0f} s to translate, {seconds - translating:.0f} s to write"
            f" {target.stat().st_size / 2**20:.0f} MiB); seam ratio {done.seam_ratio:.3f}"
        )


if __name__ == "__main__":
    main()
