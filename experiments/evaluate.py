"""Open-loop evaluation of a trained policy on held-out episodes.

    python -m experiments.evaluate --workdir=DIR [--without=DIR] [--max_windows=N] [--batch_size=N]

What is printed is what a robot would carry out: the chunk at each frame, planned from the window
that ends there, in the units and limits of the robot, computed in model.act_dtype as a rollout is.
experiments.replay prints the same figures of the exported policy, and begins anew where the
instruction changes inside an episode. (val/ in metrics.jsonl is the training's own loss: it also
counts what the model says at a window's earlier frames, which have seen less: 0.0425 for 0.0415 of
the demo's policy.)

Prints the held-out arm loss of the policy beside two figures it must beat: that of the best
constant action, and its own with every instruction blanked. `--without` is the work directory of a
run trained with data.blank_instruction=True: what can be had without language at all. Writes
evaluation.json and actions.png (predicted against true over one episode) into DIR.

Parameters and batches are split over all devices of this machine; --batch_size, of all of them, is
the training's by default. --max_windows draws so many of each dataset, the same ones each time.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from ml_collections import ConfigDict

from data_pipelines import order
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member
from experiments.composition import plots, sources
from experiments.composition.executed import (
    DELTA,
    Tally,
    arm,
    carried_out,
    huber,
    motion,
    recorded,
)
from experiments.composition.json_files import write_json
from experiments.composition.open_loop import Change, Policy, asked, blanked, program
from vla_jax import build, command, sharding
from vla_jax import params as flat
from vla_jax.actions import ActionSpec, places
from vla_jax.models.tokenizer import digest
from vla_jax.progress import Progress
from vla_jax.saved_config import of_checkpoint
from vla_jax.training.checkpoint import find, load_arrays, load_meta

BLOCK = 1 << 14  # windows of which recorded actions are in memory at a time, or a batch's
HALVINGS = 30  # of the range in which the best constant is sought

# Recorded chunks in network units [n k d], and which of their steps count [n k].
Blocks = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]


def main(argv: list[str]) -> None:
    """Evaluates the policy of a run: its best checkpoint where it marks one, else its newest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument(
        "--without", type=Path, default=None, help="a run trained with data.blank_instruction=True"
    )
    parser.add_argument(
        "--max_windows", type=command.positive, default=None, help="of each dataset"
    )
    parser.add_argument(
        "--batch_size", type=command.positive, default=None, help="windows at a time"
    )
    args = parser.parse_args(argv)
    mesh = sharding.make_mesh(1, -1, 1)
    result = evaluate(args.workdir, mesh, args.max_windows, args.batch_size)
    if args.without is not None:
        other = evaluate(args.without, mesh, args.max_windows, args.batch_size)
        for name, numbers in other["datasets"].items():
            result["datasets"][name]["arm_loss_trained_without_instruction"] = numbers["arm_loss"]
    for name, numbers in result["datasets"].items():
        report(name, result["step"], numbers)
    write_json(args.workdir / "evaluation.json", result)


def report(name: str, step: int, numbers: dict[str, Any]) -> None:
    """Prints the figures of one dataset."""
    policy, constant = numbers["arm_loss"], numbers["arm_loss_best_constant"]
    print(
        f"held-out arm loss of whole chunks, {numbers['windows']} of {numbers['of']} windows of"
        f" {name}, step {step}:"
    )
    print(f"  policy                        {policy:.5f}")
    print(
        f"  best constant action          {constant:.5f}   policy / constant ="
        f" {policy / constant:.3f}"
    )
    for key, label in (
        ("arm_loss_instruction_blanked", "policy, instruction blanked "),
        ("arm_loss_trained_without_instruction", "trained without instruction "),
    ):
        if key in numbers:
            print(f"  {label}  {numbers[key]:.5f}   blanked / policy = {numbers[key] / policy:.2f}")
    grip = numbers["gripper_accuracy"]
    print(
        f"the next action: arm error {numbers['arm_error']:.5f}, gripper accuracy"
        f" {'none' if grip is None else f'{grip:.4f}'}; mean absolute error in robot units:"
    )
    print("  " + "  ".join(f"{dim} {value:.4g}" for dim, value in numbers["l1"].items()))
    steps = numbers["arm_error_by_step"]
    print(f"after a chunk of {len(steps)} the robot is off by, in robot units (drift):")
    drift = {dim: value for dim, value in numbers["drift"].items() if value is not None}
    print("  " + ("  ".join(f"{dim} {value:.4g}" for dim, value in drift.items()) or "no chunk"))
    print("  arm error by chunk step: " + " ".join(f"{error:.4g}" for error in steps))


def evaluate(
    workdir: Path, mesh: Mesh, most: int | None = None, batch_size: int | None = None
) -> dict[str, Any]:
    """All figures of one run as a JSON-able dict, by dataset, of at most `most` windows of each;
    draws actions.png of the first.
    """
    meta = load_meta(workdir / "checkpoints")
    config = of_checkpoint(meta, workdir)
    parts = mesh.size
    config.batch_size = -(-(batch_size or config.batch_size) // parts) * parts
    source = sources.data(config, workdir, training=False)
    _check(workdir, config, meta, source)
    policy = opened(workdir, config, source, mesh)
    blank = blanked(source.encode(""), config.model.prompt_length)
    by_dataset = {}
    for number, member in enumerate(source.held_out):
        member = dataclasses.replace(member, weight=1.0)  # each window once
        by_dataset[member.index.dataset.name] = figures(config, source, member, policy, blank, most)
        if number == 0:
            whole = sources.loader(config, source, [member], shuffle=False)
            own = places(member.action_spec.names, config.model.action_names)
            draw(policy, whole, member, own, workdir / "actions.png")
    return {"step": int(find(workdir / "checkpoints", None).name), "datasets": by_dataset}


def _check(workdir: Path, config: ConfigDict, meta: dict[str, Any], source: sources.Data) -> None:
    """Raises ValueError unless the data and the tokenizer are those of the run."""
    if not source.held_out:
        raise ValueError(
            f"{workdir}: expected held-out episodes to evaluate on, got none: the run was trained"
            f" with data.held_out={config.data.held_out} and eval_every=0"
        )
    for member in source.train:
        name = member.index.dataset.name
        if ActionSpec.from_json(meta["datasets"][name]["action"]) != member.action_spec:
            raise ValueError(
                f"{workdir}: the checkpoint normalises actions of {name} otherwise than the data"
                f" under {config.data.root} says; evaluate with the data it was trained on"
            )
    if meta["tokenizer"]["sha256"] != digest(source.tokenizer):
        raise ValueError(
            f"{workdir}: the tokenizer in {source.tokenizer} is not the one the checkpoint was"
            " trained with"
        )


def opened(workdir: Path, config: ConfigDict, source: sources.Data, mesh: Mesh) -> Policy:
    """The policy of a run (checkpoint.find), its parameters read straight into their shardings."""
    make = build.model(config, *source.known)
    graphdef, shapes, logical = flat.abstract(make)
    where = sharding.resolve(shapes, logical, mesh)
    specs = {
        name: jax.ShapeDtypeStruct(leaf.shape, config.model.act_dtype, sharding=where[name])
        for name, leaf in shapes.items()
    }
    with Progress("reading parameters"):
        weights = load_arrays(workdir / "checkpoints", specs)

    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    act = jax.jit(program(graphdef, mesh), in_shardings=(where, split, whole), out_shardings=whole)

    def place(rows: Any) -> Any:
        return sharding.global_batch(rows, mesh, config.batch_size)

    return Policy(partial(act, weights), place, config.model.chunk)


def figures(
    config: ConfigDict,
    source: sources.Data,
    member: Member,
    policy: Policy,
    blank: Change,
    most: int | None,
) -> dict[str, Any]:
    """The figures of one dataset: one pass over its held-out windows, or `most` drawn ones."""
    split, spec = member.index.splits[member.split], member.action_spec
    every = order.windows(split.length, config.data.stride)
    count = min(most or every, every)
    loader = sources.loader(config, source, [member], shuffle=count < every)
    batches = -(-count // config.batch_size)
    plain, without = Tally(spec, motion(member.index.dataset)), Tally(spec)
    own = places(spec.names, config.model.action_names)
    name = f"evaluate {member.index.dataset.name}"
    with Progress(name, count, "windows") as progress:
        for number, told in enumerate(chunks(loader, policy, blank, batches)):
            rows = loader.ids(number)[: count - number * config.batch_size]
            true, within = recorded(split, rows, policy.chunk)
            state = np.asarray(split.state[rows])
            for tally, said in zip((plain, without), told, strict=True):
                given, none = carried_out(member, said[: len(rows), :, own], rows)
                tally.add(given, true, within, state, none)
            progress.add(len(rows), f"arm loss {plain.arm_loss():.5f}")

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        several = max(1, BLOCK // config.batch_size)
        for first in range(0, batches, several):
            numbers = range(first, min(first + several, batches))
            rows = np.concatenate([loader.ids(number) for number in numbers])
            rows = rows[: count - first * config.batch_size]
            true, within = recorded(split, rows, policy.chunk)
            state = np.asarray(split.state[rows])[:, None]
            yield spec.normalise(true, state)[..., arm(spec)], within

    constant = best_constant(blocks, f"{name}, best constant action")
    return {
        **plain.figures(),
        "of": every,
        "arm_loss_best_constant": constant,
        "arm_loss_instruction_blanked": without.arm_loss(),
    }


def chunks(
    loader: Loader, policy: Policy, blank: Change, batches: int
) -> Iterator[tuple[Float[np.ndarray, "b k d"], Float[np.ndarray, "b k d"]]]:
    """What the policy says at the first `batches`, and with the instruction blanked: read one batch
    late, while the devices work on the next.
    """
    running: list[Any] = []
    with closing(loader.batches(0)) as read:
        for number, batch in enumerate(islice(read, batches)):
            before, running = running, asked(policy, batch.obs, number, (blank,))
            if before:
                yield np.asarray(before[0]), np.asarray(before[1])
    if running:
        yield np.asarray(running[0]), np.asarray(running[1])


def best_constant(blocks: Blocks, name: str = "best constant action") -> float:
    """The least mean arm error that one fixed action per (k, d) can reach on these very targets.

    Fitted on the data it is judged on, so nothing constant can do better. The error is convex in
    each number, so the sign of its slope says on which side the best one lies.

    Args:
        blocks: gives the targets anew at each call: network units [n k d], and their mask [n k].
        name: of the progress.
    """
    limits = [
        (np.where(m[..., None], x, np.inf).min(0), np.where(m[..., None], x, -np.inf).max(0))
        for x, m in blocks()
    ]
    low = np.min([low for low, _ in limits], axis=0).astype(np.float64)  # k d
    high = np.max([high for _, high in limits], axis=0).astype(np.float64)
    low, high = np.where(low > high, 0.0, low), np.where(low > high, 0.0, high)  # no step there

    def total(of: Callable[[np.ndarray], np.ndarray], constant: np.ndarray) -> np.ndarray:
        return sum(
            (np.where(m[..., None], of(constant - x), 0.0).sum(0) for x, m in blocks()),
            start=np.zeros_like(constant),
        )

    with Progress(name, HALVINGS, "passes") as progress:
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            rises = total(lambda error: np.clip(error, -DELTA, DELTA), middle) > 0
            low, high = np.where(rises, low, middle), np.where(rises, middle, high)
            progress.add(1)
    steps = sum(int(m.sum()) for _, m in blocks())
    return float(total(huber, (low + high) / 2).sum() / (steps * low.shape[-1]))


def draw(policy: Policy, loader: Loader, member: Member, own: list[int], out: Path) -> None:
    """Predicted against true first action of every frame of the first held-out episode, in robot
    units. `loader` reads in file order; `own` are the dims of the dataset among the policy's.
    """
    split = member.index.splits[member.split]
    first = int(np.flatnonzero(split.length)[0])
    length, size = int(split.length[first]), len(loader.ids(0))
    said = [
        np.asarray(policy.act(policy.place(loader.batch(number).obs), number))
        for number in range(-(-length // size))
    ]
    true, _ = recorded(split, np.arange(length), 1)
    plots.actions(
        carried_out(member, np.concatenate(said)[:length, :, own], np.arange(length))[0][:, 0],
        true[:, 0],
        member,
        f"held-out episode {first}: {loader.instruction(first)!r}",
        out,
    )


if __name__ == "__main__":
    command.run(main)
