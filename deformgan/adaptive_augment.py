"""Adaptive discriminator augmentation (ADA): Karras et al. 2020, "Training GANs with limited data".

All that the discriminator sees, real and generated alike, is changed at random: each operation
happens with the probability p, for each image and operation on its own. While p stays below 1 what
D sees still tells which images it was made from, so the generator learns no changed ones (sec. 2.2;
in practice up to `SAFE`). p follows D's overfitting (`adapted`).

Every draw comes from the example's own key and does not depend on which other operations are on:
two images of a pair that are given the same keys and `geometric` move alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import orientation
from deformgan.affine import Affine, product, quarter_turns, redirected, resampled, rotation
from deformgan.errors import choose, require_shape

# In the order in which they are applied; strengths are those of the paper's appendix B.
GEOMETRIC = ("flip", "quarter_turn", "shift", "scale", "rotation", "stretch", "fractional_shift")
COLOUR = ("brightness", "contrast", "luma_flip", "hue", "saturation")
SAFE = 0.8  # largest p at which the paper finds no leak (sec. 2.2)


class Adaptation(NamedTuple):
    """What the controller carries from step to step, scalars float32.

    Attributes:
      probability: p, in [0, 1].
      signs: sum of the signs of D on real images since p was last moved.
      images: how many these were.
    """

    probability: jax.Array
    signs: jax.Array
    images: jax.Array

    @classmethod
    def start(cls, probability: float = 0.0) -> Adaptation:
        """Before the first step."""
        return cls(*(jnp.asarray(x, jnp.float32) for x in (probability, 0.0, 0.0)))


class Draws(NamedTuple):
    """Random numbers, independent of each other; see `draw`.

    Attributes:
      gates: `[B, G]` uniform in [0, 1), one an operation: it happens if this is below its p.
      uniform: `[B, U]` in [0, 1), and
      normal: `[B, N]`, how it happens.
    """

    gates: jax.Array
    uniform: jax.Array
    normal: jax.Array


class Recolouring(NamedTuple):
    """What happens to each image's colours: `c` becomes `gain c + offset`.

    Attributes:
      gain: `[B, 3, 3]`.
      offset: `[B, 3]`.
    """

    gain: jax.Array
    offset: jax.Array


def adapted(
    state: Adaptation,
    sign: jax.Array,
    images: int,
    *,
    target: float = 0.6,
    kimg: float = 500.0,
    interval: int = 4,
    highest: float = SAFE,
) -> Adaptation:
    """The state after a step: p rises while r_t = E[sign(D(real))] is above its target; sec. 3.

    Args:
      state: before the step.
      sign: mean over the global batch of sign(D(real)), in [-1, 1]: 1 if D is sure of all.
      images: real images in the global batch.
      target: of r_t.
      kimg: thousands of real images in which p would go from 0 to 1.
      interval: steps over which r_t is averaged before p moves.
      highest: largest p.
    """
    signs, seen = state.signs + sign * images, state.images + images
    due = seen >= interval * images
    step = jnp.sign(signs / seen - target) * seen / (1000 * kimg)
    moved = jnp.clip(state.probability + step, 0, highest)
    return Adaptation(
        probability=jnp.where(due, moved, state.probability),
        signs=jnp.where(due, 0.0, signs),
        images=jnp.where(due, 0.0, seen),
    )


def augment(
    keys: jax.Array,
    images: jax.Array,
    probability: jax.Array | float,
    *,
    space: str,
    oriented: bool,
    geometric: tuple[str, ...] = GEOMETRIC,
    colour: tuple[str, ...] = COLOUR,
) -> jax.Array:
    """Images as the discriminator is shown them.

    The geometric operations are one affine map and one resampling (`affine.resampled`); those on
    colour are one matrix, after it. Operations that are not `meaningful` are left out, and colours
    that encode directions turn with the image, also in what its border mirrors.

    Args:
      keys: `[B]` PRNG keys, one an image.
      images: `[B, S, S, C]` in [-1, 1].
      probability: p of each operation, scalar in [0, 1], may be traced; at 0 nothing changes.
      space: what the channels mean, one of `orientation.SPACES`: "rgb" has 3 channels,
        "orientation" 4, "scalar" any number, whose values change alike.
      oriented: whether colours in "rgb" encode fibre directions, or those of another image of a
        pair, with which this one is to move; in "orientation" they always do.
      geometric: which of `GEOMETRIC` may happen.
      colour: which of `COLOUR` may happen.

    Returns:
      `[B, S, S, C]`; colours may leave [-1, 1].

    Raises:
      UserError: if `geometric` or `colour` names an unknown operation.
      ValueError: if the images are not square or their channels do not fit the space.
    """
    choose("space", space, orientation.SPACES)
    channels = {"rgb": 3, "orientation": 4, "scalar": None}[space]
    require_shape("images", images, (len(keys), None, images.shape[1], channels))
    for name in geometric:
        choose("augment.geometric", name, GEOMETRIC)
    for name in colour:
        choose("augment.colour", name, COLOUR)
    places, colours = draw(keys)
    geometric = meaningful(geometric, space=space, oriented=oriented)
    if geometric:
        affine = affine_of(places, probability, size=images.shape[1], names=geometric)
        images, mirrored = resampled(images, affine)
        if oriented or space == "orientation":
            images = redirected(images, affine, mirrored, space)
    colour = meaningful(colour, space=space, oriented=oriented)
    if colour:
        images = recoloured(images, recolouring_of(colours, probability, names=colour))
    return images


def meaningful(names: tuple[str, ...], *, space: str, oriented: bool) -> tuple[str, ...]:
    """Those operations of `GEOMETRIC` or `COLOUR` after which images still mean what they did.

    A hue that encodes a direction has to stay; light and contrast leave it. A stretch of the plane
    would change inclinations too, and directions by an angle that differs from pixel to pixel. On
    scalars hue and saturation do nothing.
    """
    left_out = {
        "rgb": ("luma_flip", "hue", "saturation") if oriented else (),
        "scalar": ("hue", "saturation"),
        "orientation": COLOUR,
    }[space]
    if oriented or space == "orientation":
        left_out = (*left_out, "stretch")
    return tuple(name for name in names if name not in left_out)


def draw(keys: jax.Array) -> tuple[Draws, Draws]:
    """Numbers for geometry and for colour, from keys `[B]`: one draw, which compiles fast."""
    sizes = (8, 6, 4, 5, 2, 3)
    u = jax.vmap(lambda key: jax.random.uniform(key, (sum(sizes),)))(keys)
    parts = jnp.split(u, np.cumsum(sizes)[:-1], axis=1)
    for i in (2, 5):  # to normal ones, by the inverse of their distribution
        parts[i] = math.sqrt(2) * jax.lax.erf_inv(2 * jnp.maximum(parts[i], 2.0**-24) - 1)
    return Draws(*parts[:3]), Draws(*parts[3:])


def affine_of(
    draws: Draws,
    probability: jax.Array | float,
    *,
    size: int,
    names: tuple[str, ...] = GEOMETRIC,
) -> Affine:
    """The map of each image of `size` pixels, if the operations `names` happen with probability p.

    Left-right flip; quarter turns; whole pixels up to 1/8 of the side; scale of 0.2 octaves;
    rotation; stretch of 0.2 octaves that keeps the area; shift of 1/8 of the side. Rotation comes
    before and after the stretch, so that this has any axis, and p is that of either.
    """
    either = 1 - jnp.sqrt(1 - probability)

    def one(gate: jax.Array, u: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        def chosen(name: str, value: jax.Array, neutral: float, gate: jax.Array) -> jax.Array:
            chance = either if name == "rotation" else probability
            return jnp.where((gate < chance) & (name in names), value, neutral)

        flip = chosen("flip", jnp.where(u[0] < 0.5, -1.0, 1.0), 1, gate[0])
        quarters = chosen("quarter_turn", jnp.floor(4 * u[1]), 0, gate[1])
        whole = chosen("shift", jnp.round((2 * u[2:4] - 1) * (size / 8)), 0, gate[2])
        scale = chosen("scale", jnp.exp2(0.2 * n[0]), 1, gate[3])
        first = chosen("rotation", (2 * u[4] - 1) * math.pi, 0, gate[4])
        stretch = chosen("stretch", jnp.exp2(0.2 * n[1]), 1, gate[5])
        second = chosen("rotation", (2 * u[5] - 1) * math.pi, 0, gate[6])
        part = chosen("fractional_shift", n[2:4] * (size / 8), 0, gate[7])
        blit = product(quarter_turns(quarters.astype(jnp.int32)), jnp.diag(jnp.stack([1.0, flip])))
        axes = jnp.diag(jnp.stack([scale * stretch, scale / stretch]))
        general = product(product(rotation(second), axes), rotation(first))
        moved = product(general, whole[:, None])[:, 0]
        return product(general, blit), moved + part

    return Affine(*jax.vmap(one)(*draws))


def recolouring_of(
    draws: Draws, probability: jax.Array | float, *, names: tuple[str, ...] = COLOUR
) -> Recolouring:
    """The matrix of each image, if the operations `names` on colour happen with probability p.

    Brightness of deviation 0.2; contrast of 1/2 octave; the luma axis mirrored; hue turned about it
    by any angle; saturation of 1 octave.
    """
    luma = np.full((3, 3), 1 / 3, np.float32)  # projection on grey
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], np.float32) / np.float32(math.sqrt(3))
    chroma = np.eye(3, dtype=np.float32) - luma

    def one(gate: jax.Array, u: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        on = dict(zip(COLOUR, gate < probability, strict=True))

        def chosen(name: str, value: jax.Array) -> jax.Array:
            return jnp.where(on[name] & (name in names), value, 0.0)

        brightness = chosen("brightness", 0.2 * n[0])
        contrast = jnp.exp2(chosen("contrast", 0.5 * n[1]))
        flip = chosen("luma_flip", jnp.where(u[0] < 0.5, 1.0, 0.0))
        hue = chosen("hue", (2 * u[1] - 1) * math.pi)
        saturation = jnp.exp2(chosen("saturation", n[2]))
        # Rodrigues' rotation about grey; on grey itself the sums of the rows say what happens.
        turn = np.eye(3) + jnp.sin(hue) * cross + (jnp.cos(hue) - 1) * chroma
        gain = product(np.eye(3) + (saturation - 1) * chroma, turn)
        gain = contrast * product(gain, np.eye(3) - 2 * flip * luma)
        return gain, jnp.sum(gain, -1) * brightness

    return Recolouring(*jax.vmap(one)(*draws))


def recoloured(images: jax.Array, recolouring: Recolouring) -> jax.Array:
    """Applies a matrix to each image's colours; a scalar is treated as grey.

    `[B, H, W, C]`, any range, to the same; C other than 3 are scalars.
    """
    gain, offset = recolouring
    if images.shape[-1] != 3:
        grey = jnp.mean(jnp.sum(gain, -1), -1)
        return images * grey[:, None, None, None] + jnp.mean(offset, -1)[:, None, None, None]
    flat = images.reshape(len(images), -1, 3)
    out = product(flat, jnp.swapaxes(gain, 1, 2)) + offset[:, None, :]
    return out.reshape(images.shape)
