"""LIBERO in the edition of OpenVLA: four suites, replayed, without idle steps."""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.names import POSE, STEP_TEXT
from data_pipelines.standardise import Recipe


def _libero(suite: str) -> Dataset:
    return Dataset(
        name=f"libero_{suite}_no_noops",
        version="1.0.0",
        robot="Franka (simulated)",
        cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
        language=STEP_TEXT,
        control_hz=20.0,
        download=(
            "hf download openvla/modified_libero_rlds --repo-type dataset --local-dir"
            f" {{root}} --include 'libero_{suite}_no_noops/*'"
        ),
        standardise=Recipe(
            actions=("action[0:6]", "action[-1:] clip01 invert"),
            state=("observation/state[0:6]", "observation/state[-2:]"),
        ),
        state_names=(*POSE, "finger_1", "finger_2"),
        notes=(
            "The recorded gripper is -1 (open) or 1 (closed).",
            "Idle steps were removed by OpenVLA.",
        ),
    )


FAMILY = tuple(_libero(suite) for suite in ("spatial", "object", "goal", "10"))
