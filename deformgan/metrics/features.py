"""Features that sets of images are compared in: random, self-supervised and Inception ones."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from flax import linen as nn
from flax import traverse_util

from deformgan.errors import UserError
from deformgan.metrics.subject import ImageSet
from deformgan.models.convnet import ConvNet
from deformgan.models.inception import Inception, load, preprocess

NAMES = ("random", "encoder", "inception")
_BATCH = {"random": 128, "encoder": 128, "inception": 32}
_RANDOM_WIDTHS = (32, 64, 128)
_ENCODER_WIDTHS = (8, 16, 32, 64)
_FEWEST = 32  # training images that an encoder can be trained on
STEPS = 1000
_PAIRS = 64  # images in a batch
_CROP = 0.75  # of the side
_LARGEST = 64  # pixels of a crop
_TEMPERATURE = 0.2
_RATE = 3e-3


@dataclasses.dataclass(frozen=True)
class Extractor:
    """Features of images.

    Attributes:
      name: part of the name of every score made with it.
      about: how they were made.
      apply: `[B, H, W, C]` images in [-1, 1] to features `[B, D]`; compiled.
      standardise: whether features have no scale of their own, and are divided by their spread
        over the real images.
    """

    name: str
    about: str
    apply: Callable[[jax.Array], jax.Array]
    standardise: bool


def pooled(maps: list[jax.Array]) -> jax.Array:
    """Mean and spread over space of every channel of every map, `[B, D]`."""
    parts = [jnp.concatenate([m.mean((1, 2)), m.std((1, 2))], 1) for m in maps]
    return jnp.concatenate(parts, 1)


def random(channels: int) -> Extractor:
    """Features of a convolutional network with fixed random weights, which needs no training."""
    network: Any = ConvNet(_RANDOM_WIDTHS)
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 16, 16, channels)))
    about = f"random convolutions {_RANDOM_WIDTHS}, seed 0, mean and spread over space"
    return Extractor(
        "random", about, jax.jit(lambda x: pooled(network.apply(variables, x))), standardise=True
    )


def inception(path: str) -> Extractor:
    """Inception-v3 pool3 features with the weights in the file `path`."""
    weights = load(path)
    network = Inception()
    name = "inception" if weights.published else "inception-unpublished"
    about = f"Inception-v3 pool3; its file names {weights.source_sha256} as the weights' source"
    apply = jax.jit(lambda x: network.apply(weights.variables, preprocess(x)))
    return Extractor(name, about, apply, standardise=False)


def encoder(
    train: ImageSet, seed: int, store: Path | None, step: Callable[[int], None]
) -> Extractor:
    """Features of a network trained on the training images themselves, without labels.

    SimCLR (Chen et al. 2020): two crops of an image, changed in level and contrast, one with a
    square cut out, must find each other among those of other images.

    Args:
      train: the images trained on.
      seed: of weights and crops.
      store: file to keep the trained network in, and to take it from if it was trained on the same
        images in the same way; or None.
      step: called after every step of training.
    """
    recipe = _recipe(train, seed)
    variables = _stored(store, recipe)
    if variables is None:
        variables = _train_encoder(train, seed, step)
        if store is not None:
            flat = traverse_util.flatten_dict(variables, sep="/")
            tensors = {name: np.asarray(values) for name, values in flat.items()}
            draft = store.with_name(f".{store.name}")  # whole or not at all
            draft.write_bytes(safetensors.numpy.save(tensors, {"recipe": recipe}))
            draft.replace(store)
    network: Any = ConvNet(_ENCODER_WIDTHS)
    trunk = {"params": variables["params"]["trunk"]}
    about = (
        f"encoder trained without labels on the {len(train)} training images, which its floor"
        f" compares with unseen ones; recipe {recipe[:12]}"
    )
    return Extractor(
        "encoder", about, jax.jit(lambda x: pooled(network.apply(trunk, x)[-2:])), standardise=True
    )


def too_few(train: ImageSet | None) -> str:
    """Why no encoder can be trained, or ''."""
    if train is None:
        return "the training images are unknown"
    if len(train) < _FEWEST:
        return f"{len(train)} training images; an encoder needs {_FEWEST}"
    return ""


def extract(
    extractor: Extractor,
    images: ImageSet,
    place: Callable[[np.ndarray], jax.Array],
    step: Callable[[int], None],
) -> np.ndarray:
    """Features `[N, D]` float32 of all images.

    Args:
      extractor: of features.
      images: any number.
      place: puts a batch on the devices.
      step: called with the number of images done in each batch.
    """
    size = _BATCH[extractor.name.partition("-")[0]]
    return images.map(lambda batch: extractor.apply(place(batch)), size, step)


def _whitened(x: jax.Array) -> jax.Array:
    """Each feature with mean 0 and spread 1 over the batch."""
    return (x - x.mean(0, keepdims=True)) / (x.std(0, keepdims=True) + 1e-4)


class _Contrast(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        trunk: Any = ConvNet(_ENCODER_WIDTHS, name="trunk")
        x = pooled(trunk(images)[-2:])
        x = _whitened(nn.Dense(128)(_whitened(x)))
        x = nn.Dense(64)(nn.relu(x))
        return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6)


def _train_encoder(train: ImageSet, seed: int, step: Callable[[int], None]) -> Any:
    height, width = train.stored.shape[1:3]
    crop = tuple(min(max(8, int(_CROP * side)), _LARGEST) for side in (height, width))
    network: Any = _Contrast()
    optimiser = optax.adam(optax.cosine_decay_schedule(_RATE, STEPS))

    def view(key: jax.Array, image: jax.Array) -> jax.Array:
        place, level, contrast, hole = jax.random.split(key, 4)
        room = jnp.array([height - crop[0] + 1, width - crop[1] + 1])
        corner = jax.random.randint(place, (2,), 0, room)
        part = jax.lax.dynamic_slice(image, (*corner, 0), (*crop, image.shape[-1]))
        gain = jax.random.uniform(contrast, minval=0.8, maxval=1.2)
        part = (part - part.mean()) * gain + part.mean()
        part = part + 0.1 * jax.random.normal(level)
        centre = jax.random.uniform(hole, (2,)) * jnp.array(crop)
        far = [jnp.abs(jnp.arange(n) + 0.5 - c) > n / 8 for n, c in zip(crop, centre, strict=True)]
        return jnp.where((far[0][:, None] | far[1][None])[..., None], part, 0.0)

    def loss(params: Any, images: jax.Array, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, (2, len(images)))
        a, b = (network.apply(params, jax.vmap(view)(k, images)) for k in keys)
        every = jnp.concatenate([a, b])  # [2 B, 64]
        logits = every @ every.T / _TEMPERATURE - 1e9 * jnp.eye(len(every))
        twin = jnp.roll(jnp.arange(len(every)), len(images))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, twin))

    @jax.jit
    def update(params: Any, opt: Any, images: jax.Array, key: jax.Array) -> Any:
        updates, opt = optimiser.update(jax.grad(loss)(params, images, key), opt, params)
        return optax.apply_updates(params, updates), opt

    key = jax.random.key(seed)
    params = jax.jit(network.init)(key, jnp.zeros((1, *crop, train.stored.shape[-1])))
    opt, rng = optimiser.init(params), np.random.default_rng(seed)
    for number in range(STEPS):
        chosen = rng.choice(len(train), min(_PAIRS, len(train)), replace=False)
        images = jnp.asarray(train.unit(chosen))
        params, opt = update(params, opt, images, jax.random.fold_in(key, number))
        step(1)
    return jax.device_get(params)


def _recipe(train: ImageSet, seed: int) -> str:
    """Identifies what an encoder was trained on, and how."""
    digest = hashlib.sha256(repr((seed, train.stored.shape, train.low, train.high)).encode())
    for setting in (_ENCODER_WIDTHS, STEPS, _PAIRS, _CROP, _LARGEST, _TEMPERATURE, _RATE):
        digest.update(repr(setting).encode())
    digest.update(train.stored.tobytes())
    return digest.hexdigest()


def _stored(store: Path | None, recipe: str) -> Any:
    """The network kept in `store` if it was made by the same recipe, else None."""
    if store is None or not store.is_file():
        return None
    try:
        with safetensors.safe_open(store, "numpy") as file:
            if (file.metadata() or {}).get("recipe") != recipe:
                return None
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UserError(f"{store}: damaged ({error}); remove it to train it anew") from error
    return traverse_util.unflatten_dict(flat, sep="/")
