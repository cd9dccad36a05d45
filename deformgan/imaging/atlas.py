"""A deformable atlas: layers of one template, moved by diffeomorphisms and lit, before the camera.

An image without noise is background + blur(max over layers of gain * template(coordinates)), or
their sum, where modes (`appearance.py`) vary the template; in a colour video a share of it has half
the resolution (`subsampling.py`). Its coordinates follow a backward warp, from the image to the
template: first one field shared by all layers, then a pose for each bright soma, and for all the
rest a field of its own that carries the soma's shift where it is anchored to one and vanishes there
otherwise. Every step has an inverse, by which labels move. Lengths are shares of the image's side,
so that one motion serves every resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import fields, splines
from deformgan.imaging import subsampling
from deformgan.warp import warp, warp_each

POSE = ("row", "column", "angle", "log_along", "log_across")
_STEEPEST = 2.0  # slope a velocity is held to: it stretches a cell by e^2 at most; 3 may fold
_LOG_GAIN = 2.0  # limit of a log gain


class Atlas(NamedTuple):
    """What all images share; a pytree of arrays.

    Attributes:
      somata: `[K, S, S]` signal of each bright soma, unit intensity above background, 0 or more.
      rest: `[S, S]` the same of all else: dim somata and neurites.
      centres: `[K, 2]` (row, column) of the somata, in shares of the side.
      axes: `[K]` angle of each soma's long axis, radians from the row axis to the column axis.
      radii: `[K]` of the neighbourhood in which the rest is anchored to each soma, in shares.
      background: unit intensity where there is no signal.
      blur: standard deviation of the point spread, in shares of the side.
      additive: 1 where overlapping layers add up, 0 where the brightest alone is seen.
      cells: of pixels that share a part of their value, as `subsampling.Cells`.
      modes: `[Q, K + 1, S, S]` ways in which the layers' signal varies from image to image, the
        rest last; `[1]` for none.
    """

    somata: jax.Array
    rest: jax.Array
    centres: jax.Array
    axes: jax.Array
    radii: jax.Array
    background: jax.Array
    blur: jax.Array
    additive: jax.Array
    cells: jax.Array
    modes: jax.Array

    @property
    def mode_count(self) -> int:
        """Q."""
        return 0 if self.modes.ndim == 1 else len(self.modes)


class Motion(NamedTuple):
    """How each of B images differs from the atlas; zeros are the atlas itself.

    Attributes:
      shared: `[B, P, P, 2]` B-spline coefficients of the velocity shared by all layers, in shares.
      own: `[B, Q, Q, 2]` of the rest's own velocity.
      pose: `[B, K, 5]` of each bright soma, as `POSE`: shift, turn, stretch along its axes.
      soma_gain: `[B, K]` log brightness of the somata.
      gain: `[B, G, G]` B-spline coefficients of the log brightness of the rest, on its template.
      appearance: `[B, Q]` amounts of the atlas's modes, in their standard deviations.
    """

    shared: jax.Array
    own: jax.Array
    pose: jax.Array
    soma_gain: jax.Array
    gain: jax.Array
    appearance: jax.Array


class Fitted(NamedTuple):
    """An atlas and the motion that carries it to each image."""

    atlas: Atlas
    motion: Motion


class Shape(NamedTuple):
    """Sizes of a motion: control points along each axis, and the grid velocities run on."""

    shared: int
    own: int
    gain: int
    grid: int


def still(shape: Shape, somata: int, batch: int, modes: int = 0) -> Motion:
    """No motion at all, for `batch` images of an atlas with so many bright somata and modes."""
    return Motion(
        jnp.zeros((batch, shape.shared, shape.shared, 2)),
        jnp.zeros((batch, shape.own, shape.own, 2)),
        jnp.zeros((batch, somata, len(POSE))),
        jnp.zeros((batch, somata)),
        jnp.zeros((batch, shape.gain, shape.gain)),
        jnp.zeros((batch, modes)),
    )


class Coordinates(NamedTuple):
    """Where each pixel of B images is found in the template, in shares of the side.

    Attributes:
      shared: `[B, S, S, 2]` after the shared field alone.
      somata: K of `[B, S, S, 2]`.
      rest: `[B, S, S, 2]`.
    """

    shared: jax.Array
    somata: list[jax.Array]
    rest: jax.Array


def grid(size: int) -> jax.Array:
    """Pixel centres `[size, size, 2]` (row, column) in shares of the side."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return jnp.asarray(np.stack(np.meshgrid(centres, centres, indexing="ij"), -1))


def shared_velocity(motion: Motion, nodes: int) -> jax.Array:
    """The shared velocity `[B, N, N, 2]` on the integration grid, in its cells."""
    control = motion.shared.shape[1]
    velocity = nodes * splines.expand(splines.bspline_matrix(nodes, control), motion.shared)
    return _limited(velocity)


def own_velocity(atlas: Atlas, motion: Motion, nodes: int) -> jax.Array:
    """The rest's own velocity `[B, N, N, 2]`: free away from the somata, their shift upon them."""
    control = motion.own.shape[1]
    velocity = splines.expand(splines.bspline_matrix(nodes, control), motion.own)
    away = grid(nodes)[None] - atlas.centres[:, None, None]  # [K, N, N, 2]
    near = jnp.sum(jnp.square(away), -1) / (2 * jnp.square(atlas.radii)[:, None, None])
    near = jnp.exp(-near)  # [K, N, N]
    free = jnp.prod(1 - near, axis=0)[None, ..., None]
    carried = jnp.einsum("knm,bkc->bnmc", near, motion.pose[..., :2])
    return _limited(nodes * (free * velocity - carried))


def _limited(velocity: jax.Array) -> jax.Array:
    """Velocities scaled so that no slope exceeds `_STEEPEST`: beyond it the integral may fold."""
    slopes = [jnp.max(jnp.sum(jnp.abs(jnp.diff(velocity, axis=a)), -1), (1, 2)) for a in (1, 2)]
    steepest = jnp.maximum(*slopes)
    return velocity * (_STEEPEST / jnp.maximum(steepest, _STEEPEST))[:, None, None, None]


def coordinates(atlas: Atlas, motion: Motion, size: int, nodes: int) -> Coordinates:
    """Template coordinates of the pixels of images with `size` pixels along each side."""
    velocities = [shared_velocity(motion, nodes), own_velocity(atlas, motion, nodes)]
    forth, own = jnp.split(fields.exponential(jnp.concatenate(velocities)), 2)  # cells
    both = jnp.concatenate([forth, forth + warp_each(own, forth)], -1) / nodes
    both = splines.expand(splines.smoothing_matrix(size, nodes), both)
    shared, rest = grid(size)[None] + both[..., :2], grid(size)[None] + both[..., 2:]
    posed = [posed_at(atlas, motion, k, shared) for k in range(len(atlas.centres))]
    return Coordinates(shared, posed, rest)


def posed_at(atlas: Atlas, motion: Motion, soma: int, places: jax.Array) -> jax.Array:
    """Where a soma's template is read for `places` `[B, ..., 2]` that the shared field led to."""
    shift, matrix = _pose(atlas, motion, soma)
    centre = atlas.centres[soma]
    away = places - (centre[None] + shift).reshape(len(shift), *[1] * (places.ndim - 2), 2)
    lead = [None] * (places.ndim - 1)
    return jnp.einsum("b...c,bdc->b...d", away, matrix) + centre[*lead]


def unposed_at(atlas: Atlas, motion: Motion, soma: int, places: jax.Array) -> jax.Array:
    """The inverse of `posed_at`."""
    shift, matrix = _pose(atlas, motion, soma)
    centre = atlas.centres[soma]
    lead = [None] * (places.ndim - 1)
    away = jnp.einsum("b...c,bdc->b...d", places - centre[*lead], jnp.linalg.inv(matrix))
    return away + (centre[None] + shift).reshape(len(shift), *[1] * (places.ndim - 2), 2)


def _pose(atlas: Atlas, motion: Motion, soma: int) -> tuple[jax.Array, jax.Array]:
    """The shift `[B, 2]` and the matrix `[B, 2, 2]` of the backward map of a soma."""
    pose = motion.pose[:, soma]
    cosine, sine = jnp.cos(atlas.axes[soma]), jnp.sin(atlas.axes[soma])
    frame = jnp.array([[cosine, sine], [-sine, cosine]])  # onto the soma's own axes
    shrink = jnp.exp(-pose[:, 3:5])[:, :, None] * jnp.eye(2)[None]
    turn_c, turn_s = jnp.cos(pose[:, 2]), jnp.sin(pose[:, 2])
    turn = jnp.stack([jnp.stack([turn_c, turn_s], -1), jnp.stack([-turn_s, turn_c], -1)], -2)
    return pose[:, :2], jnp.einsum("ji,bjk,kl,blm->bim", frame, shrink, frame, turn)


def displacements(where: Coordinates) -> list[jax.Array]:
    """What each layer's template is warped by, K + 1 of `[B, S, S, 2]` in pixels."""
    size = where.rest.shape[1]
    return [(places - grid(size)[None]) * size for places in (*where.somata, where.rest)]


def layers(atlas: Atlas, motion: Motion, where: Coordinates) -> jax.Array:
    """Signal of each layer in each image, `[B, K + 1, S, S]`; the rest is the last."""
    templates, shown = jnp.concatenate([atlas.somata, atlas.rest[None]]), displacements(where)
    if atlas.mode_count:
        varied = templates[None] + jnp.tensordot(motion.appearance, atlas.modes, 1)
        framed = jnp.pad(varied, [(0, 0), (0, 0), (1, 1), (1, 1)])  # further out is 0 as well
        read = [warp_each(framed[:, k, ..., None], u + 1)[..., 0] for k, u in enumerate(shown)]
    else:
        read = [
            warp(template[..., None], u, border="constant")[..., 0]
            for template, u in zip(templates, shown, strict=True)
        ]
    return jnp.stack(read, 1) * gains(motion, where)


def gains(motion: Motion, where: Coordinates) -> jax.Array:
    """Brightness of each layer in each image, `[B, K + 1, S, S]`; 1 as in the template.

    That of the rest is a map on the template, moved with it: brightness is of structures, and of
    places where there is none no image tells anything.
    """
    size = where.rest.shape[1]
    matrix = splines.bspline_matrix(size, motion.gain.shape[1])
    of_template = splines.expand(matrix, motion.gain[..., None])
    rest = jnp.moveaxis(warp_each(of_template, displacements(where)[-1]), -1, 1)
    shape = (*motion.soma_gain.shape, size, size)
    somata = jnp.broadcast_to(motion.soma_gain[..., None, None], shape)
    log_gain = jnp.concatenate([somata, rest], 1)
    return jnp.exp(jnp.clip(log_gain, -_LOG_GAIN, _LOG_GAIN))


def composed(atlas: Atlas, lit: jax.Array) -> jax.Array:
    """Noiseless images `[B, S, S]` in unit intensity of their `layers` `[B, K + 1, S, S]`."""
    signal = jnp.where(atlas.additive > 0, jnp.sum(lit, axis=1), jnp.max(lit, axis=1))
    spread = point_spread(signal[..., None], atlas.blur * lit.shape[-1])[..., 0]
    return atlas.background + subsampling.stored(spread, atlas.cells)


def render(atlas: Atlas, motion: Motion, nodes: int) -> jax.Array:
    """Noiseless images `[B, S, S]` in unit intensity, at the resolution of the atlas."""
    where = coordinates(atlas, motion, atlas.rest.shape[0], nodes)
    return composed(atlas, layers(atlas, motion, where))


def point_spread(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gaussian blur of `[B, S, S, C]` by a traced sigma in pixels, borders as bright as inside.

    As products with a band matrix, which on CPU are faster than a sum over shifts.
    """
    place = np.arange(images.shape[1], dtype=np.float32)
    apart = jnp.square(place[:, None] - place[None])
    weights = jnp.exp(-apart / (2 * jnp.square(jnp.maximum(sigma, 0.05))))
    inside = weights / jnp.sum(weights, 1, keepdims=True)
    return splines.expand(inside, images)
