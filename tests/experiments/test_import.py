"""import_weights: RoboVLMs policies give the same features and actions as in torch; what does not
fit is named.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from transformers import AutoTokenizer

from experiments import import_weights
from experiments.composition import sources
from experiments.robovlms import config as robovlms_config
from experiments.robovlms import names as robovlms_names
from tests.experiments import robovlms_torch as reference
from vla_jax import build
from vla_jax import params as flat
from vla_jax.actions import ActionSpec
from vla_jax.models.backbones import kosmos2, paligemma
from vla_jax.models.tokenizer import digest, train_tiny_tokenizer
from vla_jax.models.vla import VLA
from vla_jax.training.checkpoint import load_meta, load_params
from vla_jax.types import HeadContext, Observation
from vla_jax.weights import pretrained

WINDOW, CHUNK, HIDDEN, TOLERANCE = 3, 4, 64, 1e-5
LENGTHS, PROMPT = (5, 7), 8  # ids of the two prompts, and what they are padded to

# What the released configs hold:
# finetune_kosmos_cont-lstm-post_full-ft_text_vision_wd-0_use-hand_ws-16_act-10.json.
CONFIG: dict[str, Any] = {
    "robovlm_name": "RoboKosMos", "parent": None, "task_name": "calvin_finetune", "model": "kosmos",
    "model_url": "https://huggingface.co/microsoft/kosmos-2-patch14-224", "seq_len": 1,
    "image_size": reference.IMAGE,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "window_size": WINDOW, "fwd_pred_next_n": CHUNK, "arm_gripper_loss_ratio": 0.01,
    "cap_loss_ratio": 0.05,
    "fwd_loss_ratio": 0, "seed": 123, "batch_size": 4, "num_workers": 16, "data_scale": 1,
    "optimizer": "adam",
    "learning_rate": 2e-5, "min_lr_scale": 1e-2, "weight_decay": 0, "warmup_epochs": 0.25,
    "warmup_steps": 0,
    "warmup_ratio": None, "use_hand_rgb": True, "use_time_causal_attn": False,
    "use_mim_obs_loss": False,
    "use_pixel_loss": True, "use_obs_queries": True, "use_vision_resampler": False,
    "vision_masked_ratio": 0.9,
    "use_tube_mask": False, "output_root": "runs/checkpoints", "log_root": "runs/logs",
    "cache_root": "runs/cache",
    "model_load_path": None, "model_load_source": "torch", "resume": None,
    "model_path": ".vlms/kosmos-2-patch14-224",
    "model_config": ".vlms/kosmos-2-patch14-224/config.json",
    "train_setup": {
        "precision": "bf16", "predict_action": True, "predict_forward": False,
        "predict_forward_hand": False,
        "predict_caption": False, "train_vision": True, "bits": -1, "freeze_mm_mlp_adapter": False,
        "freeze_backbone": False, "freeze_resampler": False, "tune_mm_mlp_adapter": False,
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
        "gradient_checkpointing": False,
        "lora_enable": False, "mm_projector_lr": 1e-4, "lora_r": 64, "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_bias": "none", "train_text_embedding": True,
    },
    "vision_resampler": {"vis_dim": 1024, "depth": 8, "dim_head": 64, "heads": 8,
    "num_latents": 64},
    "act_encoder": None,
    "act_head": {
        "type": "LSTMDecoder", "hidden_size": HIDDEN, "action_dim": 7, "down_sample": "none",
        "latent": 1,
        "fwd_pred_next_n": 1, "window_size": 1, "action_space": "continuous", "with_history": True,
        "history_type": "post",
    },
    "fwd_head": None,
    "tokenizer": {
        "type": "AutoProcessor", "pretrained_model_name_or_path": ".vlms/kosmos-2-patch14-224",
        "tokenizer_type": "kosmos", "max_text_len": 256, "additional_special_tokens": None,
    },
    "vlm": {
        "type": "AutoModelForVision2Seq", "name": "kosmos",
        "pretrained_model_name_or_path": ".vlms/kosmos-2-patch14-224",
    },
    "trainer": {
        "accelerator": "gpu", "strategy": "deepspeed_stage_2", "precision": "32",
        "logger": ["tensorboard"],
        "gradient_clip_val": 1.0, "use_distributed_sampler": False, "log_every_n_steps": 10,
        "max_epochs": 5,
        "val_check_interval": None, "check_val_every_n_epoch": 1, "max_steps": -1,
        "accumulate_grad_batches": 1,
    },
    "train_dataset": {
        "type": "DiskCalvinDataset", "data_dir": "task_ABCD_D/training", "shift_first": False,
        "model_name": "kosmos",
        "rgb_pad": 10, "gripper_pad": 4,
    },
    "val_dataset": {"type": "DiskCalvinDataset", "data_dir": "task_ABCD_D/validation",
    "model_name": "kosmos"},
    "norm_action": True, "norm_min": -0.65, "norm_max": 0.65,
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    """CONFIG with `a__b=value` for {"a": {"b": value}}."""
    body = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = body
        for parent in parents:
            node = node[parent]
        node[last] = value
    return body


def write_json(folder: Path, body: dict[str, Any], name: str = "config.json") -> Path:
    file = folder / name
    file.write_text(json.dumps(body))
    return file


def run(origin: str, out: Path, *flags: str) -> None:
    import_weights.main(["--from", origin, "--out", str(out), *flags])


# ------------------------------------------------------------------------------------------- parity


class Case(NamedTuple):
    """What the command is given, and what the policy gave in torch."""

    file: Path
    json: Path
    images: tuple[np.ndarray, np.ndarray]  # b t h w 3
    ids: np.ndarray
    valid: np.ndarray
    features: np.ndarray
    readouts: np.ndarray
    arm: np.ndarray
    gripper: np.ndarray


def make(folder: Path, backbone: str, head: str, latent: int) -> Case:
    torch.manual_seed(0)
    hidden = (
        48 if head == "GPTDecoder" else HIDDEN
    )  # as wide as the readouts, GPTDecoder has no projection
    policy = reference.Policy(
        backbone, reference.HEADS[head](reference.WIDTH, hidden, latent, CHUNK, WINDOW), latent
    ).jitter(1)
    body = changed(
        model=backbone, act_head__type=head, act_head__latent=latent, act_head__hidden_size=hidden
    )
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
    return Case(folder / "policy.pt", write_json(folder, body), images, ids, valid, *values)  # type: ignore[arg-type]


def opened(out: Path) -> VLA:
    """The imported policy, from its directory alone."""
    graphdef, shapes, _ = flat.abstract(build.model(ConfigDict(load_meta(out)["config"])))
    values = load_params(out)
    assert values.keys() == shapes.keys()
    return flat.merge(graphdef, {name: jax.numpy.asarray(value) for name, value in values.items()})  # type: ignore


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "head", "latent"),
    [
        ("kosmos", "LSTMDecoder", 1),
        ("kosmos", "FCDecoder", 2),
        ("kosmos", "GPTDecoder", 1),
        ("paligemma", "LSTMDecoder", 2),
    ],
)
def test_imported_policies_equal_robovlms(
    backbone: str, head: str, latent: int, tmp_path: Path
) -> None:
    case = make(tmp_path, backbone, head, latent)
    run(f"robovlms:{case.file}", tmp_path / "out", "--robovlms_config", str(case.json))
    policy = opened(tmp_path / "out")
    b, t = case.images[0].shape[:2]
    obs = Observation(
        images=case.images,
        image_mask=np.ones((b, t, 2), bool),
        proprio=np.zeros((b, t, 1), np.float32),
        proprio_mask=np.zeros((b,), bool),
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


# ------------------------------------------------------------------------------------------- config


def flattened(body: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in body.items():
        out |= (
            flattened(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {prefix + key: value}
        )
    return out


def test_every_key_of_a_released_config_is_accounted_for(tmp_path: Path) -> None:
    found = robovlms_config.translate(write_json(tmp_path, CONFIG))
    config, told = (
        found.config,
        {key for line in found.lines for key in line.key.replace(".rgb_pad, ", ".").split(", ")},
    )
    read = {"parent", "tokenizer.pretrained_model_name_or_path"}
    of_data = {
        f"{split}.{key}"
        for split in ("train_dataset", "val_dataset")
        for key in ("type", "rgb_pad", "gripper_pad")
    }
    assert flattened(CONFIG).keys() - told - read - of_data == set()
    assert found.tokenizer == ".vlms/kosmos-2-patch14-224"
    model = config.model
    assert (model.backbone, model.layout, model.history, model.head) == (
        "kosmos2",
        "robovlms",
        "head",
        "lstm",
    )
    assert (model.window, model.chunk, model.cameras, model.readouts) == (
        WINDOW,
        CHUNK,
        ("primary", "wrist"),
        1,
    )
    assert (model.head_layers, model.head_hidden, tuple(model.head_mlp)) == (
        4,
        HIDDEN,
        (1024, 512, 256),
    )
    assert (config.optim.lr, config.optim.clip, config.optim.schedule) == (2e-5, 0.0, "constant")
    assert config.optim.warmup_epochs == 0.25
    assert (config.loss.gripper, config.data.mixture, tuple(config.augment.shift)) == (
        0.01,
        "calvin",
        (10, 4),
    )
    assert config.data.normalise == (("bounds", -0.65, 0.65),)
    assert tuple(config.augment.crop_scale) == (1.0, 1.0)


def test_other_values_are_translated(tmp_path: Path) -> None:
    body = changed(
        model="paligemma", use_hand_rgb=False, act_head__type="GPTDecoder",
        act_head__history_type="pre",
        scheduler="half-cosine", gradient_clip_val=1.0, trainer__precision="16",
        trainer__max_steps=50000,
        trainer__accumulate_grad_batches=4, train_setup__freeze_backbone=True,
        train_setup__train_decoder_layers=2,
        train_dataset={"type": "OpenVLADataset", "data_mix": "rt_1", "image_aug": True,
        "data_root_dir": "oxe"},
    )  # fmt: skip
    config = robovlms_config.translate(write_json(tmp_path, body)).config
    assert (config.model.head, config.model.head_layers, config.model.head_attention) == (
        "gpt",
        8,
        8,
    )
    assert (config.model.backbone, config.model.cameras, config.model.history) == (
        "paligemma", ("primary",), "interleaved",
    )  # fmt: skip
    assert (config.model.dtype, config.steps, config.accum) == ("bfloat16", 50000, 4)
    assert (config.optim.schedule, config.optim.min_lr_scale, config.optim.clip) == (
        "half_cosine",
        0.01,
        1.0,
    )
    assert (config.optim.freeze_backbone, config.optim.train_decoder_layers) == (True, 2)
    assert config.data.mixture == "fractal20220817_data"
    assert config.data.normalise == ("q99", ("bounds", -0.65, 0.65))
    assert tuple(config.augment.crop_scale) == (0.9, 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"my_new_option": 3}, "1 keys .*: my_new_option"),
        ({"train_dataset__my_option": 3}, "train_dataset: unknown keys my_option"),
        (
            {"model": "qwen"},
            "model: expected one of kosmos, paligemma, llava, flamingo, got 'qwen'",
        ),
        ({"act_head__type": "DiscreteDecoder"}, r"act_head\.type: .*got 'DiscreteDecoder'"),
        (
            {"act_head__action_space": "down_sample"},
            r"act_head\.action_space: expected 'continuous', because",
        ),
        (
            {"act_head__down_sample": "pooling"},
            r"act_head\.down_sample: expected 'none', because pooled",
        ),
        (
            {"act_head__history_type": "video"},
            r"act_head\.history_type: expected one of post, pre, got 'video'",
        ),
        ({"act_head__fill_zero": True}, r"act_head\.fill_zero"),
        (
            {"act_head__type": "GPTDecoder", "act_head__latent": 2},
            r"act_head\.latent: expected 1 with GPTDecoder",
        ),
        ({"use_state": True}, "use_state: expected False or None, because"),
        ({"use_vision_resampler": True}, "use_vision_resampler"),
        ({"train_setup__lora_enable": True}, "adapters must be merged"),
        ({"use_mu_law": True}, "mu-law"),
        ({"window_size": "16"}, "window_size: expected a int, got '16'"),
        ({"trainer__precision": "64"}, r"trainer\.precision"),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        robovlms_config.translate(write_json(tmp_path, changed(**changes)))
    assert "config.json" in str(error.value)


def test_parents_are_merged_under_a_config(tmp_path: Path) -> None:
    write_json(tmp_path, {**CONFIG, "act_encoder": {"a": 1}}, "base.json")
    write_json(
        tmp_path,
        {"parent": "base.json", "act_head": {"latent": 2}, "window_size": 9},
        "middle.json",
    )
    top = {"parent": "middle.json", "window_size": 8, "act_encoder": {"__override__": True, "b": 2}}
    body = robovlms_config.read(write_json(tmp_path, top))
    assert (body["window_size"], body["act_head"]["latent"], body["act_head"]["type"]) == (
        8,
        2,
        "LSTMDecoder",
    )
    assert body["act_encoder"] == {"b": 2}
    write_json(tmp_path, {"parent": "config.json"}, "base.json")
    with pytest.raises(ValueError, match=r"parent: a circle: .*config\.json -> .*middle\.json"):
        robovlms_config.read(tmp_path / "config.json")
    write_json(tmp_path, {"window_size": 3}, "base.json")
    with pytest.raises(
        ValueError, match="window_size: expected int as in the parent, got an object"
    ):
        robovlms_config.read(write_json(tmp_path, {"parent": "base.json", "window_size": {"a": 1}}))


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("prefix", ["module.model.", "_forward_module.model.", "model.", ""])
def test_prefix_variants_give_the_same_arrays(prefix: str, tmp_path: Path) -> None:
    state = {
        "backbone.text_model.model.embed_tokens.weight": torch.arange(6.0).reshape(3, 2),
        "backbone.text_model.lm_head.weight": torch.arange(6.0).reshape(3, 2),
        "action_token": torch.ones(2),
        "act_head.rnn.bias_ih_l0": torch.ones(4),
        "act_head.rnn.bias_hh_l0": torch.full((4,), 2.0),
        "act_head.gpt.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "act_head.gpt.wpe.weight": torch.ones(3, 2),
    }
    torch.save(
        {"state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "w.pt"
    )
    source, left = robovlms_names.source(pretrained.open_source(tmp_path / "w.pt"))
    assert source.arrays.keys() == {
        "text_model.model.embed_tokens.weight", "action_token", "act_head.rnn.bias_l0",
        "act_head.gpt.wpe.weight",
        "act_head.fc.weight", "act_head.fc.bias",
    }  # fmt: skip
    np.testing.assert_array_equal(
        source.arrays["act_head.fc.weight"], np.eye(2)
    )  # nn.Identity where widths agree
    assert left == ["act_head.gpt.h.0.attn.bias", "text_model.lm_head.weight"]
    np.testing.assert_array_equal(source.arrays["act_head.rnn.bias_l0"], np.full(4, 3.0))
    state["backbone.text_model.lm_head.weight"] += 1
    torch.save(
        {"state_dict": {prefix + name: value for name, value in state.items()}}, tmp_path / "w.pt"
    )
    with pytest.raises(
        ValueError, match=r"text_model\.lm_head\.weight and .*embed_tokens\.weight differ"
    ):
        robovlms_names.source(pretrained.open_source(tmp_path / "w.pt"))


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


def test_flags_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    file = write_json(tmp_path, CONFIG)
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    np.savez(tmp_path / "w.npz", a=np.zeros(1))
    for origin, flags, message in (
        ("gguf:x", (), "--from: expected hf:DIR, npz:FILE or robovlms:FILE, got 'gguf:x'"),
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
    pre = write_json(tmp_path, changed(act_head__history_type="pre"))
    with pytest.raises(ValueError, match="'pre' shows later frames the last prompt token"):
        run(f"robovlms:{tmp_path / 'w.pt'}", tmp_path / "out", "--robovlms_config", str(pre))


@pytest.mark.parametrize(
    ("head", "count"),
    [("LSTMDecoder", 41_210_950), ("FCDecoder", 6_577_222), ("GPTDecoder", 106_315_846)],
)
def test_every_array_of_a_released_size_fits(head: str, count: int, tmp_path: Path) -> None:
    with torch.device("meta"):
        policy = reference.Policy(
            "kosmos", reference.HEADS[head](2048, 1024, 1, 10, 16), 1, released=True
        )
    body = changed(
        image_size=224,
        window_size=16,
        fwd_pred_next_n=10,
        act_head__type=head,
        act_head__hidden_size=1024,
    )
    arrays = {
        name: np.broadcast_to(np.float32(0), tuple(value.shape))
        for name, value in policy.checkpoint().items()
    }
    opened = pretrained.Source(tmp_path, "torch", arrays)
    config = robovlms_config.translate(write_json(tmp_path, body)).config
    config.model.variant = "2-patch14-224"
    shapes = flat.abstract(build.model(config))[1]
    source, _ = robovlms_names.source(opened)
    table = robovlms_names.names(config, kosmos2.hf_names(kosmos2.CONFIGS["2-patch14-224"]))
    plan = pretrained.plan(source, table, shapes)
    assert plan.problems == []
    # PyTorch's LSTM has a second bias in each layer.
    second = 4 * 4 * 1024 if head == "LSTMDecoder" else 0
    assert (
        sum(math.prod(s.shape) for name, s in shapes.items() if name.startswith("head/"))
        == count - second
    )


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
