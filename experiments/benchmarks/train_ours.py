"""Our side of `benchmark train`: the step that pretrain compiles, in a process of its own.

    python -m experiments.benchmarks.train_ours FOLDER [FIELD=VALUE ...]

Reads what train_inputs.py wrote. It imports no torch: its memory is what training takes.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from experiments.benchmarks import policies, train_turns
from experiments.composition import estimate, steps
from experiments.composition.config import override
from vla_jax import sharding
from vla_jax.training import machine, metrics
from vla_jax.training.reports import Units
from vla_jax.training.state import init_state
from vla_jax.types import Batch

LR = 1e-4


def configuration(args: dict[str, Any]) -> ConfigDict:
    """The run's config, without what only one of the two would do (augmentation, warm-up)."""
    language = args["step"] == "language"
    config = policies.configuration(args["size"], "discrete" if language else "lstm")
    model = config.model
    model.dtype, model.remat, model.layers = args["dtype"], args["remat"], args["layers"]
    if args["size"] == "100m":
        model.variant, model.prompt_length = "100m-32k", 32
    if language:
        model.history, model.window = "one_step", 1
    config.batch_size = args["batch"] or max(1, 8 // model.window)
    config.augment.crop_scale = config.augment.contrast = config.augment.saturation = (1.0, 1.0)
    config.augment.brightness = config.augment.hue = 0.0
    config.optim.lr, config.optim.schedule, config.optim.min_lr_scale = LR, "constant", 0.0
    config.optim.warmup_steps, config.optim.warmup_epochs = 0, 0.0
    config.mesh.fsdp = 1
    return config


def batches(folder: Path, config: ConfigDict, number: int) -> list[Batch]:
    """What was written, with the rest of a Batch: one dataset, nothing masked but prompts."""
    arrays = load_file(folder / "batches.safetensors")
    like = estimate.batch(config, config.batch_size)
    blank = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), like)
    out = []
    for i in range(number):
        names = ("images", "prompt", "prompt_mask", "actions")
        images, prompt, mask, actions = (arrays[f"{i}/{name}"] for name in names)
        obs = blank.obs._replace(images=(images,), prompt=prompt, prompt_mask=mask)
        out.append(
            blank._replace(obs=obs, actions=actions, dataset_id=np.zeros(len(prompt), np.int32))
        )
    return out


def change(config: ConfigDict, changes: Sequence[str]) -> None:
    """Sets fields of the config: "model.remat=full". Raises ValueError for one that is none."""
    for text in changes:
        override(config, f"--config.{text}")


def main(folder: Path, changes: Sequence[str] = ()) -> None:
    """Compiles, then trains as many steps as each line says; with changes to the config."""
    inputs = json.loads((folder / "inputs.json").read_text())
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))  # of turns before
    config = configuration(inputs)
    change(config, changes)
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    plan = steps.plan(config, mesh)
    names = tuple(config.model.action_names)
    units = Units(names, np.ones((1, len(names)), np.float32))
    params = {
        name: jax.device_put(value, plan.shardings[name])
        for name, value in load_file(folder / "ours.safetensors").items()
    }
    state = init_state(params, plan.abstract, plan.optimizer)
    data = batches(folder, config, inputs["batches"])
    began = time.perf_counter()
    first = sharding.global_batch(data[0], mesh, config.batch_size)
    step = steps.train_step(plan, units).trace(state, first).lower().compile()
    machine.give_back()
    compiled = time.perf_counter() - began
    device = jax.devices()[0]
    peak = metrics.peak_flops(device) or train_turns.product_rate(_product())

    def train(numbers: Iterator[int]) -> list[float]:
        nonlocal state
        losses = []
        for i in numbers:
            batch = sharding.global_batch(data[i % len(data)], mesh, config.batch_size)
            state, report = step(state, batch)
            losses.append(report["loss"])
        return [float(loss) for loss in jax.device_get(losses)]

    train_turns.serve(train, metrics.memory_bytes, {
        "compile_s": compiled, "device": device.device_kind, "peak": peak,
    })  # fmt: skip


def _product() -> Callable[[], object]:
    rows, inner, columns = train_turns.PRODUCT
    a, b = (
        jax.random.normal(jax.random.key(0), size) for size in ((rows, inner), (inner, columns))
    )
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(a, b).block_until_ready()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
