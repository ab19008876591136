"""Generated episodes in which each number of an action is told by one sensor alone: the picture is
gray, and the words are the same.

    x imu, y front (2-D LiDAR), z cloud (points), roll wrist (depth), pitch finger (touch), yaw
    command (speech, of the whole episode)
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.builders import rlds_files
from data_pipelines.builders.blocks import compress
from data_pipelines.datasets import Dataset
from data_pipelines.files import tfrecord
from data_pipelines.standardise import Recipe

RATE, SECONDS = 4000, 1
STEPS = 6
TOLD = ("imu", "front", "cloud", "wrist", "finger", "command")  # of the action's numbers, in order
NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
CONFIG = (
    "imu=vector:5x6,front=scan:60,cloud=points:24x3,wrist=depth:16,finger=tactile:16,"
    f"command=audio:{RATE}x{SECONDS}"
)
SENSED = Dataset(
    name="sensed",
    version="1.0.0",
    cameras={"primary": "observation/image"},
    language="language_instruction",
    control_hz=10.0,
    download="written by a test",
    standardise=Recipe(actions=("action[0:7]",)),
    sensors={
        "imu": "observation/imu",
        "front": "observation/front",
        "cloud": "observation/cloud",
        "wrist": ("observation/wrist", 0.001),
        "finger": "observation/finger",
        "command": "episode_metadata/command",
    },
)


def imu(u, rng):
    """Five samples of six numbers: the third swings by u."""
    out = rng.normal(0, 0.3, (5, 6))
    out[:, 2] = 9.81 + 4 * u * np.sin(np.arange(5) + 1)
    return out


def front(u, rng):
    """60 beams of 5 m: something at 1 m where u says. Some come back with nothing."""
    out = 5 + rng.normal(0, 0.05, 60)
    at = round(30 + 25 * u)
    out[max(0, at - 3) : at + 4] = 1
    out[rng.random(60) < 0.05] = rng.choice([np.nan, np.inf])
    return out


def cloud(u, rng):
    """24 points in any order, of a box at u."""
    return rng.uniform(-0.2, 0.2, (24, 3)) + np.array([u, 0.5, 0])


def wrist(u, rng):
    """Millimetres: a thing at 300 before a wall at 900 to 1100, nothing known at some pixels."""
    out = rng.uniform(900, 1100, (24, 32)).astype(np.uint16)
    at = round(16 + 12 * u)
    out[:, max(0, at - 3) : at + 4] = 300
    out[rng.random(out.shape) < 0.05] = 0
    return out


def finger(u, rng):
    """A dark spot on a bright pad."""
    out = rng.integers(150, 200, (16, 16, 3)).astype(np.uint8)
    at = round(8 + 6 * u)
    out[5:11, max(0, at - 2) : at + 3] = 40
    return out


def command(u, rng):
    """A tone, 16 bits."""
    t = np.arange(RATE * SECONDS * 3 // 4) / RATE
    out = np.sin(2 * np.pi * (700 + 400 * u) * t) * 0.5 + rng.normal(0, 0.02, len(t))
    return np.round(out * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int64)


def png(picture):
    """A PNG of 8 or 16 bits."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def episode(number, steps=STEPS):
    """Raw readings by name, [T ...] or of the command [s], and actions [T 7]."""
    rng = np.random.default_rng(number)
    told = rng.uniform(-1, 1, (steps, 6))
    told[:, 5] = told[0, 5]
    made = {imu: 0, front: 1, cloud: 2, wrist: 3, finger: 4}
    raw = {
        make.__name__: np.stack([make(u, rng) for u in told[:, dim]]) for make, dim in made.items()
    }
    raw["command"] = command(told[0, 5], rng)
    actions = np.concatenate([told, (np.arange(steps) % 2)[:, None]], axis=1)
    return raw, actions.astype(np.float32)


def example(raw, actions):
    """A tf.train.Example of an episode."""
    steps = len(actions)
    return tfrecord.encode(
        {
            **rlds_files.flags(steps),
            "episode_metadata/command": raw["command"],
            "steps/action": actions,
            "steps/language_instruction": [b"go"] * steps,
            "steps/observation/image": [compress(np.full((32, 32, 3), 128, np.uint8), "PNG")]
            * steps,
            "steps/observation/wrist": [png(picture) for picture in raw["wrist"]],
            "steps/observation/finger": [png(picture) for picture in raw["finger"]],
            **{
                f"steps/observation/{name}": raw[name].astype(np.float32)
                for name in ("imu", "front", "cloud")
            },
        }
    )


def features(rate=RATE, shape=("-1",)):
    """features.json."""
    sound = {"shape": {"dimensions": list(shape)}, "dtype": "int64", "encoding": "NONE"}
    audio = {
        "pythonClassName": f"{rlds_files.CORE}audio_feature.Audio",
        "audio": {**sound, "sampleRate": str(rate)},
    }
    depth = rlds_files.image("png", 24, 32)
    depth["image"] |= {"dtype": "uint16", "shape": {"dimensions": ["24", "32", "1"]}}
    observation = {
        "image": rlds_files.image("png", 32, 32),
        "imu": rlds_files.tensor("float32", 5, 6),
        "front": rlds_files.tensor("float32", 60),
        "cloud": rlds_files.tensor("float32", 24, 3),
        "wrist": depth,
        "finger": rlds_files.image("png", 16, 16),
    }
    return rlds_files.episode(
        {
            "action": rlds_files.tensor("float32", 7),
            "language_instruction": rlds_files.text(),
            "observation": rlds_files.folder(observation),
        },
        {"command": audio},
    )


def write(root, train=8, val=2, described=None):
    """The dataset under `root`; `described` is another features.json."""
    folder = Path(root) / "sensed" / "1.0.0"
    folder.mkdir(parents=True, exist_ok=True)
    splits = [
        rlds_files.write_split(
            str(folder), "sensed", split, [[example(*episode(n)) for n in numbers]]
        )
        for split, numbers in (("train", range(train)), ("val", range(10**6, 10**6 + val)))
    ]
    rlds_files.finish(str(folder), "", described or features(), splits)
    return Path(root)
