"""The recorded episodes that the tests of a replay share, and an artefact that belongs to them."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from experiments.replaying import regret, rollout
from experiments.replaying.recorded import Recording, Where, open_recording
from tests.experiments.replaying.fake_policy import K
from vla_jax.actions import ActionSpec


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rlds")
    write_blocks(folder, train=6, val=4)
    return folder


@pytest.fixture(scope="session")
def artefact(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of an artefact says which data it belongs to."""
    folder = tmp_path_factory.mktemp("artefact")
    dataset, stats = DATASETS["blocks"], open_index(root, DATASETS["blocks"]).splits["train"].stats
    specs = {
        "action": (
            ActionSpec.fit(
                dataset.action_names, dataset.binary, stats["action"], ("q99",)
            ).to_json()
        ),
        "state": ActionSpec.fit(dataset.state_names, (), stats["state"], ("q99",)).to_json(),
    }
    config = {
        "cameras": ["primary", "wrist"],
        "image": {"size": 24, "resize": "bicubic"},
        "network": {
            "sequence": {"state": {"dims": 7}, "window": 2},
            "head": {"kind": "mlp", "chunk": K},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "norm_stats.json").write_text(json.dumps({"datasets": {"blocks": specs}}))
    (folder / "SHA256SUMS").write_text("")
    return folder


@pytest.fixture(scope="session")
def recording(root: Path, artefact: Path) -> Recording:
    return open_recording(artefact, Where(str(root), "blocks", None))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that is learnt in a second."""
    monkeypatch.setattr(regret, "HIDDEN", 32)
    monkeypatch.setattr(regret, "EPOCHS", 6)
    monkeypatch.setattr(regret, "LEAST_UPDATES", 400)


@pytest.fixture(autouse=True)
def in_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes have no network to go through at once."""

    def act(policy: Any, given: list[Any]) -> list[Any]:
        outs = []
        for each in given:
            out = policy.act(*each)
            out |= {"normalised": policy.stages["action"].numpy()}
            outs.append({name: value for name, value in out.items() if name != "timing"})
        return outs

    monkeypatch.setattr(rollout, "act_in_row", act)
