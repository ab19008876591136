"""Pixel arrays that are used again: as soon as nobody sees them any more, and never before."""

import gc
import threading
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.buffers import Buffers


def address(array):
    return array.ctypes.data


def test_buffers_are_used_again_when_nobody_holds_them():
    pool = Buffers((2,), keep=2)
    first = pool.take(5)
    view, place = first[1:3], address(first)
    assert address(pool.take(5)) != place
    del first
    assert address(pool.take(5)) != place  # a view still holds it
    del view
    assert {address(pool.take(4)) for _ in range(3)} <= {place, address(pool.take(5))}


@pytest.mark.parametrize("length", [1, 2, 7, 9, 17, 33, 200])
def test_what_is_kept_takes_little_more_than_it_shows(length):
    """Frames are kept by the budget that a user gives: one alone once took the room of eight."""
    pool = Buffers((64, 64, 3), keep=9)
    tracemalloc.start()
    try:
        kept = [pool.take(length) for _ in range(20)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    shown = sum(array.nbytes for array in kept)
    assert shown <= taken < 1.3 * shown


@pytest.mark.parametrize(
    "look",
    [
        lambda array: array[2],
        lambda array: array[1:, ::2].T[1:],
        lambda array: array.reshape(-1).view(np.uint32)[5:].reshape(-1, 1),
        lambda array: np.asarray(memoryview(array)),
        lambda array: memoryview(array)[3:],
        lambda array: np.frombuffer(array, np.uint16),
        lambda array: array.view(np.ma.MaskedArray).data[1:][1:],
        lambda array: np.lib.stride_tricks.as_strided(array, (3,), (1,)),
        lambda array: np.from_dlpack(array)[1:],
        lambda array: iter(array),
    ],
)
def test_whatever_shows_the_memory_keeps_it(look):
    pool = Buffers((4, 6), keep=9)
    array = pool.take(8)
    place = address(array)
    seen = look(array)
    del array
    gc.collect()
    assert place not in [address(kept) for kept in [pool.take(8) for _ in range(4)]]
    del seen
    gc.collect()
    assert place in [address(kept) for kept in [pool.take(8) for _ in range(9)]]


def cut(array, offset):
    """4096 bytes of an array that begin `offset` after a multiple of 64."""
    return array.reshape(-1)[(offset - address(array)) % 64 :][:4096]


@pytest.mark.parametrize("put", [jax.device_put, jax.dlpack.from_dlpack, jnp.asarray])
@pytest.mark.parametrize("offset", [0, 16])  # JAX on CPU shows aligned memory and copies other
def test_device_arrays_never_change(put, offset):
    pool = Buffers((64, 64, 3), keep=9)
    held = []
    for number in range(1, 30):
        view = cut(pool.take(8), offset)
        view[:] = number
        held.append(put(view))
        del view
        for _ in range(3):
            pool.take(8)[:] = 255  # whatever is free
    for number, device_array in enumerate(held, 1):
        assert (np.asarray(device_array) == number).all()


@pytest.mark.parametrize("put", [jax.device_put, jax.dlpack.from_dlpack])
def test_memory_that_a_device_array_shows_is_kept_and_comes_back(put):
    pool = Buffers((64, 64, 3), keep=9)
    array = pool.take(8)
    place, shown = address(array), put(cut(array, 0))
    assert shown.unsafe_buffer_pointer() == address(cut(array, 0))
    del array
    gc.collect()
    assert place not in [address(kept) for kept in [pool.take(8) for _ in range(4)]]
    del shown
    gc.collect()
    jax.device_put(0).block_until_ready()  # JAX lets go of host memory when it is next used
    assert place in [address(kept) for kept in [pool.take(8) for _ in range(9)]]


def test_longer_arrays_take_the_place_of_shorter_ones():
    pool = Buffers((100,), keep=4)
    for length in (8, 16, 24, 8, 24):
        pool.take(length)
    assert [len(memory) for memory in pool._free] == [24]


def test_no_more_than_keep_are_remembered():
    pool = Buffers((100,), keep=3)
    held = [pool.take(8) for _ in range(10)]
    del held
    assert len(pool._free) == 3


def test_an_array_may_be_empty_and_outlive_its_pool():
    pool = Buffers((4,), keep=2)
    assert pool.take(0).shape == (0, 4)
    array = pool.take(3)
    del pool
    array[:] = 7
    assert (array == 7).all()


def test_threads_never_share_an_array():
    """Writers check that what they wrote stays; any thread drops the arrays of all."""
    pool = Buffers((50,), keep=8)
    problems, dropped = [], []
    stop = time.monotonic() + 1.0

    def write(number):
        draw = np.random.default_rng(number)
        while time.monotonic() < stop and not problems:
            array = pool.take(int(draw.integers(1, 30)))
            array[:] = number
            view = array[::2]
            del array
            time.sleep(0)
            if not (view == number).all():
                problems.append(number)
            dropped.append(view)
            del view
            if len(dropped) > 20:
                dropped.clear()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(pool._free) <= 8
