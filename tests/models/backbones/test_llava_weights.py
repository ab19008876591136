"""LLaVA's files: every layout, and the original names."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.models.backbones.loading import from_pretrained
from tests.models.backbones.test_llava import (
    LAYOUTS,
    TOLERANCE,
    WIDTH,
    CaseOf,
    Reference,
    make_case_of,
    make_reference,
    normalised,
    renamed,
    specs_of,
    write,
)
from vla_jax import params as flat
from vla_jax import sharding
from vla_jax.models.backbones import llava


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return make_reference(tmp_path_factory)


@pytest.fixture(scope="module")
def case_of(reference: Reference) -> CaseOf:
    return make_case_of(reference)


def assert_same(loaded: flat.Params, wanted: flat.Params) -> None:
    assert loaded.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_four_key_layouts_load_alike(layout: str, reference: Reference, tmp_path: Path) -> None:
    model, folder = reference("llama")
    config = llava.hf_config(json.loads((folder / "config.json").read_text()))
    _, specs = specs_of(config)
    arrays = renamed(model, LAYOUTS[layout])
    loaded = llava.load(write(tmp_path, arrays), config, specs)
    assert_same(loaded, llava.load(folder, config, specs))
    np.testing.assert_array_equal(loaded["lm_head/kernel"], model.lm_head.weight.detach().numpy().T)


def test_shards_with_an_index(reference: Reference, tmp_path: Path) -> None:
    model, folder = reference("llama")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert_same(from_pretrained(llava, tmp_path)[1], from_pretrained(llava, folder)[1])
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"not\s+found: .*{shards[1].name}"):
        from_pretrained(llava, tmp_path)


def test_of_the_tower_exactly_the_dead_arrays_are_passed_over(
    reference: Reference, tmp_path: Path
) -> None:
    _, folder = reference("llama")
    config = llava.hf_config(json.loads((folder / "config.json").read_text()))
    layer, leaves = "vision_tower.encoder.layers.2.", ("weight", "bias")
    parts = (
        "layer_norm1",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
        *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")),
    )
    dead = [f"{layer}{part}.{leaf}" for part in parts for leaf in leaves]
    dead += [f"vision_tower.post_layernorm.{leaf}" for leaf in leaves]
    assert llava.dead_names(config) == sorted(dead)
    arrays = load_file(folder / "model.safetensors")
    odd = {
        f"vision_tower.encoder.layers.{i}.mlp.fc1.extra": np.zeros(1, np.float32) for i in (1, 2)
    }
    odd["vision_tower.encoder.layers.3.mlp.fc1.bias"] = np.zeros(64, np.float32)
    del arrays["vision_tower.encoder.layers.1.mlp.fc1.bias"]
    del arrays["vision_tower.post_layernorm.bias"]
    with pytest.raises(ValueError, match="4 arrays do not fit") as error:
        llava.load(write(tmp_path, arrays | odd), config, specs_of(config)[1])
    assert all(f"unexpected: {name}" in str(error.value) for name in odd)
    assert "missing: vision_tower.encoder.layers.1.mlp.fc1.bias" in str(error.value)


@pytest.mark.parametrize("projector", ["linear", "mlp2"])
def test_the_original_mpt_names(
    projector: str, reference: Reference, case_of: CaseOf, tmp_path: Path
) -> None:
    (hf, folder), case = reference("mpt"), case_of("mpt", "left")
    body = json.loads((folder / "config.json").read_text())
    config = dataclasses.replace(llava.hf_config(body), projector=projector)
    tower = "transformer.vision_tower.vision_tower.vision_model."
    arrays = renamed(hf, ("transformer.", "", tower, "transformer.mm_projector."))
    for name in [name for name in arrays if ".mm_projector." in name]:
        value, leaf = arrays.pop(name), name.rsplit(".", 1)[-1]
        if projector == "mlp2":
            arrays[f"transformer.mm_projector.{0 if 'linear_1' in name else 2}.{leaf}"] = value
        elif "linear_1" in name:
            arrays[f"transformer.mm_projector.{leaf}"] = value
    graphdef, specs = specs_of(config)
    whole = llava.load(write(tmp_path / "whole", arrays), config, specs)
    features = flat.merge(graphdef, whole).embed_image(case.pixels)
    if projector == "mlp2":
        np.testing.assert_allclose(features, case.features, atol=TOLERANCE, rtol=0)
    else:
        with torch.no_grad():
            inner = hf.model.vision_tower(
                normalised(case.pixels), output_hidden_states=True
            ).hidden_states[-2][:, 1:]
            wanted = hf.model.multi_modal_projector.linear_1(inner)
        np.testing.assert_allclose(features, wanted, atol=TOLERANCE, rtol=0)

    # The release lacks the tower: it is openai's, in a folder inside.
    clip = {
        name.replace(tower, "vision_model."): value
        for name, value in arrays.items()
        if name.startswith(tower)
    }
    clip |= {
        "text_model.final_layer_norm.bias": np.zeros(3, np.float32),
        "logit_scale": np.zeros(1, np.float32),
    }
    bare = {name: value for name, value in arrays.items() if not name.startswith(tower)}
    apart = write(tmp_path / "apart", bare)
    with pytest.raises(ValueError, match=r"missing: vision_tower.embeddings.class_embedding"):
        llava.load(apart, config, specs)
    assert not any(
        name.startswith("vision/") for name in llava.load(apart, config, specs, ("vision/*",))
    )
    write(apart / "vision_tower", clip)
    assert_same(llava.load(apart, config, specs), whole)
    write(tmp_path / "whole" / "vision_tower", clip)
    with pytest.raises(ValueError, match="expected one image tower"):
        llava.load(tmp_path / "whole", config, specs)


def test_a_fused_projection_that_does_not_divide_is_refused(
    reference: Reference, tmp_path: Path
) -> None:
    hf, folder = reference("mpt")
    config = llava.hf_config(json.loads((folder / "config.json").read_text()))
    arrays = renamed(hf, ("language_model.", "", "vision_tower.", "multi_modal_projector."))
    arrays["language_model.blocks.1.attn.Wqkv.weight"] = np.zeros(
        (3 * WIDTH + 1, WIDTH), np.float32
    )
    with pytest.raises(ValueError, match=r"shape: language_model.blocks.1.attn.Wqkv.weight"):
        llava.load(write(tmp_path, arrays), config, specs_of(config)[1])


def test_weights_are_loaded_sharded(reference: Reference) -> None:
    for kind in ("llama", "mpt"):
        _, folder = reference(kind)
        _, whole = from_pretrained(llava, folder)
        _, split = from_pretrained(llava, folder, sharding.make_mesh(2, 2, 2))
        kernel = split["decoder/layers/blocks/attn/q/kernel"]
        assert kernel.addressable_shards[0].data.shape == (3, WIDTH // 2, WIDTH // 2)
        assert_same(split, whole)
