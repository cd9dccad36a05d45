"""Labels on an atlas: carried from one annotated image to template space, and on to any other.

Every map of the atlas has an inverse, by which points are moved; nothing is lost but what leaves
the frame.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deformgan import fields, splines
from deformgan.data.frames import Labels
from deformgan.errors import UserError
from deformgan.imaging.atlas import (
    Atlas,
    Coordinates,
    Motion,
    coordinates,
    grid,
    layers,
    own_velocity,
    shared_velocity,
    unposed_at,
)
from deformgan.warp import warp, warp_each

_CORRECTIONS = 2  # of what is not undone by the fields back
_FINER = 4  # times as many nodes: between them fields are read linearly
NO_POINT = -1  # identity of the placeholder of a source without points (orbax saves no empty array)


class Annotation(NamedTuple):
    """Labels in template space; a pytree of arrays.

    Attributes:
      masks: `[K + 1, S, S]` int32 instance labels on each layer, 0 where there are none.
      points: `[P, 2]` (row, column) in shares of the side; NaN for those that it has not.
      layer: `[P]` int32, the layer each point moves with; K is the rest.
      ids: `[P]` int32.
    """

    masks: jax.Array
    points: jax.Array
    layer: jax.Array
    ids: jax.Array


class Inverse(NamedTuple):
    """What undoes the shared field and the rest's own; displacements in shares of the side.

    Fields on nodes are smoothed between them, forth and back, so that neither undoes the other by
    some tenths of a pixel: what is left is found from the way forth.

    Attributes:
      shared: `[B, M, M, 2]` back by the shared field.
      own: `[B, M, M, 2]` back by the rest's own.
      forth: `[B, S, S, 2]` from pixels by the shared field.
      rest: `[B, S, S, 2]` from pixels by both.
    """

    shared: jax.Array
    own: jax.Array
    forth: jax.Array
    rest: jax.Array


def inverse(atlas: Atlas, motion: Motion, nodes: int) -> Inverse:
    """The inverse fields of each image, on a grid finer than the `nodes` they are integrated on."""
    velocities = [shared_velocity(motion, nodes), own_velocity(atlas, motion, nodes)]
    back = fields.exponential(-jnp.concatenate(velocities)) / nodes
    shared, own = splines.expand(splines.smoothing_matrix(_FINER * nodes, nodes), back).reshape(
        2, len(motion.pose), _FINER * nodes, _FINER * nodes, 2
    )
    size = atlas.rest.shape[0]
    where, here = coordinates(atlas, motion, size, nodes), grid(size)[None]
    return Inverse(shared, own, where.shared - here, where.rest - here)


def unmoved(
    atlas: Atlas, motion: Motion, back: Inverse, layer: int, places: jax.Array
) -> jax.Array:
    """Where places of the template are seen in each image: undoes `coordinates`.

    Args:
      atlas: of S x S pixels.
      motion: of B images.
      back: as `inverse` gives it.
      layer: of the places; K is the rest.
      places: `[B, N, 2]` in shares of the side.

    Returns:
      `[B, N, 2]` in shares of the side.
    """
    soma = layer < len(atlas.centres)
    forth = back.forth if soma else back.rest
    if soma:
        places = unposed_at(atlas, motion, layer, places)

    def undone(at: jax.Array) -> jax.Array:
        at = at if soma else at + read(back.own, at)
        return at + read(back.shared, at)

    aim = places
    for _ in range(_CORRECTIONS):
        seen = undone(aim)
        aim = aim + places - (seen + read(forth, seen))
    return undone(aim)


def read(values: jax.Array, places: jax.Array) -> jax.Array:
    """Reads `values` `[B, M, M, 2]` at places `[B, N, 2]` in shares of the side, linearly."""
    own = jnp.stack([jnp.arange(places.shape[1]), jnp.zeros(places.shape[1], int)], -1)
    displacement = (places * values.shape[1] - 0.5)[:, :, None] - own[None, :, None]
    return warp_each(values, displacement)[:, :, 0]  # pixel (n, 0) for place n


def outlines(labels: Labels | None, chosen: tuple[int, ...]) -> np.ndarray:
    """`[K, S, S]` bool of the chosen labels of an image.

    Raises:
      UserError: for labels that it has not.
    """
    mask = None if labels is None else labels.mask
    known = [] if mask is None else np.unique(mask[mask > 0]).tolist()
    missing = [label for label in chosen if label not in known]
    if missing or mask is None:
        has = f"has the labels {known}" if known else "has no masks: give some with source.mask"
        raise UserError(f"fit.layers: {missing} are no labels of the source image, which {has}")
    return np.stack([mask == label for label in chosen])


def annotate(labels: Labels | None, atlas: Atlas, motion: Motion, nodes: int) -> Annotation:
    """Carries the labels of one image to the template.

    Each instance, and each point, moves with the layer that is the brightest where it lies.

    Args:
      labels: of the image; None for no labels at all.
      atlas: of the image's resolution.
      motion: of this one image.
      nodes: of the integration grid.
    """
    size, count = atlas.rest.shape[0], len(atlas.centres)
    where = coordinates(atlas, motion, size, nodes)
    lit = np.array(layers(atlas, motion, where)[0])  # [K + 1, S, S]
    lit[count] += 1e-6  # what no layer shows belongs to the rest
    owner = np.argmax(lit, 0)
    back = inverse(atlas, motion, nodes)
    masks = np.zeros((count + 1, size, size), np.int32)
    points, ids = np.full((1, 2), np.nan, np.float32), np.array([NO_POINT])
    layer = np.full(1, count)
    if labels is not None and labels.mask is not None:
        for layer_number in range(count + 1):
            own = _of_layer(labels.mask, owner, layer_number)
            places = grid(size).reshape(1, -1, 2)
            seen = unmoved(atlas, motion, back, layer_number, places).reshape(1, size, size, 2)
            displacement = (seen - grid(size)[None]) * size
            masks[layer_number] = warp(
                jnp.asarray(own)[..., None], displacement, border="constant", fill=0, order=0
            )[0, ..., 0]
    if labels is not None and len(labels.points):
        ids = labels.ids
        inside = np.clip(np.round(labels.points), 0, size - 1).astype(int)
        layer = owner[inside[:, 0], inside[:, 1]]
        chosen = [*where.somata, where.rest]
        shares = jnp.asarray((labels.points + 0.5) / size, jnp.float32)[None]
        found = [read(own, shares)[0] for own in chosen]
        points = np.stack([np.asarray(found[k])[p] for p, k in enumerate(layer)])
    return Annotation(
        jnp.asarray(masks),
        jnp.asarray(points, jnp.float32),
        jnp.asarray(layer, jnp.int32),
        jnp.asarray(ids, jnp.int32),
    )


def laid_out(annotation: Annotation, ids: np.ndarray) -> Annotation:
    """The annotation with points of the identities `ids` `[P]`; NaN where it has no such point."""
    has = np.asarray(annotation.ids)
    found = has[None] == ids[:, None]  # [P, own points]
    which, there = found.argmax(1), found.any(1)
    points = np.where(there[:, None], np.asarray(annotation.points)[which], np.nan)
    return annotation._replace(
        points=jnp.asarray(points, jnp.float32),
        layer=jnp.asarray(np.asarray(annotation.layer)[which], jnp.int32),
        ids=jnp.asarray(ids, jnp.int32),
    )


def _of_layer(mask: np.ndarray, owner: np.ndarray, layer: int) -> np.ndarray:
    """The instances of `mask` most of whose pixels belong to this layer."""
    out = np.zeros_like(mask, dtype=np.int32)
    for label in np.unique(mask[mask > 0]):
        inside = mask == label
        if np.bincount(owner[inside]).argmax() == layer:
            out[inside] = label
    return out


def moved_masks(annotation: Annotation, where: Coordinates) -> jax.Array:
    """Instance labels `[B, S, S, 1]` int32 of images: somata over the rest, the brightest first."""
    size = where.rest.shape[1]
    out = jnp.zeros((*where.rest.shape[:3], 1), jnp.int32)
    chosen = [*where.somata, where.rest]
    for layer in reversed(range(len(chosen))):
        mask, places = annotation.masks[layer], chosen[layer]
        displacement = (places - grid(size)[None]) * size
        own = warp(mask[..., None], displacement, border="constant", fill=0, order=0)
        out = jnp.where(own > 0, own, out)
    return out


def moved_points(
    annotation: Annotation, atlas: Atlas, motion: Motion, nodes: int
) -> tuple[jax.Array, jax.Array]:
    """Points in images: `[B, P, 2]` (row, column) in pixels, NaN outside, and their status.

    The status `[B, P]` is an index into `fields.POINT_STATUS`; nothing folds. A point whose place
    on the template is NaN is absent.
    """
    batch, size = len(motion.shared), atlas.rest.shape[0]
    places = jnp.broadcast_to(annotation.points[None], (batch, *annotation.points.shape))
    found, back = jnp.full_like(places, jnp.nan), inverse(atlas, motion, nodes)
    for layer in range(len(atlas.centres) + 1):
        own = unmoved(atlas, motion, back, layer, jnp.nan_to_num(places)) * size - 0.5
        found = jnp.where((annotation.layer == layer)[None, :, None], own, found)
    found = jnp.where(jnp.isfinite(places), found, jnp.nan)
    inside = jnp.all((found >= 0) & (found <= size - 1), -1)
    outside, absent = map(fields.POINT_STATUS.index, ("outside", "absent"))
    lost = jnp.where(jnp.isfinite(places).all(-1), outside, absent)
    status = jnp.where(inside, 0, lost).astype(jnp.int32)
    return jnp.where(inside[..., None], found, jnp.nan), status
