"""What CALVIN's oracle was shown where the expert solved each task, and what it said: recorded in
its simulator, read by test_calvin_sim.py without it.

    CALVIN_ROOT=... CALVIN_ENV_ROOT=... python -m tests.experiments.calvin_recorded   # writes it
"""

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_name("calvin_recorded.json.gz")
POSE = ("current_pos", "current_orn", "current_lin_vel", "current_ang_vel")


class Solved(NamedTuple):
    """A task's first and last info, and all tasks that the oracle sees in between."""

    task: str
    start: dict[str, Any]
    end: dict[str, Any]
    verdict: list[str]


def read() -> list[Solved]:
    """One for each of the 34 tasks."""
    rows = json.loads(gzip.decompress(FILE.read_bytes()))
    return [Solved(task, _whole(start), _whole(end), said) for task, start, end, said in rows]


def _lean(info: dict[str, Any]) -> dict[str, Any]:
    """What the oracle reads; of a contact, the other body and its link."""
    scene = info["scene_info"]

    def touched(contacts: Any) -> list[list[int]]:
        return sorted([list(pair) for pair in {(c[2], c[4]) for c in contacts}])

    return {
        "robot": [info["robot_info"]["uid"], touched(info["robot_info"]["contacts"])],
        "blocks": {
            name: [
                body["uid"],
                touched(body["contacts"]),
                *([round(x, 5) for x in body[key]] for key in POSE),
            ]
            for name, body in scene["movable_objects"].items()
        },
        "fixed": {n: [b["uid"], b["links"]] for n, b in scene["fixed_objects"].items()},
        "doors": {name: round(door["current_state"], 5) for name, door in scene["doors"].items()},
        "lights": {name: light["logical_state"] for name, light in scene["lights"].items()},
    }


def _whole(lean: dict[str, Any]) -> dict[str, Any]:
    """As CALVIN gives it."""

    def contacts(pairs: list[list[int]]) -> list[tuple[int | None, ...]]:
        return [(None, None, body, None, link) for body, link in pairs]

    robot, touched = lean["robot"]
    return {
        "robot_info": {"uid": robot, "contacts": contacts(touched)},
        "scene_info": {
            "movable_objects": {
                name: {
                    "uid": uid,
                    "contacts": contacts(pairs),
                    **dict(zip(POSE, poses, strict=True)),
                }
                for name, (uid, pairs, *poses) in lean["blocks"].items()
            },
            "fixed_objects": {n: {"uid": uid, "links": m} for n, (uid, m) in lean["fixed"].items()},
            "doors": {name: {"current_state": state} for name, state in lean["doors"].items()},
            "lights": {name: {"logical_state": state} for name, state in lean["lights"].items()},
        },
    }


def _played(stage: Any, task: str) -> list[Any] | None:
    """The expert's: what the oracle is told before and after, and of which tasks that is a success;
    None where it was not solved.
    """
    from data_pipelines.builders import calvin_demonstrations as made
    from data_pipelines.builders.calvin_expert import Expert

    start, expert = stage.world.info(), Expert(stage.world.scene, task)
    for _ in range(made.LONGEST):
        now = stage.world.step(expert.act())
        if stage.world.solved(task, start, now):
            said = [each for each in stage.rules.tasks if stage.world.solved(each, start, now)]
            return [_lean(start), _lean(now), said]
    return None


def _record() -> list[list[Any]]:
    import numpy as np

    from data_pipelines.builders import calvin_demonstrations as made

    stage = made.staged()
    rows: list[list[Any]] = []
    for number, task in enumerate(stage.rules.tasks):
        draw, row = made.drawn(1, 0, number), None
        while row is None:
            chain = stage.rules.draw(draw, task, 0)
            stage.world.reset(*stage.rules.begin(chain.initial))
            if all(_played(stage, earlier) for earlier in chain.tasks[:-1]):
                row = _played(stage, task)
        rows.append(json.loads(json.dumps([task, *row], default=np.ndarray.tolist)))
        print(task, rows[-1][3], flush=True)
    return rows


if __name__ == "__main__":
    FILE.write_bytes(gzip.compress(json.dumps(_record()).encode(), 9, mtime=0))
    print(f"{FILE}: {FILE.stat().st_size} bytes, {len(read())} tasks")
