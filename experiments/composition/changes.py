"""What may change in a run that goes on, and what happens then; a run's history of it.

`pretrain --change` lists what is other than until now, `--change=yes` goes on with it. What the
policy is made of does not change in place: another run begins from this one (model.start).
"""

import fnmatch
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.composition import steps
from experiments.composition.config import diff
from vla_jax.training.optim import make_schedule

HISTORY = "config_history.jsonl"

# Field -> what happens when it changes in a run that goes on; the first pattern counts. A field
# that is not here does not change in place.
HERE = "the same steps, on another machine or mesh"
# Runs from before these fields go on with today's defaults where these choose the same.
CHOICE = "other data, if it chooses other episodes"
EFFECTS = {
    "mesh.*": HERE,
    "data.root": HERE,
    "steps": "the run ends at another step; a decaying schedule bends from here on",
    "wandb": "from the next step on",
    "epochs": "the run ends at another step; a decaying schedule bends from here on",
    "log_every": "from the next step on",
    "eval_every": "from the next step on",
    "eval_batches": "from the next evaluation on",
    "early_stop": "from the next evaluation on",
    "save_every": "from the next step on",
    "keep_checkpoints": "from the next save on",
    "rollouts.*": "from the next rollout on",
    "rl.environments": HERE,
    **dict.fromkeys(
        (
            "rl.episodes",
            "rl.trials",
            "rl.epochs",
            "rl.clip",
            "rl.update_limit",
            "rl.value",
            "rl.divergence",
            "rl.keep_episodes",
            "rl.keep_weight",
            "rl.discount",
            "rl.decay",
            "rl.budget",
            "rl.beta",
            "rl.critic_lr",
        ),
        "from the next round on",
    ),
    "nan_patience": "from the next step on",
    "accum": "the same batches, computed in other parts",
    "optim.mu_dtype": "the moments are kept, in the other type",
    "optim.*": "from the next step on; the moments are kept",
    "loss.*": "another loss from the next step on",
    "lora.dropout": "from the next step on",
    "augment.*": "from the next step on",
    "objectives.*.weight": "another loss from the next step on",
    "model.remat": "the same numbers, other memory",
    "model.layers": "the same numbers, another program",
    "model.eight_bits": "the same parameters, products in other bits from the next step on",
    "model.past_action_hidden": "from the next step on",
    "model.act_dtype": "of rollouts and exports of the checkpoints from here on",
    "seed": "another order of the data, other augmentation and noise",
    "batch_size": "other batches; a step is another number of windows",
    "data.ram_budget": "another order of the data",
    "data.windows_per_visit": "another order of the data",
    "data.stride": "other windows",
    "data.mixture": "other data",
    "data.datasets": "other data",
    "data.quarantine": "other data",
    "data.held_out": CHOICE,
    "data.skip_unlabelled": CHOICE,
    "data.min_length": CHOICE,
    "data.max_idle": CHOICE,
}


class Change(NamedTuple):
    """A field of a run's config that is other than before. `effect` is None where it cannot
    change in place.
    """

    field: str
    then: str  # JSON
    now: str
    effect: str | None

    def __str__(self) -> str:
        return f"{self.field}: there {self.then}, now {self.now}"


class Changed(NamedTuple):
    """What is other in a run from a step on: fields, what was said of its data and arrays, and a
    digest of the identity of the data.
    """

    step: int
    changes: list[Change]
    said: list[str]
    data: str

    @property
    def fields(self) -> dict[str, list[str]]:
        """{field: [then, now]}, JSON texts."""
        return {change.field: [change.then, change.now] for change in self.changes}

    @property
    def asked_for(self) -> dict[str, list[str]]:
        """The `fields` that needed --change."""
        own = {change.field for change in self.changes if change.effect not in (HERE, CHOICE)}
        return {name: pair for name, pair in self.fields.items() if name in own}


def since(then: ConfigDict, now: ConfigDict) -> list[Change]:
    """The fields that are other than `then`."""
    different = diff(then.to_dict(), now.to_dict())
    return [Change(field, *pair, effect(field)) for field, pair in different.items()]


def effect(field: str) -> str | None:
    """What happens when a field changes in place; None where it cannot."""
    matching = (text for pattern, text in EFFECTS.items() if fnmatch.fnmatchcase(field, pattern))
    return next(matching, None)


def check(changes: Iterable[Change], where: Path, asked: bool) -> None:
    """Raises ValueError for what cannot change in place, and, unless it was `asked` for, for what
    can. Where a run runs is its own affair, and whether data are others the data say.
    """
    other = [change for change in changes if change.effect is None]
    if other:
        raise ValueError(
            f"{where} holds another run:{_lines(other)}\nthese make another policy or other"
            " targets and do not change in place. Give the same config, or begin another run from"
            f" this one: --workdir=DIR --config.model.start={where / 'checkpoints'} (its"
            " parameters; with --config.model.start_state=full its optimizer and step too)"
        )
    asking = [change for change in changes if change.effect not in (HERE, CHOICE)]
    if asking and not asked:
        raise ValueError(
            f"{where} holds a run with another config:{_lines(asking)}\ngive the same config, or"
            " --change, which lists what that does, and --change=yes, which goes on so; or another"
            " --workdir=DIR"
        )


def table(changes: Iterable[Change]) -> str:
    """A line for each change with what it does."""
    rows = [(str(change), change.effect or "") for change in changes]
    width = max((len(first) for first, _ in rows), default=0)
    return "\n".join(f"  {first:{width}s}  {second}" for first, second in rows)


def rates(then: ConfigDict, now: Callable[[int], Any], step: int, windows: int) -> list[str]:
    """A line where the learning rate of the next step is another than with the config `then`;
    `windows` are those of an epoch.
    """
    per_epoch = windows / then.batch_size
    settings = steps.optimizer_config(then, per_epoch)
    before = float(make_schedule(settings, steps.length(then, per_epoch), per_epoch)(step))
    after = float(now(step))
    return [] if before == after else [f"  learning rate: until now {before:.4g}, now {after:.4g}"]


def record(folder: Path, changed: Changed) -> None:
    """Adds it to the history of the run in `folder`, whole or not at all."""
    row = {
        "step": changed.step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "changes": changed.fields,
        "said": changed.said,
        "data": changed.data,
    }
    file = folder / HISTORY
    part = file.with_name(file.name + ".part")
    part.write_text((file.read_text() if file.exists() else "") + json.dumps(row) + "\n")
    os.replace(part, file)


def recorded(folder: Path, step: int, data: str) -> bool:
    """Whether it was decided that the run goes on from `step` with the data of that digest."""
    file = folder / HISTORY
    rows = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return any(row["step"] == step and row["data"] == data for row in rows)


def _lines(changes: list[Change]) -> str:
    return "".join(f"\n  {change}" for change in changes)
