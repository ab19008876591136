"""PaliGemma 1 and 2 against transformers, with every parameter jittered: default initialisation
hides bugs.
"""

import dataclasses
import functools
import itertools
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

from tests.fakes import dense_by_hand, random_frame_mask
from tests.models.backbones.loading import from_pretrained
from vla_jax import params as flat
from vla_jax import sharding
from vla_jax.models.backbones import paligemma
from vla_jax.models.tokenizer import digest
from vla_jax.weights import pretrained

IMAGE, TEXT, SUFFIX, BATCH = (
    4,
    12,
    5,
    3,
)  # tokens of an image and of the text, of which the last are the suffix
IMAGE_ID, WIDTH = 119, 48
TOLERANCE = 1e-5


class Case(NamedTuple):
    """A reference output and the inputs it came from."""

    generation: int
    pixels: np.ndarray
    ids: np.ndarray
    valid: np.ndarray
    suffix: np.ndarray
    features: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray


def hf_model(generation: int) -> Any:
    """A tiny jittered PaliGemma of transformers."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    text = {
        "model_type": "gemma" if generation == 1 else "gemma2", "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": generation,
        "head_dim": 16,
        "vocab_size": 120, "max_position_embeddings": 64, "pad_token_id": 0,
    }  # fmt: skip
    if generation == 2:
        text |= {
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
        }
        text |= {"sliding_window": 7}
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    config._attn_implementation = (  # the other kinds choose another mask when there is no padding
        "eager"
    )
    torch.manual_seed(generation)
    model = PaliGemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Any, Path]]:
    """Generation -> the reference model and the folder it was saved to."""
    out = {}
    for generation in (1, 2):
        model, folder = hf_model(generation), tmp_path_factory.mktemp(f"pg{generation}")
        model.save_pretrained(folder)
        out[generation] = (model, folder)
    return out


@pytest.fixture(
    scope="module", params=[(1, "left"), (1, "right"), (2, "left"), (2, "right")], ids=str
)
def case(request: pytest.FixtureRequest, folders: dict[int, tuple[Any, Path]]) -> Case:
    generation, side = request.param
    model, _ = folders[generation]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (BATCH, 28, 28, 3)).astype(np.uint8)
    ids = np.concatenate(
        [np.full((BATCH, IMAGE), IMAGE_ID), rng.integers(3, 110, (BATCH, TEXT))], axis=1
    )
    valid, suffix = np.ones(ids.shape, bool), np.zeros(ids.shape, bool)
    suffix[:, -SUFFIX:] = True
    for row, pads in enumerate((0, 2, 4)):
        if pads and side == "left":
            ids[row], valid[row, :pads] = np.roll(ids[row], pads), False
            ids[row, :pads] = 0
        elif pads:
            ids[row, -pads:], valid[row, -pads:] = 0, False
    suffix &= valid
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(ids),
            pixel_values=torch.tensor(
                (pixels / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)
            ),
            attention_mask=torch.tensor(valid.astype(int)),
            token_type_ids=torch.tensor(suffix.astype(int)),  # 0: the bidirectional prefix
            output_hidden_states=True,
        )
    return Case(
        generation, pixels, ids, valid, suffix,
        out.image_hidden_states.numpy().reshape(BATCH, IMAGE, WIDTH),
        out.hidden_states[-1].numpy(), out.logits.numpy(),
    )  # fmt: skip


class Loaded(NamedTuple):
    """A model of ours, taken apart."""

    graphdef: nnx.GraphDef
    params: flat.Params


@pytest.fixture(scope="module")
def loaded(folders: dict[int, tuple[Any, Path]]) -> dict[int, Loaded]:
    """Generation -> ours, from the reference's folder."""
    return {
        generation: Loaded(*from_pretrained(paligemma, folder))
        for generation, (_, folder) in folders.items()
    }


def run(
    case: Case, model: Loaded, causal: bool = False, num_queries: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image features, hidden states and logits of ours on the case's inputs."""
    at = np.arange(case.ids.shape[1])
    prefix = ~case.suffix[:, :, None] & ~case.suffix[:, None, :]
    mask = (at[:, None] >= at)[None] | (prefix & (not causal))
    images = np.nonzero(case.ids == IMAGE_ID)
    out = forward(
        *model, (case.pixels, case.ids, images), mask & case.valid[:, None, :], num_queries
    )
    return tuple(np.asarray(x) for x in out)


@functools.partial(jax.jit, static_argnames=("graphdef", "num_queries"))
def forward(
    graphdef: nnx.GraphDef, params: flat.Params, inputs: Any, mask: Any, num_queries: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compiled once for all that have the same shapes: most tests change only an array."""
    model, (pixels, ids, images) = flat.merge(graphdef, params), inputs
    features = model.embed_image(pixels)
    x = model.embed_text(ids).at[images].set(features.reshape(-1, WIDTH))
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden = model(x, mask, positions, num_queries=num_queries)
    return features, hidden, model.logits(hidden)


def errors(case: Case, model: Loaded, causal: bool = False) -> dict[str, float]:
    """Largest differences from the reference, over valid positions."""
    features, hidden, logits = run(case, model, causal)
    return {
        "features": float(np.abs(features - case.features).max()),
        "hidden": float(np.abs(hidden - case.hidden)[case.valid].max()),
        "logits": float(np.abs(logits - case.logits)[case.valid].max()),
    }


def rebuilt(model: Loaded, **changes: Any) -> Loaded:
    """The same parameters in a model of a changed config."""
    config = dataclasses.replace(flat.merge(*model).config, **changes)
    changed, _, _ = flat.abstract(lambda rngs: paligemma.PaliGemma(config, rngs))
    return Loaded(changed, model.params)


def test_parity_with_transformers(case: Case, loaded: dict[int, Loaded]) -> None:
    differences = errors(case, loaded[case.generation])
    assert max(differences.values()) < TOLERANCE, differences


def test_readout_equals_the_full_computation(case: Case, loaded: dict[int, Loaded]) -> None:
    model = loaded[case.generation]
    _, full, _ = run(case, model)
    _, last, _ = run(case, model, num_queries=2)
    np.testing.assert_allclose(last, full[:, -2:], atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"layers": "unroll"},
        {"remat": "full"},
        {"remat": "dots"},
        {"remat": "names", "layers": "unroll"},
    ],
)
def test_ways_to_run_the_layers_agree_in_value_and_gradient(
    changes: dict[str, str], loaded: dict[int, Loaded]
) -> None:
    graphdef, params = loaded[2]
    x = jax.random.normal(jax.random.key(0), (2, 9, WIDTH))
    mask, positions = jnp.ones((2, 9, 9), bool), jnp.tile(jnp.arange(9)[None], (2, 1))

    def value(params: flat.Params, **changes: Any) -> jax.Array:
        model = flat.merge(*rebuilt(Loaded(graphdef, params), **changes))
        return (model(x, mask, positions, num_queries=3) ** 2).sum()

    reference, gradient = jax.value_and_grad(value)(params)
    other, other_gradient = jax.value_and_grad(functools.partial(value, **changes))(params)
    np.testing.assert_allclose(other, reference, rtol=1e-6)
    for name in params:
        np.testing.assert_allclose(
            other_gradient[name], gradient[name], rtol=1e-4, atol=1e-4, err_msg=name
        )


def sequence(s: int) -> tuple[jax.Array, jax.Array]:
    """Random embeddings [2 s c] and their positions."""
    return jax.random.normal(jax.random.key(0), (2, s, WIDTH)), jnp.tile(
        jnp.arange(s)[None], (2, 1)
    )


@pytest.mark.parametrize("generation", [1, 2])
def test_decoding_after_a_prefix_equals_one_pass(
    generation: int, loaded: dict[int, Loaded]
) -> None:
    model = flat.merge(*loaded[generation])
    slots, prefix = 7, 4  # Gemma 2's window holds 7 tokens
    x, positions = sequence(slots)
    at = np.arange(slots)
    mask = np.broadcast_to((at[:, None] >= at) | (at < prefix), (2, slots, slots))
    decode, cache, parts = jax.jit(model.decode), model.cache(2, slots), []
    for start, stop in [(0, prefix), *((i, i + 1) for i in range(prefix, slots))]:
        hidden, cache = decode(
            x[:, start:stop], mask[:, start:stop], positions[:, start:stop], cache
        )
        parts.append(hidden)
    full = jax.jit(model.__call__)(x, mask, positions)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full, atol=1e-5, rtol=0)


def test_decoding_refuses_a_cache_that_is_larger_than_the_window(
    loaded: dict[int, Loaded],
) -> None:
    model = flat.merge(*loaded[2])
    x, positions = sequence(1)
    with pytest.raises(ValueError, match="at most window = 7 tokens in the cache, got room for 8"):
        model.decode(x, jnp.ones((2, 1, 8), bool), positions, model.cache(2, 8))


@pytest.mark.parametrize("generation", [1, 2])
def test_a_mask_by_frames_equals_the_dense_one(generation: int, loaded: dict[int, Loaded]) -> None:
    model = flat.merge(*loaded[generation])
    mask = random_frame_mask(
        np.random.default_rng(0), n=2, frame=5, frames=2
    )  # longer than Gemma 2's window of 7
    x, positions = sequence(10)
    run = jax.jit(model.__call__)
    full = run(x, dense_by_hand(mask), positions)
    valid = np.asarray(mask.valid)
    np.testing.assert_allclose(run(x, mask, positions)[valid], full[valid], atol=1e-5, rtol=0)


MUTATIONS: dict[str, tuple[int, dict[str, Any]]] = {
    "rope base": (1, {"rope_theta": 1e6}),
    "score scale": (1, {"q_scale": 1.0}),
    "rms eps": (1, {"eps": 1e-5}),
    "attention soft cap": (2, {"softcap": 0.0}),
    "final soft cap": (2, {"final_softcap": 0.0}),
    "sliding window": (2, {"window": 0}),
}


@pytest.mark.slow
def test_parity_sees_every_wrong_number(case: Case, loaded: dict[int, Loaded]) -> None:
    for name, (generation, changes) in MUTATIONS.items():
        if case.generation == generation:
            wrong = rebuilt(loaded[generation], **changes)
            assert errors(case, wrong)["logits"] > TOLERANCE, name


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("decoder/norm/scale", lambda x: x - 1),  # gain w instead of 1 + w
        ("vision/norm/scale", lambda x: x + 1e-3),
        (
            "vision/patch/kernel",
            lambda x: x.reshape(14, 14, 3, -1).transpose(1, 0, 2, 3).reshape(x.shape),
        ),
        ("embed/embedding", lambda x: x / math.sqrt(WIDTH)),
        ("decoder/layers/blocks/attn/k/kernel", lambda x: jnp.roll(x, 1, axis=2)),
    ],
)
def test_parity_sees_a_wrong_array(
    where: str, change: Any, case: Case, loaded: dict[int, Loaded]
) -> None:
    graphdef, params = loaded[case.generation]
    differences = errors(case, Loaded(graphdef, {**params, where: change(params[where])}))
    assert max(differences.values()) > TOLERANCE


def test_parity_sees_a_causal_prefix(case: Case, loaded: dict[int, Loaded]) -> None:
    assert errors(case, loaded[case.generation], causal=True)["logits"] > TOLERANCE


@pytest.mark.slow
def test_parity_sees_the_other_gelu(
    case: Case, loaded: dict[int, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = functools.partial(jax.nn.gelu, approximate=False)
    monkeypatch.setattr("vla_jax.models.transformer.jax.nn.gelu", lambda x, approximate: exact(x))
    forward.clear_cache()  # what is compiled already has the right one
    try:
        assert errors(case, loaded[case.generation])["logits"] > TOLERANCE
    finally:
        forward.clear_cache()


def test_released_sizes() -> None:
    for name, count in (("3b-pt-224", 2_923_466_480), ("2-3b-pt-224", 3_032_242_416)):
        config = paligemma.CONFIGS[name]
        _, shapes, _ = flat.abstract(functools.partial(_build, config))
        assert sum(math.prod(shape.shape) for shape in shapes.values()) == count
        assert config.vision.tokens == 256
        assert config.eps == config.vision.eps == 1e-6  # parity cannot see the vision tower's
    _, shapes, _ = flat.abstract(functools.partial(_build, paligemma.CONFIGS["100m"]))
    assert sum(math.prod(shape.shape) for shape in shapes.values()) == 99_043_968


def _build(config: paligemma.PaliGemmaConfig, rngs: nnx.Rngs) -> paligemma.PaliGemma:
    return paligemma.PaliGemma(config, rngs)


def test_weights_are_loaded_sharded(folders: dict[int, tuple[Any, Path]]) -> None:
    _, whole = from_pretrained(paligemma, folders[1][1])
    mesh = sharding.make_mesh(2, 2, 2)
    _, split = from_pretrained(paligemma, folders[1][1], mesh)
    kernel = split["decoder/layers/blocks/mlp/up/kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, WIDTH // 2, 96 // 2)
    for name in whole:
        np.testing.assert_array_equal(split[name], whole[name], err_msg=name)


def test_the_tiny_tokenizer_is_laid_out_like_the_released_one(tmp_path: Path) -> None:
    texts = ["push the red block left", "move the blue block up", "slide the green block down"]
    paligemma.train_tiny_tokenizer(texts, tmp_path / "a")
    paligemma.train_tiny_tokenizer(texts, tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")  # hosts compare it
    tokenizer = paligemma.load_tokenizer(tmp_path / "a")
    ids = tokenizer.encode("push the  red\nblock left")
    assert ids == tokenizer.encode("push the red block left")  # one clean line
    assert ids[0] == 2
    assert ids[-1] == tokenizer.encode("")[-1]  # the newline
    assert tokenizer.vocab <= paligemma.CONFIGS["tiny"].vocab
    assert ids == paligemma.load_tokenizer(tmp_path / "b").encode("push the red block left")
    assert (
        max(tokenizer.encode("zebra ñ 漢")) < tokenizer.vocab
    )  # unseen letters fall back to bytes

    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    first, last = hf.convert_tokens_to_ids(["<loc0000>", "<seg127>"])
    assert last - first == 1024 + 128 - 1
    assert hf.convert_tokens_to_ids("<image>") == last + 1 == tokenizer.vocab - 1


def test_where_a_model_embeds_more_ids_words_are_pieces(tmp_path: Path) -> None:
    words = ["".join(pair) for pair in itertools.product("bdfgklmnprst", "aeiou")]
    words = [first + second for first, second in itertools.product(words[:30], words[30:40])]
    texts = [f"{first} the {second}" for first, second in itertools.pairwise(words)]
    counts = {}
    for vocab in (1600, 2600):
        paligemma.train_tiny_tokenizer(texts, tmp_path / str(vocab), vocab)
        tokenizer = paligemma.load_tokenizer(tmp_path / str(vocab))
        assert tokenizer.vocab <= vocab
        known = [len(tokenizer.ids(f"the {word}")) for word in words[1:]]
        counts[vocab] = sum(known) / len(known)
    assert counts[2600] == 2 < counts[1600]


def test_a_tokenizer_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder with tokenizer files"):
        paligemma.load_tokenizer(tmp_path / "none")


@pytest.mark.slow
@pytest.mark.parametrize("pixels", [14, 42, 56, 448, 896])
def test_images_of_another_size_have_their_positions_interpolated(
    pixels: int, folders: dict[int, tuple[Any, Path]]
) -> None:
    """As transformers' tower does when it is asked to."""
    model, folder = folders[1]
    sizes = paligemma.hf_config(json.loads((folder / "config.json").read_text()))
    config = dataclasses.replace(sizes, vision=dataclasses.replace(sizes.vision, image_size=pixels))
    graphdef, params = pretrained.init_from_pretrained(
        lambda rngs: paligemma.PaliGemma(config, rngs),
        lambda specs: paligemma.load(folder, config, specs),
        None,
        jnp.float32,
    )
    images = np.random.default_rng(0).integers(0, 256, (2, pixels, pixels, 3)).astype(np.uint8)
    ours = flat.merge(graphdef, params).vision(images)
    with torch.no_grad():
        theirs = model.model.vision_tower(
            torch.tensor((images / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)),
            interpolate_pos_encoding=True,
        ).last_hidden_state
    np.testing.assert_allclose(np.asarray(ours), theirs.numpy(), atol=TOLERANCE)


def test_images_of_another_size_are_refused() -> None:
    graphdef, shapes, _ = flat.abstract(functools.partial(_build, paligemma.CONFIGS["tiny"]))
    params = {name: jnp.zeros(shape.shape) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=r"expected \[n, 32, 32, 3\]"):
        flat.merge(graphdef, params).embed_image(jnp.zeros((1, 16, 16, 3), jnp.uint8))
