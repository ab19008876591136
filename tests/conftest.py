"""Settings of every test: 8 fake CPU devices, strict shapes. Set before jax is imported
anywhere.
"""

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault(
    "JAX_PLATFORMS", "cpu"
)  # `make test` sets it; JAX_PLATFORMS=cuda pytest -m gpu runs the others
# What a test compiles, it compiles: nothing is left in a home, nothing is found there.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
# Nor does a test read which lines of Python a program comes from: a twentieth of compiling it.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Torch's threads wait for each other in a loop. Beside other tests each waits for one that is not
# running: training the small network of the regret took 40 s with two threads, 3 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests compile much and compute little: without XLA's optimisations, its loop fusions written in
# MLIR and code generation in several parts, the suite takes a third of the time. The arithmetic is
# the same (float32, IEEE), the order of some sums is not: compiled in several parts, the same sum
# can round differently in two programs.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)

import jax
import pytest
from jax._src.interpreters import mlir

jax.config.update("jax_numpy_rank_promotion", "raise")
# Importing the tests makes no garbage: to look for it takes 3 of its 20 seconds.
gc.disable()
# jax makes a context with all its dialects for each program: a third of what a small one takes.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """What is imported by now stays to the end. Without it, every full garbage collection walks
    through the modules of jax, torch and transformers, a second at a time.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _own_context() -> Iterator[None]:
    """A context keeps the constants of all its programs."""
    yield
    mlir.make_ir_context.cache_clear()


@pytest.fixture
def bridge_root() -> Path:
    """The folder that holds the real Bridge V2 sample."""
    if not (SHARED / "rlds" / "bridge_dataset").is_dir():
        pytest.skip(f"the real Bridge sample is not at {SHARED / 'rlds'}")
    return SHARED / "rlds"
