"""The artefact: equal to the JAX policy, self-sufficient, and refused when it is not whole or not
used right.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import safe_open

import vla_jax
from experiments import export
from experiments.composition import spaces
from experiments.configs import oxe_paligemma
from vla_jax import build, build_heads, saved
from vla_jax import params as flat
from vla_jax.actions import ActionSpec
from vla_jax.export import artefact
from vla_jax.models.tokenizer import digest
from vla_jax.robot import torch_policy
from vla_jax.robot.resize import resize
from vla_jax.robot.torch_policy import act_in_row, golden
from vla_jax.training.checkpoint import Checkpointer, TrainState, load_params

TEXTS = ["push the red block to the left", "move the green block to the right side"]
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
STATS = {
    key: value * np.arange(1, 8, dtype=np.float64) / 7
    for key, value in {
        "mean": 0.1,
        "std": 0.5,
        "min": -2.0,
        "max": 2.0,
        "q01": -1.0,
        "q99": 1.5,
    }.items()
}
TWO = ("primary", "wrist")
SPEC = ActionSpec.fit(NAMES, (6,), STATS, ("q99",)).to_json()
STATE = ActionSpec.fit(NAMES, (), STATS, ("q99",)).to_json()


def jittered(shapes) -> dict[str, np.ndarray]:
    """Numbers for every parameter, norms and gates included; no part is at a value that
    hides it.
    """
    rng, out = np.random.default_rng(0), {}
    for name, spec in shapes.items():
        size = spec.shape[-2] ** -0.5 if name.endswith(("kernel", "w_ih", "w_hh")) else 0.3
        out[name] = (size * rng.normal(size=spec.shape) + 0.5 * name.endswith("scale")).astype(
            np.float32
        )
    return out


def checkpoint(
    root: Path, backbone="paligemma", datasets=("blocks",), mixture="bridge", action=None, **model
) -> Path:
    """A checkpoint of a jittered tiny policy; `action` is the JSON of another action spec."""
    config = oxe_paligemma.get_config("tiny")
    config.model.backbone = backbone
    config.model.head_hidden, config.model.head_mlp, config.model.head_attention = 32, (16,), 4
    config.lora.rank, config.optim.ema = model.pop("rank", 0), model.pop("ema", 0.0)
    if model.pop("resampler", False):
        config.model.resampler.update(depth=1, heads=2, dim_head=8, latents=4)
    seen = {}  # what data say that a policy learnt to see by, and never gets
    if model.pop("keypoints", False):
        config.model.keypoints.update(points=5, hidden=16, tokens=3)
        config.objectives.sensed.update(weight=0.1, sensor="scene=vector:2x7")
        seen = {"sensors": {"scene": SPEC}}
    config.model.update(model)
    config.data.mixture = mixture
    module, folder = build.backbone_module(config), root / "tokenizer"
    module.train_tiny_tokenizer(TEXTS, folder)
    spaces.resolve(config)
    params = jittered(flat.abstract(build.training_model(config))[1])
    meta = {
        "config": config.to_dict(),
        "tokenizer": {"folder": str(folder), "sha256": digest(folder)},
        "datasets": {
            name: {"action": action or SPEC, "state": STATE, "control_hz": 5.0, **seen}
            for name in datasets
        },
    }
    checkpointer = Checkpointer(root / "checkpoints", meta, {})
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, jax.tree.map(jnp.asarray, params), {}, (), None, zero)
    if config.optim.ema:
        state = state._replace(ema={name: 0.5 * value for name, value in state.params.items()})
    checkpointer.save(3, state)
    checkpointer.close()
    return root / "checkpoints"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The artefact of a PaliGemma with the LSTM head, two cameras and two datasets."""
    root = tmp_path_factory.mktemp("exported")
    where = checkpoint(
        root, datasets=("blocks", "bridge"), cameras=TWO, window=3, resize="bilinear"
    )
    export.main(["--checkpoint", str(where), "--out", str(root / "artefact")])
    return root / "artefact"


def images(policy, **changes):
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in policy.cameras}
    return {name: image for name, image in {**images, **changes}.items() if image is not None}


# Every backbone, head, history, layout and extra token at least once. `sizes` changes the tiny
# backbone's config.
GEMMA2 = {"post_norms": True, "softcap": 5.0, "final_softcap": 3.0, "window": 24}
CASES = {
    "mlp, one step": {"head": "mlp", "history": "one_step", "window": 1, "proprio": True},
    "gpt, past action": {"head": "gpt", "past_action": True, "readouts": 2, "cameras": TWO},
    "convolutions, heat maps": {
        "variant": "seeing", "keypoints": True, "cameras": TWO, "image_sizes": (32, 48),
    },
    "flow": {"head": "flow", "window": 3},
    "expert": {"head": "expert", "window": 2, "cameras": TWO, "head_options": "bound=0.0"},
    "expert, its own state": {
        "head": "expert", "window": 1, "proprio": True, "history": "one_step", "readouts": 2,
        "head_options": "state='expert',time='adaptive',padded=9,inner=48,bound=0.0",
    },
    "expert, state in words": {
        "head": "expert", "window": 2, "proprio": True, "state_words": True, "prompt_length": 40,
        "head_options": "bound=0.0",
    },
    "smolvlm, state in words, interleaved": {
        "backbone": "smolvlm", "window": 3, "history": "interleaved", "proprio": True,
        "state_words": True, "prompt_length": 56,
    },
    "expert beside gemma 2": {"head": "expert", "window": 1, "head_options": "bound=0.0",
    "sizes": {**GEMMA2, "window": 64}},
    "expert beside llava": {"backbone": "llava", "head": "expert", "window": 1, "chunk": 2},
    "discrete": {"head": "discrete", "bins": 64, "chunk": 2},
    "gemma 2, attention": {"head": "attention", "sizes": GEMMA2, "window": 3},
    "kosmos2, robovlms": {"backbone": "kosmos2", "layout": "robovlms", "cameras": TWO},
    "llava, drawn tokens": {"backbone": "llava", "head": "discrete", "bins": 64,
    "temperature": 0.7, "chunk": 2},
    "llava-mpt, resampler": {"backbone": "llava", "variant": "tiny-mpt", "resampler": True,
    "history": "interleaved"},
    "flamingo": {"backbone": "flamingo", "cameras": TWO, "layout": "robovlms"},
    "qwen3vl, two sizes": {"backbone": "qwen3vl", "cameras": TWO, "image_sizes": (32, 48)},
    "qwen3vl, discrete, robovlms": {
        "backbone": "qwen3vl", "head": "discrete", "bins": 64, "chunk": 2, "layout": "robovlms",
        "cameras": TWO,
    },
    "qwen3vl, interleaved": {
        "backbone": "qwen3vl", "history": "interleaved", "window": 3, "history_start": "grow",
    },
    "qwen3vl, resampler": {"backbone": "qwen3vl", "resampler": True, "cameras": TWO},
    "qwen3vl, heat maps": {"backbone": "qwen3vl", "keypoints": True, "cameras": TWO},
    "smolvlm, two sizes": {"backbone": "smolvlm", "cameras": TWO, "image_sizes": (32, 48)},
    "smolvlm, discrete": {"backbone": "smolvlm", "head": "discrete", "bins": 64, "chunk": 2},
    "lstm, growing": {"window": 3, "history_start": "grow"},
    "gpt, growing, interleaved": {
        "head": "gpt", "window": 3, "history_start": "grow", "history": "interleaved",
    },
    "kosmos2, pre": {
        "backbone": "kosmos2", "layout": "robovlms_pre", "history": "interleaved", "window": 3,
        "history_start": "grow", "cameras": TWO,
    },
    "discrete, pre": {
        "head": "discrete", "bins": 64, "chunk": 2, "layout": "robovlms_pre",
        "history": "interleaved", "window": 3,
    },
    "oft": {"head": "oft", "readouts": 2, "window": 1, "history": "one_step", "proprio": True},
    "oft, robovlms, interleaved": {
        "head": "oft", "layout": "robovlms", "history": "interleaved", "window": 2,
    },
    "oft, discrete": {
        "head": "oft", "readouts": 2, "window": 2, "bins": 64, "head_options": "readout='discrete'",
    },
    "two sizes": {"cameras": TWO, "image_sizes": (32, 16), "window": 2},
    "two sizes, kosmos2, robovlms": {
        "backbone": "kosmos2", "layout": "robovlms", "cameras": TWO, "image_sizes": (16, 48),
    },
    "two sizes, flamingo": {"backbone": "flamingo", "cameras": TWO, "image_sizes": (32, 16)},
    "flow, growing": {"head": "flow", "window": 3, "history_start": "grow"},
    "flamingo, discrete": {
        "backbone": "flamingo", "head": "discrete", "bins": 64, "chunk": 1,
        "history": "interleaved",
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_torch_equals_jax(case, tmp_path, monkeypatch):
    model = dict(CASES[case])
    if sizes := model.pop("sizes", None):
        tiny = build.BACKBONES["paligemma"].CONFIGS["tiny"]
        monkeypatch.setitem(
            build.BACKBONES["paligemma"].CONFIGS, "tiny", dataclasses.replace(tiny, **sizes)
        )
    where = checkpoint(tmp_path, **model)
    proof = artefact.write(export.source(where), tmp_path / "artefact", "float32")
    assert [row.stage for row in proof["float32"]] == ["vision", "readout", "action", "units"]
    for row in proof["float32"]:
        assert row.difference <= 1e-5 * max(1, row.largest), row
        assert row.largest > 0.05, row  # it says something
    frames_in_a_row_are_as_frame_by_frame(torch_policy.load(tmp_path / "artefact"))


def frames_in_a_row_are_as_frame_by_frame(policy: torch_policy.Policy) -> None:
    """With a second pass that begins within the window."""
    rng = np.random.default_rng(1)
    policy.reset("push the red block", "blocks")
    proprio = len(policy.state_spec.names) if policy.state_spec else 0
    given = [
        (
            {
                name: rng.integers(0, 51 * t + 9, (size, size, 3), np.uint8)
                for name, size in policy.sizes.items()
            },
            rng.uniform(-0.1, 0.1, proprio).astype(np.float32),
            rng.uniform(-0.1, 0.1, len(policy.action_spec.names)).astype(np.float32),
        )
        for t in range(5)  # brighter and brighter
    ]
    alone = []
    for each in given:
        out = policy.act(*each)
        alone.append(out | {"normalised": policy.stages["action"].numpy()})
    policy.reset("push the red block", "blocks")
    rows = act_in_row(policy, given[:2]) + act_in_row(policy, given[2:])
    # It says something: where tokens stay the same, how sure the policy is of them does not.
    sure = [name for name in alone[0]["confidence"]
            if all(isinstance(out["confidence"][name], float) for out in alone)]  # fmt: skip
    said = [
        [*out["normalised"].ravel(), *(out["confidence"][name] for name in sure)] for out in alone
    ]
    assert np.ptp(said, 0).max() > 1e-3
    for one, other in zip(alone, rows, strict=True):
        np.testing.assert_allclose(other["normalised"], one["normalised"], atol=1e-5)
        for name, value in one["confidence"].items():
            assert other["confidence"][name] == pytest.approx(value, abs=1e-5), name


@pytest.mark.slow
def test_adapters_are_merged_and_bfloat16_has_both_proofs(tmp_path):
    where = checkpoint(tmp_path, rank=2)
    proof = artefact.write(export.source(where), tmp_path / "artefact", "bfloat16")
    assert set(proof) == {"float32", "bfloat16"}
    assert proof["float32"][0].difference < 1e-4 < proof["bfloat16"][0].difference
    with safe_open(tmp_path / "artefact" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        kernel = file.get_tensor("backbone/decoder/layers/blocks/1/attn/q/kernel")
    assert not [name for name in names if "lora" in name]
    merged = load_params(where)["backbone/decoder/layers/blocks/attn/q/kernel"][1]
    assert kernel.dtype == torch.bfloat16
    assert torch.equal(kernel, torch.from_numpy(merged).bfloat16())


@pytest.mark.slow
def test_averaged_parameters_are_exported(tmp_path):
    where = checkpoint(tmp_path, head="mlp", ema=0.9)
    artefact.write(export.source(where), tmp_path / "artefact", "float32")
    with safe_open(tmp_path / "artefact" / "model.safetensors", "np") as file:
        embedding = file.get_tensor("readout_embedding")
    raw = load_params(checkpoint(tmp_path / "raw", head="mlp"))["readout_embedding"]
    np.testing.assert_array_equal(embedding, np.float32(0.5) * raw)


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


def test_the_artefact_says_how_its_images_are_fitted(exported):
    policy = torch_policy.load(exported)
    assert (policy.resize, policy.config["image"]["resize"]) == ("bilinear", "bilinear")
    assert "resize(frame, 32, 'bilinear')" in (exported / "README.md").read_text()
    policy.reset("push", "blocks")
    with pytest.raises(ValueError, match=r"resize\.resize\(image, 32, 'bilinear'\)"):
        policy.act(images(policy, primary=np.zeros((64, 64, 3), np.uint8)))
    wide = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    origin = saved.open_checkpoint(exported.parent / "checkpoints")
    assert origin.io("blocks").resize == "bilinear"
    loaded = vla_jax.load_policy(exported, dataset="blocks")
    loaded.reset("push")
    fitted = resize(wide, 32, "bilinear")
    expected = policy.act({"primary": fitted, "wrist": fitted})["actions"]
    np.testing.assert_array_equal(loaded.act({"primary": wide, "wrist": wide}), expected)


@pytest.mark.slow
def test_a_policy_acts_in_its_own_dtype_unless_it_is_told_another(tmp_path):
    where = checkpoint(tmp_path, head="mlp", history="one_step", window=1, act_dtype="bfloat16")
    image, acted = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), {}
    for dtype in (None, "bfloat16", "float32"):
        policy = vla_jax.load_policy(where, dtype=dtype)
        policy.reset("push the red block")
        acted[dtype] = policy.act({"primary": image})
    np.testing.assert_array_equal(acted[None], acted["bfloat16"])
    assert np.abs(acted[None] - acted["float32"]).max() > 1e-4
    export.main(["--checkpoint", str(where), "--out", str(tmp_path / "artefact")])
    assert torch_policy.load(tmp_path / "artefact").config["weights"] == "bfloat16"


def test_confidence_is_told_of_each_action_and_agreement_of_the_next(exported):
    policy = torch_policy.load(exported)
    policy.reset("push the red block", "blocks")
    chunk = np.zeros((4, 7), np.float32)
    chunk[:, 6] = [0.9, 0.2, 0.5, 0.6]
    first = policy.commit_step(None, chunk, None)["confidence"]
    assert first["steps"] == pytest.approx([0.9, 0.8, 0.5, 0.6])
    assert first["gripper"] == pytest.approx(0.9)
    assert first["agreement"] is first["token"] is None
    later = chunk.copy()
    later[1:, :6] = 0.7
    assert policy.commit_step(None, later.copy(), None)["confidence"]["agreement"] == 1
    later[0, 0] = 0.5  # where the last chunk had 0.7 in all six
    difference = np.sqrt((0.2**2 + 5 * 0.7**2) / 6)
    assert policy.commit_step(None, later, None)["confidence"]["agreement"] == pytest.approx(
        np.exp(-difference), rel=1e-5
    )
    tokens = policy.commit_step(None, chunk, np.repeat(np.float32([0.5, 0.25, 1, 1]), 7))[
        "confidence"
    ]
    assert tokens["steps"] == pytest.approx([0.5, 0.25, 1, 1])
    assert tokens["token"] == pytest.approx(0.5)
    assert tokens["agreement"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"head": "flow", "window": 3, "past_action": True},
        {"backbone": "flamingo", "head": "lstm", "history": "interleaved", "window": 2},
        {"head": "discrete", "bins": 64, "chunk": 2, "temperature": 0.5},
        {"head": "gpt", "window": 3, "history_start": "grow"},
    ],
    ids=lambda model: model["head"],
)
def test_episodes_together_are_those_apart(model, tmp_path):
    """Several episodes in one pass, at other steps and with other prompts."""
    where = checkpoint(tmp_path, **model)
    artefact.write(export.source(where), tmp_path / "artefact", "float32")
    alone = torch_policy.load(tmp_path / "artefact")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 4, 32, 32, 3), dtype=np.uint8)  # episode, step
    texts = ("push the red block", "move", "the green block to the left")
    expected = []
    for i in range(3):
        alone.reset(texts[i], seed=i)
        expected.append([alone.act({"primary": image})["actions"] for image in frames[i]])
    together, late = [alone.new_session() for _ in range(3)], (0, 0, 2)
    for i, policy in enumerate(together):
        policy.reset(texts[i], seed=i)
    for step in range(4):
        now = {i: step - late[i] for i in range(3) if step >= late[i]}  # episode -> its own step
        given = [together[i].prepared({"primary": frames[i, own]}) for i, own in now.items()]
        out = torch_policy.act_together([together[i] for i in now], given)
        for acted, (i, own) in zip(out, now.items(), strict=True):
            np.testing.assert_allclose(
                acted["actions"], expected[i][own], atol=2e-5, err_msg=f"{i} at {own}"
            )
    with pytest.raises(ValueError, match="different policies on one network"):
        torch_policy.act_together([alone, alone], [{}, {}])


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        refused = ("jax", "jaxlib", "flax", "tensorflow", "transformers", "tokenizers", "vla_jax")
        if name.split(".")[0] in refused:
            raise ImportError(f"{name} must not be needed")
sys.meta_path.insert(0, Block())
"""


@pytest.mark.slow
def test_it_runs_where_jax_and_transformers_are_not(exported):
    code = (
        BLOCKED
        + "import runpy; sys.argv[1:] = []; runpy.run_module('policy_torch', run_name='__main__')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=exported, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(" ok") == 4, run.stdout


COMPILED = """
import numpy as np
from policy_torch import load
rng = np.random.default_rng(0)
policies = load("."), load(".", compile=True)
for policy in policies:
    policy.reset("push the red block", "blocks")
for _ in range(4):
    cameras = policies[0].cameras
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in cameras}
    one, two = (policy.act(images)["actions"] for policy in policies)
    np.testing.assert_allclose(two, one, atol=2e-5)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_is_the_same(exported):
    """In a process of its own: what checks types in the tests cannot be compiled."""
    run = subprocess.run(
        [sys.executable, "-c", COMPILED], cwd=exported, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    """An artefact to be damaged."""
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "policy_torch/policy.py"])
def test_a_damaged_file_is_named(copied, name):
    body = bytearray((copied / name).read_bytes())
    body[len(body) // 2] ^= 1
    (copied / name).write_bytes(body)
    with pytest.raises(
        ValueError,
        match=f"not as it was exported:\n  {re.escape(name)}: expected sha256 [0-9a-f]{{64}}",
    ):
        torch_policy.load(copied)


def test_a_missing_and_a_foreign_file_are_named(copied):
    (copied / "golden.npz").rename(copied / "other.npz")
    with pytest.raises(ValueError, match=r"golden.npz: missing\n  other.npz: not among"):
        torch_policy.load(copied)


def test_another_schema_is_refused(copied):
    text = (copied / "config.json").read_text().replace('"schema": 2', '"schema": 9')
    (copied / "config.json").write_text(text)
    artefact.sign(copied)
    with pytest.raises(ValueError, match="schema 1 or 2, got 9"):
        torch_policy.load(copied)


DAMAGED = [
    ("config.json", "network.backbone.depth", 10**9, "network.backbone.depth: expected at most"),
    ("config.json", "network.head.mlp", [10**12], "network.head.mlp: expected at most 1600"),
    ("config.json", "network.head.chunk", 1500, "network.head: expected at most|does not fit"),
    ("config.json", "network.head.layers", -7, "network.head.layers: expected at most"),
    ("config.json", "network.backbone.vision", None, "TypeError"),
    ("config.json", "network.head", {}, "KeyError"),
    ("config.json", "image.size", 10**6, "image.size: expected 1 to 4096"),
    ("config.json", "image.sizes", {"primary": 32}, "image.sizes: expected 1 to 32 for each"),
    ("config.json", "image.sizes", {"primary": 64, "wrist": 32}, "image.sizes: expected 1 to 32"),
    ("config.json", "prompt.length", 10**9, "prompt.length: expected 1 to 65536"),
    ("config.json", "cameras", "primary", "cameras: expected 1 to 64 names"),
    ("norm_stats.json", "datasets.bridge.action.names", ["x"], "expected 7 numbers"),
    ("norm_stats.json", "datasets", [], "AttributeError"),
    ("tokenizer.json", "model", {}, "KeyError"),
]


@pytest.mark.parametrize(("name", "key", "value", "words"), DAMAGED)
def test_what_was_damaged_and_signed_again_is_named(copied, name, key, value, words):
    """Nothing is made by a size that the weights do not have."""
    body = place = json.loads((copied / name).read_text())
    *path, last = key.split(".")
    for step in path:
        place = place[step]
    place[last] = value
    (copied / name).write_text(json.dumps(body))
    artefact.sign(copied)
    with pytest.raises(ValueError, match=words) as refused:
        torch_policy.load(copied)
    assert str(refused.value).startswith(
        (str(copied / name), str(copied / "model.safetensors: does not fit config.json"))
    )


@pytest.mark.parametrize(
    "name", ["config.json", "norm_stats.json", "tokenizer.json", "model.safetensors", "golden.npz"]
)
def test_half_a_file_that_was_signed_again_is_named(copied, name):
    body = (copied / name).read_bytes()
    (copied / name).write_bytes(body[: len(body) // 2])
    artefact.sign(copied)
    with pytest.raises(ValueError, match=f"{name}: expected"):
        golden.replay(torch_policy.load(copied), copied / "golden.npz", "float32")


def test_wrong_use_is_refused(exported):
    policy = torch_policy.load(exported)
    with pytest.raises(ValueError, match="expected reset"):
        policy.act(images(policy))
    with pytest.raises(ValueError, match="dataset: expected one of blocks, bridge, got None"):
        policy.reset("push")
    with pytest.raises(ValueError, match="dataset: expected one of blocks, bridge, got 'other'"):
        policy.reset("push", "other")
    with pytest.raises(ValueError, match="instruction: expected at most 32 tokens, got"):
        policy.reset("push the red block " * 20, "blocks")
    policy.reset("push", "bridge")
    for change, words in (
        ({"wrist": None}, "images: expected the cameras"),
        ({"third": np.zeros((32, 32, 3), np.uint8)}, "images: expected the cameras"),
        (
            {"wrist": np.zeros((16, 32, 3), np.uint8)},
            r"images\['wrist'\]: expected uint8 RGB of shape \(32, 32, 3\)",
        ),
        ({"wrist": np.zeros((32, 32, 3), np.float32)}, r"images\['wrist'\]: .*got float32"),
        ({"wrist": [1]}, r"images\['wrist'\]: .*got list"),
    ):
        with pytest.raises(ValueError, match=words):
            policy.act(images(policy, **change))
    with pytest.raises(ValueError, match="dtype: expected one of float32, bfloat16"):
        torch_policy.load(exported, dtype="float16")


def test_a_refused_frame_changes_nothing(exported):
    """The episode goes on as if it had not come."""
    one, two = torch_policy.load(exported), torch_policy.load(exported)
    for policy in (one, two):
        policy.reset("push", "blocks")
        policy.act(images(policy))
    with pytest.raises(ValueError, match="expected the cameras"):
        one.act({})
    np.testing.assert_array_equal(one.act(images(one))["actions"], two.act(images(two))["actions"])


@pytest.mark.slow
def test_a_difference_leaves_no_folder(tmp_path, monkeypatch):
    where = checkpoint(tmp_path, head="mlp")
    monkeypatch.setattr(torch_policy.layers.Norm, "forward", lambda self, x: x)
    with pytest.raises(
        ValueError, match="torch and JAX differ at vision, readout, action; no artefact is written"
    ):
        export.main(["--checkpoint", str(where), "--out", str(tmp_path / "artefact")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "tokenizer"]


def test_what_torch_does_not_compute_is_refused_by_name(tmp_path, monkeypatch):
    source = export.source(checkpoint(tmp_path, head="mlp"))
    monkeypatch.delitem(artefact.describe.HEADS, build_heads.HEADS["mlp"].make)
    with pytest.raises(ValueError, match=r"head: expected one of lstm, .* got MLPHead"):
        artefact.write(source, tmp_path / "artefact", "float32")
    with pytest.raises(ValueError, match="no action spec"):
        artefact.write(dataclasses.replace(source, specs={}), tmp_path / "artefact", "float32")
    assert not (tmp_path / "artefact").exists()
    (tmp_path / "artefact").mkdir()
    with pytest.raises(ValueError, match="is there already"):
        artefact.write(source, tmp_path / "artefact", "float32")


def test_another_tokenizer_is_refused(tmp_path):
    where = checkpoint(tmp_path, head="mlp")
    build.BACKBONES["paligemma"].train_tiny_tokenizer(["other words"], tmp_path / "other")
    with pytest.raises(ValueError, match="is not the one the checkpoint was trained with"):
        export.source(where, folder=tmp_path / "other")
