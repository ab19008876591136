"""A policy acts in a simulated world, and it is counted how often it succeeds.

    python -m experiments.rollout --policy runs/navigation --sim navigation --episodes 160 --out DIR
    ... --policy artefact       what export wrote: the same episodes in torch
    ... --policy expert|random  what the figures are to be seen beside
    ... --blank                 the policy is told nothing: does it listen?
    ... --execute 2             it plans again after 2 actions of each chunk; by default after all

Writes OUT/results.json (each episode's outcome; success with Wilson's interval at 95%, by wording
and by task; hashes, versions, seed) and OUT/film.png (the first that succeeded, the first that did
not). Episodes follow from the seed and their number: those of two policies are the same. An episode
is kept when it ends: after a kill the same command goes on, with more --episodes too. Results of
other settings are not added to.
"""

import argparse
import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import vla_jax
from experiments import sims
from experiments.composition.digests import digest
from experiments.composition.json_files import write_json
from experiments.rolling import films
from experiments.rolling.episodes import Actor, Expert, Random, play, warm_up
from experiments.rolling.results import Kept, figures, text
from experiments.sims import Sim
from vla_jax import command
from vla_jax.progress import Progress
from vla_jax.robot.events.calibration import identity
from vla_jax.training import checkpoint

SCRIPTED = ("expert", "random")


def main(argv: list[str]) -> None:
    """Command line."""
    args = _arguments(argv)
    sim = sims.opened(args.sim)
    settings = {
        "sim": args.sim,
        "facts": dict(sim.facts),
        "seed": args.seed,
        "policy": described(args.policy),
        "execute": args.execute,
        "blank": args.blank,
    }
    actor = opened(args, sim)
    with Kept(args.out, settings) as kept:
        todo = [number for number in range(args.episodes) if number not in kept.rows]
        if len(todo) < args.episodes:
            print(f"{args.out}: {args.episodes - len(todo)} episodes were done before")
        run(sim, actor, args.seed, todo, kept)
        rows = [kept.rows[number] for number in range(args.episodes)]
    body = figures(rows)
    print(text(body))
    films.draw(rows, args.out)
    write_json(args.out / "results.json", {"settings": settings, **body, "episodes": rows})
    print(f"written: {args.out}/results.json, film.png")


def run(sim: Sim, actor: Actor, seed: int, todo: list[int], kept: Kept) -> None:
    """Plays the episodes `todo` and keeps each when it ends, its film strip before."""
    with Progress("rollout", len(todo), "episodes") as progress:
        if todo and actor.looks:
            warm_up(sim, actor, seed)
        for number in todo:
            row, actions = play(sim, actor, seed, number)
            if number in films.wanted([*kept.rows.values(), row]):
                films.keep(sim, seed, number, actions, kept.out)
            kept.add(row)
            progress.add(1)


def opened(args: argparse.Namespace, sim: Sim) -> Actor:
    """Who acts. Raises ValueError for a folder without a policy, or without one for this robot."""
    if args.policy == "expert":
        return Actor(lambda number: Expert(sim), 0, looks=False)
    if args.policy == "random":
        return Actor(lambda number: Random(sim, args.seed, number), 0, looks=False)
    policy = vla_jax.load_policy(args.policy, dataset=sim.dataset)
    return Actor(lambda number: policy, args.execute, blank=args.blank)


def described(policy: str) -> dict[str, Any]:
    """What names a policy wherever it lies: the hashes of its config and of all its files, and the
    libraries that it computes with. Raises ValueError for a folder that holds none.
    """
    versions = {"python": platform.python_version(), "numpy": metadata.version("numpy")}
    if policy in SCRIPTED:
        return {"kind": policy, "versions": versions}
    folder = Path(policy).expanduser()
    if (folder / "model.safetensors").is_file():
        config = (folder / "config.json").read_bytes()
        return {
            "kind": "artefact",
            "config": hashlib.sha256(config).hexdigest(),
            "files": identity(folder),
            "versions": versions | {"torch": metadata.version("torch")},
        }
    directory = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    step = checkpoint.find(directory, None)
    config = json.dumps(checkpoint.load_meta(directory)["config"], sort_keys=True).encode()
    return {
        "kind": "checkpoint",
        "step": int(step.name),
        "config": hashlib.sha256(config).hexdigest(),
        "files": digest(step),
        "versions": versions | {name: metadata.version(name) for name in ("jax", "jaxlib")},
    }


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", required=True,
        help="a run's folder, its checkpoints or an artefact; or expert, or random",
    )  # fmt: skip
    parser.add_argument("--sim", required=True, choices=list(sims.SIMS))
    parser.add_argument("--episodes", type=command.positive, default=160)
    parser.add_argument("--out", type=Path, required=True, help="where the results go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--execute", type=command.positive, default=0,
        help="actions of a chunk that are carried out before the next; by default all",
    )  # fmt: skip
    parser.add_argument("--blank", action="store_true", help="the policy's instruction is empty")
    args = parser.parse_args(argv)
    if args.policy in SCRIPTED and (args.blank or args.execute):
        parser.error(
            f"--policy {args.policy}: plans one step and hears nothing; leave out --blank"
            " and --execute"
        )
    return args


if __name__ == "__main__":
    command.run(main)
