"""What hosts say to each other and conclude, over a store in memory; test_distributed.py has real
processes.
"""

import json
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from vla_jax import sharding
from vla_jax.training import hosts, watch

TIMES = watch.Times(beat=0.01, silent=60.0)
SHORT = watch.Times(beat=0.01, silent=1.0)


class Store:
    """The client of the coordination service, as far as it is used: keys and values of one run."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            assert allow_overwrite or key not in self._values, key
            self._values[key] = value
            self._changed.notify_all()

    def key_value_dir_get(self, key):
        with self._changed:
            folder = key.rstrip("/") + "/"
            return [(k, value) for k, value in self._values.items() if k.startswith(folder)]

    def key_value_delete(self, key):
        with self._changed:
            for name in [name for name in self._values if name.startswith(key)]:
                del self._values[name]

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self._values[key]


class EndedError(Exception):
    """In place of the end of the process."""


class Process(hosts.Hosts):
    """A host that ends by noting why; its threads stop."""

    ended, code = "", 0

    def _end(self, verdict):
        self.ended, self.code = verdict
        self._closed.set()
        if not threading.current_thread().name.startswith("hosts"):
            raise EndedError(verdict.why)


@pytest.fixture
def three(request):
    """Three hosts that watch each other."""
    store = Store()
    made = [Process(store, index, 3, getattr(request, "param", TIMES)) for index in range(3)]
    yield made
    for host in made:
        host._closed.set()


def each(made, act):
    """What `act` of every host returns, or raises; all at once."""

    def attempt(host):
        try:
            return act(host)
        except ValueError as error:
            return error

    with ThreadPoolExecutor(len(made)) as threads:
        return list(threads.map(attempt, made))


def until(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def beat(number=1, **changes):
    values = {"number": number, "name": "a", "step": 7, "doing": "training", "waiting": False,
              "moved": 0, "at": 100.0, "error": ""}  # fmt: skip
    return watch.Beat(**{**values, **changes})


def test_alone_nothing_waits_or_differs():
    alone = hosts.Hosts()
    alone.at(3)
    alone.wait("anything")
    alone.same("start", {"config": 1})
    alone.close()
    with pytest.raises(OSError, match="disk"), alone.together():
        raise OSError("disk")


def test_a_silent_host_is_named_with_its_machine_and_step():
    seen = watch.Watch(2, watch.Times(silent=30.0), now=0.0)
    for second in range(40):
        beats = {0: beat(second), 1: beat(min(second, 5), name="b", step=12)}
        verdict = seen.look(beats, float(second), 100.0)
        assert (verdict is not None) == (second > 35), second
    assert "lost host 1 (b), at step 12, training: no sign for 30 s" in verdict.why
    assert "Start the same command again" in verdict.why
    assert verdict.code == watch.LOST_EXIT


def test_a_host_that_never_came_is_named():
    seen = watch.Watch(3, watch.Times(silent=30.0), now=0.0)
    verdict = seen.look({0: beat(40), 1: beat(40)}, 31.0, 100.0)
    assert "lost host 2, before its first sign" in verdict.why


def test_an_error_of_one_host_is_everyones():
    seen = watch.Watch(2, watch.Times(), now=0.0)
    failed = beat(name="b", step=3, error="OSError: No space left on device")
    assert seen.look({0: beat()}, 0.0, 100.0) is None
    verdict = seen.look({0: beat(), 1: failed}, 1.0, 100.0)
    assert "host 1 (b), at step 3, training ended: OSError: No space left" in verdict.why
    assert verdict.code == 1  # starting again would not help


def test_waiting_is_bounded_only_when_nothing_moves():
    """Host 0 indexes for hours while host 1 waits for it: fine as long as bytes are read."""
    seen = watch.Watch(2, watch.Times(stalled=1800.0), now=0.0)
    for minute in range(600):
        moved = min(minute, 300)
        beats = {
            0: beat(minute, doing="opening the data", moved=moved),
            1: beat(minute, doing="waiting: data", waiting=True),
        }
        verdict = seen.look(beats, 60.0 * minute, 100.0)
        if verdict:
            break
    assert minute == 331
    assert verdict.why.startswith("host 0 (a), at step 7, opening the data: alive, but nothing")
    assert "host 1" not in verdict.why


def test_all_waiting_for_each_other_ends_too():
    seen = watch.Watch(2, watch.Times(stalled=1800.0), now=0.0)
    beats = {host: beat(1, waiting=True) for host in range(2)}
    assert seen.look(beats, 0.0, 100.0) is None
    later = {host: each._replace(number=2) for host, each in beats.items()}
    assert "host 0 (a)" in seen.look(later, 1801.0, 100.0).why


def test_clocks_that_are_off_are_said_a_late_reading_is_not():
    seen = watch.Watch(3, watch.Times(), now=0.0)
    for second in range(5):
        late = 20 if second == 2 else 0  # host 0 was busy
        clock = 100.0 + second + late
        beats = {0: beat(second, at=clock), 1: beat(second, name="b", at=clock - late + 300),
                 2: beat(second, name="c", at=clock - late)}  # fmt: skip
        assert not seen.clocks()
        assert not seen.look(beats, float(second), clock)
    assert seen.clocks() == "host 1 (b) by +280 s"


def test_differences_name_the_odd_host():
    facts = {host: {"config.seed": 1, f"rows of {host % 2}": "a"} for host in range(4)}
    assert watch.differences(facts) == []
    facts[2]["config.seed"] = 5
    facts[3]["rows of 1"] = "b"
    assert watch.differences(facts) == [
        "config.seed: 1 on hosts 0, 1, 3; 5 on host 2",
        'rows of 1: "a" on host 1; "b" on host 3',
    ]


def test_hosts_meet_and_compare(three, monkeypatch):
    monkeypatch.setattr(hosts, "POLL", 5)  # the others ask more than once
    order = []

    def late(host):
        if host.index == 1:
            time.sleep(0.05)
            order.append("late")
        host.wait("data")
        order.append("met")

    each(three, late)
    assert order[0] == "late"
    assert each(three, lambda host: host.same("start", {"code": "x"})) == [None] * 3
    refused = each(three, lambda host: host.same("step 4", {"code": "xyx"[host.index]}))
    for error in refused:
        assert isinstance(error, ValueError)
        assert "hosts (step 4)" in str(error)
        assert 'code: "x" on hosts 0, 2; "y" on host 1' in str(error)
    left = dict(three[0]._client.key_value_dir_get(hosts.PREFIX))
    assert len(left) <= 3 + 1  # signs and the last answer: a long run does not fill the service


def test_an_exception_ends_every_host_with_its_words(three, capfd):
    def fail(host):
        host.at(5)
        with host.together():
            if host.index == 1:
                raise OSError("No space left on device")

    with pytest.raises(EndedError):
        fail(three[1])
    until(lambda: all(host.ended for host in three))
    for host in three[::2]:
        assert "host 1 (" in host.ended
        assert "at step 5" in host.ended
        assert "OSError: No space left on device" in host.ended
        assert host.code == 1
    assert "Traceback" in capfd.readouterr().err  # where it happened, on the host where it did


@pytest.mark.parametrize("three", [SHORT], indirect=True)
def test_a_host_that_gives_no_signs_ends_the_others(three):
    until(lambda: len(three[0]._read(hosts.BEATS)) == 3)
    three[2]._closed.set()
    until(lambda: three[0].ended and three[1].ended)
    assert "lost host 2 (" in three[1].ended


@pytest.mark.parametrize("three", [SHORT], indirect=True)
def test_a_coordinator_that_hangs_ends_the_others(three):
    """SIGSTOP of process 0: calls of its service do not return."""
    three[0]._closed.set()
    three[1]._client.key_value_set = lambda *args: time.sleep(1)
    until(lambda: three[1].ended)
    assert "lost host 0, the coordinator" in three[1].ended


def test_exit_on_request_is_no_failure(three):
    with pytest.raises(SystemExit) as left, three[1].together():
        raise SystemExit(143)
    assert left.value.code == 143
    time.sleep(5 * TIMES.beat)
    assert not three[0].ended


def test_replicas_have_one_crc_of_equal_parts():
    mesh = sharding.make_mesh(2, 4, 1)
    whole, split = sharding.replicated(mesh), jax.NamedSharding(mesh, jax.P("fsdp"))

    def state(first):
        return {"scale": jax.device_put(np.array([first, 2.0]), whole),
                "kernel": jax.device_put(np.arange(8.0), split)}  # fmt: skip

    assert hosts.replicas(state(1.0)) == hosts.replicas(state(1.0))
    (name, crc), (other_name, other_crc) = (
        next(iter(hosts.replicas(state(first)).items())) for first in (1.0, 1.5)
    )
    assert name == other_name
    assert crc != other_crc


def test_an_incomplete_address_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ValueError, match="no number in JAX_PROCESS_ID"):
        hosts.join()


def test_auto_leaves_the_address_to_jax(monkeypatch):
    """With the word in the environment jax takes it for the address, and fails on its port."""

    def initialize(**place):
        assert "JAX_COORDINATOR_ADDRESS" not in os.environ
        assert "coordinator_address" not in place
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "auto")
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(hosts, "_on_abort", lambda words: None)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(ValueError, match="with auto a TPU pod or a Slurm job is needed"):
        hosts.join()


@pytest.mark.parametrize(
    ("module", "error", "heard"),
    [
        ("async_checkpointer", OSError("No space left"), True),
        ("async_checkpointer", TimeoutError("at a barrier"), False),  # of a host that is gone
        ("checkpoint_manager", OSError("No space left"), False),  # said again by others
    ],
)
def test_a_failed_write_in_the_background_is_heard_of(module, error, heard):
    reported = []
    record = logging.LogRecord("absl", logging.ERROR, f"orbax/{module}.py", 1, "failed", (),
                               (type(error), error, None))  # fmt: skip
    hosts._SaveErrors(reported.append).handle(record)
    assert reported == [error] * heard


def test_signs_can_be_read_back():
    assert watch.Beat(*json.loads(json.dumps(beat()))) == beat()
    assert os.EX_TEMPFAIL == watch.LOST_EXIT
