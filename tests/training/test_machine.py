"""What training asks of its machine: memory is given back."""

import os
import sys

import pytest

from vla_jax.training import machine


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
