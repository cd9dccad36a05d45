import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deformgan import losses
from deformgan.errors import UserError

REAL, FAKE = jnp.array([2.0, -1.0, 0.5]), jnp.array([-3.0, 0.7, 0.1])
HIGH, LOW = jnp.full(4, 0.9), jnp.full(4, -0.9)


def test_cross_entropies_are_those_of_optax():
    bce = optax.sigmoid_binary_cross_entropy
    expected = bce(REAL, jnp.ones(3)) + bce(FAKE, jnp.zeros(3))
    for name in ("minimax", "non_saturating"):
        np.testing.assert_allclose(losses.by_name(name)(REAL, FAKE).disc, expected, rtol=1e-6)
    flipped = losses.non_saturating(REAL, FAKE).gen
    np.testing.assert_allclose(flipped, bce(FAKE, jnp.ones(3)), rtol=1e-6)
    saturating = losses.minimax(REAL, FAKE).gen
    np.testing.assert_allclose(saturating, jnp.log(1 - jax.nn.sigmoid(FAKE)), rtol=1e-5)


def test_hinge_embedding_is_that_of_the_report():
    out = losses.hinge_embedding(jnp.array([-1.0, 0.4]), jnp.array([1.0, -0.5]), 1.0)
    np.testing.assert_allclose(out.disc, [-1.0, 0.4 + 1.5])
    np.testing.assert_allclose(out.gen, [1.0, -0.5])
    assert losses.bounded_output("hinge_embedding")
    assert not any(losses.bounded_output(n) for n in losses.NAMES if n != "hinge_embedding")


def test_hinge_embedding_threshold_moves_with_the_margin():
    out = losses.by_name("hinge_embedding", margin=0.5)(jnp.array([-0.3, -0.2]), jnp.array([-0.3]))
    assert out.real_correct.tolist() == [True, False]
    assert out.fake_correct.tolist() == [False]


def test_remaining_losses_at_known_points():
    np.testing.assert_allclose(losses.hinge(REAL, FAKE).disc, [0.0, 2 + 1.7, 0.5 + 1.1], rtol=1e-6)
    np.testing.assert_allclose(losses.least_squares(REAL, FAKE).disc[0], 0.5 + 4.5)
    np.testing.assert_allclose(losses.relativistic(REAL, FAKE).disc[0], jnp.log1p(jnp.exp(-5.0)))


@pytest.mark.parametrize("name", losses.NAMES)
def test_accuracy_of_a_perfect_and_of_an_inverted_discriminator(name):
    real, fake = (LOW, HIGH) if name == "hinge_embedding" else (HIGH, LOW)
    perfect, inverted = losses.by_name(name)(real, fake), losses.by_name(name)(fake, real)
    assert perfect.real_correct.all() and perfect.fake_correct.all()
    assert not inverted.real_correct.any() and not inverted.fake_correct.any()
    assert jnp.mean(perfect.disc) < jnp.mean(inverted.disc)


@pytest.mark.parametrize("name", losses.NAMES)
def test_the_generator_gains_by_looking_more_real(name):
    loss = losses.by_name(name)
    slope = jax.grad(lambda fake: jnp.sum(loss(REAL, fake).gen))(FAKE)
    assert (slope > 0).all() if name == "hinge_embedding" else (slope < 0).all()


def test_gradient_penalty_of_a_linear_discriminator():
    weights = jax.random.normal(jax.random.key(0), (4, 4, 1))
    images = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
    penalty = losses.gradient_penalty(lambda x: jnp.einsum("bhwc,hwc->b", x, weights), images)
    np.testing.assert_allclose(penalty, jnp.full(3, jnp.sum(weights**2) / 2), rtol=1e-6)


def test_an_unknown_loss_lists_the_choices():
    with pytest.raises(UserError, match=r"loss\.name: unknown name 'wgan'.*minimax"):
        losses.by_name("wgan")
