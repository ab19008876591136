"""LLaMA's block, under LLaVA-1.5, and its config.json."""

import dataclasses
from typing import Any

from vla_jax.models.transformer import BlockConfig
from vla_jax.weights import pretrained


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
        plain, rope_theta=rope.get("rope_theta") or body.get("rope_theta") or 1e4
    )
