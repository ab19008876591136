"""The user's clones of CALVIN: where they are, whether they are whole, and their code.

CALVIN_ROOT      a clone of https://github.com/mees/calvin
CALVIN_ENV_ROOT  a clone of https://github.com/mees/calvin_env; left out: the submodule of the first

Their evaluation imports pyhash, which no longer builds, and torch and a model of its own, which it
does not need for what is taken from it: modules of these names stand in while it is imported.
"""

import contextlib
import ctypes
import importlib
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# Of calvin_env, those that were tried: the newest, and the one of CALVIN's submodule. They differ
# in a button that is reset.
ENV_COMMITS = (
    "797142c588c21e76717268b7b430958dbd13bf48",
    "1431a46bd36bde5903fb6345e68b5ccc30def666",
)
NEEDED = {  # files that are read of each clone, for those that git says nothing of
    "CALVIN_ROOT": (
        "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml",
        "calvin_models/conf/annotations/new_playtable.yaml",
        "calvin_models/conf/annotations/new_playtable_validation.yaml",
        "calvin_models/calvin_agent/evaluation/multistep_sequences.py",
        "calvin_models/calvin_agent/evaluation/utils.py",
    ),
    "CALVIN_ENV_ROOT": ("calvin_env/envs/play_table_env.py", "conf/scene/calvin_scene_D.yaml"),
}
INSTALL = 'pip install "vla_jax[calvin]" (Python 3.11: pybullet has no wheels for later ones)'


class Clones(NamedTuple):
    """The folders of mees/calvin and mees/calvin_env."""

    calvin: Path
    env: Path

    @property
    def models(self) -> Path:
        """Where its evaluation, its tasks and its sentences are."""
        return self.calvin / "calvin_models"

    def commits(self) -> dict[str, str]:
        """Of each clone; "-dirty" behind one whose files were changed."""
        describe = ("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*")
        return {
            "calvin": _git(self.calvin, *describe).strip(),
            "calvin_env": _git(self.env, *describe).strip(),
        }


def located() -> Clones:
    """The clones that the environment names. Raises ValueError where one is not named or not whole;
    missing files are named.
    """
    root = os.environ.get("CALVIN_ROOT", "")
    if not root:
        raise ValueError(
            "CALVIN_ROOT: expected the folder of a clone of CALVIN, got nothing; git clone"
            " --recurse-submodules https://github.com/mees/calvin, and set it"
        )
    calvin = Path(root).expanduser()
    env = Path(os.environ.get("CALVIN_ENV_ROOT") or calvin / "calvin_env").expanduser()
    for name, folder in (("CALVIN_ROOT", calvin), ("CALVIN_ENV_ROOT", env)):
        _check(name, folder.resolve())
    return Clones(calvin.resolve(), env.resolve())


def imported(folder: Path, name: str) -> ModuleType:
    """A module of a clone. Raises ValueError saying what to install where it needs what is not
    there.
    """
    sys.path.insert(0, str(folder))
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs are of their age: gym, hydra
            return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"CALVIN: expected to import {name} from {folder}, got {error!r}; {INSTALL}"
        ) from error
    finally:
        sys.path.remove(str(folder))


def evaluation(clones: Clones) -> tuple[ModuleType, ModuleType]:
    """CALVIN's own modules calvin_agent.evaluation.utils and multistep_sequences."""
    for name in ("cv2", "hydra", "omegaconf"):
        imported(clones.models, name)
    stand_ins: dict[str, dict[str, Any]] = {
        "pyhash": {"fnv1_32": lambda: fnv1_32},
        "torch": {},
        "calvin_agent.models.mcil": {"MCIL": None},
        "calvin_agent.utils.utils": {"add_text": None, "format_sftp_path": None},
    }
    before = {name: sys.modules.get(name) for name in stand_ins}
    for name, content in stand_ins.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        utils = imported(clones.models, "calvin_agent.evaluation.utils")
        return utils, imported(clones.models, "calvin_agent.evaluation.multistep_sequences")
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def fnv1_32(text: str) -> int:
    """What pyhash.fnv1_32()(text) gives, which CALVIN places its blocks by: FNV-1 of 32 bits over
    the bytes of UTF-16, from 0 on and not from its offset.
    """
    value = 0
    for byte in text.encode("utf-16-le"):
        value = value * 16777619 & 0xFFFFFFFF ^ byte
    return value


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Inside, nothing reaches this process's stdout and stderr, which a parent may read: Bullet
    writes to both from C. Gives a function that says what was written so far.
    """
    with tempfile.TemporaryFile() as file:

        def said() -> str:
            _flush()
            return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(
                "utf-8", "replace"
            )

        _flush()
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield said
        finally:
            _flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def _flush() -> None:
    """Python's buffers and C's."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _check(name: str, folder: Path) -> None:
    what = "mees/calvin" if name == "CALVIN_ROOT" else "mees/calvin_env"
    again = f"git clone https://github.com/{what}, and set {name} to it"
    try:
        top = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
        gone = _git(folder, "ls-files", "--deleted").split("\n")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise ValueError(
            f"{name}={folder}: expected a clone of {what}, got none ({said.strip()}); {again}"
        ) from None
    if top != folder:  # an empty submodule lies in the clone around it
        raise ValueError(
            f"{name}={folder}: expected a clone of {what}, got a folder of the clone {top}; {again}"
        )
    gone = [file for file in gone if file]
    gone += [file for file in NEEDED[name] if file not in gone and not (folder / file).is_file()]
    if gone:
        raise ValueError(
            f"{name}={folder}: expected all files of {what}, {len(gone)} are missing:"
            f" {', '.join(gone[:5])}{' ...' if len(gone) > 5 else ''}; git -C {folder} checkout ."
        )


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
    ).stdout
