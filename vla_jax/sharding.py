"""Where every array lives: the mesh, the resolver from logical axis names to shardings, and the
rows of a batch.

Mesh axes are `(data, fsdp, tensor)`. Examples are split over data and fsdp; parameters over fsdp
and tensor. Whatever has a place is given its mesh explicitly. Activations alone read the mesh of
the program that they are in: the step opens it (`activations_over`), the parts of a model say how
their values are split (`constrain`), and without one they say nothing. XLA left to itself splits
the sums of a product over the width and all-reduces the activations of the whole batch.
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from vla_jax.params import Logical, Shapes

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the mesh axes that examples are split over

# Logical axis name -> mesh axis. "vision" is the width of the vision tower, "embed" that of the
# decoder.
RULES: dict[str, str] = {
    "embed": "fsdp",
    "vision": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv": "tensor",
    "vocab": "tensor",
}

# The same for what only activations have.
ACTIVATIONS: dict[str, str | tuple[str, ...]] = {"batch": BATCH, "tokens": "tensor"}

# A parameter of at least this many bytes must be split over fsdp.
LARGE = 16 * 2**20

Shardings = dict[str, NamedSharding]
# Abstract: sizes without devices, for plans of machines that are not here.
AnyMesh = Mesh | AbstractMesh


def make_mesh(
    data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A `(data, fsdp, tensor)` mesh over all given devices (default: every device of every
    process).

    One size may be -1: it takes what the others leave. With several slices the slow network between
    them carries the data axis, and the fsdp axis only where data has too few parts. Raises
    ValueError when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = _fill((data, fsdp, tensor), len(devices))
    return Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def resolve(
    shapes: Shapes,
    logical: Logical,
    mesh: AnyMesh,
    rules: Mapping[str, str] | None = None,
    large: int = LARGE,
) -> Shardings:
    """The sharding of every parameter from its logical axis names.

    Axes are taken left to right: the first to ask for a mesh axis gets it, and an axis that the
    mesh does not divide stays whole. A parameter of `large` bytes or more that fsdp does not split
    after that is split over it along its largest named axis that divides (beside tensor if need
    be); if none does, ValueError names it.
    """
    rules = RULES if rules is None else rules
    unknown = sorted(
        {name for names in logical.values() for name in names if name is not None} - set(rules)
    )
    if unknown:
        raise ValueError(
            f"sharding: expected logical axes among {', '.join(sorted(rules))}, got"
            f" {', '.join(unknown)}"
        )
    out = {}
    for path, shape in shapes.items():
        spec = _by_rules(shape.shape, logical[path], mesh, rules)
        if (
            mesh.shape["fsdp"] > 1
            and _bytes(shape) >= large
            and not any("fsdp" in axes for axes in spec)
        ):
            _force_fsdp_axis(path, shape.shape, logical[path], mesh, spec)
        out[path] = NamedSharding(mesh, _partition(spec))
    return out


def table(shapes: Shapes, shardings: Shardings) -> str:
    """A text table: path, shape, dtype, spec and bytes per device of every parameter, then the
    totals.
    """
    rows = [("parameter", "shape", "dtype", "spec", "bytes/device")]
    for path, shape in shapes.items():
        axes = (
            "-" if axis is None else str(axis).replace("'", "") for axis in shardings[path].spec
        )
        each = f"{_per_device(shape, shardings[path]):,}"
        rows.append((path, str(list(shape.shape)), str(shape.dtype), f"({', '.join(axes)})", each))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for row in rows:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True))
        lines.append(f"{left}  {row[4].rjust(widths[4])}")
    count = sum(math.prod(shape.shape) for shape in shapes.values())
    whole = sum(_bytes(shape) for shape in shapes.values())
    part = sum(_per_device(shape, shardings[path]) for path, shape in shapes.items())
    lines.append(
        f"total: {count:,} parameters, {whole:,} bytes, {part:,} bytes per device"
        f" ({part / 2**30:.3f} GiB)"
    )
    return "\n".join(lines)


def gathered(parameter: Any, *names: str | None) -> Any:
    """A parameter put together from its parts along fsdp, its axes named as it declares them.

    For those that are computed with in another type than they have: XLA would convert the parts and
    send the larger type. And its gradient is then summed over the batch before it is cut into
    parts; XLA may gather the batch instead.
    """
    kept = (name if name is not None and RULES[name] != "fsdp" else None for name in names)
    return constrain(parameter, *kept)


def take_rows(table: Any, ids: Any) -> Any:
    """`table[ids]`: the rows of a parameter [vocab embed] for the batch's ids [f l], split over the
    batch.

    Written out, because XLA replicates the rows of the whole batch on the way. The table stays
    split: the devices along fsdp, which hold its columns, tell each other their ids (4 bytes a
    token), look up their columns for all of them, and each is sent its own rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["data"] * mesh.shape["fsdp"]
    width = table.shape[1]
    if parts == 1 or ids.shape[0] % parts or width % mesh.shape["fsdp"]:
        return table[ids]
    split = table.shape[0] % mesh.shape["tensor"] == 0 and mesh.shape["tensor"] > 1

    def local(table: jax.Array, ids: jax.Array) -> jax.Array:
        ids = jax.lax.all_gather(ids, "fsdp", tiled=True)
        if split:
            ids = ids - jax.lax.axis_index("tensor") * table.shape[0]
            inside = (ids >= 0) & (ids < table.shape[0])
            rows = jnp.where(inside[..., None], table[jnp.where(inside, ids, 0)], 0)
        else:
            rows = table[ids]
        rows = jax.lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=2, tiled=True)
        return jax.lax.psum(rows, "tensor") if split else rows

    where = PartitionSpec("tensor" if split else None, "fsdp")
    over = PartitionSpec(BATCH)
    return jax.shard_map(local, in_specs=(where, over), out_specs=over)(table, ids)


def bytes_per_device(tree: Any) -> int:
    """Of all arrays of a tree, real or abstract, that know their shardings."""
    return sum(_per_device(leaf, leaf.sharding) for leaf in jax.tree.leaves(tree))


def replicated(mesh: AnyMesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def activations_over(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Within it `constrain` splits activations over the mesh. For the body of a jitted function."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain(x: Any, *names: str | None) -> Any:
    """The activation `x` with its axes split as they are named: "batch" over data and fsdp,
    "tokens" over tensor, the rest by RULES, as parameters are: what one axis has taken is not split
    again, and an axis that the mesh does not divide stays whole, as do those that are not named.

    Outside of `activations_over` nothing happens.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    spec = _by_rules(x.shape[: len(names)], names, mesh, {**ACTIVATIONS, **RULES})
    return jax.lax.with_sharding_constraint(x, _partition(spec))


def rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, " rows"]:
    """The rows of the global batch that this process must build, sorted.

    Read off the sharding, not off the process index: processes that hold replicas of the same rows
    all build them.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise ValueError(
            f"batch size: expected a multiple of data x fsdp = {parts}, got {batch_size}; change"
            " batch_size, mesh.data or mesh.fsdp"
        )
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    everything = np.arange(batch_size)
    return np.unique(
        np.concatenate([everything[index] for index in indices.values() if index is not None])
    )


def global_batch(batch: Any, mesh: Mesh, batch_size: int) -> Any:
    """Global arrays [batch_size, ...] from a pytree of numpy arrays that hold this process's
    `rows`, in that order.
    """
    own = rows(mesh, batch_size)
    sharding = batch_sharding(mesh)

    def place(local: np.ndarray) -> jax.Array:
        if local.shape[:1] != own.shape:
            raise ValueError(
                f"batch: expected the {len(own)} rows this process owns of a batch of {batch_size},"
                f" got shape {local.shape}; give the loader rows=sharding.rows(mesh, batch_size)"
            )

        def piece(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # only for shardings that leave devices without a piece
            start, stop, _ = index[0].indices(batch_size)
            # `own` holds start..stop - 1 without gaps, by construction.
            first = int(np.searchsorted(own, start))
            return local[first : first + stop - start]

        return jax.make_array_from_callback((batch_size, *local.shape[1:]), sharding, piece)

    return jax.tree.map(place, batch)


def _fill(shape: tuple[int, int, int], devices: int) -> tuple[int, int, int]:
    known = math.prod(size for size in shape if size != -1)
    free = shape.count(-1)
    legal = free <= 1 and all(size == -1 or size > 0 for size in shape)
    if not legal or (devices % known if free else known != devices):
        raise ValueError(
            f"mesh: expected data x fsdp x tensor to give {devices} devices, at most one of them -1"
            f" for 'the rest', got {' x '.join(map(str, shape))}; set mesh.data, mesh.fsdp,"
            " mesh.tensor"
        )
    data, fsdp, tensor = (devices // known if size == -1 else size for size in shape)
    return data, fsdp, tensor


def _arrange(shape: tuple[int, int, int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the shape of the mesh, neighbours close to each other."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    data, fsdp, tensor = shape
    between_data = math.gcd(data, slices)
    between_fsdp = slices // between_data
    if fsdp % between_fsdp:
        raise ValueError(
            f"mesh: data x fsdp = {data} x {fsdp} cannot be laid over {slices} slices; make data a"
            f" multiple of {slices}, so that only gradients cross the slow network"
        )
    within = (data // between_data, fsdp // between_fsdp, tensor)
    return mesh_utils.create_hybrid_device_mesh(
        within, (between_data, between_fsdp, 1), devices=devices
    )


def _by_rules(
    shape: tuple[int, ...],
    names: tuple[str | None, ...],
    mesh: AnyMesh,
    rules: Mapping[str, str | tuple[str, ...]],
) -> list[tuple[str, ...]]:
    """The mesh axes of every axis of one array."""
    spec: list[tuple[str, ...]] = []
    taken: set[str] = set()
    for size, name in zip(shape, names, strict=True):
        wanted = () if name is None else rules[name]
        axes = (wanted,) if isinstance(wanted, str) else wanted
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if parts == 1 or size % parts or not taken.isdisjoint(axes):
            axes = ()
        spec.append(axes)
        taken.update(axes)
    return spec


def _partition(spec: Sequence[tuple[str, ...]]) -> PartitionSpec:
    entries: list[Any] = [axes[0] if len(axes) == 1 else axes or None for axes in spec]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _force_fsdp_axis(
    path: str,
    shape: tuple[int, ...],
    names: tuple[str | None, ...],
    mesh: AnyMesh,
    spec: list[tuple[str, ...]],
) -> None:
    """Adds fsdp to the largest named axis that divides. The unnamed layer axis is left alone: scan
    slices it.
    """
    fsdp = mesh.shape["fsdp"]
    for i in sorted(range(len(shape)), key=lambda i: -shape[i]):
        if (
            names[i] is not None
            and shape[i] % (fsdp * math.prod(mesh.shape[axis] for axis in spec[i])) == 0
        ):
            spec[i] = (*spec[i], "fsdp")
            return
    raise ValueError(
        f"sharding: {path} of shape {list(shape)} with axes {names} is large and no named axis"
        f" divides by mesh.fsdp = {fsdp}; name its axes, or choose another mesh.fsdp"
    )


def _bytes(shape: jax.ShapeDtypeStruct) -> int:
    return math.prod(shape.shape) * np.dtype(shape.dtype).itemsize


def _per_device(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
    return math.prod(sharding.shard_shape(shape.shape)) * np.dtype(shape.dtype).itemsize
