"""DROID and the small Franka sets recorded with its set-up."""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.downloads import bring, bucket
from data_pipelines.datasets.names import EEF, STEP_TEXT
from data_pipelines.standardise import Part, Recipe

ACTIONS: tuple[Part, ...] = (
    "action_dict/cartesian_velocity[0:6]",
    "action_dict/gripper_position clip01 invert",
)
STATE: tuple[Part, ...] = ("observation/cartesian_position", "observation/gripper_position")
# A recipe for sets whose action was already put together by whoever converted them.
CONVERTED = Recipe(
    actions=("action[0:6]", "action[-1:] binarise"),
    state=("observation/cartesian_position[0:6]", "observation/gripper_position[-1:]"),
)
CLOSEDNESS = (
    "The state's gripper is recorded as it is (DROID: 0 open, 1 closed); the action's is inverted."
)

DROID = Dataset(
    name="droid",
    version="1.0.1",
    robot="Franka",
    cameras={
        "primary": "observation/exterior_image_1_left",
        "secondary": "observation/exterior_image_2_left",
        "wrist": "observation/wrist_image_left",
    },
    language=(STEP_TEXT, f"{STEP_TEXT}_2", f"{STEP_TEXT}_3"),
    require="episode_metadata/file_path",
    pattern="success",
    control_hz=15.0,
    download=bucket("droid/1.0.1"),
    standardise=Recipe(actions=ACTIONS, state=STATE, idle=1e-5),
    state_names=EEF,
    notes=(
        (
            "Steps without a command are left out before windows are cut: all six velocities within"
            " 1e-5, and the gripper command as before. OpenVLA only starts no window there,"
            " whatever the gripper does."
        ),
        "OpenVLA swaps the two exterior views in half of the episodes. Here each keeps its slot.",
        (
            "One of three instructions is drawn for each window, of those that are not empty, as"
            " openpi does; OpenVLA uses the first."
        ),
        (
            "Only episodes recorded under a path with `success` in it, as openpi does; OpenVLA"
            " trains on failures too."
        ),
        "Version 1.0.1 has more instructions than 1.0.0.",
        (
            "OpenVLA's registry calls the state a quaternion pose; it is six numbers (x ... yaw)"
            " and the gripper."
        ),
        CLOSEDNESS,
    ),
)

DROID_WIPE = Dataset(
    name="droid_wipe",
    version="1.0.0",
    robot="Franka",
    cameras={
        "primary": "observation/exterior_image_2_left",
        "wrist": "observation/wrist_image_left",
    },
    language=STEP_TEXT,
    control_hz=15.0,
    download=bring("droid_wipe", "1.0.0", "OpenVLA's own fine-tuning data"),
    standardise=Recipe(actions=ACTIONS, state=STATE),
    state_names=EEF,
    notes=("OpenVLA states no version: 1.0.0 is our guess.", CLOSEDNESS),
)


def _tdroid(task: str) -> Dataset:
    return Dataset(
        name=f"tdroid_{task}",
        version="1.0.0",
        robot="Franka",
        cameras={"primary": "observation/static_image"},
        language=STEP_TEXT,
        control_hz=5.0,
        download=bring(f"tdroid_{task}", "1.0.0", "OpenVLA's own fine-tuning data"),
        standardise=CONVERTED,
        state_names=EEF,
        notes=("OpenVLA states no version: 1.0.0 is our guess.",),
    )


def _ppgm(name: str) -> Dataset:
    return Dataset(
        name=name,
        version="1.0.0",
        cameras={},
        language=STEP_TEXT,
        control_hz=None,
        download=bring(name, "1.0.0", "OpenVLA's own data"),
        standardise=CONVERTED,
        state_names=EEF,
        notes=(
            (
                "OpenVLA has a transform for it but no configuration: its cameras, control rate and"
                " version are unknown. Without a camera no mixture takes it."
            ),
        ),
    )


FAMILY = (
    DROID,
    DROID_WIPE,
    *(
        _tdroid(task)
        for task in (
            "carrot_in_bowl",
            "pour_corn_in_pot",
            "flip_pot_upright",
            "move_object_onto_plate",
            "knock_object_over",
            "cover_object_with_towel",
        )
    ),
    *(_ppgm(name) for name in ("ppgm", "ppgm_static", "ppgm_wrist")),
)
