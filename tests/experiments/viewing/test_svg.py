"""Charts: what is drawn where."""

import re

import numpy as np
import pytest

from experiments.viewing import svg


def points(html: str) -> list[tuple[float, float]]:
    found = re.findall(r'points="([^"]*)"', html)[0].split()
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found)]


def test_a_line_runs_from_the_first_to_the_last_step_between_the_limits() -> None:
    values = np.array([[0.0], [2.0], [1.0]], np.float32)
    html = svg.charts(values, [svg.Dim("x (m)", 0.0, 2.0, False)], [1])
    low, high = svg.HEIGHT - svg.EDGE, svg.EDGE
    assert points(html) == [(0, low), (120, high), (240, (low + high) / 2)]
    assert "<b>x (m)</b> <span>0 to 2</span>" in html
    assert '<line class="change" x1="120.0"' in html
    assert "step 2</span>" in html


def test_noise_around_a_constant_stays_flat_and_outliers_stay_inside() -> None:
    """As high as the dim is in all of the data, not in this episode."""
    rng = np.random.default_rng(0)
    quiet = rng.normal(0, 1e-4, (50, 1))
    heights = [y for _, y in points(svg.charts(quiet, [svg.Dim("x", -1.0, 1.0, False)], []))]
    assert np.ptp(heights) < 0.2
    wild = np.array([[0.0], [9.0]])
    heights = [y for _, y in points(svg.charts(wild, [svg.Dim("x", -1.0, 1.0, False)], []))]
    assert min(heights) == svg.EDGE


def test_constant_dims_are_listed_and_not_drawn() -> None:
    dims = [svg.Dim("roll (rad)", 0.5, 0.5, True), svg.Dim("<x>", 0.0, 1.0, False)]
    html = svg.charts(np.array([[0.5, 1.0]]), dims, [])
    assert html.count("<svg") == 1
    assert "constant, not drawn: roll (rad) = 0.5" in html
    assert "<b>&lt;x&gt;</b>" in html


def test_a_dim_that_is_constant_but_for_this_episode_is_drawn() -> None:
    """Of 1,000 frames a gripper is open in five: both quantiles are 0."""
    html = svg.charts(np.array([[1.0], [0.0]]), [svg.Dim("gripper", 0.0, 0.0, True)], [])
    assert "not drawn" not in html
    assert "<span>0 to 1</span>" in html


def test_a_dim_without_a_range_is_a_line_in_the_middle() -> None:
    """A gripper that is nearly always open has one value at both quantiles."""
    html = svg.charts(np.ones((3, 1)), [svg.Dim("gripper", 1.0, 1.0, False)], [])
    assert {y for _, y in points(html)} == {svg.HEIGHT / 2}
    assert "<b>gripper</b> <span>1</span>" in html


@pytest.mark.parametrize("length", [1, svg.POINTS, svg.POINTS + 1, 10_000])
def test_long_episodes_keep_every_extreme(length: int) -> None:
    values = np.sin(np.arange(length))
    values[length // 3] = 9.0
    steps = svg.shown(values)
    assert len(steps) <= svg.POINTS
    assert (np.diff(steps) > 0).all()
    assert length // 3 in steps
    assert len(svg.shown(values)) == length or length > svg.POINTS
