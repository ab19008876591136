"""The Hugging Face folder of a policy: transformers reads it whole, computes the same, and we read
it back.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from experiments import export, import_weights
from tests.export.test_export import GEMMA2, checkpoint
from vla_jax import build
from vla_jax.export import hf
from vla_jax.models.backbones import paligemma
from vla_jax.robot import torch_policy
from vla_jax.training.checkpoint import load_params
from vla_jax.weights import pretrained, transforms


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "dtype"), [({}, "float32"), (GEMMA2, "bfloat16")], ids=["gemma", "gemma 2"]
)
def test_transformers_computes_the_same_and_we_read_it_back(
    sizes, dtype, tmp_path, monkeypatch, capsys
):
    tiny = paligemma.CONFIGS["tiny"]
    monkeypatch.setitem(paligemma.CONFIGS, "tiny", dataclasses.replace(tiny, **sizes))
    where = checkpoint(tmp_path, head="mlp", history="one_step", window=1, proprio=True)
    out = tmp_path / "hf"
    export.main(
        [
            "--checkpoint",
            str(where),
            "--out",
            str(tmp_path / "artefact"),
            "--hf",
            str(out),
            "--dtype",
            dtype,
        ]
    )
    printed = capsys.readouterr().out
    for stage in ("features", "words", "hidden"):
        row = re.search(rf"{stage} +(\S+) +(\S+) .* ok", printed)
        assert float(row[2]) <= 1e-5 * max(1, float(row[1]))
    by_prompt(out, tmp_path / "artefact")
    import_weights.main(["--from", f"hf:{out}", "--out", str(tmp_path / "back")])
    back, before = load_params(tmp_path / "back"), load_params(where)
    assert back.keys() == {name for name in before if name.startswith("backbone/")}
    for name, array in back.items():
        expected = before[name] if dtype == "float32" else before[name].astype(array.dtype)
        np.testing.assert_array_equal(array, expected, err_msg=name)
    with safe_open(out / "head.safetensors", "np") as file:
        assert set(file.keys()) == {name for name in before if not name.startswith("backbone/")}


def by_prompt(folder: Path, artefact: Path) -> None:
    """transformers' own processor and forward, on an image and words, against the artefact's
    network.
    """
    from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    inputs = processor(images=image, text="<image>push the red block", return_tensors="np")
    inputs = {name: torch.from_numpy(np.asarray(x)) for name, x in inputs.items()}
    network = torch_policy.load(artefact).network
    with torch.no_grad():
        theirs = model(**inputs, output_hidden_states=True).hidden_states[-1]
        visual = network.backbone.embed_image(torch.from_numpy(image)[None])
        words = network.backbone.embed_text(inputs["input_ids"][:, visual.shape[1] :])
        x = torch.cat([visual, words], 1)
        s = x.shape[1]
        ours = network.backbone.encode(
            x, torch.ones(1, s, s, dtype=torch.bool), torch.arange(s)[None], s
        )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_hubs_names_are_those_that_are_read():
    config = paligemma.CONFIGS["tiny"]
    rng, ours, stacked = np.random.default_rng(0), {}, {}
    for name, entry in paligemma.hf_names(config).items():
        shape = (192, 6) if entry.transform is transforms.conv_patches else (4, 5)
        if isinstance(entry.transform, transforms.Positions):
            shape = (config.vision.patches, 5)
        for layer in range(max(1, entry.layers)):
            one = name.replace("/blocks/", f"/blocks/{layer}/")
            ours[one] = torch.from_numpy(rng.normal(size=shape))
            stacked[pretrained.normalise(entry.source.format(layer))] = entry.transform, ours[one]
    hub = hf.hub_tensors(config, ours)
    assert {pretrained.normalise(name) for name in hub} == stacked.keys()
    assert "language_model.model.layers.1.mlp.down_proj.weight" in hub
    assert "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias" in hub
    for name, x in hub.items():
        transform, wanted = stacked[pretrained.normalise(name)]
        np.testing.assert_array_equal(transform(x.numpy()), wanted.numpy(), err_msg=name)


def test_a_tower_with_convolutions_is_refused(tmp_path):
    body = {"network": {"backbone": {"kind": "paligemma", "vision": {"stem": [2, 1]}}}}
    (tmp_path / "config.json").write_text(json.dumps(body))
    with pytest.raises(ValueError, match="got one with convolutions"):
        hf.write(tmp_path, tmp_path, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.slow
def test_a_difference_leaves_no_folder(tmp_path, monkeypatch):
    where = checkpoint(tmp_path, head="mlp")
    export.main(["--checkpoint", str(where), "--out", str(tmp_path / "artefact")])
    write = ["--artefact", str(tmp_path / "artefact"), "--hf", str(tmp_path / "hf")]
    with pytest.raises(ValueError, match="expected --tokenizer=DIR"):
        export.main(write)
    paligemma.train_tiny_tokenizer(["other words"], tmp_path / "other")
    with pytest.raises(ValueError, match=r"the tokenizer in .*other is not the one in"):
        export.main([*write, "--tokenizer", str(tmp_path / "other")])
    names = paligemma.hf_names

    def swapped(
        config,
    ):  # two norms of a layer change places: every name fits, and the numbers do not
        table = names(config)
        a, b = (f"decoder/layers/blocks/norm_{x}/scale" for x in ("attn", "mlp"))
        return table | {a: table[b], b: table[a]}

    monkeypatch.setattr(paligemma, "hf_names", swapped)
    with pytest.raises(ValueError, match="transformers and the artefact differ at hidden"):
        export.main([*write, "--tokenizer", str(tmp_path / "tokenizer")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "artefact",
        "checkpoints",
        "other",
        "tokenizer",
    ]


def test_what_has_no_counterpart_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"network": {"backbone": {"kind": "kosmos2"}}})
    )
    with pytest.raises(ValueError, match="--hf: expected the backbone paligemma, got kosmos2"):
        hf.write(tmp_path, tmp_path, tmp_path / "hf")
    with pytest.raises(ValueError, match="q_scale: transformers' config cannot say"):
        hf.hub_config(
            dataclasses.replace(build.BACKBONES["paligemma"].CONFIGS["tiny"], q_scale=0.3), 1
        )
    with pytest.raises(
        ValueError, match="expected --checkpoint and --out, or --artefact without them"
    ):
        export.main(["--artefact", str(tmp_path), "--out", str(tmp_path / "out")])
