"""A small U-Net that finds and names cells, its augmentations, training and scores.

What benchmarks/purpose.py measures generated pairs by. Nothing in it is tuned to any of the arms:
strengths of augmentation are those commonly used, set once.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from deformgan.fields import smooth_random
from deformgan.warp import warp

AUGMENTATIONS = ("none", "flips_rotations", "elastic", "both")
_RATE = 3e-3  # of Adam, risen to in a tenth of the steps and falling by a cosine to 0
_CELL_WEIGHT = 10.0  # of a cell's pixels, 1% of all; at 1 the annotated volume is not learned
_CONTROL = 5  # points of an elastic field along each axis: 32 pixels apart at 128x128
_STEEPEST = 0.6  # slope of that field where it is largest
_GAIN, _GAMMA = 0.3, 0.3  # intensity jitter: log gain and log exponent are uniform in +- these
_NEAR = 5.0  # pixels within which a centroid counts as found


class Pairs(NamedTuple):
    """Images `[N, S, S, 1]` float32 in [-1, 1] and classes `[N, S, S]` int32, 0 for background."""

    images: np.ndarray
    classes: np.ndarray


class UNet(nn.Module):
    """`[B, S, S, 1]` to logits `[B, S, S, classes]`, three levels (Ronneberger et al. 2015).

    A strided convolution comes first and logits are made at half size and resized, which costs a
    quarter on CPU; the bottleneck, S / 16, sees the whole image, as naming a cell needs.

    Attributes:
      classes: with the background.
      widths: channels of the levels; twice the last in the bottleneck.
    """

    classes: int
    widths: tuple[int, ...] = (8, 16, 32)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # noqa: D102
        bright = jnp.sqrt(jnp.maximum((images + 1) / 2, 0))  # so that dim neurites show
        x = nn.Conv(self.widths[0], (4, 4), 2)(bright)
        skips = []
        for width in self.widths:
            x = _block(x, width)
            skips.append(x)
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = _block(x, self.widths[-1] * 2)
        for width, skip in zip(self.widths[::-1], skips[::-1], strict=True):
            larger = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
            x = _block(jnp.concatenate([larger, skip], -1), width)
        logits = nn.Conv(self.classes, (1, 1))(x)
        batch, size = images.shape[:2]
        return jax.image.resize(logits, (batch, size, size, self.classes), "linear")


def _block(x: jax.Array, width: int) -> jax.Array:
    for _ in range(2):
        x = nn.relu(nn.Conv(width, (3, 3), kernel_init=nn.initializers.he_normal())(x))
    return x


def augmented(
    key: jax.Array, images: jax.Array, classes: jax.Array, *, kind: str
) -> tuple[jax.Array, jax.Array]:
    """Moves images and their classes together; `elastic` and `both` also jitter intensities.

    Args:
      key: PRNG key.
      images: `[B, S, S, 1]` in [-1, 1].
      classes: `[B, S, S]` int.
      kind: one of `AUGMENTATIONS`. Flips and rotations are by any angle about the centre.
    """
    if kind == "none":
        return images, classes
    batch, size = images.shape[:2]
    move_key, tone_key = jax.random.split(key)
    move = {"flips_rotations": _turned, "elastic": _bent, "both": _turned_and_bent}[kind]
    displacement = jax.vmap(lambda k: move(k, size))(jax.random.split(move_key, batch))

    def one(image: jax.Array, mask: jax.Array, field: jax.Array) -> tuple[jax.Array, jax.Array]:
        labels = warp(mask[..., None], field[None], order=0)[0, ..., 0]
        return warp(image, field[None])[0], labels

    images, classes = jax.vmap(one)(images, classes, displacement)
    if kind != "flips_rotations":
        gain, gamma = jnp.exp(
            jax.random.uniform(tone_key, (2, batch, 1, 1, 1), minval=-1.0)
            * jnp.array([_GAIN, _GAMMA])[:, None, None, None, None]
        )
        unit = jnp.maximum((images + 1) / 2, 1e-6)  # a power's slope at 0 is infinite
        images = 2 * jnp.clip(gain * unit**gamma, 0, 1) - 1
    return images, classes


def _turned(key: jax.Array, size: int) -> jax.Array:
    """`[S, S, 2]`: a rotation by any angle about the centre, mirrored half of the time."""
    angle_key, flip_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, maxval=2 * jnp.pi)
    flip = jnp.where(jax.random.bernoulli(flip_key), -1.0, 1.0)
    c, s = jnp.cos(angle), jnp.sin(angle)
    matrix = jnp.stack([jnp.stack([c, -s]), jnp.stack([s * flip, c * flip])])
    away = jnp.stack(jnp.indices((size, size)), -1) - (size - 1) / 2  # [S, S, 2]
    return away @ matrix.T - away


def _bent(key: jax.Array, size: int) -> jax.Array:
    field = smooth_random(key, (size, size), control=_CONTROL, steepest=_STEEPEST)
    return field[0]


def _turned_and_bent(key: jax.Array, size: int) -> jax.Array:
    turn_key, bend_key = jax.random.split(key)
    return _turned(turn_key, size) + _bent(bend_key, size)


def loss(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Weighted cross entropy + soft Dice (Milletari et al. 2016), mean over all but background."""
    weight = jnp.where(classes > 0, _CELL_WEIGHT, 1.0)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    entropy = jnp.sum(weight * entropy) / jnp.sum(weight)
    truth = jax.nn.one_hot(classes, logits.shape[-1])
    likely = jax.nn.softmax(logits)
    both = jnp.sum(truth * likely, (0, 1, 2))[1:]
    either = jnp.sum(truth + likely, (0, 1, 2))[1:]
    return entropy + 1 - jnp.mean((2 * both + 1) / (either + 1))


def trained(
    annotated: Pairs,
    generated: Pairs | None,
    *,
    kind: str,
    classes: int,
    steps: int,
    batch: int,
    seed: int,
) -> Any:
    """The parameters of a network trained for `steps` batches.

    Args:
      annotated: pairs that people made.
      generated: pairs that half of every batch is drawn from; None for annotated ones alone.
      kind: augmentation of all of them, one of `AUGMENTATIONS`.
      classes: with the background.
      steps: of training.
      batch: examples in a batch.
      seed: of initialisation, batches and augmentation.
    """
    init, step, _ = _functions(kind, classes, steps)
    rng = np.random.default_rng(seed)
    key = jax.random.key(seed)
    state = init(key, jnp.asarray(annotated.images[:1]))
    for number in range(steps):
        own = rng.integers(0, len(annotated.images), batch)
        images, labels = annotated.images[own], annotated.classes[own]
        if generated is not None:
            half = batch // 2
            other = rng.integers(0, len(generated.images), half)
            images = np.concatenate([images[half:], generated.images[other]])
            labels = np.concatenate([labels[half:], generated.classes[other]])
        state = step(state, jax.random.fold_in(key, number), images, labels)
    return state[0]


def predict(params: Any, images: np.ndarray, classes: int) -> np.ndarray:
    """The most likely class of every pixel, `[N, S, S]`."""
    network: Any = _functions("none", classes, 1)[2]
    return np.concatenate([np.asarray(network(params, image[None])) for image in images])


@functools.cache
def _functions(kind: str, classes: int, steps: int) -> tuple[Any, Any, Any]:
    network: Any = UNet(classes)
    rate = optax.warmup_cosine_decay_schedule(0.0, _RATE, max(1, steps // 10), max(2, steps))
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    @jax.jit
    def init(key: jax.Array, images: jax.Array) -> Any:
        params = network.init(key, images)
        return params, optimiser.init(params)

    @jax.jit
    def step(state: Any, key: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        params, opt = state
        images, labels = augmented(key, images, labels, kind=kind)
        grads = jax.grad(lambda p: loss(network.apply(p, images), labels))(params)
        updates, opt = optimiser.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    return init, step, jax.jit(lambda params, x: jnp.argmax(network.apply(params, x), -1))


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean arrays; NaN if both are empty."""
    total = predicted.sum() + truth.sum()
    return float(2 * (predicted & truth).sum() / total) if total else float("nan")


def found(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of the images `[N, S, S]` with a cell in `truth` where its centroid was predicted.

    That is within 5 pixels; NaN if no image has the cell.
    """
    hits = []
    for guess, right in zip(predicted, truth, strict=True):
        if right.any():
            apart = [np.argwhere(m).mean(0) if m.any() else np.inf for m in (guess, right)]
            hits.append(np.linalg.norm(apart[0] - apart[1]) <= _NEAR)
    return float(np.mean(hits)) if hits else float("nan")
