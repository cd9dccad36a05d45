"""Checkpoints: orbax, asynchronous and atomic; the newest and the best are kept.

A checkpoint has three items: `state`, everything that training goes on from; `sampler`, the
averaged generator and the constants, all that sampling needs; `meta`, the config, the intensity
scaling and the position in the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from deformgan.errors import RunError, UserError
from deformgan.state import TrainState


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What sampling needs: the generator's averaged variables, the constants, the meta-data."""

    step: int
    variables: Any
    constants: dict[str, np.ndarray]
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, below `folder`.

    The newest `keep` are kept, and the one whose metric `best` is nearest to its ideal.
    """

    def __init__(
        self, folder: epath.Path, *, best: str, keep: int = 1, writable: bool = True
    ) -> None:
        def deviation(deviations: dict[str, float]) -> float:
            return float(deviations.get(best, float("inf")))

        policy = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(
                    get_metric_fn=deviation,
                    reverse=True,  # orbax keeps the last of the sorted: the smallest
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=deviation,  # without it orbax writes no metrics, and a resumed run has none
            best_mode="min",
            cleanup_tmp_directories=writable,
            create=writable,
            read_only=not writable,
        )
        self._folder, self._best = folder, best
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        step: int | None = self._manager.latest_step()
        return step

    def last_complete(self) -> str:
        """In words, what of this run is safely on disk; looks there, not at what was asked for."""
        steps = [int(p.name) for p in self._folder.iterdir() if p.name.isdigit()]
        return (
            f"The last complete checkpoint is step {max(steps)}" if steps else "None was complete"
        )

    def save(
        self,
        state: TrainState,
        constants: dict[str, jax.Array],
        meta: dict[str, Any],
        deviations: dict[str, float],
    ) -> None:
        """Starts writing a checkpoint; returns once the arrays are copied off the devices.

        `deviations` from the ideal, by metric: of these the smallest `best` decides what is kept.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        host = jax.device_get(state)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(host),
            sampler=ocp.args.StandardSave(
                {"variables": host.ema, "constants": jax.device_get(constants)}
            ),
            meta=ocp.args.JsonSave(meta),
        )
        try:
            self._manager.save(step, args=items, metrics=deviations, force=True)
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed(self.latest(), error) from error

    def restore(self, template: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state, as NumPy arrays in the structure of `template`, and its meta-data."""
        out = self._restore(
            self.latest(), state=ocp.args.StandardRestore(jax.tree.map(_blank, template))
        )
        return out["state"], out["meta"]

    def sampler(self, step: str) -> Sampler:
        """What sampling needs, from the checkpoint of a step: a number, 'newest' or 'best'.

        Raises:
          UserError: if there is none.
        """
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(
                f"workdir: no checkpoint under {self._folder}; train first (--mode=train)"
            )
        if step == "newest":
            chosen = steps[-1]
        elif step == "best":
            chosen = min(steps, key=self._deviation)
            if self._deviation(chosen) == float("inf"):
                raise UserError(
                    f"step: no checkpoint was saved with checkpoint.best {self._best!r}; give one"
                    f" of {steps}"
                )
        elif step.isdigit() and int(step) in steps:
            chosen = int(step)
        else:
            raise UserError(
                f"step: no checkpoint of step {step}; give newest, best or one of {steps}"
            )
        out = self._restore(chosen, sampler=ocp.args.StandardRestore())
        saved = out["sampler"]
        return Sampler(chosen, saved["variables"], saved["constants"], out["meta"])

    def _deviation(self, step: int) -> float:
        metrics = self._manager.metrics(step) or {}
        return float(metrics.get(self._best, float("inf")))

    def preempted(self, step: int) -> bool:
        """Whether the machines are about to be taken away; all processes agree on the step."""
        return bool(self._manager.reached_preemption(step))

    def _restore(self, step: int | None, **items: Any) -> Any:
        try:
            return self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
            )
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"workdir: the checkpoint {self._folder / str(step)} is damaged"
                f" ({' '.join(str(error).split())[:200]}); remove it to use the one before"
            ) from error

    def close(self) -> None:
        """Waits and lets go of the threads; a failed write has been raised by `save` or `wait`."""
        with contextlib.suppress(OSError, ValueError):
            self._manager.close()

    def _failed(self, step: int | None, error: Exception) -> RunError:
        return RunError(
            f"checkpoint: writing step {step} to {self._folder} failed"
            f" ({' '.join(str(error).split())[:200]}); free some space or choose another --workdir."
            f" {self.last_complete()}"
        )


def _blank(leaf: Any) -> np.ndarray:
    return np.zeros(leaf.shape, leaf.dtype)
