"""An artefact whose actions are relative to the state where their chunk starts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import export
from tests.export.test_export import NAMES, SPEC, checkpoint, frames_in_a_row_are_as_frame_by_frame
from vla_jax import saved
from vla_jax.export import artefact
from vla_jax.robot import torch_policy
from vla_jax.robot.relative import to_absolute, to_relative
from vla_jax.robot.torch_policy import folder, golden

PARTS = [
    {"kind": "number", "action": [0, 1, 2], "state": [0, 1, 2]},
    {"kind": "quat_xyzw", "action": [3, 4, 5, 6], "state": [3, 4, 5, 6]},
]
WHOLE = {**SPEC, "binary": [], "relative": PARTS}


@pytest.fixture(scope="module")
def where(tmp_path_factory) -> Path:
    return checkpoint(
        tmp_path_factory.mktemp("relative"), head="mlp", past_action=True, window=2, action=WHOLE
    )


@pytest.fixture(scope="module")
def written(where: Path) -> Path:
    """Its network sees no state."""
    out = where.parent / "artefact"
    proof = artefact.write(export.source(where), out, "float32")
    assert [row.exceeds for row in proof["float32"]] == [False] * 4
    return out


def episode(steps: int) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    rng = np.random.default_rng(2)
    states = rng.uniform(-0.5, 0.5, (steps, 7)).astype(np.float32)
    states[:, 3:] /= np.linalg.norm(states[:, 3:], axis=1, keepdims=True)
    images = rng.integers(0, 256, (steps, 32, 32, 3), dtype=np.uint8)
    return [({"primary": image}, state) for image, state in zip(images, states, strict=True)]


@pytest.mark.slow
def test_torch_gives_the_robot_what_jax_gives_it(where: Path, written: Path) -> None:
    policy, ours = torch_policy.load(written), saved.jax_policy(export.source(where), "blocks")
    for each in (policy, ours):
        each.reset("push the red block")
    said = []
    for images, state in episode(5):
        actions = policy.act(images, state)["actions"]
        np.testing.assert_allclose(actions, ours.act(images, state), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(actions[:, 3:], axis=1), 1, atol=1e-6)
        said.append(actions - state)
    assert np.ptp(said, axis=0).max() > 0.01


def test_several_frames_in_a_row_and_several_episodes_at_once(written: Path) -> None:
    policy, given = torch_policy.load(written), episode(4)
    policy.reset("push the red block")
    alone = [policy.act(images, state) for images, state in given]
    policy.reset("push the red block")
    executed = [None, *(out["actions"][0] for out in alone[:-1])]
    row = torch_policy.act_in_row(
        policy, [(*each, done) for each, done in zip(given, executed, strict=True)]
    )
    both = [policy.new_session() for _ in range(2)]
    for each in both:
        each.reset("push the red block")
    together = torch_policy.act_together(
        both, [each.prepared(*frame) for each, frame in zip(both, given, strict=False)]
    )
    for one, other in zip(alone, row, strict=True):
        np.testing.assert_allclose(other["actions"], one["actions"], atol=1e-5)
        agreement = one["confidence"]["agreement"]
        assert other["confidence"]["agreement"] == pytest.approx(agreement, abs=1e-5)
    for each, out, frame in zip(both, together, given, strict=False):
        each.reset("push the red block")
        np.testing.assert_allclose(each.act(*frame)["actions"], out["actions"], atol=1e-5)


def test_agreement_is_between_positions_and_not_between_differences(written: Path) -> None:
    """The chunk went on as it was planned, and the robot moved meanwhile."""
    policy = torch_policy.load(written)
    policy.reset("push the red block")
    spec, (first, second) = policy.action_spec, [state for _, state in episode(2)]
    chunk = np.tile(np.float32([0.1, 0.2, 0.3, 0.0, 0.1, 0.0, 0.2]), (3, 1))
    planned = policy.commit_step(None, chunk, None, first)["actions"]
    later = spec.normalise(planned[[1, 2, 2]], second)
    assert policy.commit_step(None, later, None, second)["confidence"]["agreement"] > 0.999999


def test_without_the_state_it_refuses_and_stands_where_it_stood(written: Path) -> None:
    policy = torch_policy.load(written)
    policy.reset("push the red block")
    (images, state), *_ = episode(1)
    named = ", ".join(NAMES)
    for bad in (None, state[:6], np.full(7, np.nan, np.float32)):
        with pytest.raises(ValueError, match=rf"proprio: expected 7 .*the actions are .*{named}$"):
            policy.act(images, bad)
    with pytest.raises(ValueError, match=r"state: quat_xyzw: .* expected a quaternion of length 1"):
        policy.prepared(images, 2 * state)  # before others are in the pass with it
    policy.act(images, state)


@pytest.mark.slow
def test_the_folder_alone_computes_it(written: Path, tmp_path: Path) -> None:
    """Where nothing of ours is: with torch, numpy and safetensors."""
    shutil.copytree(written, tmp_path / "artefact")
    said = (tmp_path / "artefact" / "README.md").read_text()
    assert "what `act` gives is absolute" in said
    script = said.split("```python")[1].split("```")[0].replace("this folder", "artefact")
    script = (
        "import sys; sys.modules['vla_jax'] = None\n" + script + "\nprint(out['actions'].shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(4, 7)\n"


@pytest.mark.slow
def test_a_network_that_sees_the_state_too(tmp_path: Path) -> None:
    where = checkpoint(tmp_path, head="mlp", proprio=True, window=2, action={**SPEC, "relative": [
        {"kind": "angle", "action": [3, 4, 5], "state": [3, 4, 5]}]})  # fmt: skip
    artefact.write(export.source(where), tmp_path / "artefact", "float32")
    policy = torch_policy.load(tmp_path / "artefact")
    frames_in_a_row_are_as_frame_by_frame(policy)
    rows = golden.replay(policy, tmp_path / "artefact" / "golden.npz", "float32")
    assert (rows[-1].stage, rows[-1].difference) == ("units", 0)


@pytest.mark.parametrize("state", [[7, 1, 2], [0, 1]])
def test_a_relation_to_dims_that_are_not_there_is_refused(
    written: Path, tmp_path: Path, state: list[int]
) -> None:
    out = tmp_path / "artefact"
    shutil.copytree(written, out)
    file = out / "norm_stats.json"
    body = json.loads(file.read_text())
    body["datasets"]["blocks"]["action"]["relative"][0]["state"] = state
    file.write_text(json.dumps(body))
    artefact.sign(out)
    with pytest.raises(
        ValueError, match=r"norm_stats\.json: .*expected dims of it and of the state"
    ):
        folder.load(out)


def test_the_copies_in_the_policy_and_here_are_one() -> None:
    """The robot's side and training use the same file."""
    from vla_jax import actions
    from vla_jax.robot.torch_policy import spec

    assert spec.to_relative is actions.relative.to_relative is to_relative
    assert spec.to_absolute is to_absolute
