"""What a compiled program reads from and writes to a chip's memory, read off its text.

XLA's own figure counts the body of a loop once, whatever its length. Here every operation of the
program counts as often as it runs; a fused one reads what it is given once and writes its result
once. What lies in a TPU's vector memory (S(1)) moves nothing, and of an array that is cut or
written in part only that part counts: the layers of a stack are read one by one.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from experiments.composition.collectives import BYTES, lines_of, times_of

_OP = re.compile(r"^\s+(?:ROOT )?%(?P<name>\S+) = (?P<shapes>\(.*?\)|\S+) (?P<kind>[a-z-]+)\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.-]+)")
_FUSED = re.compile(r"calls=%([\w.-]+)")

# They name arrays, or wait for what an earlier operation moves, or are counted by what they run.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "copy-done", "slice-done", "all-gather-done",
    "all-reduce-done", "collective-permute-done", "async-done", "async-update",
    "optimization-barrier",
}  # fmt: skip
PARTS = ("dynamic-slice", "slice", "gather")  # they read of their first operand what they give


class Operation(NamedTuple):
    """A line of the text."""

    name: str
    kind: str
    sizes: tuple[int, ...]  # bytes in the chip's memory of each result
    operands: tuple[str, ...]
    fused: str  # the computation that it runs as one
    number: int  # of a parameter
    root: bool


def read(text: str) -> float:
    """Bytes that one device moves in one run of a compiled program's text."""
    lines = list(lines_of(text))
    computations: dict[str, list[Operation]] = {}
    for computation, line in lines:
        operation = _operation(line)
        if operation is not None:
            computations.setdefault(computation, []).append(operation)
    times = times_of(lines)
    inner = {each.fused for part in computations.values() for each in part if each.fused}
    inner |= set(re.findall(r"to_apply=%([\w.-]+)", text))
    total = 0.0
    for computation, operations in computations.items():
        if computation in inner:
            continue
        sizes = {each.name: each for each in operations}
        moved = sum(_moved(each, sizes, computations) for each in operations)
        total += times.get(computation, 1) * moved
    return total


def _operation(line: str) -> Operation | None:
    found = _OP.match(line)
    if found is None:
        return None
    rest = line[found.end() :]
    fused = _FUSED.search(rest)
    return Operation(
        found["name"],
        found["kind"],
        tuple(_sizes(found["shapes"])),
        tuple(_OPERAND.findall(rest.partition(")")[0])),
        fused[1] if fused and found["kind"] == "fusion" else "",
        int(rest.partition(")")[0]) if found["kind"] == "parameter" else -1,
        "ROOT" in line[: found.start("name")],
    )


def _sizes(shapes: str) -> Iterator[int]:
    for dtype, dims, layout in _ARRAY.findall(shapes):
        inside = "S(" in layout
        count = math.prod(int(size) for size in dims.split(",") if size)
        yield 0 if inside else count * BYTES.get(dtype, 4)


def _moved(
    operation: Operation, sizes: dict[str, Operation], computations: dict[str, list[Operation]]
) -> int:
    """Bytes that one run of an operation moves."""
    kind, written = operation.kind, sum(operation.sizes)
    if kind in FREE:
        return 0
    if kind == "copy-start":  # (where to, where from, context)
        return sum(operation.sizes[:2])
    if kind == "slice-start":  # ((where from), where to, context): it reads as much as it writes
        part = operation.sizes[1]
        return part + (part or _whole(sizes.get(operation.operands[0])))
    given = [_whole(sizes.get(name)) for name in operation.operands]
    if kind in PARTS:
        return written + min(given[0], written)
    if kind == "dynamic-update-slice":
        return 2 * given[1]
    if not operation.fused:
        return written + sum(given)
    body = computations.get(operation.fused, [])
    read = sum(_read(body, i, size) for i, size in enumerate(given))
    return read + _written(body, operation)


def _whole(operation: Operation | None) -> int:
    return 0 if operation is None else sum(operation.sizes)


def _read(body: list[Operation], number: int, size: int) -> int:
    """Of operand `number` of a fusion: the parts that are cut out of it, if that is all that is
    done with it.
    """
    name = next((each.name for each in body if each.number == number), None)
    if name is None:
        return size
    users = [each for each in body if name in each.operands]
    total = 0
    for user in users:
        if user.operands[0] == name and user.kind in PARTS:
            total += sum(user.sizes)
        elif not (user.operands[0] == name and user.kind == "dynamic-update-slice"):
            return size
    return min(size, total)


def _written(body: list[Operation], operation: Operation) -> int:
    """Of a fusion's results: an array that is written in part counts with that part."""
    named = {each.name: each for each in body}
    root = next((each for each in body if each.root), None)
    results = [] if root is None else [root]
    if root is not None and root.kind == "tuple":
        results = [named[name] for name in root.operands]
    if len(results) != len(operation.sizes):
        return sum(operation.sizes)
    total = 0
    for result, size in zip(results, operation.sizes, strict=True):
        while result.kind == "bitcast" and result.operands[0] in named:
            result = named[result.operands[0]]
        if result.kind == "dynamic-update-slice":
            size = min(size, _whole(named.get(result.operands[1])))
        total += size
    return total
