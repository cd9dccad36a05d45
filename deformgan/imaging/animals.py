"""Several animals in one generator: a model of each, of which the key of an example draws one.

What belongs to one animal (a model, the parameters that refine it) is a nested dict; those of
several lie in one dict, by number. One animal stands there alone, as if there could be no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from deformgan.imaging import annotation as labelling
from deformgan.imaging import estimation
from deformgan.imaging.estimation import Model

_ALL = "animals"  # where several lie
_DRAW = 2  # folded into a key; 0 and 1 would be the halves that it is split in
_Tree = TypeVar("_Tree")


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The parts of all animals as one nested dict, as a checkpoint holds it."""
    if len(parts) == 1:
        return parts[0]
    return {_ALL: {f"{number:03d}": part for number, part in enumerate(parts)}}


def apart(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The inverse of `joined`; other entries are left alone."""
    several = tree.get(_ALL)
    return [several[number] for number in sorted(several)] if several else [tree]


def packed(models: Sequence[Model], counts: Sequence[int]) -> dict[str, Any]:
    """The constants of a generator of all animals.

    Points of several are laid out alike; `mask` holds the masks of all, one after the other.

    Args:
      models: of each animal.
      counts: training images of each, in whose shares they are drawn.
    """
    if len(models) == 1:
        labels = models[0].annotation
        return estimation.packed(models[0]) | {"ids": labels.ids, "mask": labels.masks}
    ids = union([np.asarray(model.annotation.ids) for model in models])
    alike = [m._replace(annotation=labelling.laid_out(m.annotation, ids)) for m in models]
    return joined([estimation.packed(model) for model in alike]) | {
        "share": jnp.asarray(np.array(counts) / np.sum(counts), jnp.float32),
        "ids": jnp.asarray(ids, jnp.int32),
        "mask": jnp.concatenate([model.annotation.masks for model in models]),
    }


def union(of_each: Sequence[np.ndarray]) -> np.ndarray:
    """The identities `[P]` of the points of any animal; a placeholder if none has points."""
    known = np.unique(np.concatenate(of_each))
    return known[known != labelling.NO_POINT] if (known != labelling.NO_POINT).any() else known


def models(constants: dict[str, Any]) -> list[Model]:
    """The model of each animal."""
    return [estimation.unpacked(own) for own in apart(constants)]


def drawn(constants: dict[str, Any], keys: jax.Array) -> jax.Array:
    """Which of several animals each of the keys `[b]` is of: `[b]` int32, in their shares."""
    share = jnp.log(constants["share"])
    own = jax.vmap(lambda key: jax.random.fold_in(key, _DRAW))(keys)
    return jax.vmap(lambda key: jax.random.categorical(key, share))(own).astype(jnp.int32)


def of_its_own(constants: dict[str, Any], keys: jax.Array, parts: Sequence[_Tree]) -> _Tree:
    """Of each example what belongs to its animal.

    Args:
      constants: as `packed` gives them.
      keys: `[b]`.
      parts: of each animal the same tree of arrays `[b, ...]`.
    """
    if len(parts) == 1:
        return parts[0]
    which = drawn(constants, keys)

    def chosen(*leaves: jax.Array) -> jax.Array:
        out = leaves[0]
        for number, leaf in enumerate(leaves[1:], start=1):
            own = (which == number).reshape(-1, *[1] * (leaf.ndim - 1))
            out = jnp.where(own, leaf, out)
        return out

    selected: _Tree = jax.tree.map(chosen, *parts)
    return selected
