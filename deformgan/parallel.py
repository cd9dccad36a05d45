"""Devices and processes: the only room that knows how many there are."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deformgan.errors import UserError

_COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_MALLOPT = {-1: 2**31 - 1, -2: 2**28, -3: 2**30}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD


def initialize() -> None:
    """Joins the other processes of this job where it runs on several hosts.

    On Cloud TPU and under Slurm jax finds them; elsewhere by the variables
    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    if jax.distributed.is_initialized():
        return
    if all(name in os.environ for name in _COORDINATOR):
        address, count, index = (os.environ[name] for name in _COORDINATOR)
        jax.distributed.initialize(address, int(count), int(index))
    elif _on_cloud_tpu() or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        jax.distributed.initialize()


def _on_cloud_tpu() -> bool:
    """Whether this is a TPU VM, where joining is right for one host as for many."""
    if os.environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return False
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def keep_compilations() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or the user's cache.

    Small ones too: an estimation compiles hundreds of them.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "deformgan" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def keep_memory() -> None:
    """Tells glibc to keep the memory of one train step for the next.

    By default it gives large blocks back to the kernel after every operation, which costs a CPU
    step a quarter of its time in page faults (`benchmarks/worm_step.py --return_memory`).
    """
    if jax.default_backend() == "cpu" and platform.libc_ver()[0] == "glibc":
        for parameter, value in _MALLOPT.items():
            ctypes.CDLL(None).mallopt(parameter, value)


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


def spread(batch: Any) -> Any:
    """Puts a batch on the local devices, cut along its first axis where that divides evenly."""
    count = jax.local_device_count()
    if batch.shape[0] % count:
        return jax.numpy.asarray(batch)
    mesh = Mesh(np.array(jax.local_devices()), ("devices",))
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("devices")))


def replicate(tree: Any) -> Any:
    """Puts arrays on every local device once, so that the mapped step need not move them."""
    mesh = Mesh(np.array(jax.local_devices()), ("devices",))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def map_devices(step: Callable[..., Any], *, axis_name: str) -> Callable[..., Any]:
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
