"""Which of two clips is preferred: what is drawn, kept, served and refused."""

import argparse
import json
import shutil
import threading
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import collect_preferences, rollout
from experiments.preferring import learning, page
from experiments.preferring import pairs as compared
from experiments.preferring.pairs import Choice, Choices, Clip, Pair


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same six episodes of who knows the world and of who does not."""
    folder = tmp_path_factory.mktemp("rollouts")
    for who in ("expert", "random"):
        own = ["--policy", who, "--sim", "blocks", "--episodes", "6", "--out", str(folder / who)]
        assert not rollout.main(own)
    return [folder / "expert", folder / "random"]


def test_the_script_prefers_who_succeeds(rollouts: list[Path], tmp_path: Path) -> None:
    own = ["--rollouts", *map(str, rollouts), "--out", str(tmp_path), "--judge", "scripted"]
    collect_preferences.main(own)
    pairs = compared.load(tmp_path)
    made = compared.choices(tmp_path, pairs)
    assert len(made) == len(pairs.pairs) == 6
    for choice in made:
        pair = pairs.pairs[choice.pair]
        assert pair.left.episode == pair.right.episode
        chosen = pair.left if choice.choice == "left" else pair.right
        assert chosen.rollout.endswith("expert")
    collect_preferences.main(own)  # goes on where it was: nothing is left to do
    assert compared.choices(tmp_path, pairs) == made


def test_of_two_that_succeed_the_shorter_is_preferred(rollouts: list[Path], tmp_path: Path) -> None:
    slower = tmp_path / "slower"
    lines = (rollouts[0] / "episodes.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    pairs = compared.drawn(rollouts, 6, seed=0)
    for row in rows:
        row["steps"] += 5
    slower.mkdir()
    (slower / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    swapped = compared.Pairs(
        pairs.world,
        [
            compared.Pair(
                compared.Clip(str(rollouts[0]), n, "a"), compared.Clip(str(slower), n, "b")
            )
            for n in range(6)
        ],
    )
    assert {choice.choice for choice in compared.scripted(swapped)} == {"left"}


def test_what_does_not_fit_is_refused(rollouts: list[Path], tmp_path: Path) -> None:
    pairs = compared.drawn(rollouts, 4, seed=0)
    compared.keep(pairs, tmp_path)
    with pytest.raises(ValueError, match="holds other pairs"):
        compared.keep(compared.drawn(rollouts, 3, seed=0), tmp_path)
    choices = Choices(tmp_path, pairs)
    choices.add(Choice(1, "left", "ann"))
    choices.add(Choice(1, "right", "bob"))  # people differ
    with pytest.raises(ValueError, match="ann says of pair 1 both 'left' and 'right'"):
        choices.add(Choice(1, "right", "ann"))
    with pytest.raises(ValueError, match="from 0 to 3"):
        choices.add(Choice(4, "left", "ann"))
    with pytest.raises(ValueError, match="'better'"):
        choices.add(Choice(0, "better", "ann"))
    file = tmp_path / compared.PREFERENCES
    whole = file.read_text()
    file.write_text(whole + '{"pair": 2, "cho')  # killed while it wrote
    assert Choices(tmp_path, pairs).made == choices.made
    assert file.read_text() == whole
    row = json.loads(whole.splitlines()[0])
    file.write_text(json.dumps(row | {"left": row["right"]}) + "\n")
    with pytest.raises(ValueError, match="line 1: is of other clips"):
        compared.choices(tmp_path, pairs)
    body = json.loads((tmp_path / compared.PAIRS).read_text())
    (tmp_path / compared.PAIRS).write_text(json.dumps(body | {"schema": 0}))
    with pytest.raises(ValueError, match="schema 1, got 0"):
        compared.load(tmp_path)


def test_what_was_shown_twice_is_one_pair(rollouts: list[Path], tmp_path: Path) -> None:
    pairs = compared.drawn(rollouts, 6, seed=0)
    some = compared.Pairs(pairs.world, pairs.pairs[:4])
    turned = compared.Pairs(
        pairs.world, [pair._replace(left=pair.right, right=pair.left) for pair in pairs.pairs[3:]]
    )
    first, second = tmp_path / "first", tmp_path / "second"
    for out, own in ((first, some), (second, turned)):
        compared.keep(own, out)
    Choices(first, some).add(Choice(3, "left", "me"))
    later = Choices(second, turned)
    later.add(Choice(0, "right", "me"))  # the same, seen the other way round
    later.add(Choice(2, "left", "me"))
    shown, made = compared.joined([first, second])
    assert [set(pair) for pair in shown.pairs] == [set(pair) for pair in pairs.pairs]
    assert made == [Choice(3, "left", "me"), Choice(3, "left", "me"), Choice(5, "left", "me")]
    assert shown.pairs[5] == turned.pairs[2]
    assert compared.joined([second])[0] == turned
    with (second / compared.PREFERENCES).open("a") as file:
        clips = {"left": turned.pairs[0].left.sha256, "right": turned.pairs[0].right.sha256}
        file.write(json.dumps({"pair": 0, "choice": "tie", "judge": "you", **clips}) + "\n")
    compared.joined([first, second])  # somebody else may think otherwise
    third = tmp_path / "third"
    compared.keep(turned, third)
    Choices(third, turned).add(Choice(0, "left", "me"))
    with pytest.raises(ValueError, match="me says of pair 3 both 'left' and 'right'"):
        compared.joined([first, third])
    world = turned.world | {"seed": 99}
    body = json.loads((third / compared.PAIRS).read_text()) | {"world": world}
    for pair in body["pairs"]:
        for clip in pair:
            clip["sha256"] = compared.digest(Path(clip["rollout"]), world, clip["episode"])
    (third / compared.PAIRS).write_text(json.dumps(body))
    with pytest.raises(ValueError, match="expected pairs of the world of"):
        compared.joined([first, third])


def test_each_episode_is_shown_before_one_is_again(rollouts: list[Path], tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(rollouts[1], again)
    for file in (again / "actions").glob("*.npy"):  # a third clip of each episode
        np.save(file, np.load(file)[:-1])
    for count, most in ((5, 1), (6, 1), (9, 2), (18, 3)):
        shown = Counter(
            pair.left.episode for pair in compared.drawn([*rollouts, again], count, 0).pairs
        )
        assert sum(shown.values()) == count
        assert max(shown.values()) == most


def test_clips_that_end_farthest_apart_come_first(rollouts: list[Path], tmp_path: Path) -> None:
    """A clip with its last action left out ends nearer to the whole than who knows the world."""
    nearly = tmp_path / "nearly"
    shutil.copytree(rollouts[1], nearly)
    for file in (nearly / "actions").glob("*.npy"):
        np.save(file, np.load(file)[:-1])
    three = [*rollouts, nearly]
    for seed in (0, 1):
        pairs = compared.drawn(three, 6, seed, apart=True).pairs
        assert {pair.left.episode for pair in pairs} == set(range(6))
        for pair in pairs:
            assert str(rollouts[0]) in {pair.left.rollout, pair.right.rollout}
        every = compared.drawn(three, 18, seed).pairs
        far = dict(zip(every, compared._distances(every), strict=True))
        two = sorted(pairs, key=far.__getitem__)[-2:]
        assert set(compared.drawn(three, 2, seed, apart=True).pairs) == set(two)
        assert max(far, key=far.__getitem__) in two


def test_whole_episodes_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [
        Pair(Clip(one, n, f"{one}{n}"), Clip(other, n, f"{other}{n}"))
        for n in range(10)
        for one, other in ("ab", "ac", "bc")
    ]
    made = [Choice(i, "left", "me") for i in range(len(shown))]
    monkeypatch.setattr(compared, "joined", lambda _: (compared.Pairs({}, shown), made))
    own = learning.chosen([], seed=3)
    kept, out = (
        {shown[each.pair].left.episode for each in part} for part in (own.train, own.held_out)
    )
    assert len(out) == 2
    assert kept == set(range(10)) - out
    assert len(own.train) + len(own.held_out) == len(made)


def test_what_only_who_plays_has_is_refused() -> None:
    rl = {"algorithm": "dpo", "sim": "", "keep": "blocks", "reward": ""}
    args = argparse.Namespace(config=ConfigDict({"rl": rl}), dry_run=False)
    with pytest.raises(ValueError, match=r"rl\.keep: expected none, got 'blocks'"):
        learning.run(args, "dpo", "blocks_dpo.py", lambda: None)


def test_other_worlds_and_clips_are_refused(rollouts: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    own = ["--policy", "random", "--sim", "blocks", "--episodes", "2", "--out", str(other)]
    rollout.main([*own, "--seed", "9"])
    with pytest.raises(ValueError, match="got another seed"):
        compared.drawn([rollouts[0], other], 4, seed=0)
    with pytest.raises(ValueError, match="two different folders"):
        compared.drawn([other, other], 4, seed=0)
    again = tmp_path / "again"
    own = ["--policy", "expert", "--sim", "blocks", "--episodes", "2", "--out", str(again)]
    rollout.main(own)
    with pytest.raises(ValueError, match="differ in what was done"):
        compared.drawn([rollouts[0], again], 4, seed=0)
    pairs = compared.drawn([rollouts[1], again], 4, seed=0)
    compared.keep(pairs, tmp_path / "pairs")
    (again / "actions" / "1.npy").write_bytes((again / "actions" / "0.npy").read_bytes())
    with pytest.raises(ValueError, match="episode 1 is another clip"):
        compared.load(tmp_path / "pairs")


def test_the_page_is_whole_and_only_who_has_the_link_chooses(
    rollouts: list[Path], tmp_path: Path
) -> None:
    pairs = compared.drawn(rollouts, 2, seed=0)
    compared.keep(pairs, tmp_path)
    shown = page.Page(pairs, tmp_path, "ann")
    choices = Choices(tmp_path, pairs)
    text = shown.html([])
    assert text.count("data:video/mp4;base64,") == 4
    assert "http:" not in text
    assert "https:" not in text
    server = page.Server((page.HOST, 0), shown, choices, "secret")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://{page.HOST}:{server.server_port}"
    row = {
        "pair": 0, "choice": "tie", "judge": "ann",
        "left": pairs.pairs[0].left.sha256, "right": pairs.pairs[0].right.sha256,
    }  # fmt: skip

    def asked(path: str, body: object = None, **headers: str) -> int:
        data = None if body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with urllib.request.urlopen(urllib.request.Request(root + path, data, names)) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code

    assert asked("/?token=secret") == 200
    assert asked("/") == asked("/?token=other") == asked("/?token=secret", Host="evil.org") == 403
    assert asked("/choice", row) == asked("/choice", row, X_Token="other") == 403
    assert not choices.made
    assert asked("/choice", row, X_Token="secret") == 200
    assert asked("/choice", row | {"choice": "left"}, X_Token="secret") == 400
    assert asked("/choice", row | {"pair": 1}, X_Token="secret") == 400  # of other clips
    assert compared.choices(tmp_path, pairs) == [Choice(0, "tie", "ann")]
    assert '"rest": [1]' in shown.html(choices.made)
    server.shutdown()
    server.server_close()
