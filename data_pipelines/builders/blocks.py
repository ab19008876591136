"""Writes the embedded dataset: a drawn table, coloured blocks, an instruction that names a colour and a direction.

    python -m data_pipelines.builders.blocks --out DIR

The gripper goes to the far side of the named block, closes, and pushes it in the named direction. Colour and direction are only
in the words, places only in the pixels: a policy must use both. RLDS as TFDS writes it, a few megabytes, the same bytes for the
same arguments; needs no TensorFlow.
"""

import argparse
import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_pipelines import tfrecord

SIZE = 32  # pixels of a side of the table and of both images
BLOCK = 6  # pixels of a side of a block
METRE = 0.01  # metres per pixel
REACH, PUSH = 4.0, 2.0  # pixels per frame while approaching and while pushing
PUSHES = 7  # frames of pushing
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (235, 210, 50)}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TURN = {"left": -0.06, "right": 0.06, "up": 0.12, "down": -0.12}  # radians per frame while approaching
PHRASES = ("push the {colour} block {direction}", "move the {colour} block {direction}", "{colour} block to the {direction}")
TABLE, OPEN, CLOSED = (150, 140, 130), (255, 255, 255), (0, 0, 0)


class Step(NamedTuple):
    """One RLDS step."""

    image: bytes
    wrist_image: bytes
    state: np.ndarray
    action: np.ndarray


def write_blocks(root: Path | str, train: int = 300, val: int = 40, seed: int = 0) -> Path:
    """Writes `train` and `val` episodes under root/blocks/1.0.0 and returns that folder; one already there is kept.

    Atomic: the folder is there whole or not at all.
    """
    folder = Path(root) / "blocks" / "1.0.0"
    if (folder / "dataset_info.json").exists():
        return folder
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    part.mkdir(parents=True)
    splits = []
    for i, (name, count) in enumerate((("train", train), ("val", val))):
        rng = np.random.default_rng([seed, i])
        file = part / f"blocks-{name}.tfrecord-00000-of-00001"
        written, size = tfrecord.write_records(file, (_example(*episode(rng)) for _ in range(count)))
        splits.append({"name": name, "shardLengths": [str(written)], "numBytes": str(size),
                       "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"})  # fmt: skip
    (part / "features.json").write_text(json.dumps(_features(), indent=1))
    info = {"name": "blocks", "version": "1.0.0", "fileFormat": "tfrecord", "description": "Pushing blocks on a drawn table.",
            "moduleName": "data_pipelines.builders.blocks", "splits": splits}  # fmt: skip
    (part / "dataset_info.json").write_text(json.dumps(info, indent=1))
    os.replace(part, folder)
    return folder


def episode(rng: np.random.Generator) -> tuple[str, list[Step]]:
    """One instruction and its steps, the scripted expert acting."""
    colours = list(rng.permutation(list(COLOURS)))[:3]
    direction = str(rng.choice(list(DIRECTIONS)))
    places = _places(rng, len(colours))
    colour, towards = colours[0], np.array(DIRECTIONS[direction], float)
    instruction = str(rng.choice(PHRASES)).format(colour=colour, direction=direction)
    gripper, closed, yaw = rng.uniform(4, SIZE - 4, 2), False, 0.0
    steps, pushed = [], 0
    while pushed < PUSHES:
        contact = places[0] - towards * (BLOCK / 2 + 1)
        gap = contact - gripper
        approaching = pushed == 0 and np.abs(gap).max() > 0.5
        if approaching:
            move = gap * min(1.0, REACH / np.linalg.norm(gap))
        else:
            move, pushed = towards * PUSH, pushed + 1
        turn = TURN[direction] if approaching else 0.0
        lower = 0.0 if approaching or closed else -0.02  # down onto the table as the push begins
        action = np.array([*(move * METRE), lower, 0.0, 0.0, turn, float(approaching)], np.float32)
        state = np.array([*(gripper * METRE), 0.0 if closed else 0.02, 0.0, 0.0, yaw, float(not closed)], np.float32)
        image = draw(places, colours, gripper, closed, rng)
        steps.append(Step(_png(image), _png(wrist_view(image, gripper)), state, action))
        gripper, yaw, closed = gripper + move, yaw + turn, not approaching
        if not approaching:
            places[0] = places[0] + move
    return instruction, steps


def draw(
    places: np.ndarray, colours: list[str], gripper: np.ndarray, closed: bool, rng: np.random.Generator
) -> np.ndarray:
    """The table from above, [SIZE, SIZE, 3] uint8, with a little sensor noise."""
    image = np.full((SIZE, SIZE, 3), TABLE, float)
    for place, colour in reversed(list(zip(places, colours, strict=True))):
        _square(image, place, BLOCK, COLOURS[colour])
    _square(image, gripper, 4, CLOSED if closed else OPEN)
    return np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def wrist_view(image: np.ndarray, gripper: np.ndarray) -> np.ndarray:
    """The half of the table's width around the gripper, at twice the scale."""
    half = SIZE // 4
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="edge")
    x, y = np.clip(np.round(gripper).astype(int), 0, SIZE)
    view = padded[y : y + 2 * half, x : x + 2 * half]
    return view.repeat(2, axis=0).repeat(2, axis=1)


def _places(rng: np.random.Generator, count: int) -> np.ndarray:
    """Centres that leave room between blocks and to the edge; the first has room to be pushed."""
    while True:
        places = rng.uniform(8, SIZE - 8, (count, 2))
        distance = np.abs(places[:, None] - places[None]).max(-1) + 99 * np.eye(count)
        if distance.min() > BLOCK:
            return places


def _square(image: np.ndarray, centre: np.ndarray, side: int, colour: tuple[int, int, int]) -> None:
    x, y = np.round(centre - side / 2).astype(int)
    image[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)] = colour


def _png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


def _example(instruction: str, steps: list[Step]) -> bytes:
    ends = np.zeros(len(steps), bool)
    ends[-1] = True
    words = instruction.encode()
    return tfrecord.make_example(
        {
            "steps/action": np.concatenate([step.action for step in steps]),
            "steps/observation/state": np.concatenate([step.state for step in steps]),
            "steps/observation/image": [step.image for step in steps],
            "steps/observation/wrist_image": [step.wrist_image for step in steps],
            "steps/language_instruction": [words] * len(steps),
            "steps/is_first": np.arange(len(steps)) == 0,
            "steps/is_last": ends,
            "steps/is_terminal": ends,
            "steps/reward": ends.astype(np.float32),
            "steps/discount": np.ones(len(steps), np.float32),
        }
    )


def _features() -> dict[str, Any]:
    """features.json in the form of TFDS 4.9."""
    core = "tensorflow_datasets.core.features."

    def tensor(dtype: str, *shape: int) -> dict[str, Any]:
        kind = "tensor_feature.Tensor" if shape else "scalar.Scalar"
        dimensions = {"dimensions": [str(n) for n in shape]} if shape else {}
        return {"pythonClassName": core + kind, "tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"}}

    def features(**children: dict[str, Any]) -> dict[str, Any]:
        return {"pythonClassName": core + "features_dict.FeaturesDict", "featuresDict": {"features": children}}

    image = {
        "pythonClassName": core + "image_feature.Image",
        "image": {"shape": {"dimensions": [str(SIZE), str(SIZE), "3"]}, "dtype": "uint8", "encodingFormat": "png"},
    }
    step = features(
        action=tensor("float32", 7),
        observation=features(state=tensor("float32", 7), image=image, wrist_image=image),
        language_instruction={"pythonClassName": core + "text_feature.Text", "text": {}},
        is_first=tensor("bool"),
        is_last=tensor("bool"),
        is_terminal=tensor("bool"),
        reward=tensor("float32"),
        discount=tensor("float32"),
    )
    return features(
        steps={"pythonClassName": core + "dataset_feature.Dataset", "sequence": {"feature": step, "length": "-1"}}
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the embedded blocks dataset.")
    parser.add_argument("--out", required=True, help="the data root: files go to OUT/blocks/1.0.0")
    print(write_blocks(parser.parse_args().out))
