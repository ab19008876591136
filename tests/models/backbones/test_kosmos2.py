"""Kosmos-2 against transformers, with every parameter jittered: default initialisation
hides bugs.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import Kosmos2Config as HFConfig
from transformers import Kosmos2ForConditionalGeneration

from tests.fakes import dense_by_hand, random_frame_mask
from tests.models.backbones.loading import from_pretrained
from vla_jax import params as flat
from vla_jax.models import transformer
from vla_jax.models.attention import attend, sinusoid
from vla_jax.models.backbones import kosmos2
from vla_jax.models.vision import CLIP_PIXELS

IMAGE, TEXT, BATCH = 4, 7, 3  # tokens of an image (latents) and of the text behind it
PAD, WIDTH, DEPTH = 1, 48, 3
TOLERANCE = 1e-5
KINDS = ("ids, padded right", "ids, padded left", "embeddings, padded left")


class Case(NamedTuple):
    """A reference output and the inputs it came from."""

    pixels: np.ndarray
    ids: np.ndarray
    at_image: np.ndarray  # where the image's embeddings stand
    valid: np.ndarray
    positions: np.ndarray
    features: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray


class Saved(NamedTuple):
    """The reference model, the folder it was saved to, and ours loaded from there."""

    reference: Any
    folder: Path
    graphdef: nnx.GraphDef
    params: flat.Params


def make_saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    text = {
        "embed_dim": WIDTH, "ffn_dim": 96, "layers": DEPTH, "attention_heads": 4, "vocab_size": 120,
        "max_position_embeddings": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    config = HFConfig(text_config=text, vision_config=vision, latent_query_num=IMAGE)
    reference, folder = (
        Kosmos2ForConditionalGeneration(config).eval(),
        tmp_path_factory.mktemp("kosmos2"),
    )
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    reference.save_pretrained(folder)
    return Saved(reference, folder, *from_pretrained(kosmos2, folder))


def make_case(model: Any, kind: str) -> Case:
    rng = np.random.default_rng(KINDS.index(kind))
    pixels = rng.integers(0, 256, (BATCH, 28, 28, 3)).astype(np.uint8)
    ids = rng.integers(3, 110, (BATCH, 1 + IMAGE + TEXT))
    at_image, valid = np.zeros(ids.shape, bool), np.ones(ids.shape, bool)
    at_image[:, 1 : 1 + IMAGE] = True
    for row, pads in enumerate((0, 2, 4)):
        valid[row, ids.shape[1] - pads :] = False
        if kind.endswith("left"):
            valid[row], at_image[row] = np.roll(valid[row], pads), np.roll(at_image[row], pads)
    ids[~valid] = PAD
    # From ids pads are skipped; embeddings are counted from the first one on.
    positions = np.arange(ids.shape[1])[None].repeat(BATCH, 0)
    if kind.startswith("ids"):
        positions = np.maximum(valid.cumsum(1) - 1, 0)
    mean, deviation = (np.asarray(x) for x in CLIP_PIXELS)
    scaled = torch.tensor(
        ((pixels / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
    )
    attention = torch.tensor(valid.astype(int))
    with torch.no_grad():
        out = model(
            pixel_values=scaled, input_ids=torch.tensor(ids), attention_mask=attention,
            image_embeds_position_mask=torch.tensor(at_image.astype(int)),
            output_hidden_states=True,
        )  # fmt: skip
        features = out.image_embeds
        if kind.startswith("embeddings"):
            embeds = model.text_model.model.embed_tokens(torch.tensor(ids))
            embeds[torch.tensor(at_image)] = features.reshape(-1, WIDTH)
            out = model.text_model(
                inputs_embeds=embeds, attention_mask=attention, output_hidden_states=True
            )
    return Case(
        pixels,
        ids,
        at_image,
        valid,
        positions,
        features.numpy(),
        out.hidden_states[-1].numpy(),
        out.logits.numpy(),
    )


@pytest.fixture(scope="module")
def cases(saved: Saved) -> dict[str, Case]:
    return {kind: make_case(saved.reference, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def case(cases: dict[str, Case]) -> Case:
    """The one that every mutation is tried on."""
    return cases["ids, padded left"]


def causal(case: Case) -> np.ndarray:
    at = np.arange(case.ids.shape[1])
    return (at[:, None] >= at)[None] & case.valid[:, None, :]


def see(graphdef: nnx.GraphDef, params: flat.Params, pixels: Any) -> Any:
    """The image features."""
    return flat.merge(graphdef, params).embed_image(pixels)


def read(
    graphdef: nnx.GraphDef, params: flat.Params, case: Case, at_image: Any, mask: Any
) -> tuple[Any, Any]:
    """Hidden states and logits of a sequence that holds the case's image features."""
    model = flat.merge(graphdef, params)
    x = model.embed_text(case.ids).at[at_image].set(case.features.reshape(-1, WIDTH))
    hidden = model(x, mask, case.positions)
    return hidden, model.logits(hidden)


compiled_see, compiled_read = (jax.jit(function, static_argnums=0) for function in (see, read))


def seen(case: Case, saved: Saved, run: Any = compiled_see) -> float:
    """The features' largest difference from the reference."""
    return float(np.abs(run(saved.graphdef, saved.params, case.pixels) - case.features).max())


def said(
    case: Case, saved: Saved, mask: Any = None, run: Any = compiled_read
) -> tuple[float, float]:
    """The largest differences of hidden states and logits from the reference, over valid
    positions.
    """
    mask = causal(case) if mask is None else mask
    hidden, logits = run(saved.graphdef, saved.params, case, np.nonzero(case.at_image), mask)
    pairs = ((hidden, case.hidden), (logits, case.logits))
    first, second = (float(np.abs(ours - theirs)[case.valid].max()) for ours, theirs in pairs)
    return first, second


def rebuilt(saved: Saved, **changes: Any) -> Saved:
    """The same parameters, or those that are left, in a model of a changed config."""
    config = dataclasses.replace(flat.merge(saved.graphdef, saved.params).config, **changes)
    graphdef, shapes, _ = flat.abstract(functools.partial(_build, config))
    params = {name: value for name, value in saved.params.items() if name in shapes}
    return saved._replace(graphdef=graphdef, params=params)


def _build(config: kosmos2.Kosmos2Config, rngs: nnx.Rngs) -> kosmos2.Kosmos2:
    return kosmos2.Kosmos2(config, rngs)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return make_saved(tmp_path_factory)


@pytest.mark.parametrize("kind", KINDS)
def test_parity_with_transformers(kind: str, cases: dict[str, Case], saved: Saved) -> None:
    errors = (seen(cases[kind], saved), *said(cases[kind], saved))
    assert max(errors) < TOLERANCE, errors


def test_positions_skip_pads_from_ids_and_count_them_from_embeddings(
    cases: dict[str, Case], saved: Saved
) -> None:
    left = cases["ids, padded left"]
    counted = left._replace(positions=cases["embeddings, padded left"].positions)
    assert max(said(counted, saved)) > TOLERANCE


# -------------------------------------------------------------------------------------- what parity
# sees if it is wrong


def block(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Changes the block that a config gives."""
    original = kosmos2.Kosmos2Config.block.fget
    changed = property(lambda config: dataclasses.replace(original(config), **changes))
    monkeypatch.setattr(kosmos2.Kosmos2Config, "block", changed)


def without_latents(
    q: Any, k: Any, v: Any, mask: Any, softcap: float = 0.0, bias: Any = None
) -> Any:
    """Attention that leaves the latents out of the keys of the pooling."""
    pooled = mask.shape[1] != mask.shape[2]
    return attend(q, k, v, mask.at[:, :, -IMAGE:].set(False) if pooled else mask, softcap, bias)


def activation(name: str, other: str) -> Any:
    return lambda patch: patch.setitem(
        transformer.ACTIVATIONS, name, transformer.ACTIVATIONS[other]
    )


WRONG_RULES: dict[str, Any] = {
    "image: quick gelu": activation("quick_gelu", "gelu"),
    "image: score scale": lambda patch: block(patch, q_scale=1.0),
    "image: unit length": lambda patch: patch.setattr(kosmos2, "unit", lambda x: x),
    "image: latents in the keys": lambda patch: patch.setattr(
        transformer, "attend", without_latents
    ),
    "gelu": activation("gelu", "gelu_tanh"),
    "sub norms": lambda patch: block(patch, sub_norms=False),
    "score scale": lambda patch: block(patch, q_scale=1.0),
    "eps": lambda patch: block(patch, eps=1e-6),
    "first position": lambda patch: patch.setattr(kosmos2, "FIRST_POSITION", 1),
    "positions": lambda patch: patch.setattr(kosmos2, "placed", lambda x, at: x * WIDTH**0.5),
    "scale": lambda patch: patch.setattr(
        kosmos2, "placed", lambda x, at: x + sinusoid(at + 2, WIDTH)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG_RULES)
def test_parity_sees_a_wrong_rule(
    name: str, case: Case, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRONG_RULES[name](monkeypatch)
    function = see if name.startswith("image") else read
    fresh = jax.jit(
        lambda *args: function(*args), static_argnums=0
    )  # so that what is patched has an effect
    wrong = rebuilt(saved)
    error = seen(case, wrong, fresh) if function is see else max(said(case, wrong, run=fresh))
    assert error > TOLERANCE


@pytest.mark.parametrize("changes", [{"class_token": False}, {"final_norm": False}], ids=str)
def test_parity_sees_a_wrong_tower(changes: dict[str, Any], case: Case, saved: Saved) -> None:
    vision = dataclasses.replace(flat.merge(saved.graphdef, saved.params).config.vision, **changes)
    assert seen(case, rebuilt(saved, vision=vision)) > TOLERANCE


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("vision/norm/bias", lambda x: x + 1e-3 * jnp.arange(x.shape[0])),
        ("vision/class_token", lambda x: -x),
        ("projector/latents", lambda x: jnp.roll(x, 1, axis=0)),
        ("projector/attn/k/kernel", lambda x: x.T),
        ("decoder/norm/scale", lambda x: x - 1),
        ("decoder/layers/blocks/attn/sub_norm/scale", lambda x: x[::-1]),
        ("decoder/layers/blocks/mlp/sub_norm/bias", lambda x: x + 1e-3),
        ("decoder/layers/blocks/norm_mlp/scale", lambda x: x * 1.001),
        ("embed/embedding", lambda x: x * WIDTH**0.5),
    ],
)
def test_parity_sees_a_wrong_array(where: str, change: Any, case: Case, saved: Saved) -> None:
    wrong = saved._replace(params={**saved.params, where: change(saved.params[where])})
    assert max(seen(case, wrong), *said(case, wrong)) > TOLERANCE


def test_parity_sees_a_bidirectional_mask(case: Case, saved: Saved) -> None:
    everything = case.valid[:, None, :].repeat(case.ids.shape[1], axis=1)
    assert max(said(case, saved, everything)) > TOLERANCE


# --------------------------------------------------------------------------------------- other ways
# to the same numbers

FRAME, FRAMES = 4, 2
LENGTH = FRAME * FRAMES


def run(
    graphdef: nnx.GraphDef,
    params: flat.Params,
    x: Any,
    mask: Any,
    positions: Any,
    num_queries: Any = None,
) -> Any:
    return flat.merge(graphdef, params)(x, mask, positions, num_queries)


compiled_run = jax.jit(run, static_argnums=(0, 5))


def run_inputs() -> tuple[Any, Any, Any]:
    """A random sequence, its causal mask and positions."""
    x = jax.random.normal(jax.random.key(0), (2, LENGTH, WIDTH))
    mask = np.tril(np.ones((LENGTH, LENGTH), bool))[None].repeat(2, axis=0)
    return x, jnp.asarray(mask), jnp.tile(jnp.arange(LENGTH)[None], (2, 1))


def test_readout_equals_the_full_computation(saved: Saved) -> None:
    full, part = (
        compiled_run(saved.graphdef, saved.params, *run_inputs(), readout) for readout in (None, 2)
    )
    np.testing.assert_allclose(part, full[:, -2:], atol=1e-6, rtol=0)


def test_unrolled_layers_equal_scanned_ones(saved: Saved) -> None:
    graphdef = rebuilt(saved, layers="unroll").graphdef
    scanned, unrolled = (
        compiled_run(g, saved.params, *run_inputs()) for g in (saved.graphdef, graphdef)
    )
    np.testing.assert_allclose(unrolled, scanned, atol=1e-6, rtol=0)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_decoding_token_by_token_equals_one_pass(layers: str, saved: Saved) -> None:
    x, mask, positions = run_inputs()
    model, slots = (
        flat.merge(rebuilt(saved, layers=layers).graphdef, saved.params),
        LENGTH + 2,
    )  # room to spare
    decode, cache, parts = jax.jit(model.decode), model.cache(2, slots), []
    for i in range(LENGTH):
        visible = np.broadcast_to(np.arange(slots) <= i, (2, 1, slots))
        hidden, cache = decode(x[:, i : i + 1], visible, positions[:, i : i + 1], cache)
        parts.append(hidden)
    full = compiled_run(saved.graphdef, saved.params, x, mask, positions)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=1e-5, rtol=0)
    assert int(cache.length) == LENGTH


def test_a_mask_by_frames_equals_the_dense_one(saved: Saved) -> None:
    x, _, positions = run_inputs()
    mask = random_frame_mask(np.random.default_rng(0), n=2, frame=FRAME, frames=FRAMES)
    full = compiled_run(saved.graphdef, saved.params, x, dense_by_hand(mask), positions)
    framed = compiled_run(saved.graphdef, saved.params, x, mask, positions)
    np.testing.assert_allclose(framed, full, atol=1e-5, rtol=0)
    ends = compiled_run(saved.graphdef, saved.params, x, mask, positions, 1)  # of each frame
    np.testing.assert_allclose(ends, full[:, FRAME - 1 :: FRAME], atol=1e-5, rtol=0)
