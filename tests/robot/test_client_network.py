"""The broker over a network that delays, repeats and loses, and over outages, in real time on
loopback.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import ServerConnection

from tests.robot.fake_server import IMAGES, Server, reply, vanish
from vla_jax.robot.client import ChunkBroker, Client, Waits


class Weather:
    """A server's answers over a bad network, by a seed: late, after a copy of an older one, or not
    at all.
    """

    def __init__(self, loss: float) -> None:
        self._rng, self._loss = np.random.default_rng(7), loss
        self.lost, self._older = 0, b""

    def pop(self, _: int) -> Callable[[ServerConnection, dict[str, Any]], None]:
        return self._act

    def _act(self, connection: ServerConnection, message: dict[str, Any]) -> None:
        time.sleep(self._rng.uniform(0.0, 0.1))
        if self._rng.uniform() < self._loss:
            self.lost += 1
            vanish(connection, message)
            return
        due = message["observed_at"] / PERIOD + np.arange(
            HORIZON
        )  # actions say when they are due, in periods
        answer = reply(message, actions=np.stack([due, due], 1))
        if self._older and self._rng.uniform() < 0.3:
            connection.send(self._older)
        connection.send(answer)
        self._older = answer


PERIOD, HORIZON = 0.02, 50
ROUGH = Waits(reply=0.5, first=0.005, longest=0.05)


def drive(broker: ChunkBroker, seconds: float, rng: np.random.Generator) -> list[bool]:
    """A jittery control loop, which checks every action's time. Whether there was one, per
    period.
    """
    acted, last, tick = [], 0.0, time.monotonic()
    end = tick + seconds
    while tick < end:
        tick = max(
            tick + PERIOD, time.monotonic() + 0.6 * PERIOD
        )  # where it was held up, it does not catch up
        time.sleep(max(tick + rng.uniform(0.0, 0.4) * PERIOD - time.monotonic(), 0.0))
        broker.observe(IMAGES)
        before = time.monotonic()
        step = broker.next()
        after = time.monotonic()
        acted.append(step.action is not None)
        if step.action is None:
            assert step.why
            continue
        due = float(step.action[0])
        assert before / PERIOD - due <= 1.25, "stale"
        assert after / PERIOD - due >= -1.75, "before its time"
        assert due > last - 1e-3, "executed before"
        last = due
    return acted


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["freeze", "ensemble"])
def test_jitter_loss_and_outages(blend: str) -> None:
    """No gap while an outage is shorter than what is left of the plan; after that nothing old, and
    it comes back.
    """
    rng, weather = np.random.default_rng(3), Weather(loss=0.15)
    server = Server(chunk=HORIZON, limits=None)
    server.script = weather  # type: ignore[assignment]
    with ChunkBroker(Client(server.url, waits=ROUGH), PERIOD, 0.7, blend) as broker:
        broker.reset("go")
        assert drive(broker, 1.0, rng)[-1]
        assert all(drive(broker, 4.0, rng)), broker.counters
        assert weather.lost > 0
        server.close()
        assert not any(drive(broker, 2.0, rng)[-40:])  # a chunk lasts a second
        why = broker.next().why
        assert "the plan ended" in why
        assert "refused" in why
        with contextlib.closing(Server(server.port, chunk=HORIZON, limits=None)) as server:
            server.script = weather  # type: ignore[assignment]
            assert drive(broker, 2.0, rng)[-1]
