"""Bridge V2 in its RLDS release (bridge_dataset 1.0.0), standardised the way the field does it."""

import numpy as np

from data_pipelines.datasets.dataset import Dataset, Standardised

OPEN, CLOSED = 0.95, 0.05


def standardise(columns: dict[str, np.ndarray]) -> Standardised:
    """Reached motion instead of commanded motion, a gripper that is 0 or 1, without the first and the last step.

    The first action of an episode is a placeholder near zero, and the last step has no next state to take the
    difference with. The gripper is decided before the last step is dropped: its value may settle the steps before it.
    """
    action, state = columns["action"], columns["state"].astype(np.float64)
    moved = np.diff(state[:, :6], axis=0)  # T-1 6
    moved[:, 3:] = (moved[:, 3:] + np.pi) % (2 * np.pi) - np.pi  # Euler angles jump by a turn at +-pi
    gripper = binarise(action[:, 6])
    frames = np.arange(1, max(len(action) - 1, 1))
    actions = np.concatenate([moved[frames], gripper[frames, None]], axis=1)
    return Standardised(actions.astype(np.float32), state[frames].astype(np.float32), frames)


def binarise(gripper: np.ndarray) -> np.ndarray:
    """Opening in [0, 1] to 1 (open) or 0 (closed): [T] -> [T] float32.

    A value in between is on its way: it becomes what the gripper next settles at. A run in between that never settles
    takes its last value, thresholded at 0.5.
    """
    decided = (gripper > OPEN) | (gripper < CLOSED)
    decided[-1:] = True
    steps = np.where(decided, np.arange(len(gripper)), len(gripper))
    settles = np.minimum.accumulate(steps[::-1])[::-1]  # the first decided step at or after each step
    return (gripper[settles] > 0.5).astype(np.float32)


BRIDGE = Dataset(
    name="bridge",
    tfds_name="bridge_dataset",
    version="1.0.0",
    cameras={"primary": "observation/image_0", "secondary": "observation/image_1"},
    columns={"action": "action", "state": "observation/state"},
    language="language_instruction",
    control_hz=5.0,
    action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    binary=(6,),
    state_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    download=(
        "wget -r -np -nH --cut-dirs=4 -P {root} "
        "https://rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds/bridge_dataset/"
    ),
    standardise=standardise,
    revision=1,
)
