"""import_weights --from openpi:DIR: generated checkpoints of pi0 and pi0.5 act as openpi's formulas
say, in both layouts; what does not fit is named and nothing is written.
"""

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import traverse_util
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from sentencepiece import SentencePieceProcessor

from experiments import import_weights
from experiments.openpi import policy as openpi_policy
from tests import openpi_reference as openpi
from tests.fakes import make_batch
from vla_jax import build, params
from vla_jax.actions import ActionSpec
from vla_jax.models.backbones import paligemma
from vla_jax.models.state_words import TEXT
from vla_jax.saved import known, open_checkpoint
from vla_jax.training.checkpoint import load_meta, load_params

TOLERANCE, KEY = 1e-5, jax.random.key(0)
INSTRUCTION = "push_the red block"


def saved(folder: Path, arrays: openpi.Arrays, value: bool = False) -> Path:
    """A checkpoint as openpi writes it; `value`: as its training does."""
    end = "/value" if value else ""
    tree = traverse_util.unflatten_dict({f"{k}{end}": v for k, v in arrays.items()}, sep="/")
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save((folder / "params").absolute(), {"params": tree})
    return folder


def converted(arrays: openpi.Arrays, pi05: bool) -> openpi.Arrays:
    """The same as openpi's conversion to PyTorch names and turns it."""
    root = "paligemma_with_expert."
    language, vision = (
        f"{root}paligemma.model.language_model.",
        f"{root}paligemma.model.vision_tower.",
    )
    tower, img = f"{vision}vision_model.", "PaliGemma/img/"
    out = {
        # Tied to the token table, of which safetensors keeps one name.
        f"{root}paligemma.lm_head.weight": arrays["PaliGemma/llm/embedder/input_embedding"],
        f"{root}gemma_expert.lm_head.weight": np.ones((openpi.VOCAB, openpi.EXPERT.width)),
        f"{tower}embeddings.patch_embedding.weight": arrays[f"{img}embedding/kernel"].transpose(
            3, 2, 0, 1
        ),
        f"{tower}embeddings.patch_embedding.bias": arrays[f"{img}embedding/bias"],
        f"{tower}embeddings.position_embedding.weight": arrays[f"{img}pos_embedding"][0],
        f"{tower}post_layernorm.weight": arrays[f"{img}Transformer/encoder_norm/scale"],
        f"{tower}post_layernorm.bias": arrays[f"{img}Transformer/encoder_norm/bias"],
        f"{root}paligemma.model.multi_modal_projector.linear.weight": arrays[f"{img}head/kernel"].T,
        f"{root}paligemma.model.multi_modal_projector.linear.bias": arrays[f"{img}head/bias"],
        f"{language}norm.weight": arrays["PaliGemma/llm/final_norm/scale"],
    }
    block = f"{img}Transformer/encoderblock/"
    w = openpi.VISION.width
    for i in range(openpi.VISION.depth):
        at = f"{tower}encoder.layers.{i}."
        for n in (0, 1):
            out[f"{at}layer_norm{n + 1}.weight"] = arrays[f"{block}LayerNorm_{n}/scale"][i]
            out[f"{at}layer_norm{n + 1}.bias"] = arrays[f"{block}LayerNorm_{n}/bias"][i]
            dense = f"{block}MlpBlock_0/Dense_{n}/"
            out[f"{at}mlp.fc{n + 1}.weight"] = arrays[f"{dense}kernel"][i].T
            out[f"{at}mlp.fc{n + 1}.bias"] = arrays[f"{dense}bias"][i]
        for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            name = f"{block}MultiHeadDotProductAttention_0/{theirs}/"
            out[f"{at}self_attn.{ours}_proj.weight"] = arrays[f"{name}kernel"][i].reshape(w, w).T
            out[f"{at}self_attn.{ours}_proj.bias"] = arrays[f"{name}bias"][i].reshape(w)
    gemma = f"{root}gemma_expert.model."
    for at, end, adaptive in ((language, "", False), (gemma, "_1", pi05)):
        out |= gemma_layers(arrays, at, end, adaptive)
    if pi05:
        out[f"{gemma}norm.dense.weight"] = arrays["PaliGemma/llm/final_norm_1/Dense_0/kernel"].T
        out[f"{gemma}norm.dense.bias"] = arrays["PaliGemma/llm/final_norm_1/Dense_0/bias"]
    else:
        out[f"{gemma}norm.weight"] = arrays["PaliGemma/llm/final_norm_1/scale"]
    for name in arrays:
        if not name.startswith("PaliGemma") and name.endswith("kernel"):
            own = name.removesuffix("/kernel")
            out[f"{own}.weight"], out[f"{own}.bias"] = arrays[name].T, arrays[f"{own}/bias"]
    return {name: np.ascontiguousarray(array, np.float32) for name, array in out.items()}


def gemma_layers(arrays: openpi.Arrays, at: str, end: str, adaptive: bool) -> openpi.Arrays:
    """Of one of the two transformers."""
    llm, out = "PaliGemma/llm/layers/", {}
    for i in range(openpi.DEPTH):
        layer = f"{at}layers.{i}."
        q = arrays[f"{llm}attn/q_einsum{end}/w"][i]
        kv = arrays[f"{llm}attn/kv_einsum{end}/w"][i]
        o = arrays[f"{llm}attn/attn_vec_einsum{end}/w"][i]
        gating = arrays[f"{llm}mlp{end}/gating_einsum"][i]
        out |= {
            f"{layer}self_attn.q_proj.weight": q.transpose(0, 2, 1).reshape(-1, q.shape[1]),
            f"{layer}self_attn.k_proj.weight": kv[0, 0].T,
            f"{layer}self_attn.v_proj.weight": kv[1, 0].T,
            f"{layer}self_attn.o_proj.weight": o.reshape(-1, o.shape[-1]).T,
            f"{layer}mlp.gate_proj.weight": gating[0].T,
            f"{layer}mlp.up_proj.weight": gating[1].T,
            f"{layer}mlp.down_proj.weight": arrays[f"{llm}mlp{end}/linear"][i].T,
        }
        for ours, theirs in (
            ("input_layernorm", "pre_attention_norm"),
            ("post_attention_layernorm", "pre_ffw_norm"),
        ):
            norm = f"{llm}{theirs}{end}/"
            if adaptive:
                out[f"{layer}{ours}.dense.weight"] = arrays[f"{norm}Dense_0/kernel"][i].T
                out[f"{layer}{ours}.dense.bias"] = arrays[f"{norm}Dense_0/bias"][i]
            else:
                out[f"{layer}{ours}.weight"] = arrays[f"{norm}scale"][i]
    return out


def run(folder: Path, out: Path, *flags: str) -> None:
    import_weights.main(["--from", f"openpi:{folder}", "--out", str(out), *flags])


def statistics(folder: Path, *, moving: int = 7) -> Path:
    """A norm_stats.json as openpi pads it, of which so many numbers vary."""
    there = (np.arange(32) < moving) * 1.0
    one = {"mean": 0.1 * there, "std": 2 * there, "q01": -1 * there, "q99": 3 * there}
    listed = {key: value.tolist() for key, value in one.items()}
    file = folder / "assets" / "bridge" / "norm_stats.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"norm_stats": {"state": listed, "actions": listed}}))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("pi05", [False, True], ids=["pi0", "pi05"])
def test_an_imported_policy_acts_as_openpi(pi05, tmp_path, capsys):
    """Orbax as released and as trained, and the conversion, give the same arrays; the policy gives
    openpi's actions at 1e-5, from its own joint passes.
    """
    arrays = openpi.arrays(pi05)
    folder, words = saved(tmp_path / "released", arrays), tmp_path / "words"
    stats = statistics(folder)
    paligemma.train_tiny_tokenizer([INSTRUCTION, TEXT], words)
    flags = ["--statistics", f"bridge={stats}", "--tokenizer", str(words)]
    run(folder, tmp_path / "out", *flags, "--chunk", str(openpi.CHUNK))
    said = capsys.readouterr().out
    assert f"statistics in it: {stats}" in said
    assert ("state: words of the prompt" in said) == pi05
    flat, meta = load_params(tmp_path / "out"), load_meta(tmp_path / "out")
    run(saved(tmp_path / "trained", arrays, value=True), tmp_path / "again")
    torch = tmp_path / "torch"
    torch.mkdir()
    save_file(converted(arrays, pi05), torch / "model.safetensors")
    (torch / "config.json").write_text(json.dumps({"action_horizon": 9}))
    run(torch, tmp_path / "from_torch")
    assert load_meta(tmp_path / "from_torch")["config"]["model"]["chunk"] == 9
    assert load_meta(tmp_path / "again")["config"]["model"]["chunk"] == 50
    for other in ("again", "from_torch"):
        there = load_params(tmp_path / other)
        assert there.keys() == flat.keys()
        for name, value in flat.items():
            np.testing.assert_array_equal(there[name], value, err_msg=name)
    acts_as_openpi(arrays, ConfigDict(meta["config"]), flat, pi05, tmp_path / "out")
    spec = ActionSpec.from_json(meta["datasets"]["bridge"]["action"])
    expected = (1.0 + 1) / 2 - 1 if pi05 else (1.0 - 0.1) / 2
    np.testing.assert_allclose(spec.normalise(np.ones(7, np.float32))[0], expected, atol=1e-6)
    if pi05:
        config = openpi_policy.policy(folder, "", None, stated=False).config
        assert not config.model.proprio


def by_openpis_rule(state: np.ndarray) -> str:
    """The text of pi0.5's prompt, of a state in robot units and the statistics above."""
    normalised = (state.astype(np.float64) + 1) / (4 + 1e-6) * 2 - 1
    bins = np.digitize(normalised, np.linspace(-1, 1, 257)[:-1]) - 1
    return f"Task: push the red block, State: {' '.join(str(x) for x in bins)};\nAction: "


def acts_as_openpi(arrays, config: ConfigDict, flat, pi05: bool, out: Path) -> None:
    graphdef, shapes, _ = params.abstract(build.model(config, *known(config, out)))
    assert shapes.keys() == flat.keys()
    rng, opened = np.random.default_rng(3), open_checkpoint(out)
    obs = make_batch(b=2, t=1, k=openpi.CHUNK, image_size=32).obs
    raw = rng.uniform(-2, 4, (2, 1, 7)).astype(np.float32)
    spec = opened.specs["bridge"].state
    assert spec is not None
    state = spec.normalise(raw)
    ids = np.array([opened.encode(INSTRUCTION)] * 2, np.int32)
    obs = obs._replace(
        proprio=state, proprio_mask=np.ones((2, 7), bool), prompt=ids,
        prompt_mask=np.ones_like(ids, bool),
    )  # fmt: skip

    @jax.jit
    def act(flat):
        model = params.merge(graphdef, flat)
        frames = model.sequence(obs)
        return model.act(obs, KEY), frames.tokens[:, :-1], frames.valid[:, :-1]

    acted, tokens, valid = act(flat)
    spoken = SentencePieceProcessor(model_file=str(out / "tokenizer" / "tokenizer.model"))
    for row in range(2):
        text = spoken.encode(by_openpis_rule(raw[row, 0]) if pi05 else f"{INSTRUCTION}\n")
        words = arrays["PaliGemma/llm/embedder/input_embedding"][[spoken.bos_id(), *text]]
        last = np.asarray(tokens[row])[np.asarray(valid[row])][-len(words) :]
        np.testing.assert_allclose(last, words * 64**0.5, rtol=1e-6)
    noise = jax.random.normal(jax.random.fold_in(KEY, 1), (2, 1, openpi.CHUNK, openpi.PADDED))
    padded = np.pad(state[:, 0], ((0, 0), (0, openpi.PADDED - 7)))
    expected = openpi.sample(
        arrays,
        (np.asarray(tokens), np.asarray(valid)),
        None if pi05 else padded,
        np.asarray(noise[:, 0], np.float64),
    )[..., :7]
    largest = np.abs(expected).max()
    assert largest > 0.3
    np.testing.assert_allclose(acted[..., :6], expected[..., :6], atol=TOLERANCE * max(1, largest))
    opening = np.clip((expected[..., 6] + 1) / 2, 0, 1)  # it flows in openpi
    np.testing.assert_allclose(acted[..., 6], opening, atol=TOLERANCE * max(1, largest))


def refused(folder: Path, tmp_path: Path, match: str, *flags: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(folder, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path):
    arrays = openpi.arrays(pi05=False)
    number = iter(range(99))

    def changed(**changes):
        """A checkpoint with other arrays; None: without."""
        own = {**arrays, **{name.replace("__", "/"): x for name, x in changes.items()}}
        kept = {name: x for name, x in own.items() if x is not None}
        return saved(tmp_path / f"in{next(number)}", kept)

    linear = "PaliGemma/llm/layers/mlp/linear"
    norm = "PaliGemma/llm/final_norm_1/scale"
    folder = changed(**{norm: None, linear: arrays[linear][:, :-1], "new__scale": np.ones(3)})
    with pytest.raises(ValueError, match="3 arrays do not fit") as caught:
        run(folder, tmp_path / "out")
    for line in (
        f"missing: {norm} (for head/norm/scale)",
        "unexpected: new/scale",
        f"shape: {linear} (for backbone/decoder/layers/blocks/mlp/down/kernel): expected"
        " (2, 256, 64), got (2, 255, 64)",
    ):
        assert line in str(caught.value)
    wide = {"PaliGemma/llm/embedder/input_embedding": np.ones((1600, 96), np.float32)}
    refused(changed(**wide), tmp_path, "expected width 2048, openpi's gemma_2b, got 96")
    adapter = {"PaliGemma/llm/layers/attn/q_einsum_1/lora_a": np.ones(3)}
    refused(changed(**adapter), tmp_path, "without adapters, got 1 of them.*q_einsum_1/lora_a")
    fast = {name: x for name, x in arrays.items() if "_1" not in name and "proj" not in name}
    fast = {name: x for name, x in fast.items() if "time" not in name}
    refused(saved(tmp_path / "fast", fast), tmp_path, "pi0-FAST has no action expert")
    both = {f"time_mlp_in/{leaf}": np.ones((3, 3)) for leaf in ("kernel", "bias")}
    refused(changed(**both), tmp_path, "other versions of openpi have other names")
    refused(
        tmp_path / "nowhere", tmp_path, "expected a checkpoint of openpi, a folder with params/"
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(
            (tmp_path / "state" / "params").absolute(), {"weights": {"x": np.ones(3)}}
        )
    refused(tmp_path / "state", tmp_path, "expected one tree named params.*got weights")
    whole = changed()
    varying = statistics(tmp_path / "droid", moving=9)
    refused(whole, tmp_path, "expected 7 numbers .* got shape .32.", "--statistics",
            f"bridge={varying}")  # fmt: skip
    refused(whole, tmp_path, "expected pi0.5, got pi0, whose state is a token", "--no_state_words")
    refused(whole, tmp_path, "expected one file", "--statistics", "a", "--statistics", "b")
    refused(whole, tmp_path, "--chunk: expected with openpi:DIR, and 1 or more", "--chunk", "0")
    (whole / "params" / "_METADATA").write_text("{")
    refused(whole, tmp_path, "orbax cannot read it")
