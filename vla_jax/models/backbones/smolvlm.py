"""SmolVLM2: a SigLIP tower, a pixel shuffle with one linear layer, a SmolLM2 decoder, which is
LLaMA's (arXiv 2504.05299).

A camera is one square image, whole: the release's splitting of a large image into tiles is off, and
the special tokens that stand round a tile are not in our sequence. Nothing is scaled.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jaxtyping import Float, UInt8

from vla_jax import params as flat
from vla_jax.models import llama, tokenizer
from vla_jax.models.language import Decoder, Embed, InSequence, output_layer
from vla_jax.models.stack import StackConfig
from vla_jax.models.transformer import BlockConfig, Linear
from vla_jax.models.vision import VisionConfig, ViT, hf_vision_names, shuffle
from vla_jax.types import Array
from vla_jax.weights import pretrained, sizes, transforms

END_OF_UTTERANCE = "<end_of_utterance>"


@dataclasses.dataclass(frozen=True)
class SmolVLMConfig:
    """Sizes, and how the layers are run (`remat`, `layers`: see stack.StackConfig).

    Attributes:
        scale: patches of a side that become one token.
        block: what the decoder is made of.
        tied: the output layer is the token table.
        has_lm_head: False leaves out an output layer of its own, which only tokens are scored by.
    """

    vision: VisionConfig
    scale: int
    block: BlockConfig
    depth: int
    vocab: int
    tied: bool = False
    remat: str = "none"
    layers: str = "scan"
    has_lm_head: bool = True

    def __post_init__(self) -> None:
        each = self.vision.patch * self.scale
        for size in (self.vision.image_size, *self.vision.other_sizes):
            if size // self.vision.patch % self.scale:
                raise ValueError(
                    f"model.image_size: expected a multiple of {each}, the patch of"
                    f" {self.vision.patch} px times the {self.scale} that become one token, got"
                    f" {size}"
                )

    @property
    def image_size(self) -> int:
        """Pixels of a side."""
        return self.vision.image_size


BASE_512 = VisionConfig(image_size=512, patch=16, width=768, mlp=3072, depth=12, heads=12)
# Released for 384 px, of which the tower leaves out the last 6, less than a patch.
SO400M = VisionConfig(image_size=378, patch=14, width=1152, mlp=4304, depth=27, heads=16)


def _decoder(width: int, mlp: int, heads: int, kv_heads: int, theta: float) -> BlockConfig:
    plain = llama.block(width, mlp, heads, kv_heads, width // heads)
    return dataclasses.replace(plain, rope_theta=theta)


CONFIGS = {
    "256m": SmolVLMConfig(BASE_512, 4, _decoder(576, 1536, 9, 3, 1e5), depth=30, vocab=49280),
    "500m": SmolVLMConfig(BASE_512, 4, _decoder(960, 2560, 15, 5, 1e5), depth=32, vocab=49280),
    "2.2b": SmolVLMConfig(SO400M, 3, _decoder(2048, 8192, 32, 32, 1.3e5), depth=24, vocab=49280),
    "tiny": SmolVLMConfig(
        VisionConfig(image_size=32, patch=8, width=64, mlp=256, depth=2, heads=4),
        scale=2,
        block=_decoder(64, 256, 4, 2, 1e5),
        depth=2,
        vocab=1600,
    ),
}


class SmolVLM(InSequence):
    """The backbone; see types.Backbone. Computes in the dtype of its parameters."""

    text_scale = 1.0

    def __init__(self, config: SmolVLMConfig, rngs: nnx.Rngs) -> None:
        run, width = StackConfig(config.remat, config.layers), config.block.width
        self.config = config
        self.width = self.visual_width = width
        self.tokens_per_image = config.vision.tokens // config.scale**2
        self.vision = ViT(config.vision, run, rngs)
        shuffled = config.vision.width * config.scale**2
        self.projector = Linear((shuffled, width), ("vision", "embed"), bias=False, rngs=rngs)
        self.embed = Embed(config.vocab, width, rngs)
        self.decoder = Decoder(config.block, config.depth, run, rngs)
        own = config.has_lm_head and not config.tied
        self.lm_head = output_layer(width, config.vocab, own, rngs)

    def embed_image(self, images: UInt8[Array, "f h w 3"]) -> Float[Array, "f v c"]:
        """Projected features of squares of scale x scale patches, in rows."""
        return self.projector(shuffle(self.vision(images), self.config.scale))


MODEL, OWN_LM_HEAD = SmolVLM, True


# ------------------------------------------------------------------------------------------ weights


def load(
    path: Path | str,
    config: SmolVLMConfig,
    specs: dict[str, jax.ShapeDtypeStruct],
    allow_missing: Sequence[str] = (),
) -> flat.Params:
    """Pretrained parameters of a Hugging Face folder of SmolVLMForConditionalGeneration in the
    dtypes and shardings of `specs`; see pretrained.load. Raises ValueError too for a folder whose
    config.json is of another model, or of another variant than `config`.
    """
    files = pretrained.open_weights(path)
    sizes.check(files.path, config, hf_config(files.config()))
    return pretrained.load(files, hf_names(config), specs, allow_missing)


def hf_names(config: SmolVLMConfig) -> dict[str, pretrained.Entry]:
    """Our parameters -> names in a Hugging Face checkpoint and what to do with the arrays.

    The tower's position of a patch is the one of its own place: transformers finds it by comparing
    the patch's distance from the border, in parts of the image, with the table's, which for as
    many patches as the table has comes to the same. For other image sizes, where transformers takes
    the nearest of the table, positions are interpolated as in the other towers.
    """
    linear = transforms.transposed
    return {
        **hf_vision_names(config.vision, "model.vision_model."),
        **llama.names(config.depth, "model.text_model."),
        "projector/kernel": pretrained.Entry(
            "model.connector.modality_projection.proj.weight", linear
        ),
        "lm_head/kernel": pretrained.Entry("lm_head.weight", linear),
    }


def hf_config(body: dict[str, Any]) -> SmolVLMConfig:
    """The sizes in a config.json; what is left out is as in transformers. Raises ValueError naming
    what is not ours.
    """
    expect = pretrained.expect
    expect("model_type", body.get("model_type"), ("smolvlm",))
    text, vision = body.get("text_config", {}), body.get("vision_config", {})
    expect("text_config.model_type", text.get("model_type", "llama"), ("llama",))
    act = vision.get("hidden_act", "gelu_pytorch_tanh")
    expect("vision_config.hidden_act", act, ("gelu_pytorch_tanh",))
    patch = vision.get("patch_size", 32)
    tower = VisionConfig(
        image_size=vision.get("image_size", 224) // patch * patch,
        patch=patch,
        width=vision.get("hidden_size", 1152),
        mlp=vision.get("intermediate_size", 3072),
        depth=vision.get("num_hidden_layers", 12),
        heads=vision.get("num_attention_heads", 16),
        eps=vision.get("layer_norm_eps", 1e-6),
    )
    return SmolVLMConfig(
        vision=tower,
        scale=body.get("scale_factor", 2),
        block=llama.hf_block(text),
        depth=text.get("num_hidden_layers", 32),
        vocab=text.get("vocab_size", 32000),
        tied=body.get("tie_word_embeddings", False),
    )


def dead_names(config: SmolVLMConfig) -> list[str]:
    """None: every array of a release is used."""
    del config
    return []


def hub(variant: str) -> str:
    """Where a variant's weights are on the Hugging Face hub."""
    kind = "Instruct" if variant == "2.2b" else "Video-Instruct"
    return f"HuggingFaceTB/SmolVLM2-{variant.upper()}-{kind}"


# ----------------------------------------------------------------------------- prompt and tokenizer


def prompt(instruction: str) -> str:
    """The instruction as one clean line in the words of the chat template that the model was tuned
    on, up to where it answers.
    """
    return f"User: {' '.join(instruction.split())}{END_OF_UTTERANCE}\nAssistant:"


def load_tokenizer(folder: Path | str, layout: str = "prefix") -> tokenizer.Tokenizer:
    """The tokenizer of a local Hugging Face folder: `<|im_start|>` and the prompt in every
    layout.
    """
    del layout
    return tokenizer.Tokenizer(folder, prompt, ("bos",), ())


def train_tiny_tokenizer(texts: Sequence[str], out: Path | str, vocab: int = 1600) -> None:
    """Trains a small tokenizer on the prompts of `texts`, with <end_of_utterance> as one token like
    in the released one; see tokenizer.train_tiny_tokenizer.
    """
    lines = [line for text in texts for line in prompt(text).split(f"{END_OF_UTTERANCE}\n")]
    tokenizer.train_tiny_tokenizer(lines, out, vocab, ("<image>", END_OF_UTTERANCE))
