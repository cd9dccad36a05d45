"""What a run carries from step to step."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import jax
from flax import struct

T = TypeVar("T")
Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...} of one network


@struct.dataclass
class Pair(Generic[T]):
    """The same thing for the generator and for the discriminator."""

    gen: T
    disc: T


@struct.dataclass
class TrainState:
    """Everything that changes while training, and the key that every draw is derived from.

    Attributes:
      step: updates done, scalar int32.
      key: raw data of the run's PRNG key, uint32, never advanced: draws fold in the step.
      variables: both networks' parameters and batch statistics.
      ema: the generator's variables, averaged over steps; what samples are made with.
      opt: both optimisers' states.
    """

    step: jax.Array
    key: jax.Array
    variables: Pair[Variables]
    ema: Variables
    opt: Pair[Any]
