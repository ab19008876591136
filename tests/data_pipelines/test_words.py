"""What a window is told: where the words come from, and that they are those of its newest frame."""

import dataclasses

import numpy as np
import pytest

from data_pipelines import report
from data_pipelines.builders import rlds_files
from data_pipelines.datasets import DATASETS
from data_pipelines.files import tfds_folder
from data_pipelines.index import FOLDER, open_index
from data_pipelines.selection import Selection
from tests.data_pipelines.blocks_files import FIRST, edit, files, rewrite, shard
from tests.data_pipelines.loading import make, same, take

BLOCKS = DATASETS["blocks"]
TEXT = "steps/language_instruction"


def declare(root, *keys):
    """Says in features.json that the steps, or whole episodes, have these texts too."""

    def change(body):
        episode = body["featuresDict"]["features"]
        step = episode["steps"]["sequence"]["feature"]["featuresDict"]["features"]
        for key in keys:
            if key.startswith("episode_metadata/"):
                name = key.removeprefix("episode_metadata/")
                folder = episode.setdefault("episode_metadata", rlds_files.folder({}))
                folder["featuresDict"]["features"][name] = rlds_files.text()
            else:
                step[key] = rlds_files.text()

    edit(files(root) / tfds_folder.FEATURES, change)


def write(root, change):
    """Applies `change(features)` to all records."""
    for path in files(root).glob("*.tfrecord*"):
        rewrite(path, change, records=9)


def said(batch):
    """The words of each row of a batch: `loading.encode` takes UTF-8 bytes."""
    return [
        bytes(ids[mask].astype(np.uint8)).decode()
        for ids, mask in zip(batch.obs.prompt, batch.obs.prompt_mask, strict=True)
    ]


def test_a_window_is_told_what_its_newest_frame_is(root):
    """Play whose sub-task changes inside an episode."""
    words = ["open", "open", "close", "", *["lift"] * (FIRST - 4)]
    rewrite(shard(root), lambda f: f.update({TEXT: [w.encode() for w in words]}))
    index = open_index(root, BLOCKS)
    split = index.splits["train"]
    assert split.run[:4].tolist() == [0, 2, 3, 4]
    assert split.run[4:].tolist() == split.first[1:].tolist()
    loader = make(index, shuffle=False, batch_size=FIRST)
    assert said(loader.batch(0)) == words
    assert said(loader.episode(0)) == words
    assert loader.instruction(0) == "open"
    assert loader.instruction(1) == said(loader.episode(1))[0]
    measured = report.measure(BLOCKS, split)
    assert measured["several_instructions"] == 1
    assert measured["steps_without_words"] == 1
    assert "1 episodes have several; 1 frames have none" in "\n".join(
        report.lines(BLOCKS, "train", measured)
    )


def test_shuffled_windows_are_told_what_their_newest_frames_are(root):
    """Every window of an epoch: the state of its newest frame tells which step that is."""
    write(root, lambda f: f.update({TEXT: [b"%d" % i for i in range(len(f[TEXT]))]}))
    index = open_index(root, BLOCKS)
    loader, split = make(index), index.splits["train"]
    spec = loader._members[0].state_spec
    row_of = {row.tobytes(): at for at, row in enumerate(spec.normalise(np.array(split.state)))}
    seen = 0
    for position in range(loader.windows // 7):
        batch = loader.batch(position)
        for words, state in zip(said(batch), batch.obs.proprio[:, -1], strict=True):
            at = row_of[state.tobytes()]
            episode = np.searchsorted(split.first, at, side="right") - 1
            # States repeat where the arm stands still: any of their steps may have said it.
            same_state = (
                np.flatnonzero((split.state == split.state[at]).all(1)) - split.first[episode]
            )
            seen += int(words) in same_state.tolist()
    assert seen == loader.windows // 7 * 7


def test_words_of_the_whole_episode(root):
    declare(root, "episode_metadata/task")
    write(root, lambda f: f.update({"episode_metadata/task": [b"h\xc3\xa9 %d" % len(f[TEXT])]}))
    dataset = dataclasses.replace(BLOCKS, language="episode_metadata/task")
    index = open_index(root, dataset)
    split = index.splits["train"]
    assert split.run is split.first
    assert [split.words(e) for e in range(6)] == [f"hé {n}" for n in split.length]
    with pytest.raises(ValueError, match=r"promises the episode feature 'episode_metadata/what'"):
        open_index(root, dataclasses.replace(BLOCKS, language="episode_metadata/what"))
    rewrite(shard(root), lambda f: f.pop("episode_metadata/task"))
    with pytest.raises(ValueError, match=r"record 0: episode_metadata/task: expected one text"):
        open_index(root, dataset)


@pytest.fixture
def three(root):
    """DROID's kind: three features, some of them empty at some steps."""
    declare(root, "two", "three")

    def change(features):
        steps = len(features[TEXT])
        features["steps/two"] = [b"two"] * 5 + [b" "] * (steps - 5)
        features["steps/three"] = [b"three"] * steps
        features[TEXT] = [b""] * steps

    write(root, change)
    return dataclasses.replace(BLOCKS, language=("language_instruction", "two", "three"))


def test_one_of_the_alternatives_that_are_not_empty_is_drawn(root, three):
    index = open_index(root, three)
    split = index.splits["train"]
    assert split.instruction.tolist()[:2] == [[0, 1, -1], [1, -1, -1]]
    assert split.sentences == ("two", "three")
    loader = make(index)
    batches = take(loader, 0, 60)
    texts = [text for batch in batches for text in said(batch)]
    early = sum(split.length > 0) * 5 / len(split.actions)  # these steps have two to draw from
    assert texts.count("two") / len(texts) == pytest.approx(early / 2, abs=0.06)
    assert set(texts) == {"two", "three"}
    same(take(loader, 41, 1)[0], batches[41])  # a function of the position
    same(loader.batch(41), batches[41])
    # In file order, to look at and to compare with, the first is taken.
    assert said(make(index, shuffle=False).episode(0)) == ["two"] * 5 + ["three"] * (FIRST - 5)
    lines = "\n".join(report.lines(three, "train", report.measure(three, split)))
    assert "up to 3 instructions to draw from" in lines


def test_hosts_draw_the_same_words(root, three):
    index = open_index(root, three)
    whole = make(index, batch_size=8).batch(3)
    parts = [make(index, batch_size=8, rows=np.arange(i, i + 4)).batch(3) for i in (0, 4)]
    assert said(whole) == said(parts[0]) + said(parts[1])


def test_words_that_the_files_do_not_have(root):
    whole = dataclasses.replace(BLOCKS, language="", instruction="push a block")
    split = open_index(root, whole).splits["train"]
    assert split.sentences == ("push a block",)
    rewrite(shard(root), lambda f: f.update({TEXT: [b""] * 5 + [b"lift"] * (FIRST - 5)}))
    some = dataclasses.replace(BLOCKS, instruction="push a block")
    split = open_index(root, some).splits["train"]
    assert [split.sentences[i] for i in split.instruction[:2, 0]] == ["push a block", "lift"]
    with pytest.raises(ValueError, match=r"blocks: expected a feature with words"):
        dataclasses.replace(BLOCKS, language="")


def test_an_index_of_one_instruction_an_episode_takes_no_more_room(root):
    """And has the digest that it had: nothing is stored for what is not there."""
    split = open_index(root, BLOCKS).splits["train"]
    assert split.run is split.first
    assert b'"train/run"' not in (files(root) / FOLDER / "blocks.index").read_bytes()[:8000]


def test_words_that_a_later_step_has_wrong_are_refused(root):
    rewrite(shard(root), lambda f: f[TEXT].__setitem__(4, b"push \xff"))
    with pytest.raises(ValueError, match=r"record 0: step 4: language_instruction: expected an"):
        open_index(root, BLOCKS, selection=Selection())
