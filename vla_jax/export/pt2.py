"""A step of the policy through torch.export: as a program that any torch loads, and compiled for one machine.

step.pt2      ExportedProgram of one step of one episode: `torch.export.load(file).module()`
compiled.pt2  the same through AOTInductor, for the device and processor it is made on:
              `torch._inductor.aoti_load_package(file)`, or libtorch's AOTIModelPackageLoader, without Python
io.json       names, shapes and types of what goes in and comes out: see derived.py
config.json, norm_stats.json, tokenizer.json, golden.npz
              the artefact's: the prompt, what the numbers mean, and frames to check a machine with
SHA256SUMS    of all of these

Both take a dict of named tensors, in io.json's order, and return one. They are alternatives, each with all weights, in
the artefact's type.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vla_jax.export import derived
from vla_jax.robot.torch_policy import golden, load

FLAG = "--pt2"
Step = Callable[[derived.Named], derived.Named]


def write(origin: Path, out: Path, dtype: str, device: str = "cpu") -> dict[str, list[golden.Row]]:
    """Writes the folder `out` of the artefact in `origin` and returns the proof of each file.

    `dtype` is what is computed in. Raises ValueError for a folder that is there, without a C++ compiler, and when a
    written file computes something else than JAX; no folder is left behind then.
    """
    check_compiler()
    policy = load(origin, device, dtype)
    given = derived.example(policy)
    proof = {}
    with derived.whole(out, FLAG) as part:
        program = derived.exported(policy, given)
        torch.export.save(program, part / "step.pt2")
        torch._inductor.aoti_compile_and_package(program, package_path=str(part / "compiled.pt2"))
        made = program.module()(given)
        derived.accompany(origin, part, given, made)
        loaded: dict[str, Step] = {
            "step.pt2": torch.export.load(part / "step.pt2").module(),
            "compiled.pt2": torch._inductor.aoti_load_package(str(part / "compiled.pt2")),
        }
        for name, step in loaded.items():
            proof[name] = derived.replay(_on_arrays(step, given), policy, given, part / "golden.npz", dtype)
            derived.check(FLAG, name, proof[name])
    return proof


def check_compiler() -> None:
    """Raises ValueError where AOTInductor finds no C++ compiler."""
    from torch._inductor import cpp_builder, exc  # here: they take seconds to import

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise ValueError(
            f"{FLAG}: AOTInductor needs a C++ compiler, and none is here ({error}): install g++"
        ) from error


def _on_arrays(step: Step, given: derived.Named) -> Callable[[derived.Arrays], derived.Arrays]:
    def run(arrays: derived.Arrays) -> derived.Arrays:
        named = {name: torch.from_numpy(np.ascontiguousarray(x)).to(given[name]) for name, x in arrays.items()}
        with torch.no_grad():
            return {name: derived.array(x) for name, x in step(named).items()}

    return run
