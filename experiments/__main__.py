"""All commands behind one name: `vla-jax COMMAND ...` is `python -m experiments.COMMAND ...`.

    vla-jax                  # lists them
    vla-jax pretrain --config=oxe_paligemma.py:tiny
    vla-jax pretrain --help

`python -m experiments` does the same where nothing is installed.
"""

import difflib
import runpy
import sys

from vla_jax.command import REFUSED

COMMANDS = {  # in the order of a policy's life: name -> module, what it does
    "convert": ("data_pipelines.convert", "writes a dataset in another format"),
    "index_data": ("experiments.index_data", "reads a dataset once: report, statistics, pictures"),
    "view": ("experiments.view", "recorded episodes on one HTML page"),
    "import_weights": ("experiments.import_weights", "others' weights and policies become ours"),
    "preflight": ("experiments.preflight", "what a run needs of machines that are not here"),
    "pretrain": ("experiments.pretrain", "trains, or goes on with a run"),
    "finetune_rl": ("experiments.finetune_rl", "improves a policy by trial in a simulated world"),
    "collect_preferences": (
        "experiments.collect_preferences",
        "which of two clips people prefer, on a page",
    ),
    "train_reward": ("experiments.train_reward", "a reward model from those preferences"),
    "record": ("experiments.record", "rollouts become a dataset that says how they ended"),
    "train_success": ("experiments.train_success", "a success classifier from such episodes"),
    "judge": ("experiments.judge", "which recorded episodes failed: a list to leave them out by"),
    "finetune_preferences": ("experiments.finetune_preferences", "a policy learns from them (DPO)"),
    "evaluate": ("experiments.evaluate", "a run's errors on held-out episodes"),
    "export": ("experiments.export", "an artefact for a robot, ONNX, pt2, Hugging Face"),
    "quantise": ("experiments.quantise", "what 8 bits cost an artefact"),
    "replay": ("experiments.replay", "an artefact on recorded episodes"),
    "rollout": ("experiments.rollout", "a policy acts in a simulated world"),
    "serve": ("experiments.serve", "an artefact on a socket, for robots"),
    "bridge": ("experiments.bridge", "a policy for the benchmarks of vla-eval"),
    "benchmark": ("experiments.benchmark", "speed, beside a named peer"),
}


def main() -> int:
    """Runs the command that the first word names with the words behind it, as `python -m` would.

    Returns the exit code where none ran: 0 after listing them, 2 for a name that is none of them.
    """
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(listed())
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, list(COMMANDS), n=1, cutoff=0)
        print(
            f"vla-jax: no command {name!r}; did you mean {near[0]}? vla-jax lists all of them",
            file=sys.stderr,
        )
        return REFUSED
    sys.argv[1:] = words
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    return 0


def listed() -> str:
    """What there is, a line each."""
    lines = [f"  {name:<22}{what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: vla-jax COMMAND ... (vla-jax COMMAND --help says more)", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
