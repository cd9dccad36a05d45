"""A trained generator of pairs over a whole image: overlapping tiles, predicted and blended.

Tiles are predicted row by row and blended smoothly (deformgan/mosaic.py), as axes where they show
fibre orientations (deformgan/blending.py). Memory is bounded by the width of the image: finished
rows go to disk. Several passes differ by the generator's dropout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from deformgan import blending, parallel
from deformgan.blending import Blend
from deformgan.checkpoint import Sampler
from deformgan.data.raster_writers import Rows
from deformgan.data.scaling import Scaling
from deformgan.data.whole import Whole
from deformgan.errors import UserError, resolve
from deformgan.log import Advance, progress
from deformgan.models import unet
from deformgan.mosaic import Cover, Mosaic, Seams, cover
from deformgan.objectives.contract import Constants, Objective
from deformgan.state import Variables
from deformgan.step import Purpose, example_keys

_AT_ONCE = 2**18  # pixels predicted in one call, of all passes

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Translator:
    """A trained generator, and how its tiles are made into an image.

    Attributes:
      predict: (conditions `[b, S, S, K]` in [-1, 1], numbers of the tiles `[b]`) -> what `blend`
        merges of all passes, `[b, S, S, A]`.
      blend: of tiles and passes.
      size: S of a tile.
      passes: of the generator over each tile.
      inward: how inputs are scaled.
      outward: how images are.
    """

    predict: Predict
    blend: Blend
    size: int
    passes: int
    inward: Scaling
    outward: Scaling


@dataclasses.dataclass(frozen=True)
class Translation:
    """An image as translated: its rows, the spread of several passes, and how visible seams are."""

    image: Rows
    spread: Rows | None
    seam_ratio: float | None


def translator_of(
    config: ml_collections.ConfigDict, sampler: Sampler, *, passes: int, seed: int
) -> Translator:
    """The generator of a checkpoint; dropout is on if there are several passes."""
    own = config.copy_and_resolve_references()
    if passes > 1:
        if not own.model.dropout or unet.depth_for(own.data.size, own.model.depth) == 1:
            raise UserError(
                f"passes: {passes} would be alike: the run's generator has no dropout; give 1"
            )
        own.model.test_dropout = True
    objective = resolve("objective", "deformgan.objectives", own.objective, "create").create(own)
    outward = Scaling.from_json(sampler.meta["scaling"])
    low, high = outward.stored_limits()
    if own.augment.oriented and own.data.channels == 3:
        blend = blending.oriented(own.model.space)
    else:
        blend = blending.plain(own.data.channels, (high - low) / 2)
    return Translator(
        predictor(objective, sampler.variables, sampler.constants, blend, passes=passes, seed=seed),
        blend,
        own.data.size,
        passes,
        Scaling.from_json(sampler.meta["input_scaling"]),
        outward,
    )


def predictor(
    objective: Objective,
    variables: Variables,
    constants: Constants,
    blend: Blend,
    *,
    passes: int,
    seed: int,
) -> Predict:
    """What predicts tiles; draws depend on a tile's number and the pass alone, not on its batch."""
    held = {"variables": variables, "constants": dict(constants)}
    held = parallel.replicate(held)

    @jax.jit
    def one(held: Any, conditions: jax.Array, tiles: jax.Array, number: jax.Array) -> jax.Array:
        keys = example_keys(jax.random.key(seed), number, Purpose.SAMPLE, tiles)
        samples = objective.sample(held["variables"], held["constants"], keys, conditions)
        return samples.fields.get("orientation", samples.images)

    merge = jax.jit(lambda *values: blend.merge(jnp.stack(values)))

    def predict(conditions: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        shared = parallel.spread(conditions), parallel.spread(tiles)
        merged: np.ndarray = jax.device_get(
            merge(*(one(held, *shared, jnp.int32(number)) for number in range(passes)))
        )
        return merged

    return predict


def translated(
    whole: Whole, translator: Translator, *, overlap: float, folder: Path, quiet: bool = False
) -> Translation:
    """Translates an image row of tiles by row of tiles; the result is kept in `folder`, unnamed."""
    height, width, _ = whole.shape
    rows, columns = (cover(n, translator.size, overlap) for n in (height, width))
    seams, outward = Seams(rows, columns), translator.outward
    render, spread_of = jax.jit(translator.blend.image), jax.jit(translator.blend.spread)
    channels = jax.eval_shape(render, jnp.zeros((1, 1, translator.blend.channels))).shape[-1]
    tiles = len(rows.starts) * len(columns.starts)
    try:
        image = Rows(folder, (height, width, channels), np.dtype(outward.depth.dtype))
        spread = None
        if translator.passes > 1:
            spread = Rows(folder, (height, width, 1), np.dtype(np.float32))
        with progress(f"{tiles} tiles", total=tiles, quiet=quiet) as advance:
            for merged in _bands(whole, translator, rows, columns, advance):
                stored = outward.outward(jax.device_get(render(merged)))
                image.append(stored)
                seams.add(stored)
                if spread is not None:
                    spread.append(jax.device_get(spread_of(merged))[..., None])
    except OSError as error:
        raise unwritable(folder, error) from error
    return Translation(image, spread, seams.ratio())


def _bands(
    whole: Whole, translator: Translator, rows: Cover, columns: Cover, advance: Advance
) -> Iterator[np.ndarray]:
    """Blended predictions `[h, W, A]`, from the top."""
    count, size = len(columns.starts), translator.size
    most = max(_AT_ONCE // (size**2 * translator.passes), 1)
    batch = -(-count // -(-count // most))  # no larger than needed: the last is filled up
    mosaic = Mosaic(rows, columns, translator.blend.channels)
    across = np.stack([columns.indices(column) for column in range(count)])  # [n, S]
    for row in range(len(rows.starts)):
        wanted = rows.indices(row)
        first = int(wanted.min())
        strip = translator.inward.inward(whole.rows(first, int(wanted.max()) + 1))[wanted - first]
        for start in range(0, count, batch):
            chosen = np.minimum(np.arange(start, start + batch), count - 1)
            conditions = strip[:, across[chosen]].swapaxes(0, 1)  # [b, S, S, K]
            merged = translator.predict(
                np.ascontiguousarray(conditions), (row * count + chosen).astype(np.int32)
            )
            here = min(batch, count - start)
            for column, tile in zip(chosen[:here], merged, strict=False):
                mosaic.add(int(column), tile)
            advance(here)
        done = mosaic.finish()
        if len(done):  # none where all that a row of tiles shows will be in the next ones too
            yield done


def unwritable(folder: Path, error: OSError) -> UserError:
    """What tells the user that `folder` cannot be written to."""
    return UserError(
        f"out: cannot write to {folder} ({error.strerror or error}); free some space or choose"
        " another --out"
    )
