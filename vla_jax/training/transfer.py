"""A run that begins from another run's checkpoint: which arrays it takes over, and how.

The other run may have had another head, chunk, adapters of another rank, no average: what fits by
name and shape is kept, the rest is dropped or new, and said before anything is allocated. Where an
axis stands for action dims, numbers of the state or robots, its places are matched by their names.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vla_jax.models import lora
from vla_jax.params import Params
from vla_jax.training.checkpoint import (
    complete_steps,
    find,
    load_arrays,
    load_params,
    pack,
    placed,
    read,
    read_arrays,
    saved_arrays,
    unpack,
)
from vla_jax.training.state import TrainState


class NamedAxis(NamedTuple):
    """An axis of an array, and what stands at each of its places."""

    axis: int
    names: tuple[str, ...]


NamedAxes = Mapping[str, NamedAxis]  # by parameter; of others no place has a name


class Part(NamedTuple):
    """Places of an axis here, and there what is taken over to them."""

    axis: int
    here: list[int]
    there: list[int]


class Transfer(NamedTuple):
    """What of a checkpoint becomes what of a state.

    Attributes:
        where: the folder of the checkpoint's step.
        full: whether the optimizer and the step are taken over too.
        merged: whether the adapters there become part of the kernels.
        kept: parameters that are taken over.
        parts: parameters that are taken over place by place.
        new: parameters that begin at random, in part where they are among `parts` -> why.
        dropped: parameters there that are not wanted -> why.
        state: of the item "state" what is taken over, wanted name -> saved name; with `full`.
        moments: how many arrays the optimizer has here.
    """

    where: Path
    full: bool
    merged: bool
    kept: list[str]
    parts: dict[str, Part]
    new: dict[str, str]
    dropped: dict[str, str]
    state: dict[str, str]
    moments: int

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return int(self.where.name)

    def check(self, allow_missing: Sequence[str]) -> None:
        """Raises ValueError when a parameter would be new that no pattern of `allow_missing` names;
        adapters are new by nature.
        """
        lost = sorted(
            name
            for name in lora.split_adapters(self.new)[0]
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_missing)
        )
        if lost:
            patterns = ",".join(dict.fromkeys(name.split("/")[0] + "/*" for name in lost))
            raise ValueError(
                f"{self}\nmodel.start: expected all parameters of the policy, {len(lost)} would"
                f" begin at random: {', '.join(lost[:4])}{', ...' if lost[4:] else ''}; say so with"
                f" --config.model.allow_missing={patterns}, or give the config of that run"
            )

    def __str__(self) -> str:
        what = f"parameters, optimizer and step {self.step}" if self.full else "parameters"
        merged = "; its adapters are merged into their kernels" if self.merged else ""
        lines = [f"start: {what} of {self.where}{merged}", f"  kept     {len(self.kept)} arrays"]
        whole = sorted(self.parts.keys() - self.new.keys())
        if whole:
            lines.append(f"  by name  {len(whole)} arrays: {', '.join(whole)}")
        for word, arrays in (("dropped", self.dropped), ("new", self.new)):
            lines.append(f"  {word:8s} {len(arrays)} arrays")
            lines += [f"    {name}: {why}" for name, why in sorted(arrays.items())]
        if self.full:
            held = sum(name.startswith("opt:") for name in self.state)
            lines.append(f"  optimizer: {held} arrays kept, {self.moments - held} new (zero)")
        return "\n".join(lines)


def plan(
    directory: Path | str,
    abstract: TrainState,
    full: bool,
    here: NamedAxes | None = None,
    there: NamedAxes | None = None,
) -> Transfer:
    """How the policy in `directory`, or with `full` its newest checkpoint, becomes a state like
    `abstract`; reads no array. `here` and `there` are the named axes of either.

    Raises ValueError without a complete checkpoint, and with `full` for one that holds no
    optimizer.
    """
    steps = complete_steps(directory) if full else []  # the whole state is that of the newest
    where = find(directory, steps[-1] if steps else None)
    saved = {name: tuple(leaf.shape) for name, leaf in saved_arrays(where / "params").items()}
    wanted = {name: leaf.shape for name, leaf in {**abstract.params, **abstract.frozen}.items()}
    base, adapters = lora.split_adapters(saved)
    merged = bool(adapters) and not (full and adapters == lora.split_adapters(wanted)[1])
    found = base if merged else saved
    other = _renamed(here or {}, there or {})
    fits = {name for name, shape in wanted.items() if found.get(name) == shape}
    kept = [name for name in wanted if name in fits and name not in other]
    parts = {
        name: part
        for name, part in other.items()
        if part.here
        and name in wanted.keys() & found.keys()
        and _without(wanted[name], part) == _without(found[name], part)
    }
    whole = {name for name, part in parts.items() if len(part.here) == wanted[name][part.axis]}
    new = {
        name: _why(shape, found.get(name), name, parts, here or {})
        for name, shape in wanted.items()
        if name not in kept and name not in whole
    }
    dropped = {
        name: f"shape {shape}, here {wanted[name]}" if name in wanted else f"shape {shape}"
        for name, shape in found.items()
        if name not in kept and name not in parts
    }
    state = _state_names(where, abstract, kept) if full else {}
    moments = len(jax.tree.leaves(abstract.opt_state))
    return Transfer(where, full, merged, kept, parts, new, dropped, state, moments)


def _renamed(here: NamedAxes, there: NamedAxes) -> dict[str, Part]:
    """Of the parameters whose axes have other names here than there: what is the same."""
    parts = {}
    for name in here.keys() & there.keys():
        own, theirs = here[name].names, there[name].names
        if own != theirs:
            same = [each for each in own if each in theirs]
            at = [theirs.index(each) for each in same]
            parts[name] = Part(here[name].axis, [own.index(each) for each in same], at)
    return parts


def _without(shape: tuple[int, ...], part: Part) -> tuple[int, ...]:
    """The shape without the axis of the part."""
    return (*shape[: part.axis], *shape[part.axis + 1 :])


def _why(
    shape: tuple[int, ...],
    found: tuple[int, ...] | None,
    name: str,
    parts: Mapping[str, Part],
    here: NamedAxes,
) -> str:
    """Why the parameter of that name begins at random."""
    if found is None:
        return f"shape {shape}, not there"
    why = f"shape {shape}, there {found}" if found != shape else f"shape {shape}, of other names"
    if name in parts:
        taken = dict.fromkeys(here[name].names[at].split(" ")[0] for at in parts[name].here)
        why += f"; kept of it: {', '.join(taken)}"
    return why


def parameters(transfer: Transfer, specs: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """The kept parameters, in the types and shardings of `specs`."""
    return load_arrays(transfer.where.parent, {name: specs[name] for name in transfer.kept})


def partly(transfer: Transfer, fresh: Mapping[str, jax.Array]) -> Params:
    """The parameters of transfer.parts: the `fresh` ones with the places taken over."""
    there = read_arrays(transfer.where / "params", list(transfer.parts))
    out = {}
    for name, part in transfer.parts.items():
        rows = np.take(there[name], part.there, axis=part.axis)
        at = (*[slice(None)] * part.axis, np.array(part.here, int))
        put = jax.jit(
            lambda x, rows, at=at: x.at[at].set(rows.astype(x.dtype)),
            out_shardings=fresh[name].sharding,
        )
        out[name] = put(fresh[name], rows)
    return out


def whole_state(
    transfer: Transfer, abstract: TrainState, initialise: Callable[[list[str]], Params]
) -> TrainState:
    """The state that goes on from the checkpoint's: what is new begins at random (parameters, which
    `initialise` makes) or at zero (moments).

    Where an average is kept and there was none, it begins at the parameters.
    """
    state, params = pack(abstract)
    specs = {
        saved: state[wanted] if wanted in state else params[wanted.removeprefix("params:")]
        for wanted, saved in transfer.state.items()
    }
    there = read(transfer.where / "state", specs)
    # What trained beside its average goes on from itself, unless an average is kept here too.
    apart = set() if abstract.ema else {name for name in transfer.kept if f"params:{name}" in there}
    wanted = {name: params[name] for name in transfer.kept if name not in apart}
    if transfer.merged:
        values = load_params(transfer.where.parent, transfer.step)
        taken = {name: placed(values[name], spec) for name, spec in wanted.items()}
    else:
        taken = read(transfer.where / "params", wanted)
    taken |= {name: there[f"params:{name}"] for name in apart}
    lacking = list(transfer.new | transfer.parts)
    fresh = initialise(lacking) if lacking else {}
    fresh |= partly(transfer, fresh) if transfer.parts else {}
    taken |= {name: value.astype(params[name].dtype) for name, value in fresh.items()}
    held = {}
    for name, spec in state.items():
        if name in transfer.state:
            held[name] = there[transfer.state[name]]
        elif name.startswith("params:"):  # a copy: both are donated later
            held[name] = jnp.copy(taken[name.removeprefix("params:")])
        else:
            held[name] = placed(np.zeros(spec.shape), spec)
    return unpack(held, taken, abstract)


def _state_names(where: Path, abstract: TrainState, kept: list[str]) -> dict[str, str]:
    """Wanted name -> saved name, of what the item "state" has to give."""
    saved = {name: tuple(leaf.shape) for name, leaf in saved_arrays(where / "state").items()}
    wanted = {name: leaf.shape for name, leaf in pack(abstract)[0].items()}
    # The moments' place in the chain depends on what else the optimizer did.
    moments = {_moment(name): name for name in saved if name.startswith("opt:")}
    params = {**abstract.params, **abstract.frozen}
    if not moments:
        raise ValueError(
            f"{where}: holds no optimizer to go on with, as an import does; give"
            " --config.model.start_state=params"
        )
    names = {"step": "step"}
    for name, shape in wanted.items():
        if name.startswith("opt:") and saved.get(moments.get(_moment(name), "")) == shape:
            own = _moment(name).partition(":")[2]
            if own not in params or own in kept:  # else its places may mean something else
                names[name] = moments[_moment(name)]
    for name in kept:
        if f"params:{name}" in saved:
            names[f"params:{name}"] = f"params:{name}"
    return names


def _moment(name: str) -> str:
    """ "opt:1:mu:head/kernel" -> "mu:head/kernel"."""
    return name.split(":", 2)[2]
