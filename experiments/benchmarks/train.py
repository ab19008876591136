"""Measures a training step beside plain PyTorch on the same policy, weights and batches.

    python -m experiments.benchmark train [--size tiny|100m|3b] [--step action|language]
    [--device cuda] [--dtype bfloat16] [--remat full] [--batch 8] [--repeats 5]

The peer is the way RoboVLMs trains: Hugging Face's PaliGemma with SDPA, nn.LSTM, fused AdamW,
bfloat16 autocast on a GPU, gradient checkpointing where ours has remat (train_torch.py). Ours is
`pretrain`'s step (train_ours.py). Each runs in a process of its own, so that memory is its own;
they take turns, `--repeats` times. On a GPU, where two policies may not fit, each turn is a process
of its own, which warms up before the steps that are timed; the first trains the compared ones.
With --keep the peer keeps its activations whatever ours does.

--step action    the LSTM head on a window of 8 frames
--step language  actions as tokens of the language model (head discrete, one frame). The peer's
                 class computes logits at all positions for the whole vocabulary, as in RoboVLMs;
                 --peer informed has it multiply only those that are looked at, as ours does

Both train on the same 20 batches first: the losses must agree within 1%, or the command fails.
CPU seconds stand beside the clock: on a busy machine they are what can be compared. "of peak" is
model FLOPs (three times the forward pass) of the GPU's figure, on a CPU of the faster one's plain
matrix product, whose rates are printed: much of what differs on a CPU is its library of products.
--losses float32 has ours train in float32 too, for its losses beside those of bfloat16.

--against FIELD=VALUE [...] has another peer: ours with these changes to the config, and with what
is written in capitals in its environment (XLA_FLAGS=--xla_...): what an option gives. Three steps
are compared.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.benchmarks.policies import VARIANTS
from experiments.benchmarks.train_inputs import write_inputs
from experiments.benchmarks.train_ours import change
from experiments.benchmarks.train_turns import PRODUCT
from experiments.composition import estimate
from experiments.composition.json_files import write_json
from vla_jax import build
from vla_jax import params as flat

CHECKED = 20  # steps whose losses are compared
CHECKED_AGAINST = 3  # with ours itself: the same code
WARM = 3  # steps of a process before the clock runs


def main(argv: list[str]) -> int:
    """Runs the benchmark and prints its table; 1 when the two do not train alike."""
    parser = argparse.ArgumentParser(
        prog="experiments.benchmark train", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--size", choices=tuple(VARIANTS), default="tiny")
    parser.add_argument("--step", choices=("action", "language"), default="action")
    parser.add_argument("--peer", choices=("plain", "informed"), default="plain")
    parser.add_argument("--batch", type=int, help="windows; default: 8 frames of them")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--remat", choices=("none", "dots", "names", "full"), default="none")
    parser.add_argument("--keep", action="store_true", help="no checkpointing by the peer")
    parser.add_argument("--layers", choices=("scan", "unroll"), default="unroll")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--losses", choices=("float32",), help="of ours in this type too")
    parser.add_argument("--against", nargs="+", metavar="FIELD=VALUE", help="peer: ours, changed")
    parser.add_argument("--json", type=Path, help="write the table here too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_inputs(folder, args)
        table = measure(folder, config, args)
    if args.json:
        write_json(args.json, table)
    return 0 if table["alike"] else 1


class Side:
    """One of the two, in a process of its own: a turn is a line in, a line out."""

    def __init__(self, name: str, folder: Path, changes: Sequence[str] = ()) -> None:
        self.name = name
        self.rows: list[dict[str, Any]] = []
        self.ready: dict[str, Any] = {}  # what its first process said when it began
        variables = dict(text.partition("=")[::2] for text in changes if text[0].isupper())
        self.fields = [text for text in changes if not text[0].isupper()]
        module = "train_torch" if name == "torch" else "train_ours"
        self._command = [sys.executable, "-m", f"experiments.benchmarks.{module}", str(folder)]
        self._command += self.fields
        self._environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._environment |= variables
        self._process: subprocess.Popen[str] | None = None

    def turn(self, steps: int) -> dict[str, Any]:
        """Trains `steps` steps further; from the first again after `close`."""
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=self._environment,
            )  # fmt: skip
            ready = self._answer()
            self.ready = self.ready or ready
        assert self._process.stdin is not None
        print(steps, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"benchmark train: {self.name} ended with {self._process.wait()}; see its lines"
                " above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(folder: Path, config: ConfigDict, args: argparse.Namespace) -> dict[str, Any]:
    """The table, printed."""
    print(
        f"{args.size}, {args.step} step: batch {config.batch_size}, window"
        f" {config.model.window}, {args.dtype}, remat {args.remat}, on {args.device}",
        flush=True,
    )
    apart, losses = args.device == "cuda", {}
    checked = CHECKED_AGAINST if args.against else CHECKED
    with contextlib.ExitStack() as stack:
        peer = Side("changed" if args.against else "torch", folder, args.against or ())
        change(config.copy_and_resolve_references(), peer.fields)  # here errors have their words
        sides = [Side("ours", folder), peer]
        for side in sides:
            stack.callback(side.close)
        for turn in range(args.repeats):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                if turn == 0:
                    losses[side.name] = side.turn(checked)["losses"]
                elif apart:
                    side.turn(WARM)
                side.rows.append(side.turn(args.steps))
                if apart:
                    side.close()
            if turn == 0:
                difference = _compare(losses["ours"], losses[peer.name], peer.name)
        if args.losses:
            other = Side("ours", folder, [f"model.dtype={args.losses}"])
            stack.callback(other.close)
            print(f"{args.losses} beside {args.dtype}:")
            _compare(losses["ours"], other.turn(checked)["losses"], args.losses)
    flops = model_flops(config)
    table: dict[str, Any] = {"alike": difference < 0.01, "difference": difference, "flops": flops}
    return table | _table(sides, config.batch_size, flops)


def _compare(ours: list[float], theirs: list[float], name: str) -> float:
    """The largest difference of two losses, as a part of the second; printed."""
    largest = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    print(
        f"losses of {len(ours)} steps: {ours[0]:.5f} to {ours[-1]:.5f}, {name} {theirs[0]:.5f} to"
        f" {theirs[-1]:.5f}; largest difference {largest:.1e} of it",
        flush=True,
    )
    return largest


def _table(sides: list[Side], windows: int, flops: float) -> dict[str, Any]:
    """Prints the rows and the ratios, and returns them."""
    print(
        f"{'':6s} {'s a step':>9s} {'spread':>14s} {'CPU-s':>7s} {'windows/s':>10s}"
        f" {'TFLOP/s':>8s} {'of peak':>8s} {'GiB':>6s} {'compile s':>10s}"
    )
    peaks = [side.ready["peak"] for side in sides if side.ready["peak"]]
    table: dict[str, Any] = {}
    for side in sides:
        table[side.name] = row = summary(side, windows, flops, max(peaks, default=None))
        peak = "-" if row["mfu"] is None else f"{row['mfu']:.1%}"
        spread = f"{row['fastest']:.3f}-{row['slowest']:.3f}"
        print(
            f"{side.name:6s} {row['seconds']:9.4f} {spread:>14s} {row['cpu']:7.2f}"
            f" {row['windows_per_s']:10.3f} {row['tflops']:8.3f} {peak:>8s}"
            f" {row['memory_gib']:6.2f} {row['compile_s']:10.1f}"
        )
    ours, theirs = (table[side.name] for side in sides)
    if theirs["product"]:
        print(
            f"plain product {' x '.join(map(str, PRODUCT))}: {ours['product'] / 1e9:.0f} GFLOP/s,"
            f" {sides[1].name} {theirs['product'] / 1e9:.0f}"
        )
    for key, unit in (("seconds", "time"), ("cpu", "CPU time"), ("memory_gib", "memory")):
        pairs = [b[key] / a[key] for a, b in zip(sides[0].rows, sides[1].rows, strict=True)]
        table[f"ratio_{key}"] = theirs[key] / ours[key]
        print(
            f"{sides[1].name} / ours, {unit}: {table[f'ratio_{key}']:.2f} (turn by turn"
            f" {min(pairs):.2f} to {max(pairs):.2f})"
        )
    return table


def summary(side: Side, windows: int, flops: float, peak: float | None) -> dict[str, Any]:
    """Medians over the turns of one side; `peak` in FLOP/s."""
    seconds = [row["seconds"] for row in side.rows]
    median = float(np.median(seconds))
    return {
        "seconds": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "cpu": float(np.median([row["cpu"] for row in side.rows])),
        "windows_per_s": windows / median,
        "tflops": flops / median / 1e12,
        "mfu": flops / median / peak if peak else None,
        "product": side.ready["peak"],
        "memory_gib": max(row["memory_gib"] for row in side.rows),
        "compile_s": side.ready["compile_s"],
        "device": side.ready["device"],
    }


def model_flops(config: ConfigDict) -> float:
    """Of a step: three times the forward pass, whatever is computed again."""
    graphdef, shapes, _ = flat.abstract(build.training_model(config))
    return 3 * config.batch_size * estimate.per_window(config, graphdef, shapes, {}).forward
