"""What a batch holds on demand: future frames, past actions, embeddings of the words."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines import frames, images, windows
from data_pipelines.builders.blocks import play
from data_pipelines.config import LoaderConfig
from data_pipelines.files import remote
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member
from tests.data_pipelines.loading import encode, same, take

OFFSETS = (5, 2)  # in the order asked for, whatever it is
BASE = LoaderConfig(
    window=3,
    chunk=2,
    cameras=("wrist", "primary", "other"),
    image_size=(32, 24, 16),
    prompt_length=40,
    batch_size=8,
    seed=5,
    ram_budget=10**9,
    windows_per_visit=64,
    shuffle=True,
    past_action=True,
    future=OFFSETS,
)


def embed(text):
    return np.array([len(text), ord(text[0]), ord(text[-1])], np.float32)


def make(index, split="train", rows=None, target=embed, **changes):
    member = Member.fit(index, split, 1.0, ("bounds",))  # limits that clip nothing
    config = dataclasses.replace(BASE, **changes)
    return Loader([member], config, encode, rows, target), member.action_spec


def decoded(index, episode, slot, size):
    """All frames of an episode, decoded one by one without the loader."""
    split = index.splits["train"]
    shard, offset, length = split.frames[slot]
    pictures = []
    for row in range(split.first[episode], split.first[episode] + split.length[episode]):
        start = int(offset[row])
        data = remote.read_range(split.shards[int(shard[row])], start, start + int(length[row]))
        pictures.append(images.decode(data, size))
    return np.stack(pictures)


@pytest.fixture
def decodes(monkeypatch):
    """Counts decoded frames and reads."""
    counts = {"frames": 0, "reads": 0}
    decode, read = images.decode, remote.read_range

    def count(kind, function):
        def counted(*args):
            counts[kind] += 1
            return function(*args)

        return counted

    monkeypatch.setattr(images, "decode", count("frames", decode))
    monkeypatch.setattr(remote, "read_range", count("reads", read))
    return counts


@pytest.mark.parametrize("windows_per_visit", [64, 1])
def test_future_frames_are_the_episodes_own(index, windows_per_visit):
    loader, _ = make(index, windows_per_visit=windows_per_visit)
    truth = {slot: decoded(index, 4, slot, size) for slot, size in (("wrist", 32), ("primary", 24))}
    length, batch = len(truth["wrist"]), loader.episode(4)
    assert [x.shape for x in batch.future.images] == [
        (length, 3, 2, s, s, 3) for s in BASE.image_size
    ]
    for t, i, m in np.ndindex(length, 3, 2):
        step = t - 2 + i
        there = step >= 0 and step + OFFSETS[m] < length
        # The dataset has no camera "other".
        assert batch.future.mask[t, i, m].tolist() == [there, there, False]
        for camera, slot in enumerate(("wrist", "primary")):
            wanted = truth[slot][step + OFFSETS[m]] if there else np.zeros_like(truth[slot][0])
            np.testing.assert_array_equal(batch.future.images[camera][t, i, m], wanted)
    assert not batch.future.images[2].any()


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "per_visit"), [(10**9, 64), (0, 1), (10**5, 2)])
def test_they_are_the_same_in_a_stream_and_on_any_hosts(index, budget, per_visit):
    loader, _ = make(index, ram_budget=budget, windows_per_visit=per_visit)
    whole = take(loader, 0, 2 * loader.windows // 8)
    for position in (11, 3):
        same(loader.batch(position), whole[position])
    same(take(loader, 7, 2), whole[7:9])
    hosts = [
        make(index, rows=rows, ram_budget=budget, windows_per_visit=per_visit)[0]
        for rows in np.arange(8).reshape(2, 4)
    ]
    shares = [take(host, 4, 3) for host in hosts]
    same(
        [jax.tree.map(lambda *x: np.concatenate(x), *pair) for pair in zip(*shares, strict=True)],
        whole[4:7],
    )


def test_asking_for_more_leaves_the_rest_as_it_was(index):
    """With a budget for everything the order is the same, and every other array is bit for bit."""
    plain, _ = make(index, past_action=False, future=(), target=None)
    full, _ = make(index)
    for few, more in zip(take(plain, 0, 4), take(full, 0, 4), strict=True):
        assert (
            few.future is few.text_target is few.obs.past_action is few.obs.past_action_mask is None
        )
        more = more._replace(
            obs=more.obs._replace(past_action=None, past_action_mask=None),
            future=None,
            text_target=None,
        )
        same(few, more)


def test_only_what_is_asked_for_is_decoded_and_in_one_read(index, decodes):
    """Two cameras that exist; windows of one step, so that a visit's frames can be counted on the
    fingers.
    """
    length = int(index.splits["train"].length[0])
    assert length > 9
    both = {
        "cameras": ("wrist", "primary"),
        "image_size": (32, 24),
        "window": 1,
        "windows_per_visit": 1,
    }

    def cost(future, windows, **changes):
        loader, _ = make(index, future=future, **{**both, **changes})
        decodes.update(frames=0, reads=0)
        loader._read(np.arange(windows), None)
        return decodes["frames"], decodes["reads"]

    assert cost((), 1) == (2, 2)
    assert cost((7,), 1) == (4, 2)  # and not the six frames between
    assert cost((7, 1), 1) == (6, 2)
    # The same two steps: before the episode there is no future.
    assert cost((7,), 1, window=4) == (4, 2)
    assert cost((3,), 5, windows_per_visit=64) == (2 * 8, 2)
    # Past the end there is none either.
    assert cost((1,), length, windows_per_visit=64) == (2 * length, 2)


def test_a_visit_is_decoded_once_an_epoch(index, monkeypatch):
    spans = []
    decode = frames.Decoder.decode
    monkeypatch.setattr(
        frames.Decoder, "decode", lambda self, *a: (spans.append(a), decode(self, *a))[1]
    )
    loader, _ = make(
        index, windows_per_visit=4, future=(7,), cameras=("primary",), image_size=(24,)
    )
    take(loader, 0, 5 * loader.windows // 8)
    visits = int(np.ceil(index.splits["train"].length / 4).sum())
    assert len(set(spans)) == visits
    assert len(spans) <= 6 * visits  # and a few of the epoch that comes next


def test_the_budget_counts_future_frames(index):
    """Half as many visits fit where each holds twice the frames."""
    one = {"window": 1, "windows_per_visit": 2, "cameras": ("wrist",), "image_size": (32,)}
    frame = 32 * 32 * 3
    total = int(index.splits["train"].length.sum())
    plain, _ = make(index, future=(), ram_budget=total * frame // 2, **one)
    doubled, _ = make(index, future=(2,), ram_budget=total * frame // 2, **one)
    visits = int(np.ceil(index.splits["train"].length / 2).sum())
    assert plain.pool == visits // 2
    assert visits // 4 <= doubled.pool <= visits * 0.3
    assert plain.identity() != doubled.identity()


def test_runs_of_future_frames_against_brute_force():
    draw = np.random.default_rng(0)
    for _ in range(300):
        start, length, rest = (int(draw.integers(*limits)) for limits in ((0, 9), (1, 9), (0, 30)))
        offsets = tuple(draw.choice(np.arange(1, 20), draw.integers(0, 4), replace=False).tolist())
        stop, end = start + length, start + length + rest
        runs = list(frames.future_runs(start, stop, end, offsets))
        span = frames.Span(0, start, stop, tuple((a, b) for a, b in runs if a < b))
        wanted = {s + o for s in range(start, stop) for o in (0, *offsets)}
        assert span.steps().tolist() == sorted(step for step in wanted if step < end)


def test_past_actions_are_those_of_the_step_before(index):
    loader, spec = make(index)
    batch, table = loader.episode(3), play(0, 0, 3)
    assert batch.obs.past_action.dtype == np.float32
    for t, i in np.ndindex(*batch.obs.past_action_mask.shape):
        step = t - 2 + i
        assert batch.obs.past_action_mask[t, i] == (step > 0)
        if step > 0:
            np.testing.assert_allclose(
                spec.unnormalise(batch.obs.past_action[t, i]), table.actions[step - 1], atol=1e-6
            )
        else:
            assert not batch.obs.past_action[t, i].any()
    np.testing.assert_array_equal(batch.obs.past_action[3:, 1], batch.actions[3:, 0, 0])


def test_sentences_are_embedded_once_each(index):
    seen = []
    loader, _ = make(index, target=lambda text: (seen.append(text), embed(text))[1])
    assert len(seen) == 1  # to learn the width
    batches = take(loader, 0, 2 * loader.windows // 8)
    assert sorted(seen) == sorted(index.splits["train"].sentences)
    for batch in batches:
        for row, prompt in enumerate(batch.obs.prompt):
            words = bytes(prompt[batch.obs.prompt_mask[row]].astype(np.uint8)).decode()
            np.testing.assert_array_equal(batch.text_target[row], embed(words))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda text: np.zeros(3),
        lambda text: np.zeros((1, 3), np.float32),
        lambda text: np.float32([np.nan]),
    ],
)
def test_a_wrong_embedding_is_refused(index, wrong):
    with pytest.raises(
        ValueError, match=r"target: expected finite float32 of shape .*\d,\).* for '\w+"
    ):
        make(index, target=wrong)


def test_repeats_that_fill_up_a_pass_have_no_future(index):
    loader, _ = make(index, "val", shuffle=False, future=(1,), batch_size=7)
    *_, last = loader.batches()
    extra = -loader.windows % 7
    assert extra
    assert last.future.mask[:-extra].any()
    assert not last.future.mask[-extra:].any()


@pytest.mark.parametrize("offsets", [(0,), (-3,), (1, 1), (999,)])
def test_offsets_that_lead_nowhere_are_refused(index, offsets):
    with pytest.raises(
        ValueError,
        match=r"objectives\.forward\.offsets: expected different numbers of steps from 1 to",
    ):
        make(index, future=offsets)


def test_future_steps_are_arithmetic():
    at = windows.steps(np.array([0, 4]), np.array([5, 5]), 2, 1, (3, 1))
    assert at.future[1].tolist() == [[4, 4], [4, 4]]
    assert at.future_mask[1].tolist() == [[False, True], [False, False]]
    assert at.future[0, 1].tolist() == [3, 1]
    assert at.future_mask[0].tolist() == [[False, False], [True, True]]
