"""Watching a generator while it trains: samples from fixed latents, and how good they are."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import predictions, subjects
from deformgan.data.pipeline import Dataset
from deformgan.errors import UserError, choose
from deformgan.judge import judge
from deformgan.log import say
from deformgan.metrics.subject import ImageSet, Subject
from deformgan.metrics.wasserstein import sliced_wasserstein
from deformgan.objectives.contract import Constants, Objective, Samples
from deformgan.step import Purpose, example_keys

EVALUATED = "evaluate/"  # how the names of what `evaluate` finds begin
_IDEAL = {"sliced_wasserstein": 0.0, "diversity": 1.0, "folded": 0.0}
_IDEAL_OF_PAIRS = {"mse": 0.0, "axial_error": 0.0}
_MONITORED = 64  # samples that collapse is watched on
_SHOWN = 16  # the first of them, in pictures
_HELD = 512  # validation frames that samples are compared with, at most
_COMPARED = 2  # of them, at least; where fewer are held out, it is training frames
_FEWEST = 8  # validation frames that an evaluation needs
_TESTS, _FAMILIES = ("statistics",), ("distances", "diversity", "field_health")  # the quick ones


class Monitor:
    """Judges the averaged generator of a run in training, always on the same latents.

    Attributes:
      real: validation frames, or training ones where too few were held out.
      inputs: of pairs, what these are predicted from; else None.
    """

    def __init__(
        self, objective: Objective, dataset: Dataset, config: ml_collections.ConfigDict
    ) -> None:
        self._dataset, self._config = dataset, config
        split = "validation" if len(dataset.validation) >= _COMPARED else "train"
        self.real = _first(getattr(dataset, split))
        self.inputs, given = None, dataset.conditions
        if given is not None:
            self.inputs = _first(getattr(given, split))
        key = jax.random.key(config.seed)

        def sample(
            variables: Any, constants: Constants, inputs: jax.Array | None, count: int
        ) -> Samples:
            """Predictions of the first inputs, again from the first on if these are fewer."""
            keys = example_keys(key, 0, Purpose.SAMPLE, jnp.arange(count))
            if inputs is not None:
                inputs = inputs[jnp.arange(count) % len(inputs)]
            return objective.sample(variables, constants, keys, inputs)

        def watch(
            variables: Any, constants: Constants, inputs: jax.Array | None, real: jax.Array
        ) -> dict[str, jax.Array]:
            count = _MONITORED if inputs is None else min(_MONITORED, len(inputs))
            samples = sample(variables, constants, inputs, count)
            distance = sliced_wasserstein(key, samples.images, real)
            return objective.monitor(samples, real) | {"sliced_wasserstein": distance}

        held = None if self.inputs is None else jnp.asarray(self.inputs)
        self._sample = functools.partial(jax.jit(sample, static_argnames="count"), inputs=held)
        self._watch = functools.partial(jax.jit(watch), inputs=held, real=jnp.asarray(self.real))
        self._best: str = config.checkpoint.best
        self._ideal = _IDEAL | ({} if given is None else _IDEAL_OF_PAIRS)
        self._settings = ml_collections.ConfigDict(config.evaluate.to_dict())
        self._settings.tests = tuple(t for t in config.evaluate.tests if t in _TESTS)
        self._settings.metrics = tuple(m for m in config.evaluate.metrics if m in _FAMILIES)
        self._settings.features = ("random",)

    def prepare(self, variables: Any, constants: Constants) -> None:
        """Checks by the untrained generator that what is asked for can be computed.

        Raises:
          UserError: if there are too few validation frames to evaluate on, or `checkpoint.best`
            is not the name of a metric with an ideal.
        """
        held = len(self._dataset.validation)
        evaluates = self._config.evaluate.every or self._best.startswith(EVALUATED)
        if evaluates and held < _FEWEST:
            raise UserError(
                f"evaluate.every: {held} validation frames, but {_FEWEST} are needed to evaluate"
                " while training; raise data.validation, or set evaluate.every=0 and"
                " checkpoint.best=sliced_wasserstein"
            )
        if held < _COMPARED:
            say(
                f"warning: validation frames: {held}; {self._best}, which chooses the best"
                " checkpoint, is measured on training frames; raise data.validation"
            )
        if self._best.startswith(EVALUATED):
            self.evaluate(variables, constants)
        choose("checkpoint.best", self._best, tuple(self._ideal))

    def health(self, variables: Any, constants: Constants) -> dict[str, jax.Array]:
        """The objective's own measures and the sliced Wasserstein distance."""
        return self._watch(variables, constants)

    def shown(self, variables: Any, constants: Constants) -> Samples:
        """A few samples, for pictures."""
        return jax.device_get(self._sample(variables, constants, count=_SHOWN))

    def due(self, before: int, step: int, *, saving: bool) -> bool:
        """Whether to evaluate after `step`; checkpoints that are chosen by it need it."""
        every = self._config.evaluate.every
        wanted = bool(every) and step // every > before // every
        return wanted or (saving and self._best.startswith(EVALUATED))

    def evaluate(self, variables: Any, constants: Constants) -> dict[str, float]:
        """Scores on the validation frames, by `evaluate/<name>`: the quick tests and metrics."""
        count = min(len(self._dataset.validation), self._config.evaluate.budget)
        samples = jax.device_get(self._sample(variables, constants, count=count))
        report = judge(self._subject(samples), self._settings, quiet=True)
        found = {f"accuracy_{k}": v | {"ideal": 0.5} for k, v in report["tests"].items()}
        scores = {}
        for name, entry in (found | report["metrics"]).items():
            value = entry.get("accuracy", entry.get("value"))
            if value is not None:
                scores[EVALUATED + name] = float(value)
                if entry["ideal"] is not None:
                    self._ideal[EVALUATED + name] = entry["ideal"]
        return scores

    def subject(self, variables: Any, constants: Constants) -> Subject:
        """A few samples beside validation frames, for the report."""
        return self._subject(self.shown(variables, constants))

    def _subject(self, samples: Samples) -> Subject:
        seed, oriented = self._config.evaluate.seed, predictions.oriented(self._config)
        return subjects.of_training(self._dataset, samples, self._train, seed, oriented=oriented)

    @functools.cached_property
    def _train(self) -> ImageSet:
        return subjects.reference(self._dataset)

    def deviations(self, scores: dict[str, float]) -> dict[str, float]:
        """How far each score is from its ideal, for those that have one."""
        return {k: abs(v - self._ideal[k]) for k, v in scores.items() if k in self._ideal}


def _first(images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    return np.stack([images[i] for i in range(min(len(images), _HELD))])
