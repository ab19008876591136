"""Reading through fsspec: the same bytes from a disk, from memory and from a web server, and what
happens on faults.
"""

import http.server
import threading

import fsspec
import pytest

from data_pipelines.files import remote

BODY = bytes(range(256)) * 40


class Ranged(http.server.BaseHTTPRequestHandler):
    """Serves BODY at /data/file. Counts requests; refuses the first `server.failures` of them."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        self.answer(send=True)

    def answer(self, send: bool) -> None:
        server = self.server
        if self.path != "/data/file":
            self.reply(404, b"", send, {})
        elif send and server.failures > 0:
            server.failures -= 1
            self.reply(503, b"", send, {})
        elif (wanted := self.headers.get("Range")) and server.ranges:
            server.asked.append(wanted)
            first, last = (int(n) for n in wanted.removeprefix("bytes=").split("-"))
            part = BODY[first : last + 1]
            self.reply(206, part, send, {"Content-Range": f"bytes {first}-{last}/{len(BODY)}"})
        else:
            self.reply(200, BODY, send, {"Accept-Ranges": "bytes"} if server.ranges else {})

    def reply(self, code: int, body: bytes, send: bool, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranged) as running:
        running.failures, running.ranges, running.asked, running.daemon_threads = 0, True, [], True
        running.url = f"http://127.0.0.1:{running.server_port}/data/file"
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def delays(monkeypatch):
    slept = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    return slept


@pytest.fixture(params=["disk", "memory", "http"])
def path(request, tmp_path):
    if request.param == "disk":
        (tmp_path / "file").write_bytes(BODY)
        return str(tmp_path / "file")
    if request.param == "memory":
        fsspec.filesystem("memory").pipe_file("/data/file", BODY)
        return "memory://data/file"
    return request.getfixturevalue("server").url


def test_the_same_bytes_from_everywhere(path):
    assert remote.exists(path)
    assert not remote.exists(path + "x")
    assert remote.size(path) == len(BODY)
    assert remote.read(path) == BODY
    assert remote.read_range(path, 300, 1000) == BODY[300:1000]
    with remote.open_stream(path) as stream:
        assert stream.read(12) == BODY[:12]
        assert stream.read() == BODY[12:]


def test_join_and_list(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_bytes(b"")
    assert remote.list_folder(str(tmp_path)) == ["a", "b"]
    assert remote.list_folder(str(tmp_path / "c")) == []
    fsspec.filesystem("memory").pipe_file("/root/x/1", b"")
    assert remote.join("memory://root/", "x", "1") == "memory://root/x/1"
    assert remote.list_folder("memory://root/x") == ["1"]
    assert remote.join("/a", "b") == "/a/b"


def test_missing_files_are_named_and_not_tried_again(path, delays):
    for read in (remote.read, remote.size, lambda p: remote.read_range(p, 0, 3)):
        with pytest.raises(FileNotFoundError, match="filex"):
            read(path + "x")
    assert not delays


def test_a_range_is_one_request(server):
    assert remote.read_range(server.url, 10, 5000) == BODY[10:5000]
    assert server.asked == ["bytes=10-4999"]


def test_failed_reads_are_tried_again_with_growing_delays(server, delays):
    server.failures = 3
    assert remote.read_range(server.url, 0, 10) == BODY[:10]
    assert delays == [0.5, 1.0, 2.0]


def test_a_read_that_keeps_failing_names_the_url(server, delays):
    server.failures = 99
    with pytest.raises(OSError, match=f"{server.url}: reading failed 5 times"):
        remote.read_range(server.url, 0, 10)
    assert delays == list(remote.DELAYS)


def test_a_server_without_ranges_is_refused(server, delays):
    server.ranges = False
    with pytest.raises(ValueError, match="does not serve byte ranges"):
        remote.read_range(server.url, 0, 10)
    assert not delays


def test_a_file_that_ends_early_is_refused(path, delays):
    with pytest.raises(OSError, match=r"cut short|failed 5 times"):
        remote.read_range(path, len(BODY) - 5, len(BODY) + 5)


def test_unknown_protocols_are_refused():
    with pytest.raises(ValueError, match="install the fsspec package"):
        remote.size("nonsense://bucket/file")
