"""The benchmark's plain Pix2Pix is ours: same networks, turns and distances; else it refuses."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pix2pix_reference
from configs import pix2pix
from deformgan import losses, orientation

recipe = pytest.importorskip(
    "benchmarks.pix2pix_torch", reason="the reference needs PyTorch: .[bench]"
)


def tiny(variants="smoke"):
    config = pix2pix.get_config(variants)
    config.data.size = 16
    config.model.upsampling = "transposed"
    return config


@pytest.mark.parametrize("changed", [{}, {"norm": "instance", "disc_layers": 0, "depth": 2}])
def test_same_weights_give_the_same_outputs(tmp_path, changed):
    config = tiny()
    config.model.update(changed)
    reference = pix2pix_reference.Reference(tmp_path, "python", config, 1)
    counts = pix2pix_reference.write_weights(tmp_path / "weights.npz", config, reference)
    job, plan = recipe.read_job(tmp_path)
    found = recipe.compared(tmp_path, job, plan)
    assert found["parameters"] == counts
    assert max(found["apart"]) < pix2pix_reference.LIMIT


@pytest.mark.parametrize("meaning", orientation.SPACES)
def test_pairs_turn_as_ours_do(meaning):
    rng, channels = np.random.default_rng(0), {"rgb": 3, "orientation": 4, "scalar": 2}[meaning]
    given = rng.uniform(-1, 1, (1, 8, 8, 1)).astype(np.float32)
    wanted = rng.uniform(-1, 1, (1, 8, 8, channels)).astype(np.float32)
    for quarters, mirrored in itertools.product(range(4), (False, True)):
        turn = jnp.asarray([quarters]), jnp.asarray([mirrored])
        ours = [
            orientation.flipped_and_rotated(jnp.asarray(images), *turn, space)
            for images, space in ((given, "scalar"), (wanted, meaning))
        ]
        pair = recipe.inside(given)[0], recipe.inside(wanted)[0]
        theirs = recipe.moved(*pair, quarters, mirrored, meaning)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(recipe.outside(b[None]), a, atol=2e-6)


def test_losses_are_ours():
    rng = np.random.default_rng(1)
    a, b = rng.uniform(-1, 1, (2, 2, 8, 8, 4)).astype(np.float32)
    for name, own in recipe.DISTANCES.items():
        wanted = float(jnp.mean(losses.distance(name)(jnp.asarray(a), jnp.asarray(b))))
        assert float(own(recipe.inside(a), recipe.inside(b))) == pytest.approx(wanted, rel=1e-5)
    assert set(recipe.LOSSES) == set(pix2pix_reference.NAMES)
    real, fake = 2 * a, 2 * b
    for name, (disc, gen) in recipe.LOSSES.items():
        ours = losses.by_name(name)(jnp.asarray(real), jnp.asarray(fake))
        inside = recipe.inside(real), recipe.inside(fake)
        np.testing.assert_allclose(recipe.outside(disc(*inside)), ours.disc, atol=1e-5)
        np.testing.assert_allclose(recipe.outside(gen(inside[1])), ours.gen, atol=1e-5)


def test_a_run_that_the_reference_cannot_follow_is_refused():
    assert not pix2pix_reference.lacking(tiny("facades,smoke"))
    config = tiny()
    config.loss.name, config.loss.ssim = "relativistic", 1.0
    assert pix2pix_reference.lacking(config) == ["loss.ssim=1.0", "loss.name=relativistic"]


def test_rates_fall_and_batches_hold_pairs():
    config, plan = tiny(), recipe.Plan(1, 3, 4, "rgb")
    config.train.steps, config.train.batch_size, config.augment.jitter = 4, 2, 1
    values = np.linspace(-1, 1, 6, dtype=np.float32)[:, None, None, None]
    given, wanted = (np.tile(values, (1, 16, 16, k)) for k in (1, 3))
    training = recipe.Training(config, plan, recipe.inside(given), recipe.inside(wanted))
    rates = []
    for _ in range(4):
        rates.append(training.optimisers[0].param_groups[0]["lr"])
        training.step()
    np.testing.assert_allclose(np.array(rates) / 2e-4, [1, 1, 1, 0.5])
    for _ in range(2):
        a, b = next(training.batches)
        assert a.shape == (2, 1, 16, 16) and b.shape == (2, 3, 16, 16)
        np.testing.assert_allclose(a[:, 0, 0, 0], b[:, 0, 0, 0])  # grey: no turn changes it
