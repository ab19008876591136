"""A small server that speaks the wire on loopback, and misbehaves as a test wants."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from vla_jax.robot.client import Waits, pack, unpack

K = 4
IMAGES = {"primary": np.zeros((2, 2, 3), np.uint8)}
HANDSHAKE = {
    "server": "vla_jax", "protocol": 2, "artefact": "a" * 64, "cameras": ["primary"],
    "image": {"size": 2}, "chunk": K,
    "control_hz": 10.0, "datasets": {"blocks": {"action": ["x", "gripper"], "state": None}},
    "limits": "c",
}  # fmt: skip
QUICK = Waits(open=2.0, reply=2.0, total=2.0, first=0.001, longest=0.01)


class Server:
    """Speaks the wire. `script` holds what to do with the next requests of type act, and is then
    used up.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None, **handshake: Any) -> None:
        self.handshake = {**HANDSHAKE, **handshake}
        self.received: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self.script: list[Callable[[ServerConnection, dict[str, Any]], None]] = []
        self._server = serve(self._session, "127.0.0.1", port, ssl=tls, compression=None)
        self.port = self._server.socket.getsockname()[1]
        self._connections: list[ServerConnection] = []
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def types(self) -> list[str]:
        return [message["type"] for message in self.received]

    def close(self) -> None:
        self._server.shutdown()
        for connection in self._connections:
            connection.socket.close()
        self._thread.join(10)

    def _session(self, connection: ServerConnection) -> None:
        self._connections.append(connection)
        with contextlib.suppress(ConnectionClosed):
            self._talk(connection)

    def _talk(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.headers.append(connection.request.headers.get("Authorization"))
        connection.send(pack({**self.handshake, "session": str(len(self._connections))}))
        for data in connection:
            message = unpack(data)
            self.received.append(message)
            if message["type"] == "reset":
                connection.send(pack({"type": "ready", "id": message["id"]}))
            elif message["type"] in ("stop", "safety_reset"):
                latched = "emergency" if message["type"] == "stop" else None
                connection.send(
                    pack(
                        {
                            "type": "safety",
                            "id": message["id"],
                            "session": message.get("session", "1"),
                            "latched": latched,
                        }
                    )
                )
            elif self.script:
                self.script.pop(0)(connection, message)
            else:
                connection.send(reply(message))


def reply(message: dict[str, Any], **other: Any) -> bytes:
    actions = np.full((K, 2), message["id"], np.float32)
    return pack(
        {
            "type": "actions",
            "id": message["id"],
            "observed_at": message["observed_at"],
            "actions": actions,
            **other,
        }
    )


def refuse(code: str, number: bool = True) -> Callable[[ServerConnection, dict[str, Any]], None]:
    def act(connection: ServerConnection, message: dict[str, Any]) -> None:
        answered = message["id"] if number else None
        connection.send(pack({"type": "error", "id": answered, "code": code, "message": "because"}))

    return act


def vanish(connection: ServerConnection, message: dict[str, Any]) -> None:
    connection.socket.shutdown(socket.SHUT_RDWR)  # no goodbye: as a cable that is pulled


def silent(connection: ServerConnection, message: dict[str, Any]) -> None:
    """No answer."""
