"""The datasets RT-X was trained on, and its neighbours that keep actions in a dictionary."""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.downloads import bucket
from data_pipelines.datasets.names import EEF, OBSERVATION_TEXT, POSE, QUAT, joints
from data_pipelines.standardise import Constant, Recipe

ARM = ("action/world_vector", "action/rotation_delta")
# The gripper command of the Google robots is an event, not a position.
RELATIVE = "action/gripper_closedness_action[0:1] rel2abs"
EVENTS = (
    "The recorded gripper command is relative (+ closes, - opens). It is carried forward to an"
    " absolute one: a first command is taken to do something, and an episode without any is open"
    " throughout."
)

FRACTAL = Dataset(
    name="fractal20220817_data",
    version="0.1.0",
    robot="Google Robot",
    cameras={"primary": "observation/image"},
    language=OBSERVATION_TEXT,
    control_hz=3.0,
    download=bucket("fractal20220817_data/0.1.0"),
    standardise=Recipe(
        actions=(*ARM, RELATIVE),
        state=("observation/base_pose_tool_reached", "observation/gripper_closed"),
    ),
    state_names=(*QUAT, "gripper_closed"),
    episodes=87212,
    notes=(
        "RT-1.",
        EVENTS,
        (
            "A robot that takes relative commands needs the inverse when it is driven (a sticky"
            " gripper)."
        ),
        "Base motion and terminate_episode are left out.",
    ),
)

KUKA = Dataset(
    name="kuka",
    version="0.1.0",
    robot="Kuka iiwa",
    cameras={"primary": "observation/image"},
    language=OBSERVATION_TEXT,
    control_hz=10.0,
    download=bucket("kuka/0.1.0"),
    standardise=Recipe(
        actions=(*ARM, RELATIVE),
        state=(
            "observation/clip_function_input/base_pose_tool_reached zlib_f32:7",
            "observation/gripper_closed zlib_f32:1",
        ),
    ),
    state_names=(*QUAT, "gripper_closed"),
    blanked=True,
    require="success",
    notes=(
        EVENTS,
        "The state is stored as zlib strings of float32.",
        "Successful episodes only, as Octo and OpenVLA (there a step of preparing the copy).",
    ),
)

TACO_PLAY = Dataset(
    name="taco_play",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/rgb_static", "wrist": "observation/rgb_gripper"},
    language=OBSERVATION_TEXT,
    control_hz=15.0,
    download=bucket("taco_play/0.1.0"),
    standardise=Recipe(
        actions=("action/rel_actions_world[0:6]", "action/rel_actions_world[-1:] clip01"),
        state=("observation/robot_obs[0:6]", "observation/robot_obs[6:7]"),
    ),
    state_names=(*POSE, "gripper_width"),
    notes=(
        (
            "The state's gripper is robot_obs[6], its width. Octo and OpenVLA take robot_obs[7],"
            " which is the first arm joint (layout as documented for CALVIN)."
        ),
        "The gripper action is clipped to [0, 1] from -1 (closed), 1 (open), and not inverted.",
    ),
)

JACO_PLAY = Dataset(
    name="jaco_play",
    version="0.1.0",
    robot="Jaco 2",
    cameras={"primary": "observation/image", "wrist": "observation/image_wrist"},
    language=OBSERVATION_TEXT,
    control_hz=10.0,
    download=bucket("jaco_play/0.1.0"),
    standardise=Recipe(
        actions=("action/world_vector", "action/world_vector zeros", RELATIVE),
        state=("observation/end_effector_cartesian_pos",),
    ),
    state_names=EEF,
    notes=("No rotation is recorded: roll, pitch and yaw are 0.", EVENTS),
)

BERKELEY_CABLE_ROUTING = Dataset(
    name="berkeley_cable_routing",
    version="0.1.0",
    robot="Franka",
    cameras={
        "primary": "observation/image",
        "secondary": "observation/top_image",
        "wrist": "observation/wrist45_image",
    },
    language=OBSERVATION_TEXT,
    control_hz=10.0,
    download=bucket("berkeley_cable_routing/0.1.0"),
    standardise=Recipe(actions=(*ARM, Constant(0.0, 1)), state=("observation/robot_state",)),
    state_names=joints(7),
    blanked=True,
    notes=("The gripper holds the cable throughout: its action is always 0 (closed).",),
)

ROBOTURK = Dataset(
    name="roboturk",
    version="0.1.0",
    robot="Sawyer",
    cameras={"primary": "observation/front_rgb"},
    language=OBSERVATION_TEXT,
    control_hz=10.0,
    download=bucket("roboturk/0.1.0"),
    standardise=Recipe(actions=(*ARM, "action/gripper_closedness_action clip01 invert")),
    blanked=True,
    notes=("No state is recorded.", "One public table says 5 Hz, two say 10."),
)

NYU_DOOR = Dataset(
    name="nyu_door_opening_surprising_effectiveness",
    version="0.1.0",
    robot="Hello Stretch",
    cameras={"wrist": "observation/image"},
    language=OBSERVATION_TEXT,
    control_hz=3.0,
    download=bucket("nyu_door_opening_surprising_effectiveness/0.1.0"),
    standardise=Recipe(actions=(*ARM, RELATIVE)),
    blanked=True,
    notes=("No primary camera.", "No state is recorded.", EVENTS),
)

VIOLA = Dataset(
    name="viola",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/agentview_rgb", "wrist": "observation/eye_in_hand_rgb"},
    language=OBSERVATION_TEXT,
    control_hz=20.0,
    download=bucket("viola/0.1.0"),
    standardise=Recipe(
        actions=(*ARM, "action/gripper_closedness_action clip01 invert"),
        state=("observation/joint_states", "observation/gripper_states"),
    ),
    state_names=(*joints(7), "gripper"),
    blanked=True,
)

BERKELEY_AUTOLAB_UR5 = Dataset(
    name="berkeley_autolab_ur5",
    version="0.1.0",
    robot="UR5",
    cameras={"primary": "observation/image", "wrist": "observation/hand_image"},
    bgr=("wrist",),
    language=OBSERVATION_TEXT,
    control_hz=5.0,
    download=bucket("berkeley_autolab_ur5/0.1.0"),
    standardise=Recipe(
        actions=(*ARM, "action/gripper_closedness_action rel2abs"),
        state=("observation/robot_state[6:14]",),
    ),
    state_names=(*QUAT, "gripper_closed"),
    notes=("The wrist camera is stored blue first.", EVENTS),
)

TOTO = Dataset(
    name="toto",
    version="0.1.0",
    robot="Franka",
    cameras={"primary": "observation/image"},
    language=OBSERVATION_TEXT,
    control_hz=30.0,
    download=bucket("toto/0.1.0"),
    standardise=Recipe(actions=(*ARM, "action/open_gripper"), state=("observation/state",)),
    state_names=joints(7),
    blanked=True,
)

LANGUAGE_TABLE = Dataset(
    name="language_table",
    version="0.0.1",
    robot="xArm",
    cameras={"primary": "observation/rgb"},
    language="observation/instruction",
    control_hz=10.0,
    download=bucket("language_table/0.0.1"),
    standardise=Recipe(
        actions=("action", "action zeros", "action zeros", Constant(1.0, 1)),
        state=("observation/effector_translation",),
    ),
    state_names=("x", "y"),
    notes=(
        "Actions are in the plane: z and all angles are 0, the gripper is always 1 (open).",
        "The instruction is stored as 512 code points, padded with NUL.",
        "Version 0.1.0 exists too.",
    ),
)

COLUMBIA_PUSHT = Dataset(
    name="columbia_cairlab_pusht_real",
    version="0.1.0",
    robot="UR5",
    cameras={"primary": "observation/image", "wrist": "observation/wrist_image"},
    language=OBSERVATION_TEXT,
    control_hz=10.0,
    download=bucket("columbia_cairlab_pusht_real/0.1.0"),
    standardise=Recipe(
        actions=(*ARM, "action/gripper_closedness_action clip01"),
        state=("observation/robot_state",),
    ),
    state_names=("x", "y"),
    notes=(
        "A pushing task. The closedness is taken as it is, not inverted, as in Octo and OpenVLA.",
    ),
)

BC_Z = Dataset(
    name="bc_z",
    version="0.1.0",
    robot="Google Robot",
    cameras={"primary": "observation/image"},
    language=OBSERVATION_TEXT,
    control_hz=10.0,
    download=bucket("bc_z/0.1.0"),
    standardise=Recipe(
        actions=(
            "action/future/xyz_residual[0:3]",
            "action/future/axis_angle_residual[0:3]",
            "action/future/target_close[0:1] clip01 invert",
        ),
        state=(
            "observation/present/xyz",
            "observation/present/axis_angle",
            "observation/present/sensed_close",
        ),
    ),
    state_names=("x", "y", "z", "axis_x", "axis_y", "axis_z", "gripper_closed"),
    notes=(
        (
            "The rotation is an axis-angle vector, called roll, pitch, yaw and not converted, as in"
            " Octo and OpenVLA; for the small turns of one step the two nearly agree."
        ),
        "The first of ten recorded residuals is the action.",
        "Only version 0.1.0 is usable. A nominal 10 Hz; one public table says 30.",
    ),
)

FAMILY = (
    FRACTAL,
    KUKA,
    TACO_PLAY,
    JACO_PLAY,
    BERKELEY_CABLE_ROUTING,
    ROBOTURK,
    NYU_DOOR,
    VIOLA,
    BERKELEY_AUTOLAB_UR5,
    TOTO,
    LANGUAGE_TABLE,
    COLUMBIA_PUSHT,
    BC_Z,
)
