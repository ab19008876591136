"""Kosmos-2: a CLIP tower, attention pooling into 64 latents, a sub-LN decoder (arXiv 2306.14824,
2210.06423).

The decoder scales its whole input by sqrt(width), image embeddings and learned tokens included, and
adds sinusoidal positions that start at 2. The dropout of 0.1 in the released config is not
implemented: modules hold no RNG streams.
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
from vla_jax.models import tokenizer
from vla_jax.models.attention import Context, sinusoid
from vla_jax.models.language import Decoder, Embed, InSequence
from vla_jax.models.stack import StackConfig
from vla_jax.models.transformer import Attention, BlockConfig, Linear
from vla_jax.models.vision import VisionConfig, ViT, hf_vision_names
from vla_jax.types import Array
from vla_jax.weights import pretrained, transforms

GROUNDING = "<grounding>"
FIRST_POSITION = 2  # fairseq's: the padding index, which is 1, plus one


@dataclasses.dataclass(frozen=True)
class Kosmos2Config:
    """Sizes, and how the layers are run (see stack.StackConfig). `latents` is the number of
    tokens per image.
    """

    vision: VisionConfig
    vocab: int
    width: int
    mlp: int
    depth: int
    heads: int
    latents: int
    eps: float = 1e-5
    remat: str = "none"
    layers: str = "scan"

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.vision.image_size

    @property
    def block(self) -> BlockConfig:
        """The block the decoder is made of."""
        head_dim = self.width // self.heads
        return BlockConfig(
            width=self.width, mlp=self.mlp, heads=self.heads, kv_heads=self.heads,
            head_dim=head_dim, norm="ln",
            eps=self.eps, gated=False, bias=True, q_scale=head_dim**-0.5, act="gelu",
            sub_norms=True,
        )  # fmt: skip


CLIP: dict[str, Any] = {"eps": 1e-5, "act": "quick_gelu", "clip": True, "class_token": True}
CLIP_L14 = VisionConfig(image_size=224, patch=14, width=1024, mlp=4096, depth=24, heads=16, **CLIP)
CLIP_TINY = VisionConfig(image_size=32, patch=8, width=64, mlp=256, depth=2, heads=4, **CLIP)

CONFIGS = {
    "2-patch14-224": Kosmos2Config(
        CLIP_L14, 65037, width=2048, mlp=8192, depth=24, heads=32, latents=64
    ),
    "tiny": Kosmos2Config(CLIP_TINY, 1600, width=64, mlp=256, depth=2, heads=4, latents=8),
}


class LatentPool(nnx.Module):
    """Tokens of an image -> a few embeddings: learned queries attend to the projected tokens and to
    themselves.
    """

    def __init__(self, config: Kosmos2Config, rngs: nnx.Rngs) -> None:
        self.dense = Linear(
            (config.vision.width, config.width), ("vision", "embed"), bias=True, rngs=rngs
        )
        # As small as the projected tokens of unit length are: larger, and training from scratch
        # starts blind.
        init = nnx.initializers.normal(config.width**-0.5)
        queries = init(rngs.params(), (config.latents, config.width), jnp.float32)
        self.latents = nnx.Param(queries, logical=(None, "embed"))
        self.attn = Attention(dataclasses.replace(config.block, sub_norms=False), rngs)

    def __call__(self, tokens: Float[Array, "f v w"]) -> Float[Array, "f q c"]:
        f, q = tokens.shape[0], self.latents.shape[0]
        queries = jnp.broadcast_to(self.latents[...][None], (f, *self.latents.shape))
        x = jnp.concatenate([self.dense(tokens), queries], axis=1)
        s = x.shape[1]
        mask, positions = jnp.ones((f, s, s), bool), jnp.zeros((f, s), jnp.int32)
        return self.attn(x, q, Context(mask, positions, positions))[0]


class Kosmos2(InSequence):
    """The backbone; see types.Backbone. Computes in the dtype of its parameters."""

    text_scale = 1.0  # the decoder scales

    def __init__(self, config: Kosmos2Config, rngs: nnx.Rngs) -> None:
        run = StackConfig(config.remat, config.layers)
        self.config = config
        self.width = self.visual_width = config.width
        self.tokens_per_image = config.latents
        self.vision = ViT(config.vision, run, rngs)
        self.projector = LatentPool(config, rngs)
        self.embed = Embed(config.vocab, config.width, rngs)
        self.decoder = Decoder(config.block, config.depth, run, rngs)

    def embed_image(self, images: UInt8[Array, "f h w 3"]) -> Float[Array, "f v c"]:
        """Pooled image features, on the scale of text embeddings."""
        return self.projector(unit(self.vision(images)))

    def placed(
        self, x: Float[Array, "f s c"], positions: Int[Array, "f s"]
    ) -> Float[Array, "f s c"]:
        """Scaled tokens with sinusoids of their positions, which count from 0 here."""
        return placed(x, positions)


def unit(x: Float[Array, "f v c"]) -> Float[Array, "f v c"]:
    """Every token divided by its length, or by 1e-12 if that is larger. float32 inside."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.maximum(jnp.sum(y**2, axis=-1, keepdims=True), 1e-24))).astype(
        x.dtype
    )


def placed(x: Float[Array, "f s c"], positions: Int[Array, "f s"]) -> Float[Array, "f s c"]:
    """The decoder's input: everything times sqrt(width), plus the sinusoid of where it stands.
    float32 inside.
    """
    y = x.astype(jnp.float32) * x.shape[-1] ** 0.5 + sinusoid(
        positions + FIRST_POSITION, x.shape[-1]
    )
    return y.astype(x.dtype)


MODEL, OWN_LM_HEAD = Kosmos2, False


# ------------------------------------------------------------------------------------------ weights


def load(
    path: Path | str,
    config: Kosmos2Config,
    specs: dict[str, jax.ShapeDtypeStruct],
    allow_missing: Sequence[str] = (),
) -> flat.Params:
    """Pretrained parameters of a Hugging Face folder in the dtypes and shardings of `specs`; see
    pretrained.load.
    """
    return pretrained.load(pretrained.open_weights(path), hf_names(config), specs, allow_missing)


def hf_names(config: Kosmos2Config) -> dict[str, pretrained.Entry]:
    """Our parameters -> names in a Hugging Face checkpoint and what to do with the arrays."""
    pool, text, layer = (
        "image_to_text_projection.",
        "text_model.model.",
        "text_model.model.layers.{}.",
    )
    ours = "decoder/layers/blocks/"
    norms = {
        "decoder/norm": f"{text}layer_norm",
        f"{ours}norm_attn": f"{layer}self_attn_layer_norm",
        f"{ours}attn/sub_norm": f"{layer}self_attn.inner_attn_ln",
        f"{ours}norm_mlp": f"{layer}final_layer_norm",
        f"{ours}mlp/sub_norm": f"{layer}ffn.ffn_layernorm",
    }
    linears = {
        "projector/dense": f"{pool}dense",
        f"{ours}mlp/up": f"{layer}ffn.fc1",
        f"{ours}mlp/down": f"{layer}ffn.fc2",
    }
    for name, theirs in {"q": "q", "k": "k", "v": "v", "o": "out"}.items():
        linears[f"projector/attn/{name}"] = f"{pool}x_attn.{theirs}_proj"
        linears[f"{ours}attn/{name}"] = f"{layer}self_attn.{theirs}_proj"
    table = hf_vision_names(config.vision, "vision_model.model.")
    table["projector/latents"] = pretrained.Entry(f"{pool}latent_query", transforms.as_is)
    table["embed/embedding"] = pretrained.Entry(f"{text}embed_tokens.weight", transforms.as_is)
    for names, leaf, transform in (
        (norms, "scale", transforms.as_is),
        (linears, "kernel", transforms.transposed),
    ):
        for name, theirs in names.items():
            layers = config.depth if "{}" in theirs else 0
            table[f"{name}/{leaf}"] = pretrained.Entry(f"{theirs}.weight", transform, layers)
            table[f"{name}/bias"] = pretrained.Entry(f"{theirs}.bias", transforms.as_is, layers)
    return table


# Our names of sizes -> config.json's.
_TEXT_SIZES = {
    "vocab": "vocab_size", "width": "embed_dim", "mlp": "ffn_dim", "depth": "layers",
    "heads": "attention_heads",
    "eps": "layer_norm_eps",
}  # fmt: skip
_VISION_SIZES = {
    "image_size": "image_size", "patch": "patch_size", "width": "hidden_size",
    "mlp": "intermediate_size",
    "depth": "num_hidden_layers", "heads": "num_attention_heads", "eps": "layer_norm_eps",
}  # fmt: skip


def hf_config(body: dict[str, Any]) -> Kosmos2Config:
    """The sizes in a Hugging Face config.json; those it leaves out are the released model's, as in
    transformers.

    Raises ValueError for what this module does not compute.
    """
    text, vision = body.get("text_config", {}), body.get("vision_config", {})
    for where, table, key, expected in (
        ("", {"model_type": None} | body, "model_type", "kosmos-2"),
        ("", body, "tie_word_embeddings", True),
        ("text_config.", text, "activation_function", "gelu"),
        ("text_config.", text, "scale_embedding", True),
        ("text_config.", text, "pad_token_id", FIRST_POSITION - 1),
        ("text_config.", text, "add_cross_attention", False),
        ("text_config.", text, "tie_word_embeddings", True),
        ("vision_config.", vision, "hidden_act", "quick_gelu"),
    ):
        pretrained.expect(f"{where}{key}", table.get(key, expected), (expected,))
    tower = {ours: vision[theirs] for ours, theirs in _VISION_SIZES.items() if theirs in vision}
    sizes = {ours: text[theirs] for ours, theirs in _TEXT_SIZES.items() if theirs in text}
    released = CONFIGS["2-patch14-224"]
    return dataclasses.replace(
        released,
        vision=dataclasses.replace(released.vision, **tower),
        latents=body.get("latent_query_num", released.latents),
        **sizes,
    )


def dead_names(config: Kosmos2Config) -> list[str]:
    """None: every array of a release is used."""
    del config
    return []


def hub(variant: str) -> str:
    """Where a variant's weights are on the Hugging Face hub."""
    return f"microsoft/kosmos-{variant}"


# ----------------------------------------------------------------------------- prompt and tokenizer


def prompt(instruction: str) -> str:
    """What stands between <s> and </s>: the instruction as one clean line behind RoboVLMs'
    words.
    """
    return GROUNDING + "An image of a robot " + " ".join(instruction.split())


def load_tokenizer(folder: Path | str, layout: str = "prefix") -> tokenizer.Tokenizer:
    """The tokenizer of a local Hugging Face folder: `<s> prompt </s>` in every layout."""
    del layout
    return tokenizer.Tokenizer(folder, prompt, ("bos",), ("eos",))


def train_tiny_tokenizer(texts: Sequence[str], out: Path | str, vocab: int = 1600) -> None:
    """Trains a small tokenizer on the prompts of `texts`, with <grounding> as one token like in the
    released one; see tokenizer.train_tiny_tokenizer.
    """
    tokenizer.train_tiny_tokenizer(
        [prompt(text).removeprefix(GROUNDING) for text in texts], out, vocab, (GROUNDING,)
    )
