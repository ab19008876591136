"""model.state_words from the data to the robot: a run learns with it, its artefact acts alike."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.builders.blocks import write_blocks
from tests.experiments.test_pretrain import run
from vla_jax.export import artefact
from vla_jax.robot import torch_policy
from vla_jax.saved import jax_policy, open_checkpoint

SHORT = [
    "--config=blocks.py:expert", "--config.model.state_words=True", "--config.steps=4",
    "--config.model.prompt_length=32",
    "--config.batch_size=8", "--config.log_every=2", "--config.eval_every=0",
    "--config.save_every=4", "--config.optim.warmup_steps=1",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_is_told_the_state_in_words_and_its_artefact_acts_alike(tmp_path: Path) -> None:
    """What exporting proves is of states that differ; sessions in one batch act as each alone."""
    write_blocks(tmp_path / "data", train=6, val=2, seed=0)
    done = run(*SHORT, f"--config.data.root={tmp_path / 'data'}", f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    opened = open_checkpoint(tmp_path / "checkpoints")
    assert not any(name.startswith("state/") for name in opened.params)
    artefact.write(opened, tmp_path / "artefact", "float32")
    policy = torch_policy.load(tmp_path / "artefact")
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in policy.cameras}
    noise = rng.standard_normal(policy.network.head.noise_shape).astype(np.float32)
    policy.reset("push the red block left")
    spec = policy.state_spec
    assert spec is not None
    states = spec.unnormalise(rng.uniform(-1, 1, (2, len(spec.names))))
    alone, sessions = [], [policy.new_session() for _ in states]
    for state, session in zip(states, sessions, strict=True):
        policy.reset("push the red block left")
        alone.append(policy.act(images, state, noise=noise)["actions"])
        session.reset("push the red block left")
    given = [
        session.prepared(images, state, noise=noise)
        for session, state in zip(sessions, states, strict=True)
    ]
    for out, expected in zip(torch_policy.act_together(sessions, given), alone, strict=True):
        np.testing.assert_allclose(out["actions"], expected, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
    in_jax = jax_policy(opened, "blocks")
    in_jax.reset("push the red block left")
    with pytest.raises(ValueError, match="proprio: expected x, y"):
        in_jax.act(images)
