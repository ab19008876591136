"""What 8 bits cost a policy and what they save, on held-out frames: look at this before a robot runs them.

    python -m experiments.quantise --artefact DIR --data ROOT --dataset NAME [--split val] [--episodes 8] [--device cpu]

Every row is the same artefact loaded another way: `policy_torch.load(DIR, dtype=..., quantise=...)`, whose
vla_jax/robot/torch_policy/quantise.py says what is quantised and what is not. All rows see the same frames with the
same history. Printed: megabytes of all weights; p50 milliseconds per new frame on this machine, eager; the mean
absolute error against the demonstration in normalised units and the gripper's accuracy, of the action that would be
executed; how many grippers flip against float32; and the difference to float32 in robot units, dim by dim.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from experiments.recorded import Episode, Where, open_recording
from vla_jax.actions import ActionSpec
from vla_jax.robot.torch_policy import Policy, load

ROWS: tuple[tuple[str, str | None], ...] = (
    ("float32", None), ("bfloat16", None), ("bfloat16", "int8"), ("bfloat16", "int8_dynamic"), ("bfloat16", "float8"),
)  # fmt: skip


class Found(NamedTuple):
    """A way to load the policy, and what came of it: actions [f d] in robot units, milliseconds [f]."""

    name: str
    bytes: int
    milliseconds: np.ndarray
    actions: np.ndarray


def main(argv: list[str]) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--artefact", type=Path, required=True, help="a folder that experiments.export wrote")
    parser.add_argument("--data", required=True, help="the folder or URL that holds the datasets")
    parser.add_argument("--dataset", required=True, help="its name")
    parser.add_argument("--datasets", default="", help="your own Python file that describes datasets")
    parser.add_argument("--split", default=None, help="the held-out one by default")
    parser.add_argument("--episodes", type=int, default=8, help="how many")
    parser.add_argument("--device", default="cpu", help="of torch")
    args = parser.parse_args(argv)
    recording = open_recording(args.artefact, Where(args.data, args.dataset, args.split, args.datasets))
    episodes = [recording.episode(number) for number in recording.episodes(args.episodes)]
    found = []
    for dtype, kind in ROWS:
        policy = load(args.artefact, args.device, dtype, quantise=kind)
        found.append(run(" ".join(filter(None, (dtype, kind))), policy, episodes, args.dataset))
        print(f"{found[-1].name}: {len(found[-1].actions)} frames", flush=True)
    print(table(found, np.concatenate([episode.actions for episode in episodes]), recording.spec))


def run(name: str, policy: Policy, episodes: list[Episode], dataset: str) -> Found:
    """The policy on every frame of the episodes, as it would run."""
    policy.reset("", dataset)
    _act(policy, episodes[0], 0)  # what the first call sets up is not a frame's time
    actions, times = [], []
    for episode in episodes:
        policy.reset(episode.instruction, dataset)
        for t in range(len(episode.frames)):
            out = _act(policy, episode, t)
            actions.append(out["actions"][0])
            times.append(out["timing"]["total"])
    return Found(name, stored(policy), np.array(times), np.array(actions))


def table(found: list[Found], demonstrated: np.ndarray, spec: ActionSpec) -> str:
    """Both tables. The first of `found` is what the others are compared with; demonstrated [f d] is in robot units."""
    arm = [i for i in range(len(spec.names)) if i not in spec.binary]
    wanted, reference = spec.normalise(demonstrated), found[0].actions
    lines = [f"{'':22s} {'MB':>8s} {'ms p50':>7s} {'arm error':>9s} {'gripper':>8s} {'flips':>6s}"]
    for row in found:
        error = np.abs(spec.normalise(row.actions) - wanted)[:, arm].mean()
        right, flips = (
            (row.actions == other)[:, list(spec.binary)] for other in (demonstrated, reference)
        )  # fmt: skip
        lines.append(
            f"{row.name:22s} {row.bytes / 1e6:8.2f} {np.median(row.milliseconds):7.2f} {error:9.5f} "
            f"{right.mean() if right.size else np.nan:8.4f} {int((~flips).sum()):6d}"
        )
    names = " ".join(f"{spec.names[i]:>19s}" for i in arm)
    lines += ["", f"difference to {found[0].name}, robot units: mean, largest", f"{'':22s} {names}"]
    for row in found[1:]:
        difference = np.abs(row.actions - reference)[:, arm]
        pairs = zip(difference.mean(0), difference.max(0), strict=True)
        lines.append(f"{row.name:22s} " + " ".join(f"{mean:9.2e} {most:9.2e}" for mean, most in pairs))
    return "\n".join(lines)


def stored(policy: Policy) -> int:
    """Bytes of all weights as they are held."""
    return sum(_bytes(x) for x in policy.network.parameters())


def _bytes(x: Tensor) -> int:
    """A quantised tensor is made of others: the small numbers and their scales."""
    if hasattr(x, "__tensor_flatten__"):
        return sum(_bytes(getattr(x, name)) for name in x.__tensor_flatten__()[0])
    return x.nbytes


def _act(policy: Policy, episode: Episode, t: int) -> dict[str, Any]:
    return policy.act(episode.frames[t], episode.state[t], episode.actions[t - 1] if t else None)


if __name__ == "__main__":
    main(sys.argv[1:])
