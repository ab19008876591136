"""Reviewed lists of episodes to leave out: a text file with one episode per line, named by its file
and record.

    bridge_dataset-train.tfrecord-00003-of-01024 17  # step 4: observation/image_0: not a whole JPEG

`python -m experiments.index_data --validate --quarantine=FILE` writes one; a person looks through
it, and `--config.data.quarantine=FILE` trains without these episodes. `data.held_out` takes the
same kind of list.
"""

from collections.abc import Iterable
from pathlib import Path

from data_pipelines.selection import Quarantine


def read(path: str | Path, field: str = "data.quarantine") -> Quarantine:
    """The (shard file name, record number) pairs of a list that `field` of a config names. Raises
    ValueError naming a line that is none.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(
            f"{field}: no file {path}; index_data --validate --quarantine={path} writes a list of"
            " this kind"
        )
    episodes = set()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise ValueError(
                f"{path}: line {number}: expected 'shard_file record_number  # reason', got"
                f" {line!r}"
            )
        episodes.add((words[0], int(words[1])))
    return frozenset(episodes)


def write(path: str | Path, episodes: Iterable[tuple[str, int, str]]) -> None:
    """Writes (shard file name, record number, reason) lines, whole or not at all; an episode once,
    reasons joined.
    """
    reasons: dict[tuple[str, int], list[str]] = {}
    for shard, record, reason in episodes:
        reasons.setdefault((shard, record), []).append(" ".join(reason.split()))
    lines = [
        f"{shard} {record}  # {' | '.join(why)}\n"
        for (shard, record), why in sorted(reasons.items())
    ]
    path = Path(path).expanduser()
    part = path.with_name(path.name + ".part")
    part.write_text("".join(lines))
    part.replace(path)
