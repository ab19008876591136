"""import_weights: RoboVLMs policies give the same features and actions as in torch; what does not
fit is named.
"""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from transformers import AutoTokenizer

import vla_jax
from experiments import export, import_weights
from experiments.composition import sources
from tests.experiments.robovlms import torch_reference as reference
from tests.experiments.robovlms.released_config import (
    CHUNK,
    CONFIG,
    HIDDEN,
    WINDOW,
    changed,
    write_json,
)
from vla_jax import build, saved
from vla_jax import params as flat
from vla_jax.actions import ActionSpec
from vla_jax.models.backbones import kosmos2, paligemma
from vla_jax.models.tokenizer import digest, train_tiny_tokenizer
from vla_jax.models.vla import VLA
from vla_jax.policy import JaxPolicy
from vla_jax.policy_io import PolicyIO
from vla_jax.training.checkpoint import load_meta, load_params
from vla_jax.types import HeadContext, Observation

TOLERANCE = 1e-5
LENGTHS, PROMPT = (5, 7), 8  # ids of the two prompts, and what they are padded to


def run(origin: str, out: Path, *flags: str) -> None:
    import_weights.main(["--from", origin, "--out", str(out), *flags])


# ------------------------------------------------------------------------------------------- parity


class Case(NamedTuple):
    """What the command is given, and what the policy gave in torch."""

    policy: reference.Policy
    file: Path
    json: Path
    images: tuple[np.ndarray, np.ndarray]  # b t h w 3
    ids: np.ndarray
    valid: np.ndarray
    features: np.ndarray
    readouts: np.ndarray
    arm: np.ndarray
    gripper: np.ndarray


def make(folder: Path, backbone: str, head: str, latent: int, history: str) -> Case:
    torch.manual_seed(0)
    hidden = (
        48 if head == "GPTDecoder" else HIDDEN
    )  # as wide as the readouts, GPTDecoder has no projection
    policy = reference.Policy(
        backbone,
        reference.HEADS[head](reference.WIDTH, hidden, latent, CHUNK, WINDOW),
        latent,
        history,
    ).jitter(1)
    body = changed(
        model=backbone, act_head__type=head, act_head__latent=latent, act_head__hidden_size=hidden,
        act_head__history_type=history,
    )  # fmt: skip
    rng = np.random.default_rng(2)
    size = (len(LENGTHS), WINDOW, reference.IMAGE, reference.IMAGE, 3)
    images = tuple(rng.integers(0, 256, size).astype(np.uint8) for _ in range(2))
    ids = rng.integers(3, 1000, (len(LENGTHS), PROMPT))
    valid = np.arange(PROMPT)[None] < np.array(LENGTHS)[:, None]
    with torch.no_grad():
        readouts = torch.stack(
            [
                policy.readouts(tuple(camera[row] for camera in images), ids[row, :length])
                for row, length in enumerate(LENGTHS)
            ]
        )
        arm, gripper = policy.act_head(readouts)
        features = policy.features(images[0][0])
    torch.save({"state_dict": policy.checkpoint(), "epoch": 4}, folder / "policy.pt")
    values = (tensor.numpy() for tensor in (features, readouts, arm, torch.sigmoid(gripper)))
    file = folder / "policy.pt"
    return Case(policy, file, write_json(folder, body), images, ids, valid, *values)  # type: ignore[arg-type]


def opened(out: Path) -> VLA:
    """The imported policy, from its directory alone."""
    graphdef, shapes, _ = flat.abstract(build.model(ConfigDict(load_meta(out)["config"])))
    values = load_params(out)
    assert values.keys() == shapes.keys()
    return flat.merge(graphdef, {name: jax.numpy.asarray(value) for name, value in values.items()})  # type: ignore


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head", "latent", "history"),
    [
        ("kosmos", "LSTMDecoder", 1, "post"),
        ("kosmos", "FCDecoder", 2, "post"),
        ("kosmos", "GPTDecoder", 1, "post"),
        ("paligemma", "LSTMDecoder", 2, "post"),
        ("kosmos", "LSTMDecoder", 1, "pre"),
        ("paligemma", "GPTDecoder", 1, "pre"),
    ],
)
def test_imported_policies_equal_robovlms(
    backbone: str, head: str, latent: int, history: str, tmp_path: Path
) -> None:
    case = make(tmp_path, backbone, head, latent, history)
    run(f"robovlms:{case.file}", tmp_path / "out", "--robovlms_config", str(case.json))
    policy = opened(tmp_path / "out")
    b, t = case.images[0].shape[:2]
    obs = Observation(
        images=case.images,
        image_mask=np.ones((b, t, 2), bool),
        proprio=np.zeros((b, t, 1), np.float32),
        proprio_mask=np.zeros((b, 1), bool),
        prompt=np.where(case.valid, case.ids, 0),
        prompt_mask=case.valid,
        step_mask=np.ones((b, t), bool),
    )

    @jax.jit
    def outputs(policy: VLA) -> tuple[jax.Array, jax.Array, jax.Array]:
        readouts = policy.readouts(obs)
        return (
            policy.backbone.embed_image(case.images[0][0]),
            readouts,
            policy.head.act(HeadContext(readouts), jax.random.key(0)),
        )

    features, readouts, actions = outputs(policy)
    for stage, got, expected in (
        ("image features", features, case.features),
        ("readouts", readouts, case.readouts),
        ("arm", actions[..., :6], case.arm),
        ("gripper", actions[..., 6], case.gripper),
    ):
        error = np.abs(np.asarray(got) - expected).max()
        print(f"PARITY {backbone} {head} {stage}: {error:.1e} of {np.abs(expected).max():.1f}")
        assert np.abs(expected).max() > 0.1, stage
        np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0, err_msg=stage)
    rollout(case, policy)


def rollout(case: Case, vla: VLA) -> None:
    """From an episode's first frame on: RoboVLMs' queues hold what there is, at most a window."""
    state = ActionSpec(())
    ids = case.ids[0, : LENGTHS[0]]
    io = PolicyIO(
        (reference.IMAGE,) * 2, PROMPT, lambda text: ids, ActionSpec(("a",) * 7, (6,)), state
    )
    policy = JaxPolicy(*flat.split(vla), io)
    policy.reset("")
    frames = [np.concatenate([camera[0], camera[1]]) for camera in case.images]  # 2t h w 3
    for now in range(WINDOW + 2):
        policy.act({"primary": frames[0][now], "wrist": frames[1][now]})
        queue = slice(max(0, now + 1 - WINDOW), now + 1)
        with torch.no_grad():
            seen = case.policy.readouts(tuple(camera[queue] for camera in frames), ids)
            arm, gripper = (x[0, -1] for x in case.policy.act_head(seen[None]))
        expected = torch.cat([arm, torch.sigmoid(gripper)[:, None]], -1)
        got = policy.stages().action
        np.testing.assert_allclose(got, expected, atol=2 * TOLERANCE, rtol=0, err_msg=str(now))


@pytest.mark.slow
def test_an_import_and_its_artefact_act_as_robovlms_does_on_frames_of_a_camera(
    tmp_path: Path,
) -> None:
    """All that an import sets, at once: interleaved history, a window that grows, bicubic images,
    and the units of the actions.
    """
    case = make(tmp_path, "kosmos", "LSTMDecoder", 1, "pre")
    kosmos2.train_tiny_tokenizer(["push the red block to the left"], tmp_path / "words")
    out, artefact = tmp_path / "out", tmp_path / "artefact"
    flags = ("--robovlms_config", str(case.json), "--tokenizer", str(tmp_path / "words"))
    run(f"robovlms:{case.file}", out, *flags)
    export.main(["--checkpoint", str(out), "--out", str(artefact)])
    ids = np.array(saved.open_checkpoint(out).encode("push the red block"))
    frames = np.random.default_rng(4).integers(0, 256, (WINDOW + 2, 2, 48, 60, 3), np.uint8)
    size = (reference.IMAGE, reference.IMAGE)
    fitted = np.array(
        [
            [Image.fromarray(image).resize(size, Image.Resampling.BICUBIC) for image in each]
            for each in frames
        ]
    )
    policies = [vla_jax.load_policy(folder) for folder in (out, artefact)]
    for policy in policies:
        policy.reset("push the red block")
    for now, (static, hand) in enumerate(frames):
        queue = fitted[max(0, now + 1 - WINDOW) : now + 1]
        with torch.no_grad():
            readouts = case.policy.readouts((queue[:, 0], queue[:, 1]), ids)
            arm, gripper = (x[0, -1].numpy() for x in case.policy.act_head(readouts[None]))
        for policy in policies:
            actions = policy.act({"primary": static, "wrist": hand})
            np.testing.assert_allclose(actions[:, :6], 0.65 * arm, atol=2 * TOLERANCE, rtol=0)
            np.testing.assert_array_equal(actions[:, 6], gripper > 0)


# ----------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def fc(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    """The state dict of a policy, and its config."""
    head = reference.FC(reference.WIDTH, HIDDEN, 1, CHUNK, WINDOW)
    policy = reference.Policy("paligemma", head, 1).jitter(3)
    body = changed(model="paligemma", act_head__type="FCDecoder")
    return policy.checkpoint(), write_json(tmp_path_factory.mktemp("fc"), body)


def test_arrays_that_do_not_fit_are_all_named_and_nothing_is_written(
    fc: tuple[dict[str, torch.Tensor], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = dict(fc[0])
    del state["model.action_token"]
    del state["model.backbone.language_model.model.layers.1.mlp.up_proj.weight"]
    state["model.act_head.actions.mlp.6.bias"] = torch.zeros(5)
    state["model.static_image_tokens"] = torch.zeros(5)
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="4 arrays do not fit") as error:
        run(f"robovlms:{tmp_path / 'w.pt'}", tmp_path / "out", "--robovlms_config", str(fc[1]))
    for line in (
        "missing: action_token (for readout_embedding)",
        "missing: language_model.layers.1.mlp.up_proj.weight",
        (
            "shape: act_head.actions.mlp.6.bias (for head/outputs/arm/layers/3/bias): expected"
            " (24,), got (5,)"
        ),
        "unexpected: static_image_tokens",
    ):
        assert line in str(error.value)
    assert not (tmp_path / "out").exists()
    assert "do not fit 4" in capsys.readouterr().out


def test_arrays_that_are_not_finite_are_named_and_nothing_is_written(
    fc: tuple[dict[str, torch.Tensor], Path], tmp_path: Path
) -> None:
    state = dict(fc[0])
    state["model.action_token"] = torch.full_like(state["model.action_token"], torch.nan)
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"in 1 arrays:\n  action_token \(for readout_embedding\): "
    ):
        run(f"robovlms:{tmp_path / 'w.pt'}", tmp_path / "out", "--robovlms_config", str(fc[1]))
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_says_all_that_a_policy_needs(
    fc: tuple[dict[str, torch.Tensor], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": fc[0]}, tmp_path / "w.pt")
    out = tmp_path / "out"
    run(f"robovlms:{tmp_path / 'w.pt'}", out, "--robovlms_config", str(fc[1]))
    said = capsys.readouterr().out
    for line in (
        "as paligemma tiny: loaded 80 arrays as 55", "ignored 1; missing 0; do not fit 0",
        "config keys translated",
        "act_head.mlp.2.weight", "head/mlp/layers/1/kernel",
        "optimizer = 'adam': no effect in RoboVLMs",
    ):  # fmt: skip
        assert line in said
    meta = load_meta(out)
    assert meta["cameras"] == ["primary", "wrist"]
    assert meta["origin"]["from"] == f"robovlms:{tmp_path / 'w.pt'}"
    assert meta["origin"]["sha256"] == import_weights.digest(tmp_path / "w.pt")
    assert meta["tokenizer"] == {
        "folder": None,
        "sha256": None,
        "reference": ".vlms/kosmos-2-patch14-224",
    }
    spec = ActionSpec.from_json(meta["datasets"]["calvin"]["action"])
    robot = np.array([0.65, -0.65, 0.325, 0, 9, 0, 1], np.float32)
    np.testing.assert_allclose(spec.normalise(robot), [1, -1, 0.5, 0, 1, 0, 1], atol=1e-6)
    with pytest.raises(ValueError, match="holds a checkpoint already"):
        run(f"robovlms:{tmp_path / 'w.pt'}", out, "--robovlms_config", str(fc[1]))


def test_an_oxe_policy_with_its_statistics_knows_what_its_actions_mean(
    fc: tuple[dict[str, torch.Tensor], Path], tmp_path: Path
) -> None:
    """RoboVLMs' checkpoints hold none; the arrays of a CLIP head are left out."""
    state, _ = fc
    clip = {"model.clip_norm_head.linear.weight": torch.zeros(3, 3)}
    torch.save({"state_dict": state | clip}, tmp_path / "w.pt")
    oxe = {"type": "OpenVLADataset", "data_mix": "bridge"}
    body = changed(
        model="paligemma", act_head__type="FCDecoder", train_dataset=oxe, use_clip_norm=True
    )
    numbers = {key: [0.5] * 7 for key in ("mean", "std", "min", "max", "q99")} | {"q01": [-0.1] * 7}
    file = tmp_path / "statistics.json"
    file.write_text(json.dumps({"action": numbers}))
    config = write_json(tmp_path, body)
    flags = ("--robovlms_config", str(config), "--statistics", str(file))
    run(f"robovlms:{tmp_path / 'w.pt'}", tmp_path / "out", *flags)
    meta = load_meta(tmp_path / "out")
    assert meta["cameras"] == ["primary"]
    spec = ActionSpec.from_json(meta["datasets"]["bridge"]["action"])
    assert [step.kind for step in spec.steps] == ["q99", "bounds"]
    np.testing.assert_allclose(spec.units()[:6], 0.3 * 0.65, rtol=1e-6)


def test_flags_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    file = write_json(tmp_path, CONFIG)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    np.savez(tmp_path / "w.npz", a=np.zeros(1))
    for origin, flags, message in (
        (
            "gguf:x",
            (),
            "--from: expected hf:DIR, npz:FILE, robovlms:FILE or openpi:DIR, got 'gguf:x'",
        ),
        ("robovlms:x.pt", (), "--robovlms_config: expected with robovlms:FILE"),
        (
            "hf:x",
            ("--robovlms_config", str(file)),
            "--robovlms_config: expected with robovlms:FILE",
        ),
        (f"hf:{tmp_path / 'w.npz'}", (), "expected a folder, got npz"),
        (f"npz:{tmp_path / 'w.pt'}", (), "expected an .npz, got torch"),
        (
            f"robovlms:{tmp_path / 'w.npz'}",
            ("--robovlms_config", str(file)),
            "expected a .pt or .ckpt file",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(origin, tmp_path / "out", *flags)


# ---------------------------------------------------------------------------------------- backbones


@pytest.mark.slow
def test_a_llava_folder_is_imported_with_its_output_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "vocab_size": 1600,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8, "hidden_act": "quick_gelu",
    }  # fmt: skip
    folder, out = tmp_path / "hf", tmp_path / "out"
    LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=1500)
    ).save_pretrained(folder)
    train_tiny_tokenizer(["push the red block"], folder / "words")
    for file in (folder / "words").iterdir():
        file.rename(folder / file.name)
    run(f"hf:{folder}", out)
    print(capsys.readouterr().out)
    config = ConfigDict(load_meta(out)["config"])
    assert (config.model.backbone, config.model.variant) == ("llava", "tiny")
    assert "backbone/lm_head/kernel" in load_params(out)
    continuous = flat.abstract(build.model(config))[1]
    assert "backbone/lm_head/kernel" not in continuous
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    names = [name.removeprefix("backbone/") for name in continuous if name.startswith("backbone/")]
    specs = {
        name: jax.ShapeDtypeStruct(continuous[f"backbone/{name}"].shape, np.float32, sharding=place)
        for name in names
    }
    assert build.load_backbone(config, specs).keys() == specs.keys()


@pytest.mark.slow
def test_a_smolvlm_folder_is_imported_and_one_of_other_numbers_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    text = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "vocab_size": 1600, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "pad_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    folder, out = tmp_path / "hf", tmp_path / "out"
    SmolVLMForConditionalGeneration(
        SmolVLMConfig(vision_config=vision, text_config=text, image_token_id=1500, scale_factor=2)
    ).save_pretrained(folder)
    build.BACKBONES["smolvlm"].train_tiny_tokenizer(["push the red block"], folder / "words")
    for file in (folder / "words").iterdir():
        file.rename(folder / file.name)
    run(f"hf:{folder}", out)
    print(capsys.readouterr().out)
    config = ConfigDict(load_meta(out)["config"])
    assert (config.model.backbone, config.model.variant) == ("smolvlm", "tiny")
    body = json.loads((folder / "config.json").read_text())
    body["text_config"]["rope_parameters"]["rope_theta"] = 1e4
    (folder / "config.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match=r"block.*rope_theta=100000\.0.*rope_theta=10000\.0"):
        run(f"hf:{folder}", tmp_path / "other")


@pytest.mark.slow
def test_an_imported_backbone_is_what_a_run_begins_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "hf", tmp_path / "out"
    reference.paligemma().save_pretrained(folder)
    train_tiny_tokenizer(["push the red block"], folder / "words")
    for file in (folder / "words").iterdir():
        file.rename(folder / file.name)
    run(f"hf:{folder}", out)
    assert "loaded 59 arrays" in capsys.readouterr().out
    config = ConfigDict(load_meta(out)["config"])
    assert (config.model.backbone, config.model.variant, config.model.weights) == (
        "paligemma",
        "tiny",
        str(out),
    )
    assert load_meta(out)["tokenizer"]["sha256"] == digest(out / "tokenizer") == digest(folder)
    assert sources.tokenizer(config, [], tmp_path) == out / "tokenizer"
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    _, shapes, _ = flat.abstract(build.model(config))
    specs = {
        name.removeprefix("backbone/"): jax.ShapeDtypeStruct(
            shape.shape, shape.dtype, sharding=place
        )
        for name, shape in shapes.items()
        if name.startswith("backbone/")
    }
    begun = build.load_backbone(config, specs)
    expected = paligemma.load(folder, paligemma.CONFIGS["tiny"], specs)
    assert (
        begun.keys()
        == expected.keys()
        == {name.removeprefix("backbone/") for name in load_params(out)}
    )
    for name, value in expected.items():
        np.testing.assert_array_equal(begun[name], value, err_msg=name)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{i}" for i in range(400)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"tokenizer .*: has \d+ ids, the token table 1600 rows"):
        run(f"hf:{folder}", tmp_path / "other")
    body = json.loads((folder / "config.json").read_text())
    body["text_config"]["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e4}
    (folder / "config.json").write_text(json.dumps(body))
    with pytest.raises(
        ValueError, match=r"of no released size; .* rope_theta: expected 10000\.0, got 50000\.0"
    ):
        run(f"hf:{folder}", tmp_path / "other")
    assert not (tmp_path / "other").exists()
