"""LLaMA's block, under LLaVA-1.5 and SmolVLM2, its config.json and the names of its weights."""

import dataclasses
from typing import Any

from vla_jax.models.transformer import BlockConfig
from vla_jax.weights import pretrained, transforms


def block(
    width: int, mlp: int, heads: int, kv_heads: int, head_dim: int, eps: float = 1e-5
) -> BlockConfig:
    """LLaMA's block (arXiv 2302.13971)."""
    return BlockConfig(
        width=width,
        mlp=mlp,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm="rms",
        eps=eps,
        gated=True,
        bias=False,
        q_scale=head_dim**-0.5,
        act="silu",
        rope_theta=1e4,
    )


def hf_block(body: dict[str, Any]) -> BlockConfig:
    """The block that the text_config of a config.json describes. Raises ValueError naming what is
    not ours.
    """
    expect, where = pretrained.expect, "text_config."
    expect(f"{where}hidden_act", body.get("hidden_act", "silu"), ("silu",))
    for key in ("attention_bias", "mlp_bias"):
        expect(f"{where}{key}", body.get(key, False), (False,))
    rope = (body.get("rope_scaling") or {}) | (body.get("rope_parameters") or {})
    expect(
        f"{where}rope_type", rope.get("rope_type") or rope.get("type") or "default", ("default",)
    )
    width, heads = body.get("hidden_size", 4096), body.get("num_attention_heads", 32)
    kv_heads, head_dim = (
        body.get("num_key_value_heads") or heads,
        body.get("head_dim") or width // heads,
    )
    mlp, eps = body.get("intermediate_size", 11008), body.get("rms_norm_eps", 1e-6)
    plain = block(width, mlp, heads, kv_heads, head_dim, eps)
    return dataclasses.replace(
        plain, rope_theta=float(rope.get("rope_theta") or body.get("rope_theta") or 1e4)
    )


def names(depth: int, prefix: str) -> dict[str, pretrained.Entry]:
    """Our parameters of the token table and the decoder -> transformers' names behind `prefix`."""
    entry, plain, linear = pretrained.Entry, transforms.as_is, transforms.transposed
    table = {
        "embed/embedding": entry(f"{prefix}embed_tokens.weight", plain),
        "decoder/norm/scale": entry(f"{prefix}norm.weight", plain),
    }
    layer, ours = f"{prefix}layers.{{}}.", "decoder/layers/blocks/"
    pairs = [(f"attn/{x}", f"self_attn.{x}_proj") for x in "qkvo"]
    pairs += [(f"mlp/{x}", f"mlp.{x}_proj") for x in ("gate", "up", "down")]
    for name, theirs in pairs:
        table[f"{ours}{name}/kernel"] = entry(f"{layer}{theirs}.weight", linear, depth)
    norms = {"norm_attn": "input_layernorm", "norm_mlp": "post_attention_layernorm"}
    for name, theirs in norms.items():
        table[f"{ours}{name}/scale"] = entry(f"{layer}{theirs}.weight", plain, depth)
    return table
