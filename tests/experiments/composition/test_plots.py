"""What the pictures of runs and datasets show, and what they leave out."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from data_pipelines import report
from data_pipelines.builders.blocks import write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from data_pipelines.mixture import Member
from experiments.composition import film, plots


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Member:
    """Of blocks: roll and pitch never move there."""
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=6, val=2)
    return Member.fit(open_index(root, DATASETS["blocks"]), "train", 1.0, ("q99",))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures instead of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, out, tight=True: figures.append(figure))
    return figures


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_curves_have_units_and_none_of_a_constant_dim(
    member: Member, drawn: list[Figure], tmp_path: Path
) -> None:
    names = ("loss", "arm", "l1/x", "l1/roll", "l1/yaw", "l1/gripper")
    row = {"step": 1, "loss": 0.5} | {f"val/{name}": 0.1 for name in names}
    row["val/gripper"] = None  # of a robot without one
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    plots.curves(tmp_path / "metrics.jsonl", [member], tmp_path / "curves.png")
    assert titles(drawn[0]) == ["loss", "arm", "l1/gripper", "l1/x", "l1/yaw"]
    assert drawn[0].get_suptitle() == "constant in training, not drawn: l1/pitch, l1/roll"
    said = [(axis.get_xlabel(), axis.get_ylabel()) for axis in drawn[0].axes[:5]]
    assert said == [
        ("step", "network units"),
        ("step", "network units"),
        ("step", "|error| of P(gripper)"),
        ("step", "|error| of x (table widths)"),
        ("step", "|error| of yaw (rad)"),
    ]


def test_curves_show_what_was_carried_out_and_rollouts(
    member: Member, drawn: list[Figure], tmp_path: Path
) -> None:
    names = [*(f"executed_at/{step}" for step in range(12)), "executed_arm", "executed/x", "arm"]
    names += ["drift/x", "gap/images_blanked", "gap/instruction_swapped", "l1/x", "loss"]
    row = {"step": 1, "loss": 0.5, "train/l1/x": 0.2} | {f"val/{name}": 0.1 for name in names}
    late = {"rollout/success": 0.5, "rollout/low": 0.4, "rollout/high": 0.6}
    rows = [row, row | {"step": 2}, {"step": 2} | late, {"step": 1} | late]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plots.curves(tmp_path / "metrics.jsonl", [member], tmp_path / "curves.png")
    lines = {axis.get_title(): axis.get_legend_handles_labels()[1] for axis in drawn[0].axes}
    assert lines == {
        "loss": ["train", "held out"],
        "arm": ["held out", "executed"],
        "arm error by chunk step": [str(step) for step in range(12)],
        "drift/x": ["held out"],
        "error with a change / without": ["images blanked", "instruction swapped"],
        "l1/x": ["train", "held out", "next action, executed"],
        "success": ["success", "95%"],
    } | {title: each for title, each in lines.items() if not title}
    success = next(axis for axis in drawn[0].axes if axis.get_title() == "success")
    assert success.lines[0].get_xdata().tolist() == [1, 2]


def test_korean_words_cost_no_warning(tmp_path: Path) -> None:
    figure, axis = plots.plt.subplots(figsize=(2, 1))
    axis.set_title("컵까지")
    plots.save(figure, tmp_path / "korean.png")
    assert (tmp_path / "korean.png").read_bytes()[:4] == b"\x89PNG"


def test_a_dim_that_moves_in_one_dataset_of_a_mixture_is_drawn(member: Member) -> None:
    spec = dataclasses.replace(member.action_spec, constant=(4,))  # there, roll moves
    other = dataclasses.replace(member, action_spec=spec)
    assert plots.constant_dims([member]) == ["roll", "pitch"]
    assert plots.constant_dims([member, other]) == ["pitch"]


def test_predicted_actions_have_units_and_no_panel_of_a_constant_dim(
    member: Member, drawn: list[Figure], tmp_path: Path
) -> None:
    true = np.zeros((12, 7), np.float32)
    plots.actions(true + 0.01, true, member, "an episode", tmp_path / "actions.png")
    moving = ["x (table widths)", "y (table widths)", "z (table widths)", "yaw (rad)"]
    assert titles(drawn[0]) == [*moving, "gripper (1 = open)"]
    assert {axis.get_xlabel() for axis in drawn[0].axes[:5]} == {"frame"}
    assert drawn[0].get_suptitle().splitlines() == [
        "an episode",
        "constant in training, not drawn: roll (rad), pitch (rad)",
    ]


def test_histograms_have_units_and_none_of_a_constant_dim(
    member: Member, drawn: list[Figure], tmp_path: Path
) -> None:
    described, split = member.index.dataset, member.index.splits["train"]
    plots.dataset(described, split, report.measure(described, split), tmp_path / "blocks.png")
    roll, yaw = drawn[0].axes[3], drawn[0].axes[5]
    assert roll.get_title() == "roll: constant"
    assert not roll.patches
    assert (yaw.get_xlabel(), yaw.get_ylabel()) == ("yaw (rad)", "frames")
    assert yaw.patches
    odd = split.actions.copy()
    odd[0, 3] = 0.5  # one frame: both quantiles are 0 all the same
    stats = split.stats | {"action": split.stats["action"] | {"max": odd.max(0)}}
    split = dataclasses.replace(split, actions=odd, stats=stats)
    plots.dataset(described, split, report.measure(described, split), tmp_path / "blocks.png")
    roll = drawn[1].axes[3]
    assert roll.get_title().endswith("constant but for outliers")
    assert roll.patches


def test_frames_of_a_strip_are_separated_by_lines(member: Member) -> None:
    described, split = member.index.dataset, member.index.splits["train"]
    steps = film.steps(int(split.length[0]))
    assert (steps[0], steps[-1], len(steps)) == (0, split.length[0] - 1, film.FRAMES)
    strip = film.strip(described, split, 0, "wrist", 40)
    assert strip.shape == (40, film.FRAMES * 42 - 2, 3)
    lines = strip.reshape(40, -1, 3)[:, 40::42]
    assert (lines == 255).all()
    assert not (strip[:, :40] == 255).all()


def test_a_strip_keeps_the_shape_of_pictures_and_of_short_episodes() -> None:
    assert film.steps(3) == [0, 1, 2]
    wide = [np.zeros((4, 6, 3), np.uint8)] * 3
    assert film.joined(wide).shape == (4, 22, 3)
    assert (film.joined(wide)[:, 6:8] == 255).all()
