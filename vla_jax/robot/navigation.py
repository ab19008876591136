"""Instructions of the navigation tasks of a mobile base, in Korean; mobile.py makes its motions.

The standard library only.
"""

from typing import NamedTuple


class Scenario(NamedTuple):
    """The instruction of a navigation task, composed Korean (NFC), and its gloss."""

    korean: str
    english: str


# How many boxes stand before the cup, how they lie (vertical, horizontal), on which side to pass;
# the keys are those in the names of the recorded episodes. The document that asks for the scenarios
# gives the Korean of four (section 9.2: 1box_vert_left, 1box_vert_right, 1box_hori_left,
# 2box_vert_left); the others follow their pattern.
SCENARIOS = {
    "1box_vert_left": Scenario(
        "박스를 왼쪽으로 돌아서 컵까지 가세요", "round the box on the left, to the cup"
    ),
    "1box_vert_right": Scenario(
        "박스를 오른쪽으로 돌아서 컵까지 가세요", "round the box on the right, to the cup"
    ),
    "1box_hori_left": Scenario(
        "박스를 왼쪽으로 피해서 컵까지 가세요", "avoid the box on the left, to the cup"
    ),
    "1box_hori_right": Scenario(
        "박스를 오른쪽으로 피해서 컵까지 가세요", "avoid the box on the right, to the cup"
    ),
    "2box_vert_left": Scenario(
        "두 박스 사이 왼쪽 경로로 컵까지 가세요", "left path between both boxes to the cup"
    ),
    "2box_vert_right": Scenario(
        "두 박스 사이 오른쪽 경로로 컵까지 가세요", "right path between both boxes to the cup"
    ),
    "2box_hori_left": Scenario(
        "두 박스를 왼쪽으로 피해서 컵까지 가세요", "avoid both boxes on the left"
    ),
    "2box_hori_right": Scenario(
        "두 박스를 오른쪽으로 피해서 컵까지 가세요", "avoid both boxes on the right"
    ),
}
