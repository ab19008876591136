"""Improves a policy by trial in a simulated world: PPO, or GRPO.

    python -m experiments.finetune_rl --config=blocks_ppo.py --config.model.start=RUN/checkpoints
    [--config.a.b=value ...] [--workdir=DIR] [--dry_run] [--change[=yes]]

The policy of RUN acts with noise, what succeeded becomes likelier. `config.steps` counts rounds: in
each it plays `rl.episodes` and learns from them. Run it again with the same arguments and it
continues from the last complete checkpoint; where the config is another, --change lists what that
does and --change=yes goes on so. What it leaves is an ordinary run: evaluate, rollout,
export and serve take it. It exits with 143 where SIGTERM asked it to save and stop.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from experiments import sims
from experiments.composition import beginning, changes, dry_run, plots, sources, steps, workdir
from experiments.composition.closed_loop import Rollouts
from experiments.composition.config import parse_argv, save
from experiments.composition.digests import digest as file_digest
from experiments.composition.lock import held
from experiments.composition.starting import START, with_start
from experiments.learning import judging
from experiments.learning.batches import moving, of_success
from experiments.learning.collecting import Collector
from experiments.learning.judging import Learned
from experiments.learning.rounds import Reward, Rounds, World
from experiments.rolling.actors import check_renderer, whose
from experiments.rolling.worlds import About, apart
from vla_jax import command, sharding
from vla_jax.models.tokenizer import digest
from vla_jax.policy import JaxPolicy
from vla_jax.rl.learner import ALGORITHMS
from vla_jax.saved import known, open_checkpoint
from vla_jax.training import compile_cache, train
from vla_jax.training.checkpoint import Checkpointer, complete_steps, find, load_meta
from vla_jax.training.clock import Clock
from vla_jax.training.metrics import Recorder
from vla_jax.training.state import TrainState


def main(argv: list[str]) -> int:
    """Parses the flags and runs; returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument(
        "--change", nargs="?", const="list", default="", choices=("list", "yes"),
        help="list what another config means for the run; yes: go on with it",
    )  # fmt: skip
    args = parse_argv(with_start(argv), own)
    config = args.config
    if args.dry_run:
        dry_run.show(config)
        return 0
    if config.rl.algorithm not in ALGORITHMS:
        raise ValueError(
            f"--config.rl.algorithm: expected one of {', '.join(ALGORITHMS)}, got"
            f" {config.rl.algorithm!r}"
        )
    for field in ("sim", "keep"):
        name = config.rl[field].partition(":")[0]
        if name not in sims.SIMS and (name or field == "sim"):
            raise ValueError(
                f"--config.rl.{field}: expected one of {', '.join(sims.SIMS)}, got {name!r}"
            )
    if jax.process_count() > 1:
        raise ValueError("experiments.finetune_rl: expected one process, got several hosts")
    print(compile_cache.enable(), flush=True)
    workdir.check_writable(args.workdir)
    with held(args.workdir):
        learn(config, args.workdir, args.change)
    return 0


class Run(NamedTuple):
    """What goes on from round to round, and what it reports to."""

    rounds: Rounds
    collector: Collector
    reward: Reward
    recorder: Recorder
    checkpointer: Checkpointer
    clock: Clock
    rollouts: Rollouts | None


def learn(config: ConfigDict, folder: Path, change: str = "") -> None:
    """Learns to the end of config.steps, from the last complete checkpoint in the work directory
    `folder` if there is one.

    Args:
        change: what to do where the config is other than until now: "" refuses, "list" refuses
            after listing what it means, "yes" goes on so.
    """
    before = workdir.check(folder, config, bool(change))
    if before is not None and before.changes:
        print(f"from the next round on:\n{changes.table(before.changes)}", flush=True)
    if change == "list":
        raise ValueError(f"--change: {folder} is as it was; --change=yes goes on so")
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    plan = steps.plan(config, mesh, 1.0, *known(config, Path(config.model.start)))
    taken = beginning.start(config, plan)
    with contextlib.ExitStack() as stack:
        sim, count = config.rl.sim, config.rl.episodes * config.rl.trials
        collector = _collector(config, sim, count, bool(config.rl.reward))
        stack.callback(collector.close)
        reward = Learned(Path(config.rl.reward), config) if config.rl.reward else of_success
        about = collector.about
        check_renderer(config.model.start, None, about)
        saved = open_checkpoint(Path(config.model.start))
        io = saved.io(whose(about.datasets, saved.specs, f"{START}={config.model.start}"))
        print(f"{sim}: {', '.join(about.tasks)}\n{taken}", flush=True)
        state = beginning.state(config, plan, taken)
        reference = {  # copies: the state is given away at its first update
            name: jnp.array(value, plan.run.dtype, copy=True)
            for name, value in {**state.params, **state.frozen}.items()
        }
        checkpointer = Checkpointer(
            folder / "checkpoints", *_described(config, folder, about), config.keep_checkpoints
        )
        stack.callback(checkpointer.close)
        if complete_steps(folder / "checkpoints"):
            restored = checkpointer.restore(plan.abstract)
            assert restored is not None  # it is there
            state = restored
        done = checkpointer.latest() or 0
        save(config, folder / "config.json")
        policy = JaxPolicy(plan.graphdef, reference, io)
        world = World(len(about.tasks), len(about.wordings), moving(config, io))
        clock = Clock(folder / "goodput.json")
        clock.resume(done)
        recorder = Recorder(folder, done, config.steps, config.wandb, config.to_dict())
        stack.callback(recorder.close)
        if before is not None and before.changes:
            fields = changes.Changed(done, before.changes, [], "").asked_for
            recorder.changed(done, fields)
        rollouts = None
        if config.rollouts.sim:
            rollouts = Rollouts(config.rollouts, folder, recorder, checkpointer)
            stack.callback(rollouts.close)
            rollouts.resume(done, config.steps)
        rounds = Rounds(config, plan, policy, reference, world)
        if config.rl.keep:
            _keep(config, rounds, about)
        run = Run(rounds, collector, reward, recorder, checkpointer, clock, rollouts)
        _loop(config, run, state, done)
    if config.rl.reward:
        assert isinstance(reward, Learned)
        judging.draw(folder / "metrics.jsonl", folder / "reward.png", reward.unit)
    plots.curves(folder / "metrics.jsonl", [], folder / "curves.png")
    print(f"done: {folder}/metrics.jsonl, {folder}/curves.png, {folder}/checkpoints", flush=True)


def _collector(config: ConfigDict, sim: str, count: int, ending: bool) -> Collector:
    """What plays `count` episodes of a world at a time, to be closed; `ending` is Collector's."""
    worlds = apart(sim, min(config.rl.environments, count))
    # Where the head alone learns, what it read while it acted holds for all of a round.
    reading = config.rl.head_only
    return Collector(worlds, lambda: apart(sim, 1)[0], config.seed, ending, reading)


def _keep(config: ConfigDict, rounds: Rounds, learnt: About) -> None:
    """Has the tasks of rl.keep played, once. Raises ValueError where they are another robot's than
    those that are `learnt`, or some of them.
    """
    count = config.rl.keep_episodes
    with contextlib.closing(_collector(config, config.rl.keep, count, False)) as collector:
        about = collector.about
        if about.datasets != learnt.datasets:
            raise ValueError(
                f"--config.rl.keep: expected a world of {', '.join(learnt.datasets)} as rl.sim"
                f" is, got one of {', '.join(about.datasets)}"
            )
        if both := sorted(set(about.tasks) & set(learnt.tasks)):
            raise ValueError(
                f"--config.rl.keep: expected tasks that rl.sim={config.rl.sim} does not play, got"
                f" {', '.join(both)}"
            )
        print(f"kept as they are: {', '.join(about.tasks)}, {count} episodes", flush=True)
        rounds.keep(collector, len(about.tasks), len(about.wordings))


def _loop(config: ConfigDict, run: Run, state: TrainState, done: int) -> None:
    """The rounds after the first `done`."""
    with train.asked_to_stop() as asked, run.clock.during("productive"):
        for number in range(done + 1, config.steps + 1):
            state, row = run.rounds.run(state, number, run.collector, run.reward)
            run.recorder.write(row)
            spent = config.rl.budget and row["rl/divergence"] > config.rl.budget
            stop, last = asked(number), number == config.steps or spent
            if stop or last or number % config.save_every == 0:
                with run.clock.during("checkpoint"):
                    run.clock.saving(number)
                    run.checkpointer.save(number, state)
                if run.rollouts is not None and not stop:
                    run.rollouts.saved(number, last)
            if run.rollouts is not None:
                run.rollouts.look()
            run.recorder.progress(number, row["loss"])
            if stop:
                run.recorder.say(f"SIGTERM: round {number} is saved; the same command goes on")
                run.checkpointer.wait()
                raise SystemExit(train.SIGTERM_EXIT)
            if spent:
                run.recorder.say(
                    f"round {number}: {row['rl/divergence']:.3g} nats a chunk from the start, more"
                    f" than rl.budget={config.rl.budget:g}: ended"
                )
                break
    with run.clock.during("checkpoint"):
        run.checkpointer.wait()
    if run.rollouts is not None:
        with run.clock.during("evaluation"):
            run.rollouts.wait()
    run.clock.write()


def _described(
    config: ConfigDict, folder: Path, about: About
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The meta item of the run's checkpoints, which is that of the start's but for the config, and
    what must be the same where it goes on.
    """
    start = Path(config.model.start)
    tokenizer = sources.tokenizer(config, [], folder)
    meta = load_meta(start) | {
        "config": config.to_dict(),
        "revision": sources.revision(),
        "tokenizer": {"folder": str(tokenizer.absolute()), "sha256": digest(tokenizer)},
    }
    return meta, {"start": file_digest(find(start, None)), "sim": config.rl.sim, **about.facts}


if __name__ == "__main__":
    command.run(main)
