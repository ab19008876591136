"""Bridge, of which several editions are about: the V2 release of the authors, and the older one in
the OXE bucket.
"""

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.datasets.downloads import bucket
from data_pipelines.datasets.names import EEF, EEF_UNITS, OBSERVATION_TEXT, STEP_TEXT
from data_pipelines.standardise import Moved, Recipe

# Reached instead of commanded motion: the commands of a compliant arm under a blocking controller
# are hard to learn.
MOTION = Moved("observation/state[0:6]", angles=(3, 4, 5))
REACHED = (
    "The motion is the one reached (difference of states), its angles wrapped to [-pi, pi): Octo"
    " and OpenVLA do not wrap and get jumps of a full turn."
)
ENDS = (
    "The first step (a placeholder action near zero) and the last (no next state) are dropped, as"
    " OpenVLA does; Octo keeps the first."
)

BRIDGE = Dataset(
    name="bridge",
    tfds_name="bridge_dataset",
    version="1.0.0",
    robot="WidowX",
    cameras={"primary": "observation/image_0", "secondary": "observation/image_1"},
    language=STEP_TEXT,
    control_hz=5.0,
    download=(
        "wget -r -np -nH --cut-dirs=4 -P {root} "
        "https://rail.eecs.berkeley.edu/datasets/bridge_release/data/tfds/bridge_dataset/"
    ),
    standardise=Recipe(
        actions=(MOTION, "action[-1:] binarise"),
        state=("observation/state",),
        drop_first=1,
    ),
    action_units=EEF_UNITS,
    state_names=EEF,
    state_units=EEF_UNITS,
    revision=2,
    episodes=60064,
    notes=(
        (
            "BridgeData V2, pictures squashed to 256 x 256. Octo's bridge_dataset and OpenVLA's"
            " bridge_orig are both this."
        ),
        REACHED,
        ENDS,
        (
            "The gripper is decided by looking ahead, before the last step is dropped. One that"
            " never settles is thresholded at 0.5; Octo and OpenVLA leave its raw value."
        ),
    ),
)

BRIDGE_OXE = Dataset(
    name="bridge_oxe",
    tfds_name="bridge",
    version="0.1.0",
    robot="WidowX",
    cameras={"primary": "observation/image"},
    language=OBSERVATION_TEXT,
    control_hz=5.0,
    download=bucket("bridge/0.1.0"),
    standardise=Recipe(
        actions=(MOTION, "action/open_gripper"),
        state=("observation/state",),
        drop_first=1,
    ),
    action_units=EEF_UNITS,
    state_names=EEF,
    state_units=EEF_UNITS,
    notes=(
        (
            "The older edition in the OXE bucket, 480 x 640. Not to be mixed with `bridge`: both"
            " hold Bridge."
        ),
        (
            "OpenVLA also names image_1, which version 0.1.0 does not have (TFDS catalogue): only"
            " one camera here."
        ),
        REACHED,
        ENDS,
    ),
)

FAMILY = (BRIDGE, BRIDGE_OXE)
