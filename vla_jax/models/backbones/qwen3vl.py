"""Qwen3-VL: a tower with a rotary embedding of rows and columns, mergers of two by two patches, a
Qwen3 decoder with M-RoPE (arXiv 2511.21631).

DeepStack: features of the tower's inner layers are added to the outputs of the decoder's first
layers, at the image's tokens. `embed_image` gives them behind the features of the last layer, so a
visual token is several widths wide; zeros stand there in the other tokens of a sequence. With a
resampler they are left out: its latents have no place in the picture. Nothing is scaled.
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
from vla_jax.models import llama, tokenizer
from vla_jax.models.attention import Cache, Mask
from vla_jax.models.language import Decoder, Embed, InSequence, output_layer
from vla_jax.models.qwen_vision import QwenVisionConfig, QwenViT, hf_vision_names
from vla_jax.models.stack import StackConfig
from vla_jax.models.transformer import BlockConfig, Linear, Norm
from vla_jax.models.vision import shuffle
from vla_jax.types import Array, Media
from vla_jax.weights import pretrained, sizes, transforms

MERGE = 2  # patches of a side that become one token
START, END = "<|im_start|>", "<|im_end|>"


@dataclasses.dataclass(frozen=True)
class Qwen3VLConfig:
    """Sizes, and how the layers are run (`remat`, `layers`: see stack.StackConfig).

    Attributes:
        block: what the decoder is made of.
        tied: the output layer is the token table.
        has_lm_head: False leaves out an output layer of its own, which only tokens are scored by.
    """

    vision: QwenVisionConfig
    block: BlockConfig
    depth: int
    vocab: int
    tied: bool = True
    remat: str = "none"
    layers: str = "scan"
    has_lm_head: bool = True

    def __post_init__(self) -> None:
        each = self.vision.patch * MERGE
        for size in (self.vision.image_size, *self.vision.other_sizes):
            if size % each:
                raise ValueError(
                    f"model.image_size: expected a multiple of {each}, the patch of"
                    f" {self.vision.patch} px times the {MERGE} that become one token, got {size}"
                )
        if len(self.vision.taps) >= self.depth:
            raise ValueError(
                f"Qwen3VLConfig: expected a decoder of more layers than the {len(self.vision.taps)}"
                f" that features are added to, got {self.depth}"
            )

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.vision.image_size


def _decoder(width: int, mlp: int, heads: int, kv_heads: int, head_dim: int) -> BlockConfig:
    plain = llama.block(width, mlp, heads, kv_heads, head_dim, eps=1e-6)
    return dataclasses.replace(plain, rope_theta=5e6, head_norm=True, rope_sections=(24, 20, 20))


# The tower takes any size: this is the smallest picture that the release's processor makes.
TOWER = QwenVisionConfig(
    image_size=256, patch=16, width=1024, mlp=4096, depth=24, heads=16, table=48, taps=(5, 11, 17)
)

CONFIGS = {
    "2b": Qwen3VLConfig(TOWER, _decoder(2048, 6144, 16, 8, 128), depth=28, vocab=151_936),
    "4b": Qwen3VLConfig(TOWER, _decoder(2560, 9728, 32, 8, 128), depth=36, vocab=151_936),
    "tiny": Qwen3VLConfig(
        QwenVisionConfig(
            image_size=32, patch=8, width=64, mlp=256, depth=3, heads=4, table=6, taps=(0, 1)
        ),
        dataclasses.replace(_decoder(64, 256, 4, 2, 16), rope_sections=(3, 3, 2)),
        depth=3,
        vocab=1600,
    ),
}


class Merger(nnx.Module):
    """Squares of MERGE x MERGE patches -> one vector of the decoder's width each: a norm over each
    patch, or where `whole` over all of a square, and two linear layers.
    """

    def __init__(self, config: Qwen3VLConfig, whole: bool, rngs: nnx.Rngs) -> None:
        width = config.vision.width
        wide = width * MERGE**2
        self.whole = whole
        self.norm = Norm(wide if whole else width, "ln", 1e-6, "vision")
        self.up = Linear((wide, wide), ("vision", "mlp"), True, rngs)
        self.down = Linear((wide, config.block.width), ("mlp", "embed"), True, rngs)

    def __call__(self, x: Float[Array, "f p w"]) -> Float[Array, "f v c"]:
        x = self.norm(shuffle(x, MERGE)) if self.whole else shuffle(self.norm(x), MERGE)
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class Projector(nnx.Module):
    """The mergers: of the tower's last layer, and of each that it gives beside it."""

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs) -> None:
        self.last = Merger(config, False, rngs)
        self.inner = nnx.List([Merger(config, True, rngs) for _ in config.vision.taps])

    def __call__(self, layers: Sequence[Float[Array, "f p w"]]) -> Float[Array, "f v d"]:
        inner = [merge(x) for merge, x in zip(self.inner, layers[:-1], strict=True)]
        return jnp.concatenate([self.last(layers[-1]), *inner], axis=-1)


class Qwen3VL(InSequence):
    """The backbone; see types.Backbone. Computes in the dtype of its parameters."""

    text_scale = 1.0
    grid_positions = True

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs) -> None:
        run, width = StackConfig(config.remat, config.layers), config.block.width
        self.config = config
        self.width = self.visual_width = width
        self.tokens_per_image = (config.image_size // config.vision.patch // MERGE) ** 2
        self.vision = QwenViT(config.vision, run, rngs)
        self.projector = Projector(config, rngs)
        self.embed = Embed(config.vocab, width, rngs)
        self.decoder = Decoder(config.block, config.depth, run, rngs)
        own = config.has_lm_head and not config.tied
        self.lm_head = output_layer(width, config.vocab, own, rngs)

    def embed_image(self, images: UInt8[Array, "f h w 3"]) -> Float[Array, "f v d"]:
        """Merged features, of inner layers too: d = c * (1 + taps)."""
        return self.projector(self.vision(images))

    def __call__(
        self,
        x: Float[Array, "f s d"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        num_queries: int | None = None,
        media: Media | None = None,
    ) -> Float[Array, "f r c"]:
        """Hidden states after the final norm, at the last `num_queries` positions if given. Tokens
        are as wide as words or as images.
        """
        del media
        first, added = self._apart(x)
        return self.decoder(first, mask, positions, num_queries, None, added)

    def decode(
        self,
        x: Float[Array, "f s d"],
        mask: Mask,
        positions: Int[Array, "f s *axes"],
        cache: Cache,
        media: Media | None = None,
    ) -> tuple[Float[Array, "f s c"], Cache]:
        """Hidden states of tokens that follow those in the cache, and the cache with them."""
        del media
        first, added = self._apart(x)
        return self.decoder.decode(first, mask, positions, cache, None, added)

    def _apart(self, x: Float[Array, "f s d"]) -> tuple[Any, list[Any]]:
        """What goes into the first layer, and what is added to the outputs of the first ones."""
        first, *added = jnp.split(x, x.shape[-1] // self.width, axis=-1)
        return first, added


MODEL, OWN_LM_HEAD = Qwen3VL, True


# ------------------------------------------------------------------------------------------ weights


def load(
    path: Path | str,
    config: Qwen3VLConfig,
    specs: dict[str, jax.ShapeDtypeStruct],
    allow_missing: Sequence[str] = (),
) -> flat.Params:
    """Pretrained parameters of a Hugging Face folder of Qwen3VLForConditionalGeneration in the
    dtypes and shardings of `specs`; see pretrained.load. Raises ValueError too for a folder whose
    config.json is of another model, or of another variant than `config`.
    """
    files = pretrained.open_weights(path)
    sizes.check(files.path, config, hf_config(files.config()))
    return pretrained.load(files, hf_names(config), specs, allow_missing)


def hf_names(config: Qwen3VLConfig) -> dict[str, pretrained.Entry]:
    """Our parameters -> names in a Hugging Face checkpoint (after pretrained.normalise) and what to
    do with the arrays.
    """
    entry, plain, linear = pretrained.Entry, transforms.as_is, transforms.transposed
    visual, text = "model.visual.", "language_model."
    table = {
        **hf_vision_names(config.vision, visual),
        **llama.names(config.depth, text),
        "lm_head/kernel": entry("lm_head.weight", linear),
    }
    for name in "qk":
        table[f"decoder/layers/blocks/attn/{name}_head_norm/scale"] = entry(
            f"{text}layers.{{}}.self_attn.{name}_norm.weight", plain, config.depth
        )
    mergers = {"projector/last": f"{visual}merger."}
    for i in range(len(config.vision.taps)):
        mergers[f"projector/inner/{i}"] = f"{visual}deepstack_merger_list.{i}."
    for ours, theirs in mergers.items():
        table[f"{ours}/norm/scale"] = entry(f"{theirs}norm.weight", plain)
        table[f"{ours}/norm/bias"] = entry(f"{theirs}norm.bias", plain)
        for part, layer in (("up", "linear_fc1"), ("down", "linear_fc2")):
            table[f"{ours}/{part}/kernel"] = entry(f"{theirs}{layer}.weight", linear)
            table[f"{ours}/{part}/bias"] = entry(f"{theirs}{layer}.bias", plain)
    return table


def hf_config(body: dict[str, Any]) -> Qwen3VLConfig:
    """The sizes in a config.json; the image's, which it does not say, are our default. Raises
    ValueError naming what is not ours.
    """
    expect = pretrained.expect
    expect("model_type", body.get("model_type"), ("qwen3_vl",))
    text, vision = body["text_config"], body["vision_config"]
    known = ("qwen3_vl_text",)
    expect("text_config.model_type", text.get("model_type", *known), known)
    act = vision.get("hidden_act", "gelu_pytorch_tanh")
    expect("vision_config.hidden_act", act, ("gelu_pytorch_tanh",))
    for key, value in (("spatial_merge_size", MERGE), ("in_channels", 3)):
        expect(f"vision_config.{key}", vision.get(key, value), (value,))
    turned = vision.get("rope_parameters") or {"rope_type": "axial", "rope_theta": 1e4}
    expect("vision_config.rope_type", turned.get("rope_type"), ("axial",))
    expect("vision_config.rope_theta", turned.get("rope_theta"), (1e4,))
    out, width = vision.get("out_hidden_size", 3584), text["hidden_size"]
    expect("vision_config.out_hidden_size", out, (width,))
    rope = (text.get("rope_scaling") or {}) | (text.get("rope_parameters") or {})
    expect("text_config.mrope_interleaved", rope.get("mrope_interleaved", True), (True,))
    entries = vision.get("num_position_embeddings", 2304)
    tower = QwenVisionConfig(
        image_size=TOWER.image_size,
        patch=vision.get("patch_size", 16),
        width=vision.get("hidden_size", 1152),
        mlp=vision.get("intermediate_size", 4304),
        depth=vision.get("depth", 27),
        heads=vision.get("num_heads", 16),
        table=expect("num_position_embeddings' root", round(entries**0.5), (entries**0.5,)),
        taps=tuple(vision.get("deepstack_visual_indexes", (8, 16, 24))),
    )
    block = dataclasses.replace(
        llama.hf_block({"head_dim": 128, "rope_theta": 5e5} | text),
        head_norm=True,
        rope_sections=tuple(rope.get("mrope_section", (24, 20, 20))),
    )
    return Qwen3VLConfig(
        vision=tower,
        block=block,
        depth=text.get("num_hidden_layers", 32),
        vocab=text.get("vocab_size", 151_936),
        tied=body.get("tie_word_embeddings", False),
    )


def dead_names(config: Qwen3VLConfig) -> list[str]:
    """None: every array of a release is used."""
    del config
    return []


def hub(variant: str) -> str:
    """Where a variant's weights are on the Hugging Face hub."""
    return f"Qwen/Qwen3-VL-{variant.upper()}-Instruct"


# ----------------------------------------------------------------------------- prompt and tokenizer


def prompt(instruction: str) -> str:
    """The instruction as one clean line in the words of the chat template that the model was tuned
    on, up to where it answers. The special tokens round an image are not in our sequence.
    """
    return f"{START}user\n{' '.join(instruction.split())}{END}\n{START}assistant\n"


def load_tokenizer(folder: Path | str, layout: str = "prefix") -> tokenizer.Tokenizer:
    """The tokenizer of a local Hugging Face folder: the prompt, which has its special tokens, in
    every layout.
    """
    del layout
    return tokenizer.Tokenizer(folder, prompt, (), ())


def train_tiny_tokenizer(texts: Sequence[str], out: Path | str, vocab: int = 1600) -> None:
    """Trains a small tokenizer on `texts` and the prompt's words, with its special tokens as one
    token each like in the released one; see tokenizer.train_tiny_tokenizer.
    """
    tokenizer.train_tiny_tokenizer(
        [*texts, "user", "assistant"], out, vocab, ("<image>", START, END)
    )
