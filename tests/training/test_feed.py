"""Batches onto the devices: what counts as waiting for them, and how the thread ends."""

import threading

import numpy as np
import pytest

from tests.training.tiny_run import B, make_batch
from vla_jax import sharding
from vla_jax.training.clock import Clock
from vla_jax.training.feed import Feed


def numbered(number):
    return make_batch(0)._replace(dataset_id=np.full(B, number))


class Running:
    """What a step returns: `then` happens when the devices are waited for."""

    def __init__(self, then):
        self.block_until_ready = then


class Given:
    """Batches that come when the test says so, from a thread's point of view."""

    def __init__(self):
        self.may = threading.Semaphore(0)
        self.taken = 0

    def __iter__(self):
        while True:
            self.may.acquire()
            self.taken += 1
            yield numbered(self.taken)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(8, 1, 1)


def test_waiting_while_a_step_runs_is_not_input(mesh):
    """The devices are busy until the step ends at 7; the batch comes at 10."""
    now, given = [0.0], Given()
    clock = Clock(None, lambda: now[0])

    def finish():
        now[0] = 7.0
        threading.Timer(0.05, arrive).start()

    def arrive():
        now[0] = 10.0
        given.may.release()

    feed = Feed(iter(given), mesh, B)
    with clock.during("productive"):
        batch = feed.next(0, Running(finish), clock)
    assert clock.seconds()["productive"] == 7
    assert clock.seconds()["input"] == 3
    assert batch.actions.sharding == sharding.batch_sharding(mesh)
    given.may.release()
    feed.close()


@pytest.mark.parametrize("ahead", [1, 2])
def test_what_is_there_is_taken_without_waiting_for_the_step(mesh, ahead):
    given = Given()
    given.may.release(ahead)
    feed = Feed(iter(given), mesh, B, ahead)
    while feed._ready.qsize() < ahead:
        pass  # made while nobody asks
    clock = Clock(None, lambda: 0.0)
    running = Running(lambda: pytest.fail("waited for the step"))
    got = [int(feed.next(i, running, clock).dataset_id[0]) for i in range(ahead)]
    assert got == list(range(1, ahead + 1))
    given.may.release()
    feed.close()


def test_close_ends_the_thread_and_what_was_not_taken_stays(mesh):
    given = Given()
    given.may.release(10)
    feed = Feed(iter(given), mesh, B)
    feed.next(0, None, Clock(None))
    feed.close()
    assert given.taken <= 4  # the one taken, the one ready, the one to be put, the one being made
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_an_error_in_making_a_batch_is_raised_where_it_is_taken(mesh):
    def broken():
        yield numbered(1)
        raise OSError("disk")

    feed, clock = Feed(broken(), mesh, B), Clock(None)
    assert int(feed.next(0, None, clock).dataset_id[0]) == 1
    with pytest.raises(OSError, match="disk"):
        feed.next(1, None, clock)
    feed.close()
