"""Trains a classifier of success from episodes that say how they ended.

    python -m experiments.train_success --config=blocks_success.py --config.data.root=ROOT
    --config.data.mixture=NAME [--config.data.datasets=FILE.py]
    --config.model.start=RUN/checkpoints [--last N] [--config.a.b=value ...] [--workdir=OUT]
    [--dry_run]

It is RUN's backbone with a number for each frame, the logit of the chance that the episode has
succeeded there. The last N frames of a success are to be called so; frames of its first half and
all of a failure are not. Accuracy, confusion and calibration on the held-out episodes, asked at
their last frames, come as success.json and calibration.png. It is then a reward
(finetune_rl --config.rl.reward=OUT) and a filter of data (experiments.judge). Run it again with the
same arguments and it continues from the last complete checkpoint.
"""

import argparse
import contextlib
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.index import Index, Split, open_index
from experiments.composition import beginning, datasets, plots, selecting, steps, workdir
from experiments.composition.config import parse_argv, save
from experiments.composition.json_files import write_json
from experiments.composition.starting import START, with_start
from experiments.preferring import learning
from experiments.succeeding import figures, looks
from vla_jax import command, sharding
from vla_jax.rl.success import ALGORITHM
from vla_jax.saved import jax_policy, known, open_checkpoint
from vla_jax.training.metrics import Recorder


def main(argv: list[str]) -> int:
    """Parses the flags and runs; returns the exit code."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument(
        "--last", type=command.positive, default=1,
        help="frames at the end of a success that show it; 1 by default",
    )  # fmt: skip
    args = parse_argv(with_start(argv), own)
    run = functools.partial(learn, args.config, args.last, args.workdir)
    return learning.run(args, ALGORITHM, "blocks_success.py", run)


def learn(config: ConfigDict, last: int, folder: Path) -> None:
    """Learns to the end of config.steps, from the last complete checkpoint in the work directory
    `folder` if there is one.
    """
    workdir.check(folder, config, False)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    plan = steps.plan(config, mesh, 1.0, *known(config, Path(config.model.start)))
    taken = beginning.start(config, plan)
    index, train, held_out = opened(config)
    frames = frames_of(config, index)
    most = config.data.ram_budget
    data, _ = looks.looks(frames, train, last, config.seed, most)
    judged_on, ends = looks.looks(frames, held_out, 1, config.seed, most)
    print(f"{len(data.valid):,} frames to learn from\n{taken}")
    with contextlib.ExitStack() as stack:
        state = beginning.state(config, plan, taken)
        identity = {"data": index.digest, "outcomes": _digest(train, held_out), "last": last}
        state, checkpointer = learning.opened_run(config, plan, folder, identity, state)
        stack.callback(checkpointer.close)
        save(config, folder / "config.json")
        done = checkpointer.latest() or 0
        recorder = Recorder(folder, done, config.steps, config.wandb, config.to_dict())
        stack.callback(recorder.close)
        run = learning.Run(recorder, checkpointer, lambda _: ({}, False))
        state = learning.trained(config, plan, data, run, state)
        judge = learning.Judge(config, plan, lambda model, x: model.worth(x.obs))
        logit = judge(state, judged_on)
    body = figures.figures(logit[ends], np.asarray(judged_on.success)[ends])
    # Of frames before the end: a reward for each of them would be given too early so often.
    body |= {"early_called_success": float((logit[~ends] > 0).mean()) if (~ends).any() else None}
    write_json(folder / "success.json", body)
    figures.draw(body, folder / "calibration.png")
    plots.curves(folder / "metrics.jsonl", [], folder / "curves.png")
    print(f"held out: {figures.text(body)}")
    print(f"done: {folder}/success.json, {folder}/curves.png, {folder}/checkpoints", flush=True)


def opened(config: ConfigDict) -> tuple[Index, Split, Split]:
    """The dataset, the split to learn from and the one that is held out. Raises ValueError for
    several datasets, for one without outcomes, or with too few of a kind.
    """
    wanted = [dataset for dataset, _ in datasets.members(config)]
    if len(wanted) != 1:
        names = ", ".join(dataset.name for dataset in wanted)
        raise ValueError(f"--config.data.mixture: expected one dataset, got {names or 'none'}")
    looks.check_says(wanted[0])
    index = open_index(datasets.root(config), wanted[0], selection=selecting.of_config(config))
    train, held_out = index.splits["train"], index.held_out
    if held_out is None:
        raise ValueError(
            "--config.data.held_out: expected episodes that are held out, got none: nothing would"
            " say how well success is told"
        )
    looks.check(index, (train, held_out))
    return index, train, held_out


def frames_of(config: ConfigDict, index: Index) -> looks.Frames:
    """The frames as the policy of the start sees them."""
    saved = open_checkpoint(Path(config.model.start))
    name = looks.robot(saved, index.dataset, f"{START}={config.model.start}")
    if name != index.dataset.name:
        print(f"{index.dataset.name}: its numbers are read as those of {name}")
    policy = jax_policy(saved, name)
    return looks.Frames(index, looks.Watching(policy, config.model.chunk, config.model.window))


def _digest(*splits: Split) -> str:
    told: Any = [split.outcome.tolist() for split in splits]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


if __name__ == "__main__":
    command.run(main)
