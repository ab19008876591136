"""Serves an artefact to robots over websockets.

    python -m experiments.serve --artefact artefacts/NAME --device cuda --dtype bfloat16
    python -m experiments.serve --artefact DIR --host 0.0.0.0 --token_file token --tls_cert cert.pem
        --tls_key key.pem
    python -m experiments.serve --artefact DIR --limits limits.yaml --operator_token_file operator

Robots connect with vla_jax/robot/client.py, or as they are with openpi's client
(vla_jax/robot/serving/sessions.py says which messages). It refuses to start on a machine that does
not reproduce the artefact's golden file. Without TLS a token crosses the network as it is. On a CPU
that has other work too, start it with OMP_WAIT_POLICY=passive: torch's threads wait for each other
in a loop, and one that is not running holds up the rest (p95 of 650 ms became 100 on a small policy
with two busy cores; p50 of 23 became 50 on idle ones). Needs torch, numpy, safetensors, msgpack and
websockets (pyyaml for --limits), nothing of JAX, TensorFlow or transformers.
"""

import argparse
import asyncio
import logging
import os
import signal
import ssl
import sys
from pathlib import Path

from vla_jax.robot.safety import limits
from vla_jax.robot.serving.inference import Model, message_bytes, open_model
from vla_jax.robot.serving.server import Server
from vla_jax.robot.serving.sessions import Settings

TOKEN_CHARACTERS = 16


def main(argv: list[str]) -> None:
    """Serves until SIGTERM or SIGINT."""
    args = parse(argv)
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ValueError("--tls_cert, --tls_key: expected both or none")
    tls = None
    if args.tls_cert is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(args.tls_cert, args.tls_key)
    settings = Settings(
        host=args.host,
        port=args.port,
        tls=tls,
        token=token(args.token_file),
        operator_token=token(args.operator_token_file),
        limits=None if args.limits is None else limits.load(args.limits),
        keys=keys(args.camera),
        dataset=args.dataset,
        sessions=args.max_sessions,
        idle=args.idle_timeout,
    )
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)

    def load_model() -> Model:
        return open_model(args.artefact, args.device, args.dtype, args.compile, args.max_sessions)

    asyncio.run(serve(Server(settings, message_bytes(args.artefact), load_model)))


async def serve(server: Server) -> None:
    """Runs a server until a signal. A thread that still loads then, or hangs in a pass, is not
    waited for.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    if not await server.run():
        logging.shutdown()
        os._exit(0)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--artefact", type=Path, required=True, help="the folder that experiments.export wrote"
    )
    parser.add_argument("--device", default="cpu", help="of torch")
    parser.add_argument(
        "--dtype", default="float32", help="float32, or bfloat16 if the artefact was proven in it"
    )
    parser.add_argument(
        "--compile", action="store_true", help="with torch.compile; warming up then takes minutes"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="another than loopback needs --token_file"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: a free one, see the log")
    parser.add_argument(
        "--token_file", type=Path, default=None, help="what every connection must carry"
    )
    parser.add_argument(
        "--operator_token_file", type=Path, default=None, help="what lets a robot move after a stop"
    )
    parser.add_argument("--tls_cert", type=Path, default=None)
    parser.add_argument("--tls_key", type=Path, default=None)
    parser.add_argument(
        "--limits",
        type=Path,
        default=None,
        help="as vla_jax/robot/safety/limits_example.yaml: every session is filtered",
    )
    parser.add_argument(
        "--camera",
        action="append",
        default=None,
        metavar="NAME=KEY",
        help="where openpi's messages have it",
    )
    parser.add_argument(
        "--dataset", default=None, help="whose robot it is, for clients that do not say"
    )
    parser.add_argument("--max_sessions", type=int, default=8)
    parser.add_argument(
        "--idle_timeout",
        type=float,
        default=600.0,
        help="seconds without a message that end a session",
    )
    return parser.parse_args(argv)


def token(file: Path | None) -> bytes | None:
    """The token in a file. Raises ValueError for a short one."""
    if file is None:
        return None
    secret = file.read_bytes().strip()
    if len(secret) < TOKEN_CHARACTERS:
        raise ValueError(
            f"{file}: expected a token of at least {TOKEN_CHARACTERS} characters, got"
            f" {len(secret)}; python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    return secret


def keys(cameras: list[str] | None) -> dict[str, str]:
    """Camera -> key in openpi's messages, of NAME=KEY. Raises ValueError for anything else."""
    named = {}
    for text in cameras or ():
        camera, equals, key = text.partition("=")
        if not (camera and equals and key):
            raise ValueError(
                f"--camera: expected NAME=KEY, such as primary=observation/image, got {text!r}"
            )
        named[camera] = key
    return named


if __name__ == "__main__":
    main(sys.argv[1:])
