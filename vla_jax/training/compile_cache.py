"""Compiled programs kept on disk, so that who starts again does not compile again.

jax writes and finds them. It writes in place, never replaces what is there, and does not look
whether it is whole: a program that a kill cut short or a disk damaged would be met at every start.
So each is written down here with its checksum once it is whole, and what has none, or another, is
removed before jax looks.

They lie in a folder of their own under $JAX_COMPILATION_CACHE_DIR (a path or a URL that all hosts
see: only the first of them writes), or under ~/.cache/vla_jax/compiled.
JAX_ENABLE_COMPILATION_CACHE=false keeps none, JAX_COMPILATION_CACHE_MAX_SIZE drops the oldest
beyond so many bytes.
"""

import contextlib
import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax

DEFAULT = "~/.cache/vla_jax/compiled"
PROGRAM, SUM = "-cache", ".sha256"  # how jax's files end, and what ours add to their names
# What jax tells those who ask to hear it.
HIT = "/jax/compilation_cache/cache_hits"
WRITES = "/jax/compilation_cache/cache_misses"  # just before it does
COMPILED = "/jax/core/compile/backend_compile_duration"


def enable() -> str:
    """Has jax keep the programs of this process from now on; returns a line that says where.

    Before the first program is compiled, and once.
    """
    config: Any = jax.config
    if not config.jax_enable_compilation_cache:
        return "compiled programs are not kept (JAX_ENABLE_COMPILATION_CACHE)"
    base = config.jax_compilation_cache_dir or str(Path(DEFAULT).expanduser())
    folder = f"{base.rstrip('/')}/vla_jax-{_processor()}"
    removed = 0
    if jax.process_index() == 0:
        try:
            removed = remove_damaged(folder)
        except OSError as error:
            config.update("jax_enable_compilation_cache", False)
            return f"compiled programs are not kept: {error}; set JAX_COMPILATION_CACHE_DIR"
        seals = _Seals(folder)
        jax.monitoring.register_event_listener(seals.event)
        jax.monitoring.register_event_duration_secs_listener(seals.duration)
    config.update("jax_compilation_cache_dir", folder)
    lost = f"; {removed} that were damaged or not finished are removed" if removed else ""
    return f"compiled programs are kept in {folder}{lost}"


@contextlib.contextmanager
def hits() -> Iterator[list[str]]:
    """Within, the list grows by one for each program that was read and not compiled."""
    found: list[str] = []

    def listen(event: str, **details: str | int) -> None:
        if event == HIT:
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_listener(listen)


def remove_damaged(folder: str) -> int:
    """Removes the programs that are not what was written down of them; returns how many.

    Makes the folder if need be. Raises OSError where that fails.
    """
    files, root = fsspec.url_to_fs(folder)
    files.makedirs(root, exist_ok=True)
    there, removed = _names(files, root), 0
    for name in there:
        if name.endswith(PROGRAM):
            whole = name + SUM in there and files.cat_file(name + SUM) == _sum(files, name)
            if not whole:
                files.rm_file(name)
                if name + SUM in there:  # else what jax writes in its place would seem sealed
                    files.rm_file(name + SUM)
                removed += 1
        elif name.endswith(SUM) and name.removesuffix(SUM) not in there:
            files.rm_file(name)  # jax dropped its program, to make room
    return removed


class _Seals:
    """Writes down the checksum of each program when jax has written it."""

    def __init__(self, folder: str) -> None:
        self._folder, self._written = folder, False

    def event(self, event: str, **details: str | int) -> None:
        """What jax tells."""
        self._written |= event == WRITES

    def duration(self, event: str, duration_secs: float, **details: str | int) -> None:
        """What it tells when something has taken its time."""
        if event == COMPILED and self._written:
            self._written = False
            _seal(self._folder)


def _seal(folder: str) -> None:
    """Writes down the checksums of new programs. Where that fails they are compiled once more."""
    files, root = fsspec.url_to_fs(folder)
    with contextlib.suppress(OSError):  # also: another process has removed it in this moment
        there = _names(files, root)
        for name in there:
            if name.endswith(PROGRAM) and name + SUM not in there:
                files.pipe_file(name + SUM, _sum(files, name))


def _names(files: Any, root: str) -> set[str]:
    files.invalidate_cache()
    return {str(name) for name in files.ls(root, detail=False)}


def _sum(files: Any, name: str) -> bytes:
    return hashlib.sha256(files.cat_file(name)).hexdigest().encode()


def _processor() -> str:
    """Of this machine: programs for a CPU use all its instructions, and a home may be shared."""
    known = platform.machine() + platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        known += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(known.encode()).hexdigest()[:12]
