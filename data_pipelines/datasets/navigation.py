"""Robots that drive: the embedded navigation world, the GNM datasets in Octo's form (2-D) and in
OpenVLA's (padded to 7-D).
"""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.downloads import bring, bucket
from data_pipelines.datasets.names import POSE, STEP_TEXT
from data_pipelines.standardise import Constant, Recipe, Waypoint

# Made by data_pipelines/builders/navigation.py.
NAVIGATION = Dataset(
    name="navigation",
    version="1.0.0",
    robot="mobile base (simulated)",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=5.0,
    action_names=("linear_x", "linear_y", "angular_z"),
    action_units={"linear_x": "m/s", "linear_y": "m/s", "angular_z": "rad/s"},
    binary=(),
    state_names=("x", "y", "yaw"),
    state_units={"x": "m", "y": "m", "yaw": "rad"},
    download="python -m data_pipelines.builders.navigation --out {root}",
    standardise=Recipe(actions=("action",), state=("observation/state",)),
    notes=(
        "Velocities of a holonomic base, instructions in Korean (NFC).",
        "The state is odometry since the start.",
    ),
)

GNM = Dataset(
    name="gnm_dataset",
    version="1.0.0",
    robot="several mobile robots",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=None,
    download=bring("gnm_dataset", "1.0.0", "Octo's own collection of the GNM data"),
    standardise=Recipe(
        actions=(Waypoint("observation/state", "action"),), state=("observation/state",), stride=3
    ),
    state_names=("x", "y", "yaw"),
    action_names=("forward", "left"),
    binary=(),
    notes=(
        (
            "Actions are 2-D waypoints in the robot's frame, not the 7-D convention, and have no"
            " gripper."
        ),
        (
            "Every third step is kept and the action is the motion between kept steps; its scale is"
            " that of the first recorded action whose step moves (Octo: the first action, infinite"
            " when the robot stands). A whole turn has no meaning here, so there is nothing to"
            " wrap."
        ),
        "Octo states neither version nor control rate: 1.0.0 is our guess.",
    ),
)


def _gnm(place: str, robot: str, control_hz: float) -> Dataset:
    name = f"berkeley_gnm_{place}"
    return Dataset(
        name=name,
        version="0.1.0",
        robot=robot,
        cameras={"wrist": "observation/image"},
        language=STEP_TEXT,
        control_hz=control_hz,
        download=bucket(f"{name}/0.1.0"),
        standardise=Recipe(
            actions=("action", "action zeros", "action zeros", Constant(0.0, 1)),
            state=("observation/position", Constant(0.0, 3), "observation/yaw"),
        ),
        state_names=POSE,
        notes=(
            "No primary camera.",
            "Actions are 2-D waypoints padded to 7-D: z, all angles and the gripper are 0.",
        ),
    )


FAMILY = (
    NAVIGATION,
    GNM,
    _gnm("recon", "Jackal", 3.0),
    _gnm("cory_hall", "RC car", 5.0),
    _gnm("sac_son", "TurtleBot 2", 10.0),
)
