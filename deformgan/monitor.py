"""Watching a generator while it trains: the health of samples from fixed latents."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.metrics.wasserstein import sliced_wasserstein
from deformgan.objectives.contract import Constants, Objective, Samples
from deformgan.step import Purpose, example_keys

IDEAL = {"sliced_wasserstein": 0.0, "diversity": 1.0, "folded": 0.0}
_MONITORED = 64  # samples from fixed latents that collapse is watched on
_SHOWN = 7  # the first of them, in pictures


def watchers(
    objective: Objective, real: np.ndarray, seed: int
) -> tuple[Callable[..., dict[str, jax.Array]], Callable[..., Samples]]:
    """Two functions of (generator variables, constants): the health of fixed latents, and a few.

    The health has the objective's own measures and the sliced Wasserstein distance; `IDEAL` says
    what is best.
    """
    key, images = jax.random.key(seed), jnp.asarray(real)

    def sample(variables: Any, constants: Constants, count: int) -> Samples:
        keys = example_keys(key, 0, Purpose.SAMPLE, jnp.arange(count))
        return objective.sample(variables, constants, keys)

    @jax.jit
    def watch(variables: Any, constants: Constants) -> dict[str, jax.Array]:
        samples = sample(variables, constants, _MONITORED)
        distance = sliced_wasserstein(key, samples.images, images)
        return objective.monitor(samples, images) | {"sliced_wasserstein": distance}

    return watch, jax.jit(functools.partial(sample, count=_SHOWN))
