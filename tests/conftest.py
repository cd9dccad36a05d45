"""Strict settings for every test: two virtual devices, no silent rank promotion."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before jax is imported. NPROC: on jax 0.10 collectives of virtual devices need spare threads.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
os.environ["NPROC"] = "16"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of subprocesses too: see `optimised` below
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # workers of pytest-xdist inherit it
    # Programs are compiled once a session, in whichever process needs them first.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache = tempfile.mkdtemp(prefix="deformgan-xla-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
sys.path.insert(0, str(Path(__file__).parent.parent))  # the configs of this checkout

import jax
import pytest
from absl import flags

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()  # grain reads absl flags


@pytest.hookimpl(tryfirst=True)  # before the test's fixtures are made
def pytest_runtest_setup(item):
    """Compiles well for tests that are marked `optimised` alone."""
    plain = item.get_closest_marker("optimised") is None
    jax.config.update("jax_disable_most_optimizations", plain)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Lets go of compiled programs after each file: each takes memory maps, which are limited."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images; skips where it is absent."""
    root = Path(os.environ.get("DEFORMGAN_DATA", "../shared/data"))
    if not root.is_dir():
        pytest.skip(f"no real images at {root} (set DEFORMGAN_DATA)")
    return root.resolve()
