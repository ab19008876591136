"""Words for the dims of actions and states, their units, and the two places where RLDS datasets
keep their instruction.
"""

POSE = ("x", "y", "z", "roll", "pitch", "yaw")
EEF = (*POSE, "gripper")  # the 7-D convention: relative motion of the hand, absolute gripper
QUAT = ("x", "y", "z", "qx", "qy", "qz", "qw")

STEP_TEXT = "language_instruction"
OBSERVATION_TEXT = "observation/natural_language_instruction"

OPEN = "1 = open"  # in place of a unit
METRES = {"x": "m", "y": "m", "z": "m"}
RADIANS = {"roll": "rad", "pitch": "rad", "yaw": "rad"}
EEF_UNITS = METRES | RADIANS | {"gripper": OPEN}


def joints(count: int, prefix: str = "") -> tuple[str, ...]:
    """joint_1 ... joint_count."""
    return tuple(f"{prefix}joint_{i}" for i in range(1, count + 1))
