"""The embedded dataset that `python -m data_pipelines.builders.blocks` writes: pushing coloured blocks on a drawn table."""

import numpy as np

from data_pipelines.datasets.dataset import EEF_7D, Dataset, Standardised


def standardise(columns: dict[str, np.ndarray]) -> Standardised:
    """Written in the target convention already: every step stays as it is."""
    action, state = columns["action"], columns["state"]
    return Standardised(action.astype(np.float32), state.astype(np.float32), np.arange(len(action)))


BLOCKS = Dataset(
    name="blocks",
    tfds_name="blocks",
    version="1.0.0",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    columns={"action": "action", "state": "observation/state"},
    language="language_instruction",
    control_hz=5,
    action_names=EEF_7D,
    binary=(6,),
    state_names=EEF_7D,
    standardise=standardise,
)
