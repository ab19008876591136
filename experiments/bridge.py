"""Serves a policy to vla-eval (`pip install vla-eval`, Apache-2.0) and its twenty benchmarks.

    python -m experiments.bridge --policy ARTEFACT --benchmark libero --port 8000

Benchmarks run in vla-eval's containers or, with `--no-docker`, in its own process; the policy runs
here. ADAPTERS says of each what its pictures and numbers are called and mean there.

| benchmark | cameras | state | Hz | turns | gripper | |
|---|---|---|---|---|---|---|
| libero | front, wrist | as our data | 20 | axis * angle / 0.5 | 1 closes, -1 opens | run by us |
| simpler_widowx | one | none | 5 | axis * angle | 1 open, -1 closed | not run by us |
| simpler_google | one | none | 3 | axis * angle | 1 open, 0 closed, sticky | not run by us |
| robotwin | head, two wrists | joints | ? | 14 joint positions | 1 open, 0 closed | not run by us |
| robocasa | left, wrist | none | 20 | axis * angle / 0.5 | 1 closes, -1 opens | not run by us |
| vlabench | one | none | ? | roll, pitch, yaw | 1 open, -1 closed | not run by us |

?: vla-eval names no rate; a policy is to have the rate of the benchmark's own data. A chunk is
carried out to its end (or --execute of its actions); an episode begins with its first picture, or
where the benchmark says `episode_restart`.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import vla_jax
from vla_jax import command
from vla_jax.robot import conventions

ARM = ("POSITION_DELTA", "ROTATION_AA", "GRIPPER_CLOSE_POS")  # of vla_eval.specs


class Adapter(NamedTuple):
    """A benchmark of vla-eval.

    Attributes:
        cameras: its name of each of ours.
        state: its name of the robot's state; "" where it is not what our data sets have.
        act: makes an action [d] of ours one of its, of an episode: it may remember.
        specs: what vla-eval calls that, to warn where both sides differ.
        params: what its environment is asked for.
        dataset: whose numbers these are.
    """

    cameras: Mapping[str, str]
    state: str
    act: Callable[[], Callable[[np.ndarray], np.ndarray]]
    specs: tuple[str, ...]
    params: Mapping[str, Any]
    dataset: str


def opened(action: np.ndarray) -> np.ndarray:
    """Turns as axis times angle, and 1 for an open gripper, 0 for a closed one."""
    return np.append(conventions.WidowX().act(action)[:-1], float(action[-1] > 0.5))


def signed(action: np.ndarray) -> np.ndarray:
    """As it is, and 1 for an open gripper, -1 for a closed one."""
    return np.append(action[:-1], 1.0 if action[-1] > 0.5 else -1.0)


ADAPTERS = {
    "libero": Adapter(
        {"primary": "agentview", "wrist": "wrist"},
        "states",
        lambda: conventions.Libero().act,
        ARM,
        # The turn as robosuite computes it, which our data have.
        {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True},
        "libero_object_no_noops",
    ),
    "simpler_widowx": Adapter(
        {"primary": "primary"},
        "",
        lambda: conventions.WidowX().act,
        ("POSITION_DELTA", "ROTATION_EULER", "GRIPPER_CLOSE_POS"),
        {},
        "bridge",
    ),
    "simpler_google": Adapter(
        {"primary": "primary"},
        "",
        lambda: opened,
        ("POSITION_DELTA", "ROTATION_EULER", "GRIPPER_CLOSE_POS"),
        {"gripper_mode": "sticky"},
        "fractal20220817_data",
    ),
    "robotwin": Adapter(
        {"primary": "head_camera", "left_wrist": "left_camera", "right_wrist": "right_camera"},
        "joint_state",
        lambda: np.asarray,
        (),
        {},
        "",
    ),
    "robocasa": Adapter(
        {"primary": "robot0_agentview_left", "wrist": "robot0_eye_in_hand"},
        "",
        lambda: conventions.Libero().act,
        ("POSITION_DELTA", "ROTATION_EULER", "GRIPPER_RAW"),
        {},
        "",
    ),
    "vlabench": Adapter(
        {"primary": "primary"},
        "",
        lambda: signed,
        ("POSITION_DELTA", "ROTATION_EULER", "GRIPPER_RAW"),
        {},
        "",
    ),
}


class Bridge:
    """A policy for many episodes of a benchmark at once, by session."""

    def __init__(self, policy: Any, adapter: Adapter, execute: int = 0) -> None:
        """`policy` as load_policy gives it. Raises ValueError for one with a camera that the
        benchmark has not.
        """
        missing = [name for name in policy.cameras if name not in adapter.cameras]
        if missing:
            raise ValueError(
                f"expected a policy of the cameras {', '.join(adapter.cameras)}, got one that wants"
                f" {', '.join(missing)} too; train one with --config.model.cameras"
            )
        self._policy, self._adapter, self._execute = policy, adapter, execute
        self._sessions: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {}

    def plan(self, observation: Mapping[str, Any], session: str, first: bool) -> np.ndarray:
        """The next actions [k d] as the benchmark takes them. Raises ValueError for an observation
        without what the policy looks at.
        """
        if first or observation.get("episode_restart") or session not in self._sessions:
            [own] = self._policy.sessions(1)
            own.reset(str(observation["task_description"]))
            self._sessions[session] = own, self._adapter.act()
        own, act = self._sessions[session]
        images = {}
        for name in own.cameras:
            theirs = self._adapter.cameras[name]
            if theirs not in observation["images"]:
                raise ValueError(
                    f"images: expected {theirs}, got {', '.join(observation['images'])}; ask the"
                    f" benchmark for it: {dict(self._adapter.params)}"
                )
            images[name] = np.asarray(observation["images"][theirs])
        state = observation.get(self._adapter.state) if self._adapter.state else None
        proprio = None if state is None else np.asarray(state, np.float32)
        chunk = own.act(images, proprio)[: self._execute or None]
        return np.stack([act(action) for action in chunk]).astype(np.float32)

    def end(self, session: str) -> None:
        """Forgets an episode."""
        self._sessions.pop(session, None)


def server(bridge: Bridge, adapter: Adapter) -> Any:
    """vla-eval's model server of a bridge. Raises ValueError where vla-eval is not installed."""
    try:
        from vla_eval import specs
        from vla_eval.model_servers.predict import PredictModelServer
    except ImportError as error:
        raise ValueError(f"vla-eval: {error}; pip install vla-eval") from error

    class Server(PredictModelServer):  # type: ignore[misc]  # it has no types here
        def predict(self, obs: Any, ctx: Any) -> dict[str, np.ndarray]:
            return {"actions": bridge.plan(obs, ctx.session_id, ctx.is_first)}

        async def on_episode_end(self, result: dict[str, Any], ctx: Any) -> None:
            await super().on_episode_end(result, ctx)
            bridge.end(ctx.session_id)

        def get_action_spec(self) -> dict[str, Any]:
            if not adapter.specs:
                return {"joints": specs.DimSpec("joints", 14, "joint_positions")}
            found = [getattr(specs, name) for name in adapter.specs]
            return {each.name: each for each in found}

        def get_observation_spec(self) -> dict[str, Any]:
            pictures = {adapter.cameras["primary"]: specs.IMAGE_RGB}
            return {**pictures, "language": specs.LANGUAGE}

        def get_observation_params(self) -> dict[str, Any]:
            return dict(adapter.params)

    # Longer than any chunk: what `plan` gives is carried out whole.
    return Server(chunk_size=10_000)


def main(argv: list[str]) -> None:
    """Command line; serves until it is ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", type=Path, required=True, help="an artefact or a run")
    parser.add_argument("--benchmark", choices=ADAPTERS, required=True)
    parser.add_argument("--dataset", help="whose robot this is; by default the benchmark's, or one")
    parser.add_argument("--execute", type=int, default=0, help="actions of a chunk; 0: all")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args(argv)
    adapter = ADAPTERS[args.benchmark]
    policy = vla_jax.load_policy(args.policy, dataset=args.dataset or adapter.dataset or None)
    serving = server(Bridge(policy, adapter, args.execute), adapter)
    from vla_eval.model_servers.serve import serve

    print(f"serving {args.policy} to {args.benchmark} on ws://{args.host}:{args.port}")
    serve(serving, host=args.host, port=args.port)


if __name__ == "__main__":
    command.run(main)
