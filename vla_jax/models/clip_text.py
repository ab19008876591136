"""CLIP's text encoder (arXiv 2103.00020): the frozen target of the text-alignment objective.

Only `embedder` is used in training, at data-build time, once per distinct instruction: the policy
never runs it.

Axes: f texts, l tokens, c width, e width of the embedding.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from vla_jax import params as flat
from vla_jax import sharding
from vla_jax.models.language import Decoder, Embed
from vla_jax.models.stack import StackConfig
from vla_jax.models.tokenizer import open_tokenizer
from vla_jax.models.transformer import BlockConfig, Linear, plain_block
from vla_jax.types import Array
from vla_jax.weights import pretrained, transforms

# The other half of a whole CLIP's folder.
IMAGE_SIDE = ("vision_model.", "visual_projection.", "logit_scale")


@dataclass(frozen=True)
class ClipTextConfig:
    """Sizes.

    Attributes:
        embedding: width of the pooled embedding.
        context: learned positions, and the length that texts are padded to.
        eos: the token whose first occurrence is pooled. None: the largest id of the text is, as
            where a config.json older than transformers' correction of it says eos_token_id = 2.
    """

    width: int
    mlp: int
    depth: int
    heads: int
    embedding: int
    vocab: int = 49408
    context: int = 77
    eos: int | None = 49407
    eps: float = 1e-5
    act: str = "quick_gelu"

    @property
    def block(self) -> BlockConfig:
        """The block the encoder is made of."""
        return plain_block(self.width, self.mlp, self.heads, self.eps, self.act)


CONFIGS = {
    "vit-large-patch14": ClipTextConfig(width=768, mlp=3072, depth=12, heads=12, embedding=768),
    "tiny": ClipTextConfig(width=32, mlp=64, depth=2, heads=4, embedding=24, vocab=600, eos=599),
}


class ClipText(nnx.Module):
    """Causal, with learned positions; embeddings are the projected final states at the end of each
    text.
    """

    def __init__(self, config: ClipTextConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = Embed(config.vocab, config.width, rngs)
        table = (
            jax.random.normal(rngs.params(), (config.context, config.width)) * config.width**-0.5
        )
        self.positions = nnx.Param(table, logical=(None, "embed"))
        # Unrolled: it runs on CPU, where a scan is slower.
        self.decoder = Decoder(config.block, config.depth, StackConfig(layers="unroll"), rngs)
        self.projection = Linear(
            (config.width, config.embedding), ("embed", None), bias=False, rngs=rngs
        )

    def states(self, tokens: Int[Array, "f l"]) -> Float[Array, "f l c"]:
        """States after the final norm. What is behind a text's end, padding too, does not
        reach it.
        """
        f, length = tokens.shape
        if length > self.config.context:
            raise ValueError(
                f"tokens: expected at most {self.config.context} a text, got {length}; cut them"
                " first"
            )
        x = self.embed(tokens) + self.positions[...][None, :length]
        mask = jnp.broadcast_to(
            jnp.tril(jnp.ones((length, length), bool))[None], (f, length, length)
        )
        return self.decoder(x, mask, jnp.zeros((f, length), jnp.int32))

    def __call__(self, tokens: Int[Array, "f l"]) -> Float[Array, "f e"]:
        """Embeddings, not normalised."""
        eos = self.config.eos
        end = jnp.argmax(tokens if eos is None else tokens == eos, axis=1)  # the first of them
        states = self.states(tokens)
        return self.projection(jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0])


def embedder(folder: Path | str) -> Callable[[str], np.ndarray]:
    """The function instruction -> L2-normalised float32 embedding [e] of a local Hugging Face
    folder with a CLIP.

    Tokenised by the folder's own tokenizer. An instruction longer than the context is cut as CLIP
    does it: its first `context - 2` tokens stay, between start and end. Runs on the CPU: it needs
    neither the accelerator's memory nor the other processes. Raises ValueError when the folder does
    not fit, or an instruction holds the end token.
    """
    tokenizer = open_tokenizer(folder, ("bos", "eos"))
    cpu = sharding.make_mesh(1, 1, 1, jax.local_devices(backend="cpu")[:1])
    graphdef, params = from_pretrained(folder, cpu)
    model = flat.merge(graphdef, params)
    assert isinstance(model, ClipText)
    config, bos, eos = model.config, tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos != (config.vocab - 1 if config.eos is None else config.eos):
        raise ValueError(
            f"{folder}: expected its tokenizer to end texts with {config}'s eos, got {eos}; is it"
            " its own?"
        )

    @jax.jit
    def run(params: flat.Params, tokens: Array) -> Array:
        out: Array = flat.merge(graphdef, params)(tokens)[0]
        return out / jnp.linalg.norm(out)

    def embed(instruction: str) -> np.ndarray:
        ids = tokenizer.encode(instruction, add_special_tokens=False)[: config.context - 2]
        if eos in ids:  # also what CLIP's tokenizers put for a piece that they do not know
            raise ValueError(
                f"instruction {instruction!r}: holds the end token {eos}, or a letter the folder"
                " lacks"
            )
        tokens = np.zeros((1, config.context), np.int32)
        tokens[0, : len(ids) + 2] = [bos, *ids, eos]
        return np.asarray(run(params, tokens))

    return embed


# ------------------------------------------------------------------------------------------ weights


def load(
    path: Path | str,
    config: ClipTextConfig,
    specs: dict[str, jax.ShapeDtypeStruct],
    allow_missing: Sequence[str] = (),
) -> flat.Params:
    """Pretrained parameters in the dtypes and shardings of `specs` ({name: ShapeDtypeStruct}), from
    a folder with transformers' CLIPTextModelWithProjection or CLIPModel. Raises ValueError naming
    every array that does not fit.
    """
    files = pretrained.open_weights(path)
    ignored = [name for name in files.arrays if name.startswith(IMAGE_SIDE)]
    return pretrained.load(files, hf_names(config), specs, allow_missing, ignored)


def from_pretrained(
    path: Path | str, mesh: jax.sharding.Mesh | None = None, dtype: Any = jnp.float32
) -> tuple[nnx.GraphDef, flat.Params]:
    """The encoder that a Hugging Face folder describes: (graphdef, params), sharded over the
    mesh.
    """
    config = hf_config(pretrained.open_weights(path).config())
    build = functools.partial(ClipText, config)
    return pretrained.init_from_pretrained(
        build, lambda specs: load(path, config, specs), mesh, dtype
    )


def hf_names(config: ClipTextConfig) -> dict[str, pretrained.Entry]:
    """Our parameters -> names in a Hugging Face checkpoint and what to do with the arrays."""
    entry, plain, linear = pretrained.Entry, transforms.as_is, transforms.transposed
    table = {
        "embed/embedding": entry("text_model.embeddings.token_embedding.weight", plain),
        "positions": entry("text_model.embeddings.position_embedding.weight", plain),
        "decoder/norm/scale": entry("text_model.final_layer_norm.weight", plain),
        "decoder/norm/bias": entry("text_model.final_layer_norm.bias", plain),
        "projection/kernel": entry("text_projection.weight", linear),
    }
    layer, blocks = "text_model.encoder.layers.{}.", "decoder/layers/blocks/"
    for ours, theirs in (("norm_attn", "layer_norm1"), ("norm_mlp", "layer_norm2")):
        table[f"{blocks}{ours}/scale"] = entry(f"{layer}{theirs}.weight", plain, config.depth)
        table[f"{blocks}{ours}/bias"] = entry(f"{layer}{theirs}.bias", plain, config.depth)
    pairs = [(f"attn/{x}", f"self_attn.{x}_proj") for x in "qkv"] + [
        ("attn/o", "self_attn.out_proj")
    ]
    for ours, theirs in [*pairs, ("mlp/up", "mlp.fc1"), ("mlp/down", "mlp.fc2")]:
        table[f"{blocks}{ours}/kernel"] = entry(f"{layer}{theirs}.weight", linear, config.depth)
        table[f"{blocks}{ours}/bias"] = entry(f"{layer}{theirs}.bias", plain, config.depth)
    return table


def hf_config(body: dict[str, Any]) -> ClipTextConfig:
    """The sizes in a Hugging Face config.json of a whole CLIP or of its text half. What it leaves
    out has transformers' default.
    """
    kind = pretrained.expect("model_type", body.get("model_type"), ("clip", "clip_text_model"))
    text = body["text_config"] if kind == "clip" else body
    act = pretrained.expect(
        "hidden_act", text.get("hidden_act", "quick_gelu"), ("quick_gelu", "gelu")
    )
    eos = text.get("eos_token_id", 49407)
    return ClipTextConfig(
        width=text.get("hidden_size", 512),
        mlp=text.get("intermediate_size", 2048),
        depth=text.get("num_hidden_layers", 12),
        heads=text.get("num_attention_heads", 8),
        embedding=body.get("projection_dim", 512),
        vocab=text.get("vocab_size", 49408),
        context=text.get("max_position_embeddings", 77),
        eos=None if eos == 2 else eos,
        eps=text.get("layer_norm_eps", 1e-5),
        act=act,
    )
