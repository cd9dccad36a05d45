"""Two-sample test by a small convolutional network of fixed shape, trained afresh."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from deformgan.metrics.subject import ImageSet
from deformgan.models.convnet import ConvNet, widths_for

ABOUT = "a small convolutional network, trained afresh on images of both kinds"
REFITS = False
_BATCH = 32
_STEPS = 160  # of training in each fold
_RATE = 2e-3
_SHIFT = 2  # pixels, of random shifts while training


class _Judge(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = ConvNet(self.widths)(images)[-1]
        return nn.Dense(1)(x.reshape(len(x), -1))[:, 0]


def classify(sets: list[ImageSet], labels: np.ndarray, fold: np.ndarray, seed: int) -> np.ndarray:
    """Scores `[N, 1]` of each image by a network trained without the image's fold."""
    stored = np.concatenate([s.stored for s in sets])
    everything = ImageSet(stored, sets[0].low, sets[0].high, np.zeros(len(stored), int))
    size = max(stored.shape[1:3])
    init, train, score = _functions(widths_for(size, first=8, most=64), _STEPS)
    scores = np.zeros((len(stored), 1), np.float32)
    for f in np.unique(fold):
        inside = np.flatnonzero(fold != f)
        rng = np.random.default_rng([seed, int(f)])
        sample = everything.unit(inside[:256])
        shift, scale = sample.mean(), 1 / max(float(sample.std()), 1e-6)
        state = init(jax.random.key(seed + int(f)), jnp.asarray(sample[:1]))
        for batch in _batches(rng, inside, labels[:, 0]):
            images = (everything.unit(batch) - shift) * scale
            move = rng.integers(-_SHIFT, _SHIFT + 1, 2)
            state = train(state, images, labels[batch, 0], move)
        outside = np.flatnonzero(fold == f)
        for first in range(0, len(outside), 64):
            which = outside[first : first + 64]
            padded = np.resize(which, 64)  # one shape to compile
            out = score(state[0], (everything.unit(padded) - shift) * scale)
            scores[which, 0] = np.asarray(out)[: len(which)]
    return scores


def _batches(rng: np.random.Generator, inside: np.ndarray, label: np.ndarray) -> Any:
    """Indices of `_STEPS` batches, half of each label, going through the images in epochs."""
    half = _BATCH // 2
    sides = [inside[label[inside] == sign] for sign in (1, -1)]
    epochs = -(-_STEPS * half // min(len(side) for side in sides)) + 1
    orders = [np.concatenate([rng.permutation(side) for _ in range(epochs)]) for side in sides]
    for step in range(_STEPS):
        yield np.concatenate([order[step * half : (step + 1) * half] for order in orders])


@functools.cache
def _functions(widths: tuple[int, ...], steps: int) -> tuple[Any, Any, Any]:
    network: Any = _Judge(widths)
    optimiser = optax.adamw(optax.cosine_decay_schedule(_RATE, steps), weight_decay=1e-3)

    @jax.jit
    def init(key: jax.Array, images: jax.Array) -> Any:
        params = network.init(key, images)
        return params, optimiser.init(params)

    @jax.jit
    def train(state: Any, images: jax.Array, labels: jax.Array, move: jax.Array) -> Any:
        images = jnp.roll(images, move, (1, 2))
        params, opt = state

        def loss(params: Any) -> jax.Array:
            return jnp.mean(jax.nn.softplus(-labels * network.apply(params, images)))

        updates, opt = optimiser.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    return init, train, jax.jit(network.apply)
