"""Compiled programs on disk: found again, and never read when they are not what was written."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from vla_jax.training import compile_cache

# Prints the line of `enable`, how many programs were read, and what a program computes.
PROGRAM = """
import jax, jax.numpy as jnp
from vla_jax.training import compile_cache
print(compile_cache.enable())
with compile_cache.hits() as found:
    step = jax.jit(lambda x: jnp.sin(x) @ x).lower(jax.ShapeDtypeStruct((3, 3), jnp.float32))
    compiled = step.compile()
print(len(found))
import numpy as np
print(np.asarray(compiled(jax.device_put(np.arange(9, dtype=np.float32).reshape(3, 3)))).tolist())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With two programs, sealed."""
    for name in ("a", "b"):
        (tmp_path / f"{name}-cache").write_bytes(name.encode() * 1000)
    compile_cache._seal(str(tmp_path))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


WHOLE = ["a-cache", "a-cache.sha256", "b-cache", "b-cache.sha256"]


def test_whole_programs_stay(folder: Path) -> None:
    assert compile_cache.remove_damaged(str(folder)) == 0
    assert names(folder) == WHOLE


@pytest.mark.parametrize("damage", ["cut short", "one bit", "sum cut short", "no sum", "empty"])
def test_what_is_not_as_it_was_written_goes(folder: Path, damage: str) -> None:
    program, checksum = folder / "a-cache", folder / "a-cache.sha256"
    whole = program.read_bytes()
    if damage == "cut short":
        program.write_bytes(whole[:-1])
    elif damage == "one bit":
        program.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    elif damage == "sum cut short":
        checksum.write_text(checksum.read_text()[:10])
    elif damage == "no sum":  # killed between the two
        checksum.unlink()
    else:
        program.write_bytes(b"")
    assert compile_cache.remove_damaged(str(folder)) == 1
    assert names(folder) == WHOLE[2:]
    program.write_bytes(whole + b"0")  # compiled again: not the same bytes, its time is in them
    compile_cache._seal(str(folder))
    assert compile_cache.remove_damaged(str(folder)) == 0


def test_the_sum_of_a_program_that_jax_dropped_goes(folder: Path) -> None:
    (folder / "a-cache").unlink()
    assert compile_cache.remove_damaged(str(folder)) == 0
    assert names(folder) == WHOLE[2:]


def test_a_program_that_goes_while_it_is_sealed_is_no_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process's check may remove it, as it has no checksum yet."""
    (folder / "c-cache").write_bytes(b"c")
    there = compile_cache._names(*fsspec.url_to_fs(str(folder)))
    monkeypatch.setattr(compile_cache, "_names", lambda files, root: there)
    (folder / "c-cache").unlink()
    compile_cache._seal(str(folder))
    assert names(folder) == WHOLE


def compute(cache: Path, **environment: str) -> list[str]:
    env = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        **environment,
    }
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_second_process_reads_and_a_damaged_program_is_compiled_again(tmp_path: Path) -> None:
    said, read, result = compute(tmp_path)
    (folder,) = tmp_path.iterdir()
    assert said == f"compiled programs are kept in {folder}"
    assert read == "0"
    assert compute(tmp_path) == [said, "1", result]

    program = next(folder.glob("jit__lambda*-cache"))
    whole = program.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"garbled" + whole[107:]):
        program.write_bytes(damaged)
        lines = compute(tmp_path)
        assert lines[0].startswith(f"{said}; 1 that were damaged")
        assert lines[1:] == ["0", result]
        assert compute(tmp_path) == [said, "1", result]


@pytest.mark.slow
def test_where_none_can_be_kept_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said, read, _ = compute(tmp_path / "file")
    assert said.startswith("compiled programs are not kept: ")
    assert read == "0"
    said, *_ = compute(tmp_path / "off", JAX_ENABLE_COMPILATION_CACHE="false")
    assert said == "compiled programs are not kept (JAX_ENABLE_COMPILATION_CACHE)"
    assert not (tmp_path / "off").exists()
