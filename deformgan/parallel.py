"""Devices and processes: the only room that knows how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deformgan.errors import UserError

# Set by Cloud TPU, Slurm and Open MPI where a job runs on several hosts.
_SEVERAL_HOSTS = ("TPU_WORKER_HOSTNAMES", "SLURM_STEP_NODELIST", "JAX_COORDINATOR_ADDRESS")


def initialize() -> None:
    """Joins the other processes of this job where it runs on several hosts."""
    workers = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    slurm = os.environ.get("SLURM_NTASKS", "1")
    if "," in workers or int(slurm) > 1:
        jax.distributed.initialize()
    elif "JAX_COORDINATOR_ADDRESS" in os.environ:
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )


def is_main() -> bool:
    """Whether this process writes logs and pictures."""
    return jax.process_index() == 0


def process() -> tuple[int, int]:
    """The index of this process and how many there are."""
    return jax.process_index(), jax.process_count()


def describe() -> str:
    """Devices in words."""
    devices = jax.devices()
    return f"{len(devices)} {devices[0].device_kind} ({jax.default_backend()})"


def check_batch(batch_size: int) -> None:
    """Raises `UserError` unless the global batch divides among all devices."""
    if batch_size < 1 or batch_size % jax.device_count():
        raise UserError(
            f"train.batch_size: {batch_size} does not divide among {jax.device_count()} devices;"
            f" give a multiple of {jax.device_count()}"
        )


def positions(batch_size: int) -> np.ndarray:
    """Indices in the global batch of the examples of each local device, `[devices, b]`."""
    share = batch_size // jax.device_count()
    first = jax.process_index() * jax.local_device_count() * share
    count = jax.local_device_count() * share
    return np.arange(first, first + count, dtype=np.int32).reshape(-1, share)


def shard(batch: Any, *, axis: int) -> Any:
    """Cuts `axis` of every array among the local devices, as a new leading axis."""
    count = jax.local_device_count()

    def cut(x: np.ndarray) -> np.ndarray:
        share = x.shape[axis] // count
        return np.moveaxis(x.reshape(*x.shape[:axis], count, share, *x.shape[axis + 1 :]), axis, 0)

    return jax.tree.map(cut, batch)


def replicate(tree: Any) -> Any:
    """Puts arrays on every local device once, so that the mapped step need not move them."""
    mesh = Mesh(np.array(jax.local_devices()), ("devices",))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def pmap(step: Callable[..., Any], *, axis_name: str) -> Callable[..., Any]:
    """Maps a train step over the devices.

    `step(state, constants, resident, fed, positions)`: the last two have a leading axis of local
    devices; the others, and everything that is returned, are the same on every device. The state
    is donated.
    """
    mapped = jax.pmap(
        step,
        axis_name=axis_name,
        in_axes=(None, None, None, 0, 0),
        out_axes=None,
        donate_argnums=0,
    )
    # On jax 0.10 collectives of virtual CPU devices that overlap can deadlock: wait for each step.
    if jax.default_backend() != "cpu" or jax.local_device_count() == 1:
        return mapped
    return lambda *args: jax.block_until_ready(mapped(*args))
