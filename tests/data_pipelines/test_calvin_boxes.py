"""Pictures that ask where CALVIN's blocks are, without its simulator: a camera that shows blocks as
squares.
"""

from typing import Any

import numpy as np

from data_pipelines.builders import calvin_boxes as made
from data_pipelines.builders.calvin_world import DRAWER
from data_pipelines.builders.made import drawn
from data_pipelines.datasets.image_text import CALVIN_BOXES
from data_pipelines.image_text_table import parse


class Camera:
    """Red is 40 pixels wide and 20 high, of blue a corner is seen, pink is hidden."""

    def still(self, robot: np.ndarray, scene: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        self.robot, self.scene = robot, scene
        shown = {block: np.zeros((200, 200), bool) for block in ("red", "blue", "pink")}
        shown["red"][50:70, 100:140] = True
        shown["blue"][190:, 190:] = True
        shown["pink"][:4, :4] = True
        return np.zeros((200, 200, 3), np.uint8), shown


def begin(initial: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros(15), np.zeros(24)


def test_a_block_that_is_seen_has_a_box_as_paligemma_writes_it() -> None:
    pixels, boxes = made.picture(begin, Camera().still, drawn(0, 0, 0, 2))
    # 50, 100, 70, 140 of 200, to the next of 64 parts.
    assert boxes == {"red": (256, 512, 352, 720), "blue": (976, 976, 1023, 1023)}
    _, pairs = parse(made.encode(pixels, boxes), CALVIN_BOXES, "here")
    assert pairs == [
        ("detect red block", "<loc0256><loc0512><loc0352><loc0720> red block"),
        ("detect blue block", "<loc0976><loc0976><loc1023><loc1023> blue block"),
    ]


def test_blocks_are_where_they_may_be() -> None:
    camera = Camera()
    inside = 0
    for number in range(60):
        made.picture(begin, camera.still, drawn(0, 0, number, 2))
        assert 0 < np.abs(camera.robot[7:14]).max() <= made.STRAY
        assert not camera.robot[[*range(7), 14]].any()
        drawer = camera.scene[DRAWER]
        for x, y, z, *_ in camera.scene[6:].reshape(3, 6):
            low = 1 if z < 0.44 else 0
            inside += low
            assert -0.3 <= x <= 0.32
            assert -0.25 - low * drawer <= y <= 0.1 - low * drawer
    assert 5 < inside < 40
