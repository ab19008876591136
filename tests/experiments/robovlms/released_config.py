"""A RoboVLMs config as it was released, with the sizes of the tests, and ways to change it."""

import copy
import json
from pathlib import Path
from typing import Any

from tests.experiments.robovlms import torch_reference as reference

WINDOW, CHUNK, HIDDEN = 3, 4, 64

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
