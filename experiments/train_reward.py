"""Trains a reward model from which of two clips was preferred (experiments.collect_preferences).

    python -m experiments.train_reward --config=blocks_reward.py --preferences DIR
    --config.model.start=RUN/checkpoints [--config.a.b=value ...] [--workdir=OUT] [--dry_run]

It is RUN's backbone with a number for each frame; a clip is worth their sum, and the odds that one
is preferred are exp of the difference (Bradley-Terry). A fifth of the pairs is held out: accuracy
and calibration on them come as reward.json and calibration.png. Run it again with the same
arguments and it continues from the last complete checkpoint.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.composition import beginning, dry_run, plots, steps, workdir
from experiments.composition.config import parse_argv, save
from experiments.composition.json_files import write_json
from experiments.composition.lock import held
from experiments.composition.starting import START, with_start
from experiments.composition.steps import Plan
from experiments.preferring import judged, pairs, seen
from experiments.rolling.actors import whose
from experiments.rolling.worlds import opened
from vla_jax import command, sharding
from vla_jax.params import Params, merge
from vla_jax.rl.reward import ALGORITHM, Comparisons
from vla_jax.saved import jax_policy, open_checkpoint
from vla_jax.training import compile_cache, train
from vla_jax.training.checkpoint import Checkpointer, complete_steps, load_meta
from vla_jax.training.metrics import Recorder
from vla_jax.training.reports import Units
from vla_jax.training.state import TrainState, shardings_of

HELD_OUT = 0.2  # of the pairs


class Data(NamedTuple):
    """What is learnt from and what it is judged by."""

    train: Comparisons
    held_out: Comparisons


def main(argv: list[str]) -> int:
    """Parses the flags and runs; returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--preferences", type=Path, help="the --out of collect_preferences")
    args = parse_argv(with_start(argv), own)
    config = args.config
    if args.dry_run:
        dry_run.show(config)
        return 0
    if config.rl.algorithm != ALGORITHM:
        raise ValueError(
            f"--config.rl.algorithm: expected {ALGORITHM!r}, got {config.rl.algorithm!r}; give"
            " --config=blocks_reward.py or one like it"
        )
    if args.preferences is None:
        raise ValueError("--preferences: expected the --out of experiments.collect_preferences")
    if jax.process_count() > 1:
        raise ValueError("experiments.train_reward: expected one process, got several hosts")
    print(compile_cache.enable(), flush=True)
    workdir.check_writable(args.workdir)
    with held(args.workdir):
        learn(config, args.preferences, args.workdir)
    return 0


def learn(config: ConfigDict, preferences: Path, folder: Path) -> None:
    """Learns to the end of config.steps, from the last complete checkpoint in the work directory
    `folder` if there is one.
    """
    workdir.check(folder, config, False)
    shown = pairs.load(preferences)
    made = pairs.choices(preferences, shown)
    counted = [choice for choice in made if choice.choice != "skip"]
    held_out = _held_out(len(shown.pairs), config.seed)
    parts = [
        [choice for choice in counted if (choice.pair in held_out) == out] for out in (False, True)
    ]
    if not all(parts):
        raise ValueError(
            f"{preferences}: expected choices of some pairs to learn from and of some to hold out,"
            f" got {len(parts[0])} and {len(parts[1])} of {len(shown.pairs)} pairs; choose more"
        )
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    plan = steps.plan(config, mesh)
    taken = beginning.start(config, plan)
    looked = _looked(config, shown)
    data = Data(*(seen.compared(shown, part, looked) for part in parts))
    print(f"{len(parts[0])} choices to learn from, {len(parts[1])} held out\n{taken}", flush=True)
    with contextlib.ExitStack() as stack:
        state = beginning.state(config, plan, taken)
        meta = load_meta(Path(config.model.start)) | {"config": config.to_dict()}
        identity = {"world": shown.world, "pairs": len(shown.pairs), "choices": len(made)}
        checkpointer = Checkpointer(folder / "checkpoints", meta, identity, config.keep_checkpoints)
        stack.callback(checkpointer.close)
        if complete_steps(folder / "checkpoints"):
            restored = checkpointer.restore(plan.abstract)
            assert restored is not None  # it is there
            state = restored
        save(config, folder / "config.json")
        done = checkpointer.latest() or 0
        recorder = Recorder(folder, done, config.steps, config.wandb, config.to_dict())
        stack.callback(recorder.close)
        state = _trained(config, plan, data.train, (state, done, recorder, checkpointer))
        scores, spread = _scores(config, plan, state, data.held_out)
        margin = scores[:, 0] - scores[:, 1]
        body = judged.figures(margin, np.asarray(data.held_out.choice)) | {"spread": spread}
    write_json(folder / "reward.json", body)
    if body["decided"]:
        judged.draw(body, folder / "calibration.png")
        print(
            f"held out, {body['decided']} decided pairs: accuracy {body['accuracy']:.1%}"
            f" [{100 * body['low']:.0f}, {100 * body['high']:.0f}], cross-entropy"
            f" {body['cross_entropy']:.3f} (a coin 0.693), calibration error"
            f" {body['calibration_error']:.3f}"
        )
    plots.curves(folder / "metrics.jsonl", [], folder / "curves.png")
    print(f"done: {folder}/reward.json, {folder}/curves.png, {folder}/checkpoints", flush=True)


def _held_out(count: int, seed: int) -> set[int]:
    """The pairs that are not learnt from: whole pairs, whoever judged them."""
    order = np.random.default_rng((seed, count)).permutation(count)
    return set(order[: max(1, round(HELD_OUT * count))].tolist())


def _looked(config: ConfigDict, shown: pairs.Pairs) -> Any:
    """All clips as the policy of the start sees them."""
    saved = open_checkpoint(Path(config.model.start))
    world = opened(shown.world["sim"], 1)[0]
    try:
        names = whose(world.about.datasets, saved.specs, f"{START}={config.model.start}")
        policy = jax_policy(saved, names)
        return seen.watched(world, policy, shown, config.model.chunk, config.model.window)
    finally:
        world.close()


def _trained(config: ConfigDict, plan: Plan, data: Comparisons, run: Any) -> TrainState:
    """The state after the last step. A step's pairs follow from the seed and its number."""
    state, done, recorder, checkpointer = run
    names, size = tuple(config.model.action_names), config.batch_size
    step = steps.train_step(plan, Units(names, np.ones((1, len(names)), np.float32)))
    mesh: Any = plan.abstract.step.sharding.mesh
    n = len(data.valid)
    with train.asked_to_stop() as asked:
        for number in range(done + 1, config.steps + 1):
            epoch, at = divmod((number - 1) * size, -(-n // size) * size)
            order = np.random.default_rng((config.seed, epoch)).permutation(n)
            batch = seen.rows_of(data, order[at : at + size], size)
            state, report = step(state, sharding.global_batch(batch, mesh, size))
            stop, last = asked(number), number == config.steps
            if number % config.log_every == 0 or stop or last:
                row = {name: float(x) for name, x in jax.device_get(report).items()}
                named = {f"train/{k}": v for k, v in row.items() if k != "loss"}
                recorder.write({"step": number, "loss": row["loss"], **named})
                recorder.progress(number, row["loss"])
            if stop or last or number % config.save_every == 0:
                checkpointer.save(number, state)
            if stop:
                checkpointer.wait()
                raise SystemExit(train.SIGTERM_EXIT)
    checkpointer.wait()
    return state


def _scores(
    config: ConfigDict, plan: Plan, state: TrainState, data: Comparisons
) -> tuple[np.ndarray, float]:
    """What the clips of each pair are worth, [n 2], and how far that is apart among all of them (a
    standard deviation), in which rewards are counted.
    """
    mesh: Any = plan.abstract.step.sharding.mesh
    where = shardings_of(plan.abstract)

    def scores(params: Params, batch: Comparisons) -> Any:
        with sharding.activations_over(mesh):
            model: Any = merge(plan.graphdef, params)
            return model.scores(batch.obs, batch.looks)

    judge = jax.jit(
        scores,
        in_shardings=({**where.params, **where.frozen}, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )
    params, parts = {**state.params, **state.frozen}, []
    for places in seen.in_order(len(data.valid), config.batch_size):
        batch = seen.rows_of(data, places, config.batch_size)
        placed = sharding.global_batch(batch, mesh, config.batch_size)
        parts.append(jax.device_get(judge(params, placed))[: len(places)])
    both = np.concatenate(parts)
    return both, float(both.std())


if __name__ == "__main__":
    command.run(main)
