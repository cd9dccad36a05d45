"""The first report's simulator: two somata, neurites between them, deformation, camera noise.

Pure and seeded: image i of a set depends on the seed and on i alone. Coordinates of the anatomy
run from -1 to 1 over the image, (x, y) = (column, row); pixels are (row, column).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan.data import anatomy, splits
from deformgan.data.frames import Frame, Frames, Labels
from deformgan.errors import UserError, choose
from deformgan.fields import smooth_random, transport_points
from deformgan.filters import gaussian_blur
from deformgan.warp import warp

CLEAN_SETS = ("random_ellipses", "rotated_ellipses", "deformed_ellipses", "neurites")
NOISES = ("gaussian_low", "gaussian_high", "gaussian_very_high", "poisson", "speckle")
SETS = CLEAN_SETS + NOISES
LAYERS = ("soma_bright", "soma_dim", "neurites")

_BRIGHTNESS = np.array([1.0, 0.72], np.float32)
_SIGMA = {"gaussian_low": 0.05, "gaussian_high": 0.15, "gaussian_very_high": 0.30}
_PHOTONS = 30.0  # at full scale
_SPECKLE = 0.35  # standard deviation of the multiplicative noise
_BACKGROUND, _RANGE = 0.08, 0.80  # camera offset and signal of the noisy sets, of full scale
_CONTROL_POINTS = 6  # of the hand-made field, along each axis
_STEEPEST = 0.9  # below 1 the deformation x + u(x) is one-to-one
_BLUR = 0.011  # sigma of the light blur, of the image's width
_CHUNK = 64  # images drawn at once
_SHOWN = {  # which of the four structures a layer has
    "": np.ones(4, np.float32),
    "soma_bright": np.array([1, 0, 0, 0], np.float32),
    "soma_dim": np.array([0, 1, 0, 0], np.float32),
    "neurites": np.array([0, 0, 1, 1], np.float32),
}


class Truth(NamedTuple):
    """One simulated image and everything that is known about it.

    Attributes:
      image: `[H, W, 1]` uint8, with noise if the set has any.
      clean: `[H, W, 1]` float32 in [0, 1], without.
      masks: `[K, H, W]` bool, one a structure: the somata, then the neurites.
      points: `[P, 2]` float32 (row, column): the soma centres, then points along each neurite;
        NaN where the deformation carried one out of the frame.
      ids: `[P]` int32: 1 and 2 for the somata, 100 k + j for point j of structure k.
    """

    image: jax.Array
    clean: jax.Array
    masks: jax.Array
    points: jax.Array
    ids: jax.Array


@functools.partial(jax.jit, static_argnames=("name", "size", "canonical"))
def simulate(
    key: jax.Array,
    *,
    name: str,
    size: int,
    canonical: bool = False,
    amplitude: float = 1.0,
    noise: float = 1.0,
    shown: jax.typing.ArrayLike = _SHOWN[""],
) -> Truth:
    """Draws one image of the set `name`.

    Args:
      key: PRNG key of this image.
      name: one of `SETS`; the noises come on top of `neurites`.
      size: pixels along each side.
      canonical: the set's undeformed source image, somata at their fixed angles.
      amplitude: of the deformation, in that of the set.
      noise: standard deviation of the noise, in that of the set.
      shown: `[4]`, 1 for each structure that is drawn, 0 for one left out; the random numbers of
        the others stay the same.

    Returns:
      Its truth.
    """
    pose, curve, field, camera = jax.random.split(key, 4)
    centres, axes, angles = anatomy.pose(pose, name, canonical)
    masks = jax.vmap(functools.partial(anatomy.ellipse, size=size))(centres, axes, angles)
    brightness = masks * _BRIGHTNESS[:, None, None]  # [2, H, W]
    points, ids = anatomy.to_pixels(centres, size), jnp.array([1, 2])
    if name not in CLEAN_SETS[:3]:
        shapes, bright, along = anatomy.neurites(curve, size, canonical)  # two neurites
        masks, brightness = jnp.concatenate([masks, shapes]), jnp.concatenate([brightness, bright])
        points = jnp.concatenate([points, anatomy.to_pixels(along.reshape(-1, 2), size)])
        number = 1 + jnp.arange(anatomy.POINTS_PER_NEURITE)
        ids = jnp.concatenate([ids, 300 + number, 400 + number])
    own = jnp.asarray(shown)[: len(masks), None, None]
    masks, clean = own * masks, jnp.max(own * brightness, axis=0)
    if name not in CLEAN_SETS[:2]:
        if not canonical:
            displacement = smooth_random(
                field, (size, size), control=_CONTROL_POINTS, steepest=amplitude * _STEEPEST
            )
            stacked = jnp.moveaxis(jnp.concatenate([clean[None], masks]), 0, -1)
            stacked = warp(stacked, displacement)[0]
            clean, masks = stacked[..., 0], jnp.moveaxis(stacked[..., 1:], -1, 0)
            points = transport_points(points, displacement)[0][0]
        clean = gaussian_blur(clean[None, ..., None], _BLUR * size)[0, ..., 0]
    structure = jnp.where(ids < 100, ids, ids // 100) - 1
    points = jnp.where(jnp.asarray(shown)[structure, None] > 0, points, jnp.nan)
    image = clean if name in CLEAN_SETS else _camera(camera, clean, name, noise)
    image = jnp.round(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)
    return Truth(image[..., None], clean[..., None], masks > 0.5, points, ids)


@functools.partial(jax.jit, static_argnames=("name", "size"))
def _draw_chunk(
    indices: jax.Array,
    seed: int,
    amplitude: float,
    noise: float,
    shown: jax.Array,
    *,
    name: str,
    size: int,
) -> Truth:
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices)
    one = functools.partial(
        simulate, name=name, size=size, amplitude=amplitude, noise=noise, shown=shown
    )
    return jax.lax.map(one, keys, batch_size=8)


def draw(
    first: int,
    count: int,
    seed: int,
    name: str,
    size: int,
    *,
    amplitude: float = 1.0,
    noise: float = 1.0,
    layer: str = "",
) -> Truth:
    """Images `first` to `first + count` of a set, NumPy arrays with a leading axis.

    Drawn in chunks of one size, so that a set of any size is compiled once. `layer` is one of
    `LAYERS`, drawn alone, or '' for the whole image.
    """
    parts = []
    for start in range(first, first + count, _CHUNK):
        indices = start + jnp.arange(_CHUNK)
        part = jax.device_get(
            _draw_chunk(indices, seed, amplitude, noise, _SHOWN[layer], name=name, size=size)
        )
        parts.append(jax.tree.map(lambda leaf, n=first + count - start: leaf[:n], part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def read(config: ml_collections.ConfigDict) -> Frames:
    """Simulates `data.count` images of `data.set`, each with its labels.

    With `data.held_out`, as many more come from `data.held_out_seed`: they alone are the test
    split, the same whatever `data.seed` and `data.count` are.

    Raises:
      UserError: for an unknown set, a layer that the set has not, or one seed for both.
    """
    choose("data.set", config.set, SETS)
    _check_layer(config.set, config.layer)
    draws = functools.partial(draw, name=config.set, size=config.size, layer=config.layer)
    label = "_".join(filter(None, (config.set, config.layer)))
    truth = draws(0, config.count, config.seed)
    names = [f"{label}_{i:06d}" for i in range(config.count)]
    split = None
    if config.held_out:
        if config.held_out_seed == config.seed:
            raise UserError(
                f"data.held_out_seed: {config.seed}, as data.seed, draws the training images again;"
                " choose another"
            )
        unseen = draws(0, config.held_out, config.held_out_seed)
        truth = jax.tree.map(lambda *leaves: np.concatenate(leaves), truth, unseen)
        shares = {"validation": config.validation, "test": 0.0, "seed": config.seed}
        split, _ = splits.assign(names, range(config.count), **shares)
        split += ["test"] * config.held_out
        new = f"{label}_seed_{config.held_out_seed}"
        names += [f"{new}_{i:06d}" for i in range(config.held_out)]
    return Frames(
        names=names,
        recordings=names,  # images are independent
        moments=range(len(names)),
        read=lambda i: to_frame(jax.tree.map(lambda leaf: leaf[i], truth)),
        reference=source_image(config.set, config.size, config.seed, config.layer),
        splits=split,
    )


def controls(config: ml_collections.ConfigDict, count: int) -> dict[str, list[Frame] | str]:
    """Images of the set's model made slightly wrong, which an evaluation must notice.

    Args:
      config: the `data` block.
      count: how many images, none of them in the set.

    Returns:
      by name, `noise_5_percent` and `field_minus_25_percent`: images, or why there are none.
    """

    def varied(**change: float) -> list[Frame]:
        start, seed, name, size = config.count, config.seed, config.set, config.size
        truth = draw(start, count, seed, name, size, layer=config.layer, **change)
        return [Frame(image) for image in truth.image]

    clean, rigid = config.set in CLEAN_SETS, config.set in CLEAN_SETS[:2]
    return {
        "noise_5_percent": "the set has no noise" if clean else varied(noise=1.05),
        "field_minus_25_percent": "the set has no deformation" if rigid else varied(amplitude=0.75),
    }


def source_image(name: str, size: int, seed: int, layer: str = "") -> Frame:
    """The set's undeformed image, with the set's noise: what the report warps.

    Args:
      name: of the set.
      size: pixels along each side.
      seed: of its noise.
      layer: one of `LAYERS`, drawn alone; '' for the whole image, which comes with its layers
        where the set has them all.
    """
    choose("source.set", name, SETS)
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)

    def drawn(layer: str) -> Frame:
        shown = _SHOWN[layer]
        truth = simulate(key, name=name, size=size, canonical=True, shown=shown)
        return to_frame(jax.device_get(truth))

    has_layers = not layer and name not in CLEAN_SETS[:3]
    return dataclasses.replace(drawn(layer), layers=tuple(map(drawn, LAYERS * has_layers)))


def to_frame(truth: Truth) -> Frame:
    """A truth as a frame: somata over neurites in the mask, points that stayed in the frame."""
    mask = np.zeros(truth.masks.shape[1:], np.int32)
    for structure in reversed(range(len(truth.masks))):
        mask[truth.masks[structure]] = structure + 1
    there = np.isfinite(truth.points).all(-1)
    labels = Labels(mask, np.asarray(truth.points, np.float64)[there], np.asarray(truth.ids)[there])
    return Frame(np.asarray(truth.image), labels)


def _check_layer(name: str, layer: str) -> None:
    if layer:
        choose("data.layer", layer, LAYERS)
    if layer == "neurites" and name in CLEAN_SETS[:3]:
        raise UserError(f"data.layer: the set {name} has no neurites; choose {LAYERS[0]!r} or ''")


def _camera(key: jax.Array, clean: jax.Array, name: str, level: float) -> jax.Array:
    signal = _BACKGROUND + _RANGE * clean
    if name == "poisson":
        photons = _PHOTONS / level**2
        return jax.random.poisson(key, photons * signal, dtype=jnp.int32) / photons
    noise = level * jax.random.normal(key, clean.shape)
    if name == "speckle":
        return signal * (1 + _SPECKLE * noise)
    return signal + _SIGMA[name] * noise
