"""The layers of an atlas from all images at once, under the motions that carry it to each.

Images, pulled back to the template and with clipped pixels replaced by what they are expected to
hide, are averaged by how much each tells of a place.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import fft, ndimage

from deformgan import camera as cameras
from deformgan.camera import Camera
from deformgan.imaging import likelihood
from deformgan.imaging.atlas import (
    Atlas,
    Fitted,
    Motion,
    composed,
    coordinates,
    displacements,
    gains,
    grid,
    layers,
    posed_at,
    unposed_at,
)
from deformgan.warp import warp, warp_each

MARGIN = 0.05  # of the side: how far a soma's layer reaches beyond its outline
_FAINT = 0.002  # of the brightest signal: what is no structure
_LEAST = 0.01**2  # variance below which an image is not trusted: the warp's own error
_BEND = 0.1  # unit intensity a square pixel: how curved a template is expected to be
_MODEST = 1.0  # of a pixel's own information: that signal is not brighter than can be seen
_CERTAIN = 2.0  # standard deviations of a pixel: 7 of their average over the blur of one pixel


def re_estimated(
    images: np.ndarray, fitted: Fitted, camera: Camera, nodes: int, *, steps: int
) -> Atlas:
    """The layers that explain the images best under the given motions.

    Simultaneous algebraic reconstruction (Andersen and Kak 1984): each step adds the residuals of
    all images, pulled back to the template and divided by how often it was seen there, weighted by
    the inverse variance of the noise; with Nesterov's momentum (Beck and Teboulle 2009, eq. 4.3).
    A Gaussian prior over the layers' curvature smooths what noise would ruffle.
    """
    atlas, motion = fitted
    support = np.stack([_support(np.asarray(soma)) for soma in atlas.somata])
    held = before = np.concatenate([atlas.somata, atlas.rest[None]])
    for step in range(steps):
        ahead = held + step / (step + 3) * (held - before)
        sums = np.zeros((*held.shape, 2))
        for own, size in likelihood.chunks(len(images)):
            part = jax.tree.map(lambda x, o=own: jnp.asarray(x[o]), motion)
            counts = jnp.asarray(np.arange(len(own)) < size, jnp.float32)
            at = atlas._replace(somata=jnp.asarray(ahead[:-1]), rest=jnp.asarray(ahead[-1]))
            sums += np.asarray(
                _pulled(jnp.asarray(images[own]), part, counts, at, camera, nodes=nodes)
            )
        residual, seen = np.moveaxis(sums, -1, 0)
        somata = _kept(ahead[:-1], residual[:-1], seen[:-1]) * support
        before, held = held, np.append(somata, _kept(ahead[-1:], residual[-1:], seen[-1:]), 0)
    return atlas._replace(somata=jnp.asarray(held[:-1]), rest=jnp.asarray(held[-1]))


@functools.partial(jax.jit, static_argnames="nodes")
def _pulled(
    images: jax.Array,
    motion: Motion,
    counts: jax.Array,
    atlas: Atlas,
    camera: Camera,
    *,
    nodes: int,
) -> jax.Array:
    """What images tell of each layer, pulled back to its template and summed.

    Args:
      images: `[B, S, S]`.
      motion: of the images.
      counts: `[B]`, 0 for images that do not count.
      atlas: as it is.
      camera: of the images.
      nodes: of the grid that velocities are integrated on.

    Returns:
      `[K + 1, S, S, 2]` weighted residuals, and their weights.
    """
    where = coordinates(atlas, motion, images.shape[1], nodes)
    gain = gains(motion, where)
    mean, back = jax.vjp(functools.partial(composed, atlas), layers(atlas, motion, where))
    weight = counts[:, None, None] / (cameras.variance(camera, mean) + _LEAST)
    hidden = _MODEST * jnp.maximum(mean - 1, 0)  # above white nothing else holds it down
    residual = cameras.uncensored(images, mean, camera) - mean - hidden
    told = jnp.stack([back(weight * residual)[0], back(weight)[0]], -1) * gain[..., None]
    return jnp.stack([unread(told[:, k], u) for k, u in enumerate(displacements(where))])


def unread(values: jax.Array, displacement: jax.Array) -> jax.Array:
    """The adjoint of reading a template: `[B, S, S, C]` of images, summed on it, `[S, S, C]`."""
    read = functools.partial(warp, displacement=displacement, border="constant")
    return jax.vjp(read, jnp.zeros(values.shape[1:]))[1](values)[0]


def _kept(layer: np.ndarray, residual: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """A layer `[..., S, S]` after one step: smooth, not negative, and nothing where it is faint."""
    stiff = 1 / _BEND**2
    bent = residual - stiff * _laplacian(_laplacian(layer))
    step = bent / (seen + 64 * stiff + 0.01 * seen.max())  # 64: the largest eigenvalue
    out = np.maximum(layer + step, 0)
    smooth = ndimage.gaussian_filter(out, (*(0,) * (out.ndim - 2), 1, 1))
    noise = 1 / np.sqrt(seen + 1e-9)  # standard deviation of what was averaged
    faint = (smooth < _FAINT * out.max()) | (smooth < _CERTAIN * noise)
    return np.where(faint, 0, out).astype(np.float32)


def _laplacian(layer: np.ndarray) -> np.ndarray:
    padded = np.pad(layer, [*[(0, 0)] * (layer.ndim - 2), (1, 1), (1, 1)], mode="edge")
    across = padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2]
    along = padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1]
    return across + along - 4 * layer


def smoothed(atlas: Atlas, camera: Camera, count: int) -> Atlas:
    """The layers without what errors of the motions ruffled.

    `re_estimated` takes the errors of pixels for independent. Those that motions leave are as
    coarse as the point spread, so as many pixels as that covers, 4πσ², tell no more than one. Of a
    Wiener filter with the same prior this is what changes. Where images are deformed anew, what is
    finer than the optics pass would become coarse enough to be seen.

    Args:
      atlas: by `re_estimated`.
      camera: whose noise is independent, and what there is of it changes nothing.
      count: images that the atlas was estimated from.
    """
    held = np.concatenate([atlas.somata, atlas.rest[None]])
    sigma = float(atlas.blur) * held.shape[-1]
    wave = np.pi * np.arange(held.shape[-1]) / held.shape[-1]  # radians a pixel
    passed = np.exp(-np.square(wave * sigma))
    told = count * passed[:, None] * passed[None]
    bend = 2 - 2 * np.cos(wave)
    stiff = np.square(bend[:, None] + bend[None]) / _BEND**2
    middle = atlas.background + 0.5 * held.max()
    noise = float(cameras.variance(camera, jnp.float32(middle)))
    alike = 1 + 4 * np.pi * sigma**2
    kept = (told + stiff * (noise + _LEAST)) / (told + stiff * (noise + alike * _LEAST))
    waves = fft.dctn(held, axes=(1, 2), norm="ortho")  # of images whose borders are mirrors
    out = jnp.asarray(np.maximum(fft.idctn(kept * waves, axes=(1, 2), norm="ortho"), 0))
    return atlas._replace(somata=out[:-1], rest=out[-1])


def in_the_middle(fitted: Fitted, nodes: int) -> Atlas:
    """The atlas whose somata have the mean shape of all images, each seen in the soma's own frame.

    A wrong shape that turns with its soma can be made good by a shared field that depends on the
    angle. Such fields have no mean, so `centred` misses them, and no Gaussian describes them: the
    mean displacement that they leave in a soma's frame goes to its template instead.
    """
    atlas, size = fitted.atlas, fitted.atlas.rest.shape[0]
    total = np.zeros((len(atlas.centres), size, size, 2))
    for own, size_ in likelihood.chunks(len(fitted.motion.pose)):
        part = jax.tree.map(lambda x, o=own: jnp.asarray(x[o]), fitted.motion)
        total += np.asarray(_left_over(atlas, part, nodes=nodes))[:size_].sum(0)
    around = np.stack([_support(np.asarray(soma)) for soma in atlas.somata])[..., None]
    mean = jnp.asarray(around * total / len(fitted.motion.pose) * size, jnp.float32)
    somata = warp_each(atlas.somata[..., None], mean)[..., 0]
    return atlas._replace(somata=somata)


@functools.partial(jax.jit, static_argnames="nodes")
def _left_over(atlas: Atlas, motion: Motion, *, nodes: int) -> jax.Array:
    """What the shared field displaces in each soma's template, `[B, K, S, S, 2]` in shares."""
    size = atlas.rest.shape[0]
    here = grid(size)[None]
    shared = coordinates(atlas, motion, size, nodes).shared - here
    out = []
    for k in range(len(atlas.centres)):
        places = jnp.broadcast_to(here, shared.shape)
        seen = unposed_at(atlas, motion, k, places)
        moved = seen + warp_each(shared, (seen - here) * size)
        out.append(posed_at(atlas, motion, k, moved) - places)
    return jnp.stack(out, 1)


def _support(soma: np.ndarray) -> np.ndarray:
    """1 on a soma's layer and a little around it, where its template may grow."""
    inside = soma > 0.2 * soma.max()
    away = ndimage.distance_transform_edt(~inside)
    return np.clip(1.5 - away / (MARGIN * len(soma)), 0, 1).astype(np.float32)
