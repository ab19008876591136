"""Several worlds at once, here and in processes of their own, which end."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.rolling.actors import check_renderer
from experiments.rolling.episodes import Orders, Query
from experiments.rolling.processes import Process
from experiments.rolling.results import Kept
from experiments.rolling.running import Running
from experiments.rolling.worlds import Apart, Local, apart

HERE = Local("navigation").about


class Forward:
    """Drives on; what it says depends on what it sees. Counts how many were answered at once."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.together: list[int] = []
        self._before = before

    def act(self, asked: Mapping[int, Query]) -> dict[int, np.ndarray]:
        self.together.append(len(asked))
        self._before()
        out = {}
        for world, query in asked.items():
            light = query.seen.images["primary"].mean() / 255
            out[world] = np.tile([0.4, light - 0.5, 0.0], (8, 1))
        return out


def rows(kept: Kept) -> list[dict[str, Any]]:
    """Without what is another each time."""
    clocks = ("milliseconds", "seconds")
    return [
        {key: value for key, value in kept.rows[number].items() if key not in clocks}
        for number in sorted(kept.rows)
    ]


def end(world: Apart) -> None:
    """Kills its process."""
    world._process._child.kill()
    world._process._child.wait()


def run(folder: Path, worlds: list[Any], actors: Forward, count: int) -> Kept:
    with Kept(folder, {}) as kept:
        running = Running(worlds, lambda: apart("navigation", 1)[0], actors, kept)
        try:
            running.run(Orders(0), range(count))
        finally:
            for world in running.worlds:
                world.close()
    return kept


def test_several_worlds_give_the_episodes_of_one(tmp_path: Path) -> None:
    one = run(tmp_path / "one", [Local("navigation")], Forward(), 5)
    actors = Forward()
    several = run(tmp_path / "several", [Local("navigation") for _ in range(3)], actors, 5)
    assert rows(several) == rows(one)
    assert len(one.rows) == 5
    assert max(actors.together) == 3
    for number in range(5):
        name = f"actions/{number}.npy"
        np.testing.assert_array_equal(
            np.load(tmp_path / "one" / name), np.load(tmp_path / "several" / name)
        )
        plans = one.rows[number]["milliseconds"]
        assert len(plans) == -(-one.rows[number]["steps"] // 8)


@pytest.mark.slow
def test_worlds_in_processes_that_end(tmp_path: Path) -> None:
    """An episode whose process is killed is played again; killed twice, it is an error."""
    one = run(tmp_path / "one", [Local("navigation")], Forward(), 4)
    worlds = [*apart("navigation", 1), *apart("navigation", 1)]
    assert worlds[0].about.tasks == HERE.tasks
    np.testing.assert_array_equal(worlds[0].about.low, HERE.low)
    calls = 0

    def kill_one() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            end(worlds[0])

    again = run(tmp_path / "again", list(worlds), Forward(kill_one), 4)
    assert rows(again) == rows(one)
    assert again.errors == {}

    [fragile] = apart("navigation", 1)
    with Kept(tmp_path / "errors", {}) as kept:

        def kill_all() -> None:
            for world in running.worlds:
                end(world)

        running = Running([fragile], lambda: apart("navigation", 1)[0], Forward(kill_all), kept)
        running.run(Orders(0), [0, 1])
        for world in running.worlds:
            world.close()
    assert kept.errors == dict.fromkeys((0, 1), "the process of navigation ended with signal 9")
    assert kept.rows == {}


@pytest.mark.slow
def test_what_is_wrong_in_a_process_is_said_here() -> None:
    nowhere = Apart(Process("nowhere", 1), 0)
    with pytest.raises(ValueError, match=r"No module named 'experiments\.sims\.nowhere'"):
        _ = nowhere.about
    nowhere.close()
    [world] = apart("navigation", 1)
    assert world.about.tasks == HERE.tasks
    order: Any = "no order"
    world.begin(order)
    with pytest.raises(RuntimeError, match="navigation: Traceback"):
        world.take()
    world.close()


def test_a_policy_of_pictures_from_another_renderer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    told = {"blocks": {"renderer": "egl: a device"}, "bridge": {}}
    body = json.dumps({"origin": {"simulators": told}})
    (tmp_path / "config.json").write_text(body)
    about = Local("blocks").about
    for renderer in ("egl: another one", ""):
        check_renderer(str(tmp_path), None, about._replace(facts={"renderer": renderer}))
    with pytest.raises(ValueError, match="expected a world drawn with egl, as the pictures of"):
        check_renderer(str(tmp_path), None, about._replace(facts={"renderer": "tiny"}))
    (tmp_path / "config.json").write_text('{"origin": {}}')  # of an older version
    check_renderer(str(tmp_path), None, about._replace(facts={"renderer": "tiny"}))
