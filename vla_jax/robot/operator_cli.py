"""A server from the command line: what it serves and how fast, a stop of its robots, and permission
to move again.

    python -m vla_jax.robot.operator_cli --url ws://gpu-box:8000 --token_file token --check
    python -m vla_jax.robot.operator_cli --url ... --operator_token_file operator \\
        --stop "hand in the cell"
    python -m vla_jax.robot.operator_cli --url ... --operator_token_file operator \\
        --reset_safety --session 3f... --by Ada --gripper 1 --pose 0.4 0 0.2 0 0 0

A stop concerns the robots of all sessions, or of --session; a robot's session is in its client's
`handshake` and in the server's log. Whoever resets has looked at the robot: --gripper says what its
gripper does now (1 is open; of several NAME=1 each), and --pose where its axes are (m, rad, in the
order of the limits), which limits of a workspace need unless the robot reports it, and commands of
positions always.
"""

import argparse
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vla_jax.robot.client import Client, ServerError

FRAMES = 20  # of --check


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 1 after printing why not."""
    options = parsed(arguments)
    operator = read(options.operator_token_file)
    tls = ssl.create_default_context(cafile=str(options.cafile)) if options.cafile else None
    try:
        with Client(
            options.url, operator or read(options.token_file), options.artefact, tls=tls
        ) as client:
            if options.check:
                print(json.dumps(client.handshake, indent=2))
                print(check(client, options.dataset))
                return 0
            fields: dict[str, Any] = {"operator_token": operator}
            if options.stop is not None:
                fields.update(type="stop", why=options.stop, session=options.session or "*")
            else:
                pose = None if options.pose is None else np.array(options.pose)
                gripper, session = openings(options.gripper), options.session
                fields.update(
                    type="safety_reset", by=options.by, gripper=gripper, pose=pose, session=session
                )
            answer = client.ask(fields, "safety")
            state = f"stopped: {answer['latched']}" if answer["latched"] else "may move"
            print(f"session {answer['session']}: {state}")
            return 0
    except (ServerError, ConnectionError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 and a line where it does not make sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--check", action="store_true", help="the handshake, and the time of 20 frames"
    )
    what.add_argument("--stop", metavar="WHY")
    what.add_argument("--reset_safety", action="store_true")
    parser.add_argument("--token_file", type=Path)
    parser.add_argument("--operator_token_file", type=Path)
    parser.add_argument("--cafile", type=Path, help="the server's certificate, where it is its own")
    parser.add_argument("--artefact", help="the hash that --check expects")
    parser.add_argument("--dataset", help="of --check, where the policy knows several")
    parser.add_argument("--session")
    parser.add_argument("--by", help="who has looked at the robot")
    parser.add_argument(
        "--gripper", nargs="+", metavar="[NAME=]OPEN", help="0 (closed) to 1 (open)"
    )
    parser.add_argument("--pose", type=float, nargs="+", help="of the limits' axes, m and rad")
    options = parser.parse_args(arguments)
    if not options.check and options.operator_token_file is None:
        parser.error("--stop and --reset_safety need --operator_token_file")
    if options.reset_safety and None in (options.by, options.session):
        parser.error("--reset_safety needs --session and --by, and --gripper where there is one")
    return options


def openings(words: list[str] | None) -> float | dict[str, float] | None:
    """Of `1` the number, of `left=1 right=0.5` numbers by name, None without words. Raises
    ValueError for anything else.
    """
    if words is None:
        return None
    try:
        if len(words) == 1 and "=" not in words[0]:
            return float(words[0])
        pairs = [word.rsplit("=", 1) for word in words]
        return {name: float(number) for name, number in pairs}
    except ValueError:
        raise ValueError(
            f"--gripper: expected 0 (closed) to 1 (open), or NAME=1 for each of several, got"
            f" {' '.join(words)}"
        ) from None


def check(client: Client, dataset: str | None) -> str:
    """The round trip of black frames, as a line. Raises as `Client.act` does: on a server
    with limits, a new session may not move yet.
    """
    about, milliseconds = client.handshake, []
    if dataset is None and len(about["datasets"]) == 1:
        dataset = next(iter(about["datasets"]))
    client.reset("check", dataset)
    state, each = (about["datasets"].get(dataset) or {}).get("state"), about["image"].get("sizes")
    sizes = each or dict.fromkeys(about["cameras"], about["image"]["size"])
    images = {name: np.zeros((size, size, 3), np.uint8) for name, size in sizes.items()}
    proprio = np.zeros(len(state), np.float32) if state else None
    for _ in range(FRAMES):
        began = time.perf_counter()
        client.act(images, proprio)
        milliseconds.append(1e3 * (time.perf_counter() - began))
    p50, p95 = np.quantile(milliseconds, [0.5, 0.95])
    return f"{FRAMES} frames: p50 {p50:.1f} ms, p95 {p95:.1f} ms"


def read(path: Path | None) -> str | None:
    """A token from its file, without the white space round it."""
    return None if path is None else path.read_text(encoding="utf-8").strip()


if __name__ == "__main__":
    sys.exit(main())
