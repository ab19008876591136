"""Who acts in several worlds at once: a policy that is opened here, or one behind a server."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import vla_jax
from experiments.rolling.episodes import Query
from experiments.rolling.worlds import About
from vla_jax.robot.client import Client, Report, ServerError
from vla_jax.training import checkpoint
from vla_jax.types import Seen


class Actors(Protocol):
    """Acts in worlds that have numbers."""

    def act(self, asked: Mapping[int, Query]) -> dict[int, np.ndarray]:
        """A chunk [k d] for each of the worlds that ask."""
        ...


def of_cameras(seen: Seen, cameras: Iterable[str]) -> Seen:
    """What a policy of these cameras is shown of a world that may have more. Raises ValueError for
    one that it has not.
    """
    missing = [name for name in cameras if name not in seen.images]
    if missing:
        raise ValueError(
            f"expected a world with the policy's cameras, got one without {', '.join(missing)}; it"
            f" has {', '.join(seen.images)}"
        )
    return seen._replace(images={name: seen.images[name] for name in cameras})


def whose(datasets: Sequence[str], known: Iterable[str], where: str) -> str:
    """The first of a world's data sets that the policy in `where` knows. Raises ValueError for one
    that knows none.
    """
    names = list(known)
    found = [name for name in datasets if name in names]
    if not found:
        wanted = " or ".join(datasets)
        raise ValueError(f"{where}: expected a policy for {wanted}, got one for {', '.join(names)}")
    return found[0]


def check_renderer(folder: str, step: int | None, about: About) -> None:
    """Raises ValueError where the policy in a folder learnt from pictures of another renderer than
    the world's: they differ enough to fail by. What the data do not say is not compared.
    """
    at = Path(folder).expanduser()
    if (at / "model.safetensors").is_file():
        told = json.loads((at / "config.json").read_text())["origin"].get("simulators", {})
    else:
        directory = checkpoint.within(at)
        datasets = checkpoint.load_meta(directory, step)["datasets"]
        told = {name: body.get("simulator", {}) for name, body in datasets.items()}
    here = about.facts.get("renderer", "").partition(":")[0]  # behind it stands the device
    for name in about.datasets:
        there = told.get(name, {}).get("renderer", "").partition(":")[0]
        if here and there and here != there:
            raise ValueError(
                f"{folder}: expected a world drawn with {there}, as the pictures of {name} were"
                f" that it learnt from, got {here}; choose {there} (--doctor says how), or"
                f" train on data drawn with {here}"
            )


class Opened:
    """The policy in a folder, all worlds in one pass."""

    def __init__(
        self, folder: str, datasets: Sequence[str], worlds: int, step: int | None = None
    ) -> None:
        """Raises ValueError for a folder without a policy, of that step if one is given, or without
        one for this robot.
        """
        policy: Any = vla_jax.load_policy(folder, dataset=datasets, step=step)
        self._sessions = policy.sessions(worlds)

    def act(self, asked: Mapping[int, Query]) -> dict[int, np.ndarray]:
        """See Actors."""
        for world, query in asked.items():
            if query.instruction is not None:
                self._sessions[world].reset(query.instruction)
        sessions = [self._sessions[world] for world in asked]
        cameras = sessions[0].cameras
        seen = [of_cameras(query.seen, cameras) for query in asked.values()]
        chunks = sessions[0].act_together(sessions, seen)
        return dict(zip(asked, chunks, strict=True))


class Served:
    """The policy behind a server, a session for each world; the server puts together what comes at
    one time.
    """

    def __init__(
        self, url: str, token_file: Path | None, datasets: Sequence[str], worlds: int
    ) -> None:
        """Raises ValueError for a server that keeps limits, or that knows no such robot."""
        token = None if token_file is None else token_file.read_text(encoding="utf-8").strip()
        self._clients = [Client(url, token) for _ in range(worlds)]
        self.handshake = self._clients[0].handshake
        if self.handshake["limits"]:
            raise ValueError(
                f"{url}: expected a server without limits, which gives whole chunks; it has the"
                f" limits {self.handshake['limits']}. A world breaks nothing: start one without"
                " --limits"
            )
        self._dataset = whose(datasets, self.handshake["datasets"], url)
        self._threads = ThreadPoolExecutor(worlds)

    def act(self, asked: Mapping[int, Query]) -> dict[int, np.ndarray]:
        """See Actors. Raises ValueError where the server refuses."""

        def one(world: int, query: Query) -> np.ndarray:
            client = self._clients[world]
            seen = of_cameras(query.seen, self.handshake["cameras"])
            if query.instruction is not None:
                client.reset(query.instruction, self._dataset)
            plan, delay = seen.underway or (None, None)
            report = Report(executed=seen.executed, plan=plan, delay=delay)
            actions: np.ndarray = client.act(seen.images, seen.proprio, report=report)["actions"]
            if client.reconnects:
                raise ConnectionError(
                    f"{client.url}: expected one connection, got another within an episode, whose"
                    f" frames the policy forgot: {client.trouble}; the same command goes on"
                )
            return actions

        try:
            return dict(zip(asked, self._threads.map(one, asked, asked.values()), strict=True))
        except ServerError as error:
            raise ValueError(f"{self._clients[0].url}: {error}") from error
