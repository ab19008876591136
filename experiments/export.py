"""Turns a trained checkpoint into a folder that a robot computer can run without JAX, TensorFlow or transformers.

    python -m experiments.export --checkpoint runs/NAME/checkpoints --out artefacts/NAME
    python -m experiments.export --checkpoint DIR --out DIR --dtype bfloat16 [--step N] [--tokenizer DIR]

--checkpoint is the checkpoints directory of a run (averaged parameters if it kept them, adapters merged) or of
import_weights. The folder (vla_jax/export/artefact.py says what is in it) is written only if the torch policy in it
equals the JAX policy at three stages; the table is printed. Checkpoints of parts that torch does not compute are
refused by name.
"""

import argparse
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import build, sources
from vla_jax.actions import ActionSpec
from vla_jax.checkpoint import complete_steps, load_meta, load_params
from vla_jax.export import artefact
from vla_jax.heads.discrete import action_end
from vla_jax.tokenizer import open_tokenizer, special_tokens


def main(argv: list[str]) -> None:
    """Exports one checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a checkpoints directory")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--step", type=int, default=None, help="of the checkpoint; the newest by default")
    parser.add_argument("--dtype", choices=tuple(artefact.BOUNDS), default="float32", help="of the weights")
    parser.add_argument("--tokenizer", type=Path, default=None, help="folder, where the checkpoint's has moved")
    args = parser.parse_args(argv)
    proof = artefact.write(source(args.checkpoint, args.step, args.tokenizer), args.out, args.dtype)
    print(artefact.report(proof))
    print(f"written: {args.out}")


def source(checkpoint: Path, step: int | None = None, folder: Path | None = None) -> artefact.Source:
    """What the artefact of a checkpoint is made of. Raises ValueError when its tokenizer has changed or moved."""
    meta = load_meta(checkpoint, step)
    config = ConfigDict(meta["config"])
    folder = folder or tokenizer_folder(checkpoint, meta)
    if sources.digest(folder) != meta["tokenizer"]["sha256"]:
        raise ValueError(f"{checkpoint}: the tokenizer in {folder} is not the one the checkpoint was trained with")
    module = build.backbone_module(config)
    encoder = module.load_tokenizer(folder, config.model.layout)
    end = None
    if config.model.head == build.DISCRETE:
        plain = open_tokenizer(folder, ())
        end = action_end(plain.vocab_size, special_tokens(plain))
    blank = config.data.blank_instruction
    specs = {
        name: artefact.Numbers(
            action=ActionSpec.from_json(body["action"]),
            state=ActionSpec.from_json(body["state"]) if body.get("state") else None,
            control_hz=body.get("control_hz"),
        )
        for name, body in meta["datasets"].items()
    }
    return artefact.Source(
        build=build.model(config, end),
        params=load_params(checkpoint, step),
        specs=specs,
        tokenizer=encoder.definition(),
        prompt={
            "before": encoder.before,
            "template": module.prompt("" if blank else "{}"),
            "after": encoder.after,
            "length": config.model.prompt_length,
        },
        encode=lambda text: encoder.encode("" if blank else text),
        image_size=config.model.image_size,
        origin={
            "checkpoint": str(checkpoint.absolute()),
            "step": complete_steps(checkpoint)[-1] if step is None else step,
            "trained_at": meta.get("revision"),
            "exported_at": sources.revision(),
            "libraries": meta["libraries"] | {"torch": importlib.metadata.version("torch")},
        },
    )


def tokenizer_folder(checkpoint: Path, meta: dict[str, Any]) -> Path:
    """Where a checkpoint's tokenizer is: beside it, or at the path it was trained with."""
    named = Path(meta["tokenizer"]["folder"] or "tokenizer")
    for folder in (checkpoint / named, checkpoint.parent / named.name, named):
        if folder.is_dir():
            return folder
    raise ValueError(f"{checkpoint}: expected its tokenizer at {named}; give --tokenizer=DIR")


if __name__ == "__main__":
    main(sys.argv[1:])
