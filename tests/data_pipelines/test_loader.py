"""Windows and batches."""

import dataclasses
import http.server
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from PIL import Image

from data_pipelines import frames, images, windows
from data_pipelines.builders.blocks import play, write_blocks
from data_pipelines.datasets import DATASETS
from data_pipelines.files import remote
from data_pipelines.index import open_index
from data_pipelines.loader import Loader, LoaderConfig
from data_pipelines.mixture import Part
from vla_jax.actions import ActionSpec

RLDS = Path(__file__).parents[3] / "shared" / "data" / "rlds"
needs_bridge = pytest.mark.skipif(
    not (RLDS / "bridge_dataset").is_dir(), reason="no Bridge sample beside the repository"
)
BLOCKS = DATASETS["blocks"]
BASE = LoaderConfig(
    window=3,
    chunk=4,
    cameras=("primary",),
    image_size=(32,),
    prompt_length=40,
    batch_size=7,
    seed=5,
    ram_budget=10**9,
    windows_per_visit=64,
    shuffle=True,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("blocks")
    write_blocks(root, train=6, val=2)
    return root


@pytest.fixture(scope="module")
def index(root):
    return open_index(root, BLOCKS)


@pytest.fixture(scope="module")
def bare(root):
    """The same files as a dataset with one camera, stored blue first, and no state."""

    def standardise(columns):
        whole = BLOCKS.standardise(columns)
        return whole._replace(state=whole.state[:, :0])

    camera = {"primary": BLOCKS.cameras["primary"]}
    return open_index(
        root,
        dataclasses.replace(
            BLOCKS,
            name="bare",
            cameras=camera,
            state_names=(),
            standardise=standardise,
            bgr=("primary",),
            control_hz=10.0,
        ),
    )


def encode(text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def part(index, split="train", weight=1.0, rules=("q99",)):
    stats, dataset = index.splits["train"].stats, index.dataset
    spec = ActionSpec.fit(dataset.action_names, dataset.binary, stats["action"], rules)
    state = ActionSpec.fit(dataset.state_names, (), stats["state"], ("q99",))
    return Part(index, split, weight, spec, state)


def make(*parts, rows=None, **changes):
    found = [each if isinstance(each, Part) else part(each) for each in parts]
    return Loader(found, dataclasses.replace(BASE, **changes), encode, rows)


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def take(loader, start, count):
    """Batches as a training run reads them, kept."""
    stream = loader.batches(start)
    try:
        return [jax.tree.map(np.array, next(stream)) for _ in range(count)]
    finally:
        stream.close()


def loaders():
    return [
        thread for thread in threading.enumerate() if thread.name.startswith(("loader", "decode"))
    ]


def test_steps_against_brute_force():
    """The chunk is whole to the true end of the episode (no goal cuts it), masked from there, and
    never one too far.
    """
    window, chunk = 3, 4
    pairs = [(t, length) for length in (1, 2, 3, 7) for t in range(length)]
    out = windows.steps(*(np.array(x) for x in zip(*pairs, strict=True)), window, chunk)
    for row, (t, length) in enumerate(pairs):
        for i in range(window):
            at = t - window + 1 + i
            assert out.frames[row, i] == max(at, 0)
            assert out.step_mask[row, i] == (at >= 0)
            for k in range(chunk):
                assert out.action_mask[row, i, k] == (at >= 0 and at + k < length)
                assert out.actions[row, i, k] == min(max(at + k, 0), length - 1)


def test_batch_holds_the_data(index):
    blocks = part(index, rules=("bounds",))  # limits that clip nothing
    loader = make(blocks, cameras=("wrist", "primary", "other"), image_size=(32, 24, 16))
    batch, table = loader.episode(4), play(0, 0, 4)
    length = len(table.actions)
    assert [x.shape for x in batch.obs.images] == [(length, 3, s, s, 3) for s in (32, 24, 16)]
    assert batch.obs.images[0].dtype == np.uint8
    assert batch.actions.dtype == batch.obs.proprio.dtype == np.float32
    np.testing.assert_array_equal(batch.obs.images[0][:, -1], table.wrist)
    np.testing.assert_array_equal(
        batch.obs.images[0][0, 0], table.wrist[0]
    )  # before the beginning: the first frame
    smaller = Image.fromarray(table.primary[3]).resize((24, 24), Image.Resampling.LANCZOS)
    assert np.abs(batch.obs.images[1][3, -1].astype(int) - np.asarray(smaller)).mean() < 6  # JPEG
    assert not batch.obs.images[2].any()
    np.testing.assert_array_equal(
        batch.obs.image_mask, np.broadcast_to([True, True, False], (length, 3, 3))
    )
    np.testing.assert_allclose(
        blocks.action_spec.unnormalise(batch.actions[:, -1, 0]), table.actions, atol=1e-6
    )
    np.testing.assert_array_equal(batch.actions[2:-1, 1, 1], batch.actions[2:-1, 2, 0])
    assert batch.obs.step_mask[0].tolist() == [False, False, True]
    assert batch.obs.proprio_mask.all()
    words = batch.obs.prompt[0][batch.obs.prompt_mask[0]]
    assert bytes(words.astype(np.uint8)).decode() == loader.instruction(4) == table.instruction
    n = len(words)
    assert batch.obs.prompt_mask[0, :n].all()
    assert not batch.obs.prompt_mask[0, n:].any()


def test_actions_past_the_end_are_neutral_in_the_robots_units(index):
    """No motion and the gripper as it was: where the limits are not symmetric, that is not 0 after
    normalisation.
    """
    loader, table = make(index), play(0, 0, 2)
    batch, spec = loader.episode(2), part(index).action_spec
    past = spec.unnormalise(batch.actions[-1, -1, 1:])
    assert not batch.action_mask[-1, -1, 1:].any()
    np.testing.assert_allclose(past[:, :6], 0, atol=1e-6)
    assert (past[:, 6] == table.actions[-1, 6]).all()
    assert np.abs(batch.actions[-1, -1, 1:, :3]).max() > 0.01


def test_normalising_twice_needs_explicit_limits(index):
    """RoboVLMs' OXE models clip q99-normalised actions again: only a config that asks for it (an
    import) gets that.
    """
    once, twice = part(index), part(index, rules=("q99", ("bounds", -0.65, 0.65)))
    a, b = make(once).episode(0).actions, make(twice).episode(0).actions
    np.testing.assert_allclose(b[..., :6], np.clip(a[..., :6], -0.65, 0.65) / 0.65, atol=1e-6)
    with pytest.raises(ValueError, match="needs explicit limits"):
        part(index, rules=("q99", "bounds"))


def test_a_mixture_masks_what_a_dataset_lacks(index, bare):
    loader = make(index, bare, cameras=("wrist", "primary"), image_size=(32, 32), batch_size=64)
    batch = loader.batch(0)
    lame = batch.dataset_id == 1
    assert lame.any()
    assert not lame.all()
    np.testing.assert_array_equal(batch.obs.proprio_mask, ~lame)
    assert batch.obs.proprio.shape[-1] == 7
    assert not batch.obs.proprio[lame].any()
    assert batch.obs.proprio[~lame].any()
    assert not batch.obs.images[0][lame].any()
    assert not batch.obs.image_mask[lame][..., 0].any()
    assert batch.obs.image_mask[~lame].all()
    assert loader.instruction(6 + 1) == loader.instruction(1)
    with pytest.raises(ValueError, match="episode: expected one below 12, got 12"):
        loader.episode(12)


def test_cameras_stored_blue_first_are_swapped(index, bare):
    loader = make(index, bare)
    np.testing.assert_array_equal(
        loader.episode(6).obs.images[0], loader.episode(0).obs.images[0][..., ::-1]
    )


def test_the_summary_says_what_is_mixed(index, bare):
    text = make(index, part(bare, weight=0.5)).summary()
    assert "control rates differ (5, 10 Hz)" in text
    assert "distinct episodes" in text
    lines = {line.split()[0]: line.split() for line in text.splitlines()}
    assert lines["bare"][1:3] == ["0.5", "33.33%"]
    assert "control rates" not in make(index).summary()


def test_every_window_comes_once_an_epoch(index, bare):
    loader = make(index, bare, batch_size=1)
    count = loader.windows
    expected = [loader.episode(e) for e in range(12)]
    seen = take(loader, 0, count)

    def key(batch, i):
        return (
            batch.obs.images[0][i].tobytes()
            + batch.actions[i].tobytes()
            + bytes([int(batch.dataset_id[i])])
        )

    assert sorted(key(batch, 0) for batch in seen) == sorted(
        key(batch, i) for batch in expected for i in range(len(batch.actions))
    )


@pytest.mark.parametrize(
    ("budget", "per_visit"), [(10**9, 64), (2 * 12 * 32 * 32 * 3, 5), (0, 64), (0, 1)]
)
def test_batches_are_pure(index, bare, budget, per_visit):
    """Any position, in any order, from any loader: the same batch. Epochs run into each other."""
    pair = [
        make(index, part(bare, weight=0.3), ram_budget=budget, windows_per_visit=per_visit)
        for _ in range(2)
    ]
    a, b = pair
    batches = take(a, 0, 2 * a.windows // 7)
    for position in (13, 3, a.windows // 7, 0):
        same(b.batch(position), batches[position])
    for position, batch in enumerate(take(b, 5, 3), 5):
        same(batch, batches[position])
    assert a.identity() == b.identity() != make(index, seed=6).identity()
    assert not loaders()


def test_timing_does_not_matter(index, monkeypatch):
    expected = take(make(index), 0, 12)
    decode, draw = frames.Decoder.decode, np.random.default_rng(0)

    def late(self, span, camera):
        time.sleep(float(draw.random()) / 50)
        return decode(self, span, camera)

    monkeypatch.setattr(frames.Decoder, "decode", late)
    for batch, wanted in zip(take(make(index), 0, 12), expected, strict=True):
        same(batch, wanted)


def test_hosts_may_change_in_the_middle_of_an_epoch(index, bare):
    """1, then 2, then 4 hosts from saved positions: together they see what one host sees, no window
    twice or never.
    """
    size, parts = 8, (part(index), part(bare, weight=2.0))
    whole = take(make(*parts, batch_size=size), 0, 12)
    position, seen = 0, []
    for hosts in (1, 2, 4):
        slices = np.arange(size).reshape(hosts, -1)
        shares = [take(make(*parts, batch_size=size, rows=rows), position, 4) for rows in slices]
        seen += [
            jax.tree.map(lambda *x: np.concatenate(x), *batches)
            for batches in zip(*shares, strict=True)
        ]
        state = json.dumps({"position": position + 4, **make(*parts, batch_size=size).identity()})
        assert len(state) * 40 < 64_000  # of 2 datasets: all 80 of them would do
        position = json.loads(state)["position"]
    for batch, expected in zip(seen, whole, strict=True):
        same(batch, expected)


def test_each_frame_is_decoded_once_an_epoch(index, monkeypatch):
    spans = []
    decode = frames.Decoder.decode
    monkeypatch.setattr(
        frames.Decoder, "decode", lambda self, *a: (spans.append(a), decode(self, *a))[1]
    )
    loader = make(index, batch_size=6)
    count = -(-loader.windows // 6)
    take(loader, 0, count)
    visits = int((index.splits["train"].length > 0).sum())
    assert (
        visits <= len({span for span, _ in spans[:visits]}) <= len(spans) <= visits * 2
    )  # and a few of the next epoch
    assert {span.stop - span.start for span, _ in spans} <= set(
        index.splits["train"].length.tolist()
    )


def test_rows_are_parts_of_the_global_batch(index):
    whole = make(index).batch(2)
    rows = make(index, rows=np.array([5, 1])).batch(2)
    same(rows, jax.tree.map(lambda x: x[[5, 1]], whole))
    with pytest.raises(ValueError, match="rows: expected rows of a batch of 7"):
        make(index, rows=np.array([7]))


def test_one_pass_without_shuffling(index):
    loader = make(part(index, "val"), shuffle=False)
    batches = [jax.tree.map(np.array, batch) for batch in loader.batches()]
    assert len(batches) == -(-loader.windows // 7)
    assert not loaders()
    expected = jax.tree.map(lambda *x: np.concatenate(x), loader.episode(0), loader.episode(1))
    got = jax.tree.map(lambda *x: np.concatenate(x), *batches)
    same(jax.tree.map(lambda x: x[: loader.windows], got), expected)
    assert len(got.actions) % 7 == 0
    assert not got.action_mask[loader.windows :].any()
    with pytest.raises(ValueError, match="one pass"):
        loader.batch(len(batches))


def test_batches_that_are_kept_do_not_change(index):
    stream = make(index).batches()
    kept = [next(stream) for _ in range(20)]
    copies = [jax.tree.map(np.array, batch) for batch in kept]
    for _ in range(20):
        next(stream)
    stream.close()
    for batch, copy in zip(kept, copies, strict=True):
        same(batch, copy)


def test_closing_stops_the_threads_and_errors_arrive(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    index = open_index(tmp_path / "data", BLOCKS)
    stream = make(index).batches()
    next(stream)
    assert loaders()
    stream.close()
    assert not loaders()
    loader = make(index)
    for shard in index.splits["train"].shards:
        Path(shard).unlink()
    with pytest.raises(FileNotFoundError):
        next(loader.batches())
    assert not loaders()


def test_damaged_image_is_named(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    index = open_index(tmp_path / "data", BLOCKS)
    split = index.splits["train"]
    found, path = split.frames["primary"], Path(split.shards[0])
    body = bytearray(path.read_bytes())
    body[found.offset[2] : found.offset[2] + 20] = bytes(20)
    path.write_bytes(body)
    with pytest.raises(
        ValueError,
        match=r"record 0: primary frame 2 \(byte \d+\): image: expected a whole JPEG or PNG",
    ):
        make(index).episode(0)


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        (
            {"window": 99},
            "train",
            r"model.window: expected at most \d+, the longest episode of blocks/train, got 99",
        ),
        (
            {"cameras": ("other",)},
            "train",
            "model.cameras: expected at least one of primary, wrist",
        ),
        (
            {"prompt_length": 9},
            "train",
            r"model.prompt_length: expected at least \d+ for the instruction '\w+",
        ),
        ({}, "test", "expected a split of train, val, got 'test'"),
        ({"cameras": ("primary", "wrist")}, "train", "model.image_size: expected one per camera"),
    ],
)
def test_misfits_are_refused(index, changes, split, message):
    with pytest.raises(ValueError, match=message):
        make(part(index, split), **changes)


def test_all_misfits_of_a_mixture_are_listed_at_once(index, bare):
    with pytest.raises(ValueError, match=r"model\.cameras") as caught:
        make(part(index, "test"), part(bare, weight=0.0), cameras=("wrist",))
    for line in (
        "blocks: expected a split",
        "at least one of primary, which bare has",
        "weight above 0 for bare",
    ):
        assert line in str(caught.value)
    other = dataclasses.replace(part(bare), action_spec=ActionSpec(("a", "b")))
    with pytest.raises(ValueError, match="bare has a, b"):
        make(index, other)


def test_blocks_need_both_picture_and_words(index):
    """Pushing goes where the words say; the approach goes where the named block is."""
    for episode in range(6):
        batch, table = make(index, window=1, chunk=1).episode(episode), play(0, 0, episode)
        word = next(w for w in ("left", "right", "up", "down") if w in table.instruction)
        closed = batch.actions[:, 0, 0, 6] == 0
        axis, sign = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}[word]
        assert closed.sum() == 6
        assert (np.sign(table.actions[closed, axis]) == sign).all()


def test_remote_data_is_the_same_with_one_read_a_visit(root, index, tmp_path, monkeypatch):
    memory = fsspec.filesystem("memory")
    folder = root / "blocks" / "1.0.0"
    for path in folder.iterdir():
        if path.is_file():
            memory.pipe_file(f"/bucket/blocks/1.0.0/{path.name}", path.read_bytes())
    far = open_index("memory://bucket", BLOCKS, tmp_path)
    assert far.digest == index.digest
    reads = []
    read = remote.read_range
    monkeypatch.setattr(remote, "read_range", lambda *a: (reads.append(a), read(*a))[1])
    cameras = {"cameras": ("primary", "wrist"), "image_size": (32, 32)}
    batch = make(far, **cameras).episode(3)
    assert len(reads) == 2  # one for each camera
    assert all(path.startswith("memory://bucket/blocks/1.0.0/blocks-train") for path, _, _ in reads)
    same(batch, make(index, **cameras).episode(3))
    same(take(make(far), 0, 3), take(make(index), 0, 3))


def test_a_web_server_will_do(root, index, tmp_path, monkeypatch):
    class Files(http.server.SimpleHTTPRequestHandler):
        """Python's server with the byte ranges it lacks."""

        def send_head(self):
            wanted = self.headers.get("Range")
            if wanted is None:
                return super().send_head()
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.end_headers()
            return io.BytesIO(data[first : last + 1])

        def log_message(self, *args):
            pass

    monkeypatch.setattr(remote, "DELAYS", (0.0,))
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: Files(*a, directory=str(root))
    ) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        far = open_index(url, BLOCKS, tmp_path)
        assert far.digest == index.digest
        same(take(make(far), 4, 3), take(make(index), 4, 3))
        loader = make(far)
        server.shutdown()
    with pytest.raises(
        OSError, match=rf"{url}/blocks/1.0.0/blocks-train\S+: reading failed 2 times"
    ):
        loader.episode(1)


@needs_bridge
def test_bridge_batch(tmp_path):
    index = open_index(RLDS, DATASETS["bridge"], tmp_path)
    loader = make(
        index,
        window=8,
        chunk=10,
        cameras=("primary", "wrist"),
        image_size=(64, 64),
        prompt_length=128,
    )
    batch = loader.batch(0)
    assert batch.actions.shape == (7, 8, 10, 7)
    assert np.abs(batch.actions).max() <= 1
    assert batch.obs.images[0].any()
    assert not batch.obs.image_mask[:, :, 1].any()


EXACT = """
import sys, numpy as np, tensorflow as tf
for name in sys.argv[1:]:
    pixels = tf.io.decode_jpeg(tf.io.read_file(name), dct_method="INTEGER_ACCURATE").numpy()
    assert (pixels == np.load(name + ".npy")).all(), name
print("equal")
"""


@needs_bridge
@pytest.mark.slow
def test_jpegs_are_decoded_exactly(tmp_path):
    split = open_index(RLDS, DATASETS["bridge"], tmp_path).splits["train"]
    shard, offset, length = split.frames["primary"]
    names = []
    for row in (0, 7, 50):
        start = int(offset[row])
        data = remote.read_range(split.shards[int(shard[row])], start, start + int(length[row]))
        path = tmp_path / f"{row}.jpg"
        path.write_bytes(data)
        np.save(f"{path}.npy", images.decode(data, 64))
        names.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", EXACT, *names], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "equal", done.stderr
