"""CALVIN, as data_pipelines/builders/calvin.py writes it: every frame of play once, or one episode
per annotation.
"""

import dataclasses

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.names import EEF_UNITS, POSE, RADIANS, STEP_TEXT
from data_pipelines.standardise import Recipe

BUILD = (
    "download and unzip task_ABCD_D (or another) from https://github.com/mees/calvin, then "
    "python -m data_pipelines.builders.calvin --source task_ABCD_D --out {root}"
)

CALVIN = Dataset(
    name="calvin",
    version="1.0.0",
    robot="Franka (simulated)",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    first_frame="episode_metadata/first_frame",
    control_hz=30.0,
    download=BUILD,
    # The gripper is exactly -1 (closed) or 1 (open): clipping to [0, 1] makes it 0 or 1.
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"),
        state=("observation/state[0:7]", "observation/state[14:15] clip01"),
    ),
    action_units=dict.fromkeys("xyz", "m / 0.02") | dict.fromkeys(RADIANS, "rad / 0.05"),
    state_names=(*POSE, "gripper_width", "gripper"),
    state_units=EEF_UNITS | {"gripper_width": "m"},
    notes=(
        "One episode per annotation, whose end is exclusive as in CALVIN's own loader.",
        (
            "Annotations overlap: without the split of validation, what is held out is cut where"
            " none crosses."
        ),
        (
            "Actions are rel_actions untouched: metres / 0.02 and radians / 0.05, clipped to [-1,"
            " 1] by CALVIN itself."
        ),
        (
            "The state's gripper is the last command, as in RoboVLMs. Joints (robot_obs 7 to 13)"
            " are stored, not read."
        ),
    ),
)

CALVIN_PLAY = dataclasses.replace(
    CALVIN,
    name="calvin_play",
    tfds_name="calvin_play",
    segments=True,
    notes=(
        (
            "The same windows as calvin from play frames that are stored once: annotations overlap,"
            " and cost nothing here."
        ),
        *CALVIN.notes,
    ),
)

CALVIN_SCENE = dataclasses.replace(
    CALVIN,
    name="calvin_scene",
    tfds_name="calvin",
    download="python -m data_pipelines.builders.calvin_demonstrations --out {root}",
    sensors={"scene": "observation/scene"},
    notes=(
        (
            "Demonstrations of ours alone, with what is where in the scene: to be learnt from"
            " pictures (objectives.sensed), no policy is told it."
        ),
        *CALVIN.notes,
    ),
)

FAMILY = (CALVIN, CALVIN_PLAY, CALVIN_SCENE)
