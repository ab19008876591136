"""LLaVA against transformers, with every parameter jittered: default initialisation hides bugs."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import save_file

from tests.models.backbones.loading import from_pretrained
from vla_jax import params as flat
from vla_jax.models.attention import alibi
from vla_jax.models.backbones import llava
from vla_jax.models.vision import CLIP_PIXELS

PATCHES, TEXT, BATCH = 4, 9, 3
IMAGE_ID, WIDTH, VOCAB = 119, 48, 120
TOLERANCE = 1e-5
KINDS = ("llama", "llama full", "mpt", "mpt 6 heads")
FAST = ("llama", "mpt 6 heads")
Reference = Callable[[str], tuple[Any, Path]]
Change = Callable[[llava.LlavaConfig], llava.LlavaConfig]


class Case(NamedTuple):
    """A reference output and the inputs it came from."""

    folder: Path
    pixels: np.ndarray
    ids: np.ndarray
    valid: np.ndarray
    features: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray


CaseOf = Callable[[str, str], Case]


def hf_model(kind: str) -> Any:
    """A tiny jittered LLaVA of transformers."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text: dict[str, Any] = {
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip
    if kind.startswith("mpt"):
        six = kind == "mpt 6 heads"
        text = {
            "model_type": "mpt",
            "d_model": WIDTH,
            "n_heads": 6 if six else 4,
            "n_layers": 3,
            "vocab_size": VOCAB,
        }
        text["attn_config"] = {"softmax_scale": 0.2} if six else {"clip_qkv": 0.5}
        text["tie_word_embeddings"] = (
            False  # LLaVA's class ties by LLaMA's names; the output layer is tied below
        )
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    strategy = "full" if kind.endswith("full") else "default"
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        vision_feature_select_strategy=strategy,
    )
    config._attn_implementation = "eager"
    torch.manual_seed(KINDS.index(kind))
    model = LlavaForConditionalGeneration(config).eval()
    if kind.startswith("mpt"):
        model.lm_head.weight = model.model.language_model.wte.weight
        config.text_config.tie_word_embeddings = True
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.08)
    return model


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """As CLIP's image processor leaves them."""
    mean, deviation = (np.asarray(v, np.float32) for v in CLIP_PIXELS)
    return torch.tensor(
        ((pixels / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
    )


LAYOUTS = {  # backbones.md 1.0: language model, head, vision, projector
    "hub": ("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.",
    "multi_modal_projector."),
    "memory 4.52": (
        "model.language_model.", "lm_head.", "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
    ),
    "saved 5.23": ("language_model.model.", "language_model.lm_head.", "vision_tower.",
    "multi_modal_projector."),
    "memory 5.23": ("model.language_model.", "lm_head.", "model.vision_tower.",
    "model.multi_modal_projector."),
}  # fmt: skip
IN_MEMORY = LAYOUTS["memory 5.23"]


def renamed(model: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of a model of transformers under other beginnings of their names; "" leaves them
    out.
    """
    out = {}
    for name, value in model.state_dict().items():
        old, new = next(
            pair for pair in zip(IN_MEMORY, names, strict=True) if name.startswith(pair[0])
        )
        if new:
            out[new + name.removeprefix(old)] = value.numpy().copy()
    return out


def write(folder: Path, arrays: dict[str, np.ndarray], body: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(body or {}))
    return folder


def make_reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Kind -> the reference model and the folder it was saved to."""

    @functools.cache
    def make(kind: str) -> tuple[Any, Path]:
        model, folder = hf_model(kind), tmp_path_factory.mktemp("llava")
        if kind.startswith("mpt"):
            names = ("language_model.", "", "vision_tower.", "multi_modal_projector.")
            write(folder, renamed(model, names), model.config.to_dict())
        else:
            model.save_pretrained(folder)
        return model, folder

    return make


def make_case_of(reference: Reference) -> CaseOf:
    """(kind, side of the padding) -> what transformers computes."""

    @functools.cache
    def make(kind: str, side: str) -> Case:
        model, folder = reference(kind)
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (BATCH, 28, 28, 3)).astype(np.uint8)
        image = np.full((BATCH, PATCHES + kind.endswith("full")), IMAGE_ID)
        ids = np.concatenate(
            [rng.integers(3, 110, (BATCH, 1)), image, rng.integers(3, 110, (BATCH, TEXT))], axis=1
        )
        valid = np.ones(ids.shape, bool)
        for row, pads in enumerate((0, 2, 4)):
            if side == "left":
                ids[row], valid[row, :pads] = np.roll(ids[row], pads), False
            else:
                valid[row, ids.shape[1] - pads :] = False
        ids[~valid] = 0
        with torch.no_grad():
            out = model(
                input_ids=torch.tensor(ids),
                pixel_values=normalised(pixels),
                attention_mask=torch.tensor(valid.astype(int)),
                output_hidden_states=True,
            )
        features = out.image_hidden_states.numpy().reshape(BATCH, -1, WIDTH)
        return Case(
            folder, pixels, ids, valid, features, out.hidden_states[-1].numpy(), out.logits.numpy()
        )

    return make


def specs_of(config: llava.LlavaConfig) -> tuple[nnx.GraphDef, dict[str, jax.ShapeDtypeStruct]]:
    graphdef, shapes, _ = flat.abstract(functools.partial(llava.Llava, config))
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return graphdef, {
        name: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=where)
        for name, x in shapes.items()
    }


def opened(
    folder: Path, change: Change = lambda config: config, layers: str = "unroll", **body: Any
) -> llava.Llava:
    """The folder's model, read by a config with something changed. Unrolled: nothing to compile."""
    config = change(llava.hf_config(json.loads((folder / "config.json").read_text()) | body))
    config = dataclasses.replace(config, layers=layers)
    graphdef, specs = specs_of(config)
    return flat.merge(graphdef, llava.load(folder, config, specs))


def block(**changes: Any) -> Change:
    return lambda config: dataclasses.replace(
        config, block=dataclasses.replace(config.block, **changes)
    )


def vision(**changes: Any) -> Change:
    return lambda config: dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, **changes)
    )


def inputs(case: Case, model: llava.Llava) -> tuple[Any, Any, Any, Any]:
    features = model.embed_image(jnp.asarray(case.pixels))[:, : case.features.shape[1]]
    x = np.array(model.embed_text(jnp.asarray(case.ids)))
    x[case.ids == IMAGE_ID] = np.asarray(features).reshape(-1, WIDTH)
    at = np.arange(case.ids.shape[1])
    mask = (at[:, None] >= at)[None] & case.valid[:, None, :]
    return (
        jnp.asarray(x),
        jnp.asarray(mask),
        jnp.asarray(np.broadcast_to(at, case.ids.shape)),
        features,
    )


def errors(case: Case, model: llava.Llava) -> dict[str, float]:
    """Largest differences from the reference, over valid positions."""
    x, mask, positions, features = inputs(case, model)
    hidden = model(x, mask, positions)
    return {
        "features": float(np.abs(features - case.features).max()),
        "hidden": float(np.abs(hidden - case.hidden)[case.valid].max()),
        "logits": float(np.abs(model.logits(hidden) - case.logits)[case.valid].max()),
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory)


@pytest.fixture(scope="module")
def case_of(reference: Reference) -> CaseOf:
    return make_case_of(reference)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "kind",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in KINDS],
)
def test_parity_with_transformers(kind: str, side: str, case_of: CaseOf) -> None:
    case = case_of(kind, side)
    differences = errors(case, opened(case.folder))
    print(f"parity llava {kind}, {side}: {differences}, scale {np.abs(case.logits).max():.2f}")
    assert max(differences.values()) < TOLERANCE, differences


MUTATIONS: dict[str, tuple[str, Change, dict[str, Any]]] = {
    "rope base": ("llama", block(rope_theta=1e6), {}),
    "score scale": ("llama", block(q_scale=1.0), {}),
    "rms eps": ("llama", block(eps=1e-6), {}),
    "the other activation": ("llama", block(act="gelu_tanh"), {}),
    "gain 1 + w": ("llama", block(norm="rms1"), {}),
    "vision activation": ("llama", vision(act="gelu"), {}),
    "class token kept": ("llama", vision(class_token=True), {}),
    "SigLIP's norm at the end": ("llama", vision(final_norm=True), {}),
    "the last layer": ("llama", lambda config: config, {"vision_feature_layer": -1}),
    "no clipping": ("mpt", block(clip_qkv=0.0), {}),
    "tanh gelu": ("mpt", block(act="gelu_tanh"), {}),
    "no slopes": ("mpt", block(alibi=False), {}),
    "softmax scale": ("mpt 6 heads", block(q_scale=8**-0.5), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_parity_sees_every_wrong_number(name: str, case_of: CaseOf) -> None:
    kind, change, body = MUTATIONS[name]
    case = case_of(kind, "left")
    differences = errors(case, opened(case.folder, change, **body))
    assert differences["logits"] > TOLERANCE, differences


def test_parity_sees_the_projectors_other_gelu(
    case_of: CaseOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, tanh = case_of("llama", "left"), functools.partial(jax.nn.gelu, approximate=True)
    monkeypatch.setattr(
        "vla_jax.models.backbones.llava.jax.nn.gelu", lambda x, approximate: tanh(x)
    )
    assert errors(case, opened(case.folder))["features"] > TOLERANCE


def test_parity_sees_slopes_in_another_order(
    case_of: CaseOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("mpt 6 heads", "left")
    monkeypatch.setattr(
        "vla_jax.models.transformer.alibi", lambda keys, heads: alibi(keys, 8)[:, :heads]
    )
    assert errors(case, opened(case.folder))["logits"] > TOLERANCE


def test_parity_sees_parts_of_the_fused_projection_swapped(case_of: CaseOf) -> None:
    case = case_of("mpt", "left")
    model = opened(case.folder)
    attention = model.decoder.layers.blocks.attn
    attention.q, attention.k = attention.k, attention.q
    assert errors(case, model)["logits"] > TOLERANCE


@pytest.mark.parametrize(("layer", "depth"), [(-1, 3), (-3, 1), (2, 2)])
def test_features_of_other_layers(
    layer: int, depth: int, reference: Reference, case_of: CaseOf
) -> None:
    (hf, folder), case = reference("llama"), case_of("llama", "left")
    with torch.no_grad():
        wanted = hf.get_image_features(
            pixel_values=normalised(case.pixels), vision_feature_layer=layer
        ).pooler_output
    model = opened(folder, vision_feature_layer=layer)
    assert model.config.vision.depth == depth
    np.testing.assert_allclose(
        model.embed_image(case.pixels), torch.stack(wanted), atol=TOLERANCE, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "mpt 6 heads"])
def test_ways_to_compute_the_same(kind: str, case_of: CaseOf) -> None:
    case = case_of(kind, "left")
    model = opened(case.folder)
    x, mask, positions, _ = inputs(case, model)
    full = model(x, mask, positions)
    # Each way is another program, whose sums are rounded in another order: off by 2.2e-6 at most
    # where the largest number is 3.7 (AMD EPYC; which numbers, depends on the processor).
    close = functools.partial(
        np.testing.assert_allclose, atol=1e-6 * float(np.abs(full).max()), rtol=0
    )
    close(model(x, mask, positions, num_queries=2), full[:, -2:])
    scanned = flat.merge(*from_pretrained(llava, case.folder))
    close(scanned(x, mask, positions), full)
    close(model.logits(full, (5, 9)), model.logits(full)[:, :, 5:9])
    step = jax.jit(lambda x, mask, positions, cache: scanned.decode(x, mask, positions, cache))
    cache, slots = model.cache(BATCH, x.shape[1]), x.shape[1]
    for i in range(slots):
        hidden, cache = step(x[:, i : i + 1], mask[:, i : i + 1], positions[:, i : i + 1], cache)
        # The reference's rows without any valid key (left padding) are nobody's business.
        close(hidden[:, 0][case.valid[:, i]], full[:, i][case.valid[:, i]])
