"""Configs that were saved: read by a later version, they still mean what they meant.

A config travels with every checkpoint and work directory as JSON. A field that came later is filled
in with the value that does what was done before it was there, which need not be its default.

Who adds a field to experiments/configs/oxe_paligemma.py adds it to INTRODUCED, at the end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# The fields of the first config whose checkpoints open (2026-11-24, 10cfcb2).
FIRST = frozenset((
    "steps", "batch_size", "accum", "seed", "log_every", "eval_every", "save_every",
    "eval_batches", "keep_checkpoints", "nan_patience",
    "data.root", "data.mixture", "data.datasets", "data.normalise", "data.ram_budget",
    "data.blank_instruction",
    "model.backbone", "model.variant", "model.weights", "model.allow_missing",
    "model.tokenizer", "model.prompt_length", "model.image_size", "model.cameras",
    "model.window", "model.chunk", "model.action_dim", "model.history", "model.layout",
    "model.head", "model.head_hidden", "model.head_layers", "model.head_mlp", "model.dtype",
    "model.remat", "model.layers",
    "loss.kind", "loss.delta", "loss.arm", "loss.gripper",
    "optim.lr", "optim.b1", "optim.b2", "optim.eps", "optim.weight_decay", "optim.clip",
    "optim.schedule", "optim.min_lr_scale", "optim.warmup_steps", "optim.warmup_epochs",
    "optim.ema", "optim.freeze", "optim.freeze_backbone", "optim.train_vision",
    "optim.train_text_embedding", "optim.train_decoder_layers",
    "mesh.data", "mesh.fsdp", "mesh.tensor",
))  # fmt: skip

# Field -> the value with which a run from before the field was there means what it meant; in the
# order in which they came.
INTRODUCED: dict[str, Any] = {
    # 2026-11-24, 699b3ee. Windows came in another order before: such a run opens, but its data has
    # another identity, so it is not continued.
    "data.quarantine": "",
    "data.windows_per_visit": 64,
    # 2026-11-24, 4b01966. Images were not augmented.
    "augment.crop_scale": (1.0, 1.0),
    "augment.crop_ratio": (1.0, 1.0),
    "augment.brightness": 0.0,
    "augment.contrast": (1.0, 1.0),
    "augment.saturation": (1.0, 1.0),
    "augment.hue": 0.0,
    "augment.shift": (),
    "augment.flip": False,
    # 2026-11-24, 3a49240. Of heads that came with it.
    "model.head_attention": 8,
    # 2026-11-24, a700156. 0 is off.
    "model.resampler.depth": 0,
    "model.resampler.heads": 8,
    "model.resampler.dim_head": 64,
    "model.resampler.latents": 64,
    # 2026-11-25, 944ea4e. All off.
    "model.proprio": False,
    "model.past_action": False,
    "model.past_action_hidden": 0.5,
    "objectives.forward.weight": 0.0,
    "objectives.forward.offsets": (10,),
    "objectives.forward.tokens": 8,
    "objectives.forward.width": 512,
    "objectives.forward.depth": 2,
    "objectives.forward.patch": 16,
    "objectives.caption.weight": 0.0,
    "objectives.image_text.weight": 0.0,
    "objectives.image_text.dataset": "",
    "objectives.image_text.length": 128,
    "objectives.text_align.weight": 0.0,
    "objectives.text_align.clip": "weights/clip-vit-large-patch14",
    "lora.rank": 0,
    "lora.alpha": 16.0,
    "lora.dropout": 0.05,
    "lora.targets": ("backbone/*/attn/*", "backbone/*/mlp/*"),
    # 2026-11-25, 0602df6. There was one query token per frame, and no head discrete.
    "model.readouts": 1,
    "model.bins": 256,
    "model.temperature": 0.0,
    "objectives.text_align.width": 768,
    # 2026-11-25, 82a27bb. Runs began with model.weights.
    "model.start": "",
    # 2026-11-28. Heads had no options of their own.
    "model.head_options": "",
    # 2026-11-28. Both moments were float32.
    "optim.mu_dtype": "float32",
    # 2026-11-28. Nothing was left out but data.quarantine, and the share was fixed.
    "data.held_out": "0.05",
    "data.skip_unlabelled": False,
    "data.min_length": 0,
    "data.max_idle": 1.0,
    # 2026-11-28. A window before its episode held the first frame.
    "model.history_start": "repeat",
    # 2026-11-28. The filter was fixed.
    "model.resize": "lanczos",
    # 2026-11-28. Policies acted in float32 unless told otherwise.
    "model.act_dtype": "float32",
    # 2026-11-29. Only parameters were taken over.
    "model.start_state": "params",
    # 2026-11-29. Rows went to metrics.jsonl and TensorBoard only.
    "wandb": "",
    # 2026-11-29. Runs ended at their steps.
    "epochs": 0.0,
    "early_stop": 0,
    # 2026-11-29. All products were in model.dtype.
    "model.eight_bits": "",
    # 2026-11-29. All had these actions, but for their names (`of_checkpoint`), and no embodiment.
    "model.action_names": ("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    "model.action_binary": ("gripper",),
    "model.state_names": (),
    "model.embodiment": False,
    "model.embodiments": (),
    # 2026-11-29. There were no sensors.
    "model.sensors": "",
    "augment.sensor_dropout": 0.0,
    # 2026-11-29. Every camera had model.image_size.
    "model.image_sizes": (),
    # 2026-11-29. There was no head fast.
    "model.fast.file": "fit",
    "model.fast.scale": 10.0,
    "model.fast.tokens": 1024,
    "model.fast.most": 0,
    # 2026-11-29. Nothing acted while it trained.
    "rollouts.sim": "",
    "rollouts.every": 1_000,
    "rollouts.episodes": 40,
    # 2026-11-29. Nothing learnt by trial.
    "rl.algorithm": "",
    "rl.sim": "",
    "rl.episodes": 96,
    "rl.trials": 1,
    "rl.environments": 16,
    "rl.epochs": 4,
    "rl.discount": 0.99,
    "rl.decay": 0.95,
    "rl.clip": 0.2,
    "rl.update_limit": 0.05,
    "rl.value": 0.5,
    "rl.divergence": 0.01,
    "rl.std": 0.1,
    "rl.hidden": 256,
    "rl.reward": "",
    "rl.budget": 0.0,
    "rl.beta": 0.1,
    "rl.critic_lr": 1e-3,
    "rl.head_only": False,
    # 2026-11-30. The state was a token.
    "model.state_words": False,
    # 2026-11-30. The head fast alone had strings.
    "objectives.fast.weight": 0.0,
    # 2026-11-30. Instructions were whole.
    "augment.word_dropout": 0.0,
    # 2026-11-30. Learning by trial kept nothing of what it did not play.
    "rl.keep": "",
    "rl.keep_episodes": 96,
    "rl.keep_weight": 1.0,
    # 2026-12-01. There were no heat maps, and windows at every step.
    "model.keypoints.points": 0,
    "model.keypoints.hidden": 256,
    "model.keypoints.tokens": 8,
    "objectives.sensed.weight": 0.0,
    "objectives.sensed.sensor": "",
    "objectives.sensed.hidden": 256,
    "data.stride": 1,
}


def complete(saved: dict[str, Any], where: Path | str) -> ConfigDict:
    """The config of a checkpoint or a work directory, with every field of today.

    Args:
        saved: as JSON gives it: lists where there were tuples.
        where: what it was read from, for errors.

    Raises ValueError naming fields that are unknown, and those that every config has had.
    """
    fields = flatten(saved)
    unknown = unknown_fields(saved)
    if unknown:
        raise ValueError(
            f"{where}: config: no such field here: {', '.join(unknown)}; a later version wrote it,"
            " whose commit may stand in the checkpoint's meta item under revision: use that"
        )
    lacking = sorted(FIRST - fields.keys())
    if lacking:
        raise ValueError(
            f"{where}: config: expected {', '.join(lacking)}, which every config has had; it was"
            " edited or cut off: restore it"
        )
    return ConfigDict(_nested({**INTRODUCED, **fields}))


def of_checkpoint(meta: dict[str, Any], where: Path | str) -> ConfigDict:
    """The `complete` config of a checkpoint. One from before dims had names there has them by its
    datasets, all of which had the same.
    """
    config, own = complete(meta["config"], where), flatten(meta["config"])
    specs = list(meta["datasets"].values())
    if specs and "model.action_names" not in own:
        action = specs[0]["action"]
        config.model.action_names = tuple(action["names"])
        config.model.action_binary = tuple(action["names"][dim] for dim in action["binary"])
    if specs and "model.state_names" not in own and config.model.proprio:
        config.model.state_names = tuple(specs[0]["state"]["names"])
    return config


def unknown_fields(tree: Mapping[str, Any]) -> list[str]:
    """The fields of a config that are in neither FIRST nor INTRODUCED."""
    return sorted(flatten(tree).keys() - FIRST - INTRODUCED.keys())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    fields: dict[str, Any] = {}
    for key, value in tree.items():
        fields |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return fields


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for field, value in fields.items():
        *parents, last = field.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
