"""A step of the policy through torch.export: as a program that any torch loads, and compiled for
one machine.

step.pt2      ExportedProgram of one step of one episode: `torch.export.load(file).module()`
compiled.pt2  the same through AOTInductor, for the device and processor it is made on:
              `torch._inductor.aoti_load_package(file)`, or libtorch's AOTIModelPackageLoader,
              without Python
io.json       names, shapes and types of what goes in and comes out: see derived.py
config.json, norm_stats.json, tokenizer.json, golden.npz
              the artefact's: the prompt, what the numbers mean, and frames to check a machine with
README.md     how to run them
SHA256SUMS    of all of these

Both take a dict of named tensors, in io.json's order, and return one. They are alternatives, each
with all weights, in the artefact's type.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla_jax.export import derived
from vla_jax.robot.torch_policy import golden, load

FLAG = "--pt2"
Step = Callable[[derived.Named], derived.Named]


def write(origin: Path, out: Path, device: str = "cpu") -> dict[str, list[golden.Row]]:
    """Writes the folder `out` of the artefact in `origin` and returns the proof of each file.

    It computes in the type of the artefact's weights. Raises ValueError for a folder that is there,
    without a C++ compiler, and when a written file computes something else than JAX; no folder is
    left behind then.
    """
    check_compiler()
    dtype = json.loads((origin / "config.json").read_text(encoding="utf-8"))["weights"]
    policy = load(origin, device, dtype)
    given = derived.example(policy)
    proof = {}
    with derived.whole(out, FLAG) as part:
        program = derived.exported(policy, given)
        torch.export.save(program, part / "step.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(part / "compiled.pt2"))
        made = program.module()(given)
        derived.accompany(origin, part, given, made)
        (part / "README.md").write_text(readme(policy.config, device))
        loaded: dict[str, Step] = {
            "step.pt2": torch.export.load(part / "step.pt2").module(),
            "compiled.pt2": torch._inductor.aoti_load_package(str(part / "compiled.pt2")),
        }
        for name, step in loaded.items():
            proof[name] = derived.replay(
                on_arrays(step, given), policy, given, part / "golden.npz", dtype
            )
            derived.check(FLAG, f"{name} and JAX", proof[name])
    return proof


def readme(config: dict[str, Any], device: str) -> str:
    """How to run the folder; tests run its code."""
    return f"""# A step of a robot policy for torch without its Python code

`compiled.pt2` runs on the kind of machine that it was made on ({device}), `step.pt2` wherever torch
does. `io.json` lists inputs and outputs: one episode, fixed shapes. The artefact's files are beside
it: `config.json` (ids before and after the instruction's, image size and resize rule),
`norm_stats.json` (per dataset what the numbers of an action and a state mean: `proprio` and `past`
go in normalised, `action` comes out so, each number where its name stands in `state_names` or
`action_names` of `config.json`; where robots differ, `dims` and `proprio_mask` are True for those
that the robot has, and `embodiment` is its dataset's place in `embodiments`), `tokenizer.json`, and
`golden.npz`, whose frames these programs were checked with.

```python
import hashlib, json, torch
from pathlib import Path

{derived.CHECK}
io = json.loads(Path("io.json").read_text())
# or torch.export.load("step.pt2").module()
program = torch._inductor.aoti_load_package("compiled.pt2")
state = {{
    name: torch.zeros(x["shape"], dtype=getattr(torch, x["dtype"]), device="{device}")
    for name, x in io["inputs"].items() if name.startswith("state")
}}

# inputs: all that is not state. Cameras: {derived.cameras(config)}; `first` is True at an
# episode's first frame.
{derived.held(config)}def step(inputs, state):
    given = {{**inputs, **state}}
    out = program({{name: given[name] for name in io["inputs"]}})
    return out["action"][0], {{name: out["next_" + name] for name in state}}
```
"""


def check_compiler() -> None:
    """Raises ValueError where AOTInductor finds no C++ compiler."""
    from torch._inductor import cpp_builder, exc  # here: they take seconds to import

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ValueError(
            f"{FLAG}: AOTInductor needs a C++ compiler, and none is here ({error}): install g++"
        ) from error


def on_arrays(step: Step, given: derived.Named) -> Callable[[derived.Arrays], derived.Arrays]:
    """A program of tensors as one of arrays; `given` has their types and device."""

    def run(arrays: derived.Arrays) -> derived.Arrays:
        named = {
            name: torch.from_numpy(np.ascontiguousarray(x)).to(given[name])
            for name, x in arrays.items()
        }
        with torch.no_grad():
            return {name: derived.array(x) for name, x in step(named).items()}

    return run
