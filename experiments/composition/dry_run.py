"""What --dry_run prints."""

import math

import jax
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from experiments.composition import estimate, spaces, steps
from vla_jax import sharding
from vla_jax.models import lora


def show(config: ConfigDict) -> None:
    """Builds everything abstractly and prints parameters, shardings and bytes per device; reads no
    data, no weights.

    mesh.fsdp=-1 takes this machine's devices; any other mesh is laid out whether or not its devices
    are here.
    """
    sizes = [config.mesh.data, config.mesh.fsdp, config.mesh.tensor]
    known = math.prod(size for size in sizes if size != -1)
    shape = tuple(max(1, jax.device_count() // known) if size == -1 else size for size in sizes)
    mesh = AbstractMesh(shape, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    plan = steps.plan(spaces.resolve(config), mesh)
    shapes, state = plan.shapes, plan.abstract
    print(sharding.table(shapes, plan.shardings))
    counts: dict[str, int] = {}
    for name, leaf in shapes.items():
        part = name.split("/")[0]
        counts[part] = counts.get(part, 0) + math.prod(leaf.shape)
    print("\nparameters: " + ", ".join(f"{part} {count:,}" for part, count in counts.items()))
    if config.lora.rank:
        print(lora.quantities(shapes))

    print(
        f"trainable: {len(state.params)} arrays, frozen: {len(state.frozen)}; mesh"
        f" {dict(mesh.shape)}; bytes per device:"
    )
    held = estimate.memory(state)
    for field, size in held.items():
        print(f"  {field:10s} {size:16,}  ({size / 2**30:.3f} GiB)")
    total = sum(held.values())
    print(f"  total      {total:16,}  ({total / 2**30:.3f} GiB, without activations)")
    cost = estimate.per_window(config, plan.graphdef, state.params, state.frozen)
    print(
        f"one window: {cost.forward / 1e9:,.1f} GFLOP forward, {cost.training / 1e9:,.1f} in"
        f" training, {cost.activations / 2**20:,.1f} MiB of activations kept for the backward pass"
        f" (remat {config.model.remat})"
    )
