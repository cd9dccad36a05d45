"""Small configs and files that tests train on."""

import h5py
import numpy as np
from PIL import Image

from configs import worms


def smoke(**overrides):
    """The worms smoke config on two devices; keys are dotted with double underscores."""
    config = worms.get_config("reported,smoke")
    config.train.batch_size = 8
    config.data.count = 24
    return overridden(config, overrides)


def overridden(config, overrides):
    """The config with other values; keys are dotted with double underscores."""
    for key, value in overrides.items():
        block = config
        *path, last = key.split("__")
        for name in path:
            block = block[name]
        block[last] = value
    return config


def write_images(folder, count=12, shape=(32, 32), suffix=".png", dtype=np.uint8, seed=0):
    """Blobs at random places on noise: distinct frames, none of them faulty."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    images = []
    for i in range(count):
        centre = rng.uniform(0.35, 0.65, 2) * shape
        blob = np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 30)
        image = 150 * blob + rng.uniform(5, 25, shape)
        scale = 200 if dtype == np.uint16 else 1
        images.append((scale * image).astype(dtype))
        Image.fromarray(images[-1]).save(folder / f"frame{i}{suffix}")
    return images


def write_targettrack(file, volumes=4, shape=(48, 32, 6), channels=1, low=-1):
    """The Targettrack layout: two neurons, masks, points; x first; int16 that reaches `low`."""
    rng = np.random.default_rng(0)
    x, y, z = np.indices(shape)
    points = np.full((volumes, 3, 3), np.nan, np.float32)
    with h5py.File(file, "w") as h5:
        for t in range(volumes):
            frame = rng.integers(low, 6, (channels, *shape)).astype(np.int16)
            mask = np.zeros(shape, np.int16)
            for n in (1, 2):
                centre = np.array([12.0 * n + t, 10.0 + 4 * n, 1.0 if n == 1 else 4.0])
                ball = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < 9
                frame[:, ball] = 100 * n
                mask[ball] = n
                points[t, n] = centre
            frame[:, -1, -1] = low
            h5[f"{t}/frame"], h5[f"{t}/mask"] = frame, mask
        h5["pointdat"] = points
    return points
