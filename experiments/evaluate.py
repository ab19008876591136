"""Open-loop evaluation of a trained policy on held-out episodes.

    python -m experiments.evaluate --workdir=DIR [--without=DIR]

Prints the held-out arm loss of the policy beside two figures it must beat: that of the best
constant action, and its own with every instruction blanked. `--without` is the work directory of a
run trained with data.blank_instruction=True: what can be had without language at all. Writes
evaluation.json and actions.png (predicted against true over one episode) into DIR.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from data_pipelines.loader import Loader
from experiments.composition import datasets, plots, sources
from experiments.composition.json_files import write_json
from vla_jax import build
from vla_jax import params as flat
from vla_jax.actions import ActionSpec
from vla_jax.models.tokenizer import digest
from vla_jax.models.vla import VLA
from vla_jax.params import merge
from vla_jax.saved_config import complete
from vla_jax.training.checkpoint import complete_steps, load_meta, load_params
from vla_jax.types import Batch

Metrics = dict[str, tuple[np.ndarray, np.ndarray]]
Model = Callable[[flat.Params], VLA]


def main(argv: list[str]) -> None:
    """Evaluates the newest checkpoint of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument(
        "--without", type=Path, default=None, help="a run trained with data.blank_instruction=True"
    )
    args = parser.parse_args(argv)
    result = evaluate(args.workdir)
    if args.without is not None:
        for name, other in evaluate(args.without)["datasets"].items():
            result["datasets"][name]["arm_loss_trained_without_instruction"] = other["arm_loss"]
    for name, numbers in result["datasets"].items():
        report(name, result["step"], numbers)
    write_json(args.workdir / "evaluation.json", result)


def report(name: str, step: int, numbers: dict[str, Any]) -> None:
    """Prints the figures of one dataset."""
    policy, constant = numbers["arm_loss"], numbers["arm_loss_best_constant"]
    print(f"held-out arm loss, {numbers['windows']} windows of {name}, step {step}:")
    print(f"  policy                        {policy:.5f}")
    print(
        f"  best constant action          {constant:.5f}   policy / constant ="
        f" {policy / constant:.3f}"
    )
    for key, label in (
        ("arm_loss_instruction_blanked", "policy, instruction blanked "),
        ("arm_loss_trained_without_instruction", "trained without instruction "),
    ):
        if key in numbers:
            print(f"  {label}  {numbers[key]:.5f}   blanked / policy = {numbers[key] / policy:.2f}")
    print(
        f"gripper accuracy {numbers['gripper_accuracy']:.4f}; mean absolute error in robot units:"
    )
    print("  " + "  ".join(f"{dim} {value:.4g}" for dim, value in numbers["l1"].items()))


def evaluate(workdir: Path) -> dict[str, Any]:
    """All figures of one run as a JSON-able dict, by dataset; draws actions.png of the first."""
    meta = load_meta(workdir / "checkpoints")
    config = complete(meta["config"], workdir)
    source = sources.data(config, workdir, training=False)
    for member in source.train:
        name = member.index.dataset.name
        if meta["datasets"][name]["action"] != member.action_spec.to_json():
            raise ValueError(
                f"{workdir}: the checkpoint normalises actions of {name} otherwise than the data"
                f" under {config.data.root} says; evaluate with the data it was trained on"
            )
    if meta["tokenizer"]["sha256"] != digest(source.tokenizer):
        raise ValueError(
            f"{workdir}: the tokenizer in {source.tokenizer} is not the one the checkpoint was"
            " trained with"
        )
    graphdef, _, _ = flat.abstract(build.model(config, source.action_end, datasets.states(config)))
    weights = jax.device_put(
        {k: v.astype(config.model.dtype) for k, v in load_params(workdir / "checkpoints").items()}
    )

    def model(weights: flat.Params) -> VLA:
        return cast(VLA, merge(graphdef, weights))

    loss = jax.jit(lambda weights, batch: model(weights).loss(batch, jax.random.key(0)).metrics)
    blank = blanked(source.encode(""), config.model.prompt_length)
    by_dataset = {}
    for member in source.held_out:
        loader = sources.loader(config, source, [member], shuffle=False)
        by_dataset[member.index.dataset.name] = figures(
            loader, member.action_spec, robust(config), lambda batch: loss(weights, batch), blank
        )
        if member is source.held_out[0]:
            draw(model, weights, loader, member.action_spec, workdir / "actions.png")
    return {"step": complete_steps(workdir / "checkpoints")[-1], "datasets": by_dataset}


def figures(
    loader: Loader,
    spec: ActionSpec,
    cost: Callable[[np.ndarray], np.ndarray],
    loss: Callable[[Batch], Metrics],
    blank: Callable[[Batch], Batch],
) -> dict[str, Any]:
    """The figures of one dataset: one pass over its held-out windows."""
    plain: Metrics = {}
    without: Metrics = {}
    wanted, valid = [], []
    for batch in loader.batches(0):
        plain = add(plain, jax.device_get(loss(batch)))
        without = add(without, jax.device_get(loss(blank(batch))))
        wanted.append(np.asarray(batch.actions))
        valid.append(np.asarray(batch.action_mask & batch.obs.step_mask[:, :, None, None]))
    arm = [i for i in range(len(spec.names)) if i not in spec.binary]
    targets, masks = np.concatenate(wanted)[..., arm], np.concatenate(valid)[..., arm]
    total, weight = plain["l1"]
    error = total / np.maximum(weight, 1) * spec.units()
    return {
        "windows": loader.windows,
        "arm_loss": mean(plain["arm"]),
        "arm_loss_best_constant": best_constant(targets, masks, cost),
        "arm_loss_instruction_blanked": mean(without["arm"]),
        "gripper_accuracy": mean(plain["gripper_accuracy"]),
        "l1": {name: float(value) for name, value in zip(spec.names, error, strict=True)},
    }


def best_constant(
    targets: Float[np.ndarray, "b t k d"],
    mask: Bool[np.ndarray, "b t k d"],
    cost: Callable[[np.ndarray], np.ndarray],
) -> float:
    """The least mean cost that one fixed action per (k, d) can reach on these very targets.

    Fitted on the data it is judged on, so nothing constant can do better. The cost is convex in
    each number, so a golden search finds its minimum.
    """
    golden = (np.sqrt(5) - 1) / 2
    low = np.full(targets.shape[2:], np.where(mask, targets, np.inf).min())
    high = np.full(targets.shape[2:], np.where(mask, targets, -np.inf).max())

    def total(constant: np.ndarray) -> np.ndarray:
        return np.where(mask, cost(targets - constant), 0.0).sum((0, 1))  # k d

    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        worse = total(left) > total(right)
        low, high = np.where(worse, left, low), np.where(worse, high, right)
    return float(total((low + high) / 2).sum() / mask.sum())


def robust(config: ConfigDict) -> Callable[[np.ndarray], np.ndarray]:
    """The config's arm loss as a numpy function of the error."""
    delta = config.loss.delta

    def huber(error: np.ndarray) -> np.ndarray:
        size = np.abs(error)
        return np.where(size < delta, 0.5 * error**2, delta * (size - 0.5 * delta))

    return huber if config.loss.kind == "huber" else lambda error: huber(error) / delta


def blanked(ids: np.ndarray, length: int) -> Callable[[Batch], Batch]:
    """A function that replaces every prompt of a batch by the given ids."""

    def replace(batch: Batch) -> Batch:
        prompt = np.zeros_like(batch.obs.prompt)
        prompt[:, : len(ids)] = ids
        mask = np.broadcast_to(np.arange(length) < len(ids), prompt.shape)
        return batch._replace(
            obs=batch.obs._replace(prompt=prompt, prompt_mask=np.ascontiguousarray(mask))
        )

    return replace


def draw(model: Model, weights: flat.Params, loader: Loader, spec: ActionSpec, out: Path) -> None:
    """Predicted against true first action of every frame of the first held-out episode, in robot
    units.
    """
    batch = loader.episode(0)
    act = jax.jit(lambda weights, obs: model(weights).act(obs, jax.random.key(0)))
    predicted = spec.unnormalise(np.asarray(act(weights, batch.obs))[:, 0])
    true = spec.unnormalise(np.asarray(batch.actions)[:, -1, 0])
    plots.actions(
        predicted, true, spec.names, f"held-out episode 0: {loader.instruction(0)!r}", out
    )


def add(total: Metrics, metrics: Metrics) -> Metrics:
    """Per-example pairs summed over the batch and added up, in float64."""
    summed = {
        name: tuple(np.asarray(part, np.float64).sum(0) for part in pair)
        for name, pair in metrics.items()
    }
    return (
        {name: (a + total[name][0], b + total[name][1]) for name, (a, b) in summed.items()}
        if total
        else summed
    )


def mean(pair: tuple[np.ndarray, np.ndarray]) -> float:
    """Sum over weight."""
    return float(pair[0] / pair[1])


if __name__ == "__main__":
    main(sys.argv[1:])
