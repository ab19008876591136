"""Pretrained files: the key layouts, .npz, shards, and what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.models.backbones.loading import from_pretrained
from vla_jax import params as flat
from vla_jax import sharding
from vla_jax.models.backbones import paligemma
from vla_jax.models.vision import VisionConfig
from vla_jax.weights import pretrained

CONFIG = dataclasses.replace(
    paligemma.CONFIGS["tiny"],
    vision=VisionConfig(image_size=16, patch=8, width=16, mlp=24, depth=2, heads=2),
    vocab=40, width=24, mlp=32, depth=2, heads=4, kv_heads=1, head_dim=8,
)  # fmt: skip
HF_CONFIG = {
    "text_config": {
        "model_type": "gemma", "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8,
    },
    "vision_config": {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    },
}  # fmt: skip


def build(rngs: nnx.Rngs, config: paligemma.PaliGemmaConfig = CONFIG) -> paligemma.PaliGemma:
    return paligemma.PaliGemma(config, rngs)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    """Random parameters in our layout."""
    _, shapes, _ = flat.abstract(build)
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape.shape).astype(np.float32) for name, shape in shapes.items()}


def specs(dtype: type = np.float32) -> dict[str, jax.ShapeDtypeStruct]:
    _, shapes, _ = flat.abstract(build)
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {
        name: jax.ShapeDtypeStruct(shape.shape, dtype, sharding=where)
        for name, shape in shapes.items()
    }


def to_hf(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters under transformers' names (normalised), written out independently of the
    loader's transforms.
    """
    out = {}
    for name, entry in paligemma.hf_names(CONFIG).items():
        for i in range(entry.layers or 1):
            x = params[name][i] if entry.layers else params[name]
            if name == "vision/patch/kernel":
                x = x.reshape(8, 8, 3, -1).transpose(3, 2, 0, 1)
            elif name.endswith("kernel"):
                x = x.T
            out[entry.source.format(i)] = np.ascontiguousarray(x)
    return out


LAYOUTS = {  # backbones.md 1.0: language model, head, vision, projector
    "hub": ("language_model.model.", "language_model.lm_head.", "vision_tower.vision_model.",
    "multi_modal_projector."),
    "memory 4.52": (
        "model.language_model.", "lm_head.", "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
    ),
    "saved 5.23": ("language_model.model.", None, "vision_tower.", "multi_modal_projector."),
    "memory 5.23": ("model.language_model.", "lm_head.", "model.vision_tower.",
    "model.multi_modal_projector."),
}  # fmt: skip


def write_hf(folder: Path, arrays: dict[str, np.ndarray], layout: str = "saved 5.23") -> Path:
    text, head, vision, projector = LAYOUTS[layout]
    renamed = {}
    for name, array in arrays.items():
        for old, new in (
            ("language_model.", text),
            ("vision_tower.", vision),
            ("multi_modal_projector.", projector),
        ):
            if name.startswith(old):
                renamed[new + name.removeprefix(old)] = array
    if head:
        renamed[f"{head}weight"] = arrays["language_model.embed_tokens.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(renamed, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(HF_CONFIG))
    return folder


def assert_same(loaded: flat.Params, params: dict[str, np.ndarray]) -> None:
    assert loaded.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_four_key_layouts_load_alike(
    layout: str, params: dict[str, np.ndarray], tmp_path: Path
) -> None:
    _, loaded = from_pretrained(paligemma, write_hf(tmp_path, to_hf(params), layout))
    assert_same(loaded, params)


def test_shards_with_an_index(params: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole = load_file(write_hf(tmp_path, to_hf(params)) / "model.safetensors")
    names = sorted(whole)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: whole[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    assert_same(paligemma.load(tmp_path, CONFIG, specs()), params)
    save_file({name: whole[name] for name in names[3::2]}, tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=rf"no shard holds, such as {names[1]} in b\.safetensors"):
        paligemma.load(tmp_path, CONFIG, specs())
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"not\s+found: .*b.safetensors"):
        paligemma.load(tmp_path, CONFIG, specs())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ')
    with pytest.raises(ValueError, match=r"index\.json: expected JSON with a weight_map"):
        paligemma.load(tmp_path, CONFIG, specs())


def to_npz(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters as big_vision stores them (backbones.md 1.10), written out independently of
    the loader.
    """
    v, d, n = "vision/layers/blocks/", "decoder/layers/blocks/", "img/Transformer/encoderblock/"
    layers, heads, e, h = CONFIG.depth, CONFIG.heads, CONFIG.width, CONFIG.head_dim
    out = {
        "img/embedding/kernel": params["vision/patch/kernel"].reshape(8, 8, 3, 16),
        "img/embedding/bias": params["vision/patch/bias"],
        "img/pos_embedding": params["vision/positions"][None],
        "img/head/kernel": params["projector/kernel"],
        "img/head/bias": params["projector/bias"],
        "img/Transformer/encoder_norm/scale": params["vision/norm/scale"],
        "img/Transformer/encoder_norm/bias": params["vision/norm/bias"],
        "llm/embedder/input_embedding": params["embed/embedding"],
        "llm/final_norm/scale": params["decoder/norm/scale"],
        "llm/layers/pre_attention_norm/scale": params[f"{d}norm_attn/scale"],
        "llm/layers/pre_ffw_norm/scale": params[f"{d}norm_mlp/scale"],
        "llm/layers/mlp/linear": params[f"{d}mlp/down/kernel"],
        "llm/layers/mlp/gating_einsum": np.stack(
            [params[f"{d}mlp/gate/kernel"], params[f"{d}mlp/up/kernel"]], axis=1
        ),
        "llm/layers/attn/q_einsum/w": (
            params[f"{d}attn/q/kernel"].reshape(layers, e, heads, h).transpose(0, 2, 1, 3)
        ),
        "llm/layers/attn/kv_einsum/w": np.stack(
            [
                params[f"{d}attn/{x}/kernel"].reshape(layers, e, 1, h).transpose(0, 2, 1, 3)
                for x in "kv"
            ],
            axis=1,
        ),
        "llm/layers/attn/attn_vec_einsum/w": (
            params[f"{d}attn/o/kernel"].reshape(layers, heads, h, e)
        ),
    }
    attention = f"{n}MultiHeadDotProductAttention_0/"
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        out[f"{attention}{theirs}/kernel"] = params[f"{v}attn/{ours}/kernel"].reshape(2, 16, 2, 8)
        out[f"{attention}{theirs}/bias"] = params[f"{v}attn/{ours}/bias"].reshape(2, 2, 8)
    out[f"{attention}out/kernel"] = params[f"{v}attn/o/kernel"].reshape(2, 2, 8, 16)
    out[f"{attention}out/bias"] = params[f"{v}attn/o/bias"]
    for i, (norm, dense) in enumerate((("norm_attn", "up"), ("norm_mlp", "down"))):
        for leaf in ("scale", "bias"):
            out[f"{n}LayerNorm_{i}/{leaf}"] = params[f"{v}{norm}/{leaf}"]
        for leaf in ("kernel", "bias"):
            out[f"{n}MlpBlock_0/Dense_{i}/{leaf}"] = params[f"{v}mlp/{dense}/{leaf}"]
    return {f"params/{name}": np.ascontiguousarray(array) for name, array in out.items()}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_big_vision_npz(save: object, params: dict[str, np.ndarray], tmp_path: Path) -> None:
    save(tmp_path / "w.npz", **to_npz(params))  # type: ignore[operator]
    assert_same(paligemma.load(tmp_path / "w.npz", CONFIG, specs()), params)


def test_npz_with_fewer_rows_is_padded_and_bfloat16_is_read(
    params: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = to_npz(params)
    embedding = arrays["params/llm/embedder/input_embedding"].astype(ml_dtypes.bfloat16)
    arrays["params/llm/embedder/input_embedding"] = embedding[:-3].view(
        np.uint16
    )  # as files hold it
    np.savez(tmp_path / "w.npz", **arrays)
    loaded = np.asarray(paligemma.load(tmp_path / "w.npz", CONFIG, specs())["embed/embedding"])
    np.testing.assert_array_equal(loaded[:-3], embedding[:-3].astype(np.float32))
    assert not loaded[-3:].any()


def test_values_are_cast_to_the_wanted_type(params: dict[str, np.ndarray], tmp_path: Path) -> None:
    loaded = paligemma.load(write_hf(tmp_path, to_hf(params)), CONFIG, specs(ml_dtypes.bfloat16))
    assert {value.dtype for value in loaded.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_missing_unexpected_and_misshaped_arrays_are_all_named(
    params: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = to_hf(params)
    del arrays["vision_tower.post_layernorm.bias"]
    del arrays["language_model.layers.1.mlp.up_proj.weight"]
    arrays["language_model.norm.weight"] = np.zeros(7, np.float32)
    arrays["language_model.layers.2.mlp.up_proj.weight"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="4 arrays do not fit") as error:
        paligemma.load(write_hf(tmp_path, arrays), CONFIG, specs())
    for line in (
        "missing: vision_tower.post_layernorm.bias (for vision/norm/bias)",
        "missing: language_model.layers.1.mlp.up_proj.weight",
        "shape: language_model.norm.weight (for decoder/norm/scale): expected (24,), got (7,)",
        "unexpected: language_model.layers.2.mlp.up_proj.weight",
    ):
        assert line in str(error.value)


def test_arrays_with_numbers_that_are_none_are_all_named_and_counted(
    params: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = {name: array.copy() for name, array in to_hf(params).items()}
    arrays["language_model.norm.weight"][3] = np.nan
    arrays["language_model.layers.1.mlp.up_proj.weight"][:2, 0] = -np.inf
    arrays["vision_tower.post_layernorm.bias"] = arrays["vision_tower.post_layernorm.bias"].astype(
        ml_dtypes.bfloat16
    )
    arrays["vision_tower.post_layernorm.bias"][0] = np.inf
    folder = write_hf(tmp_path, arrays)
    mesh = sharding.make_mesh(2, 2, 2)  # pieces of its own on some devices, the same on others
    _, shapes, logical = flat.abstract(build)
    where = sharding.resolve(shapes, logical, mesh)
    over_devices = {
        name: jax.ShapeDtypeStruct(shape.shape, np.float32, sharding=where[name])
        for name, shape in shapes.items()
    }
    for wanted in (specs(), specs(ml_dtypes.bfloat16), over_devices):
        with pytest.raises(ValueError, match="NaN or infinity in 3 arrays") as error:
            paligemma.load(folder, CONFIG, wanted)
        assert sorted(str(error.value).splitlines()[1:-1]) == [
            "  language_model.layers.1.mlp.up_proj.weight"
            " (for decoder/layers/blocks/mlp/up/kernel): 2",
            "  language_model.norm.weight (for decoder/norm/scale): 1",
            "  vision_tower.post_layernorm.bias (for vision/norm/bias): 1",
        ]


def test_pytorch_files_of_a_folder_are_read_where_it_has_no_safetensors(
    params: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder = write_hf(tmp_path, to_hf(params))
    whole = load_file(folder / "model.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in whole.items()}
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert_same(paligemma.load(folder, CONFIG, specs()), params)  # safetensors win
    (folder / "model.safetensors").unlink()
    for zipped in (True, False):  # as torch saves, and as it did before 1.6
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert pretrained.open_weights(folder).kind == "hf"
        assert_same(from_pretrained(paligemma, folder)[1], params)
    torch.save({**tensors, "config": object()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"nothing of the file was executed.*\n.*save_file"):
        pretrained.open_weights(folder)


def test_pytorch_shards_with_an_index(params: dict[str, np.ndarray], tmp_path: Path) -> None:
    whole = load_file(write_hf(tmp_path, to_hf(params)) / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    files = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    names = sorted(whole)
    for i, file in enumerate(files):
        part = {name: torch.from_numpy(whole[name]) for name in names[i::2]}
        torch.save(part, tmp_path / file)
    index = {"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(paligemma.load(tmp_path, CONFIG, specs()), params)
    (tmp_path / files[1]).unlink()
    with pytest.raises(ValueError, match=rf"not found: .*{files[1]}"):
        paligemma.load(tmp_path, CONFIG, specs())


def test_an_explicit_pattern_allows_a_missing_array(
    params: dict[str, np.ndarray], tmp_path: Path
) -> None:
    arrays = to_hf(params)
    del arrays["multi_modal_projector.linear.bias"]
    folder = write_hf(tmp_path, arrays)
    loaded = paligemma.load(folder, CONFIG, specs(), allow_missing=("projector/*",))
    assert params.keys() - loaded.keys() == {"projector/bias"}
    _, filled = from_pretrained(paligemma, folder, allow_missing=("projector/*",))
    assert filled.keys() == params.keys()


def test_a_truncated_file_is_refused(params: dict[str, np.ndarray], tmp_path: Path) -> None:
    file = write_hf(tmp_path, to_hf(params)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        pretrained.open_weights(tmp_path)
    file.write_bytes(b"not a safetensors file at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        pretrained.open_weights(tmp_path)


def test_nothing_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hf download"):
        pretrained.open_weights(tmp_path)


def test_a_config_of_another_family_is_refused(
    params: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder = write_hf(tmp_path, to_hf(params))
    other = {**HF_CONFIG, "text_config": {**HF_CONFIG["text_config"], "model_type": "llama"}}
    (folder / "config.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="expected gemma or gemma2, got 'llama'"):
        from_pretrained(paligemma, folder)
