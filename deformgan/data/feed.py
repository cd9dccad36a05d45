"""What the train step draws its batches from; batch n is a function of the seed and of n alone.

A set that fits stays on the devices and is sampled there. A larger one is streamed by grain, each
process reading its own share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Batch = dict[str, jax.Array]
Examples = Sequence[np.ndarray] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Feed:
    """Where the train step gets its batches.

    Attributes:
      resident: arrays that stay on every device ({} for a stream).
      draw: pure: (resident, fed, key, step, positions) -> this device's share of the batch of
        `step`; `positions` are its examples' indices in the global batch, `[b]`.
      stream: yields what is fed at every step, `{name: [b, ...]}` of this process; or None.
    """

    resident: Batch
    draw: Callable[[Batch, Batch, jax.Array, jax.Array, jax.Array], Batch]
    stream: Callable[[int], Iterator[Batch]] | None


def make_feed(
    images: Examples,
    batch_size: int,
    seed: int,
    *,
    process: int,
    processes: int,
    conditions: Examples | None = None,
) -> Feed:
    """The feed of a dataset's training images: resident if they are one array, else a stream.

    Batches hold `images` `[b, S, S, C]` and, of pairs, the `conditions` `[b, S, S, K]` that stand
    at the same places.
    """
    examples = {"images": images} | ({} if conditions is None else {"conditions": conditions})
    count = len(images)
    if conditions is not None and len(conditions) != count:
        raise ValueError(f"conditions: wanted {count}, one an image, got {len(conditions)}")
    if all(isinstance(own, np.ndarray) for own in examples.values()):

        def draw(
            resident: Batch, fed: Batch, key: jax.Array, step: jax.Array, positions: jax.Array
        ) -> Batch:
            chosen = draw_indices(key, step, positions, batch_size=batch_size, count=count)
            return {name: own[chosen] for name, own in resident.items()}

        resident = {name: jnp.asarray(own) for name, own in examples.items()}
        return Feed(resident=resident, draw=draw, stream=None)

    def stream(step: int) -> Iterator[Batch]:
        return _grain_stream(examples, batch_size, seed, step, process=process, processes=processes)

    return Feed(resident={}, draw=lambda resident, fed, key, step, positions: fed, stream=stream)


def draw_indices(
    key: jax.Array, step: jax.Array, positions: jax.Array, *, batch_size: int, count: int
) -> jax.Array:
    """Which of `count` examples stand at `positions` of the batch of `step`.

    Every epoch is a fresh permutation; a batch may span two. A set smaller than the batch is
    sampled with replacement.

    Args:
      key: of the whole run.
      step: of training, scalar.
      positions: `[b]` indices in the global batch.
      batch_size: of the global batch.
      count: examples in the set.

    Returns:
      `[b]` indices in [0, count).
    """
    if count < batch_size:
        own = jax.vmap(lambda p: jax.random.fold_in(jax.random.fold_in(key, step), p))(positions)
        return jax.vmap(lambda k: jax.random.randint(k, (), 0, count))(own)
    # In 32-bit arithmetic that cannot overflow: step = a * count + b.
    whole, rest = step // count, step % count
    epoch = whole * batch_size + (rest * batch_size) // count
    offset = (rest * batch_size) % count

    def permutation(epoch: jax.Array) -> jax.Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), count)

    order = jnp.concatenate([permutation(epoch), permutation(epoch + 1)])
    return order[offset + positions]


def _grain_stream(
    examples: Mapping[str, Examples],
    batch_size: int,
    seed: int,
    step: int,
    *,
    process: int,
    processes: int,
) -> Iterator[Batch]:
    import grain  # reads absl flags when imported

    local = batch_size // processes
    order = grain.MapDataset.range(len(examples["images"])).shuffle(seed=seed).repeat()
    read = order.map(lambda i: {name: own[i] for name, own in examples.items()})
    batches = read.batch(local, drop_remainder=True)
    mine = batches.slice(slice(process, None, processes))
    iterator = iter(mine.to_iter_dataset(grain.ReadOptions(num_threads=4, prefetch_buffer_size=16)))
    iterator.set_state({"next_index": step})
    return iterator
