"""import_weights: RoboVLMs policies give the same features and actions as in torch; what does not fit is named."""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from experiments import build, import_weights, robovlms
from tests.experiments import robovlms_torch as reference
from vla_jax import params as flat
from vla_jax.actions import ActionSpec
from vla_jax.checkpoint import load_meta, load_params
from vla_jax.model import VLA
from vla_jax.types import Observation

WINDOW, CHUNK, HIDDEN, TOLERANCE = 3, 4, 64, 1e-4
LENGTHS, PROMPT = (5, 7), 8  # ids of the two prompts, and what they are padded to

# What the released configs hold: finetune_kosmos_cont-lstm-post_full-ft_text_vision_wd-0_use-hand_ws-16_act-10.json.
CONFIG: dict[str, Any] = {
    "robovlm_name": "RoboKosMos", "parent": None, "task_name": "calvin_finetune", "model": "kosmos",
    "model_url": "https://huggingface.co/microsoft/kosmos-2-patch14-224", "seq_len": 1, "image_size": reference.IMAGE,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "window_size": WINDOW, "fwd_pred_next_n": CHUNK, "arm_gripper_loss_ratio": 0.01, "cap_loss_ratio": 0.05,
    "fwd_loss_ratio": 0, "seed": 123, "batch_size": 4, "num_workers": 16, "data_scale": 1, "optimizer": "adam",
    "learning_rate": 2e-5, "min_lr_scale": 1e-2, "weight_decay": 0, "warmup_epochs": 0.25, "warmup_steps": 0,
    "warmup_ratio": None, "use_hand_rgb": True, "use_time_causal_attn": False, "use_mim_obs_loss": False,
    "use_pixel_loss": True, "use_obs_queries": True, "use_vision_resampler": False, "vision_masked_ratio": 0.9,
    "use_tube_mask": False, "output_root": "runs/checkpoints", "log_root": "runs/logs", "cache_root": "runs/cache",
    "model_load_path": None, "model_load_source": "torch", "resume": None,
    "model_path": ".vlms/kosmos-2-patch14-224", "model_config": ".vlms/kosmos-2-patch14-224/config.json",
    "train_setup": {
        "precision": "bf16", "predict_action": True, "predict_forward": False, "predict_forward_hand": False,
        "predict_caption": False, "train_vision": True, "bits": -1, "freeze_mm_mlp_adapter": False,
        "freeze_backbone": False, "freeze_resampler": False, "tune_mm_mlp_adapter": False,
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "gradient_checkpointing": False,
        "lora_enable": False, "mm_projector_lr": 1e-4, "lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.05,
        "lora_bias": "none", "train_text_embedding": True,
    },
    "vision_resampler": {"vis_dim": 1024, "depth": 8, "dim_head": 64, "heads": 8, "num_latents": 64},
    "act_encoder": None,
    "act_head": {
        "type": "LSTMDecoder", "hidden_size": HIDDEN, "action_dim": 7, "down_sample": "none", "latent": 1,
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
        "accelerator": "gpu", "strategy": "deepspeed_stage_2", "precision": "32", "logger": ["tensorboard"],
        "gradient_clip_val": 1.0, "use_distributed_sampler": False, "log_every_n_steps": 10, "max_epochs": 5,
        "val_check_interval": None, "check_val_every_n_epoch": 1, "max_steps": -1, "accumulate_grad_batches": 1,
    },
    "train_dataset": {
        "type": "DiskCalvinDataset", "data_dir": "task_ABCD_D/training", "shift_first": False, "model_name": "kosmos",
        "rgb_pad": 10, "gripper_pad": 4,
    },
    "val_dataset": {"type": "DiskCalvinDataset", "data_dir": "task_ABCD_D/validation", "model_name": "kosmos"},
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


# --------------------------------------------------------------------------------------------------------------- parity


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
    policy = reference.Policy(backbone, reference.HEADS[head](HIDDEN, latent, CHUNK, WINDOW), latent).jitter(1)
    body = changed(model=backbone, act_head__type=head, act_head__latent=latent)
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


@pytest.mark.parametrize(
    ("backbone", "head", "latent"),
    [
        pytest.param("kosmos", "LSTMDecoder", 1),
        pytest.param("kosmos", "FCDecoder", 2, marks=pytest.mark.slow),
        pytest.param("kosmos", "GPTDecoder", 1, marks=pytest.mark.slow),
        pytest.param("paligemma", "LSTMDecoder", 2, marks=pytest.mark.slow),
    ],
)
def test_imported_policies_equal_robovlms(
    backbone: str, head: str, latent: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
        return policy.backbone.embed_image(case.images[0][0]), readouts, policy.head.act(readouts, jax.random.key(0))

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
