"""Robots, clients and a server in simulated time, and what the motors got of it.

    python -m tests.robot.safety.simulated --steps 2000000

runs until so many commands of each space were judged by motor.violations and prints a table: of an
arm's deltas, a base's velocities, the joint positions of two arms. The server is a Session with a
clock of its own, the client is the one that robots copy, the policy is hostile.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.robot.safety.limits_of_tests import BASE, BIMANUAL, make_limits
from tests.robot.safety.motor import Motor, violations
from vla_jax.robot.client import ChunkBroker, Client, Report, ServerError, Waits, pack, unpack
from vla_jax.robot.events.trigger import Settings as Horizon
from vla_jax.robot.runtime import Runtime
from vla_jax.robot.safety.bounds import ARM, Dim, Limits
from vla_jax.robot.safety.filter import Reading, SafetyFilter
from vla_jax.robot.serving.inference import Inference, Model
from vla_jax.robot.serving.messages import Refusal, checked
from vla_jax.robot.serving.metrics import Metrics
from vla_jax.robot.serving.sessions import Session, Settings, Times

K, PICTURE = 8, np.zeros((2, 2, 3), np.uint8)
IMAGES = {"primary": PICTURE}
COMMANDS = 400  # of an episode
SPACES = {"arm": ARM, "base": BASE, "two arms": BIMANUAL}


class World:
    """One episode: the true time, the limits, the motors, a policy, a wire."""

    def __init__(self, seed: int, dims: tuple[Dim, ...] = ARM) -> None:
        self.random = rng = np.random.default_rng(seed)
        self.limits = some_limits(rng, dims)
        self.period = 1 / self.limits.control_rate
        self.now = 1000.0
        self.offset, self._calm = 0.0, 0  # of the robot's clock, which may jump
        low = np.maximum(self.limits.low, -0.5)
        high = np.minimum(self.limits.high, 0.5)
        pose = low + (high - low) * rng.uniform(0.05, 0.95, len(low))
        self.motor = Motor(self.limits, pose, [rng.random() for _ in self.limits.grippers])
        self.policy = Hostile(rng, self.limits, self.motor)
        # Half of the robots run at about the limits' rate.
        near = rng.random() < 0.5
        self.rate = (
            self.limits.control_rate * rng.uniform(0.7, 1.05)
            if near
            else float(np.exp(rng.uniform(0, math.log(200))))
        )
        self.jitter = rng.choice([0.0, 0.02, 0.3])
        self._poses = [(self.now, self.clock(), self.motor.pose)]

    def clock(self) -> float:
        """The robot's computer's."""
        return self.now + self.offset

    def wait(self, seconds: float) -> None:
        self.now += float(seconds)

    def tick(self) -> None:
        """A control period of this robot goes by; sometimes a pause, sometimes its clock jumps."""
        self.wait(max(1 / self.rate * (1 + self.jitter * self.random.normal()), 1e-4))
        if self.random.random() < 0.01:
            self.wait(self.random.uniform(0, 20 * self.period))
        self._calm += 1
        if self._calm > 20 and self.random.random() < 0.01:
            far = self.random.exponential(3 * self.period)
            # Smaller ones look like time, to whoever has no other clock.
            forward, back = far + 1.5 * self.period, far + 30 * self.period + 1
            self.offset += forward if self.random.random() < 0.5 else -back
            self._calm = 0
            self._poses.append((self.now, self.clock(), self.motor.pose))

    def move(self, action: np.ndarray) -> None:
        """A command reaches the motors."""
        self.motor.move(self.now, action)
        self._poses.append((self.now, self.clock(), self.motor.pose))

    def measured(self, oldest: float = 0.0) -> tuple[np.ndarray, float]:
        """A pose as sensors had it some time ago, and when that was on the robot's clock then."""
        at = max(self.now - self.random.uniform(0, 0.4), oldest)
        past = [each for each in self._poses[-100:] if each[0] <= at] or self._poses[-100:-99]
        then, clock, pose = (past or self._poses[:1])[-1]
        return pose, clock + (at - then if past else 0.0)

    def new_filter(self) -> SafetyFilter:
        """Beside these motors, and released by a person."""
        motor = self.motor
        safety = SafetyFilter(self.limits, motor.holding, self.clock, pose=motor.pose)
        safety.reset("test", motor.holding, motor.pose)
        return safety


class Hostile:
    """A policy: pushes, trembles, full turns, numbers that are none; the gripper opens and shuts.
    Stands for the policy and the inference of a server as well.
    """

    def __init__(self, rng: np.random.Generator, limits: Limits, motor: Motor) -> None:
        self.random, self.limits, self.motor = rng, limits, motor
        self._most = np.array(limits.velocity) / limits.control_rate
        names, binary = limits.names, [limits.names.index(name) for name in limits.grippers]
        arm = [i for i in range(len(names)) if i not in binary]
        self.action_spec = SimpleNamespace(names=names, arm=arm, binary=binary)
        self.camera_statistics = None
        self._push = rng.choice([-1.0, 0.0, 1.0], len(arm))

    def reset(self, *_: Any) -> None:
        self._push = self.random.choice([-1.0, 0.0, 1.0], len(self._most))

    def new_session(self) -> Hostile:
        return self

    def chunk(self) -> np.ndarray:
        rng, spec, n = self.random, self.action_spec, len(self._most)
        if rng.random() < 0.2:
            self.reset()
        kind = rng.integers(5)
        moves = np.zeros((K, n)) + self._push * rng.choice([0.2, 1.0, 3.0])
        if kind == 1:
            moves += rng.normal(size=(K, n))
        elif kind == 2:
            moves[::2] *= -1
        elif kind == 3:
            moves = rng.normal(size=(K, n)) * 0.2
        out = np.zeros((K, len(spec.names)))
        out[:, spec.arm] = self._numbers(moves * self._most)
        for i in spec.binary:
            out[:, i] = rng.random(K) if kind else rng.integers(2)
        if rng.random() < 0.01:
            wrong = rng.choice([math.nan, math.inf, 1e30])
            out[rng.integers(K), rng.integers(len(spec.names))] = wrong
        return out.astype(np.float32)

    def _numbers(self, moves: np.ndarray) -> np.ndarray:
        """What commands motions per step [K n]; of an angle that wraps as some number of it."""
        out, at = moves.copy(), np.cumsum(moves, 0) + self.motor.pose
        for i, dim in enumerate(self.limits.moving):
            if dim.command == "velocity":
                out[:, i] = moves[:, i] * self.limits.control_rate
            elif dim.command == "position":
                turn = 2 * math.pi * self.random.integers(-1, 2) if dim.wraps else 0.0
                out[:, i] = at[:, i] + turn
        return out

    def act(self, *_: Any) -> dict[str, Any]:
        """As Policy.act; for Runtime."""
        if self.random.random() < 0.001:
            raise RuntimeError("out of memory")
        return {"actions": self.chunk(), "confidence": {"steps": None}}


class Slow(Inference):
    """A server's, without a thread, which takes a while."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    async def act(self, policy: Hostile, *_: Any) -> dict[str, Any]:
        self._server.now += policy.random.exponential(0.03)
        return {"actions": policy.chunk(), "timing": {}}

    def forget(self, policy: Any) -> None:
        pass


class Server:
    """One session at a time, in a time that goes on while a robot's loop goes on too."""

    def __init__(self, world: World) -> None:
        self.world, self.now = world, world.now
        settings = Settings(limits=world.limits, operator_token=b"o" * 16)
        about = {"cameras": ["primary"], "image": {"size": 2}, "chunk": K}
        model = Model(world.policy, lambda *_: [], about)

        async def sleep(seconds: float) -> None:
            self.now += seconds * self.world.random.uniform(0.5, 1.5)

        self.session = Session(
            "s", model, Slow(self), settings, Metrics(), Times(lambda: self.now, sleep)
        )

    def ask(self, message: dict[str, Any]) -> tuple[Any, float]:
        """The answer, and when it is back; a frame of text is an error."""
        rng = self.world.random
        self.now = max(self.now, self.world.now + rng.exponential(0.005))
        if message.get("type") in ("stop", "safety_reset"):
            reply: Any = self.command(message)
        else:
            data = finished(self.session.answer(message, self.now))
            reply = data if isinstance(data, str) else unpack(data)
        return reply, self.now + rng.exponential(0.005)

    def command(self, message: dict[str, Any]) -> dict[str, Any]:
        """As Server._command, without the operator's token."""
        try:
            fields = checked(message)
            if message["type"] == "stop":
                self.session.stop(fields["why"])
            else:
                self.session.safety_reset(fields["by"], fields["gripper"], fields["pose"])
        except Refusal as error:
            return {"type": "error", "id": message.get("id"), "code": error.code, "message": "no"}
        return {"type": "safety", "id": message.get("id"), "session": "s", "latched": None}

    def release(self) -> None:
        """An operator has looked at the robot."""
        motor = self.world.motor
        if self.session.latched is not None:
            self.session.safety_reset("test", motor.holding, motor.pose)


def finished(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine that never waits returns."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


class Robot(Client):
    """The client that robots copy, over a wire without sockets that loses replies."""

    def __init__(self, world: World, safety: SafetyFilter | None, blocking: bool = True) -> None:
        self.world, self.blocking, self.arrival = world, blocking, 0.0
        waits = Waits(clock=world.clock, sleep=world.wait, reply=50.0, total=50.0)
        self._inbox: list[Any] = []
        super().__init__("ws://robot", waits=waits, filter=safety)

    def _open(self) -> None:
        self.server = Server(self.world)
        limits = self.world.limits
        self._check(
            {
                "server": "vla_jax", "protocol": 2, "artefact": "a", "cameras": ["primary"],
                "image": {"size": 2}, "chunk": K, "datasets": {"d": {"action": list(limits.names)}},
                "session": "s", "limits": limits.digest, "control_hz": limits.control_rate,
            }
        )  # fmt: skip
        self.server.release()
        if self._episode is not None:
            self._exchange(self, self._episode, "ready")
        self._connection = self

    def send(self, data: bytes) -> None:
        """As of a websocket."""
        reply, self.arrival = self.server.ask(unpack(data))
        self._inbox = [reply]

    def recv(self, timeout: float) -> Any:
        """As of a websocket; sometimes the reply is lost."""
        lost = self.world.random.random() < 0.01
        if self.blocking:
            self.world.now = max(self.world.now, self.arrival) + (0.5 if lost else 0.0)
        if lost:
            raise TimeoutError("lost")
        return pack(self._inbox.pop())

    def _drop(self) -> None:
        self._connection = None


def openpi(world: World) -> None:
    """openpi's client and its loop: so many actions of each answer at the robot's own rate."""
    horizon, server = int(world.random.integers(1, K + 1)), Server(world)
    looking, asked = world.random.random() < 0.5, world.now
    server.release()
    while len(world.motor.commands) < COMMANDS:
        rng = world.random
        message = {"observation/image": PICTURE, "observation/state": None, "prompt": "push"}
        if looking:  # since it asked last
            message["safety/pose"] = world.measured(asked)[0]
            message["safety/gripper"] = world.motor.holding
        asked = world.now
        reply, world.now = server.ask(message)
        if rng.random() < 0.01:  # the program is started again
            server = Server(world)
            server.release()
            continue
        if isinstance(reply, dict) and rng.random() > 0.02:  # else it was lost, or not wanted
            for row in reply["actions"][:horizon]:
                world.move(row)
                world.tick()
        else:
            world.tick()
        if rng.random() < 0.01:
            server.release()


def raw(world: World) -> None:
    """Messages of any kind in any order, with any times and reports; what is carried out of the
    answers, and how fast, is chance.
    """
    server, number = Server(world), 0
    server.release()
    for _ in range(20 * COMMANDS):
        if len(world.motor.commands) >= COMMANDS:
            return
        rng, number = world.random, number + 1
        kind = rng.random()
        if kind < 0.05:
            message: dict[str, Any] = {"type": "reset", "id": number, "instruction": "push"}
        elif kind < 0.06:
            message = {"type": "stop", "id": number, "why": "chance"}
        elif kind < 0.1:
            server.release()
            continue
        else:
            seen = float(world.now * rng.choice([1.0, 1.0, 1.0, 0.5, 1e300, math.nan]))
            message = {"type": "act", "id": number, "observed_at": seen, "images": IMAGES}
            message["age"] = float(rng.choice([0.0, 0.0, 0.1, 9.0, -1.0, math.nan]))
            if rng.random() < 0.1:
                message |= {"chunk": int(rng.integers(9)), "row": int(rng.integers(9))}
        reply, world.now = server.ask(message)
        if isinstance(reply, dict) and reply["type"] == "actions":
            for row in reply["actions"]:
                if rng.random() < 0.7:
                    world.move(row)
                world.wait(rng.exponential(1 / world.rate))
        else:
            world.tick()


def client(world: World) -> None:
    """Our client without a filter: as openpi's, with reports that are true."""
    horizon = int(world.random.integers(1, K + 1))
    robot, report, asked = Robot(world, None), Report(), world.now
    robot.reset("push")
    while len(world.motor.commands) < COMMANDS:
        seen = world.clock()
        pose = world.measured(asked)[0] if world.random.random() < 0.7 else None
        report = report._replace(pose=pose, gripper=world.motor.holding)
        asked = world.now
        try:
            reply = robot.act(IMAGES, None, seen, report)
        except (ServerError, ConnectionError):
            robot.server.release()
            robot.reset("push")
            world.tick()
            continue
        for i, row in enumerate(reply["actions"][:horizon]):
            world.move(row)
            world.tick()
            report = Report(chunk=reply["chunk"], row=i)


def client_filter(world: World) -> None:
    """Our client with a filter beside the motors."""
    horizon = int(world.random.integers(1, K + 1))
    safety = world.new_filter()
    robot = Robot(world, safety)
    robot.reset("push")
    while len(world.motor.commands) < COMMANDS:
        try:
            robot.act(IMAGES, None, world.clock())
        except (ServerError, ConnectionError):
            robot.server.release()
            robot.reset("push")
            world.tick()
            continue
        for i in range(horizon):
            pose, at = world.measured()
            seen = world.random.random() < 0.5
            world.move(robot.command(i, pose if seen else None, None, at if seen else None))
            world.tick()
        released(world, safety)


class Broker(ChunkBroker):
    """Without its thread: the loop below does what it would."""

    def _run(self) -> None:
        pass


def broker(world: World) -> None:
    """ChunkBroker at the limits' rate, on a server that takes longer than a period."""
    safety = world.new_filter()
    robot = Robot(world, safety, blocking=False)
    world.rate = world.limits.control_rate * world.random.uniform(0.75, 1.0)
    blend = str(world.random.choice(["freeze", "ensemble", "newest"]))
    loop = Broker(robot, 1 / world.rate, blend=blend)
    loop.reset("push")
    pending: list[tuple[float, Any]] = []
    while len(world.motor.commands) < COMMANDS:
        world.tick()
        try:
            pose, at = world.measured()
            if at >= loop._told:
                loop.observe(IMAGES, None, at, Report(pose=pose))
            asked(world, loop, robot, pending)
            step = loop.next()
            if step.action is not None:
                world.move(step.action)
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # a lost reply, a clock that went back, too late
            loop._now = -math.inf
            loop.reset("push")
            pending.clear()
        released(world, safety)
        if world.random.random() < 0.01:
            robot.server.release()


def asked(world: World, loop: Broker, robot: Robot, pending: list[tuple[float, Any]]) -> None:
    """What the broker's thread does, with a reply that arrives when it arrives."""
    if pending and pending[0][0] <= world.now:
        reply = pending.pop()[1]
        if isinstance(reply, Exception):
            loop._failed(reply, loop._episode)
        else:
            loop._answered(reply, loop._episode)
    if pending or not loop._due():
        return
    if loop._begin is not None:
        robot.reset(*loop._begin)
        loop._begin = None
        return
    request = loop._request(loop._episode)
    if request is None:
        return
    at, images, proprio, report, _ = request
    try:
        reply = robot.act(images, proprio, at, report, resend=False)
    except Exception as error:
        reply = error
    pending.append((robot.arrival + world.random.exponential(0.5 * world.period), reply))


def runtime(world: World) -> None:
    """Policy, trigger and filter in one call."""
    safety = world.new_filter()
    robot = Runtime(world.policy, safety, Horizon(horizon=int(world.random.integers(1, K + 1))))
    robot.reset("push")
    while len(world.motor.commands) < COMMANDS:
        pose, at = world.measured()
        reading = Reading(at, pose if world.random.random() < 0.5 else None)
        world.wait(world.random.exponential(0.1 * world.period))
        world.move(robot.step(IMAGES, reading).action)
        world.tick()
        released(world, safety)


def released(world: World, safety: SafetyFilter) -> None:
    """Buttons are pressed, and persons let the robot move again, at any time."""
    chance, motor = world.random.random(), world.motor
    if chance < 0.005:
        safety.emergency_stop("chance")
    elif chance < 0.01 or (chance < 0.2 and safety.latched is not None):
        safety.reset("chance", motor.holding, motor.pose)


# With each one's part of the steps.
CLIENTS: dict[str, tuple[Callable[[World], None], float]] = {
    "openpi": (openpi, 0.25),
    "raw messages": (raw, 0.15),
    "Client": (client, 0.2),
    "Client, filter": (client_filter, 0.15),
    "ChunkBroker, filter": (broker, 0.1),
    "Runtime": (runtime, 0.15),
}


@dataclasses.dataclass
class Row:
    """Of one client: episodes, commands at its motors, those that moved, limits broken."""

    episodes: int = 0
    commands: int = 0
    moved: int = 0
    broken: Counter[str] = dataclasses.field(default_factory=Counter)


def run(
    steps: int, dims: tuple[Dim, ...] = ARM, seed: int = 0, progress: bool = False
) -> dict[str, Row]:
    """Until every client has its part of `steps` commands."""
    rows = {name: Row() for name in CLIENTS}
    begun = time.monotonic()
    for place, (name, (episode, part)) in enumerate(CLIENTS.items()):
        row = rows[name]
        while row.commands < steps * part:
            world = World(seed + 1_000_000 * place + row.episodes, dims)
            episode(world)
            row.episodes += 1
            row.commands += len(world.motor.commands)
            row.moved += world.motor.moved
            row.broken += violations(world.limits, world.motor)
            if progress and row.episodes % 10 == 0:
                print(f"{name}: {row} {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return rows


def table(spaces: dict[str, dict[str, Row]]) -> str:
    """For people."""
    heads = "space", "client", "episodes", "commands", "that moved", "violations"
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for space, name, row in (
        (space, *each) for space, rows in spaces.items() for each in rows.items()
    ):
        broken = ", ".join(f"{cause} {n}" for cause, n in sorted(row.broken.items())) or "0"
        lines.append(
            f"| {space} | {name} | {row.episodes} | {row.commands} | {row.moved} | {broken} |"
        )
    return "\n".join(lines)


def some_limits(rng: np.random.Generator, dims: tuple[Dim, ...]) -> Limits:
    """Tight, loose and absent limits at any rate; a stop from full speed takes a few steps."""
    rate = float(rng.choice([5.0, 10.0, 20.0, 50.0]))
    moving = [dim for dim in dims if dim.command != "gripper"]
    n = len(moving)
    velocity = rng.choice([0.05, 0.15, 0.5], n)
    acceleration = velocity * rate * rng.choice([0.4, 0.7, 2.0, math.inf], n)
    jerk = (
        np.minimum(acceleration, 2 * velocity * rate) * rate * rng.choice([0.7, 2.0, math.inf], n)
    )
    high = rng.choice([0.1, 0.3, math.inf], n)
    high[[dim.command == "velocity" for dim in moving]] = math.inf
    return make_limits(
        control_rate=rate,
        velocity=tuple(velocity.tolist()),
        acceleration=tuple(acceleration.tolist()),
        jerk=tuple(jerk.tolist()),
        low=tuple((-high).tolist()),
        high=tuple(high.tolist()),
        gripper_rate=tuple(float(rng.choice([0.5, 2.0, math.inf])) for _ in range(len(dims) - n)),
        gripper_at_stop=str(rng.choice(["hold", "open", "close"])),
        jitter=float(rng.choice([0.1, 0.5, 0.8])),
        clean_steps=int(rng.choice([0, 0, 3])),
        max_age=float(rng.choice([0.5, 2.0])),
        dims=dims,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200_000, help="of each space")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--space", choices=SPACES, help="one alone")
    options = parser.parse_args()
    logging.getLogger("vla_jax.serve").setLevel(logging.CRITICAL)  # each stop is a line
    found = {
        name: run(options.steps, dims, options.seed, progress=True)
        for name, dims in SPACES.items()
        if options.space in (None, name)
    }
    print(table(found))
    # Where little moved, nothing was tried.
    rows = [row for each in found.values() for row in each.values()]
    sys.exit(any(row.broken or row.moved <= row.commands / 40 for row in rows))
