"""Adversarial losses, gradient penalties and distances of predictions, one function each.

An adversarial loss takes the discriminator's outputs on a batch of real and of fake images, both
`[B]`, and returns what both players minimise and which answers were correct by the loss's own
decision rule; outputs on patches, `[B, h, w]`, are treated one by one. All take logits but
`hinge_embedding`, whose discriminator ends in tanh (`bounded_output`). Penalties and distances are
per example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
from jax.nn import relu, softplus

from deformgan.errors import UserError, choose


class Adversarial(NamedTuple):
    """The two players' losses and the discriminator's right answers, each like its outputs."""

    disc: jax.Array
    gen: jax.Array
    real_correct: jax.Array
    fake_correct: jax.Array


Loss = Callable[[jax.Array, jax.Array], Adversarial]
Distance = Callable[[jax.Array, jax.Array], jax.Array]


def minimax(real: jax.Array, fake: jax.Array) -> Adversarial:
    """Binary cross entropy as a zero-sum game, Goodfellow et al. 2014, eq. 1 (logits).

    The generator minimises log(1 - D(G(z))), which saturates where D is sure.
    """
    disc = softplus(-real) + softplus(fake)
    return Adversarial(disc, -softplus(fake), real > 0, fake < 0)


def non_saturating(real: jax.Array, fake: jax.Array) -> Adversarial:
    """Binary cross entropy, the generator maximising log D(G(z)); Goodfellow et al. 2014, sec. 3.

    This is BCE with the labels flipped for the generator, as DCGANs are trained; the second report
    calls it gradient ascent (logits).
    """
    disc = softplus(-real) + softplus(fake)
    return Adversarial(disc, softplus(-fake), real > 0, fake < 0)


def hinge_embedding(real: jax.Array, fake: jax.Array, margin: float = 1.0) -> Adversarial:
    """The first report's hinge: l = x for y = 1, max(0, Δ - x) for y = -1 (tanh outputs).

    Minimising it pushes real outputs (y = 1) down to -1 and fake ones (y = -1) up to at least
    Δ = `margin`, so the generator minimises x on fakes. Real is what lies nearer to -1 than to Δ.
    """
    threshold = (margin - 1) / 2
    return Adversarial(real + relu(margin - fake), fake, real < threshold, fake >= threshold)


def hinge(real: jax.Array, fake: jax.Array) -> Adversarial:
    """The usual GAN hinge, Lim and Ye 2017; Miyato et al. 2018, eqs. 16-17 (logits)."""
    return Adversarial(relu(1 - real) + relu(1 + fake), -fake, real > 0, fake < 0)


def least_squares(real: jax.Array, fake: jax.Array) -> Adversarial:
    """Least squares with targets 1 for real and 0 for fake, Mao et al. 2017, eq. 9 (logits)."""
    disc = (jnp.square(real - 1) + jnp.square(fake)) / 2
    return Adversarial(disc, jnp.square(fake - 1) / 2, real > 0.5, fake < 0.5)


def relativistic(real: jax.Array, fake: jax.Array) -> Adversarial:
    """Relativistic pairing, Jolicoeur-Martineau 2018; Huang et al. 2024 (R3GAN), eq. 2 (logits).

    Real and fake are judged in pairs; an answer is correct if the real one scores higher.
    """
    correct = real > fake
    return Adversarial(softplus(fake - real), softplus(real - fake), correct, correct)


NAMES = ("minimax", "non_saturating", "hinge_embedding", "hinge", "least_squares", "relativistic")


_CROSS_ENTROPY = ("minimax", "non_saturating")


def by_name(name: str, *, margin: float = 1.0, smoothing: float = 0.0) -> Loss:
    """The loss that `config.loss.name` names.

    Args:
      name: one of `NAMES`.
      margin: Δ of the hinge embedding.
      smoothing: of the labels of real images; see `smoothed`.

    Raises:
      UserError: for an unknown name, or smoothing of a loss that has no labels.
    """
    choose("loss.name", name, NAMES)
    if name == "hinge_embedding":
        loss: Loss = lambda real, fake: hinge_embedding(real, fake, margin)  # noqa: E731
    else:
        loss = globals()[name]
    if not smoothing:
        return loss
    if name not in _CROSS_ENTROPY or not 0 < smoothing < 0.5:
        raise UserError(
            f"loss.label_smoothing: {smoothing} with {name}; give 0 to 0.5, and only to"
            f" {' or '.join(_CROSS_ENTROPY)}"
        )
    return lambda real, fake: smoothed(loss(real, fake), real, smoothing)


def smoothed(outcome: Adversarial, real: jax.Array, smoothing: float) -> Adversarial:
    """Binary cross entropy with the target 1 - `smoothing` for real images, `[B]` logits.

    One-sided label smoothing, Salimans et al. 2016, sec. 3.4; fakes keep the target 0. With s the
    smoothing, (1 - s) softplus(-x) + s softplus(x) = softplus(-x) + s x.
    """
    return outcome._replace(disc=outcome.disc + smoothing * real)


def bounded_output(name: str) -> bool:
    """Whether the discriminator of this loss ends in tanh rather than in a logit."""
    return name == "hinge_embedding"


def gradient_penalty(
    discriminator: Callable[[jax.Array], jax.Array], images: jax.Array
) -> jax.Array:
    """½ ‖∇D(x)‖² per example: R1 on real images, R2 on fakes; Mescheder et al. 2018, eq. 9.

    Args:
      discriminator: maps `[B, H, W, C]` images to `[B]` outputs.
      images: `[B, H, W, C]` in [-1, 1].

    Returns:
      `[B]`, not negative. With batch normalisation in D the gradient includes each image's
      influence on the others' outputs.
    """
    gradient = jax.grad(lambda x: jnp.sum(discriminator(x)))(images)
    return jnp.sum(jnp.square(gradient), axis=tuple(range(1, images.ndim))) / 2


def path_lengths(
    synthesise: Callable[[jax.Array], jax.Array], w: jax.Array, keys: jax.Array
) -> jax.Array:
    """‖Jᵀy‖ per example, J = ∂ image / ∂ w and y random; Karras et al. 2020, eq. 4.

    As in the authors' code, y is N(0, 1) over the root of the number of pixels, each layer's w
    counts as a variable of its own, and the length is the root mean square over layers.

    Args:
      synthesise: maps w to `[B, H, W, C]` images, each example on its own.
      w: `[B, L, W]`, the w of every layer.
      keys: `[B]`, of y.

    Returns:
      `[B]`, not negative.
    """
    images, pull_back = jax.vjp(synthesise, w)
    shape = images.shape[1:]
    y = jax.vmap(lambda key: jax.random.normal(key, shape))(keys) / (shape[0] * shape[1]) ** 0.5
    (gradient,) = pull_back(y)
    power = jnp.mean(jnp.sum(jnp.square(gradient), axis=2), axis=1)
    return jnp.sqrt(power + 1e-12)  # or the gradient would be infinite where there is no path


def path_length_penalty(lengths: jax.Array, mean: jax.Array) -> jax.Array:
    """(‖Jᵀy‖ - a)² per example, a the running mean of the lengths; Karras et al. 2020, eq. 4.

    Args:
      lengths: `[B]`, from `path_lengths`.
      mean: scalar; a constant, no gradient flows to it.

    Returns:
      `[B]`, not negative.
    """
    return jnp.square(lengths - jax.lax.stop_gradient(mean))


def l1(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean absolute difference of images `[B, H, W, C]`, `[B]`; Isola et al. 2017, eq. 3."""
    return jnp.mean(jnp.abs(predicted - target), (1, 2, 3))


def l2(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared difference of images `[B, H, W, C]`, `[B]`."""
    return jnp.mean(jnp.square(predicted - target), (1, 2, 3))


def axial(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Distance of fibre axes in the space "orientation": directions modulo 180 degrees.

    The mean over pixels of the length of the difference of the vectors (cos 2φ, sin 2φ), plus the
    absolute differences of inclination and mask, in the units of the space. Unlike `l1` it does not
    depend on how the plane is turned. In tissue, the vectors count by the cosine of the true
    inclination: the direction of a steep fibre says little.

    Args:
      predicted: `[B, H, W, 4]`; see `orientation` for the space.
      target: `[B, H, W, 4]`.

    Returns:
      `[B]`, in [0, 6].
    """
    difference = predicted - target
    tissue = (target[..., 3] + 1) / 2
    flat = jnp.cos((target[..., 2] + 1) * (jnp.pi / 4))
    squared = jnp.sum(jnp.square(difference[..., :2]), -1)
    length = jnp.sqrt(squared + 1e-12) - 1e-6  # smooth at 0, where there would be no gradient
    weight = tissue * flat + 1 - tissue
    rest = jnp.abs(difference[..., 2]) + jnp.abs(difference[..., 3])
    return jnp.mean(weight * length + rest, (1, 2))


DISTANCES = ("l1", "l2", "axial")


def distance(name: str) -> Distance:
    """The distance of predictions `[B, H, W, C]` from targets, `[B]`, that `loss.pixel` names."""
    choose("loss.pixel", name, DISTANCES)
    chosen: Distance = globals()[name]
    return chosen


def dissimilarity(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """1 - SSIM of images `[B, H, W, C]` in [-1, 1], sides of 11 pixels or more; `[B]` in [0, 2].

    Wang et al. 2004, Gaussian window of 11 pixels.
    """
    similarity: jax.Array = dm_pix.ssim((predicted + 1) / 2, (target + 1) / 2, max_val=1.0)
    return 1 - similarity


def feature_matching(fake: Sequence[jax.Array], real: Sequence[jax.Array]) -> jax.Array:
    """Mean absolute difference of a discriminator's features, `[B]`; Wang et al. 2018, eq. 4.

    Args:
      fake: of each layer, `[B, h, w, F]`, on predictions.
      real: the same on targets.
    """
    each = [l1(a, b) for a, b in zip(fake, real, strict=True)]
    return sum(each[1:], each[0]) / len(each)
