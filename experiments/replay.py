"""Replays recorded episodes through an exported policy exactly as it is deployed, and says how far
off it is.

    python -m experiments.replay --artefact DIR --data ROOT --dataset NAME --out DIR [--split val]
    [--episodes N]
    ... --trigger      also fits and measures event-triggered inference: trigger.json, trigger.png
    ... --calibrate    also fits and measures the confidence: calibration.json, reliability.png
    ... --view PAGE    links the worst episodes to where this page of experiments.view shows them

The tool that tells data trouble from pipeline trouble: frames are decoded as recorded and resized
as on a robot, the torch policy of the artefact does the rest, and its actions are compared with the
recorded ones in robot units. It writes OUT/replay.json and OUT/traces.png. An artefact whose
statistics are not those of the data is refused.

How to read it: a low arm loss here and in experiments.evaluate means that the pipeline is right,
whatever the robot does. A dim worse than the best constant action, or with a correlation near 0 or
below, points at the data (units, order, sign); a better fit at another lag than 0 at actions that
are recorded early or late.
"""

import argparse
from pathlib import Path

from experiments.composition.json_files import write_json
from experiments.replaying import calibration, plots, trigger
from experiments.replaying.figures import figures, text
from experiments.replaying.recorded import Recording, command_line, open_recording, where
from experiments.replaying.rollout import TIMED, Replayed, replay
from experiments.viewing import page
from vla_jax import command
from vla_jax.progress import Progress
from vla_jax.robot import torch_policy

TRACES = 4  # episodes in the picture


def main(argv: list[str]) -> None:
    """Command line."""
    args = _arguments(argv)
    recording = open_recording(args.artefact, where(args))
    numbers = recording.episodes(args.episodes)
    links = page_links(args.view, recording) if args.view else {}
    if args.trigger:
        trigger.check(len(numbers))
    policy = torch_policy.load(
        args.artefact, args.device, args.dtype, require_signature=args.require_signature
    )
    args.out.mkdir(parents=True, exist_ok=True)
    replayed = run(policy, recording, numbers)
    report = {
        "artefact": str(args.artefact.absolute()),
        "origin": policy.config["origin"],
        "data": {
            "dataset": args.dataset,
            "split": recording.split.name,
            "digest": recording.index.digest,
        },
        "device": args.device,
        "dtype": args.dtype,
        **figures(recording, replayed),
    }
    for row in report["worst"]:
        if row["episode"] in links:
            row["view"] = links[row["episode"]]
    print(text(report))
    if args.view and not any("view" in row for row in report["worst"]):
        print(f"none of the worst is on {args.view}: write it again with more --episodes")
    write_json(args.out / "replay.json", report)
    shown = replayed[:: max(1, len(replayed) // TRACES)][:TRACES]
    plots.traces(shown, recording, args.out / "traces.png")
    print(f"written: {args.out}/replay.json, traces.png")
    if args.calibrate:
        fitted = calibration.calibrate(args.artefact, recording.spec, replayed)
        print(calibration.text(fitted))
        write_json(args.out / "calibration.json", fitted)
        plots.reliability(fitted["report"], args.out / "reliability.png")
        print(f"written: {args.out}/calibration.json, reliability.png")
    if args.trigger:
        curve = trigger.fit(
            args.artefact, policy, recording, replayed, trigger.Aim(args.allowed, args.learn)
        )
        print(trigger.text(curve))
        write_json(args.out / "trigger.json", curve)
        plots.trigger(curve, args.out / "trigger.png")
        print(f"written: {args.out}/trigger.json, trigger.png")


def page_links(file: Path, recording: Recording) -> dict[int, str]:
    """Where a page of experiments.view shows the episodes of a recording: URLs by their numbers.
    Raises ValueError for a page about other data.
    """
    shown = page.read(file)
    index, split = recording.index, recording.split.name
    if (shown.dataset, shown.split, shown.digest) != (index.dataset.name, split, index.digest):
        raise ValueError(
            f"--view: expected a page about {index.dataset.name}, split {split}, as it is read"
            f" here, got {file} about {shown.dataset}, split {shown.split}"
            + " with other episodes"
            * ((shown.dataset, shown.split) == (index.dataset.name, split))
            + "; write it with the same options: python -m experiments.view --split"
            f" {split} --out {file} ..."
        )
    url = file.absolute().as_uri()
    return {run: f"{url}#run-{run}" for run in shown.runs}


def run(policy: torch_policy.Policy, recording: Recording, numbers: list[int]) -> list[Replayed]:
    """Every episode twice: planning at each step, and executing whole chunks. Times are of the
    first one.
    """
    dataset, replayed = recording.index.dataset.name, []
    steps = int(recording.split.length[numbers].sum())
    with Progress("replay", steps, "frames") as progress:
        for i, number in enumerate(numbers):
            timed = 0 if i else TIMED
            episode = recording.episode(number)
            replayed.append(replay(policy, episode, dataset, timed, progress.add))
    return replayed


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument(
        "--dtype", default="float32", help="float32 or bfloat16: what the backbone computes in"
    )
    parser.add_argument("--out", type=Path, required=True, help="where report and pictures go")
    parser.add_argument("--trigger", action="store_true", help="fit event-triggered inference")
    parser.add_argument(
        "--allowed", type=float, default=0.05, help="with --trigger: arm error that may be added"
    )
    parser.add_argument(
        "--learn",
        type=command.positive,
        default=2000,
        help="with --trigger: episodes of the training split to learn from",
    )
    parser.add_argument("--view", type=Path, help="a page of experiments.view about these episodes")
    parser.add_argument("--calibrate", action="store_true", help="fit the confidence")
    return parser.parse_args(argv)


if __name__ == "__main__":
    command.run(main)
