"""MosaicML's decoders, under LLaVA-MPT and under OpenFlamingo: their block and the names in their
checkpoints.

MPT and its forerunner MosaicGPT are the one block with LayerNorms without bias, linear layers
without bias, the exact GELU, ALiBi, and a token table that is the output layer too. MosaicGPT names
its parts otherwise and has LayerNorms over the whole width of the queries and of the keys.
(github.com/mosaicml/llm-foundry, and mosaicml/examples v0.0.4.)
"""

import dataclasses
from typing import Any

from vla_jax.models.transformer import BlockConfig
from vla_jax.weights import pretrained, transforms

# Our part of a block -> theirs; "table" and "norm" are the decoder's own. The norms of queries and
# keys count if built.
MPT = {
    "table": "wte",
    "norm": "norm_f",
    "norm_attn": "norm_1",
    "norm_mlp": "norm_2",
    "mlp/up": "ffn.up_proj",
    "mlp/down": "ffn.down_proj",
}
MOSAIC_GPT = {
    "table": "wte",
    "norm": "ln_f",
    "norm_attn": "ln_1",
    "norm_mlp": "ln_2",
    "mlp/up": "mlp.mlp_up",
    "mlp/down": "mlp.mlp_down",
}


def block(
    width: int, heads: int, mlp: int, eps: float = 1e-5, qk_norm: bool = False
) -> BlockConfig:
    """The block both are made of; `qk_norm` is MosaicGPT's."""
    head_dim = width // heads
    return BlockConfig(
        width=width,
        mlp=mlp,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        norm="ln",
        eps=eps,
        gated=False,
        bias=False,
        q_scale=head_dim**-0.5,
        act="gelu",
        norm_bias=False,
        qk_norm=qk_norm,
        alibi=True,
    )


def names(
    config: BlockConfig, depth: int, prefix: str, spelling: dict[str, str] = MPT
) -> dict[str, pretrained.Entry]:
    """Our "embed/..." and "decoder/..." -> names of MPT, or of MOSAIC_GPT, behind `prefix`
    ("transformer.").
    """
    entry, plain, linear = pretrained.Entry, transforms.as_is, transforms.transposed
    layer, ours = f"{prefix}blocks.{{}}.", "decoder/layers/blocks/"
    table = {
        "embed/embedding": entry(f"{prefix}{spelling['table']}.weight", plain),
        "decoder/norm/scale": entry(f"{prefix}{spelling['norm']}.weight", plain),
        f"{ours}attn/o/kernel": entry(f"{layer}attn.out_proj.weight", linear, depth),
    }
    for i, name in enumerate("qkv"):
        table[f"{ours}attn/{name}/kernel"] = entry(
            f"{layer}attn.Wqkv.weight", transforms.fused(i, 3), depth
        )
    for name in ("norm_attn", "norm_mlp"):
        table[f"{ours}{name}/scale"] = entry(f"{layer}{spelling[name]}.weight", plain, depth)
    for name in ("mlp/up", "mlp/down"):
        table[f"{ours}{name}/kernel"] = entry(f"{layer}{spelling[name]}.weight", linear, depth)
    if config.qk_norm:
        for name in "qk":
            table[f"{ours}attn/{name}_norm/scale"] = entry(
                f"{layer}attn.{name}_ln.weight", plain, depth
            )
    return table


# Switches of MPT's config.json that would ask for another model; a key left out has the value
# wanted here.
SWITCHES: dict[str, tuple[Any, ...]] = {
    "no_bias": (True,),
    "logit_scale": (None,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "attn_config.alibi": (True,),
    "attn_config.alibi_bias_max": (8,),
    "attn_config.attn_type": ("multihead_attention",),
    "attn_config.prefix_lm": (False,),
    "attn_config.qk_ln": (False,),  # transformers ignores it; no released MPT sets it
}


def hf_block(body: dict[str, Any], where: str = "") -> BlockConfig:
    """The block that MPT's config.json describes; what is left out is as in transformers.

    Raises ValueError naming a switch (behind `where`) that is not as in the released models.
    """
    attention = body.get("attn_config") or {}
    for key, wanted in SWITCHES.items():
        name = key.removeprefix("attn_config.")
        pretrained.expect(
            f"{where}{key}", (body if name == key else attention).get(name, wanted[0]), wanted
        )
    width = body.get("d_model", 2048)
    plain = block(
        width,
        body.get("n_heads", 16),
        body.get("expansion_ratio", 4) * width,
        body.get("layer_norm_epsilon", 1e-5),
    )
    scale, clip = attention.get("softmax_scale"), float(attention.get("clip_qkv") or 0.0)
    return dataclasses.replace(
        plain, q_scale=plain.q_scale if scale is None else scale, clip_qkv=clip
    )


def mosaic_block(text: dict[str, Any]) -> BlockConfig:
    """The block that MosaicGPT's config.json describes: MPT's switches under older names, whose
    defaults are no ALiBi and biases.
    """
    attention: dict[str, Any] = {
        name: text[name]
        for name in ("prefix_lm", "alibi_bias_max", "softmax_scale")
        if name in text
    }
    attention |= {"alibi": text.get("alibi", False), "clip_qkv": text.get("attn_clip_qkv")}
    body = {
        "no_bias": text.get("no_bias", False),
        "logit_scale": text.get("logit_scale"),
        "attn_config": attention,
    }
    body |= {
        "d_model": text["d_model"],
        "n_heads": text["n_heads"],
        "expansion_ratio": text["mlp_ratio"],
    }
    return dataclasses.replace(hf_block(body, "text_config."), qk_norm=text["attn_qk_ln"])
