"""Every config file: what it says, that it can be built, and that its small form trains."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import vla_jax
from data_pipelines.builders.blocks import write_blocks
from data_pipelines.builders.blocks_captions import write_captions
from experiments import evaluate, export, pretrain
from experiments.composition import spaces
from experiments.composition.config import CONFIGS, diff, load_config
from vla_jax import build, sharding
from vla_jax import params as flat
from vla_jax.training import optim
from vla_jax.training.checkpoint import load_params

FILES = sorted(path.name for path in CONFIGS.glob("*.py") if path.name != "__init__.py")
WORLDS = ("blocks.py", "blocks_vlm.py", "navigation.py")  # tiny, whatever the words
LETTERS = "abcdefghijklmnopqrstuvwxyz"


# These go on from a run, which is to be named.
STARTED = (
    "blocks_dpo.py", "blocks_ppo.py", "blocks_reward.py", "blocks_success.py", "finetune.py",
    "metaworld_ppo.py",
)  # fmt: skip
# These begin at words of the others.
SMALL = (*STARTED, "calvin_tiny.py", "libero.py", "metaworld.py", *WORLDS)


def test_every_file_is_named_here() -> None:
    assert FILES == [
        "blocks.py", "blocks_dpo.py", "blocks_ppo.py", "blocks_reward.py", "blocks_success.py",
        "blocks_vlm.py", "bridge_paligemma.py", "calvin_flamingo.py", "calvin_kosmos.py",
        "calvin_tiny.py", "finetune.py", "libero.py", "metaworld.py",
        "metaworld_ppo.py", "navigation.py", "oxe_llava.py", "oxe_paligemma.py", "oxe_qwen3vl.py",
        "oxe_smolvlm.py",
    ]  # fmt: skip


@pytest.mark.parametrize("file", [file for file in FILES if file not in SMALL])
def test_words_mean_the_same_in_every_file(file: str) -> None:
    plain = load_config(file).to_dict()
    assert diff(plain, load_config(f"{file}:gpt,lora").to_dict()).keys() == {
        "lora.rank", "model.head", "model.head_layers", "optim.lr"
    }  # fmt: skip
    for word in ("discrete", "fast"):
        made = load_config(f"{file}:{word}")
        assert (made.model.head, made.model.history) == (word, "interleaved")
    tiny = load_config(f"{file}:tiny")
    assert (tiny.data.mixture, tiny.model.variant, tiny.model.weights) == ("blocks", "tiny", "none")
    assert tiny.model.cameras == load_config(file).model.cameras
    for wrong in ("huge", "gpt,flow", "tiny,mtp", "tiny,small"):
        with pytest.raises(
            ValueError,
            match="'lora', one of tiny, small, base and one of gpt, attention, flow, discrete, .*"
            f"'{wrong}'",
        ):
            load_config(f"{file}:{wrong}")


def test_what_the_files_say() -> None:
    bridge, kosmos = load_config("bridge_paligemma.py"), load_config("calvin_kosmos.py")
    assert diff(load_config("oxe_paligemma.py").to_dict(), bridge.to_dict()).keys() == {
        "data.mixture"
    }
    assert (kosmos.model.window, kosmos.model.chunk, kosmos.model.cameras) == (
        16,
        10,
        ("primary", "wrist"),
    )
    assert (kosmos.optim.lr, kosmos.optim.warmup_epochs, kosmos.model.dtype) == (
        2e-5,
        0.25,
        "bfloat16",
    )
    assert kosmos.data.normalise == (("bounds", -0.65, 0.65),)
    assert (kosmos.loss.arm, kosmos.loss.gripper, kosmos.batch_size) == (1.0, 0.01, 32)
    flamingo = load_config("calvin_flamingo.py")
    assert diff(kosmos.to_dict(), flamingo.to_dict()).keys() == {
        "model.backbone", "model.variant", "model.weights", "model.window", "optim.lr",
        "optim.weight_decay"
    }  # fmt: skip
    assert (flamingo.optim.lr, flamingo.optim.weight_decay) == (1e-4, 0.1)
    sizes = [
        load_config(f"oxe_llava.py:{words}").model
        for words in ("", "mpt", "tiny", "tiny,mpt", "mpt,gpt")
    ]
    assert [size.variant for size in sizes] == ["1.5-7b", "mpt-7b", "tiny", "tiny-mpt", "mpt-7b"]
    assert [size.image_size for size in sizes] == [336, 224, 32, 32, 224]
    with pytest.raises(ValueError, match=r"expected 'mpt', 'lora', one of tiny,"):
        load_config("oxe_llava.py:mtp")
    sizes = [load_config(f"oxe_smolvlm.py:{words}").model for words in ("", "256m", "2.2b", "tiny")]
    assert [size.variant for size in sizes] == ["500m", "256m", "2.2b", "tiny"]
    assert [size.image_size for size in sizes] == [512, 512, 378, 32]
    assert load_config("oxe_qwen3vl.py:4b").model.variant == "4b"
    with pytest.raises(ValueError, match=r"one of 256m, 2\.2b and tiny at most"):
        load_config("oxe_smolvlm.py:256m,2.2b")


@pytest.mark.parametrize(
    ("file", "own"),
    [("blocks.py", {"model.proprio"}), ("navigation.py", {"data.root", "data.mixture"})],
)
def test_worlds_are_tiny_whatever_the_words(file: str, own: set[str]) -> None:
    plain = load_config(file).to_dict()
    assert diff(load_config("oxe_paligemma.py:tiny").to_dict(), plain).keys() == own | {
        "steps", "batch_size", "model.window", "model.head", "model.prompt_length"
    }  # fmt: skip
    assert diff(plain, load_config(f"{file}:flow").to_dict()).keys() == {
        "model.head", "model.head_layers"
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"one of tiny, small, base .*'tiny,small'"):
        load_config(f"{file}:small")


@pytest.mark.parametrize("file", ["libero.py", "metaworld.py"])
def test_simulated_arms_are_tiny_with_larger_pictures(file: str) -> None:
    plain = load_config(file).to_dict()
    changed = diff(load_config("oxe_paligemma.py:tiny").to_dict(), plain).keys()
    assert {key.partition(".")[0] for key in changed} - {"batch_size", "optim"} == {
        "steps",
        "log_every",
        "eval_every",
        "save_every",
        "data",
        "augment",
        "loss",
        "model",
    }
    assert (plain["model"]["variant"], plain["model"]["image_sizes"]) == ("tiny", (96, 64))
    assert diff(plain, load_config(f"{file}:gpt").to_dict()).keys() == {
        "model.head", "model.head_layers"
    }  # fmt: skip


def test_calvin_tiny_is_small_whatever_the_words() -> None:
    plain = load_config("calvin_tiny.py").to_dict()
    changed = diff(load_config("oxe_paligemma.py:tiny").to_dict(), plain).keys()
    assert {"data.mixture", "model.cameras", "model.variant", "model.chunk"} < changed
    assert not changed & {"model.backbone", "model.weights"}
    assert diff(plain, load_config("calvin_tiny.py:flow").to_dict()).keys() == {
        "model.head", "model.head_layers"
    }  # fmt: skip


@pytest.mark.parametrize("file", [file for file in FILES if file not in STARTED])
def test_the_rate_that_a_file_asks_for_can_be_had(file: str) -> None:
    config = load_config(file)
    rate = optim.make_schedule(build.optim(config)[0], config.steps, steps_per_epoch=1_000)
    assert rate(config.steps - 1) > 0


@pytest.mark.parametrize(("word", "millions", "pixels"), [("small", 30, 128), ("base", 105, 224)])
def test_sizes_between(word: str, millions: int, pixels: int) -> None:
    """Trained from nothing, with any head, on images of any whole number of patches."""
    config = load_config(f"oxe_paligemma.py:{word},gpt")
    assert (config.model.head, config.model.weights, config.model.image_size) == (
        "gpt", "none", pixels
    )  # fmt: skip
    config = spaces.resolve(load_config(f"oxe_paligemma.py:{word}"))
    shapes = flat.abstract(build.model(config))[1]
    assert sum(math.prod(x.shape) for x in shapes.values()) == pytest.approx(
        1e6 * millions, rel=0.1
    )
    config.model.image_size = pixels + 32
    larger = flat.abstract(build.model(config))[1]["backbone/vision/positions"]
    assert larger.shape[0] == ((pixels + 32) // 16) ** 2
    config.model.image_size = pixels + 3
    with pytest.raises(ValueError, match=rf"expected a multiple of 16, .* got {pixels + 3}"):
        build.model(config)
    with pytest.raises(ValueError, match=f"{word}: expected a config of PaliGemma, got kosmos2"):
        load_config(f"calvin_kosmos.py:{word}")


# What each says of itself: millions of parameters, GiB of state on each of 8 devices, GiB of
# activations per window.
BUILT = {
    "bridge_paligemma.py": (2964.7, 5.5, 0.32),
    "calvin_kosmos.py": (1705.7, 3.2, 1.31),
    "calvin_flamingo.py": (2599.8, 4.8, 1.31),
    "oxe_llava.py": (6969.1, 13.0, 1.64),
    "oxe_llava.py:mpt": (6993.7, 13.0, 0.72),
    "oxe_paligemma.py:gpt": (3029.8, 5.6, 0.33),
    "oxe_paligemma.py:flow": (2992.4, 5.6, 0.37),
    "oxe_paligemma.py:discrete": (2923.5, 5.4, 0.37),
    "oxe_paligemma.py:lora": (2993.0, 0.9, 0.31),
    "oxe_qwen3vl.py": (2167.9, 4.0, 0.37),
    "oxe_qwen3vl.py:4b": (4480.3, 8.3, 0.43),
    "oxe_smolvlm.py": (496.9, 0.9, 0.3),
    "oxe_smolvlm.py:256m": (263.3, 0.5, 0.27),
    "oxe_smolvlm.py:2.2b": (2187.1, 4.1, 0.53),
}


@pytest.mark.slow
@pytest.mark.parametrize("spec", BUILT)
def test_dry_run(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.main(
        [f"--config={spec}", "--config.model.weights=none", "--config.mesh.fsdp=8", "--dry_run"]
    )
    said = capsys.readouterr().out
    matches = [
        re.search(pattern, said)
        for pattern in (r"total: ([\d,]+) par", r"total +([\d,]+) ", r"([\d,.]+) MiB of")
    ]
    total, state, kept = (float(match[1].replace(",", "")) for match in matches if match)
    figures = (round(total / 1e6, 1), round(state / 2**30, 1), round(kept / 2**10, 2))
    with capsys.disabled():
        print(
            f"\n{spec}: {figures[0]:,} M, {figures[1]} GiB, {figures[2]} GiB per window;"
            f" {said.splitlines()[-1]}"
        )
    assert figures == BUILT[spec]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_blocks(root, train=6, val=2)
    write_captions(root, train=6, val=3)
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP text encoder whose tokenizer knows letters."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    pieces = [
        *LETTERS,
        *(f"{letter}</w>" for letter in LETTERS),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]).save_pretrained(
        folder
    )
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "projection_dim": 24, "vocab_size": len(pieces), "bos_token_id": len(pieces) - 2,
        "pad_token_id": len(pieces) - 1, "eos_token_id": len(pieces) - 1,
    }  # fmt: skip
    CLIPTextModelWithProjection(CLIPTextConfig(**sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One device and few optimisations: compiling is what these runs spend their time on."""
    make = sharding.make_mesh

    def one(
        data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None
    ) -> jax.sharding.Mesh:
        return make(data, fsdp, tensor, devices or jax.devices()[:1])

    monkeypatch.setattr(sharding, "make_mesh", one)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def train(spec: str, root: Path, workdir: Path, *more: str) -> list[dict[str, float]]:
    """Two steps, an evaluation and a checkpoint; what was recorded."""
    pretrain.main(
        [f"--config={spec}", f"--config.data.root={root}", f"--workdir={workdir}",
        "--config.steps=2",
         "--config.batch_size=8", "--config.log_every=1", "--config.eval_every=2",
         "--config.eval_batches=1",
         "--config.save_every=2", "--config.optim.warmup_steps=1", *more]
    )  # fmt: skip
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert "val/loss" in rows[-1]
    return rows


def figures(workdir: Path) -> dict[str, float]:
    """What experiments.evaluate finds."""
    evaluate.main([f"--workdir={workdir}"])
    assert (workdir / "actions.png").is_file()
    return json.loads((workdir / "evaluation.json").read_text())["datasets"]["blocks"]


# The other words (gpt, attention, flow, lora) and the plain PaliGemma train in test_pretrain.py.
@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("spec", "more"),
    [
        ("bridge_paligemma.py:tiny", ["--config.model.layout=robovlms"]),
        ("oxe_llava.py:tiny", []),
        ("oxe_llava.py:tiny,mpt", ["--config.model.history=interleaved"]),
        ("calvin_flamingo.py:tiny", []),
        (
            "oxe_qwen3vl.py:tiny",
            ["--config.lora.rank=4", "--config.model.layers=scan", "--config.model.remat=full"],
        ),
        ("oxe_qwen3vl.py:tiny,discrete", ["--config.objectives.caption.weight=0.1"]),
        ("oxe_qwen3vl.py:tiny,flow", ["--config.model.resampler.depth=1"]),
        ("oxe_smolvlm.py:tiny", ["--config.lora.rank=4", "--config.model.resampler.depth=1"]),
        ("oxe_smolvlm.py:tiny,discrete", ["--config.objectives.caption.weight=0.1"]),
    ],
)
def test_the_small_forms_train(spec: str, more: list[str], root: Path, tmp_path: Path) -> None:
    rows = train(spec, root, tmp_path, *more)
    assert rows[0]["loss"] != rows[1]["loss"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_policy_begins_with_a_backbone_that_learnt_texts_alone(
    root: Path, tmp_path: Path
) -> None:
    train("blocks_vlm.py", root, tmp_path / "vlm")
    weights = f"--config.model.weights={tmp_path / 'vlm' / 'checkpoints'}"
    words = f"--config.model.tokenizer={tmp_path / 'vlm' / 'tokenizer'}"
    train("blocks.py", root, tmp_path / "policy", weights, words, "--config.optim.lr=0")
    train("blocks.py", root, tmp_path / "alone", words, "--config.optim.lr=0")
    vlm, policy, alone = (
        load_params(tmp_path / name / "checkpoints") for name in ("vlm", "policy", "alone")
    )
    assert vlm.keys() == policy.keys() == alone.keys()
    for name in vlm:  # no action counted: what is not the backbone's stands where it began
        np.testing.assert_array_equal(policy[name], vlm[name], err_msg=name)
    learnt = {name for name in vlm if not np.array_equal(vlm[name], alone[name])}
    assert "backbone/vision/patch/kernel" in learnt
    assert all(name.startswith("backbone/") for name in learnt)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_discrete_trains_and_evaluates(root: Path, tmp_path: Path) -> None:
    train("oxe_paligemma.py:tiny,discrete", root, tmp_path)
    evaluated = figures(tmp_path)
    assert evaluated["windows"] > 0
    assert evaluated["arm_loss"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_fast_trains_and_evaluates_and_its_vocabulary_is_of_its_data_alone(
    root: Path, tmp_path: Path
) -> None:
    rows = train("oxe_paligemma.py:tiny,fast", root, tmp_path / "one")
    assert rows[0]["loss"] != rows[1]["loss"]
    assert all(0 <= row["train/broken"] <= 1 for row in rows)
    evaluated = figures(tmp_path / "one")
    assert evaluated["arm_loss"] > 0  # where it writes no chunk it is held
    assert 0 <= evaluated.get("held", 0) <= 1
    file = f"--config.model.fast.file={tmp_path / 'one' / 'fast.json'}"
    same = train("oxe_paligemma.py:tiny,fast", root, tmp_path / "two", file)
    assert [row["loss"] for row in same] == [row["loss"] for row in rows]
    policy = vla_jax.load_policy(tmp_path / "two" / "checkpoints", dataset="blocks")
    policy.reset("push the red block to the left")
    chunk = policy.act({name: np.zeros((32, 32, 3), np.uint8) for name in policy.cameras})
    assert np.isfinite(chunk).all()
    with pytest.raises(ValueError, match="is of other data: expected chunks of 2, got 4"):
        train(
            "oxe_paligemma.py:tiny,fast", root, tmp_path / "three", file, "--config.model.chunk=2"
        )


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_an_insulated_expert_trains_beside_strings_and_exports_without(
    root: Path, tmp_path: Path
) -> None:
    """Knowledge insulation: the backbone learns from strings, the expert from its actions."""
    insulated = [
        "--config.model.head_options=insulated=True", "--config.objectives.fast.weight=1",
        f"--config.data.root={root}", "--config.batch_size=8", "--config.eval_every=0",
        "--config.log_every=8", "--config.optim.warmup_steps=1", "--config.optim.lr=0.003",
    ]  # fmt: skip
    pretrain.main(
        ["--config=oxe_paligemma.py:tiny,expert", *insulated, "--config.steps=24",
         "--config.save_every=24", f"--workdir={tmp_path / 'run'}"]
    )  # fmt: skip
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first, *_, last = (json.loads(line) for line in lines)
    for task in ("action", "fast"):
        assert last[f"train/loss/{task}"] < 0.9 * first[f"train/loss/{task}"], task
    assert (tmp_path / "run" / "fast.json").is_file()
    export.main(
        ["--checkpoint", str(tmp_path / "run" / "checkpoints"), "--out", str(tmp_path / "artefact")]
    )
    written = json.loads((tmp_path / "artefact" / "config.json").read_text())["network"]
    assert written["head"]["kind"] == "expert"


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_kosmos_trains_on_every_objective_and_input_at_once_and_evaluates(
    root: Path, clip: Path, tmp_path: Path
) -> None:
    rows = train(
        "calvin_kosmos.py:tiny", root, tmp_path, "--config.model.proprio=True",
        "--config.model.past_action=True",
        "--config.objectives.forward.weight=0.1", "--config.objectives.caption.weight=0.05",
        "--config.objectives.image_text.weight=0.05",
        "--config.objectives.image_text.dataset=blocks_questions",
        "--config.objectives.text_align.weight=0.05", "--config.objectives.text_align.width=24",
        f"--config.objectives.text_align.clip={clip}",
    )  # fmt: skip
    for task in ("forward", "caption", "image_text", "text_align"):
        assert all(row[f"train/{task}"] > 0 for row in rows), task
    assert figures(tmp_path)["arm_loss"] > 0
