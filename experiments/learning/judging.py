"""Rewards that a model of preferences gives (experiments.train_reward), in place of the world's own
word on success.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.composition.plots import plt, save
from experiments.learning.batches import window_of
from experiments.learning.collecting import Trial
from vla_jax import build
from vla_jax import params as flat
from vla_jax.rl.reward import ALGORITHM
from vla_jax.saved import known
from vla_jax.saved_config import of_checkpoint
from vla_jax.training.checkpoint import load_meta, load_params, within
from vla_jax.types import Observation

LEAST = 1e-6  # standard deviations that rewards of frames are apart, at least
SIZE = 16  # windows that are judged at once
# What a policy sees must be what the model was trained on.
SAME = (
    "backbone", "variant", "cameras", "image_size", "image_sizes", "window", "chunk", "proprio",
    "state_words", "state_names", "prompt_length", "resize", "layout", "history",
)  # fmt: skip


class Learned:
    """The Reward of a model: a decision earns what the frame after it is worth, in standard
    deviations of clips.
    """

    def __init__(self, folder: Path, config: ConfigDict) -> None:
        """`folder` is a work directory of train_reward, `config` that of the policy that learns.
        Raises ValueError for what is no reward model, and for one that sees other things than the
        policy.
        """
        where = within(folder.expanduser())
        meta = load_meta(where)
        own = of_checkpoint(meta, where)
        if own.rl.algorithm != ALGORITHM:
            raise ValueError(
                f"--config.rl.reward={folder}: expected a work directory of"
                " experiments.train_reward, got a run that learns a policy"
            )
        start = load_meta(Path(config.model.start))
        other = [name for name in SAME if _plain(own.model[name]) != _plain(config.model[name])]
        other += ["tokenizer"] * (meta["tokenizer"]["sha256"] != start["tokenizer"]["sha256"])
        if other:
            raise ValueError(
                f"--config.rl.reward={folder}: expected a model that sees what the policy sees, got"
                f" another {', '.join(other)}; train it from {config.model.start}"
            )
        self._window, self._where = own.model.window, folder
        self._spread = json.loads((where.parent / "reward.json").read_text())["spread"]
        graphdef, shapes, _ = flat.abstract(build.training_model(own, *known(own, where)))
        params = load_params(where)
        self._params = {name: jax.numpy.asarray(params[name]) for name in shapes}

        def worth(params: flat.Params, obs: Observation) -> Any:
            model: Any = flat.merge(graphdef, params)
            return model.worth(obs)

        self._worth = jax.jit(worth)

    def __call__(self, trial: Trial) -> np.ndarray:
        """What each decision of a trial earned, [n]. Raises ValueError for rewards that do not
        depend on what is seen.
        """
        assert trial.last is not None  # the collector was asked for it
        frames = [*trial.frames, trial.last]
        windows = [window_of(frames, i, self._window) for i in range(1, len(frames))]
        obs = jax.tree.map(lambda *rows: np.concatenate(rows), *windows)
        parts = []
        for at in range(0, len(windows), SIZE):
            rows = np.minimum(np.arange(at, at + SIZE), len(windows) - 1)
            filled = jax.tree.map(lambda x, rows=rows: x[rows], obs)
            parts.append(np.asarray(self._worth(self._params, filled)))
        earned = np.concatenate(parts)[: len(windows)] / self._spread
        if len(earned) > 1 and np.isfinite(earned).all() and np.ptp(earned) < LEAST:
            raise ValueError(
                f"--config.rl.reward={self._where}: gives {earned[0]:.6g} for every frame of an"
                " episode: nothing is learnt from a constant; look at its calibration.png"
            )
        return np.asarray(earned, np.float32)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


def draw(metrics: Path, out: Path) -> None:
    """Draws what the model says of each round beside how often the world saw a success: where the
    first rises and the second does not, the policy has learnt to please the model.
    """
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if "rl/reward" in row]
    figure, axis = plt.subplots(figsize=(7, 4))
    beside = axis.twinx()
    at = [row["step"] for row in rows]
    axis.plot(at, [row["rl/reward"] for row in rows], color="tab:orange", label="learned reward")
    beside.plot(at, [row["rl/success"] for row in rows], color="tab:blue", label="true success")
    axis.set(xlabel="round", ylabel="learned reward, standard deviations of clips")
    beside.set(ylabel="success of trials", ylim=(0, 1))
    figure.legend(loc="lower right")
    save(figure, out)
