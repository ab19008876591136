"""Flamingo: what config files are read or refused, released sizes, prompt and tokenizer."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest

from vla_jax import params as flat
from vla_jax.models.backbones import flamingo

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
}  # fmt: skip
MOSAIC = {
    "model_type": "mosaic_gpt", "d_model": 2048, "n_heads": 16, "n_layers": 24, "mlp_ratio": 4,
    "vocab_size": 50432,
    "attn_qk_ln": True, "attn_clip_qkv": None, "alibi": True, "no_bias": True, "logit_scale": None,
}  # fmt: skip
MPT = {
    "model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "expansion_ratio": 4,
    "vocab_size": 50432,
    "no_bias": True, "norm_type": "low_precision_layernorm", "logit_scale": None,
    "attn_config": {"alibi": True, "alibi_bias_max": 8, "clip_qkv": None, "prefix_lm": False,
    "qk_ln": False},
}  # fmt: skip
BODY = {
    "model_type": "flamingo",
    "vision_config": VISION,
    "text_config": MOSAIC,
    "cross_attn_every_n_layers": 1,
}


def test_config_files_of_the_releases() -> None:
    assert flamingo.hf_config(BODY) == flamingo.CONFIGS["3b"]
    assert (
        flamingo.hf_config(BODY | {"text_config": MPT, "cross_attn_every_n_layers": 4})
        == flamingo.CONFIGS["9b"]
    )
    clipped = flamingo.hf_config(
        BODY | {"text_config": MOSAIC | {"attn_clip_qkv": 6.0, "softmax_scale": 0.5}}
    )
    assert (clipped.block.clip_qkv, clipped.block.q_scale) == (6, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llava"}, "model_type: expected 'flamingo', got 'llava'"),
        (
            {"text_config": MOSAIC | {"model_type": "gpt_neox"}},
            "expected 'mpt' or 'mosaic_gpt', got 'gpt_neox'",
        ),
        (
            {"text_config": MOSAIC | {"alibi": False}},
            r"text_config\.attn_config\.alibi: expected True, got False",
        ),
        (
            {"text_config": {k: v for k, v in MOSAIC.items() if k != "no_bias"}},
            r"text_config\.no_bias",
        ),
        (
            {"text_config": MOSAIC | {"tie_word_embeddings": False}},
            "tie_word_embeddings: expected True, got False",
        ),
        (
            {"vision_config": VISION | {"hidden_act": "relu"}},
            "expected 'quick_gelu' or 'gelu', got 'relu'",
        ),
    ],
)
def test_another_model_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flamingo.hf_config(BODY | changes)


def test_released_sizes() -> None:
    """backbones.md 1.9; the decoders' tables have the rows of their own repositories."""
    for name, decoder, gated in (
        ("3b", 1_311_442_944, 881_000_496),
        ("9b", 6_649_286_656, 1_115_815_952),
    ):
        config = flamingo.CONFIGS[name]
        _, shapes, _ = flat.abstract(functools.partial(flamingo.Flamingo, config))
        counts = dict.fromkeys(("vision", "perceiver", "embed", "gated", "decoder"), 0)
        for path, shape in shapes.items():
            counts[path.split("/")[0]] += math.prod(shape.shape)
        assert counts["vision"] == 303_177_728
        assert counts["perceiver"] == 63_019_008
        assert counts["gated"] == gated
        assert counts["embed"] + counts["decoder"] == decoder
        assert set(flamingo.hf_names(config)) == set(shapes)


# ---------------------------------------------------------------------------------------- tokenizer


def test_the_tiny_tokenizer(tmp_path: Path) -> None:
    flamingo.train_tiny_tokenizer(
        ["push the red block left", "move the blue block up"], tmp_path / "a"
    )
    tokenizer = flamingo.load_tokenizer(tmp_path / "a")
    ids = tokenizer.encode("push the  red\nblock left")
    assert ids == tokenizer.encode("push the red block left")
    assert tokenizer.vocab <= flamingo.CONFIGS["tiny"].vocab

    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    image, end = hf.convert_tokens_to_ids(["<image>", "<|endofchunk|>"])
    assert (end, image) == (tokenizer.vocab - 2, tokenizer.vocab - 1)  # OpenFlamingo's order
    assert (ids[0], ids[-2], ids[-1]) == (image, end, hf.eos_token_id)
    assert {image, end, hf.eos_token_id}.isdisjoint(ids[1:-2])


def test_a_tokenizer_without_the_added_tokens_is_refused(tmp_path: Path) -> None:
    from vla_jax.models.tokenizer import train_tiny_tokenizer

    train_tiny_tokenizer(["push"], tmp_path / "a")
    with pytest.raises(ValueError, match=r"got none for <\|endofchunk\|>"):
        flamingo.load_tokenizer(tmp_path / "a")
