"""BridgeData V2, the authors' `bridge_dataset` 1.0.0 (OpenVLA calls it bridge_orig); WidowX 250, 5 Hz.

As OpenVLA standardises it: the commanded motion is replaced by the one that was reached, state[t+1] - state[t]. The first step
(an all-zero command) and the last (no next state) are dropped. Unlike there, differences of Euler angles are wrapped to
[-pi, pi]: unwrapped ones put 6.28 into the statistics.
"""

import numpy as np
from jaxtyping import Float

from data_pipelines.datasets.dataset import EEF_7D, Dataset, Standardised


def standardise(columns: dict[str, np.ndarray]) -> Standardised:
    """action [T 7], state [T 7] -> T - 2 steps."""
    action, state = columns["action"], columns["state"].astype(np.float32)
    motion = state[1:, :6] - state[:-1, :6]
    motion[:, 3:] = wrap(motion[:, 3:])
    gripper = binarise_gripper(action[:, 6])
    frames = np.arange(1, len(action) - 1)
    actions = np.concatenate([motion[frames], gripper[frames, None]], axis=1)
    return Standardised(actions.astype(np.float32), state[frames], frames)


def wrap(angle: Float[np.ndarray, "*s"]) -> Float[np.ndarray, "*s"]:
    """The same angle in [-pi, pi)."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def binarise_gripper(opening: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    """1 above 0.95, 0 below 0.05; a step in between takes the next decided value, as it is on its way there.

    A trailing run without a decided value is cut at 0.5.
    """
    out = np.where(opening > 0.5, 1.0, 0.0).astype(np.float32)
    decided = (opening > 0.95) | (opening < 0.05)
    following = np.where(decided, np.arange(len(opening)), len(opening))
    following = np.minimum.accumulate(following[::-1])[::-1]  # the next decided step of every step
    inside = following < len(opening)
    out[inside] = out[following[inside]]
    return out


BRIDGE = Dataset(
    name="bridge",
    tfds_name="bridge_dataset",
    version="1.0.0",
    cameras={"primary": "observation/image_0", "secondary": "observation/image_1"},
    columns={"action": "action", "state": "observation/state"},
    language="language_instruction",
    control_hz=5,
    action_names=EEF_7D,
    binary=(6,),
    state_names=EEF_7D,
    standardise=standardise,
)
