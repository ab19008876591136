"""PaliGemma 1 and 2: a SigLIP tower, a linear projector, a Gemma decoder (arXiv 2407.07726,
2412.03555).

Text embeddings are scaled by sqrt(width) at lookup, image features are not: the convention of
transformers >= 5 and big_vision.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int, UInt8

from vla_jax import params as flat
from vla_jax.models.language import Decoder, Embed, InSequence
from vla_jax.models.stack import StackConfig
from vla_jax.models.tokenizer import Tokenizer
from vla_jax.models.tokenizer import train_tiny_tokenizer as train_tiny_tokenizer
from vla_jax.models.transformer import BlockConfig, Linear
from vla_jax.models.vision import VisionConfig, ViT, hf_vision_names
from vla_jax.types import Array
from vla_jax.weights import pretrained, transforms


@dataclasses.dataclass(frozen=True)
class PaliGemmaConfig:
    """Sizes, and how the layers are run (`remat`, `layers`: see stack.StackConfig).

    `post_norms`, the soft caps and the `window` of every other layer are Gemma 2's; 0 or False in
    Gemma 1.
    """

    vision: VisionConfig
    vocab: int
    width: int
    mlp: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    q_scale: float
    eps: float = 1e-6
    rope_theta: float = 1e4
    post_norms: bool = False
    softcap: float = 0.0
    final_softcap: float = 0.0
    window: int = 0
    remat: str = "none"
    layers: str = "scan"

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.vision.image_size

    @property
    def block(self) -> BlockConfig:
        """The block the decoder is made of."""
        return BlockConfig(
            width=self.width,
            mlp=self.mlp,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            norm="rms1",
            eps=self.eps,
            gated=True,
            bias=False,
            q_scale=self.q_scale,
            softcap=self.softcap,
            post_norms=self.post_norms,
            rope_theta=self.rope_theta,
            window=self.window,
        )


SO400M = VisionConfig(image_size=224, patch=14, width=1152, mlp=4304, depth=27, heads=16)
GEMMA2: dict[str, Any] = {
    "post_norms": True,
    "softcap": 50.0,
    "final_softcap": 30.0,
    "window": 4096,
}

# The vocabulary is 257152 in big_vision's files; Hugging Face adds <image> and pads to 257216.
CONFIGS = {
    "3b-pt-224": PaliGemmaConfig(
        SO400M, 257216, 2048, 16384, 18, heads=8, kv_heads=1, head_dim=256, q_scale=256**-0.5
    ),
    "2-3b-pt-224": PaliGemmaConfig(
        SO400M,
        257216,
        2304,
        9216,
        26,
        heads=8,
        kv_heads=4,
        head_dim=256,
        q_scale=256**-0.5,
        **GEMMA2,
    ),
    # Ours, between the tiny one and the released: trained from nothing; there are no weights of
    # them.
    "small": PaliGemmaConfig(
        VisionConfig(image_size=128, patch=16, width=256, mlp=1024, depth=6, heads=4),
        vocab=8192,
        width=384,
        mlp=1536,
        depth=8,
        heads=6,
        kv_heads=1,
        head_dim=64,
        q_scale=64**-0.5,
    ),
    "100m": PaliGemmaConfig(
        VisionConfig(image_size=224, patch=16, width=384, mlp=1536, depth=12, heads=6),
        vocab=8192,
        width=768,
        mlp=3072,
        depth=8,
        heads=8,
        kv_heads=1,
        head_dim=128,
        q_scale=128**-0.5,
    ),
    # For simulated worlds at 96 pixels, whose things are a few wide: 6 M.
    "mini": PaliGemmaConfig(
        VisionConfig(image_size=96, patch=8, width=192, mlp=768, depth=4, heads=6),
        vocab=1600,
        width=256,
        mlp=1024,
        depth=4,
        heads=4,
        kv_heads=1,
        head_dim=64,
        q_scale=64**-0.5,
    ),
    # Another one, with the vocabulary and the two towers of the measurements that its training step
    # is held to (experiments.benchmark train).
    "100m-32k": PaliGemmaConfig(
        VisionConfig(image_size=224, patch=14, width=384, mlp=1536, depth=6, heads=6),
        vocab=32_000,
        width=768,
        mlp=4096,
        depth=6,
        heads=8,
        kv_heads=1,
        head_dim=96,
        q_scale=96**-0.5,
    ),
    # For worlds whose blocks a CPU has to learn to see: convolutions, then no block of a tower;
    # heat maps make few tokens of its 256.
    "seeing": PaliGemmaConfig(
        VisionConfig(image_size=128, patch=4, width=64, mlp=256, depth=0, heads=4, stem=(2, 1)),
        vocab=2600,
        width=128,
        mlp=512,
        depth=3,
        heads=4,
        kv_heads=1,
        head_dim=32,
        q_scale=32**-0.5,
    ),
    "tiny": PaliGemmaConfig(
        VisionConfig(image_size=32, patch=8, width=64, mlp=256, depth=2, heads=4),
        vocab=1600,
        width=64,
        mlp=256,
        depth=2,
        heads=4,
        kv_heads=1,
        head_dim=16,
        q_scale=16**-0.5,
    ),
}


class PaliGemma(InSequence):
    """The backbone; see types.Backbone. Computes in the dtype of its parameters."""

    def __init__(self, config: PaliGemmaConfig, rngs: nnx.Rngs) -> None:
        run = StackConfig(config.remat, config.layers)
        self.config = config
        self.width = self.visual_width = config.width
        self.tokens_per_image, self.text_scale = config.vision.tokens, config.width**0.5
        self.vision = ViT(config.vision, run, rngs)
        self.projector = Linear(
            (config.vision.width, config.width), ("vision", "embed"), bias=True, rngs=rngs
        )
        self.embed = Embed(config.vocab, config.width, rngs)
        self.decoder = Decoder(config.block, config.depth, run, rngs)

    def embed_image(self, images: UInt8[Array, "f h w 3"]) -> Float[Array, "f v c"]:
        """Projected image features, on the scale of scaled text embeddings."""
        return self.projector(self.vision(images))

    def embed_text(self, tokens: Int[Array, "f l"]) -> Float[Array, "f l c"]:
        """Token embeddings times sqrt(width)."""
        x = self.embed(tokens)
        return x * jnp.asarray(self.text_scale, x.dtype)

    def logits(
        self, hidden: Float[Array, "f s c"], token_range: tuple[int, int] | None = None
    ) -> Float[Array, "f s vocab"]:
        """float32 logits of the tied output layer."""
        out, cap = self.embed.logits(hidden, token_range), self.config.final_softcap
        return cap * jnp.tanh(out / cap) if cap else out


MODEL, OWN_LM_HEAD = PaliGemma, False


# ------------------------------------------------------------------------------------------ weights


def load(
    path: Path | str,
    config: PaliGemmaConfig,
    specs: dict[str, jax.ShapeDtypeStruct],
    allow_missing: Sequence[str] = (),
) -> flat.Params:
    """Pretrained parameters in the dtypes and shardings of `specs` ({name: ShapeDtypeStruct}).

    `path` is a Hugging Face folder or a big_vision .npz. Raises ValueError naming every missing,
    unexpected or mis-shaped array; a missing one is left out of the result where a pattern of
    `allow_missing` matches its name.
    """
    files = pretrained.open_weights(path)
    table = npz_names(config) if files.kind == "npz" else hf_names(config)
    return pretrained.load(files, table, specs, allow_missing)


def hf_names(config: PaliGemmaConfig) -> dict[str, pretrained.Entry]:
    """Our parameters -> names in a Hugging Face checkpoint (after pretrained.normalise) and what to
    do with the arrays.
    """
    linear, plain = transforms.transposed, transforms.as_is
    entry, text = pretrained.Entry, "language_model."
    table = hf_vision_names(config.vision, "vision_tower.") | {
        "projector/kernel": entry("multi_modal_projector.linear.weight", linear),
        "projector/bias": entry("multi_modal_projector.linear.bias", plain),
        "embed/embedding": entry(f"{text}embed_tokens.weight", plain),
        "decoder/norm/scale": entry(f"{text}norm.weight", plain),
    }
    layer = f"{text}layers.{{}}."
    pairs = [(f"attn/{x}", f"self_attn.{x}_proj") for x in "qkvo"]
    for ours, theirs in [*pairs, *((f"mlp/{x}", f"mlp.{x}_proj") for x in ("gate", "up", "down"))]:
        table[f"decoder/layers/blocks/{ours}/kernel"] = entry(
            f"{layer}{theirs}.weight", linear, config.depth
        )
    # In Gemma 1 post_attention_layernorm is the norm BEFORE the MLP; in Gemma 2 it is the one after
    # attention.
    norms = {"norm_attn": "input_layernorm", "norm_mlp": "post_attention_layernorm"}
    if config.post_norms:
        norms = {
            "norm_attn": "input_layernorm",
            "post_attn": "post_attention_layernorm",
            "norm_mlp": "pre_feedforward_layernorm",
            "post_mlp": "post_feedforward_layernorm",
        }
    for ours, theirs in norms.items():
        table[f"decoder/layers/blocks/{ours}/scale"] = entry(
            f"{layer}{theirs}.weight", plain, config.depth
        )
    return table


def npz_names(config: PaliGemmaConfig) -> dict[str, pretrained.Entry]:
    """Our parameters -> names in a big_vision .npz, whose layers are stacked already and whose
    kernels are [in, out].
    """
    entry, plain = pretrained.Entry, transforms.as_is
    flat_in, flat_out = transforms.merge_last, transforms.merge_first
    block = "img/Transformer/encoderblock/"
    ours = "vision/layers/blocks/"
    attention = f"{block}MultiHeadDotProductAttention_0/"
    table = {
        "vision/patch/kernel": entry("img/embedding/kernel", transforms.merge_to_last),
        "vision/patch/bias": entry("img/embedding/bias", plain),
        "vision/positions": entry(
            "img/pos_embedding",
            lambda x: transforms.Positions(config.vision.patches)(transforms.first(x)),
        ),
        "vision/norm/scale": entry("img/Transformer/encoder_norm/scale", plain),
        "vision/norm/bias": entry("img/Transformer/encoder_norm/bias", plain),
        "projector/kernel": entry("img/head/kernel", plain),
        "projector/bias": entry("img/head/bias", plain),
        "embed/embedding": entry("llm/embedder/input_embedding", transforms.pad_rows(config.vocab)),
        "decoder/norm/scale": entry("llm/final_norm/scale", plain),
    }
    for i, norm in enumerate(("norm_attn", "norm_mlp")):
        for leaf in ("scale", "bias"):
            table[f"{ours}{norm}/{leaf}"] = entry(f"{block}LayerNorm_{i}/{leaf}", plain)
    for name, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        # Kernels L D N H -> L D NH, biases L N H -> L NH.
        table[f"{ours}attn/{name}/kernel"] = entry(f"{attention}{theirs}/kernel", flat_in)
        table[f"{ours}attn/{name}/bias"] = entry(f"{attention}{theirs}/bias", flat_in)
    table[f"{ours}attn/o/kernel"] = entry(f"{attention}out/kernel", flat_out)  # L N H D -> L NH D
    table[f"{ours}attn/o/bias"] = entry(f"{attention}out/bias", plain)
    for i, name in enumerate(("up", "down")):
        for leaf in ("kernel", "bias"):
            table[f"{ours}mlp/{name}/{leaf}"] = entry(f"{block}MlpBlock_0/Dense_{i}/{leaf}", plain)
    ours, block = "decoder/layers/blocks/", "llm/layers/"
    # L N H E -> L NH E
    table[f"{ours}attn/o/kernel"] = entry(f"{block}attn/attn_vec_einsum/w", flat_out)
    if config.heads == config.kv_heads:
        for i, name in enumerate("qkv"):
            table[f"{ours}attn/{name}/kernel"] = entry(
                f"{block}attn/qkv_einsum/w", transforms.einsum_part(i)
            )
    else:
        # L N E H -> L E NH
        table[f"{ours}attn/q/kernel"] = entry(f"{block}attn/q_einsum/w", transforms.einsum_heads)
        for i, name in enumerate("kv"):
            table[f"{ours}attn/{name}/kernel"] = entry(
                f"{block}attn/kv_einsum/w", transforms.einsum_part(i)
            )
    for i, name in enumerate(("gate", "up")):
        table[f"{ours}mlp/{name}/kernel"] = entry(f"{block}mlp/gating_einsum", transforms.part(i))
    table[f"{ours}mlp/down/kernel"] = entry(f"{block}mlp/linear", plain)
    norms = {"norm_attn": "pre_attention_norm", "norm_mlp": "pre_ffw_norm"}
    if config.post_norms:
        norms |= {"post_attn": "post_attention_norm", "post_mlp": "post_ffw_norm"}
    for name, theirs in norms.items():
        table[f"{ours}{name}/scale"] = entry(f"{block}{theirs}/scale", plain)
    return table


def hf_config(body: dict[str, Any]) -> PaliGemmaConfig:
    """The sizes in a Hugging Face config.json. Top-level vocab_size and hidden_size are not
    trusted: versions differ.
    """
    text, vision = body["text_config"], body["vision_config"]
    kind = text.get("model_type", "gemma")
    if kind not in ("gemma", "gemma2"):
        raise ValueError(
            f"config.json: text_config.model_type: expected gemma or gemma2, got {kind!r}"
        )
    for where, table in (("text_config", text), ("vision_config", vision)):
        act = table.get("hidden_activation") or table.get("hidden_act") or "gelu_pytorch_tanh"
        # transformers reads Gemma's old "gelu" as the tanh form.
        if act != "gelu_pytorch_tanh" and not (
            where == "text_config" and kind == "gemma" and act == "gelu"
        ):
            raise ValueError(f"config.json: {where}: expected gelu_pytorch_tanh, got {act!r}")
    rope = text.get("rope_parameters") or {}
    if "full_attention" in rope:  # one entry per kind of layer, with the same base in Gemma 2
        rope = rope["full_attention"]
    gemma2 = kind == "gemma2"
    return PaliGemmaConfig(
        vision=VisionConfig(
            image_size=vision.get("image_size", 224),
            patch=vision.get("patch_size", 14),
            width=vision["hidden_size"],
            mlp=vision["intermediate_size"],
            depth=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            eps=vision.get("layer_norm_eps", 1e-6),
        ),
        vocab=text["vocab_size"],
        width=text["hidden_size"],
        mlp=text["intermediate_size"],
        depth=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text.get("head_dim", 256),
        q_scale=(text.get("query_pre_attn_scalar", 256) if gemma2 else text.get("head_dim", 256))
        ** -0.5,
        eps=text.get("rms_norm_eps", 1e-6),
        rope_theta=rope.get("rope_theta") or text.get("rope_theta") or 1e4,
        post_norms=gemma2,
        softcap=(text.get("attn_logit_softcapping", 50.0) or 0.0) if gemma2 else 0.0,
        final_softcap=(text.get("final_logit_softcapping", 30.0) or 0.0) if gemma2 else 0.0,
        window=text.get("sliding_window", 4096) if gemma2 else 0,
    )


def dead_names(config: PaliGemmaConfig) -> list[str]:
    """None: every array of a release is used."""
    del config
    return []


def hub(variant: str) -> str:
    """Where a variant's weights are on the Hugging Face hub."""
    return f"google/paligemma-{variant}".replace("paligemma-2-", "paligemma2-")


# ----------------------------------------------------------------------------- prompt and tokenizer


def prompt(instruction: str) -> str:
    """The instruction as one clean line; a newline follows it, as in pretraining."""
    return " ".join(instruction.split())


def load_tokenizer(folder: Path | str, layout: str = "prefix") -> Tokenizer:
    """The tokenizer of a local Hugging Face folder: `<bos> instruction \\n`, the newline a piece of
    its own as big_vision tokenises it. RoboVLMs begins with <eos> instead.
    """
    return Tokenizer(folder, prompt, ("bos" if layout == "prefix" else "eos",), ("newline",))
