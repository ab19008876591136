"""What a compiled program sends between devices, read off its text: a sharded program that equals
one device may still move the whole batch between chips, and no number of its output shows it.
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8}

_OP = re.compile(rf" = (?P<shapes>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_GROUPS = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_AXIS = re.compile(r"'(\w+)'(?::\((\d+)\)(\d+))?")
_HEADER = re.compile(r"(?:ENTRY )?%(?P<name>[\w.-]+) \(.*\{$")
_LOOP = re.compile(r" while\(.*condition=%(?P<condition>[\w.-]+), body=%(?P<body>[\w.-]+)")
_KNOWN = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r"= s32\[\]\S* constant\((\d+)\)")
_CALLS = re.compile(
    r"(?:calls|to_apply|called_computations|branch_computations)=\{?((?:%[\w.-]+(?:, )?)+)"
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One operation of the program's text."""

    kind: str  # one of KINDS
    arrays: tuple[tuple[str, tuple[int, ...]], ...]  # type and shape of every result, on one device
    axes: tuple[str, ...]  # of the mesh, along which devices exchange
    devices: int  # that exchange with each other
    times: int  # it runs in one run of the program: that often in its loops
    source: str  # the operation of the traced program it comes from

    @property
    def bytes(self) -> int:
        """Of all results, on one device, once."""
        return sum(math.prod(shape) * BYTES.get(dtype, 4) for dtype, shape in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes that a device sends in one run of the program, by the best algorithm on a ring."""
        others = self.devices - 1
        share = {
            "all-gather": others / self.devices,
            "all-reduce": 2 * others / self.devices,
            "reduce-scatter": float(others),  # of a result that is one part of what is summed
            "all-to-all": others / self.devices,
            "collective-permute": 1.0,
        }
        return self.times * self.bytes * share[self.kind]


def read(text: str, mesh: Mesh) -> list[Collective]:
    """The collectives of a compiled program's text (`jax.stages.Compiled.as_text`) over a mesh.

    Those whose groups are single devices are left out: they move nothing. What a TPU computes as
    one reduce-scatter and writes as an all-reduce with a slice behind it is a reduce-scatter.
    Raises ValueError for a line whose devices cannot be read.
    """
    out: dict[Any, Collective] = {}
    lines = list(lines_of(text))
    times = times_of(lines)
    for computation, line in lines:
        found = _OP.search(line)
        if found is None:
            continue
        arrays = tuple(
            (dtype, tuple(int(size) for size in sizes.split(",") if size))
            for dtype, sizes in _SHAPE.findall(found["shapes"])
        )
        groups, kind = list(_groups(line, mesh.size)), found["kind"]
        axes, devices = _axes(groups, mesh), max(len(group) for group in groups)
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
            arrays = tuple((dtype, _part(shape, devices)) for dtype, shape in arrays)
        name, channel = _NAME.search(line), _CHANNEL.search(line)
        if axes:
            source = name[1] if name else ""
            each = times.get(computation, 1)
            # What overlaps with arithmetic a TPU writes into every piece of that, with its channel.
            one = (channel[1], kind, arrays, each) if channel else len(out)
            out.setdefault(one, Collective(kind, arrays, axes, devices, each, source))
    return list(out.values())


def _part(shape: tuple[int, ...], devices: int) -> tuple[int, ...]:
    """The shape with its first axis that devices divide cut into their parts."""
    for i, size in enumerate(shape):
        if size % devices == 0:
            return (*shape[:i], size // devices, *shape[i + 1 :])
    return shape


def lines_of(text: str) -> Iterator[tuple[str, str]]:
    """(name of the computation, line) of every operation."""
    computation = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            computation = header["name"]
        elif line.startswith(" "):
            yield computation, line


def times_of(lines: list[tuple[str, str]]) -> dict[str, int]:
    """How often each computation runs in one run of the program; 1 where a loop's length is not
    written.
    """
    calls: dict[str, list[tuple[str, int]]] = {}  # computation -> (its caller, times per call)
    limits: dict[str, list[int]] = {}  # computation -> the integers in it
    loops: list[tuple[str, str, str, int]] = []
    for computation, line in lines:
        constant = _CONSTANT.search(line)
        if constant is not None:
            limits.setdefault(computation, []).append(int(constant[1]))
        loop = _LOOP.search(line)
        if loop is not None:
            known = _KNOWN.search(line)
            length = 0 if known is None else int(known[1])
            loops.append((computation, loop["condition"], loop["body"], length))
            continue
        for names in _CALLS.findall(line):
            for name in re.findall(r"[\w.-]+", names):
                calls.setdefault(name, []).append((computation, 1))
    for computation, condition, body, length in loops:
        limit = length or max(1, *limits.get(condition, [1]))
        calls.setdefault(body, []).append((computation, limit))

    @functools.cache
    def count(name: str) -> int:
        return sum(times * count(caller) for caller, times in calls.get(name, ())) or 1

    return {name: count(name) for name in calls}


def carries_batch(collective: Collective, factor: int, parts: int) -> bool:
    """Whether activations of several devices' windows meet in it.

    `factor` is a prime that divides the windows of a device and no size of a model: an axis that it
    divides is one of the batch or of its tokens. `parts` is data x fsdp. Along "tensor" devices
    share their windows, so what they exchange is their own. Integers are ids of tokens, four bytes
    each: they are gathered where their embeddings are looked up in a table that is split
    (sharding.take_rows), which sends each device its own embeddings by an all-to-all.
    """
    if collective.axes == ("tensor",):
        return False
    whole = factor * (parts if collective.kind in ("all-to-all", "collective-permute") else 1)
    return any(
        size % whole == 0
        for dtype, shape in collective.arrays
        for size in shape
        if not dtype.startswith(("s", "u"))
    )


def _axes(groups: list[list[int]], mesh: Mesh) -> tuple[str, ...]:
    moved = {
        axis
        for group in groups
        for axis, places in enumerate(np.unravel_index(group, mesh.devices.shape))
        if len(set(places.tolist())) > 1
    }
    return tuple(name for i, name in enumerate(mesh.axis_names) if i in moved)


def _groups(line: str, devices: int) -> Iterator[list[int]]:
    """The devices that exchange with each other, by their places in the mesh."""
    written, iota, named = _GROUPS.search(line), _IOTA.search(line), _MESH.search(line)
    if written is not None:
        for group in re.findall(r"\{([\d, ]*)\}", written[1]):
            yield _numbers(group)
    elif iota is not None:
        yield from _iota(iota[2], iota[3]).reshape(_numbers(iota[1])).tolist()
    elif named is not None:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        order = _iota(named[2] or str(math.prod(sizes.values())), named[3])
        yield from _named_groups(sizes, named[4], order)
    elif "replica_groups={}" in line:
        yield list(range(devices))
    else:
        raise ValueError(
            f"collectives: expected groups or pairs of devices, got: {line.strip()[-300:]}"
        )


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(dims: str, order: str | None) -> np.ndarray:
    """Device numbers counted up in the shape `dims`, with its axes in another order if given."""
    numbers = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return numbers if order is None else numbers.transpose(_numbers(order))


def _named_groups(sizes: dict[str, int], along: str, devices: np.ndarray) -> list[list[int]]:
    """Groups of `devices` along axes of XLA's own mesh, or along parts of them: 'a':(2)4 is the
    part of size 4 behind one of size 2.
    """
    parts = {name: [size] for name, size in sizes.items()}
    moved = []
    for name, before, size in _AXIS.findall(along):
        if before:
            rest = sizes[name] // (int(before) * int(size))
            parts[name] = [int(before), int(size), rest]
        moved.append((name, 1 if before else 0))
    dims = [size for pieces in parts.values() for size in pieces]
    starts = {name: sum(len(p) for p in list(parts.values())[:i]) for i, name in enumerate(parts)}
    axes = [starts[name] + offset for name, offset in moved]
    numbers = np.moveaxis(devices.reshape(dims), axes, range(-len(axes), 0))
    return numbers.reshape(-1, math.prod(dims[axis] for axis in axes)).tolist()
