"""One run at a time in a work directory: the file `lock` in it says whose it is.

The file is made where there is none, by one process only (O_EXCL). One that is there counts as
alive while its process is, on this machine; of another machine while its `beat` grows. Clocks are
never compared: those of two machines may differ.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any, NoReturn

FILE = "lock"
BEAT = 5.0  # seconds from one sign of life to the next
PATIENCE = 20  # seconds without a sign after which another machine's process counts as gone
SETTLE = 1.0  # seconds within which all that take over at once have written


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Within, this process has the work directory `folder`, made if there is none, for itself.
    Afterwards the file is gone, and so are folders that were made for it and stayed empty.

    Raises ValueError, naming the machine and the process, when another run has it.
    """
    file = folder.absolute() / FILE
    made = [each for each in file.parents if not each.exists()]
    closed = threading.Event()
    try:
        lock = _take(file)
        beats = threading.Thread(target=lock.beats, args=(closed,), name="lock", daemon=True)
        beats.start()
        try:
            yield
        finally:
            closed.set()
            beats.join()
            lock.release()
    finally:
        with contextlib.suppress(OSError):  # one that is not empty is somebody's
            for each in made:
                each.rmdir()


class _Lock:
    """The file as this process has written it."""

    def __init__(self, file: Path) -> None:
        self._file, self._descriptor = file, -1
        self._owner: dict[str, Any] = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "id": uuid.uuid4().hex,
            "beat": f"{0:010}",  # of one width: no reader sees a text that is half another
        }

    def create(self) -> bool:
        """Makes the file; False when there is one."""
        try:
            self._write(self._file)
        except FileExistsError:
            return False
        return True

    def replace(self) -> bool:
        """Puts this process's file in the place of what is there; False when another did so too,
        and later.
        """
        part = self._file.with_name(f"{FILE}.{self._owner['id']}")
        self._write(part)
        os.replace(part, self._file)
        sleep(SETTLE)
        if self._is_ours():
            return True
        os.close(self._descriptor)
        return False

    def beats(self, closed: threading.Event) -> None:
        """Gives signs of life until closed; ends the process when the file is another's now."""
        while not closed.wait(BEAT):
            with contextlib.suppress(OSError):  # a full disk, a server that is away
                owner = _parsed(_text(self._file))
                if owner is not None and owner["id"] != self._owner["id"]:
                    _end(
                        f"{self._file}: {_name(owner)} has taken this work directory over, as this"
                        f" run gave no sign for {PATIENCE} s: was it stopped? It ends here"
                    )
                self._owner["beat"] = f"{int(self._owner['beat']) + 1:010}"
                # In place, and not by a rename: a file that another has put there stays as it is.
                os.pwrite(self._descriptor, json.dumps(self._owner).encode(), 0)
                os.fsync(self._descriptor)

    def release(self) -> None:
        """Removes the file."""
        os.close(self._descriptor)
        if self._is_ours():
            self._file.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        owner = _parsed(_text(self._file))
        return owner is not None and owner["id"] == self._owner["id"]

    def _write(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(self._descriptor, json.dumps(self._owner).encode())
        os.fsync(self._descriptor)


def _take(file: Path) -> _Lock:
    """The lock, once it is this process's. Raises ValueError when another run has it."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = _Lock(file)
        with contextlib.suppress(FileNotFoundError):  # its folder was another's, who removed it
            if lock.create():
                return lock
        text = _text(file)
        if text is None:
            continue  # it ended just now
        owner = _parsed(text)
        if owner is not None and (owner["host"], owner["machine"]) == (
            socket.gethostname(), _machine()
        ):  # fmt: skip
            if _started(owner["pid"]) in (owner["started"], ""):
                raise ValueError(_refusal(file, owner))
            why = "which is gone"
        else:
            # Also what cannot be read: it may be half written.
            later = _changed(file, text)
            if later is None:
                continue
            if later != text:
                raise ValueError(_refusal(file, _parsed(later)))
            why = f"which gave no sign for {PATIENCE} s"
        if not lock.replace():
            raise ValueError(_refusal(file, _parsed(_text(file))))
        print(f"{file}: taken over from {_name(owner)}, {why}", flush=True)
        return lock


def _changed(file: Path, text: str) -> str | None:
    """What the file says as soon as that is no longer `text`, and at the latest when our patience
    ends; None when it is gone.
    """
    print(f"{file}: looking whether {_name(_parsed(text))} still runs", flush=True)
    for _ in range(PATIENCE):
        sleep(1.0)
        later = _text(file)
        if later != text:
            return later
    return text


def _text(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _parsed(text: str | None) -> dict[str, Any] | None:
    """What a lock says; None where that cannot be read."""
    try:
        owner = json.loads(text or "")
        return owner if {"host", "machine", "pid", "started", "id"} <= owner.keys() else None
    except (ValueError, AttributeError):
        return None


def _name(owner: dict[str, Any] | None) -> str:
    return f"host {owner['host']}, process {owner['pid']}" if owner else "an unknown process"


def _refusal(file: Path, owner: dict[str, Any] | None) -> str:
    return (
        f"--workdir={file.parent}: expected a folder that no run works in, got that of"
        f" {_name(owner)}, which is running; wait for it or stop it, or give another --workdir=DIR"
    )


def _machine() -> str:
    """Where process numbers mean the same: a boot of a machine, and a container in it. Host names
    alone are often alike.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in the kernel's words: numbers are given again.
    "" where that is not told, None when there is no such process.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # another user's
    try:
        # "pid (name) state ...": the name may hold anything.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return None if state in "ZX" else rest[18]


def _end(why: str) -> NoReturn:
    """Ends the process at once, saving nothing: the work directory is another's."""
    print(why, file=sys.stderr, flush=True)
    os._exit(1)
