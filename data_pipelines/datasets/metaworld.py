"""Meta-World, as data_pipelines/builders/metaworld.py writes it: one robot, whichever tasks."""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.names import METRES, OPEN, STEP_TEXT
from data_pipelines.standardise import Recipe

METAWORLD = Dataset(
    name="metaworld",
    version="1.0.0",
    robot="Sawyer (simulated)",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=80.0,
    action_names=("x", "y", "z", "gripper"),
    action_units=METRES | {"gripper": OPEN},
    binary=(),
    targets="delta",
    state_names=("x", "y", "z", "gripper"),
    state_units=METRES | {"gripper": OPEN},
    download="python -m data_pipelines.builders.metaworld --out {root}",
    standardise=Recipe(actions=("action[0:3]", "action[3:4] clip01"), state=("observation/state",)),
    notes=(
        "Four dims: the hand never turns. Motions of its set point in a step, 0.01 m at most.",
        "The gripper is an effort: 0.5 neither opens nor closes, some grips are weak on purpose.",
        (
            "Half of the episodes were pushed about while they were recorded; actions are what the"
            " expert wanted, not what was carried out."
        ),
        "Each ends some steps after its success.",
    ),
)

FAMILY = (METAWORLD,)
