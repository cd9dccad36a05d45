"""The two players' optimisers, and the average of the generator."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from deformgan.errors import UserError
from deformgan.state import Pair

EmaDecay = Callable[[jax.Array], jax.Array | float]
_NEVER = Pair(gen=0, disc=0)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for a bad setting in the `optimiser` block."""
    for player in ("gen", "disc"):
        settings = config[player]
        if not (settings.learning_rate > 0 and 0 <= settings.beta1 < 1 and 0 <= settings.beta2 < 1):
            raise UserError(f"optimiser.{player}: learning_rate above 0, betas from 0 to below 1")
        if settings.delay < 0:
            raise UserError(f"optimiser.{player}.delay: {settings.delay}; give 0 steps or more")
    if not 0 <= config.decay_from <= 1:
        raise UserError(
            f"optimiser.decay_from: {config.decay_from}; give a share of the steps, 0 to 1 (no"
            " decay)"
        )
    if not 0 <= config.ema_decay < 1:
        raise UserError(f"optimiser.ema_decay: {config.ema_decay} is not in [0, 1)")
    if config.ema_images < 0 or config.ema_ramp < 0:
        raise UserError("optimiser.ema_images, optimiser.ema_ramp: give 0 or more")
    if config.ema_images and config.ema_decay:
        raise UserError("optimiser.ema_decay, optimiser.ema_images: two averages; set one to 0")


def make(
    config: ml_collections.ConfigDict,
    intervals: Pair[int] = _NEVER,
    updates: Pair[int] = _NEVER,
) -> Pair[optax.GradientTransformation]:
    """Adam (Kingma and Ba 2015) for each network, from the `optimiser` block of the config.

    Args:
      config: the block.
      intervals: updates between the lazy penalties of each player, 0 for none. With
        `rescale_lazy`, rate and betas are those of Karras et al. 2020, appendix B: for an interval
        k above 1 and c = k / (k + 1), c times the rate and the betas to the power of c.
      updates: of each player in the whole run, over the last share of which, from `decay_from` on,
        its rate falls linearly to 0 (Isola et al. 2017 trained so: from the half).
    """

    def share(interval: int) -> float:
        return interval / (interval + 1) if config.rescale_lazy and interval > 1 else 1.0

    return Pair(
        gen=_adam(config.gen, share(intervals.gen), fading(config.decay_from, updates.gen)),
        disc=_adam(config.disc, share(intervals.disc), fading(config.decay_from, updates.disc)),
    )


def updates(config: ml_collections.ConfigDict) -> Pair[int]:
    """Updates of each player in a whole run, by the `train` block."""
    return Pair(gen=config.steps * config.gen_updates, disc=config.steps * config.disc_updates)


def fading(start: float, updates: int) -> optax.Schedule | None:
    """What a rate is multiplied by: 1, then falling to 0 over the updates after the share `start`.

    None where it stays 1.
    """
    if start >= 1:
        return None
    rest = max((1 - start) * updates, 1)
    return lambda count: jnp.clip((updates - count) / rest, 0, 1)


def _adam(
    config: ml_collections.ConfigDict, share: float, fade: optax.Schedule | None
) -> optax.GradientTransformation:
    rate = optax.join_schedules(
        [optax.constant_schedule(0.0), optax.constant_schedule(share * config.learning_rate)],
        [config.delay],
    )
    if fade is not None:
        constant = rate
        rate = lambda count: constant(count) * fade(count)  # noqa: E731
    return optax.adam(rate, b1=config.beta1**share, b2=config.beta2**share)


def averaging(config: ml_collections.ConfigDict, batch_size: int) -> EmaDecay:
    """The decay of the generator's average after a step, from the `optimiser` block.

    With `ema_images` it halves in so many images, or in the share `ema_ramp` of those seen so far
    if that is less (0: no ramp), as in the code of Karras et al. 2020.
    """
    fixed, images, ramp = config.ema_decay, float(config.ema_images), config.ema_ramp
    if not images:
        return lambda step: fixed

    def decay(step: jax.Array) -> jax.Array:
        half_life = jnp.asarray(images)
        if ramp:
            half_life = jnp.minimum(half_life, ramp * batch_size * (step + 1.0))
        return 0.5 ** (batch_size / half_life)

    return decay
