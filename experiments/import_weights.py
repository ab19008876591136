"""Turns others' weights into a checkpoint of ours.

    python -m experiments.import_weights --from hf:DIR --out DIR
    python -m experiments.import_weights --from npz:FILE.npz --out DIR --tokenizer DIR
    python -m experiments.import_weights --from robovlms:FILE.pt --robovlms_config FILE.json --out
    DIR [--tokenizer DIR] [--statistics [NAME=]FILE.json ...]
    python -m experiments.import_weights --from openpi:DIR --out DIR --tokenizer DIR [--chunk 50]
    [--no_state_words] [--statistics NAME=DIR/assets/.../norm_stats.json]

hf and npz give a backbone, robovlms a whole policy (FILE.pt may also be a DeepSpeed ZeRO-1 or -2
directory), openpi one with the head expert: pi0 or pi0.5, as orbax wrote it or converted to
PyTorch. The DIR after --out becomes a checkpoints directory with one complete checkpoint of step
0, or none: `checkpoint.load_params` reads it, and `pretrain --config.model.weights=DIR` begins with
it. Its meta item has the config that fits; nothing else is needed but the tokenizer, which is
copied to DIR/tokenizer from beside the weights, or from --tokenizer DIR.

--statistics gives the policy what the numbers of its actions mean, so that it can be exported and
act: the q01/q99 file that RoboVLMs evaluates with, or Octo's, OpenVLA's, openpi's
(composition/statistics.py). NAME is our name of the dataset, where the file has none or another;
default the config's own. May be given several times.

Nothing in a file is executed, and every array must fit: what does not is named.
"""

import argparse
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from ml_collections import ConfigDict

from experiments.composition import openvla_oft, spaces, statistics, tokenizer_files
from experiments.composition.digests import digest
from experiments.configs import oxe_paligemma
from experiments.openpi import policy as openpi_policy
from experiments.robovlms import config as robovlms_config
from experiments.robovlms import names as robovlms_names
from vla_jax import build, command
from vla_jax import params as flat
from vla_jax.models.backbones import paligemma
from vla_jax.progress import Progress
from vla_jax.training.checkpoint import Checkpointer, complete_steps
from vla_jax.training.state import TrainState
from vla_jax.weights import pretrained

KINDS = ("hf", "npz", "robovlms", "openpi")
# config.json's model_type -> our backbone
FAMILIES = {
    "paligemma": "paligemma",
    "kosmos-2": "kosmos2",
    "llava": "llava",
    "smolvlm": "smolvlm",
    "qwen3_vl": "qwen3vl",
}
BACKBONE = "backbone/"


class Import(NamedTuple):
    """What is imported, and what it is matched with."""

    config: ConfigDict
    files: pretrained.WeightFiles
    table: dict[str, pretrained.Entry]
    shapes: flat.Shapes  # of the parameters that the files must have
    dead: tuple[str, ...]  # arrays that the files may have for parts that are not built
    left: list[str]  # arrays of the file that say nothing
    lines: list[robovlms_config.Line]
    tokenizer: Path | str  # a folder, or the name of one that is not here


def main(argv: list[str]) -> None:
    """Imports one model."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--from", dest="origin", required=True,
        help="hf:DIR, npz:FILE, robovlms:FILE or openpi:DIR",
    )  # fmt: skip
    parser.add_argument(
        "--chunk", type=int, help="openpi: action_horizon of the run, which no array says"
    )
    parser.add_argument(
        "--no_state_words", action="store_true",
        help="openpi: pi0.5 of a run with discrete_state_input=False, which no array says",
    )  # fmt: skip
    parser.add_argument(
        "--robovlms_config", type=Path, help="the JSON that a RoboVLMs run was started with"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="folder with the tokenizer's files, where the weights have none",
    )
    parser.add_argument(
        "--statistics", action="append", default=[], metavar="[NAME=]FILE",
        help="action statistics of a dataset, for robovlms and openpi",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, help="the checkpoints directory to write"
    )
    args = parser.parse_args(argv)
    kind, _, name = args.origin.partition(":")
    if kind == "openvla_oft" and name:
        openvla_oft.refuse(Path(name).expanduser(), [*build.BACKBONES])
    if kind not in KINDS or not name:
        raise ValueError(
            f"--from: expected hf:DIR, npz:FILE, robovlms:FILE or openpi:DIR, got {args.origin!r}"
        )
    if (kind == "robovlms") != (args.robovlms_config is not None):
        raise ValueError(
            "--robovlms_config: expected with robovlms:FILE, and only then: it says what the"
            " weights are"
        )
    whole = kind in ("robovlms", "openpi")
    if args.statistics and not whole:
        raise ValueError("--statistics: expected with a policy: a backbone has no actions")
    if args.chunk is not None and (kind != "openpi" or args.chunk < 1):
        raise ValueError(f"--chunk: expected with openpi:DIR, and 1 or more, got {args.chunk}")
    if args.no_state_words and kind != "openpi":
        raise ValueError(
            "--no_state_words: expected with openpi:DIR: no other is told the state so"
        )
    if complete_steps(args.out):
        raise ValueError(
            f"--out: {args.out} holds a checkpoint already; give another directory, or remove it"
        )
    path = Path(name).expanduser()
    with Progress(f"opening {path}"):  # a compressed .pt is unpacked
        if kind == "openpi":
            imported = of_openpi(path, args.statistics, args.chunk, not args.no_state_words)
        elif kind == "robovlms":
            imported = policy(path, args.robovlms_config)
        else:
            imported = backbone(path, kind)
    if args.tokenizer:
        imported = imported._replace(tokenizer=args.tokenizer)
    specs = statistics.specs(imported.config, args.statistics) if whole else {}
    sees = kind == "openpi" and imported.config.model.proprio
    states = statistics.states(imported.config, args.statistics) if sees else {}
    datasets = {name: {"action": spec.to_json()} for name, spec in specs.items()}
    for name, spec in states.items():
        datasets[name]["state"] = spec.to_json()
    write(imported, path, args.origin, args.out, datasets)


def backbone(path: Path, kind: str) -> Import:
    """A released backbone. Raises ValueError when it is none of the sizes in its module's
    CONFIGS.
    """
    files = pretrained.open_weights(path)
    if files.kind != kind:
        raise ValueError(
            f"--from {kind}:{path}: expected {'a folder' if kind == 'hf' else 'an .npz'}, got"
            f" {files.kind}"
        )
    config = spaces.resolve(oxe_paligemma.get_config())
    body = files.config() if kind == "hf" else {"model_type": "paligemma"}
    known = [kind for kind, name in FAMILIES.items() if name in build.BACKBONES]
    if body.get("model_type") not in known:
        raise ValueError(
            f"{path}: config.json: model_type: expected one of {', '.join(known)}, got"
            f" {body.get('model_type')!r}"
        )
    config.model.backbone = FAMILIES[body["model_type"]]
    module = build.backbone_module(config)
    names = module.hf_names if kind == "hf" else paligemma.npz_names
    candidates = []
    for variant, sizes in _likely(files, module.CONFIGS, names).items():
        config.model.variant, config.model.image_size = variant, sizes.image_size
        table = {BACKBONE + name: entry for name, entry in names(sizes).items()}
        # The backbone by itself: with its output layer, which a policy with a continuous head
        # leaves out.
        alone = flat.abstract(
            functools.partial(build.BACKBONES[config.model.backbone].MODEL, sizes)
        )[1]
        shapes = {BACKBONE + name: shape for name, shape in alone.items()}
        dead = tuple(module.dead_names(sizes))
        candidates.append(
            Import(config.copy_and_resolve_references(), files, table, shapes, dead, [], [], path)
        )
    best = _best(candidates)
    if kind == "hf":
        _check_sizes(path, module.hf_config(body), module.CONFIGS[best.config.model.variant])
    return best


def policy(path: Path, json_file: Path) -> Import:
    """A RoboVLMs policy. Raises ValueError when its config or its backbone's size is none
    of ours.
    """
    config, lines, tokenizer = robovlms_config.translate(json_file)
    if config.model.backbone not in ("kosmos2", "paligemma"):
        raise ValueError(
            f"{json_file}: model: expected kosmos or paligemma, got {config.model.backbone}:"
            " RoboVLMs keeps the names of its original package, for which there is no table here"
        )
    opened = pretrained.open_weights(path)
    if opened.kind != "torch":
        raise ValueError(
            f"--from robovlms:{path}: expected a .pt or .ckpt file or a DeepSpeed directory"
        )
    files, left = robovlms_names.renamed(opened)
    module = build.backbone_module(config)
    candidates = []
    for variant, sizes in _likely(files, module.CONFIGS, module.hf_names).items():
        if sizes.image_size == config.model.image_size:
            config.model.variant = variant
            table = robovlms_names.names(config, module.hf_names(sizes))
            shapes = flat.abstract(build.model(config))[1]
            candidates.append(
                Import(
                    config.copy_and_resolve_references(),
                    files,
                    table,
                    shapes,
                    (),
                    left,
                    lines,
                    tokenizer,
                )
            )
    if not candidates:
        known = ", ".join(
            f"{sizes.image_size} ({variant})" for variant, sizes in module.CONFIGS.items()
        )
        raise ValueError(
            f"{json_file}: image_size: expected {known}, got {config.model.image_size}"
        )
    return _best(candidates)


def of_openpi(path: Path, given: list[str], chunk: int | None, stated: bool = True) -> Import:
    """An openpi policy, for the dataset that `given` statistics name; `stated`: pi0.5 reads the
    state in its prompt. Raises as openpi.policy.policy does, and for statistics of several.
    """
    if len(given) > 1:
        raise ValueError(f"--statistics: expected one file with openpi:DIR, got {len(given)}")
    dataset = given[0].rpartition("=")[0] if given else ""
    found = openpi_policy.policy(path, dataset, chunk, stated)
    print("\n".join(found.notes))
    return Import(
        found.config, found.files, found.table, found.shapes, openpi_policy.DEAD, [], [], ""
    )


def write(imported: Import, path: Path, origin: str, out: Path, datasets: dict[str, Any]) -> None:
    """Prints what became of everything and writes the checkpoint; `datasets` says
    what the numbers of each mean. Raises ValueError before it writes anything.
    """
    place = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    plan = _plan(imported)
    wanted = {
        name: jax.ShapeDtypeStruct(imported.shapes[name].shape, _dtype(views), sharding=place)
        for name, views in plan.views.items()
    }
    print(table(imported, plan))
    if not plan.problems:
        _check_tokenizer(imported)
    with Progress("reading arrays"):
        values = pretrained.place(imported.files, plan, wanted)
    config = imported.config
    config.model.weights, config.model.tokenizer = str(out), ""
    with Progress("hashing the files"):
        sha256 = digest(path)
    meta = {
        "config": config.to_dict(),
        "cameras": list(config.model.cameras),
        "tokenizer": tokenizer_files.copy(imported.tokenizer, out),
        "datasets": datasets,
        "statistics": {},
        "origin": {
            "from": origin,
            "sha256": sha256,
            "robovlms": [line._asdict() for line in imported.lines],
        },
    }
    checkpointer = Checkpointer(out, meta, {"imported": origin})
    zero = jnp.zeros((), jnp.int32)
    with Progress("writing the checkpoint"):
        checkpointer.save(0, TrainState(zero, values, {}, (), None, zero))
        checkpointer.close()
    if complete_steps(out) != [0]:
        raise ValueError(f"{out}: the checkpoint was not written whole; is the disk full?")
    print(
        f"\nwritten: {out}\n    python -m experiments.pretrain --config=..."
        f" --config.model.weights={out}"
    )


def table(imported: Import, plan: pretrained.Plan) -> str:
    """What was loaded, ignored, missing and renamed, and what became of the keys of a RoboVLMs
    config.
    """
    sizes = [math.prod(imported.shapes[name].shape) for name in plan.views]
    model = imported.config.model
    lines = [
        f"{imported.files.path} as {model.backbone} {model.variant}: loaded"
        f" {sum(len(views) for views in plan.views.values())} arrays as {len(plan.views)},"
        f" {sum(sizes):,} numbers; ignored {len(plan.ignored + imported.left)}; missing"
        f" {len(plan.missing)}; do not fit {len(plan.problems)}"
    ]
    width = max([len(theirs) for theirs in plan.sources.values()], default=0)
    lines += [f"\nrenamed: {len(plan.sources)} ({{}}: one per layer, stacked)"]
    lines += [f"  {theirs:{width}s}  {ours}" for ours, theirs in plan.sources.items()]
    for title, entries in (("ignored", plan.ignored + imported.left), ("missing", plan.missing)):
        lines += [f"\n{title}: {len(entries)}", *(f"  {entry}" for entry in entries)]
    for title, used in (("translated", True), ("ignored", False)):
        keys = [line for line in imported.lines if line.used == used]
        if imported.lines:
            lines += [f"\nconfig keys {title}: {len(keys)}"]
            lines += [
                f"  {line.key}{'' if used else f' = {line.value!r}'}: {line.became}"
                for line in keys
            ]
    return "\n".join(lines)


def _likely(
    files: pretrained.WeightFiles,
    sizes: Mapping[str, Any],
    names: Callable[[Any], dict[str, pretrained.Entry]],
) -> dict[str, Any]:
    """The sizes whose token table is as wide as the files'; all of them where there is none."""
    likely = {}
    for variant, config in sizes.items():
        embedding = files.arrays.get(names(config)["embed/embedding"].source)
        if embedding is not None and embedding.shape[-1] == config.block.width:
            likely[variant] = config
    return likely or dict(sizes)


def _best(candidates: list[Import]) -> Import:
    """The one that fits; or that which lacks least, for `write` to say what."""
    return min(candidates, key=lambda each: len(_plan(each).problems))


def _plan(imported: Import) -> pretrained.Plan:
    return pretrained.plan(imported.files, imported.table, imported.shapes, ignored=imported.dead)


def _check_sizes(path: Path, got: Any, expected: Any) -> None:
    wrong = [
        f"{key}: expected {getattr(expected, key)!r}, got {getattr(got, key)!r}"
        for key in vars(expected)
        if key not in ("remat", "layers") and getattr(got, key) != getattr(expected, key)
    ]
    if wrong:
        raise ValueError(
            f"{path}: config.json is of no released size; the nearest differs in {'; '.join(wrong)}"
        )


def _dtype(views: list[np.ndarray]) -> Any:
    """bfloat16 stays; everything else becomes float32."""
    return (
        ml_dtypes.bfloat16
        if all(view.dtype == ml_dtypes.bfloat16 for view in views)
        else np.float32
    )


def _check_tokenizer(imported: Import) -> None:
    """Every id of the tokenizer must have a row in the token table."""
    if not tokenizer_files.there(imported.tokenizer):
        return
    module = build.backbone_module(imported.config)
    ids, rows = (
        module.load_tokenizer(imported.tokenizer).vocab,
        imported.shapes["backbone/embed/embedding"].shape[0],
    )
    if ids > rows:
        raise ValueError(
            f"tokenizer {imported.tokenizer}: has {ids} ids, the token table {rows} rows; is it"
            " another model's?"
        )


if __name__ == "__main__":
    command.run(main)
