"""Where the time of a run went, on a fake clock."""

import contextlib
import json

import pytest

from vla_jax.training.clock import KINDS, SAVES, Clock


class Time:
    """Stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def spend(self, clock, kind, seconds):
        with clock.during(kind):
            self.now += seconds


@pytest.fixture
def time():
    return Time()


def spent(clock):
    return {kind: seconds for kind, seconds in clock.seconds().items() if seconds}


def test_every_second_is_of_one_kind(time):
    clock = Clock(None, time)
    time.now += 1
    with clock.during("productive"):
        time.now += 10
        time.spend(clock, "evaluation", 3)
        time.now += 20
        with contextlib.suppress(KeyError), clock.during("checkpoint"):
            time.now += 4
            raise KeyError
        time.now += 30
    time.now += 2
    assert spent(clock) == {"other": 3, "productive": 60, "evaluation": 3, "checkpoint": 4}
    assert sum(clock.seconds().values()) == time.now - 100


def test_what_came_after_the_save_is_lost_when_the_run_restarts_there(time, tmp_path):
    file = tmp_path / "goodput.json"
    first = Clock(file, time)
    for step in (10, 20):
        time.spend(first, "productive", 5)
        first.saving(step)
    time.spend(first, "productive", 3)
    time.spend(first, "compile", 1)
    first.write()
    time.spend(first, "productive", 50)  # killed here: in no record
    time.now += 1000  # and down

    second = Clock(file, time)
    second.resume(10)  # the save of 20 had not become whole
    assert spent(second) == {"productive": 5, "lost": 8, "compile": 1}
    time.spend(second, "productive", 7)
    second.write()
    third = Clock(file, time)
    third.resume(10)
    assert spent(third) == {"productive": 5, "lost": 15, "compile": 1}
    fourth = Clock(file, time)  # `third` wrote nothing
    fourth.resume(0)  # no checkpoint is left
    assert spent(fourth) == {"lost": 20, "compile": 1}
    assert "started 3 times" in fourth.summary()


def test_a_run_that_ends_where_it_saved_loses_nothing(time, tmp_path):
    file = tmp_path / "goodput.json"
    first = Clock(file, time)
    time.spend(first, "productive", 5)
    first.saving(10)
    time.spend(first, "checkpoint", 15)
    first.write()
    second = Clock(file, time)
    second.resume(10)
    assert spent(second) == {"productive": 5, "checkpoint": 15}
    body = json.loads(file.read_text())
    assert body["share"]["checkpoint"] == 0.75
    assert list(body["seconds"]) == list(KINDS)
    assert "checkpoint          15.0 s  75.00%" in first.summary()


def test_the_record_does_not_grow_without_end(tmp_path):
    clock = Clock(tmp_path / "goodput.json", lambda: 0.0)
    for step in range(SAVES + 5):
        clock.saving(step)
    saves = json.loads((tmp_path / "goodput.json").read_text())["productive_at_saves"]
    assert list(saves) == [str(step) for step in range(5, SAVES + 5)]


def test_a_damaged_record_is_refused(tmp_path):
    file = tmp_path / "goodput.json"
    for text in ('{"seconds": {}}', '{"sec', "[]"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"goodput.json: expected the record"):
            Clock(file)
