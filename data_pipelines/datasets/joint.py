"""Datasets whose actions are joint positions: one arm (8-D) or two (14-D, and 16-D on wheels)."""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.downloads import bring, bucket
from data_pipelines.datasets.names import QUAT, STEP_TEXT, joints
from data_pipelines.standardise import Moved, Part, Recipe

SEVEN = (*joints(7), "gripper")
BIMANUAL = (*joints(6, "left_"), "left_gripper", *joints(6, "right_"), "right_gripper")
JOINT = (
    "Actions are joint positions, not the 7-D convention: with others it shares the dims of the"
    " same name."
)

BERKELEY_MVP = Dataset(
    name="berkeley_mvp_converted_externally_to_rlds",
    version="0.1.0",
    robot="xArm",
    cameras={"wrist": "observation/hand_image"},
    language=STEP_TEXT,
    control_hz=5.0,
    download=bucket("berkeley_mvp_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[:-1]", "action[-1:] clip01 invert"),
        state=("observation/pose", "observation/gripper"),
    ),
    state_names=(*QUAT, "gripper"),
    action_names=SEVEN,
    binary=(7,),
    targets="absolute",
    notes=("No primary camera.", JOINT, "As Octo reads it; OpenVLA refuses joint actions."),
)

BERKELEY_RPT = Dataset(
    name="berkeley_rpt_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"wrist": "observation/hand_image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("berkeley_rpt_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=(Moved("observation/joint_pos[0:7]"), "action[-1:] clip01 invert"),
        state=("observation/joint_pos", "observation/gripper"),
        stride=3,
    ),
    state_names=SEVEN,
    action_names=SEVEN,
    binary=(7,),
    targets="delta",
    notes=(
        "No primary camera.",
        "Actions are the joint motion reached until the next kept step, not the 7-D convention.",
        "Recorded at 30 Hz; every third step is kept.",
        (
            "As Octo reads it; OpenVLA refuses joint actions, and so loses it from rtx_franka in"
            " silence."
        ),
    ),
)

ROBOSET = Dataset(
    name="roboset",
    version="0.0.1",
    robot="Franka",
    cameras={
        "primary": "observation/image_left",
        "secondary": "observation/image_right",
        "wrist": "observation/image_wrist",
    },
    language=STEP_TEXT,
    control_hz=5.0,
    download=bucket("robo_set/0.0.1", folder="roboset"),
    standardise=Recipe(
        actions=("action[0:7]", "action[-1:] clip01 invert"), state=("observation/state",)
    ),
    state_names=SEVEN,
    action_names=SEVEN,
    binary=(7,),
    targets="absolute",
    notes=(
        JOINT,
        (
            "The bucket calls it robo_set; that its features are those of Octo's copy has not been"
            " checked."
        ),
    ),
)


def _aloha(kind: str, version: str, download: str, secondary: str | None) -> Dataset:
    mobile = kind == "mobile"
    base: tuple[Part, ...] = ("action[14:16]",) if mobile else ()
    cameras = {"primary": "observation/cam_high"} | ({"secondary": secondary} if secondary else {})
    return Dataset(
        name=f"aloha_{kind}_dataset",
        version=version,
        robot="Mobile ALOHA" if mobile else "ALOHA",
        cameras=cameras | {"wrist": "observation/cam_right_wrist"},
        language=STEP_TEXT,
        control_hz=10.0,
        download=download,
        standardise=Recipe(
            actions=(
                "action[0:6]",
                "action[6:7] clip01",
                "action[7:13]",
                "action[13:14] clip01",
                *base,
            ),
            state=("observation/state",),
            stride=5,
        ),
        state_names=BIMANUAL,
        action_names=(*BIMANUAL, "base_forward", "base_turn") if mobile else BIMANUAL,
        binary=(6, 13),
        targets="absolute",
        notes=(
            JOINT,
            "Recorded at 50 Hz; every fifth step is kept.",
            (
                "Both arms' grippers are positions in [0, 1], clipped, and not normalised (Octo's"
                " encoding)."
            ),
            "The left wrist camera has no slot.",
            *(
                (
                    (
                        "The bucket calls it aloha_mobile; its features have not been compared with"
                        " those of Octo's copy."
                    ),
                )
                if mobile
                else ("Octo states no version: 1.0.0 is our guess.",)
            ),
        ),
    )


FAMILY = (
    BERKELEY_MVP,
    BERKELEY_RPT,
    ROBOSET,
    _aloha(
        "static",
        "1.0.0",
        bring("aloha_static_dataset", "1.0.0", "Octo's own copy"),
        "observation/cam_low",
    ),
    _aloha(
        "dagger",
        "1.0.0",
        bring("aloha_dagger_dataset", "1.0.0", "Octo's own copy"),
        "observation/cam_low",
    ),
    _aloha("mobile", "0.0.1", bucket("aloha_mobile/0.0.1", folder="aloha_mobile_dataset"), None),
)
