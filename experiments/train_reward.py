"""Trains a reward model from which of two clips was preferred (experiments.collect_preferences).

    python -m experiments.train_reward --config=blocks_reward.py --preferences DIR [DIR ...]
    --config.model.start=RUN/checkpoints [--config.a.b=value ...] [--workdir=OUT] [--dry_run]

It is RUN's backbone with a number for each frame; a clip is worth their mean, each by the steps to
the next, the last one by those to the length of the longest clip, and the odds that one is
preferred are exp of the difference (Bradley-Terry). A fifth of the episodes is held out: accuracy
and calibration on their pairs come as reward.json and calibration.png. Run it again with the same
arguments and it continues from the last complete checkpoint.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.composition import beginning, plots, steps, workdir
from experiments.composition.config import save
from experiments.composition.json_files import write_json
from experiments.preferring import judged, learning, seen
from vla_jax import command, sharding
from vla_jax.rl.reward import ALGORITHM
from vla_jax.saved import known
from vla_jax.training.metrics import Recorder


def main(argv: list[str]) -> int:
    """Parses the flags and runs; returns the exit code."""
    return learning.begin(argv, ALGORITHM, "blocks_reward.py", learn)


def learn(config: ConfigDict, preferences: Sequence[Path], folder: Path) -> None:
    """Learns to the end of config.steps, from the last complete checkpoint in the work directory
    `folder` if there is one.
    """
    workdir.check(folder, config, False)
    own = learning.chosen(preferences, config.seed)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    plan = steps.plan(config, mesh, 1.0, *known(config, Path(config.model.start)))
    taken = beginning.start(config, plan)
    _, _, clips = learning.looked(config, own.pairs)
    data = seen.compared(own.pairs, own.train, clips)
    held_out = seen.compared(own.pairs, own.held_out, clips)
    print(f"{len(own.train)} choices to learn from, {len(own.held_out)} held out\n{taken}")
    with contextlib.ExitStack() as stack:
        state = beginning.state(config, plan, taken)
        state, checkpointer = learning.opened_run(config, plan, folder, own.identity, state)
        stack.callback(checkpointer.close)
        save(config, folder / "config.json")
        done = checkpointer.latest() or 0
        recorder = Recorder(folder, done, config.steps, config.wandb, config.to_dict())
        stack.callback(recorder.close)
        run = learning.Run(recorder, checkpointer, lambda _: ({}, False))
        state = learning.trained(config, plan, data, run, state)
        judge = learning.Judge(config, plan, lambda model, x: model.scores(x.obs, x.counts))
        scores = judge(state, held_out)
    body = judged.figures(scores[:, 0] - scores[:, 1], np.asarray(held_out.choice))
    # Among clips, in which rewards are counted; and how many steps each is counted as.
    units = {"spread": float(scores.std()), "steps": seen.longest(clips)}
    write_json(folder / "reward.json", body | units)
    if body["decided"]:
        judged.draw(body, folder / "calibration.png")
        print(f"held out: {judged.text(body)}")
    plots.curves(folder / "metrics.jsonl", [], folder / "curves.png")
    print(f"done: {folder}/reward.json, {folder}/curves.png, {folder}/checkpoints", flush=True)


if __name__ == "__main__":
    command.run(main)
