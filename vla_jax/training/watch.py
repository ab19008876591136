"""What host 0 concludes from the signs of all hosts: pure, without a clock or a network. hosts.py
gives and reads the signs.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

CLOCKS = 5.0  # seconds by which the clocks of two hosts may differ before it is said
AGAIN = (
    "Every host ends now. Start the same command again, on this or another number of hosts: it"
    " continues from the last complete checkpoint"
)
# EX_TEMPFAIL: the run was well, a host was not. The same command continues it.
LOST_EXIT = 75


class Verdict(NamedTuple):
    """Why every host ends, and its exit code: LOST_EXIT where starting again is all it takes, else
    1.
    """

    why: str
    code: int


@dataclasses.dataclass(frozen=True)
class Times:
    """How long hosts wait for each other, in seconds.

    Attributes:
        join: for all of them to come.
        beat: between two signs of a host.
        silent: without a sign until a host counts as lost.
        heartbeat: until jax finds the same by itself; longer than `silent`, so that ours speaks.
        stalled: that a host may do the same thing without moving on. Compiling and reading weights
            do not show that they move.
    """

    join: int = 300
    beat: float = 1.0
    silent: float = 30.0
    heartbeat: int = 50
    stalled: float = 1800.0


class Beat(NamedTuple):
    """What a host says of itself."""

    number: int
    name: str  # of the machine, and the process there
    step: int
    doing: str
    waiting: bool  # for other hosts
    moved: int  # grows while something gets done
    at: float  # its clock, seconds since 1970
    error: str  # what it ended with; "" while it runs


class Watch:
    """Host 0's view of the others. Pure: the times are given."""

    def __init__(self, count: int, times: Times, now: float) -> None:
        self._count, self._times = count, times
        self._last: dict[int, Beat] = {}
        self._heard = dict.fromkeys(range(count), now)
        self._moved = dict.fromkeys(range(count), now)
        self._skew: dict[int, list[float]] = {}

    def look(self, beats: Mapping[int, Beat], now: float, clock: float) -> Verdict | None:
        """Why the run must end; None as long as it need not. `now` is monotonic, `clock` is this
        host's.
        """
        for host, beat in beats.items():
            before = self._last.get(host)
            if before is None or before.number != beat.number:
                self._heard[host] = now
                self._skew.setdefault(host, []).append(beat.at - clock)
            if before is None or _progress(before) != _progress(beat):
                self._moved[host] = now
            self._last[host] = beat
        for host, beat in sorted(self._last.items()):
            if beat.error:
                return Verdict(f"{self._where(host)} ended: {beat.error}\nMend that. {AGAIN}", 1)
        silent = [host for host, at in self._heard.items() if now - at > self._times.silent]
        if silent:
            who = "; ".join(self._where(host) for host in silent)
            why = (
                f"lost {who}: no sign for {self._times.silent:.0f} s. It was killed (out of"
                " memory?), preempted, stopped or cut off: look at its log and at the scheduler."
                f" {AGAIN}"
            )
            return Verdict(why, LOST_EXIT)
        stalled = [host for host, at in self._moved.items() if now - at > self._times.stalled]
        # Who waits for others is not to blame, unless all do.
        stuck = [host for host in stalled if not self._last[host].waiting]
        if not stuck and len(stalled) == self._count:
            stuck = stalled
        if stuck:
            who = "; ".join(self._where(host) for host in stuck)
            why = (
                f"{who}: alive, but nothing moved for {self._times.stalled:.0f} s. Look at its"
                f" disk, its network and its log. {AGAIN}"
            )
            return Verdict(why, LOST_EXIT)
        return None

    def clocks(self) -> str:
        """Which clocks are off, in words; "" when none is, or too little is known.

        A beat is read up to a beat late, and later when this host was busy: the least of some
        counts.
        """
        off = []
        for host, seen in self._skew.items():
            least = min(seen[-5:], key=abs)
            if len(seen) >= 5 and abs(least) > CLOCKS + self._times.beat:
                off.append(f"{self._name(host)} by {least:+.0f} s")
        return "; ".join(off)

    def _where(self, host: int) -> str:
        beat = self._last.get(host)
        place = f"at step {beat.step}, {beat.doing}" if beat else "before its first sign"
        return f"{self._name(host)}, {place}"

    def _name(self, host: int) -> str:
        beat = self._last.get(host)
        return f"host {host} ({beat.name})" if beat else f"host {host}"


def differences(facts: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """A line for each fact that hosts do not agree on; only those that state it are compared."""
    lines = []
    for name in sorted({name for stated in facts.values() for name in stated}):
        by_value: dict[str, list[int]] = {}
        for host in sorted(facts):
            if name in facts[host]:
                by_value.setdefault(json.dumps(facts[host][name]), []).append(host)
        if len(by_value) > 1:
            ranked = sorted(by_value.items(), key=lambda pair: (-len(pair[1]), pair[1]))
            lines.append(
                f"{name}: " + "; ".join(f"{value} on {_hosts(who)}" for value, who in ranked)
            )
    return lines


def _progress(beat: Beat) -> tuple[Any, ...]:
    return beat.step, beat.doing, beat.moved


def _hosts(who: list[int]) -> str:
    return f"host{'s' * (len(who) > 1)} {', '.join(map(str, who))}"
