"""The contract of an objective: a frozen set of pure functions that know nothing of devices.

`deformgan.objectives.<name>.create(config)` returns one. A batch becomes a loss in `disc_loss` and
`gen_loss`; `step.py` differentiates them in their first argument, and nothing else is needed to
train, sample and judge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from deformgan.data.feed import Batch
from deformgan.data.pipeline import Dataset
from deformgan.state import Pair, Variables

Constants = dict[str, Any]  # nested: arrays by name
Say = Callable[[str], None]
Metrics = dict[str, jax.Array]
Params = Any


class Inputs(NamedTuple):
    """What a loss sees beside the parameters it is differentiated in.

    Attributes:
      variables: of both networks.
      batch: this device's share, `images` `[b, H, W, C]` in [-1, 1]; of pairs also `conditions`
        `[b, H, W, K]`, what each image is to be predicted from.
      constants: what `fit` returned.
      keys: PRNG keys `[b]`, one an example of the global batch.
      step: of training, scalar.
      replay: the images made for both players, with their gradient, as a function of the
        generator's parameters, to be called at those of `variables`; None if each makes its own.
    """

    variables: Pair[Variables]
    batch: Batch
    constants: Constants
    keys: jax.Array
    step: jax.Array | int = 0
    replay: Callable[[Params], Generated] | None = None


class Generated(NamedTuple):
    """A batch of a generator in training.

    Attributes:
      images: `[b, H, W, C]` in [-1, 1], as the discriminator is to see them: of pairs, the
        channels of the condition come first.
      stats: new batch statistics of the generator.
      metrics: scalars by name, reported with its loss.
      penalty: scalar added to its loss.
    """

    images: jax.Array
    stats: Any
    metrics: Metrics
    penalty: jax.Array | float = 0.0


class Aux(NamedTuple):
    """What a loss reports beside itself: scalars by name and the network's new batch statistics."""

    metrics: Metrics
    stats: Any


class Fit(NamedTuple):
    """What an objective estimates before training.

    Attributes:
      constants: what generation needs, saved in every checkpoint.
      evidence: of each animal (see `data/animals.py`), what it was estimated from, by name, for the
        report alone; see `report.evidence`. Empty if nothing was estimated.
    """

    constants: Constants
    evidence: dict[str, dict[str, np.ndarray]]


class Samples(NamedTuple):
    """Generated examples; the fields and labels of objectives that have none are empty dicts.

    Attributes:
      images: `[N, H, W, C]` in [-1, 1].
      fields: `displacement` `[N, H, W, 2]` in pixels; `orientation` `[N, H, W, 4]` in the space of
        that name (deformgan/orientation.py).
      labels: `mask` `[N, H, W, 1]` int32, `points` `[N, P, 2]` (row, column) in pixels, NaN where
        lost, and `status` `[N, P]`, an index into `fields.POINT_STATUS`; of several animals also
        `animal` `[N]` int32, the number of the one that each image is of.
    """

    images: jax.Array
    fields: dict[str, jax.Array]
    labels: dict[str, jax.Array]


class Styles(NamedTuple):
    """What a generator offers that has a space of styles w between latents and images.

    Attributes:
      of: (variables, keys `[n]`) -> the styles `[n, L, W]` that `Objective.sample` draws.
      mean: variables -> the mean style `[W]`.
      render: (variables, styles `[n, L, W]`, keys `[n]` of the noise) -> images `[n, H, W, C]` in
        the network's own space of colours.
      encode: images `[n, H, W, C]` in [-1, 1] as data are -> the same in that space.
      show: the images of `render` -> Samples.
    """

    of: Callable[[Variables, jax.Array], jax.Array]
    mean: Callable[[Variables], jax.Array]
    render: Callable[[Variables, jax.Array, jax.Array], jax.Array]
    encode: Callable[[jax.Array], jax.Array]
    show: Callable[[jax.Array], Samples]


Generate = Callable[[Variables, Inputs], Generated]
Penalty = Callable[[Params, Inputs], tuple[jax.Array, Aux]]


class Sample(Protocol):
    """How an objective generates; see `Objective.sample`."""

    def __call__(  # noqa: D102 (said there)
        self,
        variables: Variables,
        constants: Constants,
        keys: jax.Array,
        conditions: jax.Array | None = None,
    ) -> Samples: ...


def _no_penalty(params: Params, inputs: Inputs) -> tuple[jax.Array, Aux]:
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Objective:
    """Pure functions of one objective.

    Attributes:
      fit: (dataset, say) -> what is estimated from the data once; `say` is told of progress. Saved
        in the checkpoint, so that sampling needs no data.
      init: (key, constants) -> variables of both networks.
      disc_loss: (discriminator parameters, inputs) -> scalar, Aux.
      gen_loss: (generator parameters, inputs) -> scalar, Aux.
      penalty: (discriminator parameters, inputs) -> scalar, Aux; added to `disc_loss` every
        `penalty_every` updates, multiplied by as much (lazily: Karras et al. 2020, sec. 4). It
        carries on the batch statistics in `inputs`, which are the newest.
      penalty_every: 0 if there is no penalty.
      sample: (generator variables, constants, keys `[n]`, conditions=None) -> Samples; conditions
        `[n, H, W, K]` in [-1, 1] are needed by objectives that predict, and ignored by others.
      monitor: (samples, real images) -> metrics that show collapse and other ill health; of pairs,
        the first real images are what the samples should be.
      gen_penalty: as `penalty`, of the generator's parameters and added to `gen_loss`.
      gen_penalty_every: 0 if there is none.
      styles: of a generator that has them, else None.
      shared: how images are made that serve both players' updates of a step, as in the code of
        Isola et al. 2017; None if each update makes its own.
    """

    fit: Callable[[Dataset, Say], Fit]
    init: Callable[[jax.Array, Constants], Pair[Variables]]
    disc_loss: Callable[[Params, Inputs], tuple[jax.Array, Aux]]
    gen_loss: Callable[[Params, Inputs], tuple[jax.Array, Aux]]
    penalty: Penalty
    penalty_every: int
    sample: Sample
    monitor: Callable[[Samples, jax.Array], Metrics]
    gen_penalty: Penalty = _no_penalty
    gen_penalty_every: int = 0
    styles: Styles | None = None
    shared: Generate | None = None
