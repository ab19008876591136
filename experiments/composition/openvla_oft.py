"""OpenVLA-OFT's checkpoints: what is in one, and why it does not become one of ours.

A folder of a finetuned model (experiments/robot/openvla_utils.py of moojink/openvla-oft):

    config.json, model-*.safetensors      OpenVLA with its adapters merged: model_type "openvla",
                                          two vision towers side by side, a projector, a Llama
    action_head--STEP_checkpoint.pt       MLPResNet: our head oft's layers
    proprio_projector--STEP_checkpoint.pt the state's token: two layers with a GELU between them
    dataset_statistics.json               q01 and q99 of the actions, by dataset
"""

import json
from pathlib import Path

HEAD, STATE = "action_head--", "proprio_projector--"


def refuse(folder: Path, backbones: list[str]) -> None:
    """Raises ValueError: for what is no such folder, and for one, of which it says what lacks here;
    `backbones` are those that we have.
    """
    try:
        body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind, heads = body["model_type"], sorted(folder.glob(f"{HEAD}*.pt"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--from openvla_oft:{folder}: expected a folder with OpenVLA's config.json and"
            f" {HEAD}STEP_checkpoint.pt ({error!r})"
        ) from error
    if kind != "openvla" or not heads:
        raise ValueError(
            f"--from openvla_oft:{folder}: expected a config.json of model_type openvla and"
            f" {HEAD}STEP_checkpoint.pt, got model_type {kind!r} and"
            f" {len(heads)} files {HEAD}*.pt"
        )
    towers = ", ".join(map(str, body.get("timm_model_ids") or [body.get("vision_backbone_id")]))
    state = "".join(f" {file.name} is no state token of ours." for file in folder.glob(f"{STATE}*"))
    raise ValueError(
        f"--from openvla_oft:{folder}: its backbone has no counterpart here: the vision towers"
        f" {towers} side by side, behind one projector of both before"
        f" {body.get('llm_backbone_id') or 'a Llama'}; ours are {', '.join(backbones)}, of one"
        f" tower each. {heads[0].name} would fit the head oft, and means nothing behind another"
        f" backbone.{state} What can be had of it: the statistics of its actions,"
        f" {folder / 'dataset_statistics.json'}, with --statistics of a robovlms import; and a"
        " policy of its kind, trained on your data: pretrain --config=oxe_paligemma.py:oft"
    )
