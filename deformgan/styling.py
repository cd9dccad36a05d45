"""What `--mode=sample` makes in the space of styles: strips between samples, a given image's style.

Only generators with styles can be asked (`contract.Styles`); others are refused by name of the
flag.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from deformgan.data import folder, geometry
from deformgan.data.frames import Frame
from deformgan.data.scaling import Depth, Scaling
from deformgan.errors import UserError
from deformgan.models.styles import truncate
from deformgan.objectives.contract import Objective, Samples, Styles
from deformgan.state import Variables
from deformgan.step import Purpose, example_keys

_CHUNK = 16  # images rendered at once
STEPS = 300  # of a projection
_RATE = 0.05  # of Adam, as large as steps of w are to be
_STARTS = 256  # samples whose nearest a projection begins at
_SCALES = 4  # halvings at which images are compared


class Made(NamedTuple):
    """Samples, and what is to be kept beside them.

    Attributes:
      samples: the samples.
      strip: them and the image that was given, side by side, `[H, W, C]` in [-1, 1]; None if
        neither a strip nor a projection was asked for.
      arrays: by name, of a projection: `w` `[L, W]` and `target` `[S, S, C]` in [-1, 1].
      said: of the manifest; errors are root mean squares in a range of 2.
    """

    samples: Samples
    strip: np.ndarray | None
    arrays: dict[str, np.ndarray]
    said: dict[str, Any]


def styles_of(objective: Objective, flag: str) -> Styles:
    """The objective's styles; raises `UserError` naming the flag that needs them if it has none."""
    if objective.styles is None:
        raise UserError(f"{flag}: this run's generator has no styles; only StyleGAN2 has")
    return objective.styles


def truncated(objective: Objective, truncation: float) -> Objective:
    """The objective with samples whose styles are pulled to their mean.

    Raises:
      UserError: if it has no styles.
    """
    styles = styles_of(objective, "truncation")

    def sample(
        variables: Variables, constants: Any, keys: jax.Array, conditions: jax.Array | None = None
    ) -> Samples:
        w = truncate(styles.of(variables, keys), styles.mean(variables), truncation)
        return styles.show(styles.render(variables, w, keys))

    return dataclasses.replace(objective, sample=sample)


def strips(
    objective: Objective,
    variables: Variables,
    *,
    seed: int,
    num: int,
    between: int,
    truncation: float,
) -> Made:
    """Samples 0 to `num` - 1 of a seed and `between` images on the way from each to the next.

    Styles move on a straight line; the noise of the pixels is that of the first sample throughout.

    Returns:
      `1 + (num - 1) (between + 1)` images, in order; the strip has a row for each sample.

    Raises:
      UserError: if the generator has no styles.
    """
    styles = styles_of(objective, "interpolate")
    keys = _keys(seed, num)
    w = truncate(styles.of(variables, keys), styles.mean(variables), truncation)
    share = jnp.arange(between + 1)[None, :, None, None] / (between + 1)
    path = w[:-1, None] * (1 - share) + w[1:, None] * share  # [num - 1, between + 1, L, W]
    path = jnp.concatenate([path.reshape(-1, *w.shape[1:]), w[-1:]])

    @jax.jit
    def render(w: jax.Array) -> Samples:
        noise = jnp.broadcast_to(keys[:1], (len(w),))
        return styles.show(styles.render(variables, w, noise))

    parts = []
    for first in range(0, len(path), _CHUNK):
        part = path[first : first + _CHUNK]
        filled = jnp.pad(part, ((0, _CHUNK - len(part)), (0, 0), (0, 0)))
        parts.append(jax.device_get(render(filled)))
    samples: Samples = jax.tree.map(lambda *x: np.concatenate(x)[: len(path)], *parts)
    strip = tabulated(np.asarray(samples.images), between + 1)
    return Made(samples, strip, {}, {"interpolate": between})


def tabulated(images: np.ndarray, columns: int) -> np.ndarray:
    """Images `[N, H, W, C]` in rows of `columns`, the last filled with 0: one image."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    filled = np.pad(images, ((0, rows * columns - count), (0, 0), (0, 0), (0, 0)))
    grid = filled.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def read_target(path: str, config: ml_collections.ConfigDict, scaling: Scaling) -> np.ndarray:
    """The image at `path` as those that were trained on, `[S, S, C]` in [-1, 1].

    It is an image that the run has written, or one in the units of the data.

    Raises:
      UserError: if it cannot be read, or is of another depth than both.
    """
    settings = ml_collections.ConfigDict(
        {"path": path, "channel": config.channel, "channels": config.channels}
    )
    try:
        frames = folder.read(settings)
        frame: Frame = frames.read(0)
    except UserError as error:
        raise UserError(f"project: {str(error).removeprefix('data.path: ')}") from error
    if len(frames) > 1:
        raise UserError(f"project: {path} holds {len(frames)} images; give the file of one")
    frame = dataclasses.replace(frame, image=_in_units(path, frame.image, scaling.depth))
    return scaling.inward(geometry.fitted(frame, config.size, config.aspect).image)


def _in_units(path: str, image: np.ndarray, depth: Depth) -> np.ndarray:
    """An image as it is stored, or in the units of the data already, in these units."""
    if image.dtype.name == depth.dtype:
        return image * depth.step + depth.offset
    whole = depth.step == 1
    fits = np.issubdtype(image.dtype, np.signedinteger if whole else np.floating)
    if whole and fits:  # nothing tells that the data were signed, if they were never below 0
        fits = image.max() - depth.offset <= np.iinfo(depth.dtype).max
    if not fits:
        original = "" if whole else " (or floating-point numbers, as the data)"
        raise UserError(
            f"project: {path} holds {image.dtype}, the run's images {depth.dtype}{original};"
            " convert it"
        )
    return image


def project(objective: Objective, variables: Variables, target: np.ndarray, *, seed: int) -> Made:
    """The style whose image is nearest to a given one; Abdal et al. 2019 (w of every layer).

    Adam from the nearest of 256 samples, with a falling rate, on the mean square distance of the
    images and of their halvings, in the network's own space; noise is that of the seed.

    Args:
      objective: with styles.
      variables: of the generator.
      target: `[S, S, C]` in [-1, 1].
      seed: of the samples and of the noise.

    Raises:
      UserError: if the generator has no styles.
    """
    styles = styles_of(objective, "project")
    wanted = styles.encode(jnp.asarray(target)[None])
    keys = _keys(seed, _STARTS)

    def distance(w: jax.Array, keys: jax.Array) -> jax.Array:
        return _distance(styles.render(variables, w, keys), wanted)

    nearest = jax.jit(lambda keys: distance(styles.of(variables, keys), keys))
    chunks = keys.reshape(-1, _CHUNK)
    best = int(jnp.argmin(jnp.concatenate([nearest(part) for part in chunks])))
    noise = keys[best][None]
    start = styles.of(variables, noise)
    w = _descended(lambda w: distance(w, noise)[0], start)

    @jax.jit
    def render(w: jax.Array) -> Samples:
        return styles.show(styles.render(variables, w, noise))

    first, samples = jax.device_get((render(start), render(w)))

    def error(images: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(images[0] - target))))

    strip = tabulated(np.concatenate([target[None], samples.images]), 2)
    said = {"error": error(samples.images), "error_of_start": error(first.images)}
    return Made(samples, strip, {"w": np.asarray(w[0]), "target": target}, said)


def _descended(loss: Callable[[jax.Array], jax.Array], start: jax.Array) -> jax.Array:
    """The best w that Adam meets on its way."""
    optimiser = optax.adam(optax.cosine_decay_schedule(_RATE, STEPS), b1=0.9, b2=0.999)

    @jax.jit
    def step(w: jax.Array, opt: Any) -> tuple[jax.Array, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(w)
        change, opt = optimiser.update(gradient, opt)
        return optax.apply_updates(w, change), opt, value

    w, opt = start, optimiser.init(start)
    best, least = start, jnp.asarray(jnp.inf)
    for _ in range(STEPS):
        moved, opt, value = step(w, opt)
        best, least = jnp.where(value < least, w, best), jnp.minimum(value, least)
        w = moved
    return best


def _distance(images: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean square distance `[B]` to one image, summed over halvings of the size."""
    apart = images - wanted
    total = jnp.mean(jnp.square(apart), (1, 2, 3))
    for _ in range(_SCALES):
        batch, height, width, channels = apart.shape
        apart = apart.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
        total = total + jnp.mean(jnp.square(apart), (1, 2, 3))
    return total


def _keys(seed: int, num: int) -> jax.Array:
    """The keys of samples 0 to `num` - 1."""
    return example_keys(jax.random.key(seed), 0, Purpose.SAMPLE, jnp.arange(num))
