"""Qwen3-VL against transformers, with every parameter jittered: default initialisation hides
bugs.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from vla_jax import params as flat
from vla_jax.models import sequence
from vla_jax.models.backbones import qwen3vl

BATCH, PATCH, SIDE = 3, 4, 6  # rows, pixels and patches of a side
V = (SIDE // 2) ** 2  # tokens of an image
IMAGE_ID, WIDTH, VOCAB = 119, 48, 120
FIRST = (1, V + 3)  # tokens that the two images of a row begin at
LENGTH = 2 * V + 10
TOLERANCE = 1e-5
Change = Callable[[qwen3vl.Qwen3VLConfig], qwen3vl.Qwen3VLConfig]


class Case(NamedTuple):
    """A reference output and the inputs it came from."""

    folder: Path
    pixels: np.ndarray
    ids: np.ndarray
    valid: np.ndarray
    features: np.ndarray
    places: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray


def hf_model(tied: bool = True) -> Any:
    """A tiny jittered Qwen3-VL of transformers; its rotary base is small, so that every pair of
    features turns visibly within a short row.
    """
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {
        "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e2, "mrope_section": [3, 2, 1],
        "mrope_interleaved": True},
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "depth": 4, "num_heads": 4,
        "patch_size": PATCH, "out_hidden_size": WIDTH, "num_position_embeddings": 25,
        "deepstack_visual_indexes": [0, 2],
    }  # fmt: skip
    config = Qwen3VLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        video_token_id=VOCAB - 2,
        vision_start_token_id=VOCAB - 3,
        vision_end_token_id=VOCAB - 4,
        tie_word_embeddings=tied,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(int(tied))
    model = Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model


def flattened(pixels: np.ndarray) -> torch.Tensor:
    """Images as Qwen's processor leaves them: pairs of equal frames, patches in squares of two by
    two.
    """
    x = (pixels / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)
    f, half = len(x), SIDE // 2
    x = np.stack([x, x], axis=1).reshape(f, 2, 3, half, 2, PATCH, half, 2, PATCH)
    x = x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return torch.tensor(x.reshape(f * SIDE * SIDE, -1))


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Case]:
    """Tied or not -> what transformers computes for rows of two images among words, padded on the
    right.
    """

    @functools.cache
    def make(tied: bool) -> Case:
        model, folder = hf_model(tied), tmp_path_factory.mktemp("qwen")
        model.save_pretrained(folder)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (BATCH * 2, SIDE * PATCH, SIDE * PATCH, 3)).astype(np.uint8)
        ids, valid = rng.integers(3, 110, (BATCH, LENGTH)), np.ones((BATCH, LENGTH), bool)
        for first in FIRST:
            ids[:, first : first + V] = IMAGE_ID
        for row, pads in enumerate((0, 2, 4)):
            valid[row, LENGTH - pads :] = False
        kinds = torch.tensor((ids == IMAGE_ID).astype(np.int32))
        grid = torch.tensor([[1, SIDE, SIDE]] * (BATCH * 2))
        given = torch.tensor(valid.astype(np.int64))
        with torch.no_grad():
            places, _ = model.model.get_rope_index(
                torch.tensor(ids), kinds, image_grid_thw=grid, attention_mask=given
            )
            image = model.model.get_image_features(flattened(pixels), grid)
            out = model.model(
                input_ids=torch.tensor(ids),
                pixel_values=flattened(pixels),
                image_grid_thw=grid,
                mm_token_type_ids=kinds,
                attention_mask=given,
            )
            hidden = out.last_hidden_state
            logits = model.lm_head(hidden)
        parts = [image.pooler_output, *image.deepstack_features]
        features = torch.cat([torch.stack(list(part)) for part in parts], -1).numpy()
        return Case(
            folder, pixels, ids, valid, features, places.permute(1, 2, 0).numpy(),
            hidden.numpy(), logits.numpy(),
        )  # fmt: skip

    return make


def specs_of(
    config: qwen3vl.Qwen3VLConfig,
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    graphdef, shapes, _ = flat.abstract(functools.partial(qwen3vl.Qwen3VL, config))
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return graphdef, {
        name: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=where)
        for name, x in shapes.items()
    }


def config_of(folder: Path, layers: str = "unroll") -> qwen3vl.Qwen3VLConfig:
    config = qwen3vl.hf_config(json.loads((folder / "config.json").read_text()))
    size = SIDE * PATCH
    vision = dataclasses.replace(config.vision, image_size=size, other_sizes=())
    return dataclasses.replace(config, vision=vision, layers=layers)


def opened(
    folder: Path, change: Change = lambda config: config, layers: str = "unroll"
) -> qwen3vl.Qwen3VL:
    """The folder's model, computed by a config with something changed. Unrolled: nothing to
    compile.
    """
    config = config_of(folder, layers)
    arrays = qwen3vl.load(folder, config, specs_of(config)[1])
    graphdef, specs = specs_of(change(config))
    return flat.merge(graphdef, {name: arrays[name] for name in specs})


def block(**changes: Any) -> Change:
    return lambda config: dataclasses.replace(
        config, block=dataclasses.replace(config.block, **changes)
    )


def frames_of(case: Case, model: qwen3vl.Qwen3VL) -> sequence.FrameTokens:
    """The case's rows as the sequence of a frame has them, with rows and columns."""
    words = sequence.MaskedTokens(model.embed_text(jnp.asarray(case.ids)), jnp.asarray(case.valid))
    features = model.embed_image(jnp.asarray(case.pixels)).reshape(BATCH, 2, V, -1)
    parts, begin = [], 0
    for i, first in enumerate(FIRST):
        parts.append(sequence.MaskedTokens(*(x[:, begin:first] for x in words)))
        parts.append(sequence.MaskedTokens(features[:, i], words.valid[:, first : first + V]))
        begin = first + V
    parts.append(sequence.MaskedTokens(*(x[:, begin:] for x in words)))
    whole = sequence.concat_tokens(parts)
    order = jnp.broadcast_to(jnp.arange(LENGTH)[None], case.ids.shape)
    squares = tuple((first, SIDE // 2) for first in FIRST)
    return sequence.FrameTokens(whole.tokens, whole.valid, order, None, 0, squares=squares)


def errors(case: Case, model: qwen3vl.Qwen3VL) -> dict[str, float]:
    """Largest differences from the reference, over valid positions."""
    frames = frames_of(case, model)
    hidden = model(frames.tokens, sequence.per_frame_mask(frames), sequence.places(frames))
    features = model.embed_image(jnp.asarray(case.pixels))
    return {
        "features": float(np.abs(features - case.features).max()),
        "hidden": float(np.abs(hidden - case.hidden)[case.valid].max()),
        "logits": float(np.abs(model.logits(hidden) - case.logits)[case.valid].max()),
    }


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_parity_with_transformers(tied: bool, case_of: Callable[[bool], Case]) -> None:
    case = case_of(tied)
    model = opened(case.folder)
    np.testing.assert_array_equal(
        np.asarray(sequence.places(frames_of(case, model)))[case.valid], case.places[case.valid]
    )
    differences = errors(case, model)
    print(f"parity qwen3vl, tied {tied}: {differences}, scale {np.abs(case.logits).max():.2f}")
    assert max(differences.values()) < TOLERANCE, differences


MUTATIONS: dict[str, Change] = {
    "rope base": block(rope_theta=1e4),
    "other sections": block(rope_sections=(2, 2, 2)),
    "no norm of heads": block(head_norm=False),
    "rms eps": block(eps=1e-3),
    "score scale": block(q_scale=1.0),
    "taps one later": lambda config: dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, taps=(1, 3))
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_parity_sees_every_wrong_number(name: str, case_of: Callable[[bool], Case]) -> None:
    case = case_of(True)
    assert errors(case, opened(case.folder, MUTATIONS[name]))["logits"] > TOLERANCE


@pytest.mark.slow
def test_parity_sees_rows_and_columns_and_deepstack(
    case_of: Callable[[bool], Case],
) -> None:
    case = case_of(True)
    model = opened(case.folder)
    frames = frames_of(case, model)
    mask, places = sequence.per_frame_mask(frames), sequence.places(frames)
    line = sequence.positions(frames.valid)
    for tokens, at in (
        (frames.tokens, line),
        (frames.tokens, places[:, :, jnp.asarray([0, 2, 1])]),
        (frames.tokens[:, :, :WIDTH], places),
        (frames.tokens[:, :, : 2 * WIDTH], places),
    ):
        difference = np.abs(model(tokens, mask, at) - case.hidden)[case.valid].max()
        assert difference > TOLERANCE


@pytest.mark.slow
def test_ways_to_compute_the_same(case_of: Callable[[bool], Case]) -> None:
    case = case_of(True)
    model = opened(case.folder)
    frames = frames_of(case, model)
    mask, places = sequence.per_frame_mask(frames), sequence.places(frames)
    full = np.asarray(model(frames.tokens, mask, places))
    # Another program's sums are rounded in another order.
    close = functools.partial(np.testing.assert_allclose, atol=2e-6 * np.abs(full).max(), rtol=0)
    close(model(frames.tokens, mask, places, num_queries=2), full[:, -2:])
    scanned = opened(case.folder, layers="scan")
    close(scanned.embed_image(case.pixels), model.embed_image(case.pixels))
    close(scanned(frames.tokens, mask, places), full)
    # Row 0 has no padding: its images and first words at once, then a word at a time.
    first = FIRST[1] + V
    cache, wide = model.cache(1, LENGTH), jnp.pad(mask[:1], ((0, 0), (0, 0), (0, 0)))
    hidden, cache = scanned.decode(
        frames.tokens[:1, :first], wide[:, :first], places[:1, :first], cache
    )
    close(hidden, full[:1, :first])
    for i in range(first, LENGTH):
        word = frames.tokens[:1, i : i + 1, :WIDTH]
        at = places[:1, i : i + 1, 0]  # a word's row and column are its time
        hidden, cache = scanned.decode(word, wide[:, i : i + 1], at, cache)
        close(hidden, full[:1, i : i + 1])


def test_places_of_two_frames_in_a_row_by_hand() -> None:
    """Frames of an image of 2 x 2, a word and a readout, which takes no place from later frames;
    the image of the second is not there.
    """
    valid = np.ones((2, 6), bool)
    valid[1, :4] = False
    frames = sequence.FrameTokens(
        np.zeros((2, 6, 1)), valid, np.zeros((2, 6), int), None, 1, squares=((0, 2),)
    )
    expected = [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [2, 2, 2], [3, 3, 3]]
    got = np.asarray(sequence.places(frames, 2))
    np.testing.assert_array_equal(got[0, :6], expected)
    np.testing.assert_array_equal(got[0, 10:], [[3, 3, 3], [4, 4, 4]])
    line = dataclasses.replace(frames, squares=())
    np.testing.assert_array_equal(sequence.places(line, 2), sequence.positions(valid, 2, 1))


# ------------------------------------------------------------------------------------------ files


@pytest.mark.slow
def test_every_array_is_loaded_or_named(case_of: Callable[[bool], Case], tmp_path: Path) -> None:
    folder = case_of(False).folder
    config, arrays = config_of(folder), load_file(folder / "model.safetensors")
    specs = specs_of(config)[1]
    assert qwen3vl.load(folder, config, specs).keys() == specs.keys()
    odd = "model.visual.deepstack_merger_list.2.norm.weight"
    lost = "model.language_model.layers.1.self_attn.q_norm.weight"
    arrays[odd] = np.zeros(128, np.float32)
    del arrays[lost]
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="2 arrays do not fit") as error:
        qwen3vl.load(tmp_path, config, specs)
    assert f"unexpected: {odd}" in str(error.value)
    assert f"missing: {lost.removeprefix('model.')}" in str(error.value)
    for change, message in (
        (block(rope_theta=1e4), r"block\.rope_theta: expected 10000\.0, got 100\.0"),
        (block(rope_sections=(2, 2, 2)), r"block\.rope_sections: expected \(2, 2, 2\)"),
        (MUTATIONS["taps one later"], r"vision\.taps: expected \(1, 3\), got \(0, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            qwen3vl.load(folder, change(config), specs)


# ------------------------------------------------------------------------------------------ config

HUB = {  # Qwen/Qwen3-VL-4B-Instruct
    "model_type": "qwen3_vl", "image_token_id": 151655, "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text", "attention_bias": False, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 9728,
        "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_theta": 5000000, "vocab_size": 151936,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20],
        "rope_type": "default"},
    },
    "vision_config": {
        "model_type": "qwen3_vl", "deepstack_visual_indexes": [5, 11, 17], "depth": 24,
        "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024, "in_channels": 3,
        "intermediate_size": 4096, "num_heads": 16, "num_position_embeddings": 2304,
        "out_hidden_size": 2560, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}  # fmt: skip
REFUSED = [
    ("model_type", "qwen2_5_vl", "model_type: expected 'qwen3_vl', got 'qwen2_5_vl'"),
    ("text_config.model_type", "qwen3", "text_config.model_type: expected 'qwen3_vl_text'"),
    ("text_config.attention_bias", True, "text_config.attention_bias: expected False"),
    ("text_config.rope_scaling", {"rope_type": "yarn"}, "rope_type: expected 'default'"),
    ("vision_config.spatial_merge_size", 3, "vision_config.spatial_merge_size: expected 2"),
    ("vision_config.out_hidden_size", 2048, "vision_config.out_hidden_size: expected 2560"),
    ("vision_config.hidden_act", "silu", "vision_config.hidden_act: expected 'gelu_pytorch_tanh'"),
    ("vision_config.deepstack_visual_indexes", [5, 30], "expected taps among the 24 layers"),
    ("vision_config.num_position_embeddings", 2305, "num_position_embeddings' root"),
]


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    return {**body, key: changed(body[key], rest, value) if rest else value}


def test_config_files() -> None:
    assert qwen3vl.hf_config(HUB) == qwen3vl.CONFIGS["4b"]
    for path, value, message in REFUSED:
        with pytest.raises(ValueError, match="expected") as error:
            qwen3vl.hf_config(changed(HUB, path, value))
        assert message in str(error.value)
    tower = dataclasses.replace(qwen3vl.TOWER, other_sizes=(240,))
    with pytest.raises(ValueError, match=r"model\.image_size: expected a multiple of 32"):
        dataclasses.replace(qwen3vl.CONFIGS["2b"], vision=tower)


@pytest.mark.slow
def test_released_sizes() -> None:
    """The hub's counts, less one of the two frames of the patches' kernel."""
    for name, released in (("2b", 2_127_532_032), ("4b", 4_437_815_808)):
        config = qwen3vl.CONFIGS[name]
        _, shapes, _ = flat.abstract(functools.partial(qwen3vl.Qwen3VL, config))
        count = sum(math.prod(shape.shape) for shape in shapes.values())
        assert count + 3 * 16 * 16 * 1024 == released
    assert qwen3vl.hub("2b") == "Qwen/Qwen3-VL-2B-Instruct"


@pytest.mark.slow
def test_the_prompt_is_the_chat_template_with_special_tokens_as_one(tmp_path: Path) -> None:
    qwen3vl.train_tiny_tokenizer(
        ["push the red block left", "move the blue block up"], tmp_path / "a"
    )
    tokenizer = qwen3vl.load_tokenizer(tmp_path / "a")
    ids = tokenizer.encode("push the  red\nblock left")
    assert ids == tokenizer.encode("push the red block left")  # one clean line
    assert tokenizer.vocab <= qwen3vl.CONFIGS["tiny"].vocab

    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    expected = "<|im_start|>user\npush the red block left<|im_end|>\n<|im_start|>assistant\n"
    assert plain.decode(ids) == expected
    assert ids.count(plain.convert_tokens_to_ids("<|im_start|>")) == 2
