"""--mode=train: build, restore, loop, write."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import types
from typing import Any

import jax
import ml_collections
import numpy as np

from deformgan import __version__, intake, judge, optim, page, parallel, report, subjects
from deformgan.checkpoint import Checkpoints
from deformgan.data import label_image, pipeline
from deformgan.data.feed import make_feed
from deformgan.errors import Interrupted, RunError, UserError, resolve
from deformgan.log import Log, hush_writers, say
from deformgan.models.layers import AXIS
from deformgan.monitor import Monitor
from deformgan.objectives.contract import Constants, Objective
from deformgan.state import Pair, TrainState
from deformgan.step import batches_per_step, initial_state, make_step
from deformgan.workdir import Workdir, to_json


def run(config: ml_collections.ConfigDict, path: str) -> None:
    """Trains, or goes on training, the run in the folder `path` to `config.train.steps`.

    Raises:
      UserError: for bad input or settings, before anything is compiled.
      RunError: if a loss or gradient is not finite, or a checkpoint cannot be written.
      Interrupted: on SIGTERM or Ctrl-C, after saving.
    """
    parallel.initialize()
    parallel.keep_compilations()
    parallel.keep_memory()
    hush_writers()
    check(config)
    workdir = Workdir(path, create=True)
    with workdir.claim():
        _run(config, workdir)


def _run(config: ml_collections.ConfigDict, workdir: Workdir) -> None:
    objective = resolve("objective", "deformgan.objectives", config.objective, "create").create(
        config
    )
    say(f"{parallel.describe()}; run in {workdir.root}")
    checkpoints = Checkpoints(
        workdir.checkpoints, best=config.checkpoint.best, keep=config.checkpoint.keep
    )
    latest = checkpoints.latest()
    start = latest or 0
    if latest is not None:
        workdir.check_same(config)
    if (config.train.steps - start) % config.train.steps_per_call:
        raise UserError(
            f"train.steps_per_call: {config.train.steps_per_call} does not divide the"
            f" {config.train.steps - start} steps from {start} to train.steps {config.train.steps}"
        )
    if latest is not None and start >= config.train.steps:
        say(
            f"finished: step {start} of {config.train.steps}. To go on, raise"
            f" --config.train.steps; to sample, --mode=sample --workdir={workdir.root}"
        )
        checkpoints.close()
        return
    try:
        dataset = intake.load(config, workdir)
        training = Training(config, workdir, objective, dataset, checkpoints)
        if parallel.is_main():
            workdir.write_json("config.json", to_json(config))
            workdir.write_json("split.json", dataset.split)
    except OSError as error:
        raise UserError(
            f"workdir: cannot write to {workdir.root} ({error.strerror or error}); free some space"
            " or choose another --workdir=DIR"
        ) from error
    try:
        training.loop()
    except OSError as error:
        raise RunError(
            f"workdir: cannot write to {workdir.root} ({error.strerror or error}); free some space."
            f" {checkpoints.last_complete()}"
        ) from error
    finally:
        training.close()
    more = "--num=64 --out=OUT" if dataset.conditions is None else "--input=FILE"
    say(
        f"done: {config.train.steps} steps.\n"
        f"  samples   {workdir.root / 'samples' / _picture_name(config.train.steps)}\n"
        f"  report    {workdir.root / 'report.html'}\n"
        f"  evaluate  python -m deformgan.main --mode=evaluate --workdir={workdir.root}\n"
        f"  more      python -m deformgan.main --mode=sample --workdir={workdir.root} {more}"
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` for settings that cannot work, before anything is read or compiled."""
    pipeline.check(config.data)
    label_image.check(config.source.mask)
    parallel.check_batch(config.train.batch_size)
    if config.train.steps < 0:
        raise UserError(f"train.steps: {config.train.steps}; give 0 (estimation alone) or more")
    for key in (
        "train.steps_per_call",
        "train.disc_updates",
        "train.gen_updates",
        "log.every",
        "log.pictures",
    ):
        block, name = key.split(".")
        if config[block][name] < 1:
            raise UserError(f"{key}: {config[block][name]}; give 1 or more")
    if config.checkpoint.every < 1 or config.checkpoint.keep < 1:
        raise UserError("checkpoint.every, checkpoint.keep: give 1 or more")
    optim.check(config.optimiser)
    judge.check(config.evaluate)


class Training:
    """A run in progress: its state, its feed, its outputs."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Workdir,
        objective: Objective,
        dataset: pipeline.Dataset,
        checkpoints: Checkpoints,
    ) -> None:
        self.config, self.workdir, self.checkpoints = config, workdir, checkpoints
        process, processes = parallel.process()
        batch_size = config.train.batch_size
        given = dataset.conditions
        feed = make_feed(
            dataset.train,
            batch_size,
            config.seed,
            process=process,
            processes=processes,
            conditions=None if given is None else given.train,
        )
        every = Pair(gen=objective.gen_penalty_every, disc=objective.penalty_every)
        optimisers = optim.make(config.optimiser, every, optim.updates(config.train))
        saved, self.estimated = checkpoints.latest() is not None, False
        if saved:
            constants = checkpoints.sampler("newest").constants
        else:
            constants, evidence = objective.fit(dataset, say)
            self.estimated = bool(evidence)
            if evidence and parallel.is_main():
                report.evidence(workdir.local, evidence)
        state = initial_state(objective, optimisers, constants, config.seed)
        self.meta: dict[str, Any] = {
            "version": __version__,
            "config": to_json(config),
            "scaling": dataset.scaling.to_json(),
            "geometry": dataclasses.asdict(dataset.geometry),
            "source": dataset.source.name,
            "animals": [animal.name for animal in dataset.animals],
            "frames": dataset.digest(),
        }
        if given is not None:
            self.meta["input_scaling"] = given.scaling.to_json()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((state, state.ema, constants)))
        count = config.checkpoint.keep + 2  # the best, and the one in the making
        workdir.check_space(count * size)
        position = 0
        if saved:
            state, before = checkpoints.restore(state)
            self._check_same_data(before)
            _tell_of_rates(before["config"], config, int(state.step))
            position = before["data"]["next_index"]
            say(f"resuming from step {int(state.step)}")
        self.step = int(state.step)
        self.state: TrainState = parallel.replicate(state)
        self.constants: Constants = parallel.replicate(constants)
        self.resident = parallel.replicate(feed.resident)
        self.positions = parallel.positions(batch_size)
        self.stream = feed.stream(position) if feed.stream else None
        self.call = parallel.map_devices(
            make_step(objective, optimisers, feed, config), axis_name=AXIS
        )
        self.source = dataset.source.image
        self.monitor = Monitor(objective, dataset, config)
        self.monitor.prepare(self.state.ema, self.constants)
        self.log = Log(workdir, start=self.step, total=config.train.steps)

    def loop(self) -> None:
        """Trains to the last step, logging, saving and drawing when each is due."""
        config, steps = self.config, self.config.train.steps_per_call
        if self.estimated or not config.train.steps:
            self._begin()
        if self.step == config.train.steps:
            return
        say("compiling the train step (seconds; minutes for large models) ...")
        pending: list[tuple[int, Any]] = []
        first = self.step
        with self.log.progress(), _Signals() as signals:
            while self.step < config.train.steps:
                fed = self._fed(steps)
                self.state, metrics = self.call(
                    self.state, self.constants, self.resident, fed, self.positions
                )
                pending.append((self.step, metrics))
                before, self.step = self.step, self.step + steps
                if before == first:
                    jax.block_until_ready((metrics, self.monitor.health(*self._sampler())))
                    self.log.restart_clock(self.step)
                last = self.step == config.train.steps
                stop = signals.received or self._preempted()

                def due(every: int, before: int = before, always: bool = last) -> bool:
                    return always or self.step // every > before // every

                save, draw = due(config.checkpoint.every) or stop, due(config.log.pictures)
                evaluate = self.monitor.due(before, self.step, saving=bool(save))
                if due(config.log.every) or save or draw or evaluate:
                    values = self._collect(pending)
                    health = {k: float(v) for k, v in self.monitor.health(*self._sampler()).items()}
                    if evaluate:
                        health |= self.monitor.evaluate(*self._sampler())
                    self.log.write(self.step, values | health)
                    if draw:
                        self._draw()
                    if save:
                        deviations = self.monitor.deviations(health)
                        self.checkpoints.save(self.state, self.constants, self._meta(), deviations)
                    self.workdir.publish()
                if stop and not last:
                    self.checkpoints.wait()
                    raise Interrupted(
                        f"stopped at step {self.step} and saved; the same command goes on from"
                        " there",
                        code=128 + (signals.received or signal.SIGTERM),
                    )
        self.checkpoints.wait()

    def _begin(self) -> None:
        """Saves and draws what there is before the first step, so that no estimate is lost."""
        health = {k: float(v) for k, v in self.monitor.health(*self._sampler()).items()}
        if not self.config.train.steps:
            self.log.write(0, health)
            self._draw()
        deviations = self.monitor.deviations(health)
        self.checkpoints.save(self.state, self.constants, self._meta(), deviations)
        self.checkpoints.wait()
        self.workdir.publish()

    def close(self) -> None:
        """Ends the log, the checkpoints and, of a bucket, the local copy.

        On a full disk, which the loop has reported, what more cannot be written is let go.
        """
        with contextlib.suppress(OSError):
            self.log.close()
        self.checkpoints.close()
        with contextlib.suppress(OSError):
            self.workdir.close()

    def _check_same_data(self, before: dict[str, Any]) -> None:
        """Raises `UserError` if the frames on disk are no longer those trained on so far."""
        now = json.loads(json.dumps(self.meta))
        for name in ("frames", "scaling", "source", "geometry", "input_scaling"):
            was, found = before.get(name), now.get(name)
            if was != found:
                raise UserError(
                    f"data.path: the data have changed since this run began ({name} was"
                    f" {was}, now {found}; see split.json); restore them or choose"
                    " another --workdir=DIR"
                )

    def _fed(self, steps: int) -> Any:
        """What is fed to the devices for the next call, `[devices, batches, b, ...]`."""
        if self.stream is None:
            return {}
        count = steps * batches_per_step(self.config.train)
        batches = [next(self.stream) for _ in range(count)]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
        return parallel.shard(stacked, axis=1)

    def _collect(self, pending: list[tuple[int, Any]]) -> dict[str, float]:
        """Means of the metrics since the last time; stops at the first that is not finite."""
        series: dict[str, list[float]] = {}
        for before, metrics in pending:
            for name, values in jax.device_get(metrics).items():
                bad = np.flatnonzero(~np.isfinite(values))
                if len(bad):
                    raise RunError(
                        f"step {before + int(bad[0]) + 1}: {name} is {values[bad[0]]}; training"
                        f" stopped. {self.checkpoints.last_complete()}."
                        " Lower optimiser.*.learning_rate, or raise loss.r1"
                    )
                series.setdefault(name, []).extend(float(v) for v in values)
        pending.clear()
        return {name: float(np.mean(values)) for name, values in series.items()}

    def _sampler(self) -> tuple[Any, Constants]:
        return self.state.ema, self.constants

    def _meta(self) -> dict[str, Any]:
        index = self.step * batches_per_step(self.config.train)
        return self.meta | {"data": {"next_index": index}}

    def _draw(self) -> None:
        if not parallel.is_main():
            return
        samples = self.monitor.shown(*self._sampler())
        file = self.workdir.local / "samples" / _picture_name(self.step)
        report.sample_grid(file, samples, self.monitor.real, self.source, self.monitor.inputs)
        report.curves(self.workdir.local / "curves.png", self.log.records)
        pictures = subjects.gallery(self.monitor.subject(*self._sampler()))
        evaluation = self.workdir.read_json("evaluation.json")
        page.of_run(self.workdir, self.config, self.log.records, pictures, evaluation)

    def _preempted(self) -> bool:
        return self.checkpoints.preempted(self.step) if parallel.process()[1] > 1 else False


def _tell_of_rates(before: dict[str, Any], config: ml_collections.ConfigDict, step: int) -> None:
    """Warns of rates that fall with `train.steps` and jump, for that has changed at a `step`."""
    counts, start = (before["train"]["steps"], config.train.steps), config.optimiser.decay_from
    fades = [optim.fading(start, count) for count in counts]
    was, now = (1.0 if fade is None else float(fade(step)) for fade in fades)
    if was != now:
        say(
            f"warning: train.steps was {counts[0]} and is {counts[1]}: with optimiser.decay_from"
            f" {start:g} the learning rates jump from {was:.0%} to {now:.0%} of their full value"
            f" at step {step}, as they would not in an unbroken run"
        )


class _Signals:
    """Remembers SIGTERM and Ctrl-C, so that the loop can save; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> _Signals:
        # Of several processes only some get a signal: there orbax agrees on a step to stop at.
        wanted = [signal.SIGINT, signal.SIGTERM] if parallel.process()[1] == 1 else []
        self._before = {number: signal.signal(number, self._receive) for number in wanted}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        say("\nstopping: finishing this step and saving (press again to stop at once) ...")


def _picture_name(step: int) -> str:
    return f"step_{step:08d}.png"
