"""What is in a CALVIN split, checked: recorded stretches, annotations, frames."""

import io
import pickle
import re
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.files import remote

# What a frame must hold: shape and kind. Depth, tactile and scene_obs are not converted.
FRAME = {
    "rgb_static": ((200, 200, 3), "u"),
    "rgb_gripper": ((84, 84, 3), "u"),
    "rel_actions": ((7,), "f"),
    "actions": ((7,), "f"),
    "robot_obs": ((15,), "f"),
}
# share of annotations that say again what another said: the ABC and ABCD files broken until 2022-09
REPEATED = 0.5


class Annotation(NamedTuple):
    """A described stretch of play: the frames [first, stop)."""

    first: int
    stop: int
    text: str
    task: str


class Recording(NamedTuple):
    """One split."""

    folder: str
    ranges: tuple[tuple[int, int], ...]  # recorded stretches, first and last frame
    annotations: tuple[Annotation, ...]  # in the order of the file
    scenes: tuple[tuple[str, int, int], ...]  # name, first and last frame; empty when nobody says

    def scene(self, frame: int) -> str:
        """The name of the scene a frame was recorded in, "" when unknown."""
        return next((name for name, first, last in self.scenes if first <= frame <= last), "")


def frame_name(number: int) -> str:
    """The file of a frame ("episode" is what CALVIN calls it)."""
    return f"episode_{number:07d}.npz"


def read_recording(folder: str) -> Recording:
    """A split's content. Raises ValueError when frames are missing or an annotation cannot be
    right.
    """
    path = remote.join(folder, "ep_start_end_ids.npy")
    ids = _array(path)
    if (
        ids.ndim != 2
        or ids.shape[1] != 2
        or ids.dtype.kind not in "iu"
        or (ids[:, 0] > ids[:, 1]).any()
    ):
        raise ValueError(
            f"{path}: expected rows of (first, last) frame, got {ids.dtype} of shape {ids.shape}"
        )
    ids = ids[np.argsort(ids[:, 0], kind="stable")]
    if (ids[1:, 0] <= ids[:-1, 1]).any():
        at = int(np.argmax(ids[1:, 0] <= ids[:-1, 1]))
        raise ValueError(
            f"{path}: expected stretches that do not overlap, got {ids[at].tolist()},"
            f" {ids[at + 1].tolist()}"
        )
    ranges = tuple((int(a), int(b)) for a, b in ids)
    _check_frames(folder, ranges)
    return Recording(folder, ranges, _annotations(folder, ranges), _scenes(folder))


def read_frame(path: str) -> dict[str, np.ndarray]:
    """The arrays of FRAME. Raises ValueError naming file and key when one is missing, mis-shaped or
    out of range.
    """
    try:
        with np.load(io.BytesIO(remote.read(path)), allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in FRAME if key in stored}
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected a frame, found no file; download the split again"
        ) from None
    except Exception as error:  # zip, zlib and numpy each have their own
        raise ValueError(
            f"{path}: expected an npz, got {error!r}; download the split again"
        ) from error
    for key, (shape, kind) in FRAME.items():
        if key not in arrays:
            raise ValueError(
                f"{path}: expected the key {key!r}, got {sorted(arrays)}; download the split again"
            )
        value = arrays[key]
        if (
            value.shape != shape
            or value.dtype.kind != kind
            or (kind == "u" and value.itemsize != 1)
        ):
            raise ValueError(
                f"{path}: {key}: expected {kind}{shape}, got {value.dtype}{value.shape}"
            )
        if kind == "f" and not np.isfinite(value).all():
            raise ValueError(f"{path}: {key}: expected finite numbers, got {value}")
    moves = arrays["rel_actions"]
    if np.abs(moves[:6]).max() > 1 + 1e-6 or abs(moves[6]) != 1:
        raise ValueError(
            f"{path}: rel_actions: expected motion in [-1, 1] and a gripper of -1 or 1, got"
            f" {moves}; is it another normalisation?"
        )
    return arrays


def _check_frames(folder: str, ranges: tuple[tuple[int, int], ...]) -> None:
    """All recorded frames are there; what else lies around is named and not used."""
    there = {
        int(m[1])
        for name in remote.list_folder(folder)
        if (m := re.fullmatch(r"episode_(\d{7})\.npz", name))
    }
    wanted = {number for first, last in ranges for number in range(first, last + 1)}
    missing = sorted(wanted - there)
    if missing:
        names = ", ".join(frame_name(number) for number in missing[:3])
        raise ValueError(
            f"{folder}: expected {len(wanted)} frames (ep_start_end_ids.npy), {len(missing)} are"
            f" missing: {names}{' ...' if len(missing) > 3 else ''}; unzip the split again"
        )
    stray = sorted(there - wanted)
    if stray:
        print(
            f"{folder}: {len(stray)} frames outside of ep_start_end_ids.npy are not used:"
            f" {stray[:4]}",
            flush=True,
        )


def _annotations(folder: str, ranges: tuple[tuple[int, int], ...]) -> tuple[Annotation, ...]:
    paths = [
        remote.join(folder, *parts, "auto_lang_ann.npy") for parts in (("lang_annotations",), ())
    ]
    path = next((path for path in paths if remote.exists(path)), None)
    if path is None:
        others = [name for name in remote.list_folder(folder) if name.startswith("lang_")]
        raise ValueError(
            f"{folder}: expected {' or '.join(paths)}, found "
            + (
                f"{', '.join(others)}, the same sentences with other embeddings: copy one"
                " to lang_annotations"
                if others
                else "neither; download the annotations"
            )
        )
    body = _array(path)
    try:
        content = body.item()
        texts, tasks, indx = (
            content["language"]["ann"],
            content["language"]["task"],
            content["info"]["indx"],
        )
        annotations = [
            Annotation(int(a), int(b), _sentence(t), _sentence(k))
            for (a, b), t, k in zip(indx, texts, tasks, strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected language.ann, language.task and info.indx of one length: {error!r}"
        ) from error
    for number, annotation in enumerate(annotations):
        if not any(a <= annotation.first < annotation.stop <= b + 1 for a, b in ranges):
            raise ValueError(
                f"{path}: annotation {number} ({annotation.text!r}): expected frames inside one"
                f" recorded stretch, got {annotation.first} to {annotation.stop}; were two datasets"
                " merged by hand?"
            )
    again = 1 - len(set(annotations)) / max(1, len(annotations))
    if again > REPEATED:
        raise ValueError(
            f"{path}: {again:.0%} of {len(annotations)} annotations repeat another: this is the"
            " broken file of ABC and ABCD; take the validation annotations of task_D_D, or convert"
            " --splits=training alone"
        )
    return tuple(annotations)


def _sentence(value: Any) -> str:
    """A sentence, also in a list of its own as embeddings.npy has it. Raises TypeError for anything
    else.
    """
    while isinstance(value, list | tuple | np.ndarray) and len(np.atleast_1d(value)) == 1:
        value = np.atleast_1d(value)[0]
    if not isinstance(value, str):
        raise TypeError(f"expected a sentence, got {value!r}")
    return str(value)


def _scenes(folder: str) -> tuple[tuple[str, int, int], ...]:
    path = remote.join(folder, "scene_info.npy")
    if not remote.exists(path):
        return ()
    body = _array(path)
    try:
        return tuple(
            (str(name), int(first), int(last))
            for name, (first, last) in sorted(body.item().items())
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a dict of (first, last) frame by scene, got {body.dtype} of shape"
            f" {body.shape} ({error}); download it again, or remove it: it only names scenes"
        ) from error


def _array(path: str) -> np.ndarray:
    """An npy file. One that is a pickle may hold plain containers of numbers, strings and arrays,
    and nothing else.
    """
    try:
        data = io.BytesIO(remote.read(path))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: expected a file of CALVIN, found none; is --source an unzipped task folder?"
        ) from None
    try:
        version = np.lib.format.read_magic(data)
        header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        if header(data)[2].hasobject:
            return _Plain(data).load()
        data.seek(0)
        return np.load(data, allow_pickle=False)
    except (ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: expected an npy file of plain data, got: {error}") from error


class _Plain(pickle.Unpickler):
    """Builds numpy arrays and nothing else: a pickle from the network must not run code."""

    ALLOWED = frozenset(
        (module, name)
        for name, modules in {
            "_reconstruct": ("numpy.core.multiarray", "numpy._core.multiarray"),
            "scalar": ("numpy.core.multiarray", "numpy._core.multiarray"),
            "ndarray": ("numpy",),
            "dtype": ("numpy",),
            "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
            "encode": ("_codecs",),  # how Python 2 byte strings are written
        }.items()
        for module in modules
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"a pickle that wants {module}.{name}; it was not loaded")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
