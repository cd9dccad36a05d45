import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import smoke

from deformgan import augment, optim
from deformgan.data import pipeline
from deformgan.data.feed import make_feed
from deformgan.models.layers import AXIS
from deformgan.objectives import deform
from deformgan.step import Purpose, example_keys, initial_state, make_step

BATCH = 8


@pytest.fixture(scope="module")
def dataset():
    config = smoke()
    return pipeline.build(pipeline.open_frames(config.data), config.data, config.source)


def train(dataset, config, *, devices, calls):
    """State and metrics of every step after `calls` calls on this many devices."""
    objective, optimisers = deform.create(config), optim.make(config.optimiser)
    constants = objective.fit(dataset, print).constants
    state = initial_state(objective, optimisers, constants, config.seed)
    feed = make_feed(dataset.train, BATCH, config.seed, process=0, processes=1)
    step = jax.pmap(
        make_step(objective, optimisers, feed, config),
        axis_name=AXIS,
        in_axes=(None, None, None, 0, 0),
        out_axes=None,
        devices=jax.devices()[:devices],
    )
    positions = np.arange(BATCH).reshape(devices, -1)
    history = []
    for _ in range(calls):
        state, metrics = jax.block_until_ready(step(state, constants, feed.resident, {}, positions))
        history.append(metrics)
    return state, jax.tree.map(lambda *m: np.concatenate(m), *history)


def close(a, b, **tolerances):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerances)


@pytest.mark.parametrize("loss", ["relativistic", "hinge_embedding"])  # of pairs; of each image
def test_two_devices_equal_one_big_batch(dataset, loss):
    """Draws, batch statistics, gradients and penalties do not depend on the device count."""
    config = smoke(loss__name=loss, loss__r1=1.0, loss__r2=0.5, loss__penalty_every=2)
    config.augment.update(translation=0.1, cutout=0.2)
    config.optimiser.gen.learning_rate = config.optimiser.disc.learning_rate = 1e-3
    one, one_metrics = train(dataset, config, devices=1, calls=3)
    two, two_metrics = train(dataset, config, devices=2, calls=3)
    close(one_metrics, two_metrics, rtol=2e-3, atol=1e-5)
    # Adam divides by the gradient's own size, so rounding shows where a gradient is almost 0.
    close(one.variables, two.variables, rtol=0, atol=2e-4)


def test_several_steps_in_one_call_equal_as_many_calls(dataset):
    config = smoke(loss__r1=1.0, loss__penalty_every=2)
    single, single_metrics = train(dataset, config, devices=1, calls=4)
    config.train.steps_per_call = 2
    paired, paired_metrics = train(dataset, config, devices=1, calls=2)
    close(single_metrics, paired_metrics, rtol=1e-4, atol=1e-6)
    close(single.variables, paired.variables, rtol=0, atol=1e-5)
    assert int(paired.step) == 4


def test_every_parameter_of_both_networks_learns_and_without_decay_no_average_differs(dataset):
    config = smoke(optimiser__ema_decay=0.0)
    objective = deform.create(config)
    constants = objective.fit(dataset, print).constants
    start = initial_state(objective, optim.make(config.optimiser), constants, config.seed)
    end, _ = train(dataset, config, devices=1, calls=2)
    for player in ("gen", "disc"):
        before = getattr(start.variables, player)
        after = getattr(end.variables, player)
        for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            assert (x != y).any()
    close(end.ema, end.variables.gen, rtol=0, atol=0)


def test_the_average_follows_its_decay(dataset):
    config = smoke()
    config.optimiser.ema_decay = 0.75
    state, _ = train(dataset, config, devices=1, calls=1)
    start = initial_state(
        deform.create(config), optim.make(config.optimiser), deform.fit(dataset), config.seed
    )
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, start.ema, state.variables.gen)
    close(state.ema, expected, rtol=1e-5, atol=1e-7)


def test_a_lazy_penalty_is_due_at_its_interval_and_full_on_average(dataset):
    config = smoke(loss__r1=1.0, loss__penalty_every=2)
    config.optimiser.gen.learning_rate = config.optimiser.disc.learning_rate = 0.0
    _, lazy = train(dataset, config, devices=1, calls=4)
    config.loss.penalty_every = 1
    _, full = train(dataset, config, devices=1, calls=4)
    assert (lazy["disc/r1"][1::2] == 0).all() and (lazy["disc/r1"][::2] > 0).all()
    np.testing.assert_allclose(lazy["disc/r1"][::2], 2 * full["disc/r1"][::2], rtol=1e-3)


def test_draws_differ_by_example_step_and_purpose():
    key, positions = jax.random.key(0), jnp.arange(3)
    keys = [
        example_keys(key, step, purpose, positions)
        for step in (0, 1)
        for purpose in (Purpose.DISC, Purpose.GEN)
    ]
    raw = np.concatenate([jax.random.key_data(k) for k in keys])
    assert len({tuple(row) for row in raw}) == len(raw)


def test_augmentation_is_differentiable_and_off_by_default():
    keys = jax.random.split(jax.random.key(0), 4)
    images = jax.random.uniform(jax.random.key(1), (4, 16, 16, 1), minval=0.5)
    off = augment.translate_and_cut(keys, images, translation=0.0, cutout=0.0)
    assert off is images
    cut = augment.translate_and_cut(keys, images, translation=0.0, cutout=0.5)
    share = np.mean(np.asarray(cut) == 0, axis=(1, 2, 3))
    assert ((share > 0) & (share <= 0.3)).all()
    moved = augment.translate_and_cut(keys, images, translation=0.2, cutout=0.0)
    assert (moved != images).any() and set(np.unique(moved)) <= set(np.unique(images))
    gradient = jax.grad(
        lambda x: jnp.sum(augment.translate_and_cut(keys, x, translation=0.2, cutout=0.5))
    )(images)
    np.testing.assert_allclose(jnp.sum(gradient), jnp.sum(cut != 0), rtol=0.35)


def test_adam_is_that_of_the_config():
    config = smoke()
    config.optimiser.gen.learning_rate = 0.5
    pair = optim.make(config.optimiser)
    params = {"w": jnp.ones(2)}
    updates, _ = pair.gen.update({"w": jnp.array([3.0, -0.1])}, pair.gen.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.5, 0.5], rtol=1e-4)
    assert isinstance(pair.disc, optax.GradientTransformation)
