"""A server of the fake policy in the test's own event loop, and what speaks to it."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.robot.serving.fake_policy import CAMERAS, SIZE, Log
from vla_jax.robot.client import pack, unpack
from vla_jax.robot.serving.inference import Model
from vla_jax.robot.serving.server import Server
from vla_jax.robot.serving.sessions import Settings

MAX_BYTES = 1 << 16


def run(test: Callable[..., Any]) -> Callable[..., None]:
    """An async test, which must end within 20 s."""

    @functools.wraps(test)
    def wrapper(*args: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **fixtures), 20))

    return wrapper


@contextlib.asynccontextmanager
async def serving(
    log: Log, open_model: Callable[[], Model] | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """A warm server, unless `open_model` is given; stopped at the end."""
    server = Server(
        Settings(port=0, **{"dataset": "blocks", **settings}), MAX_BYTES, open_model or log.model
    )
    run = asyncio.ensure_future(server.run())
    while server.port is None or (open_model is None and server.state != "ok"):
        assert not run.done(), run.result()
        await asyncio.sleep(0)
    try:
        yield server
    finally:
        log.gate.set()
        server.stop()
        await run


class Robot:
    """A client that sends what it is told, and says what came back. `handshake` is the first
    message.
    """

    def __init__(self, connection: ClientConnection, handshake: dict[str, Any]) -> None:
        self.connection, self.handshake, self._time = connection, handshake, 0.0

    async def ask(self, message: Any) -> Any:
        """The answer to a message; a text frame as text."""
        await self.connection.send(message if isinstance(message, (bytes, str)) else pack(message))
        return await self.hear()

    async def hear(self) -> Any:
        data = await self.connection.recv()
        return data if isinstance(data, str) else unpack(data)

    def act(self, number: int = 0, shade: int = 0, **changes: Any) -> dict[str, Any]:
        """A good act message, changed."""
        self._time += 0.1
        body = {"type": "act", "id": number, "observed_at": self._time, "images": images(shade)}
        return {**body, **changes}

    async def begin(self, instruction: str = "push", **fields: Any) -> None:
        assert await self.ask({"type": "reset", "instruction": instruction, **fields}) == {
            "type": "ready",
            "id": None,
        }


@contextlib.asynccontextmanager
async def robot(server: Server, **options: Any) -> AsyncIterator[Robot]:
    """Connected; `options` are of websockets' connect."""
    scheme = "ws" if server.settings.tls is None else "wss"
    async with connect(
        f"{scheme}://127.0.0.1:{server.port}", compression=None, proxy=None, **options
    ) as connection:
        yield Robot(connection, unpack(await connection.recv()))


async def refused_with(server: Server) -> int:
    """The code with which the server closes a connection at once."""
    with pytest.raises(ConnectionClosed) as closed:
        async with robot(server):
            pass
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


async def closed_with(bot: Robot) -> int:
    """The code with which the server closes a connection next."""
    with pytest.raises(ConnectionClosed) as closed:
        await bot.hear()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


def images(shade: int = 0) -> dict[str, np.ndarray]:
    return {camera: np.full((SIZE, SIZE, 3), shade, np.uint8) for camera in CAMERAS}


def observation(shade: int = 0, **changes: Any) -> dict[str, Any]:
    """What openpi's client sends for LIBERO."""
    body = {
        "observation/image": images(shade)["primary"], "observation/wrist_image": images()["wrist"],
        "observation/state": np.zeros(7, np.float32), "prompt": "push",
    }  # fmt: skip
    return {**body, **changes}


async def page(server: Server, path: str, *headers: str) -> tuple[int, str]:
    """An HTTP GET: status and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    lines = "".join(f"{line}\r\n" for line in ("Host: robot", *headers))
    writer.write(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


def token(value: str, scheme: str = "Bearer") -> dict[str, Any]:
    """The option of `robot` that carries a token."""
    return {"additional_headers": {"Authorization": f"{scheme} {value}"}}
