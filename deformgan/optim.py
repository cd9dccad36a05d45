"""The two players' optimisers."""

from __future__ import annotations

import ml_collections
import optax

from deformgan.state import Pair


def make(config: ml_collections.ConfigDict) -> Pair[optax.GradientTransformation]:
    """Adam (Kingma and Ba 2015) for each network, from the `optimiser` block of the config."""
    return Pair(gen=_adam(config.gen), disc=_adam(config.disc))


def _adam(config: ml_collections.ConfigDict) -> optax.GradientTransformation:
    rate = optax.join_schedules(
        [optax.constant_schedule(0.0), optax.constant_schedule(config.learning_rate)],
        [config.delay],
    )
    return optax.adam(rate, b1=config.beta1, b2=config.beta2)
