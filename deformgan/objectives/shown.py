"""What a discriminator is shown: images augmented, real ones also flipped, turned and shifted.

Every draw comes from the example's own key; `Draw` keeps uses of one key apart.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from deformgan import orientation
from deformgan.adaptive_augment import COLOUR, GEOMETRIC, Adaptation, augment
from deformgan.augment import diff_augment
from deformgan.errors import UserError, choose

Show = Callable[[jax.Array, jax.Array, Any, jax.Array | int], jax.Array]


class Draw(enum.IntEnum):
    """Folded into an example's key; 0 to 2 and those of `styles.Use` are taken."""

    NOISE = 3
    DROPOUT = 4
    TURN = 5
    SHIFT = 6
    DISC_DROPOUT = 7


class Space(NamedTuple):
    """What the channels of a discriminator's images mean.

    Attributes:
      name: one of `orientation.SPACES`.
      oriented: whether they encode fibre directions.
      channels: how many there are. Any before them are of the condition that an image is predicted
        from, whose values are plain brightness or colour: it moves and is cut with the image. 0 if
        there is none.
    """

    name: str = "scalar"
    oriented: bool = False
    channels: int = 0


UNCODED = Space()  # plain brightness, which no operation may turn


def augmentation(config: ml_collections.ConfigDict, space: Space) -> Show:
    """What is done to real and generated images alike, as the `augment` block says.

    Returns:
      (keys `[b]`, images `[b, H, W, C]`, the discriminator's batch statistics, step) -> images.

    Raises:
      UserError: for a setting out of its range, or that would change what the colours mean.
    """
    check(config.augment, space)
    settings = config.augment

    def changed(
        keys: jax.Array, images: jax.Array, stats: Any, name: str, recolour: bool
    ) -> jax.Array:
        if settings.adaptive:
            images = augment(
                keys,
                images,
                stats["adaptation"].probability,
                space=name,
                oriented=space.oriented,
                geometric=tuple(settings.geometric),
                colour=tuple(settings.colour) if recolour else (),
            )
        return diff_augment(
            keys,
            images,
            brightness=settings.brightness if recolour else 0.0,
            saturation=settings.saturation if recolour else 0.0,
            contrast=settings.contrast if recolour else 0.0,
            translation=settings.translation,
            cutout=settings.cutout,
        )

    def show(keys: jax.Array, images: jax.Array, stats: Any, step: jax.Array | int) -> jax.Array:
        given = images[..., : -space.channels] if space.channels else None
        judged = changed(keys, images[..., -space.channels :], stats, space.name, True)
        if given is None:
            images = judged
        else:  # the same keys move both alike
            images = jnp.concatenate([changed(keys, given, stats, "scalar", False), judged], -1)
        if settings.noise:
            images = images + _fading(settings, step) * noise(keys, images)
        return images

    return show


def _fading(settings: ml_collections.ConfigDict, step: jax.Array | int) -> jax.Array:
    """Standard deviation of instance noise at a step."""
    if not settings.noise_steps:
        return jnp.asarray(settings.noise)
    return settings.noise * jnp.maximum(1 - step / settings.noise_steps, 0.0)


def noise(keys: jax.Array, images: jax.Array) -> jax.Array:
    """N(0, 1) like `images` `[b, H, W, C]`: instance noise (Sønderby et al. 2017, sec. 3)."""
    return jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))(fold(keys, Draw.NOISE))


def start(config: ml_collections.ConfigDict) -> dict[str, Adaptation]:
    """Batch statistics of the discriminator that augmentation needs, before the first step."""
    return {"adaptation": Adaptation.start()} if config.augment.adaptive else {}


def turned(keys: jax.Array, images: jax.Array, space: Space) -> jax.Array:
    """Images `[b, S, S, C]` mirrored and turned by right angles at random, with their directions.

    The eight are equally likely. Where no direction is encoded, values keep.
    """

    def pick(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (), 0, 8)

    chosen = jax.vmap(pick)(fold(keys, Draw.TURN))
    meaning = space.name if space.oriented else "scalar"
    return orientation.flipped_and_rotated(images, chosen % 4, chosen >= 4, meaning)


def shifted(keys: jax.Array, images: jax.Array, most: int) -> jax.Array:
    """Images `[b, H, W, C]` shifted by up to `most` whole pixels along each axis, at random.

    What enters is the border pixel. Pix2Pix (Isola et al. 2017, appendix 6.2) jitters by enlarging
    and cropping; a shift keeps every colour as it is, and with it the direction that it encodes.
    """
    if not most:
        return images
    height, width = images.shape[1:3]

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        by = jax.random.randint(key, (2,), -most, most + 1)
        rows = jnp.clip(jnp.arange(height) + by[0], 0, height - 1)
        columns = jnp.clip(jnp.arange(width) + by[1], 0, width - 1)
        return image[rows][:, columns]

    return jax.vmap(one)(fold(keys, Draw.SHIFT), images)


def fold(keys: jax.Array, use: Draw) -> jax.Array:
    """The keys `[b]` for one use."""
    return jax.vmap(lambda key: jax.random.fold_in(key, use))(keys)


def check(settings: ml_collections.ConfigDict, space: Space) -> None:
    """Raises `UserError` for a bad setting of the `augment` block, or one for another space."""
    if not (0 <= settings.translation < 0.5 and 0 <= settings.cutout < 1):
        raise UserError(
            "augment.translation, augment.cutout: give shares of the side, 0 to 0.5 or 1"
        )
    colours = (settings.brightness, settings.saturation, settings.contrast)
    if not min(*colours, settings.noise, settings.noise_steps) >= 0:
        raise UserError(
            "augment.brightness, augment.saturation, augment.contrast, augment.noise,"
            " augment.noise_steps: give 0 or more"
        )
    if space.name == "orientation" and any(colours):
        raise UserError(
            "augment.brightness, augment.saturation, augment.contrast: the space 'orientation' has"
            " no colours; set them to 0"
        )
    if space.oriented and settings.saturation:
        raise UserError(
            f"augment.saturation: {settings.saturation}; it would change what colours that encode"
            " fibre directions say of inclination, set it to 0"
        )
    for name in settings.geometric:
        choose("augment.geometric", name, GEOMETRIC)
    for name in settings.colour:
        choose("augment.colour", name, COLOUR)
    if not (-1 <= settings.target <= 1 and settings.kimg > 0 and settings.interval >= 1):
        raise UserError(
            "augment.target, augment.kimg, augment.interval: give -1 to 1, above 0, 1 or more"
        )
    if not 0 <= settings.highest <= 1:
        raise UserError(f"augment.highest: {settings.highest}; give a probability, 0 to 1")
