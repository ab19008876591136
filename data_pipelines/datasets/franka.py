"""Franka datasets that others converted to RLDS: one flat action, one flat state."""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.downloads import bucket
from data_pipelines.datasets.names import EEF, POSE, QUAT, STEP_TEXT, joints
from data_pipelines.standardise import Constant, Recipe

QUATERNION = (
    "The recorded rotation is a quaternion (x, y, z, w), converted to angles; one not of length 1"
    " is refused."
)

STANFORD_HYDRA = Dataset(
    name="stanford_hydra_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    bgr=("primary", "wrist"),
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("stanford_hydra_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[-1:] clip01 invert"),
        state=("observation/state[0:3]", "observation/state[7:10]", "observation/state[-3:-2]"),
    ),
    state_names=EEF,
    blanked=True,
    notes=("Both cameras are stored blue first.",),
)

AUSTIN_BUDS = Dataset(
    name="austin_buds_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=20.0,
    download=bucket("austin_buds_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[-1:] clip01 invert"), state=("observation/state[0:8]",)
    ),
    state_names=(*joints(7), "gripper"),
    blanked=True,
)

AUSTIN_SAILOR = Dataset(
    name="austin_sailor_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=20.0,
    download=bucket("austin_sailor_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[-1:] clip01 invert"), state=("observation/state",)
    ),
    state_names=(*QUAT, "gripper"),
    blanked=True,
)

AUSTIN_SIRIUS = Dataset(
    name="austin_sirius_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=20.0,
    download=bucket("austin_sirius_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[-1:] clip01 invert"), state=("observation/state",)
    ),
    state_names=(*QUAT, "gripper"),
    blanked=True,
)

UTAUSTIN_MUTEX = Dataset(
    name="utaustin_mutex",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    bgr=("primary", "wrist"),
    language=STEP_TEXT,
    control_hz=20.0,
    download=bucket("utaustin_mutex/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[-1:] clip01 invert"), state=("observation/state[0:8]",)
    ),
    state_names=(*joints(7), "gripper"),
    blanked=True,
    notes=("Both cameras are stored blue first.",),
)

NYU_FRANKA_PLAY = Dataset(
    name="nyu_franka_play_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image", "secondary": "observation/image_additional_view"},
    language=STEP_TEXT,
    control_hz=3.0,
    download=bucket("nyu_franka_play_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[-8:-2]", "action[-2:-1] clip01"), state=("observation/state[-6:]",)
    ),
    state_names=POSE,
    blanked=True,
    notes=("The last action dim (terminate) is left out.",),
)

MANISKILL = Dataset(
    name="maniskill_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka (simulated)",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=20.0,
    download=bucket("maniskill_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"),
        state=("observation/tcp_pose", "observation/state[7:8]"),
    ),
    state_names=(*QUAT, "gripper"),
)

FURNITURE_BENCH = Dataset(
    name="furniture_bench_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("furniture_bench_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:3]", "action[3:7] euler_from_quat_xyzw", "action[-1:] clip01 invert"),
        state=("observation/state[0:7]", "observation/state[-1:]"),
    ),
    state_names=(*QUAT, "gripper_width"),
    notes=(QUATERNION,),
)

CMU_FRANKA_EXPLORATION = Dataset(
    name="cmu_franka_exploration_dataset_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/highres_image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("cmu_franka_exploration_dataset_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(actions=("action[0:6]", "action[6:7] clip01")),
    notes=(
        "No state is recorded.",
        "The last action dim (terminate) is left out.",
    ),
)

KAIST_NONPREHENSILE = Dataset(
    name="kaist_nonprehensile_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("kaist_nonprehensile_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:6]", Constant(0.0, 1)), state=("observation/state[-7:]",)
    ),
    state_names=QUAT,
    notes=("A pushing task: the gripper action is always 0 (closed).",),
)

STANFORD_ROBOCOOK = Dataset(
    name="stanford_robocook_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image_1", "secondary": "observation/image_2"},
    language=STEP_TEXT,
    control_hz=5.0,
    download=bucket("stanford_robocook_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(actions=("action[0:6]", "action[6:7] clip01"), state=("observation/state",)),
    state_names=EEF,
)

IAMLAB_CMU_PICKUP_INSERT = Dataset(
    name="iamlab_cmu_pickup_insert_converted_externally_to_rlds",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=STEP_TEXT,
    control_hz=20.0,
    download=bucket("iamlab_cmu_pickup_insert_converted_externally_to_rlds/0.1.0"),
    standardise=Recipe(
        actions=("action[0:3]", "action[3:7] euler_from_quat_xyzw", "action[7:8] clip01"),
        state=("observation/state[0:7]", "observation/state[7:8]"),
    ),
    state_names=(*joints(7), "gripper"),
    notes=(QUATERNION,),
)

CMU_PLAYING_WITH_FOOD = Dataset(
    name="cmu_playing_with_food",
    version="1.0.0",
    robot="Franka",
    cameras={"primary": "observation/image", "wrist": "observation/finger_vision_1"},
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("cmu_playing_with_food/1.0.0"),
    standardise=Recipe(
        actions=("action[0:3]", "action[3:7] euler_from_quat_xyzw", "action[-1:] clip01"),
        state=("observation/state",),
    ),
    state_names=POSE,
    notes=(
        QUATERNION,
        "Octo and OpenVLA state no version; a mirror of the bucket has 1.0.0.",
    ),
)

CMU_PLAY_FUSION = Dataset(
    name="cmu_play_fusion",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image"},
    language=STEP_TEXT,
    control_hz=5.0,
    download=bucket("cmu_play_fusion/0.1.0"),
    standardise=Recipe(
        actions=("action[0:3]", "action[-4:-1]", "action[-1:] clip01"), state=("observation/state",)
    ),
    state_names=(*joints(7), "gripper"),
)

FMB = Dataset(
    name="fmb_dataset",
    version="0.0.1",
    robot="Franka",
    cameras={
        "primary": "observation/image_side_1",
        "secondary": "observation/image_side_2",
        "wrist": "observation/image_wrist_1",
    },
    language=STEP_TEXT,
    control_hz=10.0,
    download=bucket("fmb/0.0.1", folder="fmb_dataset"),
    standardise=Recipe(
        actions=("action[0:6]", "action[6:7] clip01"),
        state=("observation/eef_pose", "observation/state_gripper_pose"),
    ),
    state_names=(*QUAT, "gripper"),
    notes=(
        "The bucket calls it fmb; its features have not been compared with those of Octo's copy.",
        (
            "Octo and OpenVLA call the state an Euler pose; the TFDS catalogue lists seven numbers,"
            " a quaternion pose."
        ),
    ),
)

FAMILY = (
    STANFORD_HYDRA,
    AUSTIN_BUDS,
    AUSTIN_SAILOR,
    AUSTIN_SIRIUS,
    UTAUSTIN_MUTEX,
    NYU_FRANKA_PLAY,
    MANISKILL,
    FURNITURE_BENCH,
    CMU_FRANKA_EXPLORATION,
    KAIST_NONPREHENSILE,
    STANFORD_ROBOCOOK,
    IAMLAB_CMU_PICKUP_INSERT,
    CMU_PLAYING_WITH_FOOD,
    CMU_PLAY_FUSION,
    FMB,
)
