"""How images differ by more than motion and overall brightness: modes of appearance.

Neurons light up one by one, and what moves out of focus fades: no displacement describes that. What
registered images leave is pulled back to the template; its principal components are the modes
(active appearance models, Cootes et al. 2001), and their amounts in each image are a part of its
motion, whose distribution is learned with that of all others.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.imaging import likelihood, reconstruction
from deformgan.imaging.atlas import (
    Atlas,
    Fitted,
    Motion,
    composed,
    coordinates,
    displacements,
    gains,
    layers,
    render,
)
from deformgan.imaging.likelihood import Phase

_MOST = 20  # modes
_FEWEST = 40  # images from which modes are learned
_IMAGES = 400  # that modes are learned from, at most
_HELD_OUT = 5  # the last of so many parts decides how many modes there are
_SMALL = 0.01  # unit intensity: what errors of motions leave
_SHARE = 0.5  # of what motions leave in held-out images, that modes must explain
_SEEN = 0.1  # pixels of an image: a place of the template seen by fewer counts less
_FULL = Phase(1, 0.0, 0)


def varied(images: np.ndarray, fitted: Fitted, camera: Camera, nodes: int) -> Fitted:
    """The atlas with its modes, and the motions with their amounts.

    Modes are learned from the first images, and the last decide: on how many by their evidence,
    which asks noise that happens to be like a mode to pay for it (MacKay 1992); and on whether
    there are any by what they explain. Appearance varies in few ways, errors of motions in as many
    as motions themselves. Then all make the modes.

    Args:
      images: `[N, S, S]` unit intensity; of more than 400, some make the modes.
      fitted: an atlas without modes and the motion of each image.
      camera: their noise.
      nodes: of the grid that velocities are integrated on.

    Returns:
      what was given, if motions leave little, no modes explain most of it, or there are fewer
      than 40 images.
    """
    if len(images) < _FEWEST:
        return fitted
    if camera.kernel.shape != (1, 1):  # what compression left is not told from what varies
        camera = camera._replace(gain=jnp.float32(0), speckle=jnp.float32(0))
    misfit = likelihood.misfit(images, fitted, camera, nodes)
    if misfit < _SMALL:
        return fitted
    tolerant = likelihood.forgiving(camera, misfit)
    some = np.linspace(0, len(images) - 1, min(len(images), _IMAGES)).astype(int)
    few = fitted._replace(motion=jax.tree.map(lambda x: x[some], fitted.motion))
    left = _left(images[some], few, tolerant, nodes)
    first = len(some) - len(some) // _HELD_OUT
    unseen = images[some[first:]]
    held_out = few._replace(motion=jax.tree.map(lambda x: x[first:], few.motion))
    count = _count(unseen, _with_modes(held_out, _components(left[:first], _MOST)), tolerant, nodes)
    tried = _with_modes(held_out, _components(left[:first], count))
    before, after = (
        likelihood.misfit(unseen, one, camera, nodes)
        for one in (held_out, _with_amounts(unseen, tried, tolerant, nodes))
    )
    if after**2 > (1 - _SHARE) * before**2:
        return fitted
    fitted = _with_modes(fitted, _components(left, count))
    atlas, motion = _with_amounts(images, fitted, tolerant, nodes)
    # More than 1, since a mode that was pulled back is a little blurred.
    spread = jnp.maximum(jnp.std(motion.appearance, 0), 1e-6)
    modes = atlas.modes * spread[:, None, None, None]
    amounts = motion.appearance / spread[None]
    return Fitted(atlas._replace(modes=modes), motion._replace(appearance=amounts))


def _with_modes(fitted: Fitted, modes: np.ndarray) -> Fitted:
    amounts = jnp.zeros((len(fitted.motion.pose), len(modes)))
    atlas = fitted.atlas._replace(modes=jnp.asarray(modes))
    return Fitted(atlas, fitted.motion._replace(appearance=amounts))


def _count(images: np.ndarray, fitted: Fitted, camera: Camera, nodes: int) -> int:
    """How many of the modes images are likeliest with, 1 or more."""
    slopes, hessians = _told(images, fitted, camera, nodes)
    counts = range(1, slopes.shape[1] + 1)
    return max(counts, key=lambda q: _evidence(slopes[:, :q], hessians[:, :q, :q]))


def _with_amounts(images: np.ndarray, fitted: Fitted, camera: Camera, nodes: int) -> Fitted:
    """The likeliest amounts, a normal prior of unit variance included."""
    slopes, hessians = _told(images, fitted, camera, nodes)
    total = hessians + np.eye(slopes.shape[1])
    amounts = np.linalg.solve(total, slopes[..., None])[..., 0]
    return fitted._replace(
        motion=fitted.motion._replace(appearance=jnp.asarray(amounts, jnp.float32))
    )


def _components(left: np.ndarray, count: int) -> np.ndarray:
    """The first principal components of `[N, ...]`, times their standard deviation."""
    flat = left.reshape(len(left), -1) - left.reshape(len(left), -1).mean(0)
    vectors = np.linalg.eigh((flat @ flat.T).astype(np.float64))[1][:, ::-1][:, :count]
    return (vectors.T @ flat / np.sqrt(len(left))).reshape(-1, *left.shape[1:]).astype(np.float32)


def _evidence(slopes: np.ndarray, hessians: np.ndarray) -> float:
    """Mean log evidence of images for modes of unit variance, less that for none.

    Args:
      slopes: `[N, Q]` of each image's log likelihood along the modes.
      hessians: `[N, Q, Q]` its negative curvature.
    """
    total = hessians + np.eye(slopes.shape[1])
    best = np.linalg.solve(total, slopes[..., None])[..., 0]
    return float(np.mean(np.sum(slopes * best, 1) - np.linalg.slogdet(total)[1]) / 2)


def _left(images: np.ndarray, fitted: Fitted, camera: Camera, nodes: int) -> np.ndarray:
    """What images show beyond their motion, on the template: `[N, K + 1, S, S]`."""
    pull = functools.partial(_pulled_back, nodes=nodes)
    parts = likelihood.by_chunk(pull, images, fitted.motion, fitted.atlas, camera)
    return np.concatenate([part for _, part in parts])


@functools.partial(jax.jit, static_argnames="nodes")
def _pulled_back(
    images: jax.Array, motion: Motion, atlas: Atlas, camera: Camera, *, nodes: int
) -> jax.Array:
    where = coordinates(atlas, motion, images.shape[1], nodes)
    lit = layers(atlas, motion, where)
    mean, back = jax.vjp(functools.partial(composed, atlas), lit)
    residual = cameras.uncensored(images, mean, camera) - mean
    told = back(residual)[0] / gains(motion, where)
    both = jnp.stack([told, back(jnp.ones_like(mean))[0]], -1)  # [B, K + 1, S, S, 2]
    template = jnp.concatenate([atlas.somata, atlas.rest[None]])
    out = []
    for k, displacement in enumerate(displacements(where)):
        sums = jax.vmap(lambda own, u: reconstruction.unread(own[None], u[None]))(
            both[:, k], displacement
        )
        out.append(sums[..., 0] / (sums[..., 1] + _SEEN) * (template[k] > 0)[None])
    return jnp.stack(out, 1)


def _told(
    images: np.ndarray, fitted: Fitted, camera: Camera, nodes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes `[N, Q]` and negative curvatures `[N, Q, Q]` of log likelihoods at no amounts."""
    tell = functools.partial(_told_by, nodes=nodes)
    parts = likelihood.by_chunk(tell, images, fitted.motion, fitted.atlas, camera)
    slopes, hessians = zip(*(part for _, part in parts), strict=True)
    return np.concatenate(slopes).astype(np.float64), np.concatenate(hessians).astype(np.float64)


@functools.partial(jax.jit, static_argnames="nodes")
def _told_by(
    images: jax.Array, motion: Motion, atlas: Atlas, camera: Camera, *, nodes: int
) -> tuple[jax.Array, jax.Array]:
    def drawn(amounts: jax.Array) -> jax.Array:
        return render(atlas, motion._replace(appearance=amounts), nodes)

    none = jnp.zeros((len(images), len(atlas.modes)))
    mean, along = jax.linearize(drawn, none)
    each = jnp.eye(len(atlas.modes))
    columns = jax.lax.map(lambda one: along(jnp.broadcast_to(one[None], none.shape)), each)
    weight = likelihood.negative_log_likelihood(mean, images, camera, _FULL)[1]
    away = cameras.uncensored(images, mean, camera) - mean
    slopes = jnp.einsum("qbst,bst->bq", columns, weight * away)
    return slopes, jnp.einsum("qbst,bst,pbst->bqp", columns, weight, columns)
