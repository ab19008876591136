"""OpenFlamingo (arXiv 2308.01390): a CLIP tower, a perceiver resampler, and an MPT or MosaicGPT
decoder whose tokens look at the images by gated cross-attention.

Images are given as types.Media: they never stand in the sequence. In OpenFlamingo a token sees the
media of the last <image> before it; with the one <image> at the front of `prompt`, all tokens see
all of a frame's cameras, as in RoboVLMs. Who sees what is the caller's mask.

Axes: f sequences, s tokens, v media tokens (latents) of all images, c width.
"""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jaxtyping import Float, Int, UInt8

from vla_jax import params as flat
from vla_jax.models import mpt, tokenizer
from vla_jax.models.attention import Cache, Mask
from vla_jax.models.cross_attention import GatedCrossAttention
from vla_jax.models.language import Decoder, Embed
from vla_jax.models.resampler import Resampler, ResamplerConfig
from vla_jax.models.stack import PreLayers, StackConfig
from vla_jax.models.transformer import BlockConfig
from vla_jax.models.vision import VisionConfig, ViT, clip_tower, hf_clip_config, hf_vision_names
from vla_jax.types import Array, Media
from vla_jax.weights import pretrained, transforms

IMAGE, END = "<image>", "<|endofchunk|>"


@dataclasses.dataclass(frozen=True)
class FlamingoConfig:
    """Sizes, and how the layers are run (`remat`, `layers`: see stack.StackConfig).

    Attributes:
        resampler: the perceiver; its heads and their dim are the cross-attention's too.
        block: what the decoder is made of.
        every: a cross-attention stands before every `every`-th decoder layer.
        mosaic: the decoder's names are MosaicGPT's instead of MPT's.
    """

    vision: VisionConfig
    resampler: ResamplerConfig
    vocab: int
    block: BlockConfig
    depth: int
    every: int
    mosaic: bool
    remat: str = "none"
    layers: str = "scan"

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.vision.image_size

    @property
    def width(self) -> int:
        """Width of the decoder."""
        return self.block.width


L14 = clip_tower(224, 14, 1024, 24, 16)
PERCEIVER = ResamplerConfig(depth=6, heads=8, dim_head=64, latents=64)

# The decoders' own tables have 50432 rows, more than the 50280 tokens with the added ones.
CONFIGS = {
    "3b": FlamingoConfig(
        L14, PERCEIVER, 50432, mpt.block(2048, 16, 8192, qk_norm=True), 24, every=1, mosaic=True
    ),
    "9b": FlamingoConfig(
        L14, PERCEIVER, 50432, mpt.block(4096, 32, 16384), 32, every=4, mosaic=False
    ),
    "tiny": FlamingoConfig(
        clip_tower(32, 8, 64, 2, 4),
        ResamplerConfig(depth=1, heads=4, dim_head=16, latents=8),
        vocab=1600,
        block=mpt.block(64, 4, 256, qk_norm=True),
        depth=2,
        every=1,
        mosaic=True,
    ),
}


class Flamingo(nnx.Module):
    """The backbone; see types.Backbone. Computes in the dtype of its parameters."""

    cross_attends, grid_positions = True, False
    text_scale = 1.0

    def __init__(self, config: FlamingoConfig, rngs: nnx.Rngs) -> None:
        run = StackConfig(config.remat, config.layers)
        self.config = config
        self.width, self.visual_width = config.width, config.vision.width
        self.tokens_per_image = config.resampler.latents
        self.vision = ViT(config.vision, run, rngs)
        self.perceiver = Resampler(config.vision.width, config.resampler, rngs)
        self.embed = Embed(config.vocab, config.width, rngs)
        # A list and not a stack: where layers are unrolled, the gradient of a slice would be as
        # large as the whole.
        self.gated = nnx.List(
            [
                GatedCrossAttention(config.width, config.vision.width, config.resampler, rngs)
                for _ in range(config.depth // config.every)
            ]
        )
        self.decoder = Decoder(config.block, config.depth, run, rngs)

    def embed_image(self, images: UInt8[Array, "f h w 3"]) -> Float[Array, "f v c"]:
        """The latents of each image: its media tokens."""
        return self.perceiver(self.vision(images))

    def embed_text(self, tokens: Int[Array, "f l"]) -> Float[Array, "f l c"]:
        """Token embeddings."""
        return self.embed(tokens)

    def __call__(
        self,
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s"],
        num_queries: int | None = None,
        media: Media | None = None,
    ) -> Float[Array, "f r c"]:
        """Hidden states after the final norm, at the last `num_queries` positions if given. Raises
        ValueError without media.
        """
        return self.decoder(x, mask, positions, num_queries, self._cross_attend(media))

    def decode(
        self,
        x: Float[Array, "f s c"],
        mask: Mask,
        positions: Int[Array, "f s"],
        cache: Cache,
        media: Media | None = None,
    ) -> tuple[Float[Array, "f s c"], Cache]:
        """Hidden states of tokens that follow those in the cache, and the cache with them. `media`
        holds all that they see: the cache has none of it.
        """
        return self.decoder.decode(x, mask, positions, cache, self._cross_attend(media))

    def cache(self, f: int, slots: int) -> Cache:
        """An empty cache."""
        return self.decoder.cache(f, slots)

    def logits(
        self, hidden: Float[Array, "f s c"], token_range: tuple[int, int] | None = None
    ) -> Float[Array, "f s vocab"]:
        """float32 logits of the tied output layer."""
        return self.embed.logits(hidden, token_range)

    def _cross_attend(self, media: Media | None) -> PreLayers:
        if media is None:
            raise ValueError(
                "flamingo: expected media (images, with a mask of who sees them), got None"
            )
        seen = media

        def look(block: GatedCrossAttention, x: Array, media: Media) -> Array:
            return block(x, media)

        call = look if self.config.remat == "none" else jax.checkpoint(look)
        return PreLayers(self.gated, self.config.every, lambda block, x: call(block, x, seen))


MODEL, OWN_LM_HEAD = Flamingo, False


# ------------------------------------------------------------------------------------------ weights

# Other spellings -> the one of hf_names: the repositories of the decoder and of CLIP as they are,
# the alternative place of the gated layers, and decoder layers that OpenFlamingo has wrapped.
SPELLINGS = (
    (r"^transformer\.", "lang_encoder.transformer."),
    (r"^(vision_encoder\.)?vision_model\.", "vision_encoder."),
    (
        r"^lang_encoder\.gated_cross_attn_layers\.(\d+)\.",
        r"lang_encoder.transformer.blocks.\1.gated_cross_attn_layer.",
    ),
    (r"^lang_encoder\.old_decoder_blocks\.(\d+)\.", r"lang_encoder.transformer.blocks.\1."),
    (r"^(lang_encoder\.transformer\.blocks\.\d+\.)decoder_layer\.", r"\1"),
)


def respell(name: str) -> str:
    """A name of any of the SPELLINGS as hf_names has it."""
    for pattern, ours in SPELLINGS:
        name = re.sub(pattern, ours, name)
    return name


def open_weights(path: Path | str) -> pretrained.WeightFiles:
    """Opens a folder of safetensors that holds all parts: the decoder's repository, OpenFlamingo's
    own file (checkpoint.pt: perceiver, gated layers) and the `vision_model` of a CLIP, in any of
    the SPELLINGS. No such folder is published; its config.json is described at `hf_config`. Raises
    ValueError when an array is there twice.
    """
    files, arrays = pretrained.open_weights(path), {}
    for name, array in files.arrays.items():
        if respell(name) in arrays:
            raise ValueError(
                f"weights {path}: expected one array for {respell(name)}, got a second one, {name};"
                " drop it"
            )
        arrays[respell(name)] = array
    return files._replace(arrays=arrays)


def load(
    path: Path | str,
    config: FlamingoConfig,
    specs: dict[str, jax.ShapeDtypeStruct],
    allow_missing: Sequence[str] = (),
) -> flat.Params:
    """Pretrained parameters in the dtypes and shardings of `specs` ({name: ShapeDtypeStruct}); see
    `open_weights`.

    Raises ValueError naming every missing, unexpected or mis-shaped array; a missing one is left
    out of the result where a pattern of `allow_missing` matches its name.
    """
    return pretrained.load(
        open_weights(path), hf_names(config), specs, allow_missing, dead_names(config)
    )


def hf_names(config: FlamingoConfig) -> dict[str, pretrained.Entry]:
    """Our parameters -> names in a folder (after `respell`) and what to do with the arrays."""
    entry, plain = pretrained.Entry, transforms.as_is
    text = "lang_encoder.transformer."
    table = hf_vision_names(config.vision, "vision_encoder.")
    table |= mpt.names(
        config.block, config.depth, text, mpt.MOSAIC_GPT if config.mosaic else mpt.MPT
    )
    # OpenFlamingo cuts the table to its tokenizer; the rows it cut belong to no token.
    table["embed/embedding"] = entry(
        table["embed/embedding"].source, transforms.pad_rows(config.vocab)
    )
    table["perceiver/latents"] = entry("perceiver.latents", plain)
    table |= _norm("perceiver/norm", "perceiver.norm")
    for i in range(config.resampler.depth):
        ours, theirs = f"perceiver/layers/{i}", f"perceiver.layers.{i}."
        table |= _attention(ours, f"{theirs}0.") | _feed_forward(ours, f"{theirs}1.")
        table |= _norm(f"{ours}/norm_media", f"{theirs}0.norm_media")
        table |= _norm(f"{ours}/norm_latents", f"{theirs}0.norm_latents")
    for i in range(config.depth // config.every):
        ours, theirs = (
            f"gated/{i}",
            f"{text}blocks.{(i + 1) * config.every - 1}.gated_cross_attn_layer.",
        )
        table |= _attention(ours, f"{theirs}attn.") | _feed_forward(ours, f"{theirs}ff.")
        table |= _norm(f"{ours}/norm_attn", f"{theirs}attn.norm")
        table[f"{ours}/attn_gate"] = entry(f"{theirs}attn_gate", plain)
        table[f"{ours}/mlp_gate"] = entry(f"{theirs}ff_gate", plain)
    return table


def _norm(ours: str, theirs: str) -> dict[str, pretrained.Entry]:
    return {
        f"{ours}/scale": pretrained.Entry(f"{theirs}.weight", transforms.as_is),
        f"{ours}/bias": pretrained.Entry(f"{theirs}.bias", transforms.as_is),
    }


def _attention(ours: str, theirs: str) -> dict[str, pretrained.Entry]:
    return {
        f"{ours}/q/kernel": pretrained.Entry(f"{theirs}to_q.weight", transforms.transposed),
        f"{ours}/k/kernel": pretrained.Entry(f"{theirs}to_kv.weight", transforms.fused(0, 2)),
        f"{ours}/v/kernel": pretrained.Entry(f"{theirs}to_kv.weight", transforms.fused(1, 2)),
        f"{ours}/o/kernel": pretrained.Entry(f"{theirs}to_out.weight", transforms.transposed),
    }


def _feed_forward(ours: str, theirs: str) -> dict[str, pretrained.Entry]:
    return _norm(f"{ours}/norm_mlp", f"{theirs}0") | {
        f"{ours}/up/kernel": pretrained.Entry(f"{theirs}1.weight", transforms.transposed),
        f"{ours}/down/kernel": pretrained.Entry(f"{theirs}3.weight", transforms.transposed),
    }


def hf_config(body: dict[str, Any]) -> FlamingoConfig:
    """The sizes in a folder's config.json, which is ours: no release has one.

    {"model_type": "flamingo", "vision_config": CLIP's, "text_config": that of the decoder's
    repository, "cross_attn_every_n_layers": n, "perceiver_config": {"depth", "heads", "dim_head",
    "latents"}}; the last may be left out, for it is the same in all releases. Raises ValueError
    naming what is not known.
    """
    expect = pretrained.expect
    expect("model_type", body.get("model_type"), ("flamingo",))
    vision, text = body["vision_config"], body["text_config"]
    # Our own config.json says what its tower is.
    expect("vision_config.model_type", vision.get("model_type"), ("clip_vision_model",))
    mosaic = (
        expect("text_config.model_type", text.get("model_type"), ("mpt", "mosaic_gpt"))
        == "mosaic_gpt"
    )
    expect("text_config.tie_word_embeddings", text.get("tie_word_embeddings", True), (True,))
    return FlamingoConfig(
        vision=hf_clip_config(vision),
        resampler=ResamplerConfig(**body.get("perceiver_config") or dataclasses.asdict(PERCEIVER)),
        vocab=text["vocab_size"],
        block=mpt.mosaic_block(text) if mosaic else mpt.hf_block(text, "text_config."),
        depth=text["n_layers"],
        every=body["cross_attn_every_n_layers"],
        mosaic=mosaic,
    )


def dead_names(config: FlamingoConfig) -> list[str]:
    """The norm of CLIP's pooled token, which Flamingo does not pool, and the tied output layer."""
    del config
    norm = "vision_encoder.post_layernorm."
    return [f"{norm}weight", f"{norm}bias", "lang_encoder.lm_head.weight"]


def hub(variant: str) -> str:
    """Where OpenFlamingo's own part of a variant is on the Hugging Face hub; see `open_weights` for
    the others.
    """
    return (
        "openflamingo/OpenFlamingo-"
        + {"3b": "3B-vitl-mpt1b-langinstruct", "9b": "9B-vitl-mpt7b"}[variant]
    )


# ----------------------------------------------------------------------------- prompt and tokenizer


def prompt(instruction: str) -> str:
    """What stands before <eos>: the place of the images, the instruction as one clean line, its
    end.
    """
    return IMAGE + " ".join(instruction.split()) + END


def load_tokenizer(folder: Path | str, layout: str = "prefix") -> tokenizer.Tokenizer:
    """The tokenizer of a local folder: `<image>instruction<|endofchunk|><eos>` in every layout.

    Raises ValueError when it lacks one of Flamingo's tokens.
    """
    del layout
    known = tokenizer.open_tokenizer(folder, ("eos",)).get_vocab()
    lacking = [token for token in (IMAGE, END) if token not in known]
    if lacking:
        raise ValueError(
            f"tokenizer {folder}: expected the tokens {IMAGE} and {END}, got none for"
            f" {', '.join(lacking)}; add them to the decoder's tokenizer in this order, as"
            " OpenFlamingo does, and save it"
        )
    return tokenizer.Tokenizer(folder, prompt, (), ("eos",))


def train_tiny_tokenizer(texts: Sequence[str], out: Path | str, vocab: int = 1600) -> None:
    """The small tokenizer of tokenizer.train_tiny_tokenizer with Flamingo's tokens at its end."""
    tokenizer.train_tiny_tokenizer(texts, out, vocab, (END, IMAGE))
