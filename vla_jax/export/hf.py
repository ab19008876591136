"""A PaliGemma policy as a Hugging Face folder: the backbone as transformers reads it, the rest of
the policy beside it.

config.json, model.safetensors, tokenizer*, preprocessor_config.json
                     PaliGemmaForConditionalGeneration in the hub's layout: `from_pretrained` needs
                     nothing else
head.safetensors     what transformers has no place for, by our names: head, readouts, tokens of
                     state and past action
policy.json, norm_stats.json
                     config.json and norm_stats.json of the artefact: they say how the two make a
                     policy
README.md            how the two belong together
SHA256SUMS           of all of these

The folder is made of a finished artefact, so its proof continues the artefact's: JAX = torch =
transformers.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_jax.export import derived
from vla_jax.models.backbones import paligemma
from vla_jax.models.tokenizer import open_tokenizer
from vla_jax.models.vision import VisionConfig
from vla_jax.robot.torch_policy import golden, load
from vla_jax.robot.torch_policy.network import Inputs, Network
from vla_jax.robot.torch_policy.spec import image_sizes
from vla_jax.weights import transforms

FLAG = "--hf"
BACKBONE = "backbone/"
IMAGE = "<image>"
# The hub's spelling of the names that pretrained.normalise makes.
HUB = {"language_model.": "language_model.model.", "vision_tower.": "vision_tower.vision_model."}

README = """# A robot policy's PaliGemma, and its head

`PaliGemmaForConditionalGeneration.from_pretrained` and `AutoProcessor.from_pretrained` read this
folder; the backbone is as it was trained for the robot. `head.safetensors` holds the rest of the
policy by the names of vla_jax: the readout embeddings that stand behind images and prompt, and the
head that reads the hidden states there. `policy.json` says the layout of the sequence and the
sizes, `norm_stats.json` what the numbers of an action mean. The artefact of which this folder was
made runs the whole policy in torch.
"""


def write(origin: Path, tokenizer: Path, out: Path) -> list[golden.Row]:
    """Writes the Hugging Face folder `out` of the artefact in `origin` and returns its proof.

    `tokenizer` is the folder that the policy was trained with. Raises ValueError for another
    backbone than PaliGemma, a tower with convolutions, cameras of another size than the tower's, a
    folder that is there, a tokenizer without <image>, and when transformers computes something else
    than the artefact; no folder is left behind then.
    """
    body = json.loads((origin / "config.json").read_text(encoding="utf-8"))
    kind = body["network"]["backbone"]["kind"]
    if kind != "paligemma":
        raise ValueError(
            f"{FLAG}: expected the backbone paligemma, got {kind}: its folder has no counterpart"
            " here"
        )
    if body["network"]["backbone"]["vision"].get("stem"):
        raise ValueError(
            f"{FLAG}: expected a tower of patches and blocks, got one with convolutions"
            " (model.variant=seeing): transformers has no such one"
        )
    config = sizes(body["network"]["backbone"])
    others = set(image_sizes(body).values()) - {config.image_size}
    if others:
        raise ValueError(
            f"{FLAG}: expected images of {config.image_size} px from every camera, got some of"
            f" {', '.join(map(str, sorted(others)))}: a folder of transformers says one size; train"
            " with model.image_sizes=()"
        )
    with derived.whole(out, FLAG) as part:
        _files(origin, tokenizer, config, body, part)
        rows = prove(origin, part)
        derived.check(FLAG, "transformers and the artefact", rows)
    return rows


def sizes(body: dict[str, Any]) -> paligemma.PaliGemmaConfig:
    """The config of the JAX backbone that "backbone" of an artefact's config.json describes."""
    tower, block = body["vision"], body["block"]
    inner = tower["block"]
    vision = VisionConfig(
        image_size=tower["image_size"], patch=tower["patch"], width=tower["width"],
        mlp=inner["mlp"],
        depth=tower["depth"], heads=inner["heads"], eps=inner["eps"],
    )  # fmt: skip
    same = (
        "width",
        "mlp",
        "heads",
        "kv_heads",
        "head_dim",
        "q_scale",
        "eps",
        "rope_theta",
        "post_norms",
        "softcap",
    )
    return paligemma.PaliGemmaConfig(
        vision=vision, vocab=body["vocab"], depth=body["depth"],
        final_softcap=body["final_softcap"],
        window=block["window"], **{name: block[name] for name in same},
    )  # fmt: skip


def hub_config(config: paligemma.PaliGemmaConfig, image: int) -> Any:
    """transformers' config; `image` is the id of <image>. Raises ValueError for sizes that it has
    no words for.
    """
    from transformers import PaliGemmaConfig  # here: only this output needs it

    vision, second = config.vision, config.post_norms
    text: dict[str, Any] = {
        "model_type": "gemma2" if second else "gemma", "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp, "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
        "rms_norm_eps": config.eps,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    if second:
        text |= {
            "query_pre_attn_scalar": round(config.q_scale**-2),
            "attn_logit_softcapping": config.softcap or None,
            "final_logit_softcapping": config.final_softcap or None,
            "sliding_window": config.window,
        }  # fmt: skip
    tower = {
        "model_type": "siglip_vision_model", "hidden_size": vision.width,
        "intermediate_size": vision.mlp,
        "num_hidden_layers": vision.depth, "num_attention_heads": vision.heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch, "layer_norm_eps": vision.eps, "hidden_act": "gelu_pytorch_tanh",
        "num_image_tokens": vision.tokens, "projection_dim": config.width, "vision_use_head": False,
    }  # fmt: skip
    theirs = PaliGemmaConfig(
        text_config=text, vision_config=tower, image_token_index=image, projection_dim=config.width,
        hidden_size=config.width, architectures=["PaliGemmaForConditionalGeneration"],
    )  # fmt: skip
    read = paligemma.hf_config(theirs.to_dict())
    wrong = [name for name in vars(read) if getattr(read, name) != getattr(config, name)]
    if wrong:
        raise ValueError(f"{FLAG}: {', '.join(wrong)}: transformers' config cannot say {config}")
    return theirs


def hub_tensors(config: paligemma.PaliGemmaConfig, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors under the hub's names; `ours` are those of an artefact, by its names
    without "backbone/".

    The output layer is tied and has no name.
    """
    back: dict[transforms.Transform, Callable[[Tensor], Tensor]] = {
        transforms.as_is: lambda x: x,
        # as the policy has them: of its own image size
        transforms.Positions(config.vision.patches): lambda x: x,
        transforms.transposed: lambda x: x.T.contiguous(),
        transforms.conv_patches: (
            lambda x: x.unflatten(0, (config.vision.patch,) * 2 + (3,)).permute(3, 2, 0, 1)
        ),
    }
    arrays = {}
    for name, entry in paligemma.hf_names(config).items():
        stack, mark, leaf = name.partition("/blocks/")
        for layer in range(max(1, entry.layers)):
            one = f"{stack}{mark}{layer}/{leaf}" if entry.layers else name
            arrays[_hub_name(entry.source.format(layer))] = back[entry.transform](
                ours[one]
            ).contiguous()
    return arrays


def prove(origin: Path, part: Path) -> list[golden.Row]:
    """What transformers computes of the golden frames in float32, against the artefact's torch
    policy.

    Stages: image features, embedded words, and hidden states of the frame's tokens, readouts
    included.
    """
    from transformers import PaliGemmaForConditionalGeneration

    kind: Any = PaliGemmaForConditionalGeneration
    theirs, info = kind.from_pretrained(
        part,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    lost = {key: sorted(names) for key, names in info.items() if names}
    if lost:
        raise ValueError(f"{FLAG}: from_pretrained: expected every name to fit, got {lost}")
    ours, model = load(origin), theirs.eval().model
    network = ours.network
    stages: dict[str, list[tuple[Tensor, Tensor]]] = {
        stage: [] for stage in ("features", "words", "hidden")
    }
    for inputs in derived.frames(ours, origin / "golden.npz"):
        with torch.inference_mode():
            images = inputs.images[0]
            pixels = (images.float() / 127.5 - 1).permute(0, 3, 1, 2)
            features = model.multi_modal_projector(model.vision_tower(pixels).last_hidden_state)
            stages["features"].append((features, network.backbone.embed_image(images)))
            words = model.get_input_embeddings()(inputs.prompt)
            stages["words"].append((words, network.backbone.embed_text(inputs.prompt)))
            stages["hidden"].append(_hidden(network, model, inputs))
    return [_row(stage, pairs) for stage, pairs in stages.items()]


def _hidden(network: Network, model: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Hidden states [1 s c] of one frame's tokens by both."""
    frame = network.frame(network.vision(inputs.images), inputs)
    mask, positions, _ = network.attention_mask(frame)
    x, stack = frame.tokens[:, 0], network.backbone.decoder.layers
    lowest = torch.finfo(torch.float32).min
    full, near = (torch.where(stack.mask(mask, i), 0.0, lowest)[:, None] for i in (1, 0))
    kinds = (
        {"full_attention": full, "sliding_attention": near}
        if network.backbone.block.post_norms
        else full
    )
    out = model.language_model(
        inputs_embeds=x, attention_mask=kinds, position_ids=positions, use_cache=False
    )
    return out.last_hidden_state, network.backbone.encode(x, mask, positions, x.shape[1])


def _files(
    origin: Path,
    tokenizer: Path,
    config: paligemma.PaliGemmaConfig,
    body: dict[str, Any],
    part: Path,
) -> None:
    """Everything but SHA256SUMS."""
    words = open_tokenizer(tokenizer, ())
    if json.loads(words.backend_tokenizer.to_str()) != json.loads(
        (origin / "tokenizer.json").read_text("utf-8")
    ):
        raise ValueError(
            f"{FLAG}: the tokenizer in {tokenizer} is not the one in {origin}; give --tokenizer=DIR"
        )
    image = words.convert_tokens_to_ids(IMAGE)
    if image is None or image == words.unk_token_id or image >= config.vocab:
        raise ValueError(
            f"{FLAG}: tokenizer {tokenizer}: expected the token {IMAGE} with a row in the table,"
            " got none"
        )
    for pattern in ("tokenizer*", "special_tokens*", "added_tokens*"):
        for file in tokenizer.glob(pattern):
            shutil.copyfile(file, part / file.name)
    kind = torch.float32 if body["weights"] == "float32" else torch.bfloat16
    hub = hub_config(config, image)
    hub.dtype = kind
    hub.save_pretrained(part)
    (part / "preprocessor_config.json").write_text(
        json.dumps(_preprocessor(config.vision, body["image"]["resize"]), indent=1)
    )
    with safe_open(origin / "model.safetensors", "pt") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    ours = {
        name.removeprefix(BACKBONE): x for name, x in arrays.items() if name.startswith(BACKBONE)
    }
    save_file(hub_tensors(config, ours), part / "model.safetensors", {"format": "pt"})
    rest = {name: x for name, x in arrays.items() if not name.startswith(BACKBONE)}
    save_file(rest, part / "head.safetensors", {"format": "pt"})
    for file in part.glob("*.safetensors"):
        file.chmod(0o644)  # save_file leaves it to its writer alone
    (part / "README.md").write_text(README)
    shutil.copyfile(origin / "config.json", part / "policy.json")
    shutil.copyfile(origin / "norm_stats.json", part / "norm_stats.json")


def _preprocessor(vision: VisionConfig, resize: str) -> dict[str, Any]:
    """What transformers must do with an image to make of it what the policy saw."""
    resample = int(Image.Resampling[resize.upper()])
    return {
        "image_processor_type": "SiglipImageProcessor", "processor_class": "PaliGemmaProcessor",
        "do_convert_rgb": None, "do_resize": True,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "resample": resample, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_seq_length": vision.tokens,
    }  # fmt: skip


def _hub_name(name: str) -> str:
    for ours, theirs in HUB.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _row(stage: str, pairs: list[tuple[Tensor, Tensor]]) -> golden.Row:
    got, wanted = (torch.stack(values) for values in zip(*pairs, strict=True))
    largest = float(wanted.abs().max())
    return golden.Row(stage, largest, float((got - wanted).abs().max()), 1e-4 * max(1.0, largest))
