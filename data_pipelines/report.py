"""What can be measured of a dataset before training on it, and the search for all that is wrong
with its files.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from data_pipelines import images, selection
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import formats, pictures, remote
from data_pipelines.files.outcomes import FAILURE, SUCCESS, UNKNOWN
from data_pipelines.files.record import Episode, EpisodeError
from data_pipelines.index import Split
from data_pipelines.windows import motion
from vla_jax.actions import ActionSpec
from vla_jax.progress import Progress

ANGLES = frozenset(("roll", "pitch", "yaw"))
COLUMNS = ("min", "q01", "mean", "std", "q99", "max")  # of the statistics, as they are printed
LEAVE_OUT = "download the file again or list the episode in data.quarantine"

Report = dict[str, Any]


def measure(dataset: Dataset, split: Split) -> Report:
    """The numbers of a split, JSON-able."""
    spec = ActionSpec.fit(dataset.action_names, dataset.binary, split.stats["action"], ("q99",))
    lengths = split.length[split.length > 0]
    told = split.instruction[:, 0]
    blank = np.array([not text.strip() for text in split.sentences], bool)[told]
    runs = np.diff(split.run, append=len(split.actions))  # steps of each
    of = np.searchsorted(split.first, split.run, side="right") - 1  # the episode of each
    idle, below = idle_frames(dataset, split)
    return {
        "episodes": len(split.length),
        "left_out": split.left_out,
        **({"outcomes": outcomes(split)} if dataset.outcome else {}),
        "frames": len(split.actions),
        "episode_length": [int(lengths.min()), float(np.median(lengths)), int(lengths.max())],
        "instructions": len(np.unique(split.instruction[split.instruction >= 0])),
        "several_instructions": int((np.bincount(of[runs > 0]) > 1).sum()),
        "alternatives": split.instruction.shape[1],
        "steps_without_words": int(runs[blank].sum()),
        "idle_frames": idle,
        "idle_below": {name: float(value) for name, value in below.items()},
        "actions": _dims(split.actions, spec, split.stats["action"]),
        "state": _dims(
            split.state,
            ActionSpec.fit(dataset.state_names, (), split.stats["state"], ("q99",)),
            split.stats["state"],
        ),
        "gripper": {spec.names[i]: _values(split.actions[:, i]) for i in spec.binary},
        "consistency": consistency(dataset, split),
    }


def outcomes(split: Split) -> dict[str, int]:
    """How many episodes ended how."""
    kinds = {"successes": SUCCESS, "failures": FAILURE, "unknown": UNKNOWN}
    return {name: int((split.outcome == kind).sum()) for name, kind in kinds.items()}


def idle_frames(dataset: Dataset, split: Split) -> tuple[int, dict[str, float]]:
    """How many steps hardly move and do not change a binary dim, and what "hardly" is in each dim's
    own units.
    """
    stats = split.stats["action"]
    limits = selection.idle_limits(dataset, stats["q01"], stats["q99"])
    below = zip(dataset.action_names, limits.tolist(), strict=True)
    idle = selection.idle_steps(dataset, split.actions, split.length, limits)
    return int(idle.sum()), {name: limit for name, limit in below if limit == limit}


def consistency(dataset: Dataset, split: Split) -> dict[str, list[float | None]]:
    """How well each motion dim of the action explains the state's motion during this step, and
    during the next.

    Correlations with state[t+1] - state[t] (lag 0) and state[t+2] - state[t+1] (lag 1). Relabelled
    actions have 1 at lag 0; a larger number at lag 1 means that actions and states are shifted by a
    step. None: one of them is constant.
    """
    correlations = {}
    for dim in motion(dataset):
        name = dataset.action_names[dim]
        if name not in dataset.state_names:
            continue
        action = split.actions[:, dim].astype(np.float64)
        state = split.state[:, dataset.state_names.index(name)].astype(np.float64)
        moved = np.diff(state)
        if name in ANGLES:
            moved = (moved + np.pi) % (2 * np.pi) - np.pi
        inside = np.ones(len(state), bool)
        inside[(split.first + split.length - 1)[split.length > 0]] = (
            False  # no next step in its episode
        )
        lags: list[float | None] = []
        for lag in (0, 1):
            rows = np.flatnonzero(inside[: len(state) - lag] & inside[lag:])
            rows = rows[rows + lag < len(moved)]
            a, b = action[rows], moved[rows + lag]
            varies = len(rows) > 1 and a.std() > 1e-12 and b.std() > 1e-12
            lags.append(float(np.corrcoef(a, b)[0, 1]) if varies else None)
        correlations[name] = lags
    return correlations


def lines(dataset: Dataset, name: str, measured: Report) -> Iterator[str]:
    """The report of a split as text."""
    first, *others = summary(dataset, name, measured)
    yield first
    yield from (f"  {line}" for line in others)
    head = " ".join(f"{word:>9s}" for word in COLUMNS)
    for kind in ("actions", "state"):
        yield f"  {kind:14s} {head}  clipped"
        for dim, row in measured[kind].items():
            numbers = " ".join(f"{row[word]:9.4g}" for word in COLUMNS)
            note = "  constant" if row["constant"] else ""
            yield f"  {dim:14s} {numbers} {row['clipped']:8.2%}{note}"
    yield from (f"  {line}" for line in remarks(measured))


def summary(dataset: Dataset, name: str, measured: Report) -> Iterator[str]:
    """How much there is of a split, and what was left out of it."""
    shortest, median, longest = measured["episode_length"]
    share = measured["idle_frames"] / measured["frames"]
    yield (
        f"{dataset.name}, {name}: {measured['episodes']} episodes, {measured['frames']} frames;"
        f" {shortest} to {longest} steps an episode, median {median:g};"
        f" {dataset.control_hz or '?'} Hz; cameras {', '.join(dataset.cameras) or 'none'}"
    )
    yield (
        f"{measured['instructions']} instructions; {measured['several_instructions']} episodes"
        f" have several; {measured['steps_without_words']} frames have none; {share:.1%} of the"
        f" frames are idle (every motion below {selection.IDLE:.0%} of its range)"
    )
    if measured["alternatives"] > 1:
        yield f"up to {measured['alternatives']} instructions to draw from at a time"
    if "outcomes" in measured:
        counts = ", ".join(f"{count} {name}" for name, count in measured["outcomes"].items())
        yield f"how episodes ended ({dataset.outcome}): {counts}"
    for reason, count in measured["left_out"].items():
        yield f"left out: {count} episodes {reason}"


def remarks(measured: Report) -> Iterator[str]:
    """What the commonest values of binary dims are, and how motion and state go together."""
    for dim, values in measured["gripper"].items():
        yield f"{dim}: " + ", ".join(f"{value} {share:.1%}" for value, share in values.items())
    for dim, lags in measured["consistency"].items():
        words = ["constant" if lag is None else f"{lag:.3f}" for lag in lags]
        late = None not in lags and lags[1] > lags[0] + 0.1
        yield (
            f"action {dim} and the motion of its state: {words[0]} at lag 0, {words[1]} at lag 1"
            + ("  <- shifted by a step?" if late else "")
        )


def validate(
    folder: str, dataset: Dataset, report: Callable[[EpisodeError], None]
) -> tuple[int, int]:
    """Reads every record and decodes every image of a dataset, and reports all that is wrong.

    Returns the numbers of good episodes and of images. Raises ValueError when the folder as a whole
    is not what `dataset` describes, or what it says of itself.
    """
    files = formats.check(folder, dataset)
    shards = [(number, shard) for split in files.values() for number, shard in enumerate(split)]
    sizes: dict[str, list[tuple[int, int]]] = {}
    episodes = decoded = 0
    measured = []
    with (
        Progress(
            f"{dataset.name}: validating", sum(shard.file.size for _, shard in shards)
        ) as progress,
        ThreadPoolExecutor() as threads,
    ):
        for number, shard in shards:
            at = 0
            for episode in formats.episodes(shard, number, dataset, on_error=report):
                before = episode.end, len(episode.frames)
                for slot in dataset.cameras:
                    stored = _stored(shard, episode, slot, dataset.cameras[slot])
                    known = sizes.setdefault(slot, [])
                    steps = zip(episode.frames.tolist(), _sizes(stored, threads), strict=False)
                    for step, problem in _unlike(steps, known):
                        at_fault = shard.path, episode.record, step, slot
                        report(EpisodeError(*at_fault, problem, LEAVE_OUT))
                    decoded += before[1]
                _check_binary(shard, episode, dataset, report)
                measured.append(episode.measured)
                episodes += 1
                progress.add(max(0, episode.end - at))
                at = max(at, episode.end)
            progress.add(shard.file.size - at)
    if episodes == sum(shard.file.records for _, shard in shards):
        formats.check_totals(shards[0][1], measured)
    return episodes, decoded


def _stored(
    shard: formats.Shard, episode: Episode, slot: str, key: str
) -> Iterator[pictures.Picture]:
    """The pictures of a camera."""
    video = episode.videos.get(slot)
    path = shard.path if video is None else remote.join(shard.file.folder, video)
    if len(episode.frames):
        yield from pictures.read(path, key, episode.offset[slot], episode.size[slot])


def _sizes(
    stored: Iterator[pictures.Picture], threads: ThreadPoolExecutor
) -> Iterator[tuple[int, int] | str]:
    """Height and width of each picture; why, where one does not decode."""

    def size(encoded: bytes | tuple[int, int] | str) -> tuple[int, int] | str:
        try:
            return images.size(encoded) if isinstance(encoded, bytes) else encoded
        except ValueError as error:
            return str(error)

    def read() -> Iterator[bytes | tuple[int, int] | str]:
        try:
            for picture in stored:
                # Decoded already: an episode of them need not be in memory.
                yield picture if isinstance(picture, bytes) else picture.shape[:2]
        except ValueError as error:
            yield str(error)  # and there are no more

    return threads.map(size, read())


def _unlike(
    steps: Iterable[tuple[int, tuple[int, int] | str]], known: list[tuple[int, int]]
) -> Iterator[tuple[int, str]]:
    """The steps whose picture does not decode, or has another size than the first one in the
    dataset, which `known` holds then.
    """
    for step, got in steps:
        if isinstance(got, str):
            yield step, got
        elif got != (known or [got])[0]:
            yield step, f"expected {known[0]} pixels as before, got {got}"
        elif not known:
            known.append(got)


def _check_binary(
    shard: formats.Shard,
    episode: Episode,
    dataset: Dataset,
    report: Callable[[EpisodeError], None],
) -> None:
    for dim in dataset.binary:
        column = episode.actions[:, dim]
        bad = np.flatnonzero((column < 0) | (column > 1))
        if len(bad):
            problem = f"expected 0 (closed) to 1 (open) after standardising, got {column[bad[0]]:g}"
            step, name = int(episode.frames[bad[0]]), dataset.action_names[dim]
            fix = f"mend {dataset.name}'s standardise"
            report(EpisodeError(shard.path, episode.record, step, name, problem, fix))


def _dims(column: np.ndarray, spec: ActionSpec, stats: dict[str, np.ndarray]) -> Report:
    dims = {}
    for i, name in enumerate(spec.names):
        x, normalised = column[:, i], i not in (*spec.binary, *spec.constant)
        outside = (x < np.float32(stats["q01"][i])) | (x > np.float32(stats["q99"][i]))
        dims[name] = {key: float(stats[key][i]) for key in COLUMNS} | {
            "clipped": float(outside.mean()) if normalised else 0.0,
            "constant": i in spec.constant,
        }
    return dims


def _values(column: np.ndarray) -> dict[str, float]:
    """The shares of the commonest values."""
    values, counts = np.unique(column, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:6]
    shares = {f"{values[i]:g}": float(counts[i] / len(column)) for i in common}
    rest = 1.0 - sum(shares.values())
    return shares | ({f"{len(values) - len(common)} other values": rest} if rest > 1e-9 else {})
