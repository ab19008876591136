"""What the outputs derived of an artefact share: one step of the policy as a function of named
tensors, and its proof.

All are of one episode and of fixed shapes; io.json lists their inputs and outputs. What a step
leaves behind comes out as next_X and is the next step's input X; zeros stand before an episode's
first frame, where `first` is True.

The proof continues the artefact's: the golden frames, of which it holds what JAX computed, go
through the written files with the state carried from step to step.

Axes: as in vla_jax/robot/torch_policy/network.py, with b = 1.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.utils._pytree import tree_map

from vla_jax.export import artefact
from vla_jax.robot.torch_policy import Policy, golden
from vla_jax.robot.torch_policy.decoding import repeated
from vla_jax.robot.torch_policy.network import (
    SENSOR,
    Frame,
    Grown,
    Inputs,
    Network,
    State,
    inputs_of,
)

Named = dict[str, Tensor]
Arrays = dict[str, np.ndarray]
COPIED = ("config.json", "norm_stats.json", "tokenizer.json", "golden.npz")
STATE = "state"
# For the code in a README.md: nothing is loaded that is not as it was written.
CHECK = """for line in Path("SHA256SUMS").read_text().splitlines():
    found, name = line.split("  ", 1)
    if hashlib.sha256(Path(name).read_bytes()).hexdigest() != found:
        raise ValueError(f"{name}: not as it was exported; copy or export it again")
"""


class OneStep(nn.Module):
    """Named inputs -> action, readout and vision (the golden stages), probability where there is
    one, and next_*.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, given: Named) -> Named:
        inputs = inputs_of(given)
        visual = self.network.vision(inputs.images)
        frame = self.network.frame(visual, inputs)
        state, step = self.network.step(_gathered(given), frame, inputs)
        out = {
            "action": step.action.float(),
            "readout": step.readout,
            "vision": torch.cat(visual, 1).float(),
        }
        if step.probability is not None:
            out["probability"] = step.probability
        return out | {f"next_{name}": x for name, x in _named(state).items()}


def example(policy: Policy) -> Named:
    """Inputs of a step, in their order, of zeros."""
    network, config, device = policy.network, policy.config, policy.network.readout_embedding.device
    size, length = config["image"]["size"], config["prompt"]["length"]
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "images": ((len(policy.cameras), size, size, 3), torch.uint8),
        "prompt": ((length,), torch.int64),
        "prompt_mask": ((length,), torch.bool),
        "first": ((), torch.bool),
    }
    if network.state_dims:
        shapes["proprio"] = (network.state_dims,), torch.float32
    if network.past is not None:
        shapes["past"] = (network.past.dims,), torch.float32
    if network.head.noise_shape is not None:
        shapes["noise"] = network.head.noise_shape, torch.float32
    if network.masks_dims:
        shapes["dims"] = (len(policy.action_names),), torch.bool
    if network.masks_state:
        shapes["proprio_mask"] = (len(policy.state_names),), torch.bool
    if network.embodiment is not None:
        shapes["embodiment"] = (), torch.int64
    for sensor in policy.sensors:
        name, kind = f"{SENSOR}{sensor.name}", torch.from_numpy(np.zeros(0, sensor.dtype)).dtype
        shapes |= {name: (sensor.shape, kind), f"{name}_mask": (sensor.shape[:-1], torch.bool)}
    given = {
        name: torch.zeros(1, *shape, dtype=kind, device=device)
        for name, (shape, kind) in shapes.items()
    }
    with torch.inference_mode():
        inputs = inputs_of(given)
        state = network.initial(network.frame(network.vision(inputs.images), inputs))
    return given | {name: x.clone() for name, x in _named(state).items()}


def exported(policy: Policy, given: Named) -> torch.export.ExportedProgram:
    """The step of a policy as torch.export sees it."""
    network = policy.network
    network.repeat = looped
    try:
        with torch.no_grad():
            return torch.export.export(OneStep(network).eval(), (given,), strict=False)
    finally:
        network.repeat = repeated


def looped(decode_next: Callable[[Any], Any], done: Any, times: int, end: int | None = None) -> Any:
    """`repeated` as a loop that a program holds once, whatever its length. Its body may not write
    into what it is given (a pass over a cache does): it gets copies. `done` holds one token.
    """

    def copied(now: Any) -> tuple[Any]:
        return (decode_next(tree_map(torch.clone, now)),)

    if end is None:
        return while_loop(lambda now: now.num_tokens[0] <= times, copied, (done,))[0]
    return while_loop(
        lambda now: (now.num_tokens[0] <= times) & ~(now.ids == end).any(1).all(), copied, (done,)
    )[0]


def replay(
    run: Callable[[Arrays], Arrays], policy: Policy, given: Named, file: Path, dtype: str
) -> list[golden.Row]:
    """The rows of golden.STAGES for what `run` makes of the golden frames, the state carried by
    hand.

    `policy` is the artefact's: it only prepares the inputs. `given` is of `example`.
    """
    state = {name: np.zeros_like(array(x)) for name, x in given.items() if name.startswith(STATE)}
    replayed: dict[str, list[np.ndarray]] = {stage: [] for stage in golden.STAGES}
    for inputs in frames(policy, file):
        named = inputs._asdict() | inputs.sensors
        now = {name: array(x) for name, x in named.items() if isinstance(x, Tensor)}
        out = run({name: (state | now)[name] for name in given})
        state = {name: out[f"next_{name}"] for name in state}
        for stage in golden.STAGES:
            replayed[stage].append(out[stage][0])
    with np.load(file, allow_pickle=False) as archive:
        wanted, limits = (
            {stage: archive[stage] for stage in golden.STAGES},
            archive[f"bound/{dtype}"].tolist(),
        )
    # Artefacts of before 2026-11-29 hold the tokens of each camera apart.
    wanted["vision"] = wanted["vision"].reshape(np.stack(replayed["vision"]).shape)
    rows = []
    for stage, limit in zip(golden.STAGES, limits, strict=True):
        rows.append(golden.row(stage, np.stack(replayed[stage]), wanted[stage], limit))
    return rows


def frames(policy: Policy, file: Path) -> Iterator[Inputs]:
    """What goes into the network at each step of a golden file, on the CPU."""
    with np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    policy.reset(str(arrays["instruction"]), str(arrays["dataset"]))
    for i in range(len(arrays["action"])):
        prepared = policy.prepared(
            {name: arrays[f"image/{name}"][i] for name in policy.cameras},
            arrays["proprio"][i] if "proprio" in arrays else None,
            arrays["robot"][i - 1, 0] if i else None,
            arrays["noise"][i] if "noise" in arrays else None,
            golden.given(policy.sensors, arrays, i),
        )
        yield inputs_of({name: torch.from_numpy(x[None]) for name, x in prepared.items()})
        policy.commit_step(None, arrays["action"][i], None, prepared.get("measured"))


@contextmanager
def whole(out: Path, flag: str) -> Iterator[Path]:
    """A folder beside `out` to be filled, which is then signed and becomes `out`, or is removed
    after an error.

    Raises ValueError for a folder that is there.
    """
    if out.exists():
        raise ValueError(f"{flag}: {out} is there already; give another folder, or remove it")
    part = out.with_name(f"{out.name}.part{os.getpid()}")
    part.mkdir(parents=True)
    try:
        yield part
        artefact.sign(part)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def cameras(config: dict[str, Any]) -> str:
    """What a README.md says of the cameras, in their order."""
    names = ", ".join(config["cameras"])
    if "sizes" not in config["image"]:
        return names
    return f"{names}, of image.sizes in config.json, smaller ones in the upper left"


def held(config: dict[str, Any]) -> str:
    """What a README.md says of actions that are none; "" where there are no such."""
    if config["network"]["head"]["kind"] != "fast":
        return ""
    return "# An action of NaN is none: no whole string was written. Hold the robot where it is.\n"


def accompany(origin: Path, part: Path, given: Named, made: dict[str, Any]) -> None:
    """Writes what a runtime needs beside the program: what the artefact says of it, and io.json.

    `made` are example outputs, or anything with their shapes and dtypes.
    """
    for name in COPIED:
        shutil.copyfile(origin / name, part / name)
    body = {
        side: {
            name: {"dtype": str(x.dtype).removeprefix("torch."), "shape": list(x.shape)}
            for name, x in ports.items()
        }
        for side, ports in (("inputs", given), ("outputs", made))
    }
    (part / "io.json").write_text(json.dumps(body, indent=1))


def check(flag: str, both: str, rows: list[golden.Row]) -> None:
    """Raises ValueError when a stage exceeds its bound."""
    bad = [row.stage for row in rows if row.exceeds]
    if bad:
        raise ValueError(
            f"{flag}: {both} differ at {', '.join(bad)}; no folder is written\n{golden.table(rows)}"
        )


def array(x: Tensor) -> np.ndarray:
    """As numpy has it, which does not know bfloat16."""
    return (x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy()


def _named(state: State) -> Named:
    """The tensors of a state under their names."""
    if isinstance(state, Frame | Grown):
        return {f"{STATE}_{name}": x for name, x in state._asdict().items() if x is not None}
    return {} if state is None else {STATE: state}


def _gathered(given: Named) -> State:
    """The inverse of `_named`."""
    for kind, field in ((Frame, "tokens"), (Grown, "readouts")):
        if f"{STATE}_{field}" in given:
            return kind(*(given.get(f"{STATE}_{name}") for name in kind._fields))  # type: ignore[arg-type]
    return given.get(STATE)
