"""Turns a trained checkpoint into a folder that a robot computer can run without JAX, TensorFlow or
transformers.

    python -m experiments.export --checkpoint runs/NAME/checkpoints --out artefacts/NAME
    python -m experiments.export --checkpoint DIR --out DIR --dtype bfloat16 [--step N] [--tokenizer
    DIR] [--data ROOT]
    python -m experiments.export --checkpoint DIR --out DIR --onnx DIR --pt2 DIR --hf DIR
    python -m experiments.export --artefact DIR --pt2 DIR --device cuda       # of an artefact that
                                                                              is there

--checkpoint is the checkpoints directory of a run (averaged parameters if it kept them, adapters
merged) or of import_weights. The folder (vla_jax/export/artefact.py says what is in it) is written
only if the torch policy in it equals the JAX policy at three stages; the table is printed.
Checkpoints of parts that torch does not compute are refused by name. With --data, the folder of the
recordings it was trained on, the artefact knows how its cameras' frames look: a robot then notices
swapped channels and pictures unlike those, beside frozen and blank ones.

What is derived of an artefact is a folder of its own, written only if it computes what the artefact
does:
--onnx  one step in ONNX, float32, with the state as inputs and outputs (vla_jax/export/onnx.py)
--pt2   the same through torch.export, and compiled by AOTInductor for the machine this runs on
        (pt2.py)
--hf    the backbone as transformers reads it, the rest of the policy beside it (hf.py); PaliGemma
        only
"""

import argparse
import dataclasses
import importlib.metadata
from pathlib import Path

from experiments.composition import footage, sources
from vla_jax import command, saved
from vla_jax.export import artefact, hf, onnx, pt2
from vla_jax.progress import Progress
from vla_jax.robot.torch_policy import golden
from vla_jax.training.checkpoint import load_meta


def main(argv: list[str]) -> None:
    """Exports one checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", type=Path, default=None, help="a checkpoints directory")
    parser.add_argument("--out", type=Path, default=None, help="the folder to write")
    parser.add_argument(
        "--artefact", type=Path, default=None, help="a folder written before, to derive others of"
    )
    parser.add_argument(
        "--onnx", type=Path, default=None, help="the folder with an ONNX program to write"
    )
    parser.add_argument(
        "--pt2", type=Path, default=None, help="the folder with programs of torch.export to write"
    )
    parser.add_argument("--device", default="cpu", help="that --pt2 compiles for")
    parser.add_argument("--hf", type=Path, default=None, help="the Hugging Face folder to write")
    parser.add_argument(
        "--step", type=int, default=None, help="of the checkpoint; by default the best or newest"
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(artefact.BOUNDS),
        default=None,
        help="of the weights; its config's model.act_dtype by default",
    )
    parser.add_argument(
        "--tokenizer", type=Path, default=None, help="folder, where the checkpoint's has moved"
    )
    parser.add_argument(
        "--data", default=None, help="with --checkpoint: where the datasets it learnt from are"
    )
    args = parser.parse_args(argv)
    if args.data is not None and args.checkpoint is None:
        raise ValueError("--data: expected --checkpoint with it; an artefact is not changed")
    if (args.checkpoint is None, args.out is None) != (args.artefact is not None,) * 2:
        raise ValueError("expected --checkpoint and --out, or --artefact without them")
    if args.hf is not None and args.checkpoint is None and args.tokenizer is None:
        raise ValueError(
            "--hf with --artefact: expected --tokenizer=DIR, the folder the policy was trained with"
        )
    there = [
        str(path) for path in (args.onnx, args.pt2, args.hf) if path is not None and path.exists()
    ]
    if there:
        raise ValueError(f"{', '.join(there)}: is there already; give another folder, or remove it")
    folder = args.artefact or args.out
    if args.checkpoint is not None:
        policy = source(args.checkpoint, args.step, args.tokenizer)
        seen = None
        if args.data is not None:
            seen = footage.of_checkpoint(args.checkpoint, args.step, policy, args.data)
        with Progress(f"exporting to {folder}"):
            proof = artefact.write(policy, folder, args.dtype or policy.dtype, seen)
        print(f"{artefact.report(proof)}\nwritten: {folder}")
    derive(args, folder)


def derive(args: argparse.Namespace, folder: Path) -> None:
    """Writes what was asked for of the artefact in `folder`."""
    if args.onnx is not None:
        with Progress(f"exporting to {args.onnx}"):
            proof = onnx.write(folder, args.onnx)
        print(f"{golden.table(proof)}\nwritten: {args.onnx}")
    if args.pt2 is not None:
        with Progress(f"exporting to {args.pt2}"):
            programs = pt2.write(folder, args.pt2, args.device)
        for name, rows in programs.items():
            print(f"{name}\n{golden.table(rows)}")
        print(f"written: {args.pt2}")
    if args.hf is not None:
        words = args.tokenizer or saved.tokenizer_folder(
            args.checkpoint, load_meta(args.checkpoint, args.step)
        )
        with Progress(f"exporting to {args.hf}"):
            proof = hf.write(folder, words, args.hf)
        print(f"{golden.table(proof)}\nwritten: {args.hf}")


def source(
    checkpoint: Path, step: int | None = None, folder: Path | None = None
) -> saved.SavedPolicy:
    """What the artefact of a checkpoint is made of, and who made it. Raises ValueError as
    `open_checkpoint` does.
    """
    policy = saved.open_checkpoint(checkpoint, step, folder)
    exported = {
        "exported_at": sources.revision(),
        "libraries": policy.origin["libraries"] | {"torch": importlib.metadata.version("torch")},
    }
    return dataclasses.replace(policy, origin=policy.origin | exported)


if __name__ == "__main__":
    command.run(main)
