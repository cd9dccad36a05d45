"""One train step for every objective: D update, G update, running average of G.

Everything here runs inside the mapped axis `layers.AXIS` on one device's share of the batch; what
it returns is equal on all devices.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import lax

from deformgan.data.feed import Batch, Feed
from deformgan.models.layers import AXIS
from deformgan.objectives.contract import Constants, Inputs, Metrics, Objective, Params
from deformgan.state import Pair, TrainState, Variables


class Purpose(enum.IntEnum):
    """What a draw is for: folded into the key, so that no two uses share random numbers."""

    INIT = 0
    DATA = 1
    DISC = 2
    GEN = 3
    PENALTY = 4
    SAMPLE = 5


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
    batch: Batch,
    constants: Constants,
    positions: jax.Array,
    *,
    objective: Objective,
    optimisers: Pair[optax.GradientTransformation],
    ema_decay: float,
) -> tuple[TrainState, Metrics]:
    """Updates the discriminator, then the generator against it, then the generator's average."""
    key, variables = jax.random.wrap_key_data(state.key), state.variables

    def inputs(variables: Pair[Variables], purpose: Purpose) -> Inputs:
        keys = example_keys(key, state.step, purpose, positions)
        return Inputs(variables, batch, constants, keys)

    def disc_total(params: Params) -> tuple[jax.Array, tuple[Metrics, Params]]:
        loss, aux = objective.disc_loss(params, inputs(variables, Purpose.DISC))
        extra, extra_metrics = _lazy_penalty(
            objective, state.step, params, inputs(variables, Purpose.PENALTY)
        )
        return loss + extra, (aux.metrics | extra_metrics, aux.stats)

    params = variables.disc["params"]
    grads, (disc_metrics, stats) = jax.grad(disc_total, has_aux=True)(params)
    params, disc_opt, disc_norm = _update(optimisers.disc, grads, state.opt.disc, params)
    variables = Pair(gen=variables.gen, disc={"params": params, "batch_stats": stats})

    params = variables.gen["params"]
    grads, aux = jax.grad(objective.gen_loss, has_aux=True)(params, inputs(variables, Purpose.GEN))
    params, gen_opt, gen_norm = _update(optimisers.gen, grads, state.opt.gen, params)
    variables = Pair(gen={"params": params, "batch_stats": aux.stats}, disc=variables.disc)

    metrics = lax.pmean(disc_metrics | aux.metrics, AXIS)
    metrics |= {"disc/gradient_norm": disc_norm, "gen/gradient_norm": gen_norm}
    new = TrainState(
        step=state.step + 1,
        key=state.key,
        variables=variables,
        ema=optax.incremental_update(variables.gen, state.ema, 1 - ema_decay),
        opt=Pair(gen=gen_opt, disc=disc_opt),
    )
    return new, metrics


def _lazy_penalty(
    objective: Objective, step: jax.Array, params: Params, inputs: Inputs
) -> tuple[jax.Array, Metrics]:
    """The penalty times its interval on every such step, else 0: its mean is the full penalty."""
    every = objective.penalty_every
    if not every:
        return jnp.zeros(()), {}
    shapes = jax.eval_shape(objective.penalty, params, inputs)
    return lax.cond(
        step % every == 0,
        lambda: jax.tree.map(lambda x: every * x, objective.penalty(params, inputs)),
        lambda: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
    )


def _update(
    optimiser: optax.GradientTransformation, grads: Params, opt: Params, params: Params
) -> tuple[Params, Params, jax.Array]:
    grads = lax.pmean(grads, AXIS)
    updates, opt = optimiser.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, optax.tree.norm(grads)


def make_step(
    objective: Objective,
    optimisers: Pair[optax.GradientTransformation],
    feed: Feed,
    config: ml_collections.ConfigDict,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The function that `parallel.map_devices` maps: `train.steps_per_call` steps in one call.

    Returns:
      (state, constants, resident, fed, positions) -> state, metrics `{name: [steps_per_call]}`;
      `fed` holds the batches of all these steps, `[steps_per_call, b, ...]`.
    """
    steps = config.train.steps_per_call

    def one(
        state: TrainState, constants: Constants, resident: Batch, fed: Batch, positions: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), Purpose.DATA)
        batch = feed.draw(resident, fed, key, state.step, positions)
        return train_step(
            state,
            batch,
            constants,
            positions,
            objective=objective,
            optimisers=optimisers,
            ema_decay=config.optimiser.ema_decay,
        )

    def call(
        state: TrainState, constants: Constants, resident: Batch, fed: Batch, positions: jax.Array
    ) -> tuple[TrainState, Metrics]:
        if steps == 1:  # a scan of one step is much slower on CPU
            first = jax.tree.map(lambda x: x[0], fed)
            state, metrics = one(state, constants, resident, first, positions)
            return state, jax.tree.map(lambda x: x[None], metrics)
        return lax.scan(
            lambda s, f: one(s, constants, resident, f, positions), state, fed, length=steps
        )

    return call
