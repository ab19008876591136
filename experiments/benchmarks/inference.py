"""Measures a policy's latency per new frame: JAX, torch eager, torch.compile and onnxruntime on the
same weights.

    python -m experiments.benchmark inference [--size tiny|100m|3b] [--head lstm] [--frames 50]
    [--device cuda] [--lines jax,eager,compile,int8,float8,pt2]
    python -m experiments.benchmark inference --policy RUN    # what was trained, as it is

Without --policy random weights, window 8 and chunk 10 (tiny: its own), two cameras. The policy is
exported first, so that its proof is the guarantee that all compute the same; the actions are
compared once more here. Lines are measured one after the other in this process, each after warm-up.
"vision" is the image tower with its projector, "backbone" the rest of a pass with the head, "frame"
the whole call: uint8 image in, actions in robot units out. "action" is what one executed action
costs when all of a chunk is executed before the next pass. The ratio is of JAX's p50 to the line's.
Last, what experiments.serve adds to a request of one client on loopback. --lines jax alone exports
nothing and serves nothing. With the head expert, first what its pass costs over one of the backbone
alone, turn by turn (expert.py); with the head fast, whose policy has one frame, what a plan costs
over the language model's own passes for its tokens (fast.py).

On a GPU torch.compile makes CUDA graphs, and the floor is the time that reading every weight once
takes at the rate of a plain copy, measured in this run.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict

from experiments.benchmarks import expert, fast, policies, server
from experiments.composition.json_files import write_json
from vla_jax import build, build_heads, saved
from vla_jax import params as flat
from vla_jax.actions import ActionSpec
from vla_jax.export import artefact, derived, onnx, pt2
from vla_jax.models.vla import VLA
from vla_jax.policy import JaxPolicy
from vla_jax.robot import torch_policy
from vla_jax.saved import DatasetSpec, SavedPolicy
from vla_jax.saved_config import of_checkpoint
from vla_jax.training.checkpoint import load_meta, within
from vla_jax.types import Seen

TEXTS = ("push the red block to the left", "move the green block to the right side")
CAMERAS = ("primary", "wrist")
STAGES = ("vision", "backbone", "frame", "action")
LINES = {
    "jax": "JAX",
    "eager": "torch eager",
    "compile": "torch.compile",
    "int8": "compile, int8",
    "float8": "compile, float8",
    "pt2": "AOTInductor",
    "onnx": "onnxruntime (CPU)",
}
HEADS = ("lstm", "mlp", "gpt", "attention", "flow", "discrete", "fast", "oft", "expert")
# calls before the clock runs: more than the window, and than what torch.compile compiles anew
WARM = 12

# A frame -> the chunk in robot units, and milliseconds by stage.
Call = Callable[[Seen], tuple[np.ndarray, dict[str, float]]]


def main(argv: list[str]) -> None:
    """Runs the benchmark and prints its table."""
    parser = argparse.ArgumentParser(
        prog="experiments.benchmark inference", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--size", choices=tuple(policies.VARIANTS), help="default tiny")
    parser.add_argument("--head", choices=HEADS, help="default lstm")
    parser.add_argument("--policy", type=Path, help="a run or an import, in place of both")
    parser.add_argument("--frames", type=int, default=50, help="measured calls of each line")
    parser.add_argument("--device", default="cpu", help="of torch; JAX takes its own default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--lines", help=f"in this order, of {', '.join(LINES)}; default jax,eager,compile,onnx"
    )
    parser.add_argument("--json", type=Path, default=None, help="write the table here too")
    parser.add_argument(
        "--folder", type=Path, help="for the artefact, which is taken as it is where it is there"
    )
    args = parser.parse_args(argv)
    if args.policy and (args.size or args.head):
        raise ValueError(
            f"--policy: expected it alone, as {args.policy} has a size and a head of its own, got"
            " --size or --head beside it; leave those out"
        )
    args.lines = args.lines or "jax,eager,compile" + ",onnx" * (args.dtype == "float32")
    unknown = set(args.lines.split(",")) - set(LINES)
    if unknown or not args.lines.startswith("jax"):
        parser.error(f"--lines: expected jax and then some of {', '.join(LINES)}, got {args.lines}")
    with contextlib.ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        table = measure(Path(folder), args)
    if args.json:
        write_json(args.json, table)


def measure(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The table, printed line by line."""
    if args.policy is None:
        config = policies.configuration(args.size or "tiny", args.head or "lstm")
        config.model.cameras = CAMERAS
        source = made(config, root)
    else:
        kept = within(args.policy)
        config, source = of_checkpoint(load_meta(kept), kept), saved.open_checkpoint(kept)
    exported = args.lines != "jax"
    if exported and not (root / "artefact").exists():
        artefact.write(source, root / "artefact", args.dtype)
    count = sum(value.size for value in source.params.values())
    model = config.model
    print(
        f"{count / 1e6:.1f} M parameters, head {model.head}, window {model.window}, chunk"
        f" {model.chunk}, {model.image_size} px, {args.dtype}; JAX on"
        f" {jax.devices()[0].device_kind}, torch on {args.device}, {torch.get_num_threads()}"
        " threads"
    )
    rng = np.random.default_rng(0)
    sizes = dict(zip(model.cameras, source.image_size, strict=True))
    spec = next(iter(source.specs.values())).state
    state = None if spec is None else np.zeros(len(spec.names), np.float32)
    frames = [
        Seen({name: rng.integers(0, 256, (w, w, 3), np.uint8) for name, w in sizes.items()}, state)
        for _ in range(WARM + args.frames)
    ]
    lines: dict[str, Callable[[], Call]] = {
        "jax": lambda: _jax(source, args.dtype),
        "eager": lambda: _torch(root / "artefact", args, compile=False),
        "compile": lambda: _torch(root / "artefact", args, compile=True),
        "int8": lambda: _torch(root / "artefact", args, compile=True, quantise="int8"),
        "float8": lambda: _torch(root / "artefact", args, compile=True, quantise="float8"),
        "pt2": lambda: _pt2(root, args),
        "onnx": lambda: _onnx(root),
    }
    stages = " ".join(f"{stage:>8s} {'p95':>8s}" for stage in STAGES)
    print(f"ms, p50 and p95\n{'':18s} {'first':>8s} {stages} {'ratio':>6s} {'difference':>11s}")
    table: dict[str, Any] = {}
    if model.head == "expert":
        ratio = expert.measure(source, args.dtype)
        print(
            f"expert with backbone over one backbone pass ({1e3 * ratio.backbone_s:.0f} ms, CPU"
            f" {1e3 * ratio.backbone_cpu_s:.0f}): {ratio.wall:.2f} of wall, {ratio.cpu:.2f} of CPU",
            flush=True,
        )
        table["expert"] = ratio._asdict()
    if model.head == "fast":
        written = fast.measure(source, args.dtype)
        print(
            f"fast: a plan of {written.tokens} tokens over the pass before them"
            f" ({1e3 * written.pass_s:.1f} ms) with the language model's steps"
            f" ({1e3 * written.step_s:.2f} ms each): {written.wall:.2f} of wall,"
            f" {written.cpu:.2f} of CPU; behind that pass {written.behind_wall:.2f},"
            f" {written.behind_cpu:.2f}",
            flush=True,
        )
        table["fast"] = written._asdict()
    first = True
    for key in args.lines.split(","):
        name = LINES[key]
        row, actions = timed(lines[key](), frames)
        if first:
            first = False
            expected, base = actions, row["frame"][0]
        drawn = config.model.head in ("flow", "expert")  # each program draws its own noise
        row |= {
            "ratio": base / row["frame"][0],
            "difference": np.nan if drawn else float(np.abs(actions - expected).max()),
        }
        row["action"] = [ms / config.model.chunk for ms in row["frame"]]
        stages = " ".join(f"{p50:8.2f} {p95:8.2f}" for p50, p95 in (row[stage] for stage in STAGES))
        print(
            f"{name:18s} {row['first_s']:7.2f}s {stages} {row['ratio']:6.2f}"
            f" {row['difference']:11.1e}",
            flush=True,
        )
        table[name] = row
    if exported:
        options = ("--device", args.device, "--dtype", args.dtype)
        served = server.measure_overhead(root / "artefact", args.frames, *options)
        trip, policy, added = (
            f"{p50:.2f} {p95:.2f}" for p50, p95 in (served.round_trip, served.policy, served.added)
        )
        print(
            f"served to one client on loopback, torch eager: round trip {trip}, of it the policy"
            f" {policy}; added {added}"
        )
        table["server"] = served._asdict()
    if args.device.startswith("cuda"):
        width = 2 if args.dtype == "bfloat16" else 4
        print(
            f"floor: {1e3 * count * width / _bandwidth(args.device):.2f} ms to read every weight"
            " once"
        )
    return table


def made(config: ConfigDict, root: Path) -> SavedPolicy:
    """A policy of random weights with all that belongs to it."""
    module, folder = build.backbone_module(config), root / "tokenizer"
    module.train_tiny_tokenizer(list(TEXTS), folder)
    encoder = module.load_tokenizer(folder, config.model.layout)
    end, vocabulary = build.backbone_config(config).vocab, None
    if config.model.head == "fast":
        vocabulary = fast.vocabulary(config)
    policy = build.model(config, end, vocabulary)
    params = policies.random_params(policy, np.random.default_rng(0))
    if vocabulary is not None:
        params = fast.writing(params, fast.string(config, vocabulary), end)
    names = tuple(config.model.action_names)
    stats = {
        key: np.full(len(names), value)
        for key, value in {"mean": 0, "std": 1, "min": -1, "max": 1, "q01": -1, "q99": 1}.items()
    }
    spec = ActionSpec.fit(names, build_heads.binary(config), stats, ("q99",))
    prompt = {"before": encoder.before, "template": module.prompt("{}"), "after": encoder.after}
    return SavedPolicy(
        build=policy,
        params=params,
        specs={"random": DatasetSpec(spec, None, None)},
        tokenizer=encoder.definition(),
        prompt=prompt | {"length": config.model.prompt_length},
        encode=encoder.encode,
        image_size=build.camera_sizes(config),
        resize=config.model.resize,
        dtype=config.model.act_dtype,
        origin={"checkpoint": "random weights of experiments.benchmark"},
        action_names=names,
        state_names=(),
        embodiments=(),
    )


def timed(call: Call, frames: Sequence[Seen]) -> tuple[dict[str, Any], np.ndarray]:
    """p50 and p95 in ms by stage after WARM calls, seconds of the first; and the actions [t
    k d].
    """
    begin = time.perf_counter()
    out = [call(frames[0])]
    first = time.perf_counter() - begin
    out += [call(frame) for frame in frames[1:]]
    row: dict[str, Any] = {"first_s": first}
    for stage in ("vision", "backbone", "frame"):
        row[stage] = np.percentile(
            [timing.get(stage, np.nan) for _, timing in out[WARM:]], (50, 95)
        ).tolist()
    return row, np.stack([actions for actions, _ in out])


def _jax(source: SavedPolicy, dtype: str) -> Call:
    graphdef = flat.abstract(source.build)[0]
    params = {name: jnp.asarray(value, jnp.dtype(dtype)) for name, value in source.params.items()}
    policy = JaxPolicy(graphdef, params, source.io(next(iter(source.specs))))
    policy.reset(TEXTS[0])
    look = jax.jit(
        lambda params, images: _model(graphdef, params).encode_cameras(
            images, jnp.ones((1, len(images)), bool)
        )
    )

    def call(seen: Seen) -> tuple[np.ndarray, dict[str, float]]:
        # The policy's own program does vision and tokens at once: the tower alone is timed beside
        # it.
        begin = time.perf_counter()
        jax.block_until_ready(look(params, tuple(image[None] for image in seen.images.values())))
        looked = time.perf_counter()
        actions = policy.act(seen.images, seen.proprio)
        vision, frame = 1e3 * (looked - begin), 1e3 * (time.perf_counter() - looked)
        return actions, {"vision": vision, "backbone": frame - vision, "frame": frame}

    return call


def _model(graphdef: Any, params: Any) -> VLA:
    model: Any = flat.merge(graphdef, params)
    return model


def _torch(
    folder: Path, args: argparse.Namespace, compile: bool, quantise: str | None = None
) -> Call:
    policy = torch_policy.load(folder, args.device, args.dtype, compile, quantise=quantise)
    policy.reset(TEXTS[0])

    def call(seen: Seen) -> tuple[np.ndarray, dict[str, float]]:
        begin = time.perf_counter()
        out = policy.act(seen.images, seen.proprio)
        frame = 1e3 * (time.perf_counter() - begin)
        return out["actions"], {
            **{name: out["timing"][name] for name in ("vision", "backbone")},
            "frame": frame,
        }

    return call


def _onnx(root: Path) -> Call:
    onnx.write(root / "artefact", root / "onnx")
    return _program(torch_policy.load(root / "artefact"), onnx.session(root / "onnx"))


def _pt2(root: Path, args: argparse.Namespace) -> Call:
    pt2.write(root / "artefact", root / "pt2", args.device)
    policy = torch_policy.load(root / "artefact", args.device, args.dtype)
    step = torch._inductor.aoti_load_package(str(root / "pt2" / "compiled.pt2"))
    return _program(policy, pt2.on_arrays(step, derived.example(policy)))


def _program(policy: torch_policy.Policy, run: Callable[[derived.Arrays], derived.Arrays]) -> Call:
    """A program of one step with its state: its stages cannot be told apart."""
    given = derived.example(policy)
    policy.reset(TEXTS[0])
    state = {
        name: derived.array(value)
        for name, value in given.items()
        if name.startswith(derived.STATE)
    }

    def call(seen: Seen) -> tuple[np.ndarray, dict[str, float]]:
        begin = time.perf_counter()
        noise = None if policy.network.head.noise_shape is None else policy.drawn()
        prepared = policy.prepared(seen.images, seen.proprio, noise=noise)
        out = run({name: state[name] if name in state else prepared[name][None] for name in given})
        state.update({name: out[f"next_{name}"] for name in state})
        actions = policy.commit_step(None, out["action"][0], None)["actions"]
        return actions, {"frame": 1e3 * (time.perf_counter() - begin)}

    return call


def _bandwidth(device: str) -> float:
    """Bytes per second that a copy on the device reads, best of ten."""
    a, best = torch.empty(1 << 30, dtype=torch.uint8, device=device), np.inf
    b = torch.empty_like(a)
    for _ in range(10):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        b.copy_(a)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end))
    return 2 * len(a) / (best / 1e3)  # it reads and writes; weights are only read


if __name__ == "__main__":
    main(sys.argv[1:])
