"""Pairs of clips and what was chosen.

OUT/pairs.json          the clips, by their hashes, and the world that they are of
OUT/preferences.jsonl   a line for each choice; one that a kill cut off is dropped

A clip is an episode of a rollout. Both of a pair are of the same episode, told the same words in
the same scene, so that nothing but what was done in it is chosen by.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.composition.json_files import write_json
from experiments.rolling.episodes import Row, actions_of
from experiments.rolling.results import ERROR, rows_in

CHOICES = ("left", "right", "tie", "skip")
TURNED = {"left": "right", "right": "left"}  # what is said of a pair shown the other way round
WORLD = ("sim", "facts", "seed")  # settings that both clips of a pair share
PAIRS, PREFERENCES = "pairs.json", "preferences.jsonl"
SCHEMA = 1


class Clip(NamedTuple):
    """An episode of a rollout: the rollout's folder, the episode's number, and a hash of the world
    and of the actions that were carried out in it.
    """

    rollout: str
    episode: int
    sha256: str


class Pair(NamedTuple):
    """What is shown side by side."""

    left: Clip
    right: Clip


class Pairs(NamedTuple):
    """All that is to be chosen from: the world (WORLD) and the pairs."""

    world: dict[str, Any]
    pairs: list[Pair]


class Choice(NamedTuple):
    """Which of a pair was better: its number in Pairs, one of CHOICES, and who chose."""

    pair: int
    choice: str
    judge: str


def drawn(rollouts: Sequence[Path], count: int, seed: int, apart: bool = False) -> Pairs:
    """At most `count` pairs of different clips of the rollouts, drawn by `seed`, which is left too:
    of each episode one, then of each another, as a choice in a new scene says most. With `apart`
    those whose clips differ most in what was done (`_distances`), of each episode and of all.

    Raises ValueError where rollouts are of different worlds, and where nothing is to be compared.
    """
    if len({out.absolute() for out in rollouts}) < 2:
        raise ValueError(
            "--rollouts: expected two different folders of experiments.rollout or more"
        )
    worlds = [_world(out) for out in rollouts]
    for out, world in zip(rollouts, worlds, strict=True):
        changed = [name for name in WORLD if world[name] != worlds[0][name]]
        if changed:
            raise ValueError(
                f"{out}: expected a rollout in the world of {rollouts[0]}, got another"
                f" {', '.join(changed)}: {[world[name] for name in changed]}"
            )
    clips: dict[int, list[Clip]] = {}
    for out in rollouts:
        for number in rows(out):
            clip = Clip(str(out.absolute()), number, digest(out, worlds[0], number))
            clips.setdefault(number, []).append(clip)
    draw = np.random.default_rng(seed)
    found = []
    for number in sorted(clips):
        own = clips[number]
        for i, one in enumerate(own):
            for other in own[i + 1 :]:
                if one.sha256 != other.sha256:
                    found.append(Pair(*((one, other) if draw.random() < 0.5 else (other, one))))
    if not found:
        raise ValueError(
            "--rollouts: expected episodes of the same numbers that differ in what was done, got"
            " none; roll out another policy, or another --step, with the same --seed"
        )
    shown, turns = Counter[int](), []
    order = draw.permutation(len(found)).tolist()
    if apart:
        order.sort(key=_distances(found).__getitem__, reverse=True)
    for i in order:
        shown[found[i].left.episode] += 1
        turns.append(shown[found[i].left.episode])
    chosen = sorted(order[i] for i in np.argsort(turns, kind="stable")[:count])
    return Pairs(worlds[0], [found[i] for i in chosen])


def _distances(found: Sequence[Pair]) -> np.ndarray:
    """How far apart each pair's clips end: between the sums of their actions, which of relative
    actions is where they led, each dim in standard deviations over all clips.
    """
    clips = sorted({clip for pair in found for clip in pair})
    ends = np.stack([actions_of(Path(clip.rollout), clip.episode).sum(0) for clip in clips])
    spread = ends.std(0)
    at = dict(zip(clips, ends / np.where(spread > 0, spread, 1), strict=True))
    return np.array([np.linalg.norm(at[pair.left] - at[pair.right]) for pair in found])


def keep(pairs: Pairs, out: Path) -> None:
    """Writes OUT/pairs.json, or sees that it is there. Raises ValueError where it has others."""
    body = {
        "schema": SCHEMA,
        "world": pairs.world,
        "pairs": [[clip._asdict() for clip in pair] for pair in pairs.pairs],
    }
    file = out / PAIRS
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_json(file, body)
    elif json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(body)):
        raise ValueError(
            f"--out={out}: holds other pairs, whose choices would be taken for these; give another"
            " folder, or the same --rollouts, --pairs and --seed"
        )


def load(out: Path) -> Pairs:
    """What `keep` wrote. Raises ValueError for another schema, and for clips that are not what was
    shown any more.
    """
    file = out / PAIRS
    if not file.is_file():
        raise ValueError(f"{file}: expected pairs; experiments.collect_preferences draws them")
    body = json.loads(file.read_text(encoding="utf-8"))
    if body.get("schema") != SCHEMA:
        raise ValueError(
            f"{file}: expected schema {SCHEMA}, got {body.get('schema')}: it is of another version;"
            " collect the choices again"
        )
    pairs = [Pair(*(Clip(**clip) for clip in pair)) for pair in body["pairs"]]
    for clip in {clip for pair in pairs for clip in pair}:
        found = digest(Path(clip.rollout), body["world"], clip.episode)
        if found != clip.sha256:
            raise ValueError(
                f"{clip.rollout}: episode {clip.episode} is another clip than the one that was"
                f" shown (hash {found[:12]}, expected {clip.sha256[:12]}); restore the rollout, or"
                " collect the choices again"
            )
    return Pairs(body["world"], pairs)


def joined(outs: Sequence[Path]) -> tuple[Pairs, list[Choice]]:
    """The pairs of several collections and all choices between them, as of one; what was shown
    twice is one pair. Raises ValueError as `load` and `choices` do, and for collections of
    different worlds or that contradict each other.
    """
    loaded = [load(out) for out in outs]
    pairs, made = Pairs(loaded[0].world, []), list[Choice]()
    places: dict[frozenset[str], int] = {}
    for out, own in zip(outs, loaded, strict=True):
        if own.world != pairs.world:
            raise ValueError(
                f"{out}: expected pairs of the world of {outs[0]}, {pairs.world}, got {own.world}"
            )
        at, turned = list[int](), list[bool]()
        for pair in own.pairs:
            clips = frozenset(clip.sha256 for clip in pair)
            at.append(places.setdefault(clips, len(pairs.pairs)))
            if at[-1] == len(pairs.pairs):
                pairs.pairs.append(pair)
            turned.append(pairs.pairs[at[-1]].left.sha256 != pair.left.sha256)
        for number, choice, judge in choices(out, own):
            said = TURNED.get(choice, choice) if turned[number] else choice
            made.append(Choice(at[number], said, judge))
        _check(made, pairs, out / PREFERENCES)
    return pairs, made


class Choices:
    """preferences.jsonl, to write to."""

    def __init__(self, out: Path, pairs: Pairs) -> None:
        """Raises ValueError as `choices` does."""
        self._pairs, self._path = pairs, out / PREFERENCES
        data = self._path.read_bytes() if self._path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # a kill cut the last line off
            with self._path.open("r+b") as file:
                file.truncate(whole)
        self.made = choices(out, pairs)

    def add(self, choice: Choice) -> None:
        """Keeps a choice, on the disk when this returns. Raises ValueError for one that is none,
        and for another one of the same pair by the same judge.
        """
        _check([*self.made, choice], self._pairs, self._path)
        if choice in self.made:
            return
        pair = self._pairs.pairs[choice.pair]
        row = {**choice._asdict(), "left": pair.left.sha256, "right": pair.right.sha256}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.made.append(choice)

    def add_line(self, row: Any) -> None:
        """Keeps a choice that a page sent. Raises ValueError as `add` does, and for one that is of
        other clips.
        """
        self.add(_choice(row, self._pairs, str(self._path)))


def choices(out: Path, pairs: Pairs) -> list[Choice]:
    """The choices in OUT/preferences.jsonl, as they were made. Raises ValueError for lines that are
    no choice, of other clips, or that contradict each other.
    """
    path = out / PREFERENCES
    if not path.exists():
        return []
    made = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(text)
        except ValueError:
            raise ValueError(f"{where}: expected a choice, got {text!r}") from None
        made.append(_choice(row, pairs, where))
    _check(made, pairs, path)
    return made


def _choice(row: Any, pairs: Pairs, where: str) -> Choice:
    try:
        choice = Choice(row["pair"], row["choice"], row["judge"])
        shown = row["left"], row["right"]
    except (KeyError, TypeError):
        raise ValueError(f"{where}: expected a choice, got {row!r}") from None
    _check([choice], pairs, Path(where))
    pair = pairs.pairs[choice.pair]
    if shown != (pair.left.sha256, pair.right.sha256):
        raise ValueError(
            f"{where}: is of other clips than pair {choice.pair}; it belongs to another collection"
        )
    return choice


def _check(made: Sequence[Choice], pairs: Pairs, path: Path) -> None:
    said: dict[tuple[int, str], str] = {}
    for pair, choice, judge in made:
        if not isinstance(pair, int) or not 0 <= pair < len(pairs.pairs) or choice not in CHOICES:
            raise ValueError(
                f"{path}: expected a pair from 0 to {len(pairs.pairs) - 1} and one of"
                f" {', '.join(CHOICES)}, got pair {pair!r} and {choice!r}"
            )
        before = said.setdefault((pair, judge), choice)
        if before != choice:
            raise ValueError(
                f"{path}: {judge} says of pair {pair} both {before!r} and {choice!r}; remove one of"
                " the two lines"
            )


def scripted(pairs: Pairs) -> list[Choice]:
    """What the simulator would choose: who succeeded, of two who did who took fewer steps; else a
    tie.
    """
    known = {clip.rollout: rows(Path(clip.rollout)) for pair in pairs.pairs for clip in pair}

    def worth(clip: Clip) -> tuple[int, int]:
        row = known[clip.rollout][clip.episode]
        success = row["outcome"] == "success"
        return int(success), -row["steps"] if success else 0

    out = []
    for number, (left, right) in enumerate(pairs.pairs):
        a, b = worth(left), worth(right)
        out.append(Choice(number, "tie" if a == b else "left" if a > b else "right", "scripted"))
    return out


def rows(out: Path) -> dict[int, Row]:
    """The episodes of a rollout that ended, by number. Raises ValueError where there are none."""
    path = out / "episodes.jsonl"
    if not path.is_file():
        raise ValueError(f"{out}: expected the --out of experiments.rollout, got no {path.name}")
    found = rows_in(path.read_bytes())
    return {number: row for number, row in found.items() if row["outcome"] != ERROR}


def digest(out: Path, world: dict[str, Any], number: int) -> str:
    """Of the world and of what was carried out in an episode of the rollout `out`."""
    actions = actions_of(out, number)
    told = json.dumps([world, number, str(actions.dtype), actions.shape], sort_keys=True)
    return hashlib.sha256(told.encode() + actions.tobytes()).hexdigest()


def _world(out: Path) -> dict[str, Any]:
    path = out / "settings.json"
    if not path.is_file():
        raise ValueError(f"{out}: expected the --out of experiments.rollout, got no {path.name}")
    settings = json.loads(path.read_text(encoding="utf-8"))
    return {name: settings[name] for name in WORLD}
