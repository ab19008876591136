"""What a run reports: rows of metrics.jsonl, TensorBoard, W&B, a progress line, and the work a
step does.

Host only. The rows are the record (each step stands once, also after a resume; what is known of it
only later has another row, further down); the rest are views of it.
"""

import json
import math
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core

from vla_jax.progress import Progress, duration
from vla_jax.training.wandb_run import WandbRun

# Dense bf16 peak of one device in FLOP/s, by a part of its `device_kind`; the first that matches
# counts.
PEAK_FLOPS = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("TPU v6 lite", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
)

FLOPS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
EXPECTED = 0.4  # share of the peak that a run is forecast to reach


class Recorder:
    """Writes the rows of a run. Use it on every process: all but process 0 stay silent."""

    def __init__(
        self,
        workdir: Path | str,
        start: int,
        steps: int,
        project: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Opens `workdir`/metrics.jsonl at step `start`, dropping rows of later steps: they are
        about to be run again.

        Args:
            workdir: created if missing.
            start: the step training continues from; 0 for a new run.
            steps: the last step, for the time that is left.
            project: of W&B; "" sends nothing there.
            config: what W&B shows of the run.

        Raises ValueError when W&B is asked for and does not open a run.
        """
        self._primary = jax.process_index() == 0
        self._steps = steps
        self._progress: Progress | None = None
        self._board: Any = None
        self._wandb: WandbRun | None = None
        if not self._primary:
            return
        path = Path(workdir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if project:  # first: it may refuse
            self._wandb = WandbRun(path.parent, project, config or {}, self.say)
        truncate(path, start)
        self._board = _tensorboard(path.parent, start)
        self._file = path.open("a")
        self._step = start
        self._progress = Progress("training", steps, "steps", start)

    def write(self, row: Mapping[str, Any]) -> None:
        """One row: "step", "loss", and the rest. What is not finite is written as null, which JSON
        has.
        """
        if self._progress is None:
            return
        row = {key: _plain(value) for key, value in row.items()}
        self._send(row)
        shown = "  ".join(
            f"{key.removeprefix('train/')} {row[key]:.4g}"
            for key in SHOWN
            if row.get(key) is not None
        )
        self._progress.row(f"step {row['step']}/{self._steps}", shown)

    def late(self, row: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> None:
        """A row of what came out only now about an earlier "step". TensorBoard shows `pictures`
        beside it: uint8 RGB [h w 3] by name.
        """
        if self._progress is None:
            return
        self._send({key: _plain(value) for key, value in row.items()})
        if self._board is not None:
            for name, picture in pictures.items():
                self._board.add_image(name, picture, row["step"], dataformats="HWC")

    def _send(self, row: Mapping[str, int | float | None]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for key, value in row.items():
            if self._board is not None and key != "step" and value is not None:
                self._board.add_scalar(key, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(row)

    def changed(self, step: int, fields: Mapping[str, list[str]]) -> None:
        """A row that says which fields are other after `step`: {field: [then, now]}."""
        if self._progress is not None:
            self._file.write(json.dumps({"step": step, "changed": fields}) + "\n")
            self._file.flush()

    def progress(self, step: int, loss: Any = None) -> None:
        """Counts the steps until this one, and tells of them where no row has for a minute; `loss`
        is the newest that is known.
        """
        if self._progress is not None:
            self._progress.add(step - self._step, "" if loss is None else f"loss {loss:.4g}")
            self._step = step

    def say(self, line: str) -> None:
        """A line to the reader, without tearing the bar."""
        if self._progress is not None:
            self._progress.say(line)

    def close(self) -> None:
        """Flushes and closes everything; with an error on its way, W&B is told of it."""
        if self._progress is None:
            return
        if self._wandb is not None:
            self._wandb.close(failed=sys.exception() is not None)
        self._file.close()
        self._progress.close()
        if self._board is not None:
            self._board.close()


SHOWN = (
    "loss",
    "val/loss",
    "rl/success",
    "rl/divergence",
    "train/grad_norm",
    "train/windows_per_s",
    "train/input_wait",
    "train/mfu",
)


class Meter:
    """Speed between logged steps, measured from dispatch to dispatch."""

    def __init__(self, batch_size: int, flops: float, mesh: jax.sharding.Mesh) -> None:
        """`flops` are those of one step over all devices."""
        self._batch_size, self._flops = batch_size, flops
        peak = peak_flops(mesh.devices.flat[0])
        self._peak = None if peak is None else peak * mesh.size
        self._last: tuple[int, float, float] | None = None

    def read(self, step: int, spent: Mapping[str, float]) -> dict[str, float | None]:
        """Speed since the last call, for a step that was dispatched when so many seconds of each
        kind (clock.py) had been spent; null at the first.

        What is not training, evaluation say, is left out. `input_wait` is the share of the time in
        which the devices stood still for want of a batch.
        """
        trained = spent["productive"] + spent["input"] + spent["checkpoint"]
        last, self._last = self._last, (step, trained, spent["input"])
        memory = {"memory_gib": memory_bytes() / 2**30}
        if last is None or step == last[0]:
            return dict.fromkeys(("windows_per_s", "input_wait", "tflops", "mfu"), None) | memory
        seconds = max(trained - last[1], 1e-9)
        rate = (step - last[0]) / seconds
        return {
            "windows_per_s": rate * self._batch_size,
            "input_wait": (spent["input"] - last[2]) / seconds,
            "tflops": rate * self._flops / 1e12,
            "mfu": None if self._peak is None else rate * self._flops / self._peak,
        } | memory


def truncate(path: Path, step: int) -> None:
    """Drops the rows after `step`, and a last line that a kill cut short. Atomic: the file is whole
    at any time.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= step:
            kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def peak_flops(device: jax.Device) -> float | None:
    """FLOP/s of a device at best in bf16, or None where no figure is known (CPUs)."""
    return _peak(device.device_kind)


def forecast(flops: float, steps: int, kind: str, count: int) -> str:
    """A line that says what `steps` steps of so many FLOPs each, over all devices, will take on
    `count` devices of a `device_kind`.
    """
    size, unit = next((s, u) for s, u in FLOPS if flops >= s or s == FLOPS[-1][0])
    work, peak = f"{steps:,} steps of {flops / size:.1f} {unit}", _peak(kind)
    if peak is None:
        return (
            f"{work}: of {kind} no peak is known, the first steps will tell the time that is left"
        )
    seconds = flops * steps / (EXPECTED * peak * count)
    return (
        f"{work}: about {duration(seconds)} at {EXPECTED:.0%} of the peak of {count} {kind},"
        " evaluations and checkpoints not counted"
    )


def program_bytes(compiled: Any) -> int:
    """What a compiled program takes on a device: its arguments and its temporaries; results that
    take the place of donated arguments are not counted twice.
    """
    size = compiled.memory_analysis()
    results = size.output_size_in_bytes - size.alias_size_in_bytes
    return size.argument_size_in_bytes + size.temp_size_in_bytes + results


def memory_bytes() -> int:
    """The most memory this process has held: of its first device where the device tells, of the
    host otherwise.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def count_flops(jaxpr: core.Jaxpr) -> float:
    """FLOPs of the matrix products and convolutions of a program over all devices, two per
    multiply-add.

    XLA's own cost analysis counts the body of a scan once, whatever its length: 18 stacked layers
    would count as one. What rematerialisation repeats is counted too, so with remat on this
    measures the hardware more than the model.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        shapes = [getattr(var.aval, "shape", ()) for var in (*eqn.outvars[:1], *eqn.invars[:2])]
        if eqn.primitive.name == "dot_general":
            contracted, _ = eqn.params["dimension_numbers"]
            total += (
                2.0 * math.prod(shapes[0]) * math.prod(shapes[1][axis] for axis in contracted[0])
            )
        elif eqn.primitive.name == "conv_general_dilated":
            outputs = shapes[2][eqn.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(shapes[0]) * math.prod(shapes[2]) / outputs
        elif eqn.primitive.name == "cond":
            total += max(count_flops(branch.jaxpr) for branch in eqn.params["branches"])
        else:
            repeat = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            total += repeat * sum(count_flops(part) for part in inner(eqn.params))
    return total


def inner(params: Mapping[str, Any]) -> list[core.Jaxpr]:
    """The programs among the parameters of an operation."""
    found = []
    for value in params.values():
        if isinstance(value, core.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            found.append(value)
    return found


def _peak(kind: str) -> float | None:
    return next((peak for part, peak in PEAK_FLOPS if part in kind), None)


def _plain(value: Any) -> int | float | None:
    if value is None or isinstance(value, int):
        return value
    number = float(np.asarray(value))
    return number if math.isfinite(number) else None


def _tensorboard(workdir: Path, start: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        print(
            "tensorboardX is not installed: no TensorBoard events (pip install tensorboardX)",
            flush=True,
        )
        return None
    return SummaryWriter(str(workdir / "tensorboard"), purge_step=start + 1)
