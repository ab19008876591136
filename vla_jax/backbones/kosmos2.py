"""Kosmos-2: a CLIP tower, attention pooling into 64 latents, a sub-LN decoder (arXiv 2306.14824, 2210.06423).

The decoder scales its whole input by sqrt(width), image embeddings and learned tokens included, and adds sinusoidal
positions that start at 2. The dropout of 0.1 in the released config is not implemented: modules hold no RNG streams.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int, UInt8

from vla_jax import params as flat
from vla_jax import tokenizer, weights
from vla_jax.attention import Cache, Context, Mask, sinusoid
from vla_jax.language import Decoder, Embed
from vla_jax.transformer import Attention, BlockConfig, Linear, StackConfig
from vla_jax.types import Array, Media
from vla_jax.vision import VisionConfig, ViT, hf_vision_names

FIRST_POSITION = 2  # fairseq's: the padding index, which is 1, plus one


@dataclasses.dataclass(frozen=True)
class Kosmos2Config:
    """Sizes, and how the layers are run (`remat`, `layers`: see transformer.StackConfig). `latents`: tokens per
    image.
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
            width=self.width,
            mlp=self.mlp,
            heads=self.heads,
            kv_heads=self.heads,
            head_dim=head_dim,
            norm="ln",
            eps=self.eps,
            gated=False,
            bias=True,
            q_scale=head_dim**-0.5,
            act="gelu",
            sub_norms=True,
        )


CLIP: dict[str, Any] = {"eps": 1e-5, "act": "quick_gelu", "clip": True, "class_token": True}
CLIP_L14 = VisionConfig(image_size=224, patch=14, width=1024, mlp=4096, depth=24, heads=16, **CLIP)

CONFIGS = {
    "2-patch14-224": Kosmos2Config(CLIP_L14, 65037, width=2048, mlp=8192, depth=24, heads=32, latents=64),
    "tiny": Kosmos2Config(
        VisionConfig(image_size=32, patch=8, width=64, mlp=256, depth=2, heads=4, **CLIP),
        vocab=1600,
        width=64,
        mlp=256,
        depth=2,
        heads=4,
        latents=8,
    ),
}


class LatentPool(nnx.Module):
    """Tokens of an image -> a few embeddings: learned queries attend to the projected tokens and to themselves."""

    def __init__(self, config: Kosmos2Config, rngs: nnx.Rngs) -> None:
        self.dense = Linear((config.vision.width, config.width), ("vision", "embed"), bias=True, rngs=rngs)
        # As small as the projected tokens of unit length are: larger, and training from scratch starts blind.
        init = nnx.initializers.normal(config.width**-0.5)
        queries = init(rngs.params(), (config.latents, config.width), jnp.float32)
        self.latents = nnx.Param(queries, logical=(None, "embed"))
        self.attn = Attention(dataclasses.replace(config.block, sub_norms=False), rngs)

    def __call__(self, tokens: Float[Array, "n v w"]) -> Float[Array, "n m c"]:
        n, m = tokens.shape[0], self.latents.shape[0]
        x = self.dense(tokens)
        x = jnp.concatenate([x, jnp.broadcast_to(self.latents[...][None], (n, *self.latents.shape))], axis=1)
        everything, nowhere = jnp.ones((n, m, x.shape[1]), bool), jnp.zeros(x.shape[:2], jnp.int32)
        return self.attn(x, m, Context(everything, nowhere, nowhere))[0]


class Kosmos2(nnx.Module):
    """The backbone; see types.Backbone. Computes in the dtype of its parameters."""

    cross_attends = False
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

    def embed_image(self, images: UInt8[Array, "n h w 3"]) -> Float[Array, "n v c"]:
        """Pooled image features, unscaled as text embeddings are."""
        return self.projector(unit(self.vision(images)))

    def embed_text(self, tokens: Int[Array, "n l"]) -> Float[Array, "n l c"]:
        """Token embeddings."""
        return self.embed(tokens)

    def __call__(
        self,
        x: Float[Array, "n s c"],
        mask: Mask,
        positions: Int[Array, "n s"],
        readout: int | None = None,
        media: Media | None = None,
    ) -> Float[Array, "n r c"]:
        """Hidden states after the final norm, at the last `readout` positions if given. Positions are from 0 on."""
        del media  # images stand in the sequence
        return self.decoder(placed(x, positions), mask, positions, readout)

    def decode(
        self,
        x: Float[Array, "n s c"],
        mask: Bool[Array, "n s u"],
        positions: Int[Array, "n s"],
        cache: Cache,
        media: Media | None = None,
    ) -> tuple[Float[Array, "n s c"], Cache]:
        """Hidden states of tokens that follow those in the cache, and the cache with them."""
        del media
        return self.decoder.decode(placed(x, positions), mask, positions, cache)

    def cache(self, n: int, slots: int) -> Cache:
        """An empty cache."""
        return self.decoder.cache(n, slots)

    def logits(self, hidden: Float[Array, "n s c"], rows: tuple[int, int] | None = None) -> Float[Array, "n s vocab"]:
        """float32 logits of the tied output layer."""
        return self.embed.logits(hidden, rows)


def unit(x: Float[Array, "n v c"]) -> Float[Array, "n v c"]:
    """Every token divided by its length, or by 1e-12 if that is larger. float32 inside."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.maximum(jnp.sum(y**2, axis=-1, keepdims=True), 1e-24))).astype(x.dtype)


def placed(x: Float[Array, "n s c"], positions: Int[Array, "n s"]) -> Float[Array, "n s c"]:
    """The decoder's input: everything times sqrt(width), plus the sinusoid of where it stands. float32 inside."""
    y = x.astype(jnp.float32) * x.shape[-1] ** 0.5 + sinusoid(positions + FIRST_POSITION, x.shape[-1])
    return y.astype(x.dtype)


# -------------------------------------------------------------------------------------------------------------- weights


def load(
    path: Path | str, config: Kosmos2Config, specs: dict[str, jax.ShapeDtypeStruct], allow_missing: Sequence[str] = ()
) -> flat.Params:
    """Pretrained parameters of a Hugging Face folder in the dtypes and shardings of `specs`; see weights.load."""
    return weights.load(weights.open_source(path), hf_names(config), specs, allow_missing)


def from_pretrained(
    path: Path | str, mesh: jax.sharding.Mesh | None = None, dtype: Any = jnp.float32, allow_missing: Sequence[str] = ()
) -> tuple[nnx.GraphDef, flat.Params]:
    """The model that a Hugging Face folder describes: (graphdef, params), born sharded over the mesh.

    Without a mesh everything is on the first device.
    """
    config = hf_config(weights.open_source(path).config())

    def build(rngs: nnx.Rngs) -> Kosmos2:
        return Kosmos2(config, rngs)

    return weights.born(build, lambda specs: load(path, config, specs, allow_missing), mesh, dtype)


def hf_names(config: Kosmos2Config) -> dict[str, weights.Entry]:
    """Our parameters -> names in a Hugging Face checkpoint and what to do with the arrays."""
    entry, plain, linear, depth = weights.Entry, weights.as_is, weights.transposed, config.depth
    pool, text = "image_to_text_projection.", "text_model.model."
    table = hf_vision_names(config.vision, "vision_model.model.") | {
        "projector/latents": entry(f"{pool}latent_query", plain),
        "embed/embedding": entry(f"{text}embed_tokens.weight", plain),
        "decoder/norm/scale": entry(f"{text}layer_norm.weight", plain),
        "decoder/norm/bias": entry(f"{text}layer_norm.bias", plain),
    }
    for ours, theirs in [("dense", "dense"), *((f"attn/{x}", f"x_attn.{t}_proj") for x, t in _PROJECTIONS)]:
        table[f"projector/{ours}/kernel"] = entry(f"{pool}{theirs}.weight", linear)
        table[f"projector/{ours}/bias"] = entry(f"{pool}{theirs}.bias", plain)
    block, layer = "decoder/layers/blocks/", f"{text}layers.{{}}."
    linears = [(f"attn/{x}", f"self_attn.{t}_proj") for x, t in _PROJECTIONS]
    for ours, theirs in [*linears, ("mlp/up", "ffn.fc1"), ("mlp/down", "ffn.fc2")]:
        table[f"{block}{ours}/kernel"] = entry(f"{layer}{theirs}.weight", linear, depth)
        table[f"{block}{ours}/bias"] = entry(f"{layer}{theirs}.bias", plain, depth)
    norms = {
        "norm_attn": "self_attn_layer_norm",
        "attn/sub_norm": "self_attn.inner_attn_ln",
        "norm_mlp": "final_layer_norm",
        "mlp/sub_norm": "ffn.ffn_layernorm",
    }
    for ours, theirs in norms.items():
        table[f"{block}{ours}/scale"] = entry(f"{layer}{theirs}.weight", plain, depth)
        table[f"{block}{ours}/bias"] = entry(f"{layer}{theirs}.bias", plain, depth)
    return table


_PROJECTIONS = (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out"))


def hf_config(body: dict[str, Any]) -> Kosmos2Config:
    """The sizes in a Hugging Face config.json; what it leaves out is the released model's, as in transformers.

    Raises ValueError for anything that this module does not compute.
    """
    text, vision, released = body.get("text_config", {}), body.get("vision_config", {}), CONFIGS["2-patch14-224"]
    for where, key, got, expected in (
        ("", "model_type", body.get("model_type"), "kosmos-2"),
        ("text_config.", "activation_function", text.get("activation_function", "gelu"), "gelu"),
        ("text_config.", "scale_embedding", text.get("scale_embedding", True), True),
        ("text_config.", "pad_token_id", text.get("pad_token_id", FIRST_POSITION - 1), FIRST_POSITION - 1),
        ("text_config.", "add_cross_attention", text.get("add_cross_attention", False), False),
        ("text_config.", "tie_word_embeddings", text.get("tie_word_embeddings", True), True),
        ("vision_config.", "hidden_act", vision.get("hidden_act", "quick_gelu"), "quick_gelu"),
    ):
        if got != expected:
            raise ValueError(f"config.json: {where}{key}: expected {expected!r}, got {got!r}; it is not implemented")
    return Kosmos2Config(
        vision=dataclasses.replace(
            CLIP_L14,
            image_size=vision.get("image_size", 224),
            patch=vision.get("patch_size", 14),
            width=vision.get("hidden_size", 1024),
            mlp=vision.get("intermediate_size", 4096),
            depth=vision.get("num_hidden_layers", 24),
            heads=vision.get("num_attention_heads", 16),
            eps=vision.get("layer_norm_eps", 1e-5),
        ),
        vocab=text.get("vocab_size", released.vocab),
        width=text.get("embed_dim", released.width),
        mlp=text.get("ffn_dim", released.mlp),
        depth=text.get("layers", released.depth),
        heads=text.get("attention_heads", released.heads),
        latents=body.get("latent_query_num", released.latents),
        eps=text.get("layer_norm_eps", 1e-5),
    )


# ------------------------------------------------------------------------------------------------- prompt and tokenizer


def prompt(instruction: str) -> str:
    """What stands between <s> and </s>: the instruction as one clean line behind RoboVLMs' words."""
    return "<grounding>An image of a robot " + " ".join(instruction.split())


class Tokenizer:
    """instruction -> ids of <s>, the prompt, </s>."""

    def __init__(self, folder: Path | str) -> None:
        self._tokenizer = tokenizer.open_tokenizer(folder, ("bos", "eos"))

    @property
    def vocab(self) -> int:
        """One more than the largest id."""
        return len(self._tokenizer)

    def encode(self, instruction: str) -> list[int]:
        """Ids of `<s> prompt </s>`."""
        ids = self._tokenizer.encode(prompt(instruction), add_special_tokens=False)
        return [self._tokenizer.bos_token_id, *ids, self._tokenizer.eos_token_id]


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer of a local Hugging Face folder."""
    return Tokenizer(folder)


def train_tiny_tokenizer(texts: Sequence[str], out: Path | str) -> None:
    """Trains a small tokenizer on the prompts of `texts`; see tokenizer.train_tiny_tokenizer."""
    tokenizer.train_tiny_tokenizer([prompt(text) for text in texts], out)
