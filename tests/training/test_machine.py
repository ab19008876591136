"""What training asks of its machine: XLA's order of operations, and memory given back."""

import os
import subprocess
import sys

import pytest

from vla_jax.training import machine

OPENS = """
import os, sys
import jax
from vla_jax.training import machine
os.environ["XLA_FLAGS"] = sys.argv[1]
machine.ask_xla()
jax.devices()
"""


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("", machine.IN_ORDER),
        ("--xla_a=1", f"--xla_a=1 {machine.IN_ORDER}"),
        (machine.IN_ORDER.replace("false", "true"), machine.IN_ORDER.replace("false", "true")),
    ],
)
def test_what_is_asked_for_already_stands(
    given: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", given)
    machine.ask_xla()
    assert os.environ["XLA_FLAGS"] == asked


def test_xla_reads_it_as_it_opens_its_first_device_and_knows_it() -> None:
    def opened(flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", OPENS, flags], capture_output=True, text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip

    asked, unknown = opened(""), opened("--xla_no_such_flag=1")
    assert asked.returncode == 0, asked.stderr
    assert "--xla_no_such_flag" in unknown.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc alone")
def test_freed_memory_goes_back_to_the_system() -> None:
    def held() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pieces = [b"x" * 100_000 for _ in range(2_000)]  # of the heap: larger ones are not
    last = pieces.pop()  # else the top of the heap would go back by itself
    del pieces
    before = held()
    machine.give_back()
    assert before - held() > 150_000_000, len(last)
