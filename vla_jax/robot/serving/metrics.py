"""Counters and histograms of a server, as the text that Prometheus reads.

Label values come from fixed sets (outcomes, error codes, stages, causes), never from a client:
memory does not grow. Written here and not with prometheus-client: that would be one more package on
a robot's computer, and another page (counts as floats, a `_created` series beside each).
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)

HELP = {
    "requests_total": "requests by outcome",
    "errors_total": "errors sent to clients, by code",
    "sessions_total": "sessions begun",
    "failures_total": "internal errors; the first of them are in the log",
    "refused_total": "connections refused, by reason",
    "camera_frames_total": "answers whose frames show that a camera failed, by cause",
    "safety_steps_total": ("answers that a safety filter changed or stopped, by cause"),
}


class Histogram:
    """How many values were at most each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, label: str = "") -> list[str]:
        """The series of one label; buckets are cumulative, as Prometheus wants them."""
        lines, total = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{label}{"," if label else ""}le="{bound}"}} {total}')
        braces = f"{{{label}}}" if label else ""
        return [*lines, f"{name}_sum{braces} {self.sum:.6f}", f"{name}_count{braces} {total}"]


class Metrics:
    """Everything a server counts. Used from its event loop alone."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._counters: dict[str, Counter[str]] = {name: Counter() for name in HELP}
        self._latency: dict[str, Histogram] = {}
        self._batch = Histogram(SIZES)

    def count(self, name: str, label: str = "", by: int = 1) -> int:
        """Adds to a counter of HELP and returns where it stands."""
        counter = self._counters[name]
        counter[label] += by
        return counter[label]

    def timing(self, timing: Mapping[str, float]) -> None:
        """The stages of one answered request, in milliseconds."""
        for stage, milliseconds in timing.items():
            self._latency.setdefault(stage, Histogram(SECONDS)).add(milliseconds / 1e3)

    def batch(self, size: int) -> None:
        """How many requests went through the network together."""
        self._batch.add(float(size))

    def text(self, sessions: int, ready: bool) -> str:
        """The page of /metrics."""
        keys = {"requests_total": "outcome", "errors_total": "code", "refused_total": "reason"}
        lines = []
        for name, counter in self._counters.items():
            key = keys.get(name, "cause")
            lines += [f"# HELP vla_{name} {HELP[name]}", f"# TYPE vla_{name} counter"]
            lines += [
                f'vla_{name}{{{key}="{label}"}} {value}' if label else f"vla_{name} {value}"
                for label, value in sorted(counter.items())
            ]
        lines += [
            "# HELP vla_latency_seconds time of answered requests, by stage",
            "# TYPE vla_latency_seconds histogram",
        ]
        for stage, histogram in sorted(self._latency.items()):
            lines += histogram.lines("vla_latency_seconds", f'stage="{stage}"')
        lines += ["# HELP vla_batch_size requests in one pass", "# TYPE vla_batch_size histogram"]
        lines += self._batch.lines("vla_batch_size")
        for name, value in (("sessions", sessions), ("ready", int(ready))):
            lines += [f"# TYPE vla_{name} gauge", f"vla_{name} {value}"]
        lines += [
            "# TYPE vla_uptime_seconds gauge",
            f"vla_uptime_seconds {time.monotonic() - self._start:.1f}",
        ]
        return "\n".join(lines) + "\n"
