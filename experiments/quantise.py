"""What 8 bits cost a policy and what they save, on held-out frames: look at this before a robot
runs them.

    python -m experiments.quantise --artefact DIR --data ROOT --dataset NAME [--episodes N]
    [--device cuda --compile]

Every row is the same artefact loaded another way: `policy_torch.load(DIR, dtype=...,
quantise=...)`; vla_jax/robot/torch_policy/quantise.py says what is quantised and what is not. All
see the same frames, with the recorded action as the one carried out. Printed of the action that
would be executed: megabytes of all weights; p50 milliseconds per frame on this machine; the arm's
error as experiments.replay has it (Huber, network units) and the gripper's accuracy, against the
demonstration; how many grippers flip against float32; and the difference to float32 in robot units.
"""

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from experiments.composition.executed import arm, arm_error
from experiments.replaying.figures import gripper_accuracy
from experiments.replaying.recorded import Episode, command_line, open_recording, where
from experiments.replaying.rollout import plans
from vla_jax import command
from vla_jax.actions import ActionSpec
from vla_jax.progress import Progress
from vla_jax.robot.torch_policy import Policy, load
from vla_jax.robot.torch_policy.quantise import KINDS


class Measured(NamedTuple):
    """A way to load the policy, and what came of it over n frames: actions [n d] in robot units,
    milliseconds [n].
    """

    name: str
    bytes: int
    milliseconds: np.ndarray
    actions: np.ndarray


def main(argv: list[str]) -> None:
    """Prints the tables."""
    parser = command_line(__doc__)
    parser.add_argument("--dtype", default="bfloat16", help="what the quantised rows compute in")
    parser.add_argument(
        "--compile", action="store_true", help="with torch.compile: slow to begin with"
    )
    args = parser.parse_args(argv)
    recording = open_recording(args.artefact, where(args))
    episodes = [recording.episode(number) for number in recording.episodes(args.episodes)]
    measured: list[Measured] = []
    tried = [("float32", None), ("bfloat16", None), *((args.dtype, kind) for kind in KINDS)]
    for dtype, kind in tried:
        try:
            policy = load(
                args.artefact, args.device, dtype, args.compile, kind, args.require_signature
            )
        except ValueError as refused:
            # One way to load it may not exist on this device; the others still tell.
            if kind is None:
                raise
            print(f"{dtype} {kind}: cannot be loaded so, and has no row: {refused}", flush=True)
            continue
        measured.append(run(f"{dtype} {kind or ''}".strip(), policy, episodes, args.dataset))
        print(f"{measured[-1].name}: {len(measured[-1].actions)} frames", flush=True)
    demonstrated, state = (
        np.concatenate([getattr(episode, name) for episode in episodes])
        for name in ("actions", "state")
    )
    print("\n" + table(measured, demonstrated, state, recording.spec))


def run(name: str, policy: Policy, episodes: list[Episode], dataset: str) -> Measured:
    """The policy on every frame of the episodes, one at a time, as it would run."""
    longest = max(len(episode.frames) for episode in episodes)
    # What is set up at first is not a frame's time.
    plans(policy, episodes[0], dataset, 1, longest)
    out: list[dict[str, Any]] = []
    with Progress(name, sum(len(episode.frames) for episode in episodes), "frames") as progress:
        for episode in episodes:
            out += plans(policy, episode, dataset, 1, longest, progress.add)
    times = np.array([each["timing"]["total"] for each in out])
    return Measured(name, stored(policy), times, np.stack([each["actions"][0] for each in out]))


def table(
    measured: list[Measured], demonstrated: np.ndarray, state: np.ndarray, spec: ActionSpec
) -> str:
    """Both tables. The first of `measured` is what the others are compared with; demonstrated
    [n d] and the states [n p] are in robot units.
    """
    dims, binary, reference = arm(spec), list(spec.binary), measured[0].actions
    lines = [f"{'':22s} {'MB':>8s} {'ms p50':>7s} {'arm error':>9s} {'gripper':>8s} {'flips':>6s}"]
    for row in measured:
        accuracy = gripper_accuracy(spec, row.actions, demonstrated)
        lines.append(
            f"{row.name:22s} {row.bytes / 1e6:8.2f} {np.median(row.milliseconds):7.2f} "
            f"{arm_error(spec, row.actions, demonstrated, state).mean():9.5f} "
            f"{'-' if accuracy is None else format(accuracy, '.4f'):>8s} "
            f"{int((row.actions != reference)[:, binary].sum()):6d}"
        )
    lines += ["", f"difference to {measured[0].name}, robot units: mean, largest"]
    lines.append(f"{'':22s} " + " ".join(f"{spec.names[i]:>19s}" for i in dims))
    for row in measured[1:]:
        difference = np.abs(row.actions - reference)[:, dims]
        pairs = zip(difference.mean(0), difference.max(0), strict=True)
        lines.append(
            f"{row.name:22s} " + " ".join(f"{mean:9.2e} {most:9.2e}" for mean, most in pairs)
        )
    return "\n".join(lines)


def stored(policy: Policy) -> int:
    """Bytes of all weights as they are held."""
    return sum(_bytes(x) for x in policy.network.parameters())


def _bytes(x: Tensor) -> int:
    """A quantised tensor is made of others: the small numbers and their scales."""
    if hasattr(x, "__tensor_flatten__"):
        return sum(_bytes(getattr(x, name)) for name in x.__tensor_flatten__()[0])
    return x.nbytes


if __name__ == "__main__":
    command.run(main)
