"""OpenFlamingo against its formulas in torch, written apart from ours; every parameter, gates too,
is random.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import save_file
from torch.nn.functional import gelu, layer_norm

from tests.models.backbones.loading import from_pretrained
from vla_jax import params as flat
from vla_jax.models.backbones import flamingo
from vla_jax.models.cross_attention import GatedCrossAttention
from vla_jax.types import Backbone, Media

TOLERANCE = 1e-5
V, C, HEADS, DEPTH, LATENTS, CROSS = (
    24,
    36,
    6,
    4,
    5,
    (3, 8),
)  # 6 heads: not a power of two, ALiBi's other slopes
N, S, EVERY = 3, 7, 2
VISION = {
    "model_type": "clip_vision_model", "hidden_size": V, "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3, "image_size": 16, "patch_size": 8,
}  # fmt: skip
MOSAIC = {
    "model_type": "mosaic_gpt", "d_model": C, "n_heads": HEADS, "n_layers": DEPTH, "mlp_ratio": 4,
    "vocab_size": 50,
    "attn_qk_ln": True, "attn_clip_qkv": None, "alibi": True, "no_bias": True, "logit_scale": None,
}  # fmt: skip
BODY = {
    "model_type": "flamingo", "vision_config": VISION, "text_config": MOSAIC,
    "cross_attn_every_n_layers": EVERY,
    "perceiver_config": {"depth": 2, "heads": CROSS[0], "dim_head": CROSS[1], "latents": LATENTS},
}  # fmt: skip
Arrays = dict[str, torch.Tensor]


class Case(NamedTuple):
    """A folder, the inputs and what the reference makes of them."""

    folder: Path
    arrays: dict[str, np.ndarray]
    pixels: np.ndarray  # of two cameras, N each
    ids: np.ndarray
    seen: np.ndarray  # N S M
    features: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray


# ---------------------------------------------------------------------------------------- reference


def norm(p: Arrays, name: str, x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p.get(f"{name}.bias"), 1e-5)


def attention(q: Any, k: Any, v: Any, heads: int, bias: Any) -> torch.Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def feed_forward(p: Arrays, name: str, x: torch.Tensor) -> torch.Tensor:
    return gelu(norm(p, f"{name}.0", x) @ p[f"{name}.1.weight"].T) @ p[f"{name}.3.weight"].T


def perceiver(p: Arrays, tokens: torch.Tensor) -> torch.Tensor:
    x = p["perceiver.latents"].expand(len(tokens), -1, -1)
    for i in range(2):
        name = f"perceiver.layers.{i}"
        own = norm(p, f"{name}.0.norm_latents", x)
        both = torch.cat([norm(p, f"{name}.0.norm_media", tokens), own], 1)
        k, v = (both @ p[f"{name}.0.to_kv.weight"].T).chunk(2, -1)
        x = (
            x
            + attention(own @ p[f"{name}.0.to_q.weight"].T, k, v, CROSS[0], 0)
            @ p[f"{name}.0.to_out.weight"].T
        )
        x = x + feed_forward(p, f"{name}.1", x)
    return norm(p, "perceiver.norm", x)


def gated(
    p: Arrays, name: str, x: torch.Tensor, media: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    k, v = (media @ p[f"{name}.attn.to_kv.weight"].T).chunk(2, -1)
    bias = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None]
    out = attention(
        norm(p, f"{name}.attn.norm", x) @ p[f"{name}.attn.to_q.weight"].T, k, v, CROSS[0], bias
    )
    out = torch.where(seen.any(-1, keepdim=True), out, 0.0)
    x = x + p[f"{name}.attn_gate"].tanh() * (out @ p[f"{name}.attn.to_out.weight"].T)
    return x + p[f"{name}.ff_gate"].tanh() * feed_forward(p, f"{name}.ff", x)


def decoder(p: Arrays, ids: torch.Tensor, media: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    x = p["lang_encoder.transformer.wte.weight"][ids]
    slopes = torch.tensor(
        [2.0 ** -(8 * i / 8) for i in (2, 4, 6, 8, 1, 3)]
    )  # 6 of 8: the even ones, then the odd
    bias = slopes[:, None, None] * torch.arange(1 - S, 1.0)
    bias = bias.masked_fill(~torch.ones(S, S).tril().bool(), torch.finfo(torch.float32).min)
    for i in range(DEPTH):
        name = f"lang_encoder.transformer.blocks.{i}"
        if (i + 1) % EVERY == 0:
            x = gated(p, f"{name}.gated_cross_attn_layer", x, media, seen)
        q, k, v = (norm(p, f"{name}.ln_1", x) @ p[f"{name}.attn.Wqkv.weight"].T).chunk(3, -1)
        q, k = norm(p, f"{name}.attn.q_ln", q), norm(p, f"{name}.attn.k_ln", k)
        x = x + attention(q, k, v, HEADS, bias) @ p[f"{name}.attn.out_proj.weight"].T
        inside = gelu(norm(p, f"{name}.ln_2", x) @ p[f"{name}.mlp.mlp_up.weight"].T)
        x = x + inside @ p[f"{name}.mlp.mlp_down.weight"].T
    return norm(p, "lang_encoder.transformer.ln_f", x)


def shapes() -> dict[str, tuple[int, ...]]:
    """The arrays of OpenFlamingo and MosaicGPT, without CLIP's."""
    inner = CROSS[0] * CROSS[1]
    out: dict[str, tuple[int, ...]] = {"perceiver.latents": (LATENTS, V)}

    def norms(name: str, width: int, bias: bool = True) -> None:
        out.update({f"{name}.{leaf}": (width,) for leaf in ("weight", "bias")[: 1 + bias]})

    def cross(name: str, width: int, ff: str) -> None:
        out[f"{name}.to_q.weight"], out[f"{name}.to_out.weight"] = (inner, width), (width, inner)
        out[f"{name}.to_kv.weight"] = (2 * inner, V)
        norms(f"{ff}.0", width)
        out[f"{ff}.1.weight"], out[f"{ff}.3.weight"] = (4 * width, width), (width, 4 * width)

    for i in range(2):
        cross(f"perceiver.layers.{i}.0", V, f"perceiver.layers.{i}.1")
        norms(f"perceiver.layers.{i}.0.norm_media", V)
        norms(f"perceiver.layers.{i}.0.norm_latents", V)
    norms("perceiver.norm", V)
    out["lang_encoder.transformer.wte.weight"] = (50, C)
    norms("lang_encoder.transformer.ln_f", C, False)
    for i in range(DEPTH):
        name = f"lang_encoder.transformer.blocks.{i}"
        for leaf in ("ln_1", "ln_2", "attn.q_ln", "attn.k_ln"):
            norms(f"{name}.{leaf}", C, False)
        out[f"{name}.attn.Wqkv.weight"], out[f"{name}.attn.out_proj.weight"] = (3 * C, C), (C, C)
        out[f"{name}.mlp.mlp_up.weight"], out[f"{name}.mlp.mlp_down.weight"] = (
            (4 * C, C),
            (C, 4 * C),
        )
        if (i + 1) % EVERY == 0:
            name = f"{name}.gated_cross_attn_layer"
            cross(f"{name}.attn", C, f"{name}.ff")
            norms(f"{name}.attn.norm", C)
            out[f"{name}.attn_gate"] = out[f"{name}.ff_gate"] = (1,)
    return out


def write(folder: Path, arrays: dict[str, np.ndarray], **changes: Any) -> Path:
    folder.mkdir()
    save_file(
        {name: np.ascontiguousarray(x) for name, x in arrays.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(BODY | changes))
    return folder


def make_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    clip = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    rng = np.random.default_rng(0)
    arrays = {
        f"vision_encoder.{k.removeprefix('vision_model.')}": v.numpy()
        for k, v in clip.state_dict().items()
    }
    for name, shape in shapes().items():
        scale = 0.2 if len(shape) > 1 and "latents" not in name else 0.5
        gain = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        arrays[name] = (gain + scale * rng.normal(size=shape)).astype(np.float32)
    pixels = rng.integers(0, 256, (2 * N, 16, 16, 3)).astype(np.uint8)
    ids = rng.integers(0, 50, (N, S))
    seen = np.ones((N, S, 2 * LATENTS), bool)
    seen[1, :, LATENTS:] = False  # a camera that the dataset lacks
    seen[2, :3] = False  # tokens before the image
    p = {name: torch.tensor(x) for name, x in arrays.items()}
    mean, deviation = (
        torch.tensor(x)
        for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    with torch.no_grad():
        pixel_values = ((torch.tensor(pixels) / 255 - mean) / deviation).permute(0, 3, 1, 2)
        features = perceiver(p, clip(pixel_values=pixel_values).last_hidden_state[:, 1:])
        media = features.unflatten(0, (2, N)).transpose(0, 1).flatten(1, 2)
        hidden = decoder(p, torch.tensor(ids), media, torch.tensor(seen))
        logits = hidden @ p["lang_encoder.transformer.wte.weight"].T
    assert 0.3 < hidden.std() < 3
    folder = write(tmp_path_factory.mktemp("flamingo") / "whole", arrays)
    return Case(folder, arrays, pixels, ids, seen, features.numpy(), hidden.numpy(), logits.numpy())


# -------------------------------------------------------------------------------------------- tests


def make_loaded(case: Case) -> tuple[nnx.GraphDef, flat.Params]:
    return from_pretrained(flamingo, case.folder)


@pytest.fixture(scope="module")
def features(case: Case, loaded: Any) -> jax.Array:
    return jax.jit(lambda p, pixels: flat.merge(loaded[0], p).embed_image(pixels))(
        loaded[1], case.pixels
    )


Inputs = tuple[Any, Any, Any, Media]


@pytest.fixture(scope="module")
def inputs(case: Case, loaded: Any, features: jax.Array) -> Inputs:
    """Embedded text, causal mask, positions, media of both cameras."""
    x = loaded[1]["embed/embedding"][case.ids]
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((S, S), bool))[None], (N, S, S))
    positions = jnp.broadcast_to(jnp.arange(S)[None], (N, S))
    return x, mask, positions, Media(together(features), jnp.asarray(case.seen))


def together(features: jax.Array) -> jax.Array:
    return jnp.concatenate([features[:N], features[N:]], axis=1)


@functools.partial(jax.jit, static_argnames=("graphdef", "num_queries"))
def run(
    graphdef: nnx.GraphDef, params: flat.Params, inputs: Inputs, num_queries: int | None = None
) -> jax.Array:
    x, mask, positions, media = inputs
    return flat.merge(graphdef, params)(x, mask, positions, num_queries, media)


def rebuilt(
    graphdef: nnx.GraphDef, params: flat.Params, **changes: Any
) -> tuple[nnx.GraphDef, flat.Params]:
    """The same parameters, as far as they are asked for, in a model of a changed config."""
    config = dataclasses.replace(flat.merge(graphdef, params).config, **changes)
    changed, shapes, _ = flat.abstract(functools.partial(flamingo.Flamingo, config))
    return changed, {name: params[name] for name in shapes}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory)


@pytest.fixture(scope="module")
def loaded(case: Case) -> tuple[nnx.GraphDef, flat.Params]:
    return make_loaded(case)


def test_parity_with_the_formulas(
    case: Case, loaded: Any, features: jax.Array, inputs: Inputs
) -> None:
    model = flat.merge(*loaded)
    np.testing.assert_array_equal(model.embed_text(jnp.asarray(case.ids)), inputs[0])
    hidden = run(*loaded, inputs)
    errors = {
        "features": np.abs(features - case.features).max(),
        "hidden": np.abs(hidden - case.hidden).max(),
        "logits": np.abs(model.logits(hidden) - case.logits).max(),
    }
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.slow
def test_parity_sees_wrong_numbers(case: Case, loaded: Any, inputs: Inputs) -> None:
    graphdef, params = loaded
    block, media = flat.merge(graphdef, params).config.block, inputs[3]
    for name, changes in {
        "cross-attention elsewhere": {"every": 3},
        "no norm of queries and keys": {"block": dataclasses.replace(block, qk_norm=False)},
        "no ALiBi": {"block": dataclasses.replace(block, alibi=False)},
        "tanh GELU": {"block": dataclasses.replace(block, act="gelu_tanh")},
    }.items():
        out = run(*rebuilt(graphdef, params, **changes), inputs)
        assert np.abs(out - case.hidden).max() > 10 * TOLERANCE, name
    for gate in ("attn_gate", "mlp_gate"):
        out = run(graphdef, {**params, f"gated/0/{gate}": jnp.zeros(1)}, inputs)
        assert np.abs(out - case.hidden).max() > 100 * TOLERANCE, gate
    tokens = media.tokens - media.tokens.mean(-1, keepdims=True)
    normed = media._replace(tokens=tokens / jnp.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-5))
    last = media._replace(mask=media.mask & (jnp.arange(2 * LATENTS) >= LATENTS)[None, None])
    for name, changed in {"normed media": normed, "only the last camera": last}.items():
        out = run(graphdef, params, (*inputs[:3], changed))
        assert np.abs(out - case.hidden).max() > 100 * TOLERANCE, name


@pytest.mark.slow
def test_readouts_and_decoding_are_the_whole(loaded: Any, inputs: Inputs) -> None:
    graphdef, params = loaded
    full = run(graphdef, params, inputs)
    np.testing.assert_allclose(
        run(graphdef, params, inputs, num_queries=2), full[:, -2:], atol=1e-6, rtol=0
    )

    x, mask, positions, media = inputs
    decode = jax.jit(lambda p, *args: flat.merge(graphdef, p).decode(*args))
    cache, parts = flat.merge(graphdef, params).cache(N, S), []
    for i in range(S):
        at = (slice(None), slice(i, i + 1))
        out, cache = decode(
            params, x[at], mask[at], positions[at], cache, media._replace(mask=media.mask[at])
        )
        parts.append(out)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_every_parameter_is_trained(case: Case, loaded: Any, inputs: Inputs) -> None:
    """From the pixels on; and by the same gradient when the backward pass computes the layers
    again, and when they stand in no loop.
    """
    graphdef, params = loaded

    def value(params: flat.Params, graphdef: nnx.GraphDef, pixels: Any) -> jax.Array:
        model, media = flat.merge(graphdef, params), inputs[3]
        if pixels is not None:
            media = media._replace(tokens=together(model.embed_image(pixels)))
        return (model(model.embed_text(jnp.asarray(case.ids)), *inputs[1:3], 2, media) ** 2).sum()

    gradient = jax.jit(jax.grad(value), static_argnums=1)
    plain = gradient(params, graphdef, jnp.asarray(case.pixels))
    assert [name for name, part in plain.items() if not np.any(part)] == []
    for changes in ({"remat": "full"}, {"layers": "unroll"}):
        again = gradient(params, rebuilt(graphdef, params, **changes)[0], None)
        for name in (name for name in params if not name.startswith(("vision", "perceiver"))):
            np.testing.assert_allclose(again[name], plain[name], rtol=1e-4, atol=1e-3, err_msg=name)


def test_a_masked_camera_and_blind_tokens(loaded: Any, inputs: Inputs) -> None:
    media, whole = inputs[3], run(*loaded, inputs)
    other = media._replace(tokens=media.tokens.at[1, LATENTS:].add(7.0).at[2].add(7.0))
    changed = run(*loaded, (*inputs[:3], other))
    np.testing.assert_array_equal(changed[:2], whole[:2])  # row 1 lacks that camera
    # Before the image: exactly nothing of it.
    np.testing.assert_array_equal(changed[2, :3], whole[2, :3])
    assert np.abs(changed[2, 3:] - whole[2, 3:]).max(axis=1).min() > 1e-4


def test_a_token_that_sees_nothing_gets_nothing() -> None:
    config = flamingo.CONFIGS["tiny"]
    graphdef, params = flat.split(
        GatedCrossAttention(config.width, config.vision.width, config.resampler, nnx.Rngs(0))
    )
    block = jax.jit(lambda p, *args: flat.merge(graphdef, p)(*args))
    rng = np.random.default_rng(0)
    x, media = (jnp.asarray(rng.normal(size=(1, size, 64)), jnp.float32) for size in (2, 3))
    seen = jnp.zeros((1, 2, 3), bool).at[0, 1, 2].set(True)
    # The gates start shut.
    np.testing.assert_array_equal(block(params, x, Media(media, seen)), x)
    out = block(params | {"attn_gate": jnp.ones(1)}, x, Media(media, seen))
    np.testing.assert_array_equal(out[0, 0], x[0, 0])
    assert np.abs(out[0, 1] - x[0, 1]).max() > 0.1


def test_it_meets_the_protocol(loaded: Any) -> None:
    model = flat.merge(*loaded)
    assert isinstance(model, Backbone)
    assert (model.width, model.visual_width, model.tokens_per_image) == (C, V, LATENTS)


def test_images_must_be_given(loaded: Any) -> None:
    model = flat.merge(*loaded)
    with pytest.raises(ValueError, match="flamingo: expected media"):
        model(jnp.zeros((1, 2, C)), jnp.ones((1, 2, 2), bool), jnp.zeros((1, 2), jnp.int32))
