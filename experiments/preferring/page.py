"""The page that shows pairs of clips: one HTML file that needs nothing else, served on this machine
or taken elsewhere.
"""

import base64
import hmac
import json
import secrets
import threading
from collections.abc import Sequence
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from experiments.preferring.pairs import PREFERENCES, Choice, Choices, Clip, Pairs, rows
from experiments.rolling.episodes import Film, Filmed, Orders, actions_of
from experiments.rolling.films import VIDEOS
from experiments.rolling.worlds import opened
from vla_jax.progress import Progress

HOST = "127.0.0.1"
MOST = 4096  # bytes of a choice that is sent

# The browser is told to fetch nothing from elsewhere, whatever the instructions hold.
POLICY = (
    "default-src 'none'; media-src data:; connect-src 'self'; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'"
)

STYLE = """
body { font: 16px/1.4 system-ui, sans-serif; margin: 1em auto; max-width: 1000px }
body { text-align: center }
video { width: 48%; image-rendering: pixelated; background: #eee }
button { font: inherit; padding: .6em 1.2em; margin: .3em }
small { color: #666 }
"""

SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const token = new URLSearchParams(location.search).get('token');
const made = [];
let rest = data.rest.slice(), busy = false;
const at = id => document.getElementById(id);
function show() {
  at('left-of').textContent = rest.length + ' left';
  const pair = data.pairs[rest[0]];
  at('shown').hidden = !pair; at('done').hidden = !!pair;
  if (!pair) return;
  at('told').textContent = pair.told;
  at('left').src = data.clips[pair.left]; at('right').src = data.clips[pair.right];
}
async function choose(choice) {
  if (busy || !rest.length) return;
  busy = true;
  const pair = data.pairs[rest[0]];
  const row = { pair: rest[0], choice, judge: data.judge, left: pair.left, right: pair.right };
  try {
    if (token) {
      const reply = await fetch('choice', {
        method: 'POST', headers: { 'X-Token': token }, body: JSON.stringify(row) });
      if (!reply.ok) throw new Error(await reply.text());
    }
    made.push(JSON.stringify(row)); rest.shift(); at('said').textContent = ''; show();
  } catch (error) { at('said').textContent = 'not kept: ' + error.message; }
  busy = false;
}
for (const choice of ['left', 'right', 'tie', 'skip'])
  at('choose-' + choice).onclick = () => choose(choice);
document.onkeydown = event => {
  const choice = { ArrowLeft: 'left', ArrowRight: 'right', t: 'tie', s: 'skip' }[event.key];
  if (choice) choose(choice);
};
at('save').hidden = !!token;
at('save').onclick = () => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([made.join('\\n') + '\\n']));
  link.download = data.file; link.click();
};
show();
"""

BODY = """<!doctype html><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>Which is better?</title><style>{style}</style>
<h1>Which is better?</h1>
<div id="shown"><p id="told"></p>
<video id="left" autoplay loop muted playsinline></video>
<video id="right" autoplay loop muted playsinline></video>
<p><button id="choose-left">&larr; left</button><button id="choose-tie">tie (t)</button>
<button id="choose-skip">skip (s)</button><button id="choose-right">right &rarr;</button></p></div>
<p id="done" hidden>All pairs are judged.</p>
<p><small id="left-of"></small> <small id="said"></small>
<button id="save" hidden>save the choices</button></p>
<script type="application/json" id="data">{data}</script><script>{script}</script>
"""


class Page:
    """The page of pairs, for one judge. Clips are filmed once, into OUT/clips."""

    def __init__(self, pairs: Pairs, out: Path, judge: str) -> None:
        """Raises ValueError as opening the world does, and for a judge without a name."""
        if not judge.strip():
            raise ValueError("--judge: expected a name, got ''")
        self._pairs, self._judge = pairs, judge
        known = {clip.rollout: rows(Path(clip.rollout)) for pair in pairs.pairs for clip in pair}
        self._told = [
            known[pair.left.rollout][pair.left.episode]["instruction"] for pair in pairs.pairs
        ]
        self._films = _filmed(pairs, out / "clips")

    def html(self, made: Sequence[Choice]) -> str:
        """The whole page, of the pairs that this judge has not chosen from."""
        done = {choice.pair for choice in made if choice.judge == self._judge}
        data = {
            "judge": self._judge,
            "file": PREFERENCES,
            "rest": [n for n in range(len(self._pairs.pairs)) if n not in done],
            "pairs": [
                {"left": pair.left.sha256, "right": pair.right.sha256, "told": told}
                for pair, told in zip(self._pairs.pairs, self._told, strict=True)
            ],
            "clips": self._films,
        }
        # "</script>" in an instruction would end the element that holds it.
        text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
        return BODY.format(policy=escape(POLICY), style=STYLE, data=text, script=SCRIPT)


def _filmed(pairs: Pairs, out: Path) -> dict[str, str]:
    """Each clip by its hash, as a data: URL of an mp4."""
    clips = sorted({clip for pair in pairs.pairs for clip in pair})
    files = {clip: out / clip.sha256[:16] / VIDEOS / f"{clip.episode}.mp4" for clip in clips}
    new = [clip for clip, file in files.items() if not file.exists()]
    if new:
        world = opened(pairs.world["sim"], 1)[0]
        with Progress("filming", len(new), "clips") as progress:
            for clip in new:
                _film(world, pairs.world["seed"], clip, files[clip].parents[1])
                progress.add(1)
        world.close()
    return {
        clip.sha256: "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()
        for clip, file in files.items()
    }


def _film(world: Any, seed: int, clip: Clip, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    actions = actions_of(Path(clip.rollout), clip.episode)
    world.begin(Film(Orders(seed), clip.episode, actions, out))
    while not isinstance(world.take(), Filmed):
        pass


def serve(page: Page, choices: Choices, port: int) -> None:
    """Serves the page on the loopback until all pairs are judged or Ctrl-C. Raises ValueError for
    a port that is taken.
    """
    token = secrets.token_urlsafe(24)
    try:
        server = Server((HOST, port), page, choices, token)
    except OSError as error:
        raise ValueError(f"--port={port}: {error.strerror}; give another, or 0") from error
    with server:
        print(
            f"open http://{HOST}:{server.server_port}/?token={token} (Ctrl-C ends it)", flush=True
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped; the same command goes on")


class Server(ThreadingHTTPServer):
    """Who has the token sees the page and sends choices."""

    def __init__(self, address: tuple[str, int], page: Page, choices: Choices, token: str) -> None:
        super().__init__(address, _Handler)
        self.page, self.choices, self.token = page, choices, token
        self.lock = threading.Lock()

    def known(self, token: str | None) -> bool:
        """Whether it is the token."""
        return token is not None and hmac.compare_digest(token.encode(), self.token.encode())


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path != "/" or not self._own() or not self.server.known(query.removeprefix("token=")):
            self._answer(403, "this page opens with the link that collect_preferences prints")
            return
        with self.server.lock:
            text = self.server.page.html(self.server.choices.made)
        self._answer(200, text, "text/html")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        allowed = self._own() and self.server.known(self.headers.get("X-Token"))
        if self.path != "/choice" or not allowed:
            self._answer(403, "expected the token of this page")
        elif not length.isdigit() or int(length) > MOST:
            self._answer(413, f"expected a choice of at most {MOST} bytes")
        else:
            self._keep(self.rfile.read(int(length)))

    def _keep(self, body: bytes) -> None:
        try:
            row = json.loads(body)
            with self.server.lock:
                self.server.choices.add_line(row)
        except (ValueError, KeyError, TypeError) as error:
            self._answer(400, str(error))
            return
        self._answer(200, "kept")

    def _own(self) -> bool:
        """Whether it was asked for by this machine's name: a page of elsewhere that has its name
        point here is not.
        """
        port = self.server.server_port
        return self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}")

    def _answer(self, status: int, text: str, kind: str = "text/plain") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the link holds the token."""
