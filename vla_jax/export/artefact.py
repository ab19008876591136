"""The folder a robot computer gets: written beside its place, proven equal to the JAX policy, then
renamed.

model.safetensors  every array by our flat name, one per layer, float32 or bfloat16
config.json        schema, network, names of the policy's dims and robots, cameras, image size and
                   resize rule, prompt, origin
norm_stats.json    per dataset: what the numbers of an action and of a state mean, their
                   normalisation, control_hz; where its recordings were there, how its cameras'
                   frames look and an instruction
tokenizer.json     read by policy_torch/tokenizer.py
policy_torch/      the standalone policy: torch, numpy, safetensors and the standard library; and
                   beside it what stands between it and motors: runtime.py and what that imports,
                   with a file of limits to copy
golden.npz         inputs and JAX's outputs at three stages, over more steps than the window
README.md          how to use it, and the table of the proof
SHA256SUMS         of all of these; `load` checks them
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from flax import nnx
from safetensors.torch import save_file

from vla_jax.actions import places
from vla_jax.export import arrays, describe, record
from vla_jax.models.vla import VLA
from vla_jax.params import abstract
from vla_jax.robot import torch_policy
from vla_jax.robot.torch_policy import folder, golden, tokenizer
from vla_jax.robot.torch_policy.golden import STAGES
from vla_jax.robot.torch_policy.spec import image_sizes
from vla_jax.saved import SavedPolicy

# Largest difference allowed at each stage, relative to the largest number where that is above 1.
# float32: the order of sums. bfloat16 has 8 bits of mantissa, and what counts is that torch errs no
# more than JAX does: the bound is the larger of this one and twice the error of JAX in bfloat16 at
# the stage, both against float32.
BOUNDS = {"float32": 1e-4, "bfloat16": 0.05}
EXTRA_STEPS = 3  # steps of the proof beyond the window

# Of vla_jax/robot: what a control loop needs, beside the policy, and what it is called in an
# artefact, which is flat.
RUNTIME = {
    "runtime.py": "runtime.py",
    "resize.py": "resize.py",
    "sensing.py": "sensing.py",
    "rotations.py": "rotations.py",
    "relative.py": "relative.py",
    "held.py": "held.py",
    "state_words.py": "state_words.py",
    "realtime.py": "realtime.py",
    "events/trigger.py": "trigger.py",
    "events/regret.py": "regret.py",
    "events/calibration.py": "calibration.py",
    "safety/filter.py": "safety.py",
    "safety/cameras.py": "cameras.py",
    "safety/bounds.py": "bounds.py",
    "safety/braking.py": "braking.py",
    "safety/commands.py": "commands.py",
    "safety/decision.py": "decision.py",
    "safety/state.py": "state.py",
    "safety/limits.py": "limits.py",
    "safety/limits_example.yaml": "limits_example.yaml",
    "safety/limits_base_example.yaml": "limits_base_example.yaml",
    "safety/limits_two_arms_example.yaml": "limits_two_arms_example.yaml",
}

# Texts of many kinds, on which the standalone tokenizer must give the ids of the original.
TEXTS = (
    "", "pick up the red block", "Pick up the RED block!", 
    "put 12 apples, (2.5 kg) in the box - now", "a  b   c\td",
    "상자를 왼쪽으로 밀어", "café naïve Ångström", "日本語 中文", "🤖 push", "don't won't it's", 
    "x\u0301 fi \u00a0 end",
)  # fmt: skip

HELD = """
Now and then this head writes no whole chunk: `held` is then True, `actions` leave the robot where
it is, and the network's own (and the proof's) are NaN."""

# How a README goes on for a robot that limits_example.yaml is of.
ARM = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
RUN = """
```python
import time
from policy_torch import limits, runtime, safety, trigger
bounds = safety.SafetyFilter(limits.load("this folder/policy_torch/limits_example.yaml"), 1.0)
robot = runtime.Runtime(policy, bounds, trigger.Settings(horizon=1))
robot.reset({begin})
# A person's word, without which the robot stands still: where it is, x y z roll pitch yaw.
pose = np.array([0.4, 0, 0.2, 0, 0, 0])
bounds.reset("your name", gripper=1.0, pose=pose)
for step in range(2):  # control steps, at control_rate of the limits; the first commands rest
    command = robot.step(images, safety.Reading(time.monotonic(), pose), proprio)
    time.sleep(0.2)  # and send command.action at once
```
"""

Proof = dict[str, list[golden.Row]]  # type computed in -> a row per stage


class Footage(NamedTuple):
    """Of a dataset's recordings: what cameras.statistics says of each camera's frames, and an
    instruction that the prompt has room for, if there is one.
    """

    cameras: dict[str, dict[str, Any]]
    instruction: str | None


def write(
    source: SavedPolicy, out: Path, dtype: str, footage: Mapping[str, Footage] | None = None
) -> Proof:
    """Writes the artefact `out` with weights in `dtype` and returns its proof. `footage` is by
    dataset; without it a robot notices only cameras that are frozen or blank.

    Raises ValueError for a folder that is there, for what has no torch counterpart, and when a
    stage of the replay exceeds BOUNDS; no folder is left behind then.
    """
    if dtype not in BOUNDS:
        raise ValueError(f"dtype: expected one of {', '.join(BOUNDS)}, got {dtype!r}")
    if out.exists():
        raise ValueError(f"--out: {out} is there already; give another folder, or remove it")
    model = cast(VLA, nnx.eval_shape(lambda: source.build(nnx.Rngs(0))))  # sizes without arrays
    body = config(source, model, dtype)
    check_tokenizer(source)
    part = out.with_name(f"{out.name}.part{os.getpid()}")
    part.mkdir(parents=True)
    try:
        _files(source, model, body, part, dtype)
        _norm_stats(source, footage or {}, part)
        proof = prove(source, part, dtype)
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return proof


def config(source: SavedPolicy, model: VLA, dtype: str) -> dict[str, Any]:
    """config.json. Raises ValueError for what the artefact cannot hold."""
    if not source.specs:
        raise ValueError(
            "export: the checkpoint has no action spec; it comes with the data at the first"
            " training"
        )
    network = describe.network(model, source.prompt["length"], source.image_size)
    image: dict[str, Any] = {"size": max(source.image_size)}
    if len(set(source.image_size)) > 1:
        image["sizes"] = dict(zip(model.config.cameras, source.image_size, strict=True))
    spaces: dict[str, set[tuple[str, ...]]] = {"action": set(), "state": set()}
    for name, numbers in source.specs.items():
        spaces["action"].add(numbers.action.names)
        spaces["state"].add(numbers.state.names if numbers.state else ())
        try:
            places(numbers.action.names, source.action_names)
            if model.config.state is not None and numbers.state is not None:
                places(numbers.state.names, source.state_names)
        except ValueError as error:
            raise ValueError(f"export: {name}: {error}") from None
    if model.config.state is not None:
        if spaces["state"] == {()}:
            raise ValueError("export: the model sees the state, and the checkpoint has no spec")
        network["sequence"]["state"]["masked"] = len(spaces["state"]) > 1
    looks = network["head"]["kind"] in ("flow", "expert", "discrete")
    network["head"]["masked"] = looks and spaces["action"] != {source.action_names}
    return {
        "schema": folder.SCHEMA,
        "network": network,
        "action_names": list(source.action_names),
        "state_names": list(source.state_names),
        "embodiments": list(source.embodiments),
        "cameras": list(model.config.cameras),
        "image": {**image, "format": "uint8 RGB, rows first", "resize": source.resize},
        "prompt": source.prompt,
        "sensors": [dataclasses.asdict(sensor) for sensor in model.config.sensors],
        "weights": dtype,
        "origin": source.origin,
    }


def check_tokenizer(source: SavedPolicy) -> None:
    """Raises ValueError when the standalone tokenizer does not compute this one, or not the same
    ids.
    """
    standalone = tokenizer.Tokenizer(source.tokenizer, source.prompt)
    for text in (*TEXTS, record.INSTRUCTION):
        expected, got = list(source.encode(text)), standalone.encode(text)
        if expected != got:
            raise ValueError(
                f"export: tokenizer: {text!r}: expected the ids {expected}, got {got} from"
                " tokenizer.py"
            )


def prove(source: SavedPolicy, part: Path, dtype: str) -> Proof:
    """Replays in torch, from the written files, what JAX recorded; writes README.md and SHA256SUMS.

    Both compute in float32 on the weights as they are written; a bfloat16 artefact is also computed
    in bfloat16. Raises ValueError when a stage exceeds its bound.
    """
    sign(part)
    proof: Proof = {}
    for compute in dict.fromkeys(("float32", dtype)):
        proof[compute] = golden.replay(
            folder.load(part, "cpu", compute), part / "golden.npz", compute
        )
        bad = [row.stage for row in proof[compute] if row.exceeds]
        if bad:
            raise ValueError(
                f"export: torch and JAX differ at {', '.join(bad)}; no artefact is"
                f" written\n{report(proof)}\nthe first stage that differs is where to look"
            )
    body = json.loads((part / "config.json").read_text())
    stats = json.loads((part / "norm_stats.json").read_text(encoding="utf-8"))["datasets"]
    (part / "README.md").write_text(readme(body, source, stats, report(proof)), encoding="utf-8")
    sign(part)
    return proof


def report(proof: Proof) -> str:
    """The tables of a proof."""
    return "\n".join(
        f"computed in {compute}\n{golden.table(rows)}" for compute, rows in proof.items()
    )


def readme(body: dict[str, Any], source: SavedPolicy, stats: dict[str, Any], proof: str) -> str:
    """What the one who gets the folder must know; tests run its code."""
    head, sequence = body["network"]["head"], body["network"]["sequence"]
    specs = "\n".join(
        f"- `{name}`, {numbers.control_hz or 'unknown'} steps per second:"
        f" {numbers.targets}{' ' * bool(numbers.targets)}{', '.join(numbers.action.names)}"
        for name, numbers in source.specs.items()
    )
    sensed = ", ".join(f"{each['name']} ({each['kind']})" for each in body["sensors"])
    sensors = (
        f"\n- Sensors: {sensed}: `act(images, proprio, sensors={{...}})`, readings as\n"
        "  `policy_torch/sensing.py` says; what is left out the policy does without."
        if sensed
        else ""
    )
    dataset = proven(source)
    ours = source.specs[dataset]
    state = ours.state if sequence["state"] or ours.action.relative else None
    proprio = _states(source) if sequence["state"] or ours.action.relative else "not looked at"
    inside = [f"`{name}`" for name, numbers in source.specs.items() if numbers.action.relative]
    if inside:
        proprio += (
            f"\n- Actions of {', '.join(inside)} are relative to the state inside: what `act` gives"
            " is absolute, and it needs the state for it"
        )
    names = ours.action.names
    dims, arm = len(names), names == ARM
    others = ", which is of a 7-D arm; limits_base_example.yaml, limits_two_arms_example.yaml"
    others = "" if arm else others
    said = stats[dataset].get("instruction")
    held = HELD if head["kind"] == "fast" else ""
    example = "proprio = None"
    if state and state.names:
        example = f"proprio = frames['proprio'][0]  # {', '.join(state.names)}"
    begin = f"{said!r}, {dataset!r}" if said else f'str(frames["instruction"]), {dataset!r}'
    return f"""# A robot policy

Backbone {body["network"]["backbone"]["kind"]}, head {head["kind"]}, from
{body["origin"]["checkpoint"]}. Needs torch (2.4.1 to 2.13 were tried), numpy and safetensors,
nothing else.

```python
import sys; sys.path.insert(0, "this folder")
import numpy as np
from policy_torch import load
policy = load("this folder", device="cpu", dtype="{body["weights"]}")
frames = np.load("this folder/golden.npz")  # recorded ones; your robot has its own
images = {{name: frames[f"image/{{name}}"][0] for name in policy.cameras}}
{example}
policy.reset({begin})  # what to do, whose robot it is
out = policy.act(images, proprio)  # once per control step
out["actions"]  # float32 [{head["chunk"]}, {dims}] in robot units
```

`arm`, `gripper`, `confidence`, `held` and `timing` beside it: see policy_torch/policy.py.{held}
That is the bare
policy; on a robot run it behind limits of speed and workspace (policy_torch/runtime.py,
limits_example.yaml{others}; reading a file of limits needs pyyaml).
{RUN.format(begin=begin) if arm else ""}
{_images(body)}
- History: the last {sequence["window"]} frames ({sequence["history"]}), kept by the policy.
- State: {proprio}.{sensors}

Actions, by dataset (gripper: 1 is open):

{specs}

## Proof

The same inputs through JAX and through this folder, {sequence["window"] + EXTRA_STEPS} steps;
`python -B -m policy_torch
--device cuda` repeats it on this machine. Largest difference by stage:

```
{proof}
```
"""


def _images(body: dict[str, Any]) -> str:
    """How large the images are, a line of each camera where they differ."""
    sizes = {f"Images of {name}": size for name, size in image_sizes(body).items()}
    if "sizes" not in body["image"]:
        sizes = {"Images": body["image"]["size"]}
    return "\n".join(
        f"- {what}: uint8 RGB [{size}, {size}, 3], resized by\n"
        f"  `policy_torch.resize.resize(frame, {size}, {body['image']['resize']!r})`."
        for what, size in sizes.items()
    )


def proven(source: SavedPolicy) -> str:
    """The dataset whose robot the golden frames are of: the one that lacks the most dims."""
    return min(source.specs, key=lambda name: len(source.specs[name].action.names))


def _states(source: SavedPolicy) -> str:
    """What of the state is looked at, by dataset where they differ."""
    each = {
        name: numbers.state.names if numbers.state else () for name, numbers in source.specs.items()
    }
    if len(set(each.values())) == 1:
        return ", ".join(next(iter(each.values())))
    lines = [f"    - `{name}`: {', '.join(names) or 'none'}" for name, names in each.items()]
    return "\n".join(["by dataset", *lines])


def _norm_stats(source: SavedPolicy, footage: Mapping[str, Footage], part: Path) -> None:
    stats: dict[str, Any] = {}
    for name, numbers in source.specs.items():
        stats[name] = {
            "action": numbers.action.to_json(),
            "state": numbers.state.to_json() if numbers.state else None,
            "control_hz": numbers.control_hz,
            "sensors": {each: spec.to_json() for each, spec in numbers.sensors.items()},
            "targets": numbers.targets,
            "motion": list(numbers.motion),
        }
        if name in footage:
            stats[name] |= footage[name]._asdict()
    (part / "norm_stats.json").write_text(json.dumps({"datasets": stats}, indent=1))


def _files(source: SavedPolicy, model: VLA, body: dict[str, Any], part: Path, dtype: str) -> None:
    """Everything but norm_stats.json, README.md and SHA256SUMS."""
    text = json.dumps(body, indent=1)
    (part / "config.json").write_text(text)
    (part / "tokenizer.json").write_text(
        json.dumps(source.tokenizer, ensure_ascii=False), encoding="utf-8"
    )
    code = Path(torch_policy.__file__).parent
    (part / "policy_torch").mkdir()
    copied = {file: file.name for file in sorted(code.glob("*.py"))}
    copied |= {code.parent / ours: flat for ours, flat in RUNTIME.items()}
    for file, flat in copied.items():
        (part / "policy_torch" / flat).write_text(
            flattened(file.read_text(encoding="utf-8")), "utf-8"
        )
    kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(value, np.float32)).to(kind)
        for name, value in arrays.unstacked(model, source.params).items()
    }
    header = {"schema": str(folder.SCHEMA), "config": hashlib.sha256(text.encode()).hexdigest()}
    save_file(tensors, part / "model.safetensors", header)
    (part / "model.safetensors").chmod(0o644)  # save_file leaves it to its writer alone
    del tensors
    np.savez(part / "golden.npz", **_golden(source, model, dtype))  # type: ignore[arg-type]


def flattened(code: str) -> str:
    """A file of the policy or of RUNTIME with its relative imports as they are in an artefact."""
    for ours, flat in RUNTIME.items():
        module = ours.removesuffix(".py").replace("/", ".")
        for dots in (".", ".."):
            code = code.replace(
                f"from {dots}{module} import", f"from .{flat.removesuffix('.py')} import"
            )
    return code


def _golden(source: SavedPolicy, model: VLA, dtype: str) -> record.Golden:
    """What JAX makes of the weights as the file has them, and the bounds for each type that is
    proven.
    """
    name = proven(source)
    io = source.io(name)
    graphdef, steps = abstract(source.build)[0], model.config.window + EXTRA_STEPS
    params = {key: jnp.asarray(_rounded(value, dtype)) for key, value in source.params.items()}
    recorded = record.record(graphdef, params, io, steps)
    size = [golden.row(stage, recorded[stage], recorded[stage], 0.0).largest for stage in STAGES]
    size = [max(1.0, largest) for largest in size]
    bounds = {"bound/float32": BOUNDS["float32"] * np.array(size)}
    if dtype == "bfloat16":
        half = record.record(
            graphdef, {key: x.astype(jnp.bfloat16) for key, x in params.items()}, io, steps
        )
        own = [golden.row(each, half[each], recorded[each], 0.0).difference for each in STAGES]
        bounds["bound/bfloat16"] = np.maximum(
            BOUNDS["bfloat16"] * np.array(size), 2 * np.array(own)
        )
    return {**recorded, **bounds, "dataset": np.array(name)}


def _rounded(value: np.ndarray, dtype: str) -> np.ndarray:
    """In float32, as the file has it."""
    value = np.asarray(value, np.float32)
    return value if dtype == "float32" else value.astype(ml_dtypes.bfloat16).astype(np.float32)


def sign(where: Path) -> None:
    """Writes SHA256SUMS; `sha256sum -c` reads it too."""
    files = sorted(file for file in where.rglob("*") if file.is_file() and file.name != folder.SUMS)
    lines = [
        f"{folder.digest(file)}  {file.relative_to(where)}\n"
        for file in files
        if "__pycache__" not in file.parts
    ]
    (where / folder.SUMS).write_text("".join(lines))
