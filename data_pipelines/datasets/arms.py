"""Other arms that others converted to RLDS: one flat action, one flat state."""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.downloads import bring, bucket
from data_pipelines.datasets.names import EEF, POSE, QUAT, STEP_TEXT, joints
from data_pipelines.standardise import Constant, Recipe

ONE_ANGLE = (
    "One angle is recorded. It stands in the place of roll, as in Octo and OpenVLA; pitch and yaw"
    " are 0."
)
UNVERSIONED = "The registries state neither version nor control rate: 1.0.0 is our guess."

STANFORD_KUKA_MULTIMODAL = Dataset(
    name="stanford_kuka_multimodal_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Kuka iiwa",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=20.0,
    download=bucket("stanford_kuka_multimodal_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:3]", Constant(0.0, 3), "action[-1:] clip01"),
        state=("observation/ee_position", "observation/ee_orientation"),
    ),
    state_names=QUAT,
    notes=("No rotation is recorded: roll, pitch and yaw are 0.",),
)

NYU_ROT = Dataset(
    name="nyu_rot_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="xArm",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=3.0,
    download=bucket("nyu_rot_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(actions=("action[0:6]", "action[6:7] clip01"), state=("observation/state",)),
    state_names=EEF,
)

UCSD_KITCHEN = Dataset(
    name="ucsd_kitchen_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="xArm",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=2.0,
    download=bucket("ucsd_kitchen_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"), state=("observation/state[0:7]",)
    ),
    state_names=joints(7),
    notes=("The last action dim (terminate) is left out.",),
)

UCSD_PICK_AND_PLACE = Dataset(
    name="ucsd_pick_and_place_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="xArm",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=3.0,
    download=bucket("ucsd_pick_and_place_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:3]", Constant(0.0, 3), "action[-1:] clip01"),
        state=("observation/state",),
    ),
    state_names=EEF,
    notes=("No rotation is recorded: roll, pitch and yaw are 0.",),
)

UTOKYO_XARM_PICK_AND_PLACE = Dataset(
    name="utokyo_xarm_pick_and_place_converted_externally_to_rlds",
    version="0.1.0",
    robot="xArm",
    cameras={
        "primary": "observation/image",
        "secondary": "observation/image2",
        "wrist": "observation/hand_image",
    },
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("utokyo_xarm_pick_and_place_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(actions=("action[0:6]", "action[6:7] clip01")),
    notes=("No state here: Octo and OpenVLA name one and then fail on it.",),
)

UTOKYO_XARM_BIMANUAL = Dataset(
    name="utokyo_xarm_bimanual_converted_externally_to_rlds",
    version="0.1.0",
    robot="two xArms",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("utokyo_xarm_bimanual_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[-7:-1]", "action[-1:] clip01"), state=("observation/pose_r",)
    ),
    state_names=POSE,
    notes=(
        (
            "Only the right arm: the last seven of 14 action dims, and its pose as OpenVLA has it."
            " Octo asks for end_effector_pose, which the files lack."
        ),
    ),
)

ROBO_NET = Dataset(
    name="robo_net",
    version="1.0.0",
    robot="several arms",
    cameras={"primary": "observation/image", "secondary": "observation/image1"},
    language=STEP_TEXT,
    control_hz=1.0,
    download=bucket("robo_net/1.0.0"),
    standardise=Recipe(
        actions=("action[0:4]", Constant(0.0, 2), "action[-1:] clip01"),
        state=("observation/state[0:4]", Constant(0.0, 2), "observation/state[-1:]"),
    ),
    state_names=EEF,
    notes=(
        "As OpenVLA reads it: Octo's transform raises an error.",
        ONE_ANGLE,
    ),
)

STANFORD_MASK_VIT = Dataset(
    name="stanford_mask_vit_converted_externally_to_rlds",
    version="0.1.0",
    robot="Sawyer",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=None,
    download=bucket("stanford_mask_vit_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:4]", Constant(0.0, 2), "action[-1:] clip01"),
        state=(
            "observation/end_effector_pose[0:4]",
            Constant(0.0, 2),
            "observation/end_effector_pose[-1:]",
        ),
    ),
    state_names=EEF,
    notes=(
        ONE_ANGLE,
        "Quasi-static: it has no control rate.",
    ),
)

TOKYO_U_LSMO = Dataset(
    name="tokyo_u_lsmo_converted_externally_to_rlds",
    version="0.1.0",
    robot="Cobotta",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("tokyo_u_lsmo_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"),
        state=("observation/state[0:6]", "observation/state[-1:]"),
    ),
    state_names=EEF,
)

DLR_SARA_POUR = Dataset(
    name="dlr_sara_pour_converted_externally_to_rlds",
    version="0.1.0",
    robot="DLR SARA",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("dlr_sara_pour_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(actions=("action[0:6]", "action[6:7] clip01"), state=("observation/state",)),
    state_names=POSE,
)

DLR_SARA_GRID_CLAMP = Dataset(
    name="dlr_sara_grid_clamp_converted_externally_to_rlds",
    version="0.1.0",
    robot="DLR SARA",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("dlr_sara_grid_clamp_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"), state=("observation/state[0:6]",)
    ),
    state_names=POSE,
)

DLR_EDAN = Dataset(
    name="dlr_edan_shared_control_converted_externally_to_rlds",
    version="0.1.0",
    robot="DLR EDAN",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=5.0,
    download=bucket("dlr_edan_shared_control_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[-1:] clip01 invert"), state=("observation/state",)
    ),
    state_names=EEF,
)

ASU_TABLE_TOP = Dataset(
    name="asu_table_top_converted_externally_to_rlds",
    version="0.1.0",
    robot="UR5",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=12.5,
    download=bucket("asu_table_top_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"),
        state=("ground_truth_states/EE", "observation/state[-1:]"),
    ),
    state_names=EEF,
)

IMPERIALCOLLEGE_SAWYER = Dataset(
    name="imperialcollege_sawyer_wrist_cam",
    version="0.1.0",
    robot="Sawyer",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("imperialcollege_sawyer_wrist_cam/0.1.0"),
    standardise=Recipe(actions=("action[0:6]", "action[6:7] clip01")),
    notes=(
        "Octo and OpenVLA use no state.",
        "The last action dim (terminate) is left out.",
    ),
)

UIUC_D3FIELD = Dataset(
    name="uiuc_d3field",
    version="0.1.0",
    robot="Kinova Gen3",
    cameras={"primary": "observation/image_1", "secondary": "observation/image_2"},
    language=STEP_TEXT,
    control_hz=1.0,
    download=bucket("uiuc_d3field/0.1.0"),
    standardise=Recipe(actions=("action", "action zeros", Constant(0.0, 1))),
    notes=(
        "Octo and OpenVLA use no state.",
        "No rotation and no gripper are recorded: both are 0.",
    ),
)

BERKELEY_FANUC = Dataset(
    name="berkeley_fanuc_manipulation",
    version="0.1.0",
    robot="Fanuc Mate",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    bgr=("primary", "wrist"),
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("berkeley_fanuc_manipulation/0.1.0"),
    standardise=Recipe(
        actions=("action", "observation/state[6:7] clip01 invert"),
        state=("observation/state[0:6]", "observation/state[6:7]"),
    ),
    state_names=(*joints(6), "gripper_closed"),
    notes=(
        "Both cameras are stored blue first.",
        "No gripper action is recorded: the current gripper state, inverted, stands in for it.",
    ),
)

CMU_STRETCH = Dataset(
    name="cmu_stretch",
    version="0.1.0",
    robot="Hello Stretch",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("cmu_stretch/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"),
        state=("observation/state[0:3]", Constant(0.0, 3), "observation/state[-1:]"),
    ),
    state_names=EEF,
    notes=("The last action dim (terminate) is left out.",),
)

DOBBE = Dataset(
    name="dobbe",
    version="0.0.1",
    robot="Hello Stretch",
    cameras={"primary": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=3.75,
    download=bucket("dobbe/0.0.1"),
    standardise=Recipe(actions=("action[0:6]", "action[6:7] clip01"), state=("observation/state",)),
    state_names=EEF,
    notes=(
        (
            "Its only camera sits at the gripper. OpenVLA, whose oxe_magic_soup_plus has it, calls"
            " it primary, and so do we; Octo calls it wrist."
        ),
        "30 frames a second, thinned: 3.75 and 15 Hz are both in use.",
    ),
)

RH20T = Dataset(
    name="rh20t",
    version="1.0.0",
    robot="several arms",
    cameras={
        "primary": "observation/image_front",
        "secondary": "observation/image_side_right",
        "wrist": "observation/image_wrist",
    },
    language=STEP_TEXT,
    control_hz=None,
    download=bring("rh20t", "1.0.0", "Octo's own conversion of rh20t.github.io"),
    standardise=Recipe(
        actions=("action/tcp_base", "action/gripper clip01"),
        state=("observation/tcp_base", "observation/gripper_width"),
    ),
    state_names=(*POSE, "gripper_width"),
    notes=(
        UNVERSIONED,
        (
            "The widths of its columns and the range of its gripper are taken from the registries,"
            " not from files."
        ),
    ),
)

MUJOCO_MANIP = Dataset(
    name="mujoco_manip",
    version="1.0.0",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=None,
    download=bring("mujoco_manip", "1.0.0", "Octo's own data"),
    standardise=Recipe(actions=("action[0:6]", "action[-1:] div:255 clip01 invert")),
    notes=(
        "Simulated. No state here: Octo names one and then fails on it.",
        UNVERSIONED,
    ),
)


def _pr2(task: str) -> Dataset:
    name = f"utokyo_pr2_{task}_converted_externally_to_rlds"
    return Dataset(
        name=name,
        version="0.1.0",
        robot="PR2",
        cameras={"primary": "observation/image"},
        language=STEP_TEXT,
        control_hz=10.0,
        download=bucket(f"{name}/0.1.0"),
        standardise=Recipe(
            actions=("action[0:6]", "action[6:7] clip01"), state=("observation/state",)
        ),
        state_names=EEF,
        notes=("The last action dim (terminate) is left out.",),
    )


FAMILY = (
    STANFORD_KUKA_MULTIMODAL,
    NYU_ROT,
    UCSD_KITCHEN,
    UCSD_PICK_AND_PLACE,
    UTOKYO_XARM_PICK_AND_PLACE,
    UTOKYO_XARM_BIMANUAL,
    ROBO_NET,
    STANFORD_MASK_VIT,
    TOKYO_U_LSMO,
    DLR_SARA_POUR,
    DLR_SARA_GRID_CLAMP,
    DLR_EDAN,
    ASU_TABLE_TOP,
    IMPERIALCOLLEGE_SAWYER,
    UIUC_D3FIELD,
    BERKELEY_FANUC,
    CMU_STRETCH,
    DOBBE,
    RH20T,
    MUJOCO_MANIP,
    *(_pr2(task) for task in ("opening_fridge", "tabletop_manipulation")),
)
