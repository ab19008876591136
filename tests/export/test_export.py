"""The artefact: written from a checkpoint, equal to the JAX policy, self-sufficient, and refused when it is not whole."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import build, export, sources
from experiments.configs import oxe_paligemma
from vla_jax import params as flat
from vla_jax.actions import ActionSpec
from vla_jax.checkpoint import Checkpointer, TrainState
from vla_jax.export import artefact
from vla_jax.robot import torch_policy

TEXTS = ["push the red block to the left", "move the green block to the right side"]
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
STATS = {
    key: value * np.arange(1, 8, dtype=np.float64) / 7
    for key, value in {"mean": 0.1, "std": 0.5, "min": -2.0, "max": 2.0, "q01": -1.0, "q99": 1.5}.items()
}
SPEC = ActionSpec.fit(NAMES, (6,), STATS, ("q99",)).to_json()
STATE = ActionSpec.fit(NAMES, (), STATS, ("q99",)).to_json()


def jittered(shapes) -> dict[str, np.ndarray]:
    """Numbers for every parameter, norms and gates included; no part is at a value that hides it."""
    rng, out = np.random.default_rng(0), {}
    for name, spec in shapes.items():
        size = spec.shape[-2] ** -0.5 if name.endswith(("kernel", "w_ih", "w_hh")) else 0.3
        out[name] = (size * rng.normal(size=spec.shape) + 0.5 * name.endswith("scale")).astype(np.float32)
    return out


def checkpoint(root: Path, backbone="paligemma", datasets=("blocks",), **model) -> Path:
    """A checkpoint of a jittered tiny policy."""
    config = oxe_paligemma.get_config("tiny")
    config.model.backbone = backbone
    config.model.head_hidden, config.model.head_mlp, config.model.head_attention = 32, (16,), 4
    for name, value in model.items():
        config.model[name] = value
    module, folder = build.backbone_module(config), root / "tokenizer"
    module.train_tiny_tokenizer(TEXTS, folder)
    params = jittered(flat.abstract(build.model(config))[1])
    meta = {
        "config": config.to_dict(),
        "tokenizer": {"folder": str(folder), "sha256": sources.digest(folder)},
        "datasets": {name: {"action": SPEC, "state": STATE} for name in datasets},
    }
    checkpointer = Checkpointer(root / "checkpoints", meta, {})
    zero = jnp.zeros((), jnp.int32)
    checkpointer.save(3, TrainState(zero, jax.tree.map(jnp.asarray, params), {}, (), None, zero))
    checkpointer.close()
    return root / "checkpoints"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The artefact of a PaliGemma with the LSTM head, two cameras and two datasets."""
    root = tmp_path_factory.mktemp("exported")
    where = checkpoint(root, datasets=("blocks", "bridge"), cameras=("primary", "wrist"), window=3)
    export.main(["--checkpoint", str(where), "--out", str(root / "artefact")])
    return root / "artefact"


def images(policy, **changes):
    rng = np.random.default_rng(0)
    found = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in policy.cameras}
    return {name: image for name, image in {**found, **changes}.items() if image is not None}


def test_the_artefact_is_the_policy(exported):
    policy = torch_policy.load(exported)
    policy.reset("push the red block", "blocks")
    first, second = policy.act(images(policy)), policy.act(images(policy))
    assert first["actions"].shape == (4, 7)
    assert first["actions"].dtype == np.float32
    assert set(np.unique(first["gripper"])) <= {0.0, 1.0}
    np.testing.assert_array_equal(first["arm"], first["actions"][:, :6])
    assert first["confidence"]["agreement"] is None
    assert 0 < second["confidence"]["agreement"] < 1
    assert 0.5 <= second["confidence"]["gripper"] <= 1
    assert second["timing"]["total"] >= second["timing"]["vision"] > 0


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "tensorflow", "transformers", "tokenizers", "vla_jax"):
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Block())
"""


def test_it_runs_where_jax_and_transformers_are_not(exported):
    code = BLOCKED + "import runpy; sys.argv[1:] = []; runpy.run_module('policy_torch', run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(" ok") == 4, run.stdout
