"""One train step for every objective: D update, G update, running average of G.

Everything here runs inside the mapped axis `layers.AXIS` on one device's share of the batch; what
it returns is equal on all devices.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import lax

from deformgan.data.feed import Batch, Feed
from deformgan.models.layers import AXIS
from deformgan.objectives.contract import (
    Aux,
    Constants,
    Generate,
    Generated,
    Inputs,
    Metrics,
    Objective,
    Params,
    Penalty,
)
from deformgan.optim import EmaDecay, averaging
from deformgan.state import Pair, TrainState, Variables


class Purpose(enum.IntEnum):
    """What a draw is for: folded into the key, so that no two uses share random numbers."""

    INIT = 0
    DATA = 1
    DISC = 2
    GEN = 3
    PENALTY = 4
    SAMPLE = 5
    PATH = 6


def example_keys(
    key: jax.Array, step: jax.Array | int, purpose: Purpose, positions: jax.Array
) -> jax.Array:
    """One key an example of the global batch, so that draws do not depend on the device count."""
    key = jax.random.fold_in(jax.random.fold_in(key, step), purpose)
    return jax.vmap(lambda position: jax.random.fold_in(key, position))(positions)


def initial_state(
    objective: Objective,
    optimisers: Pair[optax.GradientTransformation],
    constants: Constants,
    seed: int,
) -> TrainState:
    """The state before the first step."""
    key = jax.random.key(seed)
    variables = objective.init(jax.random.fold_in(key, Purpose.INIT), constants)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(key),
        variables=variables,
        ema=jax.tree.map(jnp.copy, variables.gen),
        opt=Pair(
            gen=optimisers.gen.init(variables.gen["params"]),
            disc=optimisers.disc.init(variables.disc["params"]),
        ),
    )


def train_step(
    state: TrainState,
    batches: Sequence[Batch],
    constants: Constants,
    positions: jax.Array,
    *,
    objective: Objective,
    optimisers: Pair[optax.GradientTransformation],
    ema_decay: EmaDecay,
    updates: Pair[int],
) -> tuple[TrainState, Metrics]:
    """Updates the discriminator, then the generator against it, then the generator's average.

    Either is updated `updates` times, the n-th time on the n-th batch. Where the objective shares
    images and each is updated once, both updates see the same, made once.
    """
    key = jax.random.wrap_key_data(state.key)
    disc, gen = state.variables.disc, state.variables.gen
    opt, found = state.opt, []

    def inputs(purpose: Purpose, number: int) -> Inputs:
        draw = state.step * len(batches) + number
        keys = example_keys(key, draw, purpose, positions)
        return Inputs(Pair(gen=gen, disc=disc), batches[number], constants, keys, state.step)

    replay, drawn = None, Pair(gen=Purpose.GEN, disc=Purpose.DISC)
    if objective.shared and updates == Pair(gen=1, disc=1):
        drawn = Pair(gen=Purpose.DISC, disc=Purpose.DISC)
        replay = made_once(objective.shared, inputs(Purpose.DISC, 0))
    for number in range(updates.disc):
        lazy = Lazy(objective.penalty, objective.penalty_every, inputs(Purpose.PENALTY, number))
        turn = Turn("disc", optimisers.disc, lazy, state.step * updates.disc + number)
        seen = inputs(drawn.disc, number)._replace(replay=replay)
        disc, own, metrics = _update(turn, objective.disc_loss, disc, opt.disc, seen)
        opt = Pair(gen=opt.gen, disc=own)
        found.append(metrics)
    for number in range(updates.gen):
        lazy = Lazy(
            objective.gen_penalty, objective.gen_penalty_every, inputs(Purpose.PATH, number)
        )
        turn = Turn("gen", optimisers.gen, lazy, state.step * updates.gen + number)
        seen = inputs(drawn.gen, number)._replace(replay=replay)
        gen, own, metrics = _update(turn, objective.gen_loss, gen, opt.gen, seen)
        opt = Pair(gen=own, disc=opt.disc)
        found.append(metrics)
    new = TrainState(
        step=state.step + 1,
        key=state.key,
        variables=Pair(gen=gen, disc=disc),
        ema=optax.incremental_update(gen, state.ema, 1 - ema_decay(state.step)),
        opt=opt,
    )
    return new, _means(found)


def made_once(generate: Generate, inputs: Inputs) -> Callable[[Params], Generated]:
    """What `generate` makes of the generator's own parameters, as a function of them.

    It returns the same images each time and can be differentiated: neither repeats the generator's
    pass, as two calls of `generate` would, which the compiler does not find to be the same.
    """
    gen = inputs.variables.gen

    def make(params: Params) -> tuple[Any, Generated]:
        made = generate(gen | {"params": params}, inputs)
        return (made.images, made.penalty), made

    (images, penalty), pullback, made = jax.vjp(make, gen["params"], has_aux=True)

    @jax.custom_vjp
    def learned(params: Params) -> tuple[jax.Array, jax.Array]:
        return images, penalty

    learned.defvjp(lambda params: ((images, penalty), None), lambda _, change: pullback(change))

    def replay(params: Params) -> Generated:
        images, penalty = learned(params)
        return made._replace(images=images, penalty=penalty)

    return replay


class Lazy(NamedTuple):
    """A penalty that is due every so many updates, 0 for never, and what it sees."""

    penalty: Penalty
    every: int
    inputs: Inputs


class Turn(NamedTuple):
    """One player's update: whose, by which optimiser, with which penalty, the how manieth."""

    player: str
    optimiser: optax.GradientTransformation
    lazy: Lazy
    number: jax.Array


def _update(
    turn: Turn, loss: Penalty, variables: Variables, opt: Params, inputs: Inputs
) -> tuple[Variables, Params, Metrics]:
    """A player's variables and optimiser state after its turn, and what it reports."""

    def total(params: Params) -> tuple[jax.Array, Aux]:
        value, aux = loss(params, inputs)
        extra, more = _lazy_penalty(turn, params, aux.stats)
        return value + extra, Aux(aux.metrics | more.metrics, more.stats)

    params = variables["params"]
    grads, aux = jax.grad(total, has_aux=True)(params)
    grads, metrics = lax.pmean(grads, AXIS), lax.pmean(aux.metrics, AXIS)
    change, opt = turn.optimiser.update(grads, opt, params)
    variables = {"params": optax.apply_updates(params, change), "batch_stats": aux.stats}
    return variables, opt, metrics | {f"{turn.player}/gradient_norm": optax.tree.norm(grads)}


def _lazy_penalty(turn: Turn, params: Params, stats: Any) -> tuple[jax.Array, Aux]:
    """The penalty times its interval on every such update, else 0: its mean is the full penalty."""
    penalty, every, inputs = turn.lazy
    if not every:
        return jnp.zeros(()), Aux({}, stats)
    own = getattr(inputs.variables, turn.player) | {"batch_stats": stats}
    both = dataclasses.replace(inputs.variables, **{turn.player: own})
    inputs = inputs._replace(variables=both)
    if every == 1:  # convolutions in a branch are slow on CPU
        return penalty(params, inputs)
    _, shapes = jax.eval_shape(penalty, params, inputs)

    def due() -> tuple[jax.Array, Aux]:
        value, aux = penalty(params, inputs)
        return every * value, Aux({k: every * v for k, v in aux.metrics.items()}, aux.stats)

    def idle() -> tuple[jax.Array, Aux]:
        return jnp.zeros(()), Aux({k: jnp.zeros(()) for k in shapes.metrics}, stats)

    return lax.cond(turn.number % every == 0, due, idle)


def _means(found: list[Metrics]) -> Metrics:
    """The mean of each metric over the updates that report it."""
    series: dict[str, list[jax.Array]] = {}
    for metrics in found:
        for name, value in metrics.items():
            series.setdefault(name, []).append(value)
    return {name: sum(values[1:], values[0]) / len(values) for name, values in series.items()}


def make_step(
    objective: Objective,
    optimisers: Pair[optax.GradientTransformation],
    feed: Feed,
    config: ml_collections.ConfigDict,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The function that `parallel.map_devices` maps: `train.steps_per_call` steps in one call.

    Returns:
      (state, constants, resident, fed, positions) -> state, metrics `{name: [steps_per_call]}`;
      `fed` holds the batches of all these steps, `[steps_per_call * batches_per_step, b, ...]`.
    """
    steps, each = config.train.steps_per_call, batches_per_step(config.train)
    updates = Pair(gen=config.train.gen_updates, disc=config.train.disc_updates)
    ema_decay = averaging(config.optimiser, config.train.batch_size)

    def one(
        state: TrainState, constants: Constants, resident: Batch, fed: Batch, positions: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), Purpose.DATA)

        def draw(number: int) -> Batch:
            part = jax.tree.map(lambda x: x[number], fed)
            return feed.draw(resident, part, key, state.step * each + number, positions)

        return train_step(
            state,
            [draw(number) for number in range(each)],
            constants,
            positions,
            objective=objective,
            optimisers=optimisers,
            ema_decay=ema_decay,
            updates=updates,
        )

    def call(
        state: TrainState, constants: Constants, resident: Batch, fed: Batch, positions: jax.Array
    ) -> tuple[TrainState, Metrics]:
        if steps == 1:  # a scan of one step is much slower on CPU
            state, metrics = one(state, constants, resident, fed, positions)
            return state, jax.tree.map(lambda x: x[None], metrics)
        fed = jax.tree.map(lambda x: x.reshape(steps, each, *x.shape[1:]), fed)
        return lax.scan(
            lambda s, f: one(s, constants, resident, f, positions), state, fed, length=steps
        )

    return call


def batches_per_step(config: ml_collections.ConfigDict) -> int:
    """Batches that a step takes: as many as the player with more updates has, `train` block."""
    return max(config.disc_updates, config.gen_updates)
