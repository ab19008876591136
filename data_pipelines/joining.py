"""Blocks put together to what an index holds: held-out episodes and those that are left out are
chosen, words numbered, statistics made block by block.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import reading, selection, stats
from data_pipelines.datasets.dataset import Dataset
from data_pipelines.files import formats
from data_pipelines.reading import EPISODE, OUTCOME, RUN, Arrays, Block, Shards, Skipped
from data_pipelines.selection import HELD_OUT, Selection


class Made(NamedTuple):
    """What goes into an index: arrays by "split/name", and notes about them."""

    arrays: Arrays
    notes: dict[str, Any]


def build(
    dataset: Dataset, shards: Shards, skipped: Skipped, chosen: Selection, parts: Path
) -> Made:
    """The arrays of all splits, from one pass over the shards and the parts that other jobs left.
    Memory: all columns once, one of them twice, and a record per thread.
    """
    read = {
        split: list(reading.blocks(dataset, split, each, skipped, parts))
        for split, each in shards.items()
    }
    files: dict[str, Any] = {}
    unwanted = {}
    for split, each in shards.items():
        unwanted[split] = sum(block.notes["unwanted"] for block in read[split])
        for shard, block in zip(each, read[split], strict=True):
            files |= reading.fingerprints(shard, block.notes)
    if not skipped:
        _check_totals(shards, read)
    left_out = _leave_out(dataset, read, unwanted, chosen)
    origin = {split: (split, list(range(len(each)))) for split, each in shards.items()}
    own = sorted(set(HELD_OUT) & set(read))
    if "train" in read and not own:
        _hold_out(dataset, shards["train"], read, origin, chosen)
        left_out.setdefault("val", {})  # what is left out of train is said there
    elif isinstance(chosen.held_out, frozenset) and (
        listed := {file for file, _ in chosen.held_out} & files.keys()
    ):
        raise ValueError(
            f"data.held_out: {dataset.name} has a split {own[0]!r} of its own, expected none of its"
            f" files in the list, got {min(listed)}"
        )
    arrays: Arrays = {}
    # Beside the arrays, whose digest says what is learnt: a policy learns the same without them.
    outcomes = {split: _outcomes(blocks) for split, blocks in read.items() if dataset.outcome}
    for split, blocks in read.items():
        where = f"{shards[origin[split][0]][0].path}: split {split!r}"
        made = _together(dataset, blocks, where, left_out[split])
        blocks.clear()
        arrays |= {f"{split}/{name}": value for name, value in made.items()}
    notes = {"files": files, "shards": origin, "left_out": left_out, "outcomes": outcomes}
    return Made(arrays, notes)


def _outcomes(blocks: list[Block]) -> list[int]:
    """Those of all episodes, taken out of the blocks."""
    return np.concatenate([block.columns.pop(OUTCOME) for block in blocks]).tolist()


def _check_totals(shards: Shards, read: dict[str, list[Block]]) -> None:
    """Raises ValueError when a dataset's own statistics are others."""
    noted = [block.notes.get("measured", {}) for blocks in read.values() for block in blocks]
    measured = [{key: np.array(own) for key, own in each.items()} for each in noted]
    formats.check_totals(next(iter(shards.values()))[0], measured)


def _leave_out(
    dataset: Dataset, read: dict[str, list[Block]], unwanted: dict[str, int], chosen: Selection
) -> dict[str, dict[str, int]]:
    """Takes the episodes out of the blocks that are left out on purpose, before any are held out;
    returns how many, by split and reason.
    """
    limits = _idle_limits(dataset, read.get("train", [])) if chosen.max_idle < 1 else None
    left_out = {}
    for split, blocks in read.items():
        reasons = Counter({"not required (Dataset.require)": unwanted[split]})
        read[split] = [_wanted(dataset, block, chosen, limits, reasons) for block in blocks]
        left_out[split] = {reason: count for reason, count in reasons.items() if count}
    return left_out


def _hold_out(
    dataset: Dataset,
    shards: list[formats.Shard],
    read: dict[str, list[Block]],
    origin: dict[str, tuple[str, list[int]]],
    chosen: Selection,
) -> None:
    """Moves episodes of "train" to "val", before statistics are made: these describe what is
    trained on alone.
    """
    blocks, wanted = read["train"], chosen.held_out
    names = ("record", "from_frame", "to_frame")
    columns = {n: np.concatenate([block.columns[n] for block in blocks]) for n in names}
    sizes = [len(block.columns["record"]) for block in blocks]
    number = np.repeat(np.arange(len(blocks)), sizes)  # of the shard
    where = f"{dataset.name}: data.held_out"
    if isinstance(wanted, frozenset):
        listed = [{r for f, r in wanted if f == shard.file.name} for shard in shards]
        pairs = zip(number.tolist(), columns["record"].tolist(), strict=True)
        held = np.array([record in listed[at] for at, record in pairs], bool)
        if dataset.first_frame:
            selection.check_apart(columns["from_frame"], columns["to_frame"], held, where)
    elif dataset.first_frame:
        held = selection.last_stretches(columns["from_frame"], columns["to_frame"], wanted, where)
    else:
        begins = np.cumsum([0, *(shard.file.records for shard in shards)])
        dropped = [begins[at] + block.notes["dropped"] for at, block in enumerate(blocks)]
        gone = np.concatenate(dropped).astype(np.int64)
        records = begins[number] + columns["record"]
        records -= np.searchsorted(gone, records)
        held = selection.last_records(records, int(begins[-1]) - len(gone), wanted)
    if not held.any():
        return
    for split, inside in (("val", held), ("train", ~held)):
        parts = np.split(inside, np.cumsum(sizes)[:-1])
        # A file without any episode, of which all may be in quarantine, stays where it was.
        numbers = [
            at
            for at, part in enumerate(parts)
            if part.any() or (split == "train" and not len(part))
        ]
        read[split] = [_pick(blocks[at], parts[at]) for at in numbers]
        origin[split] = ("train", numbers)


def _pick(block: Block, keep: np.ndarray) -> Block:
    """Some of its episodes."""
    if keep.all():
        return block
    columns = block.columns
    masks = dict.fromkeys((*EPISODE, OUTCOME), keep) | dict.fromkeys(
        RUN, np.repeat(keep, columns["runs"])
    )
    steps = np.repeat(keep, columns["length"])
    return block._replace(
        columns={name: value[masks.get(name, steps)] for name, value in columns.items()}
    )


def _wanted(
    dataset: Dataset,
    block: Block,
    chosen: Selection,
    limits: np.ndarray | None,
    reasons: Counter[str],
) -> Block:
    """The episodes of a block that the selection does not leave out; counts the others."""
    columns = block.columns
    length = columns["length"]
    of = np.repeat(np.arange(len(length)), columns["runs"])
    words = np.array([bool(text.strip()) for text in block.sentences], bool)
    told = np.bincount(of, words[columns["instruction"][:, 0]], len(length)) > 0
    tests = [("without words (data.skip_unlabelled)", ~told)] if chosen.skip_unlabelled else []
    tests += [("shorter than data.min_length", length < chosen.min_length)]
    if limits is not None:
        still = selection.idle_steps(dataset, columns["actions"], length, limits)
        share = np.bincount(np.repeat(np.arange(len(length)), length), still, len(length))
        tests += [("idle (data.max_idle)", share > chosen.max_idle * length)]
    keep = np.ones(len(length), bool)
    for reason, bad in tests:
        reasons[reason] += int((bad & keep).sum())
        keep &= ~bad
    # Records of which nothing is left: a share to hold out is one of the others.
    gone = np.setdiff1d(columns["record"], columns["record"][keep])
    return _pick(block, keep)._replace(notes=block.notes | {"dropped": gone})


def _idle_limits(dataset: Dataset, blocks: list[Block]) -> np.ndarray:
    running = stats.empty(len(dataset.action_names))
    for block in blocks:
        running = stats.update(running, block.columns["actions"])
    return selection.idle_limits(
        dataset, stats.quantile(running, 0.01), stats.quantile(running, 0.99)
    )


def _together(
    dataset: Dataset, blocks: list[Block], where: str, left_out: dict[str, int]
) -> Arrays:
    """The arrays of a split. Raises ValueError, which begins with `where`, when nothing is in
    it.
    """
    ids: dict[str, int] = {}
    videos: dict[str, int] = {}  # counted on from the shards, as Split.shards has them
    for number, block in enumerate(blocks):
        told = block.columns["instruction"]
        new = np.full(len(block.sentences) + 1, -1, np.int32)  # the last is for "no alternative"
        for old in dict.fromkeys(told.reshape(-1).tolist()):
            if old >= 0:
                new[old] = ids.setdefault(block.sentences[old], len(ids))
        films = block.notes.get("videos", [])
        for name in [name for name in block.columns if name.startswith("video/")]:
            counted = block.columns[name]
            video = np.zeros(len(films), np.int32)
            for old in np.unique(counted).tolist():
                video[old] = len(blocks) + videos.setdefault(films[old], len(videos))
            block.columns[name] = video[counted]
        steps = len(block.columns["actions"])
        block.columns.update(instruction=new[told], shard=np.full(steps, number, np.int32))
    arrays: Arrays = {}
    for name, dims in (("actions", dataset.action_names), ("state", dataset.state_names)):
        running = stats.empty(len(dims))
        for block in blocks:
            running = stats.update(running, block.columns[name])
        if not running.rows:
            got = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            raise ValueError(
                f"{where} is empty: expected at least one step, got episodes without any"
                f" {f'(left out: {got})' if got else ''}; "
                + (
                    "leave out less, or leave the dataset out of the mixture"
                    if got
                    else "remove it from dataset_info.json or download the dataset again"
                )
            )
        kind = name.removesuffix("s")
        arrays |= {f"stats/{kind}/{k}": v for k, v in stats.summary(running).items()}
    for name in [name for name in blocks[0].columns if name.startswith("reading/")]:
        summary = stats.finite(block.columns[name] for block in blocks)
        arrays |= {
            f"stats/sensor_{name.removeprefix('reading/')}/{k}": v for k, v in summary.items()
        }
    for name in [name for name in blocks[0].columns if name not in EPISODE[2:]]:
        # Taken out of the blocks: all columns are in memory once, and one of them twice.
        arrays[name] = np.concatenate([block.columns.pop(name) for block in blocks])
    length = arrays["length"]
    arrays["first"] = np.cumsum(length, dtype=np.int64) - length
    of_run = arrays.pop("steps")
    run = np.cumsum(of_run, dtype=np.int64) - of_run
    if not np.array_equal(run, arrays["first"]):  # else an episode is a run
        arrays["run"] = run
    if arrays["instruction"].shape[1] == 1:
        arrays["instruction"] = arrays["instruction"][:, 0]
    if videos:
        arrays["videos"] = np.frombuffer(json.dumps(list(videos)).encode(), np.uint8)
    arrays["sentences"] = np.frombuffer(json.dumps(list(ids)).encode(), np.uint8)
    return arrays
