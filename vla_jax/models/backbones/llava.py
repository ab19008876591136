"""LLaVA: a CLIP tower's inner layer, an MLP projector, a LLaMA or MPT decoder (arXiv 2304.08485,
2310.03744).

Nothing is scaled. The tower ends at the layer the features come from (the last but one in the
releases): the layers after it and its last norm are not built. RoboVLMs' LLaVA is
LLaVA-Lightning-MPT-7B with the bare instruction as prompt.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jaxtyping import Float, UInt8

from vla_jax import params as flat
from vla_jax.models import llama, mpt
from vla_jax.models.language import Decoder, Embed, InSequence, output_layer
from vla_jax.models.stack import StackConfig
from vla_jax.models.tokenizer import Tokenizer
from vla_jax.models.tokenizer import train_tiny_tokenizer as train_tiny_tokenizer
from vla_jax.models.transformer import BlockConfig, Linear
from vla_jax.models.vision import VisionConfig, ViT, clip_tower, hf_clip_config, hf_vision_names
from vla_jax.types import Array
from vla_jax.weights import pretrained, transforms

DECODERS = ("llama", "mpt")
PROJECTORS = ("mlp2", "linear")
STRATEGIES = ("default", "full")


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """Sizes, and how the layers are run (`remat`, `layers`: see stack.StackConfig).

    Attributes:
        vision: the tower up to the layer of the features; `class_token` is the strategy "full",
            without it "default".
        released_depth: layers of the tower as released; those from vision.depth on are in files,
            not in the model.
        projector: "mlp2" (linear, exact GELU, linear) or "linear".
        decoder: "llama" (an output layer of its own) or "mpt" (a tied one).
        block: what the decoder is made of.
        has_lm_head: False leaves out an output layer of its own, which only tokens are scored by.
    """

    vision: VisionConfig
    released_depth: int
    projector: str
    decoder: str
    block: BlockConfig
    depth: int
    vocab: int
    remat: str = "none"
    layers: str = "scan"
    has_lm_head: bool = True

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS or self.projector not in PROJECTORS:
            raise ValueError(
                f"LlavaConfig: expected decoder in {DECODERS} and projector in {PROJECTORS}, got"
                f" {self.decoder!r}, {self.projector!r}"
            )

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.vision.image_size


CLIP_L14 = clip_tower(image_size=224, patch=14, width=1024, depth=23, heads=16)
CLIP_L14_336 = dataclasses.replace(CLIP_L14, image_size=336)
TOWERS = {
    "clip-vit-large-patch14": CLIP_L14,
    "clip-vit-large-patch14-336": CLIP_L14_336,
}  # openai's names
TINY = clip_tower(image_size=32, patch=8, width=64, depth=2, heads=4)

CONFIGS = {
    "1.5-7b": LlavaConfig(
        CLIP_L14_336,
        24,
        "mlp2",
        "llama",
        llama.block(4096, 11008, 32, 32, 128),
        depth=32,
        vocab=32064,
    ),
    "mpt-7b": LlavaConfig(
        CLIP_L14, 24, "linear", "mpt", mpt.block(4096, 32, 16384), depth=32, vocab=50432
    ),
    "tiny": LlavaConfig(
        TINY, 3, "mlp2", "llama", llama.block(64, 256, 4, 2, 16), depth=2, vocab=1600
    ),
    "tiny-mpt": LlavaConfig(TINY, 3, "linear", "mpt", mpt.block(64, 4, 256), depth=2, vocab=1600),
}


class Projector(nnx.Module):
    """From the tower's width to the decoder's: one linear layer, or two with an exact GELU between
    them.
    """

    def __init__(self, config: LlavaConfig, rngs: nnx.Rngs) -> None:
        width, two = config.block.width, config.projector == "mlp2"
        self.first = Linear(
            (config.vision.width, width),
            ("vision", "mlp" if two else "embed"),
            bias=True,
            rngs=rngs,
        )
        self.second = (
            Linear((width, width), ("mlp", "embed"), bias=True, rngs=rngs) if two else None
        )

    def __call__(self, x: Float[Array, "f v w"]) -> Float[Array, "f v c"]:
        x = self.first(x)
        return x if self.second is None else self.second(jax.nn.gelu(x, approximate=False))


class Llava(InSequence):
    """The backbone; see types.Backbone. Computes in the dtype of its parameters."""

    text_scale = 1.0

    def __init__(self, config: LlavaConfig, rngs: nnx.Rngs) -> None:
        run, width = StackConfig(config.remat, config.layers), config.block.width
        self.config = config
        self.width = self.visual_width = width
        self.tokens_per_image = config.vision.tokens
        self.vision = ViT(config.vision, run, rngs)
        self.projector = Projector(config, rngs)
        self.embed = Embed(config.vocab, width, rngs)
        self.decoder = Decoder(config.block, config.depth, run, rngs)
        untied = config.decoder == "llama" and config.has_lm_head
        self.lm_head = output_layer(width, config.vocab, untied, rngs)

    def embed_image(self, images: UInt8[Array, "f h w 3"]) -> Float[Array, "f v c"]:
        """Projected image features."""
        return self.projector(self.vision(images))


MODEL, OWN_LM_HEAD = Llava, True


# ------------------------------------------------------------------------------------------ weights


def load(
    path: Path | str,
    config: LlavaConfig,
    specs: dict[str, jax.ShapeDtypeStruct],
    allow_missing: Sequence[str] = (),
) -> flat.Params:
    """Pretrained parameters in the dtypes and shardings of `specs` ({name: ShapeDtypeStruct}).

    `path` is a Hugging Face folder of LlavaForConditionalGeneration (any of the layouts of
    pretrained.normalise), or one of the original LlavaMPTForCausalLM. The latter may lack the
    tower, which is CLIP as released: put openai's folder in as `path`/vision_tower, or leave it
    random with allow_missing=("vision/*",). Of the tower exactly the arrays of `dead_names` are
    passed over. Raises ValueError naming every other missing, unexpected or mis-shaped array.
    """
    return pretrained.load(
        _open_weights(path), hf_names(config), specs, allow_missing, dead_names(config)
    )


def hf_names(config: LlavaConfig) -> dict[str, pretrained.Entry]:
    """Our parameters -> names in a Hugging Face checkpoint (after pretrained.normalise) and what to
    do with the arrays.
    """
    entry, plain, linear = pretrained.Entry, transforms.as_is, transforms.transposed
    table = hf_vision_names(config.vision, "vision_tower.")
    for ours, theirs in (("first", "linear_1"), ("second", "linear_2"))[
        : 2 if config.projector == "mlp2" else 1
    ]:
        table[f"projector/{ours}/kernel"] = entry(f"multi_modal_projector.{theirs}.weight", linear)
        table[f"projector/{ours}/bias"] = entry(f"multi_modal_projector.{theirs}.bias", plain)
    text = "language_model."
    if config.decoder == "mpt":
        return table | mpt.names(config.block, config.depth, text)
    table |= llama.names(config.depth, text)
    table["lm_head/kernel"] = entry("lm_head.weight", linear)
    return table


def dead_names(config: LlavaConfig) -> list[str]:
    """The arrays of the released tower that features of layer `vision.depth` do not need, by their
    full names.
    """
    released = dataclasses.replace(config.vision, depth=config.released_depth, final_norm=True)
    ours, theirs = (
        {entry.source.format(i) for entry in table.values() for i in range(entry.layers or 1)}
        for table in (
            hf_vision_names(tower, "vision_tower.") for tower in (config.vision, released)
        )
    )
    return sorted(theirs - ours)


# Beginnings of names in the original LLaVA-MPT, and in transformers' LLaVA with MPT inside -> ours.
RENAMED = {
    "transformer.vision_tower.vision_tower.vision_model.": "vision_tower.",
    "transformer.mm_projector.0.": "multi_modal_projector.linear_1.",
    "transformer.mm_projector.2.": "multi_modal_projector.linear_2.",
    "transformer.mm_projector.": "multi_modal_projector.linear_1.",
    "language_model.transformer.": "language_model.",
    "transformer.": "language_model.",
}
CLIP_REST = (
    "text_model.",
    "text_projection.",
    "visual_projection.",
    "logit_scale",
)  # in a whole CLIP's folder


def _open_weights(path: Path | str) -> pretrained.WeightFiles:
    """The folder's arrays under one spelling, and those of the CLIP folder inside it if there is
    one.
    """
    files = pretrained.open_weights(path)
    arrays = {_renamed(name): array for name, array in files.arrays.items()}
    if (files.path / "vision_tower").is_dir():
        for name, array in pretrained.open_weights(files.path / "vision_tower").arrays.items():
            ours = "vision_tower." + name.removeprefix("vision_model.")
            if ours in arrays:
                raise ValueError(
                    f"{files.path}: expected one image tower, got {ours} in vision_tower/ and"
                    " beside it"
                )
            if not name.startswith(CLIP_REST):
                arrays[ours] = array
    return files._replace(arrays=arrays)


def _renamed(name: str) -> str:
    return next(
        (new + name.removeprefix(old) for old, new in RENAMED.items() if name.startswith(old)), name
    )


# ------------------------------------------------------------------------------------------- config


def hf_config(body: dict[str, Any]) -> LlavaConfig:
    """The sizes in a config.json, of transformers' "llava" or the original "llava_mpt"; what is
    left out is as there.

    The image token's id and the dtype, under whichever name, are not needed: no placeholder stands
    in our sequence. Raises ValueError naming an activation, rope type, model type or switch that is
    not ours.
    """
    expect = pretrained.expect
    kind = expect("model_type", body.get("model_type", "llava"), ("llava", "llava_mpt"))
    if kind == "llava_mpt":
        return _original_config(body)
    if (
        not {"text_config", "vision_config"} <= body.keys()
    ):  # liuhaotian's own files say "llava" too
        raise ValueError(
            f"config.json: expected text_config and vision_config, got {sorted(body)}; download the"
            " conversion: hf download llava-hf/llava-1.5-7b-hf"
        )
    text, vision = body["text_config"], body["vision_config"]
    expect("projector_hidden_act", body.get("projector_hidden_act", "gelu"), ("gelu",))
    expect("multimodal_projector_bias", body.get("multimodal_projector_bias", True), (True,))
    key = "vision_feature_select_strategy"
    full = expect(key, body.get(key, "default"), STRATEGIES) == "full"
    tower = dataclasses.replace(hf_clip_config(vision), class_token=full)
    decoder = expect("text_config.model_type", text.get("model_type", "llama"), DECODERS)
    is_mpt = decoder == "mpt"
    expect("text_config.tie_word_embeddings", text.get("tie_word_embeddings", is_mpt), (is_mpt,))
    return LlavaConfig(
        vision=_cut(tower, body.get("vision_feature_layer", -2)),
        released_depth=tower.depth,
        projector="mlp2",
        decoder=decoder,
        block=mpt.hf_block(text, "text_config.") if is_mpt else llama.hf_block(text),
        depth=text.get("n_layers", 24) if is_mpt else text.get("num_hidden_layers", 32),
        vocab=text.get("vocab_size", 50368 if is_mpt else 32000),
    )


def _original_config(body: dict[str, Any]) -> LlavaConfig:
    """MPT's config with LLaVA's keys beside it."""
    expect = pretrained.expect
    name = expect(
        "mm_vision_tower", str(body.get("mm_vision_tower")).rsplit("/", 1)[-1], tuple(TOWERS)
    )
    select = expect(
        "mm_vision_select_feature",
        body.get("mm_vision_select_feature", "patch"),
        ("patch", "cls_patch"),
    )
    kind = expect(
        "mm_projector_type", body.get("mm_projector_type", "linear"), ("linear", "mlp2x_gelu")
    )
    released = dataclasses.replace(TOWERS[name], depth=24, class_token=select == "cls_patch")
    return LlavaConfig(
        vision=_cut(released, body.get("mm_vision_select_layer", -2)),
        released_depth=released.depth,
        projector="linear" if kind == "linear" else "mlp2",
        decoder="mpt",
        block=mpt.hf_block(body),
        depth=body.get("n_layers", 24),
        vocab=body.get("vocab_size", 50368),
    )


def _cut(tower: VisionConfig, layer: Any) -> VisionConfig:
    """The tower up to a layer, counted as transformers counts hidden states: 0 before the first, -1
    after the last.
    """
    depth = tower.depth
    if not isinstance(layer, int) or not (1 <= layer <= depth or -depth <= layer <= -1):
        raise ValueError(
            f"config.json: vision_feature_layer: expected one layer from 1 to {depth} or from"
            f" {-depth} to -1, got {layer!r}"
        )
    return dataclasses.replace(tower, depth=layer if layer > 0 else depth + 1 + layer)


def hub(variant: str) -> str:
    """Where a variant's weights are on the Hugging Face hub."""
    return (
        "liuhaotian/LLaVA-Lightning-MPT-7B-preview"
        if variant == "mpt-7b"
        else f"llava-hf/llava-{variant}-hf"
    )


# ----------------------------------------------------------------------------- prompt and tokenizer


def prompt(instruction: str) -> str:
    """The instruction as one clean line, without LLaVA's chat template, as in RoboVLMs."""
    return " ".join(instruction.split())


def load_tokenizer(folder: Path | str, layout: str = "prefix") -> Tokenizer:
    """The tokenizer of a local Hugging Face folder: `<s> instruction` (LLaMA) or `<|endoftext|>
    instruction` (MPT) in every layout.
    """
    del layout
    return Tokenizer(folder, prompt, ("bos",), ())
