"""Serves an artefact to robots over websockets.

    python -m experiments.serve --artefact artefacts/NAME --device cuda --dtype bfloat16
    python -m experiments.serve --artefact DIR --host 0.0.0.0 --token_file token --tls_cert cert.pem
        --tls_key key.pem
    python -m experiments.serve --artefact DIR --limits limits.yaml --operator_token_file operator
    python -m experiments.serve --artefact DIR --require_signature minisign.pub

To get a robot to move behind limits:

    # A token of people's, not of the robot's.
    python -c 'import secrets; print(secrets.token_urlsafe())' > operator
    python -m experiments.serve --artefact DIR --limits limits.yaml --operator_token_file operator
    # the robot connects; its session is in the log here and in its client's handshake. Look at it:
    python -m vla_jax.robot.operator_cli --url ws://127.0.0.1:8000 --operator_token_file operator
        --reset_safety --session SESSION --by Ada --gripper 1 --pose 0.4 0 0.2 0 0 0

A client with a SafetyFilter of the same limits.yaml beside its motors gets whole chunks at full
speed; one without gets one small step per period (vla_jax/robot/serving/server.py says why).

Robots connect with vla_jax/robot/client.py, or as they are with openpi's client
(vla_jax/robot/serving/messages.py says which messages); of robots with other keys, such as DROID's:

    ... --camera primary=observation/exterior_image_1_left
        --camera wrist=observation/wrist_image_left
        --state observation/joint_position,observation/gripper_position

It refuses to start on a machine that does
not reproduce the artefact's golden file. Without TLS a token crosses the network as it is. On a CPU
torch's threads sleep while they wait for each other (vla_jax/robot/torch_policy/waiting.py), unless
OMP_WAIT_POLICY says otherwise. Needs torch, numpy, safetensors, msgpack and
websockets (pyyaml for --limits), nothing of JAX, TensorFlow or transformers.
"""

import argparse
import asyncio
import logging
import os
import signal
import ssl
from pathlib import Path

from vla_jax import command
from vla_jax.robot.safety import limits
from vla_jax.robot.serving.inference import Model, message_bytes, open_model
from vla_jax.robot.serving.messages import Names
from vla_jax.robot.serving.server import Server
from vla_jax.robot.serving.sessions import Settings

TOKEN_CHARACTERS = 16


def main(argv: list[str]) -> None:
    """Serves until SIGTERM or SIGINT."""
    args = parse(argv)
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ValueError("--tls_cert, --tls_key: expected both or none")
    if args.device.startswith("cuda"):
        check_cuda(args.device)
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
        names=Names(cameras(args.camera), tuple(args.state.split(",")), args.prompt),
        dataset=args.dataset,
        sessions=args.max_sessions,
        idle=args.idle_timeout,
    )
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)

    def load_model() -> Model:
        check = args.require_signature
        return open_model(
            args.artefact, args.device, args.dtype, args.compile, args.max_sessions, check
        )

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
    parser.add_argument(
        "--require_signature",
        default=None,
        metavar="KEY",
        help="minisign.pub, or the key in it, by whose owner SHA256SUMS must be signed",
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
        help="where openpi's messages have it: a key, or a/b for b in a map under a",
    )
    parser.add_argument(
        "--state",
        default="observation/state",
        metavar="KEY,KEY",
        help="where they have the state: keys whose numbers follow each other",
    )
    parser.add_argument("--prompt", default="prompt", help="where they have the instruction")
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


def check_cuda(device: str) -> None:
    """Raises ValueError where torch has no such GPU, before anything is loaded."""
    import torch  # here: --help needs none

    if not torch.cuda.is_available():
        raise ValueError(
            f"--device {device}: expected a GPU that torch can use, got none (torch"
            f" {torch.__version__}); serve with --device cpu, or install torch with CUDA"
        )


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


def cameras(given: list[str] | None) -> dict[str, str]:
    """Camera -> key in openpi's messages, of NAME=KEY. Raises ValueError for anything else."""
    named = {}
    for text in given or ():
        camera, equals, key = text.partition("=")
        if not (camera and equals and key):
            raise ValueError(
                f"--camera: expected NAME=KEY, such as primary=observation/image, got {text!r}"
            )
        named[camera] = key
    return named


if __name__ == "__main__":
    command.run(main)
