"""RoboVLMs' configs: every key is accounted for; what cannot be translated is refused by name."""

import copy
from pathlib import Path
from typing import Any

import pytest

from experiments.robovlms import config as robovlms_config
from tests.experiments.robovlms.released_config import (
    CHUNK,
    CONFIG,
    HIDDEN,
    WINDOW,
    changed,
    write_json,
)


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
    translation = robovlms_config.translate(write_json(tmp_path, CONFIG))
    config, told = (
        translation.config,
        {
            key
            for line in translation.lines
            for key in line.key.replace(".rgb_pad, ", ".").split(", ")
        },
    )
    read = {"parent", "tokenizer.pretrained_model_name_or_path"}
    of_data = {
        f"{split}.{key}"
        for split in ("train_dataset", "val_dataset")
        for key in ("type", "rgb_pad", "gripper_pad")
    }
    assert flattened(CONFIG).keys() - told - read - of_data == set()
    assert translation.tokenizer == ".vlms/kosmos-2-patch14-224"
    model = config.model
    assert (model.backbone, model.layout, model.history, model.head) == (
        "kosmos2",
        "robovlms",
        "head",
        "lstm",
    )
    assert (model.history_start, model.resize) == ("grow", "bicubic")  # of its rollouts
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
    assert config.model.layout == "robovlms_pre"
    assert (config.model.dtype, config.steps, config.accum) == ("bfloat16", 50000, 4)
    assert config.model.act_dtype == "float32"  # RoboVLMs acts in it but for "bf16"
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


def test_the_json_that_a_run_dumps_is_read_like_the_one_it_was_started_with(tmp_path: Path) -> None:
    """main.py writes down its arguments among the keys."""
    dumped = copy.deepcopy(CONFIG) | {
        "raw_config_path": "configs/a.json", "config": "configs/a.json", "gpus": 8, "num_nodes": 1,
        "log_dir": None, "output_dir": None, "data_dir": None, "annotation_file": None,
        "data_subfolder": None, "task_num": None, "exp_name": "2025-01-01", "finetune": False,
        "llm": {"type": None, "n_embd": None, "n_layer": None, "n_head": None},
    }  # fmt: skip
    shipped = robovlms_config.translate(write_json(tmp_path, CONFIG)).config
    translation = robovlms_config.translate(write_json(tmp_path, dumped))
    assert translation.config == shipped
    assert {line.key for line in translation.lines} >= {"raw_config_path", "llm.n_head", "gpus"}


def test_oxe_gives_no_wrist_image_whatever_the_config_says(tmp_path: Path) -> None:
    body = changed(train_dataset={"type": "OpenVLADataset", "data_mix": "bridge"})
    assert body["use_hand_rgb"]
    translation = robovlms_config.translate(write_json(tmp_path, body))
    assert translation.config.model.cameras == ("primary",)
    (line,) = (line for line in translation.lines if line.key.startswith("use_hand_rgb"))
    assert "gives no wrist image" in line.key


@pytest.mark.parametrize("word", ["bf16", "bf16-mixed", "16-mixed", "32"])
def test_only_bf16_acts_in_bfloat16(word: str, tmp_path: Path) -> None:
    """RoboVLMs' wrapper knows no other word: the rest is evaluated in float32."""
    body = changed(trainer__precision=word)
    config = robovlms_config.translate(write_json(tmp_path, body)).config
    assert config.model.act_dtype == ("bfloat16" if word == "bf16" else "float32")


def test_use_clip_norm_is_of_training_alone(tmp_path: Path) -> None:
    translation = robovlms_config.translate(write_json(tmp_path, changed(use_clip_norm=True)))
    assert ("use_clip_norm", False) in {(line.key, line.used) for line in translation.lines}
