"""Improves a policy by which of two clips was preferred, without a reward model (DPO).

    python -m experiments.finetune_preferences --config=blocks_dpo.py --preferences DIR [DIR ...]
    --config.model.start=RUN/checkpoints [--config.a.b=value ...] [--workdir=OUT] [--dry_run]

What was done in the clip that was preferred becomes likelier than what was done in the other
(experiments.collect_preferences), measured against RUN's policy. A fifth of the episodes is held
out; rows tell how often the policy has the better one likelier there, and how far it is from RUN's:
the run ends where that is more than rl.budget nats a chunk. What it leaves is an ordinary run.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments.composition import beginning, plots, steps, workdir
from experiments.composition.config import save
from experiments.composition.json_files import write_json
from experiments.learning.batches import moving
from experiments.preferring import judged, learning, seen
from vla_jax import command, sharding
from vla_jax.rl.direct import Contests
from vla_jax.rl.learner import DIRECT
from vla_jax.saved import known
from vla_jax.training.metrics import Recorder
from vla_jax.training.state import TrainState


def main(argv: list[str]) -> int:
    """Parses the flags and runs; returns the exit code."""
    return learning.begin(argv, DIRECT, "blocks_dpo.py", learn)


def learn(config: ConfigDict, preferences: Sequence[Path], folder: Path) -> None:
    """Learns to the end of config.steps or of its budget, from the last complete checkpoint in the
    work directory `folder` if there is one.
    """
    workdir.check(folder, config, False)
    own = learning.chosen(preferences, config.seed)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    plan = steps.plan(config, mesh, 1.0, *known(config, Path(config.model.start)))
    taken = beginning.start(config, plan)
    saved, name, clips = learning.looked(config, own.pairs)
    dims = moving(config, saved.io(name))
    data = seen.contests(own.pairs, own.train, clips, dims)
    held_out = seen.contests(own.pairs, own.held_out, clips, dims)
    print(f"{len(own.train)} choices to learn from, {len(own.held_out)} held out\n{taken}")
    with contextlib.ExitStack() as stack:
        state = beginning.state(config, plan, taken)
        says = learning.Judge(config, plan, lambda model, x: model.raw(x).reshape(x.chunk.shape))
        data, held_out = (x._replace(reference=says(state, x)) for x in (data, held_out))
        state, checkpointer = learning.opened_run(config, plan, folder, own.identity, state)
        stack.callback(checkpointer.close)
        save(config, folder / "config.json")
        done = checkpointer.latest() or 0
        recorder = Recorder(folder, done, config.steps, config.wandb, config.to_dict())
        stack.callback(recorder.close)
        judge = learning.Judge(config, plan, lambda model, x: model.margins(x))

        def over(state: TrainState) -> tuple[dict[str, float], bool]:
            body, apart = _figures(judge, state, held_out)
            told = {"val/right": body.get("accuracy", float("nan")), "val/divergence": apart}
            spent = bool(0 < config.rl.budget < apart)
            if spent:
                recorder.say(f"{apart:.3g} nats a chunk from the start: the budget is spent")
            return told, spent

        run = learning.Run(recorder, checkpointer, over)
        state = learning.trained(config, plan, data, run, state)
        body, apart = _figures(judge, state, held_out)
    write_json(folder / "preferences.json", body | {"divergence": apart})
    if body["decided"]:
        print(f"held out: {judged.text(body)}; {apart:.3g} nats a chunk from the start")
    plots.curves(folder / "metrics.jsonl", [], folder / "curves.png")
    print(f"done: {folder}/metrics.jsonl, {folder}/curves.png, {folder}/checkpoints", flush=True)


def _figures(
    judge: learning.Judge, state: TrainState, data: Contests
) -> tuple[dict[str, Any], float]:
    """What the policy has likelier of held-out pairs, and its distance from the start, nats a
    chunk.
    """
    margin, apart = judge(state, data)
    return judged.figures(margin, np.asarray(data.choice)), float(apart.mean())


if __name__ == "__main__":
    command.run(main)
