"""SmolVLM2 against transformers, with every parameter jittered: default initialisation hides
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

from tests.models.backbones.loading import from_pretrained
from vla_jax import params as flat
from vla_jax.models.backbones import smolvlm

TEXT, BATCH, SIDE = 9, 3, 4  # words, images, patches of a side
IMAGE_ID, WIDTH, VOCAB, PATCH = 119, 48, 120, 4
TOLERANCE = 1e-5
KINDS = ("own output layer", "tied")
Change = Callable[[smolvlm.SmolVLMConfig], smolvlm.SmolVLMConfig]


class Case(NamedTuple):
    """A reference output and the inputs it came from."""

    folder: Path
    pixels: np.ndarray
    ids: np.ndarray
    valid: np.ndarray
    features: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray


def hf_model(kind: str, side: int = SIDE, scale: int = 2) -> Any:
    """A tiny jittered SmolVLM of transformers."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    text = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 1e5, "head_dim": 12,
        "pad_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": side * PATCH, "patch_size": PATCH,
    }  # fmt: skip
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE_ID,
        scale_factor=scale,
        tie_word_embeddings=kind == "tied",
    )
    config._attn_implementation = "eager"
    torch.manual_seed(KINDS.index(kind))
    model = SmolVLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """As SmolVLM's image processor leaves them, [b 1 3 h w]: one image of each row, no tiles."""
    return torch.tensor((pixels / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32))[:, None]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Case]:
    """(kind, patches of a side, scale) -> what transformers computes, rows padded on the left."""

    @functools.cache
    def make(kind: str, side: int = SIDE, scale: int = 2) -> Case:
        model, folder = hf_model(kind, side, scale), tmp_path_factory.mktemp("smolvlm")
        model.save_pretrained(folder)
        rng, size = np.random.default_rng(0), side * PATCH
        pixels = rng.integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8)
        image = np.full((BATCH, (side // scale) ** 2), IMAGE_ID)
        words = (rng.integers(3, 110, (BATCH, n)) for n in (1, TEXT))
        ids = np.concatenate([next(words), image, next(words)], axis=1)
        valid = np.ones(ids.shape, bool)
        for row, pads in enumerate((0, 2, 4)):
            ids[row], valid[row, :pads] = np.roll(ids[row], pads), False
        ids[~valid] = 2
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor(ids),
                pixel_values=normalised(pixels),
                attention_mask=torch.tensor(valid.astype(int)),
                position_ids=torch.arange(ids.shape[1])[None].expand(BATCH, -1),
                output_hidden_states=True,
            )
        features = torch.stack(list(out.image_hidden_states.pooler_output)).numpy()
        hidden, logits = out.hidden_states[-1].numpy(), out.logits.numpy()
        return Case(folder, pixels, ids, valid, features, hidden, logits)

    return make


def specs_of(
    config: smolvlm.SmolVLMConfig,
) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    graphdef, shapes, _ = flat.abstract(functools.partial(smolvlm.SmolVLM, config))
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return graphdef, {
        name: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=where)
        for name, x in shapes.items()
    }


def opened(folder: Path, change: Change = lambda config: config) -> smolvlm.SmolVLM:
    """The folder's model, with something of its config changed behind the loader's back. Unrolled:
    nothing to compile.
    """
    config = smolvlm.hf_config(json.loads((folder / "config.json").read_text()))
    config = dataclasses.replace(config, layers="unroll")
    arrays = smolvlm.load(folder, config, specs_of(config)[1])
    return flat.merge(specs_of(change(config))[0], arrays)


def block(**changes: Any) -> Change:
    return lambda config: dataclasses.replace(
        config, block=dataclasses.replace(config.block, **changes)
    )


def vision(**changes: Any) -> Change:
    return lambda config: dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, **changes)
    )


def inputs(case: Case, model: smolvlm.SmolVLM) -> tuple[Any, Any, Any, Any]:
    features = model.embed_image(jnp.asarray(case.pixels))
    x = np.array(model.embed_text(jnp.asarray(case.ids)))
    x[case.ids == IMAGE_ID] = np.asarray(features).reshape(-1, WIDTH)
    at = np.arange(case.ids.shape[1])
    mask = (at[:, None] >= at)[None] & case.valid[:, None, :]
    positions = jnp.asarray(np.broadcast_to(at, case.ids.shape))
    return jnp.asarray(x), jnp.asarray(mask), positions, features


def errors(case: Case, model: smolvlm.SmolVLM) -> dict[str, float]:
    """Largest differences from the reference, over valid positions."""
    x, mask, positions, features = inputs(case, model)
    hidden = model(x, mask, positions)
    return {
        "features": float(np.abs(features - case.features).max()),
        "hidden": float(np.abs(hidden - case.hidden)[case.valid].max()),
        "logits": float(np.abs(model.logits(hidden) - case.logits)[case.valid].max()),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "side", "scale"), [(KINDS[0], 4, 2), (KINDS[1], 9, 3)])
def test_parity_with_transformers(
    kind: str, side: int, scale: int, case_of: Callable[..., Case]
) -> None:
    case = case_of(kind, side, scale)
    differences = errors(case, opened(case.folder))
    print(f"parity smolvlm {kind}: {differences}, scale {np.abs(case.logits).max():.2f}")
    assert max(differences.values()) < TOLERANCE, differences


MUTATIONS: dict[str, Change] = {
    "rope base": block(rope_theta=1e4),
    "score scale": block(q_scale=1.0),
    "rms eps": block(eps=1e-3),
    "the other activation": block(act="gelu_tanh"),
    "gain 1 + w": block(norm="rms1"),
    "vision activation": vision(act="quick_gelu"),
    "no norm at the tower's end": vision(final_norm=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_parity_sees_every_wrong_number(name: str, case_of: Callable[..., Case]) -> None:
    case = case_of(KINDS[0])
    config = smolvlm.hf_config(json.loads((case.folder / "config.json").read_text()))
    changed = MUTATIONS[name](config)
    graphdef, specs = specs_of(dataclasses.replace(changed, layers="unroll"))
    arrays = smolvlm.load(case.folder, config, specs_of(config)[1])
    model = flat.merge(graphdef, {key: arrays[key] for key in specs})
    assert errors(case, model)["logits"] > TOLERANCE


@pytest.mark.slow
def test_parity_sees_a_square_read_by_columns(
    case_of: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, right = case_of(KINDS[0]), smolvlm.shuffle

    def turned(x: Any, scale: int) -> Any:
        y = right(x, scale)
        parts = y.reshape(*y.shape[:2], scale, scale, -1)
        return parts.swapaxes(2, 3).reshape(y.shape)

    monkeypatch.setattr(smolvlm, "shuffle", turned)
    assert errors(case, opened(case.folder))["features"] > TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("side", [27, 32])
def test_a_patch_has_the_position_of_its_place_at_the_released_sizes(side: int) -> None:
    """transformers looks the place up by parts of the image, in float32."""
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    config = SmolVLMVisionConfig(hidden_size=2, image_size=side + side // 27, patch_size=1)
    config.image_size = side
    embeddings = SmolVLMVisionEmbeddings(config)
    with torch.no_grad():
        embeddings.position_embedding.weight.copy_(
            torch.arange(side * side)[:, None].expand(-1, 2).float()
        )
        for parameter in embeddings.patch_embedding.parameters():
            parameter.zero_()
        out = embeddings(torch.zeros(1, 3, side, side), torch.ones(1, side, side, dtype=torch.bool))
    np.testing.assert_array_equal(out[0, :, 0].numpy(), np.arange(side * side))


@pytest.mark.slow
def test_ways_to_compute_the_same(case_of: Callable[..., Case]) -> None:
    case = case_of(KINDS[0])
    model = opened(case.folder)
    x, mask, positions, _ = inputs(case, model)
    full = model(x, mask, positions)
    # Another program's sums are rounded in another order.
    close = functools.partial(
        np.testing.assert_allclose, atol=2e-6 * float(np.abs(full).max()), rtol=0
    )
    close(model(x, mask, positions, num_queries=2), full[:, -2:])
    scanned = flat.merge(*from_pretrained(smolvlm, case.folder))
    close(scanned(x, mask, positions), full)
    close(model.logits(full, (5, 9)), model.logits(full)[:, :, 5:9])
    step = jax.jit(lambda x, mask, positions, cache: scanned.decode(x, mask, positions, cache))
    cache, slots = model.cache(BATCH, x.shape[1]), x.shape[1]
    for i in range(slots):
        hidden, cache = step(x[:, i : i + 1], mask[:, i : i + 1], positions[:, i : i + 1], cache)
        close(hidden[:, 0][case.valid[:, i]], full[:, i][case.valid[:, i]])


# ------------------------------------------------------------------------------------------ files


@pytest.mark.slow
def test_every_array_is_loaded_or_named(case_of: Callable[..., Case], tmp_path: Path) -> None:
    folder = case_of(KINDS[0]).folder
    config = smolvlm.hf_config(json.loads((folder / "config.json").read_text()))
    arrays = load_file(folder / "model.safetensors")
    assert len(smolvlm.load(folder, config, specs_of(config)[1])) == len(specs_of(config)[1])
    odd = "model.connector.modality_projection.proj.bias"
    lost = "model.vision_model.encoder.layers.1.mlp.fc1.bias"
    arrays[odd] = np.zeros(WIDTH, np.float32)
    del arrays[lost]
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="2 arrays do not fit") as error:
        smolvlm.load(tmp_path, config, specs_of(config)[1])
    assert f"unexpected: {odd}" in str(error.value)
    assert f"missing: {lost}" in str(error.value)


@pytest.mark.slow
def test_a_folder_of_another_variant_is_refused_by_its_numbers(
    case_of: Callable[..., Case],
) -> None:
    folder = case_of(KINDS[0]).folder
    config = smolvlm.hf_config(json.loads((folder / "config.json").read_text()))
    for change, message in (
        (block(rope_theta=1e4), r"block\.rope_theta: expected 10000\.0, got 100000\.0"),
        (vision(heads=2), r"vision\.heads: expected 2, got 4"),
        (lambda config: dataclasses.replace(config, depth=2), "depth: expected 2, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            smolvlm.load(folder, change(config), specs_of(change(config))[1])


# ------------------------------------------------------------------------------------------ config

HUB = {  # HuggingFaceTB/SmolVLM2-500M-Video-Instruct; what is left out is transformers' default
    "model_type": "smolvlm", "image_token_id": 49190, "scale_factor": 4,
    "tie_word_embeddings": False, "vocab_size": 49280,
    "text_config": {
        "model_type": "llama", "head_dim": 64, "hidden_size": 960, "intermediate_size": 2560,
        "num_attention_heads": 15, "num_hidden_layers": 32, "num_key_value_heads": 5,
        "rms_norm_eps": 1e-05, "rope_theta": 100000, "vocab_size": 49280, "pad_token_id": 2,
    },
    "vision_config": {
        "model_type": "smolvlm_vision", "hidden_size": 768, "image_size": 512, "patch_size": 16,
        "num_attention_heads": 12,
    },
}  # fmt: skip
REFUSED = [
    ("model_type", "idefics3", "model_type: expected 'smolvlm', got 'idefics3'"),
    ("text_config.model_type", "qwen2", "text_config.model_type: expected 'llama', got 'qwen2'"),
    ("text_config.attention_bias", True, "text_config.attention_bias: expected False"),
    ("text_config.rope_scaling", {"type": "linear"}, "rope_type: expected 'default'"),
    ("vision_config.hidden_act", "relu", "vision_config.hidden_act: expected 'gelu_pytorch_tanh'"),
    ("scale_factor", 3, "model.image_size: expected a multiple of 48"),
]


def changed(body: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    key, _, rest = path.partition(".")
    return {**body, key: changed(body[key], rest, value) if rest else value}


def test_config_files() -> None:
    assert smolvlm.hf_config(HUB) == smolvlm.CONFIGS["500m"]
    for path, value, message in REFUSED:
        with pytest.raises(ValueError, match="expected") as error:
            smolvlm.hf_config(changed(HUB, path, value))
        assert message in str(error.value)
    # 384 px of patches of 14: the tower leaves out the last 6.
    large = {**HUB, "scale_factor": 3}
    large["vision_config"] = {**HUB["vision_config"], "image_size": 384, "patch_size": 14}
    assert smolvlm.hf_config(large).image_size == 378


@pytest.mark.slow
def test_released_sizes() -> None:
    """The hub's counts, in millions."""
    for name, released, tokens in (("256m", 256, 64), ("500m", 507, 64), ("2.2b", 2246, 81)):
        config = smolvlm.CONFIGS[name]
        _, shapes, _ = flat.abstract(functools.partial(smolvlm.SmolVLM, config))
        count = sum(math.prod(shape.shape) for shape in shapes.values())
        assert count // 10**6 == released
        assert config.vision.tokens // config.scale**2 == tokens
    assert smolvlm.hub("256m") == "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
    assert smolvlm.hub("2.2b") == "HuggingFaceTB/SmolVLM2-2.2B-Instruct"


@pytest.mark.slow
def test_the_prompt_is_the_chat_template_with_special_tokens_as_one(tmp_path: Path) -> None:
    smolvlm.train_tiny_tokenizer(
        ["push the red block left", "move the blue block up"], tmp_path / "a"
    )
    tokenizer = smolvlm.load_tokenizer(tmp_path / "a")
    ids = tokenizer.encode("push the  red\nblock left")
    assert ids == tokenizer.encode("push the red block left")  # one clean line
    assert ids[0] == 2
    assert tokenizer.vocab <= smolvlm.CONFIGS["tiny"].vocab

    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(str(tmp_path / "a"))
    expected = "User: push the red block left<end_of_utterance>\nAssistant:"
    assert plain.decode(ids[1:]) == expected
    assert ids.count(plain.convert_tokens_to_ids("<end_of_utterance>")) == 1
