"""Others' files of statistics: the same numbers in every format; what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from experiments.composition import statistics
from experiments.configs import oxe_paligemma

ACTION = {
    key: (np.arange(7) / 10 + shift).tolist()
    for key, shift in (("mean", 0.5), ("std", 1), ("min", -2), ("max", 3), ("q01", -1), ("q99", 2))
}
OCTO = {{"q01": "p01", "q99": "p99"}.get(key, key): value for key, value in ACTION.items()}
OPENPI = {key: value for key, value in ACTION.items() if key not in ("min", "max")}
MASK = [True] * 6 + [False]


def config(rules: tuple[Any, ...] = ("q99", ("bounds", -0.65, 0.65)), mixture: str = "bridge"):
    made = oxe_paligemma.get_config()
    made.data.mixture, made.data.normalise = mixture, rules
    return made


def written(folder: Path, body: Any) -> str:
    file = folder / "statistics.json"
    file.write_text(json.dumps(body))
    return str(file)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"action": ACTION, "num_trajectories": 3}, ""),  # RoboVLMs
        ({"action": OCTO, "proprio": {}}, ""),
        ({"bridge_orig": {"action": ACTION | {"mask": MASK}, "num_transitions": 9}}, ""),  # OpenVLA
        ({"norm_stats": {"state": {}, "actions": OPENPI}}, ""),
        ({"somewhere": {"action": ACTION}}, "bridge="),
    ],
)
def test_every_format_gives_the_same_actions(body, name, tmp_path):
    """RoboVLMs' own formula: x = (y + 1) / 2 * (q99 - q01) + q01 of y = 1.3 (z + 1) / 2 - 0.65."""
    specs = statistics.specs(config(), [name + written(tmp_path, body)])
    assert specs.keys() == {"bridge"}
    network = np.linspace(-1, 1, 7)
    inner = 0.65 * network[:6]
    q01, q99 = (np.array(ACTION[key])[:6] for key in ("q01", "q99"))
    robot = specs["bridge"].unnormalise(network)
    np.testing.assert_allclose(robot[:6], (inner + 1) / 2 * (q99 - q01) + q01, atol=1e-6)
    assert robot[6] == 1  # a probability becomes open or closed


def test_a_mixture_keeps_every_datasets_own(tmp_path):
    other = {key: (np.array(value) * 2).tolist() for key, value in ACTION.items()}
    body = {"bridge_orig": {"action": ACTION}, "rt_1": {"action": other}}
    specs = statistics.specs(config(mixture="oxe_magic_soup"), [written(tmp_path, body)])
    assert specs.keys() == {"bridge", "fractal20220817_data"}
    one, two = (specs[name].units()[:6] for name in specs)
    np.testing.assert_allclose(two, 2 * one)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([1], "got list"),
        ({"steps": 3}, "got steps"),
        ({"action": {"q01": [0] * 7}}, "expected mean of the action"),
        ({"action": {key: value[:6] for key, value in ACTION.items()}}, "expected 7 numbers"),
        ({"action": ACTION | {"mask": [True] * 7}}, r"mask: expected bridge's binary dims \(6,\)"),
        ({"nowhere": {"action": ACTION}}, "expected the name of a dataset of ours, got 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_named(body, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        statistics.specs(config(), [written(tmp_path, body)])


def test_without_a_file_only_limits_of_the_config_make_a_spec(tmp_path, capsys):
    calvin = config((("bounds", -0.65, 0.65),), "calvin")
    assert statistics.specs(calvin, []).keys() == {"calvin"}
    assert statistics.specs(config(), []) == {}
    assert "give --statistics=FILE" in capsys.readouterr().out
    assert len(DATASETS["calvin"].action_names) == 7
