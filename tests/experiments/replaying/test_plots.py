"""What the pictures of a replay show, and what they leave out."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.replaying import calibration, plots
from experiments.replaying.recorded import Recording
from tests.experiments.replaying.fake_policy import replayed


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures instead of their files."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, out: figures.append(figure))
    return figures


def test_traces_have_units_and_no_row_of_a_constant_dim(
    recording: Recording, drawn: list[Figure], tmp_path: Path
) -> None:
    plots.traces([replayed(recording, 0), replayed(recording, 1)], recording, tmp_path / "t.png")
    axes = drawn[0].axes
    assert len(axes) == 2 * 5
    moving = [f"{name} (table widths)" for name in "xyz"]
    assert [axis.get_ylabel() for axis in axes[::2]] == [*moving, "yaw (rad)", "gripper (1 = open)"]
    assert {axis.get_xlabel() for axis in axes[-2:]} == {"frame"}
    assert "constant in training, not drawn: roll (rad), pitch (rad)" in drawn[0].get_suptitle()


@pytest.mark.parametrize(("steps", "curves"), [(plots.LEAST - 1, 0), (plots.LEAST, 3)])
def test_reliability_is_drawn_with_enough_steps_only(
    drawn: list[Figure], tmp_path: Path, steps: int, curves: int
) -> None:
    rng = np.random.default_rng(0)
    said, right = rng.uniform(0.5, 1, steps), rng.random(steps) < 0.7
    kind = calibration.reliability(said, right.astype(float))
    plots.reliability({"gripper": {"raw": kind, "calibrated": kind}}, tmp_path / "r.png")
    (axis,) = drawn[0].axes
    assert axis.get_title() == f"gripper ({steps} steps)"
    assert len(axis.lines) == curves  # the diagonal and two kinds
    told = [text.get_text() for text in axis.texts]
    assert ("200" in "".join(told)) == (not curves)
