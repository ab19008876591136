"""Rounds of learning by trial: a policy acts, its decisions are scored, and it is updated a few
times on them.

A round follows from the seed, its number and the state before it: a run that was killed goes on as
if nothing had been.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.composition import steps
from experiments.composition.steps import Plan
from experiments.learning import batches, processors
from experiments.learning.collecting import Collector, Trial, of_round
from vla_jax import sharding
from vla_jax.params import Params, merge
from vla_jax.policy import JaxPolicy
from vla_jax.rl.learner import Decisions
from vla_jax.training.reports import Units
from vla_jax.training.state import TrainState, shardings_of

Reward = Callable[[list[Trial]], list[np.ndarray]]  # of each of a trial's decisions, [n]


class World(NamedTuple):
    """What of the world decides which episodes a round has: how many tasks and kinds of wording;
    and which of the policy's dims of actions vary there, [d].
    """

    tasks: int
    wordings: int
    moving: np.ndarray


class Rounds:
    """What a run does over and over."""

    def __init__(
        self, config: ConfigDict, plan: Plan, policy: JaxPolicy, reference: Params, world: World
    ) -> None:
        """`policy` is one of the plan's parameters, `reference` those before all learning."""
        self._config, self._plan, self._world = config, plan, world
        self._policy, self._reference = policy, reference
        names = tuple(config.model.action_names)
        # The loss says nothing of single dims.
        self._step = steps.train_step(plan, Units(names, np.ones((1, len(names)), np.float32)))
        self._scoring = batches.Scoring(config.rl.algorithm, config.rl.discount, config.rl.decay)
        self._judge = judge_step(plan)
        self._kept: Decisions | None = None

    def keep(self, collector: Collector, tasks: int, wordings: int) -> None:
        """Has the policy before all learning play rl.keep_episodes of other tasks, in another
        world, of so many tasks and kinds of wording: half of each update holds to what it says in
        them from now on.
        """
        config = self._config
        episodes = of_round(0, config.rl.keep_episodes, 1, tasks, wordings)
        trials = collector.collect(self._policy, episodes)
        decisions = batches.gathered(trials, config.model.window, self._world.moving)
        judged = self._over(decisions, partial(self._judge, self._reference, self._reference))
        self._kept = decisions._replace(
            reference=judged.reference, kept=np.ones(len(decisions.valid), bool)
        )

    def run(
        self, state: TrainState, number: int, collector: Collector, reward: Reward
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state after round `number`, counted from 1, and its row."""
        rl, world = self._config.rl, self._world
        began = processors.so_far(collector.processes)
        episodes = of_round(number - 1, rl.episodes, rl.trials, world.tasks, world.wordings)
        acting = self._acting(state)
        trials = collector.collect(self._policy.with_params(acting), episodes)
        collected = time.perf_counter()
        rewards = reward(trials)
        decisions = self._scored(acting, trials, rewards)
        state, reports, ended = self._updated(state, decisions, number)
        n, ended_at = len(decisions.valid), processors.so_far(collector.processes)
        row = {
            "step": number,
            "loss": _mean(reports, "loss"),
            **{f"train/{name}": _mean(reports, name) for name in reports[-1] if name != "loss"},
            "rl/success": float(np.mean([trial.success for trial in trials])),
            "rl/reward": float(np.mean([earned.sum() for earned in rewards])),
            "rl/episodes": number * rl.episodes * rl.trials,
            "rl/steps": float(np.mean([sum(trial.steps) for trial in trials])),
            "rl/divergence": reports[-1]["divergence"],
            "rl/updates": len(reports),
            "rl/ended_early": float(ended),
            "rl/lost": collector.lost,
            "rl/std": float(np.exp(np.mean(np.asarray(state.params["critic/log_std"])))),
            "rl/collect_s": collected - began.wall,
            "rl/learn_s": ended_at.wall - collected,
            "rl/decisions_per_s": n / (collected - began.wall),
            "rl/cpu": processors.share(began, ended_at),
        }
        return state, row

    def _acting(self, state: TrainState) -> Params:
        """The parameters as the train step computes with them, so that a ratio begins at 1; copies,
        as the state is given away.
        """
        dtype = self._plan.run.dtype
        params = {name: value.astype(dtype, copy=True) for name, value in state.params.items()}
        return {**params, **state.frozen}

    def _scored(self, acting: Params, trials: list[Trial], rewards: list[np.ndarray]) -> Decisions:
        config = self._config
        decisions = batches.gathered(trials, config.model.window, self._world.moving)
        judged = self._over(decisions, partial(self._judge, acting, self._reference))
        return batches.scored(decisions, judged, trials, rewards, self._scoring)

    def _over(self, decisions: Decisions, program: Callable[[Decisions], Any]) -> Any:
        """What a program says of all decisions, which it is asked a batch at a time."""
        config, parts, n = self._config, [], len(decisions.valid)
        for batch in batches.batches(decisions, config.batch_size, np.arange):
            placed = sharding.global_batch(batch, self._mesh, config.batch_size)
            parts.append(jax.device_get(program(placed)))
        return jax.tree.map(lambda *each: np.concatenate(each)[:n], *parts)

    def _updated(
        self, state: TrainState, decisions: Decisions, number: int
    ) -> tuple[TrainState, list[dict[str, float]], bool]:
        """The state after the epochs of a round, what each update said, and whether they ended
        early as the policy went too far.
        """
        config, reports = self._config, list[dict[str, float]]()
        for epoch in range(config.rl.epochs):
            draw = np.random.default_rng((config.seed, number, epoch))
            for batch in self._drawn(decisions, draw):
                placed = sharding.global_batch(batch, self._mesh, config.batch_size)
                state, report = self._step(state, placed)
                reports.append({name: float(x) for name, x in jax.device_get(report).items()})
                if reports[-1]["update"] > config.rl.update_limit:
                    return state, reports, True
        return state, reports, False

    def _drawn(self, decisions: Decisions, draw: np.random.Generator) -> Iterator[Decisions]:
        """All decisions once, a batch at a time, with kept ones beside them."""
        size = self._config.batch_size
        if self._kept is None:
            yield from batches.batches(decisions, size, draw.permutation)
            return
        own, there = size - size // 2, len(self._kept.valid)
        for batch in batches.batches(decisions, own, draw.permutation):
            kept = batches.rows_of(self._kept, draw.integers(there, size=size - own), size - own)
            yield jax.tree.map(lambda *parts: np.concatenate(parts), batch, kept)

    @property
    def _mesh(self) -> Any:
        return self._plan.abstract.step.sharding.mesh


def judge_step(plan: Plan) -> Any:
    """The jitted (parameters, those before all learning, decisions) -> Judged."""
    graphdef, mesh = plan.graphdef, plan.abstract.step.sharding.mesh

    def judge(params: Params, reference: Params, batch: Decisions) -> batches.Judged:
        with sharding.activations_over(mesh):
            model: Any = merge(graphdef, params)
            raw, value = model.judged(batch)
            before, _ = merge(graphdef, reference).judged(batch)  # type: ignore[attr-defined]
            log_prob = model.log_prob(raw, batch.chunk, batch.mask)
        return batches.Judged(log_prob, value, before)

    where = shardings_of(plan.abstract)
    params = {**where.params, **where.frozen}
    return jax.jit(
        judge,
        in_shardings=(params, params, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
    )


def _mean(reports: list[dict[str, float]], name: str) -> float:
    return float(np.mean([report[name] for report in reports]))
