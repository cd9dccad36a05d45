"""What a style-based generator draws for each example, and operations on its styles.

A style w is given for every layer, `[B, L, W]`. Draws are made from one key an example, so they
do not depend on how a batch is shared out.
"""

from __future__ import annotations

import enum
import itertools

import jax
import jax.numpy as jnp


class Use(enum.IntEnum):
    """What an example's key is used for: folded into it.

    From 16 on, since `jax.random.split` of the same key elsewhere folds in 0, 1, ...
    """

    LATENT = 16
    OTHER_LATENT = 17
    CROSSOVER = 18
    NOISE = 19
    PATH = 20


def fold(keys: jax.Array, use: Use) -> jax.Array:
    """The keys `[B]` for one use."""
    return jax.vmap(lambda key: jax.random.fold_in(key, use))(keys)


def latents(keys: jax.Array, size: int, *, use: Use = Use.LATENT) -> jax.Array:
    """Latents `[B, size]` from N(0, 1), one a key."""
    return jax.vmap(lambda key: jax.random.normal(key, (size,)))(fold(keys, use))


def mix(w: jax.Array, other: jax.Array, keys: jax.Array, *, probability: float) -> jax.Array:
    """Style mixing: the layers from a random one on take the other style.

    Karras et al. 2019, sec. 3.1. The first layer always keeps its own.

    Args:
      w: `[B, L, W]`.
      other: `[B, L, W]`.
      keys: `[B]`.
      probability: that an example is mixed at all.

    Returns:
      `[B, L, W]`.
    """
    layers = w.shape[1]

    def first_of_other(key: jax.Array) -> jax.Array:
        whether, where = jax.random.split(key)
        mixed = jax.random.bernoulli(whether, probability)
        return jnp.where(mixed, jax.random.randint(where, (), 1, layers), layers)

    first = jax.vmap(first_of_other)(fold(keys, Use.CROSSOVER))  # [B]
    own = jnp.arange(layers)[None] < first[:, None]
    return jnp.where(own[..., None], w, other)


def truncate(w: jax.Array, mean: jax.Array, truncation: float) -> jax.Array:
    """Pulls styles to the mean, which trades variety for quality; Karras et al. 2019, appendix B.

    Args:
      w: `[B, L, W]`.
      mean: `[W]`.
      truncation: the factor ψ on the distance to the mean: 1 for none, 0 for the mean itself.

    Returns:
      `[B, L, W]`.
    """
    return mean[None, None] + truncation * (w - mean[None, None])


def noise(keys: jax.Array, levels: int) -> list[jax.Array]:
    """N(0, 1) for each layer, `[B, S, S, 1]`, S = 4, 8, 8, 16, 16, ...; one draw a key."""
    sides = [4] + [4 * 2**level for level in range(1, levels) for _ in (0, 1)]
    ends = list(itertools.accumulate(side**2 for side in sides))
    draw = jax.vmap(lambda key: jax.random.normal(key, (ends[-1],)))
    parts = jnp.split(draw(fold(keys, Use.NOISE)), ends[:-1], axis=1)
    return [part.reshape(len(keys), side, side, 1) for part, side in zip(parts, sides, strict=True)]
