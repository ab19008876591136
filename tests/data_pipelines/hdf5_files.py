"""Small HDF5 datasets as robomimic, LIBERO and ALOHA lay them out. Every picture tells which frame
it is (lerobot_files.picture).
"""

import io
import json

import h5py
import numpy as np
from PIL import Image

from data_pipelines.datasets import Dataset
from data_pipelines.standardise import Recipe
from tests.data_pipelines.lerobot_files import NAMES, picture, told

LENGTHS = {0: 13, 1: 9, 2: 17, 10: 6}  # demo -> steps
JOINTS = tuple(f"{side}_{i}" for side in ("left", "right") for i in range(7))
WORDS = "push the red block left"

LIBERO = Dataset(
    name="libero",
    version="",
    cameras={"primary": "obs/agentview_rgb", "wrist": "obs/eye_in_hand_rgb"},
    language="problem_info/language_instruction",
    control_hz=20.0,
    download="ask Ada",
    standardise=Recipe(
        actions=("actions[0:6]", "actions[6:7] clip01 invert"), state=("obs/ee[0:7]",)
    ),
    state_names=NAMES,
)
ALOHA = Dataset(
    name="aloha",
    version="",
    cameras={"primary": "observations/images/cam_high"},
    language="",
    instruction="hand the cube over",
    control_hz=50.0,
    download="ask Ada",
    standardise=Recipe(actions=("action",), state=("observations/qpos",)),
    action_names=JOINTS,
    state_names=JOINTS,
    binary=(6, 13),
)


def numbers(demo, width=7):
    """(actions, states) of a demo, float64 as robosuite records them."""
    rng = np.random.default_rng(demo)
    actions = rng.normal(size=(LENGTHS[demo], width))
    actions[:, 6::7] = rng.integers(0, 2, actions[:, 6::7].shape)
    return actions, rng.normal(size=(LENGTHS[demo], width))


def pictures(demo, camera):
    """uint8 [T SIZE SIZE 3]."""
    return np.stack([picture(told(demo, t, camera)) for t in range(LENGTHS[demo])])


def write_demos(path, demos=(0, 1, 2, 10), words=WORDS, **options):
    """A file of demos; `options` are of the datasets of pictures (chunks, compression)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": words})
        data.attrs["total"] = sum(LENGTHS[demo] for demo in demos)
        file["mask/train"] = [f"demo_{demo}".encode() for demo in demos]
        for demo in demos:
            group = data.create_group(f"demo_{demo}")
            group["actions"], group["obs/ee"] = numbers(demo)
            group["rewards"] = np.zeros(LENGTHS[demo], np.uint8)
            for camera, key in enumerate(LIBERO.cameras.values()):
                group.create_dataset(key, data=pictures(demo, camera), **options)


def write_aloha(folder, demos=(0, 1, 2, 10), compress=True):
    """A file an episode; JPEGs are padded to the length of the longest, as act's scripts do."""
    folder.mkdir(parents=True, exist_ok=True)
    for demo in demos:
        with h5py.File(folder / f"episode_{demo}.hdf5", "w") as file:
            file.attrs["sim"], file.attrs["compress"] = False, compress
            file["action"], file["observations/qpos"] = numbers(demo, 14)
            shown = pictures(demo, 0)
            file["observations/images/cam_high"] = padded(shown) if compress else shown


def padded(shown):
    """Pictures as JPEGs: uint8 [T n]."""
    files = []
    for pixels in shown:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    out = np.zeros((len(files), max(map(len, files)) + 5), np.uint8)
    for row, data in zip(out, files, strict=True):
        row[: len(data)] = data
    return out
