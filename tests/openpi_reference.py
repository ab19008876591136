"""openpi's pi0 and pi0.5 by hand, in numpy: arrays under the names that its JAX code gives them,
and what its model computes with them, from the formulas: one joint attention of backbone and expert
over all tokens with a mask of blocks, no cache, time 1 is noise, chunks and states padded.

Axes: b examples, n prefix tokens, s state and action tokens, k chunk step, a numbers of an action,
l layers, g heads, j key/value heads, e head dim.
"""

from typing import NamedTuple

import numpy as np

from vla_jax.models.vision import VisionConfig

PADDED, CHUNK = 32, 4  # numbers of an action and of a state in every checkpoint; steps of ours


class Sizes(NamedTuple):
    """Of one of the two transformers."""

    width: int
    mlp: int


BACKBONE, EXPERT = Sizes(64, 256), Sizes(32, 64)
DEPTH, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2, 4, 1, 16, 1600
VISION = VisionConfig(image_size=32, patch=8, width=64, mlp=256, depth=2, heads=4)

Arrays = dict[str, np.ndarray]


def shapes(pi05: bool) -> dict[str, tuple[int, ...]]:
    """Of every array of a tiny checkpoint."""
    out: dict[str, tuple[int, ...]] = {}
    w, h = VISION.width, EXPERT.width
    img, block = "PaliGemma/img/", "PaliGemma/img/Transformer/encoderblock/"
    out |= {
        f"{img}embedding/kernel": (VISION.patch, VISION.patch, 3, w),
        f"{img}embedding/bias": (w,),
        f"{img}pos_embedding": (1, (VISION.image_size // VISION.patch) ** 2, w),
        f"{img}Transformer/encoder_norm/scale": (w,),
        f"{img}Transformer/encoder_norm/bias": (w,),
        f"{img}head/kernel": (w, BACKBONE.width),
        f"{img}head/bias": (BACKBONE.width,),
    }
    depth, heads = VISION.depth, VISION.heads
    for name in ("LayerNorm_0", "LayerNorm_1"):
        out |= {f"{block}{name}/{leaf}": (depth, w) for leaf in ("scale", "bias")}
    out |= {
        f"{block}MlpBlock_0/Dense_0/kernel": (depth, w, VISION.mlp),
        f"{block}MlpBlock_0/Dense_0/bias": (depth, VISION.mlp),
        f"{block}MlpBlock_0/Dense_1/kernel": (depth, VISION.mlp, w),
        f"{block}MlpBlock_0/Dense_1/bias": (depth, w),
    }
    attention = f"{block}MultiHeadDotProductAttention_0/"
    for name in ("query", "key", "value"):
        out[f"{attention}{name}/kernel"] = (depth, w, heads, w // heads)
        out[f"{attention}{name}/bias"] = (depth, heads, w // heads)
    out[f"{attention}out/kernel"] = (depth, heads, w // heads, w)
    out[f"{attention}out/bias"] = (depth, w)
    out["PaliGemma/llm/embedder/input_embedding"] = (VOCAB, BACKBONE.width)
    for end, sizes in (("", BACKBONE), ("_1", EXPERT)):
        layers = "PaliGemma/llm/layers/"
        out |= {
            f"{layers}attn/q_einsum{end}/w": (DEPTH, HEADS, sizes.width, HEAD_DIM),
            f"{layers}attn/kv_einsum{end}/w": (DEPTH, 2, KV_HEADS, sizes.width, HEAD_DIM),
            f"{layers}attn/attn_vec_einsum{end}/w": (DEPTH, HEADS, HEAD_DIM, sizes.width),
            f"{layers}mlp{end}/gating_einsum": (DEPTH, 2, sizes.width, sizes.mlp),
            f"{layers}mlp{end}/linear": (DEPTH, sizes.mlp, sizes.width),
        }
        norms = {
            f"{layers}pre_attention_norm{end}": (DEPTH,),
            f"{layers}pre_ffw_norm{end}": (DEPTH,),
            f"PaliGemma/llm/final_norm{end}": (),
        }
        for norm, lead in norms.items():
            if pi05 and end:
                out[f"{norm}/Dense_0/kernel"] = (*lead, h, 3 * h)
                out[f"{norm}/Dense_0/bias"] = (*lead, 3 * h)
            else:
                out[f"{norm}/scale"] = (*lead, sizes.width)
    linear = {"action_in_proj": (PADDED, h), "action_out_proj": (h, PADDED)}
    if pi05:
        linear |= {"time_mlp_in": (h, h), "time_mlp_out": (h, h)}
    else:
        linear |= {"state_proj": (PADDED, h)}
        linear |= {"action_time_mlp_in": (2 * h, h), "action_time_mlp_out": (h, h)}
    for name, size in linear.items():
        out[f"{name}/kernel"], out[f"{name}/bias"] = size, size[1:]
    return out


def arrays(pi05: bool) -> Arrays:
    """A tiny checkpoint of random numbers, none of them at its initial value."""
    rng, out = np.random.default_rng(0), {}
    for name, shape in shapes(pi05).items():
        size = 0.3 if len(shape) < 2 or name.endswith(("bias", "scale")) else shape[-2] ** -0.5
        out[name] = (size * rng.standard_normal(shape)).astype(np.float32)
    return out


def velocity(
    p: Arrays,
    prefix: tuple[np.ndarray, np.ndarray],
    state: np.ndarray | None,
    x: np.ndarray,
    time: np.ndarray,
    there: np.ndarray,
) -> np.ndarray:
    """v_t [b k a] of noisy actions x at times [b]: prefix tokens [b n c] with their mask [b n], the
    state [b 32] of pi0, and which chunk steps are there [b k].
    """
    tokens, valid = prefix
    h, k = EXPERT.width, x.shape[1]
    period = 4e-3 * (4.0 / 4e-3) ** np.linspace(0, 1, h // 2)
    angle = time[:, None] * 2 * np.pi / period
    told = np.concatenate([np.sin(angle), np.cos(angle)], -1)  # b h
    noisy, condition = linear(p, "action_in_proj", x), None
    if state is None:
        condition = swish(linear(p, "time_mlp_out", swish(linear(p, "time_mlp_in", told))))
        suffix, starts, own = noisy, [1] + [0] * (k - 1), there
    else:
        both = np.concatenate([noisy, np.repeat(told[:, None], k, 1)], -1)
        both = linear(p, "action_time_mlp_out", swish(linear(p, "action_time_mlp_in", both)))
        suffix = np.concatenate([linear(p, "state_proj", state)[:, None], both], 1)
        starts = [1, 1] + [0] * (k - 1)
        own = np.concatenate([np.ones_like(there[:, :1]), there], 1)
    # Whose block is not later than one's own is seen, where it is there.
    number = np.cumsum([0] * tokens.shape[1] + starts)
    real = np.concatenate([valid, own], 1)
    mask = (number[None, None] <= number[None, :, None]) & real[:, None]
    places = np.concatenate([np.cumsum(valid, 1) - 1, _behind(valid, suffix.shape[1])], 1)
    streams = [tokens.astype(np.float64), suffix]
    for layer in range(DEPTH):
        streams = _block(p, layer, streams, condition, mask, places)
    out, _ = _norm(p, "PaliGemma/llm/final_norm_1", None, streams[1], condition)
    return linear(p, "action_out_proj", out[:, -k:])


def sample(
    p: Arrays,
    prefix: tuple[np.ndarray, np.ndarray],
    state: np.ndarray | None,
    noise: np.ndarray,
    there: np.ndarray | None = None,
) -> np.ndarray:
    """Actions [b k a]: ten Euler steps from time 1 to 0, each a whole forward pass. `there` [b a]:
    the numbers that are not are 0 at every time.
    """
    keep = 1.0 if there is None else there[:, None]
    x, time, dt = noise * keep, 1.0, -0.1
    everywhere = np.ones(noise.shape[:2], bool)
    while time >= -dt / 2:
        at = np.full(len(x), time)
        x = (x + dt * velocity(p, prefix, state, x, at, everywhere)) * keep
        time += dt
    return x


def linear(p: Arrays, name: str, x: np.ndarray) -> np.ndarray:
    """A projection outside of the transformers."""
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def swish(x: np.ndarray) -> np.ndarray:
    """x times its sigmoid."""
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    """The tanh form."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _behind(valid: np.ndarray, count: int) -> np.ndarray:
    """Positions of `count` tokens behind those that are valid."""
    return valid.sum(1, keepdims=True) + np.arange(count)[None]


def _norm(p, name, layer, x, condition):
    y = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
    if condition is None:
        scale = p[f"{name}/scale"] if layer is None else p[f"{name}/scale"][layer]
        return y * (1 + scale), 1.0
    kernel, bias = p[f"{name}/Dense_0/kernel"], p[f"{name}/Dense_0/bias"]
    if layer is not None:
        kernel, bias = kernel[layer], bias[layer]
    scale, shift, gate = np.split((condition @ kernel + bias)[:, None], 3, -1)
    return y * (1 + scale) + shift, gate


def _rope(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    angle = places[:, :, None, None] / 10_000 ** (np.arange(half) / half)
    first, second = np.split(x, 2, -1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _block(p, layer, streams, condition, mask, places):
    """Backbone's tokens and the expert's through a layer: own weights, one attention."""
    where, ends = "PaliGemma/llm/layers/", ("", "_1")
    conditions = (None, condition)
    q, k, v, gates = [], [], [], []
    for x, end, told in zip(streams, ends, conditions, strict=True):
        y, gate = _norm(p, f"{where}pre_attention_norm{end}", layer, x, told)
        q.append(np.einsum("btd,ndh->btnh", y, p[f"{where}attn/q_einsum{end}/w"][layer]))
        kv = np.einsum("bsd,ckdh->cbskh", y, p[f"{where}attn/kv_einsum{end}/w"][layer])
        k.append(kv[0])
        v.append(kv[1])
        gates.append(gate)
    q, k, v = (np.concatenate(each, 1) for each in (q, k, v))
    q, k = _rope(q, places) * HEAD_DIM**-0.5, _rope(k, places)
    b, s = q.shape[:2]
    q = q.reshape(b, s, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)
    scores = np.einsum("btjge,bsje->bjgts", q, k)
    scores = np.where(mask[:, None, None], scores, -2.4e38)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    weights = scores / scores.sum(-1, keepdims=True)
    out = np.einsum("bjgts,bsje->btjge", weights, v).reshape(b, s, HEADS, HEAD_DIM)
    n = streams[0].shape[1]
    made = []
    for x, own, end, told, gate in zip(
        streams, (out[:, :n], out[:, n:]), ends, conditions, gates, strict=True
    ):
        y = np.einsum("btnh,nhd->btd", own, p[f"{where}attn/attn_vec_einsum{end}/w"][layer])
        x = x + y * gate
        y, gate = _norm(p, f"{where}pre_ffw_norm{end}", layer, x, told)
        gating = p[f"{where}mlp{end}/gating_einsum"][layer]
        y = (gelu(y @ gating[0]) * (y @ gating[1])) @ p[f"{where}mlp{end}/linear"][layer]
        made.append(x + y * gate)
    return made
