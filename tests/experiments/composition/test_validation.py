"""What a run is measured by while it trains: gaps of policies that ignore something, drift, and
which windows count for which dataset.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.datasets.navigation import NAVIGATION
from data_pipelines.mixture import Member
from experiments.composition.executed import Tally, drift_unit, motion
from experiments.composition.open_loop import Policy, asked, blanked, swapped, unseen
from experiments.composition.validation import Asked, acted
from vla_jax.actions import ActionSpec
from vla_jax.types import Observation

NAMES = NAVIGATION.action_names
SPEC = ActionSpec(NAMES)
CHANGES = {
    "instruction_blanked": blanked(np.array([], np.int64), 3),
    "instruction_swapped": swapped,
    "images_blanked": unseen,
}
K = 4


def observed(prompts: list[list[int]], greys: list[int]) -> Observation:
    """A row for each prompt and grey of its picture."""
    b, l = len(prompts), len(prompts[0])  # noqa: E741
    images = np.broadcast_to(np.array(greys, np.uint8)[:, None, None, None, None], (b, 1, 2, 2, 3))
    return Observation(
        (images,), np.ones((b, 1, 1), bool), np.zeros((b, 1, 3), np.float32),
        np.ones((b, 3), bool), np.array(prompts, np.int32), np.ones((b, l), bool),
        np.ones((b, 1), bool),
    )  # fmt: skip


def member(actions: np.ndarray, length: int) -> Member:
    """Of a dataset with one episode after the other of `length` steps."""
    firsts = np.arange(0, len(actions), length)
    split = SimpleNamespace(
        actions=actions, state=np.zeros((len(actions), 3), np.float32), first=firsts,
        length=np.full(len(firsts), length),
    )  # fmt: skip
    index = SimpleNamespace(splits={"val": split}, dataset=NAVIGATION)
    made: Any = SimpleNamespace(index=index, split="val", action_spec=SPEC)
    return made


def shown(obs: Observation) -> Any:
    """A number of the picture, which is 0 of a grey one."""
    return obs.images[0][:, 0, 0, 0, 0] / 128.0 - 1


def told(obs: Observation) -> Any:
    """A number of the words."""
    return obs.prompt.sum(1) / 10.0


def chunks(values: Any) -> Any:
    return jnp.broadcast_to(values[:, None, None], (len(values), K, len(NAMES)))


POLICIES = {
    "heeds both": lambda obs, number: chunks(shown(obs) + told(obs) + 0.01),
    "ignores language": lambda obs, number: chunks(shown(obs) + 0.25),
    "ignores images": lambda obs, number: chunks(told(obs) + 0.25),
}


def gaps(name: str) -> dict[str, float]:
    prompts, greys = [[1, 0, 0], [1, 0, 0], [2, 2, 2], [1, 3, 0]], [0, 64, 250, 130]
    obs = observed(prompts, greys)
    act = jax.jit(POLICIES[name])
    policy = Policy(act, lambda rows: jax.tree.map(jnp.asarray, rows), K)
    said = [Asked(np.arange(4), asked(policy, obs, 0, [*CHANGES.values()]))]
    assert act._cache_size() == 1  # one program, whatever is changed
    true = np.asarray(chunks(shown(obs) + told(obs)))[:, 0]
    figures = acted([member(true, 1)], NAMES, said, list(CHANGES))
    return {key.removeprefix("gap/"): x for key, x in figures.items() if key.startswith("gap/")}


def test_who_ignores_language_or_images_has_no_gap_there() -> None:
    both = gaps("heeds both")
    assert min(both.values()) > 10
    deaf = gaps("ignores language")
    assert deaf["instruction_blanked"] == deaf["instruction_swapped"] == 1
    assert deaf["images_blanked"] > 1.5
    blind = gaps("ignores images")
    assert blind["images_blanked"] == 1
    assert min(blind["instruction_blanked"], blind["instruction_swapped"]) > 1.02


def test_swapping_gives_each_row_the_next_prompt_that_is_another() -> None:
    out = swapped(observed([[1, 0], [1, 0], [2, 0], [1, 0]], [0] * 4))
    assert out.prompt.tolist() == [[2, 0], [2, 0], [1, 0], [2, 0]]
    same = observed([[1, 0]] * 3, [0] * 3)
    assert swapped(same).prompt.tolist() == same.prompt.tolist()


def test_windows_count_for_their_dataset() -> None:
    """The second one's robot is right, the first one's is off by 1 in the next action alone."""
    members = [member(np.full((5, 3), 1, np.float32), 5), member(np.zeros((3, 3), np.float32), 3)]
    ids = np.array([6, 0, 4, 5])
    said = np.zeros((4, K, 3), np.float32)
    said[1:3, 1:] = 1
    figures = acted(members, NAMES, [Asked(ids, [said])], [])
    assert figures["executed/linear_x"] == 0.5
    assert figures["executed_at/0"] == 0.25  # Huber's of 1, in half of the windows
    assert figures["executed_at/1"] == figures["executed_at/3"] == 0


def test_speeds_that_are_off_add_up_to_a_way() -> None:
    tally = Tally(SPEC, motion(NAVIGATION))
    true = np.zeros((2, K, 3), np.float32)
    off = true.copy()
    off[:, :, 0] = 0.1  # m/s, always
    off[:, ::2, 1], off[:, 1::2, 1] = 0.1, -0.1  # to and fro
    within = np.ones((2, K), bool)
    within[1, -1] = False  # its episode ends before: no whole chunk
    off[1] *= 9
    tally.add(off, true, within, np.zeros((2, 3), np.float32))
    drift = tally.figures()["drift"]
    assert drift["linear_x"] == pytest.approx(K * 0.1 / 5)  # 5 Hz
    assert drift["linear_y"] == pytest.approx(0, abs=1e-7)
    assert drift_unit(NAVIGATION, "linear_x") == "m"


def test_positions_that_are_off_do_not_add_up() -> None:
    tally = Tally(ActionSpec(("joint_1",)), np.zeros(1))
    off = np.full((1, K, 1), 0.1, np.float32)
    tally.add(off, np.zeros_like(off), np.ones((1, K), bool), np.zeros((1, 0), np.float32))
    assert tally.figures()["drift"]["joint_1"] == pytest.approx(0.1)
