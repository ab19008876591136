"""Our parameters -> arrays of an openpi checkpoint of pi0 or pi0.5, by its JAX names or by those of
its conversion to PyTorch (examples/convert_jax_model_to_pytorch.py there).

JAX: `PaliGemma/img` and `PaliGemma/llm` are big_vision's, layers stacked, with the expert's arrays
beside the backbone's under names that end in _1; projections of actions, time and state stand
outside. PyTorch: two models of transformers and the same projections.
"""

from typing import Any

from vla_jax.models.backbones import paligemma
from vla_jax.models.heads.expert import ExpertConfig
from vla_jax.weights import transforms
from vla_jax.weights.pretrained import Entry

BACKBONE = "backbone/"
BLOCKS = "head/layers/blocks/"


def jax_names(sizes: paligemma.PaliGemmaConfig, head: ExpertConfig) -> dict[str, Entry]:
    """Of a checkpoint that openpi trained."""
    table = {
        BACKBONE + name: entry._replace(source=f"PaliGemma/{entry.source}")
        for name, entry in paligemma.npz_names(sizes).items()
    }
    for ours, theirs in _projections(head).items():
        for leaf in ("kernel", "bias"):
            table[f"head/{ours}/{leaf}"] = Entry(f"{theirs}/{leaf}", transforms.as_is)
    layers, plain = "PaliGemma/llm/layers/", transforms.as_is
    if head.block.heads == head.block.kv_heads:
        whole = f"{layers}attn/qkv_einsum_1/w"
        attention = {x: Entry(whole, transforms.einsum_part(i)) for i, x in enumerate("qkv")}
    else:
        whole = f"{layers}attn/kv_einsum_1/w"
        attention = {x: Entry(whole, transforms.einsum_part(i)) for i, x in enumerate("kv")}
        attention["q"] = Entry(f"{layers}attn/q_einsum_1/w", transforms.einsum_heads)
    attention["o"] = Entry(f"{layers}attn/attn_vec_einsum_1/w", transforms.merge_first)
    table |= {f"{BLOCKS}attn/{name}/kernel": entry for name, entry in attention.items()}
    gating = f"{layers}mlp_1/gating_einsum"
    table |= {
        f"{BLOCKS}mlp/gate/kernel": Entry(gating, transforms.part(0)),
        f"{BLOCKS}mlp/up/kernel": Entry(gating, transforms.part(1)),
        f"{BLOCKS}mlp/down/kernel": Entry(f"{layers}mlp_1/linear", plain),
    }
    norms = {
        f"{BLOCKS}norm_attn": f"{layers}pre_attention_norm_1",
        f"{BLOCKS}norm_mlp": f"{layers}pre_ffw_norm_1",
        "head/norm": "PaliGemma/llm/final_norm_1",
    }
    for ours, theirs in norms.items():
        if head.own_block.adaptive:
            for leaf in ("kernel", "bias"):
                table[f"{ours}/modulation/{leaf}"] = Entry(f"{theirs}/Dense_0/{leaf}", plain)
        else:
            table[f"{ours}/scale"] = Entry(f"{theirs}/scale", plain)
    return table


def torch_names(sizes: paligemma.PaliGemmaConfig, head: ExpertConfig) -> dict[str, Entry]:
    """Of its conversion, after pretrained.normalise and without the backbone's prefix."""
    linear, plain = transforms.transposed, transforms.as_is
    table = {BACKBONE + name: entry for name, entry in paligemma.hf_names(sizes).items()}
    words = f"{BACKBONE}embed/embedding"  # Hugging Face's PaliGemma has rows more
    table[words] = table[words]._replace(transform=transforms.pad_rows(sizes.vocab))
    for ours, theirs in _projections(head).items():
        table[f"head/{ours}/kernel"] = Entry(f"{theirs}.weight", linear)
        table[f"head/{ours}/bias"] = Entry(f"{theirs}.bias", plain)
    model, depth = "gemma_expert.model.", head.depth
    layer = f"{model}layers.{{}}."
    kernels: dict[str, Any] = {f"attn/{x}": f"self_attn.{x}_proj" for x in "qkvo"}
    kernels |= {f"mlp/{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    for ours, theirs in kernels.items():
        table[f"{BLOCKS}{ours}/kernel"] = Entry(f"{layer}{theirs}.weight", linear, depth)
    norms = (
        (f"{BLOCKS}norm_attn", f"{layer}input_layernorm", depth),
        (f"{BLOCKS}norm_mlp", f"{layer}post_attention_layernorm", depth),
        ("head/norm", f"{model}norm", 0),
    )
    for ours, theirs, layers in norms:
        if head.own_block.adaptive:
            table[f"{ours}/modulation/kernel"] = Entry(f"{theirs}.dense.weight", linear, layers)
            table[f"{ours}/modulation/bias"] = Entry(f"{theirs}.dense.bias", plain, layers)
        else:
            table[f"{ours}/scale"] = Entry(f"{theirs}.weight", plain, layers)
    return table


def _projections(head: ExpertConfig) -> dict[str, str]:
    """Our name of a linear layer outside of the blocks -> theirs."""
    time = "time_mlp" if head.own_block.adaptive else "action_time_mlp"
    names = {
        "action_in": "action_in_proj",
        "action_out": "action_out_proj",
        "time_in": f"{time}_in",
        "time_out": f"{time}_out",
    }
    return names | ({"state": "state_proj"} if head.state == "expert" else {})
