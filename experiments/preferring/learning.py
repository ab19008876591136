"""What a run that learns from preferences does, whatever it makes of them: its choices, what is
held out, and steps over pairs.

Axes: n pairs.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.composition import dry_run, steps, workdir
from experiments.composition.config import parse_argv
from experiments.composition.lock import held
from experiments.composition.starting import START, with_start
from experiments.composition.steps import Plan
from experiments.learning import batches
from experiments.preferring import pairs, seen
from experiments.preferring.pairs import Choice, Pairs
from experiments.preferring.seen import Watched
from experiments.rolling.actors import whose
from experiments.rolling.worlds import opened
from vla_jax import sharding
from vla_jax.params import Params, merge
from vla_jax.saved import SavedPolicy, jax_policy, open_checkpoint
from vla_jax.training import compile_cache, train
from vla_jax.training.checkpoint import Checkpointer, complete_steps, load_meta
from vla_jax.training.metrics import Recorder
from vla_jax.training.reports import Units
from vla_jax.training.state import TrainState, shardings_of

HELD_OUT = 0.2  # of the episodes
PLAYED = ("sim", "keep", "reward")  # fields of rl that say what is played, and what for


def begin(
    argv: list[str],
    algorithm: str,
    file: str,
    learn: Callable[[ConfigDict, Sequence[Path], Path], None],
) -> int:
    """Parses the flags of a command that learns from preferences by `algorithm`, as the config
    `file` does, and runs learn(config, preferences, workdir); the exit code. Raises ValueError for
    another algorithm, without preferences, and on several hosts.
    """
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument(
        "--preferences",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="each --out of collect_preferences",
    )
    args = parse_argv(with_start(argv), own)
    if args.preferences is None and not args.dry_run:
        raise ValueError("--preferences: expected the --out of experiments.collect_preferences")
    return run(args, algorithm, file, lambda: learn(args.config, args.preferences, args.workdir))


def run(args: argparse.Namespace, algorithm: str, file: str, learn: Callable[[], None]) -> int:
    """Runs `learn` where the parsed flags of a command ask for `algorithm`, as the config `file`
    does; the exit code. Raises ValueError for another algorithm, where something is to be played,
    and on several hosts.
    """
    config = args.config
    if args.dry_run:
        dry_run.show(config)
        return 0
    if config.rl.algorithm != algorithm:
        raise ValueError(
            f"--config.rl.algorithm: expected {algorithm!r}, got {config.rl.algorithm!r}; give"
            f" --config={file} or one like it"
        )
    for field in PLAYED:
        if config.rl[field]:
            raise ValueError(
                f"--config.rl.{field}: expected none, got {config.rl[field]!r}: with"
                f" rl.algorithm={algorithm} nothing is played; experiments.finetune_rl does"
            )
    if jax.process_count() > 1:
        raise ValueError(f"rl.algorithm={algorithm}: expected one process, got several hosts")
    print(compile_cache.enable(), flush=True)
    workdir.check_writable(args.workdir)
    with held(args.workdir):
        learn()
    return 0


class Chosen(NamedTuple):
    """The pairs, all choices, and those to learn from and to judge by."""

    pairs: Pairs
    made: list[Choice]
    train: list[Choice]
    held_out: list[Choice]

    @property
    def identity(self) -> dict[str, Any]:
        """What of it is the same as long as a run goes on."""
        counts = {"pairs": len(self.pairs.pairs), "choices": len(self.made)}
        return {"world": self.pairs.world, **counts}


def chosen(folders: Sequence[Path], seed: int) -> Chosen:
    """The choices in the folders of collections; whole episodes are held out, with all their pairs:
    of a scene that it has seen a model knows by heart who did better. Raises ValueError as
    pairs.joined does, and where either part would be empty.
    """
    shown, made = pairs.joined(folders)
    counted = [choice for choice in made if choice.choice != "skip"]
    of = [pair.left.episode for pair in shown.pairs]
    episodes = np.random.default_rng((seed, len(of))).permutation(np.unique(of))
    out = set(episodes[: max(1, round(HELD_OUT * len(episodes)))].tolist())
    parts = [[choice for choice in counted if (of[choice.pair] in out) == held] for held in (0, 1)]
    if not all(parts):
        raise ValueError(
            f"{', '.join(map(str, folders))}: expected choices of some pairs to learn from and of"
            f" some to hold out, got {len(parts[0])} and {len(parts[1])}, of {len(episodes)}"
            " episodes; choose between pairs of more"
        )
    return Chosen(shown, made, *parts)


def looked(config: ConfigDict, shown: Pairs) -> tuple[SavedPolicy, str, dict[pairs.Clip, Watched]]:
    """The policy of the start, the dataset of the world's robot that it knows, and all clips as it
    sees them.
    """
    saved = open_checkpoint(Path(config.model.start))
    world = opened(shown.world["sim"], 1)[0]
    try:
        name = whose(world.about.datasets, saved.specs, f"{START}={config.model.start}")
        policy = jax_policy(saved, name)
        every, window = config.model.chunk, config.model.window
        return saved, name, seen.watched(world, policy, shown, every, window)
    finally:
        world.close()


def opened_run(
    config: ConfigDict, plan: Plan, folder: Path, identity: dict[str, Any], state: TrainState
) -> tuple[TrainState, Checkpointer]:
    """The checkpoints of a work directory, and the state to go on from: the newest there, or
    `state`. `identity` says of what it learns, and may not change.
    """
    meta = load_meta(Path(config.model.start)) | {"config": config.to_dict()}
    checkpointer = Checkpointer(folder / "checkpoints", meta, identity, config.keep_checkpoints)
    if complete_steps(folder / "checkpoints"):
        restored = checkpointer.restore(plan.abstract)
        assert restored is not None  # it is there
        state = restored
    return state, checkpointer


class Run(NamedTuple):
    """What a run reports to. `over` is asked for each row: what else it tells, and whether the run
    ends there.
    """

    recorder: Recorder
    checkpointer: Checkpointer
    over: Callable[[TrainState], tuple[dict[str, float], bool]]


def trained(config: ConfigDict, plan: Plan, data: Any, run: Run, state: TrainState) -> TrainState:
    """The state after the last step. A step's pairs follow from the seed and its number."""
    names, size = tuple(config.model.action_names), config.batch_size
    step = steps.train_step(plan, Units(names, np.ones((1, len(names)), np.float32)))
    n, done = len(data.valid), run.checkpointer.latest() or 0
    with train.asked_to_stop() as asked:
        for number in range(done + 1, config.steps + 1):
            epoch, at = divmod((number - 1) * size, -(-n // size) * size)
            order = np.random.default_rng((config.seed, epoch)).permutation(n)
            batch = batches.rows_of(data, order[at : at + size], size)
            state, report = step(state, sharding.global_batch(batch, _mesh(plan), size))
            stop, last = asked(number), number == config.steps
            if number % config.log_every == 0 or stop or last:
                row = {name: float(x) for name, x in jax.device_get(report).items()}
                named = {f"train/{name}": x for name, x in row.items() if name != "loss"}
                more, over = run.over(state)
                last = last or over
                run.recorder.write({"step": number, "loss": row["loss"], **named, **more})
                run.recorder.progress(number, row["loss"])
            if stop or last or number % config.save_every == 0:
                run.checkpointer.save(number, state)
            if stop:
                run.checkpointer.wait()
                raise SystemExit(train.SIGTERM_EXIT)
            if last:
                break
    run.checkpointer.wait()
    return state


class Judge:
    """A method of the model on each pair of some data, in batches of one size."""

    def __init__(self, config: ConfigDict, plan: Plan, method: Callable[[Any, Any], Any]) -> None:
        """`method(model, batch)` gives leaves [n ...]."""
        where, mesh = shardings_of(plan.abstract), _mesh(plan)

        def judge(params: Params, batch: Any) -> Any:
            with sharding.activations_over(mesh):
                return method(merge(plan.graphdef, params), batch)

        self._size, self._mesh = config.batch_size, mesh
        self._judge = jax.jit(
            judge,
            in_shardings=({**where.params, **where.frozen}, sharding.batch_sharding(mesh)),
            out_shardings=sharding.replicated(mesh),
        )

    def __call__(self, state: TrainState, data: Any) -> Any:
        """Of all of `data`, numpy."""
        params, parts = {**state.params, **state.frozen}, []
        for batch in batches.batches(data, self._size, np.arange):
            placed = sharding.global_batch(batch, self._mesh, self._size)
            parts.append(jax.device_get(self._judge(params, placed)))
        n = len(data.valid)
        return jax.tree.map(lambda *rows: np.concatenate(rows)[:n], *parts)


def _mesh(plan: Plan) -> Any:
    return plan.abstract.step.sharding.mesh
