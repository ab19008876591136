"""A policy acts in a simulated world, and it is counted how often it succeeds.

    python -m experiments.rollout --policy runs/navigation --sim navigation --episodes 160 --out DIR
    ... --policy artefact       what export wrote: the same episodes in torch
    ... --policy ws://host:8000 what experiments.serve serves
    ... --policy expert|random  what the figures are to be seen beside
    ... --policy replay:OUT     carries out what was carried out in OUT: the world is the same
    ... --blank                 the policy is told nothing: does it listen?
    ... --execute 2             it plans again after 2 actions of each chunk; by default after all
    ... --delay 2 --chunking realtime    a plan takes 2 control steps to come, and the chunk that
                                there is goes on meanwhile: see rolling/chunking.py
    ... --environments 8        so many episodes at once; who asks at one time is answered together
    ... --shard 0/4             the episodes of job 0 of 4, on any machines
    python -m experiments.rollout --diagnose --policy RUN --sim blocks [--data ROOT] --out DIR
    python -m experiments.rollout --merge DIR0 DIR1 ... --out DIR
    python -m experiments.rollout --doctor --sim metaworld

Writes OUT/results.json (each episode's outcome; success with Wilson's interval at 95%, by wording
and by task; hashes, versions, renderer, seed), OUT/film.png, OUT/strips and OUT/videos (the first
that succeeded, the first that did not) and OUT/actions. Episodes follow from the seed and their
number: those of two policies are the same. An episode is kept when it ends: after a kill the same
command goes on, with more --episodes too. Results of other settings are not added to, nor merged.
--diagnose asks the policy along the expert's way, as it is and told or shown something else, and
says with numbers which of the usual causes of failure it finds (rolling/diagnosing.py).
Simulators run in processes of their own: an episode whose process ends is played once more, and if
that ends too it is told as an error, which counts neither way (exit code 1).
"""

import argparse
import errno
import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments import sims
from experiments.composition.digests import digest
from experiments.composition.json_files import write_json
from experiments.rolling import diagnosing, films, merging, probing
from experiments.rolling.actors import Actors, Opened, Served, check_renderer
from experiments.rolling.chunking import KINDS
from experiments.rolling.episodes import Orders
from experiments.rolling.results import Kept, figures, text
from experiments.rolling.running import Running
from experiments.rolling.worlds import opened
from vla_jax import command
from vla_jax.robot.events.calibration import identity
from vla_jax.training import checkpoint

SCRIPTED = ("expert", "random")
REPLAY = "replay:"


def main(argv: list[str]) -> int:
    """Command line; 1 when episodes are errors."""
    args = _arguments(argv)
    if args.doctor:
        lines, works = sims.check(args.sim)
        print("\n".join(lines))
        return 0 if works else 1
    if args.merge:
        settings = merging.merge(args.merge, args.out)
        with Kept(args.out, settings) as kept:
            return finish(kept, list(kept.rows))
    if args.diagnose:
        return diagnose(args)
    index, count = args.shard
    numbers = list(range(index, args.episodes, count))
    worlds = opened(args.sim, args.environments)
    try:
        settings, orders, actors = settle(args, worlds[0].about)
        with Kept(args.out, settings) as kept:
            todo = [number for number in numbers if number not in kept.rows]
            if len(todo) < len(numbers):
                print(f"{args.out}: {len(numbers) - len(todo)} episodes were done before")
            running = Running(worlds, lambda: opened(args.sim, 1)[0], actors, kept)
            try:
                running.run(orders, todo)
            finally:
                worlds = running.worlds
            return finish(kept, numbers)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ValueError(
            f"--out={args.out}: {error.strerror}: free some, and the same command goes on"
        ) from error
    finally:
        for world in worlds:
            world.close()


def settle(args: argparse.Namespace, about: Any) -> tuple[dict[str, Any], Orders, Actors | None]:
    """What the results are of, how episodes are played, and who acts. Raises ValueError for what is
    no policy, or none for this robot.
    """
    actors: Actors | None = None
    orders = Orders(args.seed, "", args.execute, args.blank, None, args.chunking, args.delay)
    if args.policy in SCRIPTED:
        orders = orders._replace(script=args.policy)
        policy: dict[str, Any] = {"kind": args.policy, "versions": _versions()}
    elif args.policy.startswith(REPLAY):
        folder = Path(args.policy.removeprefix(REPLAY)).expanduser()
        orders = orders._replace(script="replay", replay=folder)
        policy = {"kind": "replay", "versions": _versions(), **replayed(folder, args)}
    elif args.policy.startswith(("ws://", "wss://")):
        actors = Served(args.policy, args.token_file, about.datasets, args.environments)
        policy = {"kind": "server", "files": actors.handshake["artefact"], "versions": _versions()}
    else:
        policy = described(args.policy, args.step)
        check_renderer(args.policy, args.step, about)
        actors = Opened(args.policy, about.datasets, args.environments, args.step)
    settings = {
        "sim": args.sim,
        "facts": about.facts,
        "control_hz": about.control_hz,
        "seed": args.seed,
        "policy": policy,
        "execute": args.execute,
        "blank": args.blank,
        "chunking": args.chunking,
        "delay": args.delay,
        # A policy's numbers are rounded otherwise where it is asked for others too.
        "environments": args.environments if actors is not None else None,
    }
    return settings, orders, actors


def replayed(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Whose actions are carried out again. Raises ValueError for those of another world or seed."""
    file = folder / "settings.json"
    if not file.is_file():
        raise ValueError(f"--policy={args.policy}: expected the --out of a rollout")
    of = json.loads(file.read_text(encoding="utf-8"))
    for name, given in (("sim", args.sim), ("seed", args.seed)):
        if of[name] != given:
            raise ValueError(
                f"--policy={args.policy}: expected episodes of --{name}={of[name]}, got {given}"
            )
    return {"of": of["policy"], "episodes": digest(folder / "actions")}


def finish(kept: Kept, numbers: list[int]) -> int:
    """Writes the figures of the episodes that are there and prints them; 1 when some are errors."""
    rows = [kept.rows[number] for number in sorted(numbers) if number in kept.rows]
    errors = {str(number): kept.errors[number] for number in numbers if number in kept.errors}
    for number, why in errors.items():
        print(f"episode {number}: error: {why}; the same command plays it again")
    if not rows:
        print(f"{kept.out}: no episode")
        return 1
    body = figures(rows, kept.settings["control_hz"])
    print(text(body))
    films.draw(rows, kept.out)
    body = {"settings": kept.settings, **body, "errors": errors, "episodes": rows}
    write_json(kept.out / "results.json", body)
    print(f"written: {kept.out}/results.json, film.png, strips, videos, actions")
    return 1 if errors else 0


def diagnose(args: argparse.Namespace) -> int:
    """Prints and writes which causes of failure are found; 1 where there are some."""
    (world,) = opened(args.sim, 1)
    try:
        of = diagnosing.subject(args.policy, world.about.datasets, args.data)
        evidence = probing.probe(world, of.policy, args.episodes, args.seed, of.cameras)
        found = diagnosing.findings(evidence, of, world.about)
    finally:
        world.close()
    print(diagnosing.table(found))
    args.out.mkdir(parents=True, exist_ok=True)
    body = {"sim": args.sim, "seed": args.seed, "episodes": args.episodes}
    body |= {"policy": described(args.policy), "findings": [each._asdict() for each in found]}
    write_json(args.out / "diagnosis.json", body)
    print(f"written: {args.out}/diagnosis.json")
    return 1 if any(each.claimed for each in found) else 0


def described(policy: str, step: int | None = None) -> dict[str, Any]:
    """What names a policy wherever it lies: the hashes of its config and of all its files, and the
    libraries that it computes with. Of a run, that of a `step` or its own choice. Raises ValueError
    for a folder that holds none.
    """
    folder = Path(policy).expanduser()
    if (folder / "model.safetensors").is_file():
        config = (folder / "config.json").read_bytes()
        return {
            "kind": "artefact",
            "config": hashlib.sha256(config).hexdigest(),
            "files": identity(folder),
            "versions": _versions("torch"),
        }
    directory = checkpoint.within(folder)
    found = checkpoint.find(directory, step)
    config = json.dumps(checkpoint.load_meta(directory, step)["config"], sort_keys=True).encode()
    return {
        "kind": "checkpoint",
        "step": int(found.name),
        "config": hashlib.sha256(config).hexdigest(),
        "files": digest(found),
        "versions": _versions("jax", "jaxlib"),
    }


def _versions(*names: str) -> dict[str, str]:
    """Of the libraries that an episode's numbers come from."""
    found = {name: metadata.version(name) for name in ("numpy", *names)}
    return {"python": platform.python_version(), **found}


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy",
        help="a run's folder, its checkpoints or an artefact; ws://HOST:PORT of a server; expert,"
        " random, or replay:OUT",
    )
    parser.add_argument(
        "--step", type=command.positive, help="of a run's checkpoint; by default its best or newest"
    )
    parser.add_argument("--sim", help=f"one of {', '.join(sims.SIMS)}; some take words behind a :")
    parser.add_argument(
        "--episodes", type=command.positive, help="160 by default, of a diagnosis 16"
    )
    parser.add_argument("--out", type=Path, help="where the results go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--execute", type=command.positive, default=0,
        help="actions of a chunk that are carried out before the next; by default all",
    )  # fmt: skip
    parser.add_argument(
        "--delay", type=command.not_negative, default=0,
        help="control steps that a plan takes to come, from its picture on",
    )  # fmt: skip
    parser.add_argument(
        "--chunking", choices=KINDS, default="wait",
        help="meanwhile the robot waits; or goes on, and then with the newest chunk as it is,"
        " averaged with the one before (freeze), or led by it (realtime: policies that flow)",
    )  # fmt: skip
    parser.add_argument("--blank", action="store_true", help="the policy's instruction is empty")
    parser.add_argument(
        "--environments", type=command.positive, default=1, help="episodes at one time"
    )
    parser.add_argument("--shard", type=command.share, default=(0, 1), help="I/N: of job I of N")
    parser.add_argument("--token_file", type=Path, help="of a server that wants one")
    parser.add_argument("--diagnose", action="store_true", help="why does it fail?")
    parser.add_argument("--data", help="of a diagnosis: recordings, whose pictures it compares")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="OUT", help="of all shards")
    parser.add_argument(
        "--doctor", action="store_true", help="says whether the simulator works here"
    )
    args = parser.parse_args(argv)
    needed = {"--doctor": ("sim",), "--merge": ("out",), "": ("policy", "sim", "out")}
    which = "--doctor" if args.doctor else "--merge" if args.merge else ""
    for name in needed[which]:
        if getattr(args, name) is None:
            parser.error(f"{which or 'a rollout'}: expected --{name}")
    args.episodes = args.episodes or (16 if args.diagnose else 160)
    if which != "--merge" and args.sim.partition(":")[0] not in sims.SIMS:
        parser.error(f"--sim: expected one of {', '.join(sims.SIMS)}, got {args.sim!r}")
    of_run = not which and not args.policy.startswith((*SCRIPTED, REPLAY, "ws://", "wss://"))
    if args.step is not None and not of_run:
        parser.error(f"--step={args.step}: expected with a run's checkpoints in --policy")
    scripted = not which and args.policy.startswith((*SCRIPTED, REPLAY))
    if scripted and (args.blank or args.execute or args.delay or args.chunking != "wait"):
        parser.error(
            f"--policy {args.policy}: plans one step at once and hears nothing; leave out --blank,"
            " --execute, --delay and --chunking"
        )
    return args


if __name__ == "__main__":
    command.run(main)
