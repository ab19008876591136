"""What a run is measured by while it trains: the loss on held-out windows, and what a robot would
carry out on some of them, also where the instruction is blanked or another window's, and where the
pictures are blank. (experiments.evaluate prints the same figures of all windows, computed in
model.act_dtype as a rollout is, and not in model.dtype.)
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.mixture import Member
from experiments.composition import cotraining, sources, steps
from experiments.composition.executed import Tally, carried_out, motion, recorded, together
from experiments.composition.open_loop import Policy, asked, blanked, swapped, unseen
from vla_jax import sharding
from vla_jax.actions import places
from vla_jax.training import train
from vla_jax.training.reports import Units
from vla_jax.training.state import TrainState
from vla_jax.types import Batch

WINDOWS = 256  # that are acted on, in whole batches, if as many are evaluated

Numbers = dict[str, float]


class Asked(NamedTuple):
    """The chunks [b k d] of a batch, network units, as it is and with each change; on the
    devices.
    """

    ids: np.ndarray  # of all hosts' windows
    chunks: list[Any]


def evaluation(
    config: ConfigDict, source: sources.Data, plan: steps.Plan, mesh: Mesh, units: Units
) -> Callable[[TrainState], Numbers] | None:
    """What measures a state on held-out windows, the same ones each time. None with eval_every=0:
    there need be none. Raises ValueError for early stopping without evaluations.
    """
    if not config.eval_every:
        if config.early_stop:
            raise ValueError(
                f"--config.early_stop: {config.early_stop} counts evaluations, and eval_every=0"
                " makes none; give eval_every, or early_stop=0"
            )
        return None
    rows = sharding.rows(mesh, config.batch_size)
    loader = sources.loader(config, source, source.held_out, shuffle=True, rows=rows)
    texts = cotraining.reader(config, source.texts, "held_out", rows)
    step, act = steps.eval_step(plan, units), steps.act_step(plan)
    count = max(1, min(config.eval_batches, loader.windows // config.batch_size))
    acted_on = min(count, -(-WINDOWS // config.batch_size))
    changes = {
        "instruction_blanked": blanked(source.encode(""), config.model.prompt_length),
        "instruction_swapped": swapped,
        "images_blanked": unseen,
    }
    space = tuple(config.model.action_names)

    def place(local: Any) -> Any:
        return sharding.global_batch(local, mesh, config.batch_size)

    def evaluate(state: TrainState) -> Numbers:
        policy = Policy(partial(act, state), place, config.model.chunk)
        told: list[Asked] = []

        def whole() -> Iterator[Batch]:
            read = cotraining.batches(loader, texts)
            try:
                for number, batch in enumerate(islice(read, count)):
                    placed = place(batch)
                    if number < acted_on:
                        ids = loader.ids(number, np.arange(config.batch_size))
                        said = asked(policy, batch.obs, number, [*changes.values()], placed.obs)
                        told.append(Asked(ids, said))
                    yield placed
            finally:
                read.close()  # stops the loader's thread

        numbers = train.evaluate(step, state, whole(), units)
        return numbers | acted(source.held_out, space, told, list(changes))

    return evaluate


def acted(
    members: Sequence[Member], space: Sequence[str], told: Sequence[Asked], changes: Sequence[str]
) -> Numbers:
    """The figures of executed.together of what a policy of the dims `space` said of windows of
    `members`; gap/CHANGE is how many times as large the arm error of whole chunks is with a change.
    """
    plain, *others = ([*_tallies(members, space, told, i)] for i in range(1 + len(changes)))
    figures = together(plain)
    loss = figures["executed_arm"]
    for name, tallies in zip(changes, others, strict=True):
        changed = together(tallies)["executed_arm"]
        figures[f"gap/{name}"] = changed / loss if loss else float("nan")
    return figures


def _tallies(
    members: Sequence[Member], space: Sequence[str], told: Sequence[Asked], which: int
) -> Iterator[Tally]:
    """One for each dataset, of what was said as it is (`which` 0) or with a change."""
    first = 0  # id of a dataset's first window
    for member in members:
        spec, split = member.action_spec, member.index.splits[member.split]
        own = places(spec.names, space)
        tally = Tally(spec, motion(member.index.dataset))
        for ids, chunks in told:
            mine = (ids >= first) & (ids < first + len(split.actions))
            if not mine.any():
                continue
            said, at = np.asarray(chunks[which])[mine][..., own], ids[mine] - first
            true, within = recorded(split, at, said.shape[1])
            given, none = carried_out(member, said, at)
            tally.add(given, true, within, np.asarray(split.state[at]), none)
        first += len(split.actions)
        yield tally
