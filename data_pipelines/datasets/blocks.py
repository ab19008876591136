"""The embedded block-pushing table (made by data_pipelines/builders/blocks.py)."""

import numpy as np

from data_pipelines.datasets.dataset import Dataset, Standardised
from data_pipelines.datasets.names import OPEN, RADIANS

TABLE = "table widths"
UNITS = {"x": TABLE, "y": TABLE, "z": TABLE, "gripper": OPEN} | RADIANS


def standardise(columns: dict[str, np.ndarray]) -> Standardised:
    """Already in the house convention: every step stays as it is."""
    action, state = (columns[name].astype(np.float32) for name in ("action", "state"))
    return Standardised(action, state, np.arange(len(action)))


BLOCKS = Dataset(
    name="blocks",
    tfds_name="blocks",
    version="1.0.0",
    robot="play table (simulated)",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    columns={"action": "action", "state": "observation/state"},
    language="language_instruction",
    control_hz=5.0,
    action_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    action_units=UNITS,
    binary=(6,),
    state_names=("x", "y", "z", "roll", "pitch", "yaw", "gripper"),
    state_units=UNITS,
    download="python -m data_pipelines.builders.blocks --out {root}",
    standardise=standardise,
    revision=1,
)
