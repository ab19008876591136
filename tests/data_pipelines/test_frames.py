"""Frames: read once, decoded exactly, from a disk, a bucket or a web server."""

import http.server
import io
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from data_pipelines import frames, images
from data_pipelines.datasets import DATASETS
from data_pipelines.files import remote
from data_pipelines.index import open_index
from tests.data_pipelines.loading import BLOCKS, make, same, take
from tests.wheels import needs_tensorflow

RLDS = Path(__file__).parents[3] / "shared" / "data" / "rlds"
needs_bridge = pytest.mark.skipif(
    not (RLDS / "bridge_dataset").is_dir(), reason="no Bridge sample beside the repository"
)


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
    # And a few of the next epoch.
    assert visits <= len({span for span, _ in spans[:visits]}) <= len(spans) <= visits * 2
    assert {span.stop - span.start for span, _ in spans} <= set(
        index.splits["train"].length.tolist()
    )


def test_damaged_image_is_named(root):
    index = open_index(root, BLOCKS)
    split = index.splits["train"]
    stored, path = split.frames["primary"], Path(split.shards[0])
    body = bytearray(path.read_bytes())
    body[stored.offset[2] : stored.offset[2] + 20] = bytes(20)
    path.write_bytes(body)
    with pytest.raises(
        ValueError,
        match=r"record 0: primary frame 2 \(byte \d+\): image: expected a whole JPEG or PNG",
    ):
        make(index).episode(0)


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


EXACT = """
import sys, numpy as np, tensorflow as tf
for name in sys.argv[1:]:
    pixels = tf.io.decode_jpeg(tf.io.read_file(name), dct_method="INTEGER_ACCURATE").numpy()
    assert (pixels == np.load(name + ".npy")).all(), name
print("equal")
"""


def encoded(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_gray_is_repeated_and_alpha_is_dropped():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), np.uint8)
    assert (images.decode(encoded(pixels), 8) == pixels[..., :3]).all()
    assert (images.decode(encoded(pixels[..., 0]), 8) == pixels[..., :1]).all()


def test_a_thumbnail_keeps_its_shape_and_colours():
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20, 0] = 255  # the left half is red
    small = images.thumbnail(encoded(pixels), 15)
    assert small.shape == (15, 20, 3)
    assert small[7, 3].tolist() == [255, 0, 0]
    assert images.thumbnail(encoded(pixels), 15, bgr=True)[7, 3].tolist() == [0, 0, 255]


def test_pictures_of_16_bits_are_no_colours():
    depth = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    for read in (images.size, images.raw, lambda data: images.decode(data, 8)):
        with pytest.raises(ValueError, match=r"expected 8 bits a channel, got .* mode I.* depth"):
            read(encoded(depth))


@needs_bridge
@needs_tensorflow
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
