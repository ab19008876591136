"""The benchmark of training compares the same policy: both sides' losses are one curve."""

import json

import pytest

from experiments import benchmark
from experiments.benchmarks import train_ours


@pytest.mark.slow
@pytest.mark.parametrize("step", ["action", "language"])
def test_both_train_alike(tmp_path, step):
    """float32 on one processor: 20 steps within what sums in another order make of it."""
    out = tmp_path / "table.json"
    assert (
        benchmark.main(["train", "--step", step, "--repeats=1", "--steps=1", f"--json={out}"]) == 0
    )
    table = json.loads(out.read_text())
    assert table["difference"] < 1e-4
    for side in ("ours", "torch"):
        assert table[side]["seconds"] > 0
        assert 0 < table[side]["mfu"] < 1
    assert table["ratio_seconds"] == table["torch"]["seconds"] / table["ours"]["seconds"]


@pytest.mark.slow
def test_another_policy_fails(tmp_path, monkeypatch):
    """What the comparison is worth: a peer with another learning rate ends with 1."""
    from experiments.benchmarks import train

    write = train.write_inputs

    def changed(folder, args):
        config = write(folder, args)
        inputs = json.loads((folder / "inputs.json").read_text())
        inputs["optim"]["lr"] *= 3
        (folder / "inputs.json").write_text(json.dumps(inputs))
        return config

    monkeypatch.setattr(train, "write_inputs", changed)
    assert benchmark.main(["train", "--repeats=1", "--steps=1"]) == 1


@pytest.mark.slow
def test_ours_beside_ours_changed():
    """--against reaches the other side: with another learning rate it trains otherwise."""
    assert benchmark.main(["train", "--repeats=1", "--steps=1", "--against", "optim.lr=0.001"]) == 1


def test_only_fields_that_exist_are_changed():
    args = {"size": "tiny", "step": "action", "dtype": "float32", "remat": "none",
            "layers": "unroll", "batch": None}  # fmt: skip
    config = train_ours.configuration(args)
    train_ours.change(config, ["model.remat=full", "optim.mu_dtype=bfloat16", "batch_size=2"])
    assert (config.model.remat, config.optim.mu_dtype, config.batch_size) == ("full", "bfloat16", 2)
    for text, said in (
        ("model.remats=full", "no such field; did you mean model.remat"),
        ("model=1", "no such field"),
        ("model.remat", "expected a value, as in --config.model.remat='full'"),
    ):
        with pytest.raises(ValueError, match=said):
            train_ours.change(config, [text])
