"""Rewards that a model gives in place of the world's own word on success: what people prefer
(experiments.train_reward), or the chance of success (experiments.train_success).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.composition.plots import plt, save
from experiments.learning.batches import windows_of
from experiments.learning.collecting import Trial
from vla_jax import build
from vla_jax import params as flat
from vla_jax.rl import success
from vla_jax.rl.reward import shares
from vla_jax.saved import REWARDS, known
from vla_jax.saved_config import of_checkpoint
from vla_jax.training.checkpoint import load_meta, load_params, within
from vla_jax.types import Observation

CHANCE = "chance of success"  # the unit of a classifier, which is that of the world's word too
LEAST = 1e-6  # standard deviations, or logits, that rewards of frames are apart, at least
SIZE = 16  # windows that are judged at once
TOGETHER = 32  # trials whose windows are made at once
# What a policy sees must be what the model was trained on.
SAME = (
    "backbone", "variant", "cameras", "image_size", "image_sizes", "window", "chunk", "proprio",
    "state_words", "state_names", "prompt_length", "resize", "layout", "history",
)  # fmt: skip


class Worth:
    """What a reward model says of windows of frames.

    Attributes:
        config: its own.
        meta: of its checkpoints, in the folder `where`.
    """

    def __init__(self, folder: Path, asked: str) -> None:
        """`folder` is a work directory of train_reward or train_success. Raises ValueError, which
        begins with `asked`, for what is none.
        """
        self.where = within(folder.expanduser())
        self.meta = load_meta(self.where)
        self.config = of_checkpoint(self.meta, self.where)
        if self.config.rl.algorithm not in REWARDS:
            raise ValueError(
                f"{asked}: expected a work directory of experiments.train_reward or"
                " experiments.train_success, got a run that learns a policy"
            )
        graphdef, shapes, _ = flat.abstract(
            build.training_model(self.config, *known(self.config, self.where))
        )
        params = load_params(self.where)
        self._params = {name: jax.numpy.asarray(params[name]) for name in shapes}

        def worth(params: flat.Params, obs: Observation) -> Any:
            model: Any = flat.merge(graphdef, params)
            return model.worth(obs)

        self._worth = jax.jit(worth)

    def __call__(self, windows: Observation) -> np.ndarray:
        """Of each of the windows [n t ...], [n]."""
        parts, n = [], len(windows.step_mask)
        for at in range(0, n, SIZE):
            rows = np.minimum(np.arange(at, at + SIZE), n - 1)
            filled = jax.tree.map(lambda x, rows=rows: x[rows], windows)
            parts.append(np.asarray(self._worth(self._params, filled)))
        return np.concatenate(parts)[:n]


class Learned:
    """The Reward of a model. Of one of preferences a decision earns what the frame after it is
    worth by how much that counts (`shares`), in standard deviations of clips; of a success
    classifier the last decision earns the chance that the episode ended well, the others nothing,
    as of_success gives 1 or 0.

    Attributes:
        unit: of what an episode earns.
    """

    def __init__(self, folder: Path, config: ConfigDict) -> None:
        """`folder` is a work directory of train_reward or train_success, `config` that of the
        policy that learns. Raises ValueError for what is no reward model, and for one that sees
        other things than the policy.
        """
        self._asked = f"--config.rl.reward={folder}"
        self._worth = Worth(folder, self._asked)
        own = self._worth.config
        start = load_meta(Path(config.model.start))
        other = [name for name in SAME if _plain(own.model[name]) != _plain(config.model[name])]
        mine = self._worth.meta["tokenizer"]["sha256"]
        other += ["tokenizer"] * (mine != start["tokenizer"]["sha256"])
        if other:
            raise ValueError(
                f"{self._asked}: expected a model that sees what the policy sees, got another"
                f" {', '.join(other)}; train it from {config.model.start}"
            )
        self._window, self._every = own.model.window, own.model.chunk
        self._at_end = own.rl.algorithm == success.ALGORITHM
        self.unit, self._spread = CHANCE, 1.0
        if not self._at_end:
            self.unit = "standard deviations of clips"
            told = json.loads((self._worth.where.parent / "reward.json").read_text("utf-8"))
            if "steps" not in told:
                raise ValueError(
                    f"{self._asked}: expected a model whose clips count by their steps, got one of"
                    " an earlier version; train it again"
                )
            self._spread, self._steps = told["spread"], told["steps"]

    def __call__(self, trials: Sequence[Trial]) -> list[np.ndarray]:
        """What each decision of each trial earned, [n]. Raises ValueError where what all of them
        earned does not depend on what is seen. (Of one trial it may not: nothing moved.)
        """
        said = list[np.ndarray]()
        for at in range(0, len(trials), TOGETHER):
            said += self._said(trials[at : at + TOGETHER])
        longer = [each for each in said if len(each) > 1 and np.isfinite(each).all()]
        if longer and all(np.ptp(each) < LEAST for each in longer):
            raise ValueError(
                f"{self._asked}: gives {longer[0][0]:.6g} for every frame of an episode, in all"
                f" {len(longer)} of them: nothing is learnt from a constant; look at its"
                " calibration.png"
            )
        return [self._earned(*each) for each in zip(said, trials, strict=True)]

    def _said(self, trials: Sequence[Trial]) -> list[np.ndarray]:
        """What the model says of the frame after each decision of each trial, [n]."""
        frames, lengths = list[Observation](), list[int]()
        for trial in trials:
            assert trial.last is not None  # the collector was asked for it
            frames += [*trial.frames, trial.last]
            lengths.append(len(trial.frames) + 1)
        ends = np.cumsum(lengths, dtype=int)
        after = np.delete(np.arange(len(frames)), ends - np.array(lengths))
        windows = windows_of(frames, self._window, lengths)
        worth = self._worth(jax.tree.map(lambda x: x[after], windows)) / self._spread
        return np.split(worth, (ends - np.arange(1, len(trials) + 1))[:-1])

    def _earned(self, said: np.ndarray, trial: Trial) -> np.ndarray:
        if self._at_end:
            last = np.arange(len(said)) == len(said) - 1
            return np.asarray(np.where(last, success.chance(said), 0.0), np.float32)
        return said * shares([*trial.steps, 0], self._every, self._steps)[1:]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def draw(metrics: Path, out: Path, unit: str) -> None:
    """Draws what the model says of each round, in its `unit`, beside how often the world saw a
    success: where the first rises and the second does not, the policy has learnt to please the
    model.
    """
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "rl/reward" in row]
    figure, axis = plt.subplots(figsize=(7, 4))
    beside = axis.twinx()
    at = [row["step"] for row in rows]
    axis.plot(at, [row["rl/reward"] for row in rows], color="tab:orange", label="learned reward")
    beside.plot(at, [row["rl/success"] for row in rows], color="tab:blue", label="true success")
    axis.set(xlabel="round", ylabel=f"learned reward, {unit}")
    if unit == CHANCE:
        axis.set_ylim(0, 1)
    beside.set(ylabel="success of trials", ylim=(0, 1))
    beside.legend(handles=[*axis.lines, *beside.lines], loc="lower right")
    save(figure, out)
