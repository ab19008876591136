"""Checkpoints: four items under `<directory>/<step>/`, written in the background, complete or
ignored.

    state   what only training needs: step, optimizer state, and the trained parameters if params
            holds their average
    params  what inference needs: the averaged parameters (EMA) if kept, else the trained ones; and
            the frozen ones. Adapters (lora.py) are arrays of their own here; `load_params` merges
            them, `load_adapters` reads only them
    data    JSON: position in the data and the identity of the data
    meta    JSON: schema, library versions, and what the experiment gives (config, action specs,
            statistics, ...)

Arrays are stored as flat dicts by path, each value once: no module, optimizer or library class
reaches the disk, so a checkpoint restores on any mesh and any number of hosts, and `load_params`
reads it with neither.
"""

import contextlib
import fnmatch
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from vla_jax.models import lora
from vla_jax.params import not_finite, not_finite_on_device, refuse_not_finite
from vla_jax.training import kept
from vla_jax.training.facts import as_json, check_same, library_versions
from vla_jax.training.state import TrainState

SCHEMA = 1
ITEMS = ("state", "params", "data", "meta")
POSITION = "position"  # in the item data: of the windows; other streams have their own

# Orbax renames the directory of a step into place once it is whole; what lacks one of these was
# damaged or half copied.
MARKER = "_CHECKPOINT_METADATA"
CONTENTS = {
    "state": "manifest.ocdbt",
    "params": "manifest.ocdbt",
    "data": "metadata",
    "meta": "metadata",
}

Flat = dict[str, Any]


class Checkpointer:
    """Saves and restores the training of one run. Every process of the run makes one and calls it
    alike.
    """

    def __init__(
        self,
        directory: Path | str,
        meta: dict[str, Any],
        data: dict[str, Any],
        keep: int = 2,
        ahead: Mapping[str, int] | None = None,
    ) -> None:
        """Opens `directory` and sets half-written checkpoints aside.

        Args:
            directory: made if missing.
            meta: JSON-able: config, action specs, cameras, tokenizer, and under "statistics"
                {dataset: numbers}, which must be the same on resume.
            data: JSON-able identity of the data (`Loader.identity()`); must be the same on resume.
            keep: how many checkpoints stay; the best one besides, see kept.py.
            ahead: {stream of the data: its position less the step}, where a run reads on in another
                order than it began with; by default the position in POSITION is the step.
        """
        self.directory = Path(directory).absolute()
        self._meta = {**as_json(meta), "schema": SCHEMA, "libraries": library_versions()}
        self._data, self._ahead = as_json(data), {POSITION: 0, **(ahead or {})}
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            _set_aside(self.directory)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("vla_jax.checkpoint")
        self._policy = kept.LatestAndBest(keep, kept.marked(self.directory))
        self._released: set[int] = set()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, create=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_names=ITEMS)

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState) -> None:
        """Starts writing a checkpoint; a step that is already there is left alone."""
        if self.latest() == step:
            return
        rest, params = pack(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeSave(rest),
                params=ocp.args.PyTreeSave(params),
                data=ocp.args.JsonSave(
                    {"identity": self._data, **{k: step + n for k, n in self._ahead.items()}}
                ),
                meta=ocp.args.JsonSave(self._meta),
            ),
        )

    def restore(
        self, abstract: TrainState, step: int | None = None, same_data: bool = True
    ) -> TrainState | None:
        """The newest (or named) checkpoint in the shapes, types and shardings of `abstract`; None
        when there is none.

        Raises ValueError when the checkpoint has another schema, other parameters, or, unless these
        may differ (`same_data`), other data or statistics.
        """
        step = self.latest() if step is None else step
        if step is None:
            return None
        where = self.directory / str(step)
        meta, data = _read_meta(where), _read_json(where / "data")
        if same_data:
            check_same(
                f"{where}: statistics", meta.get("statistics", {}), self._meta.get("statistics", {})
            )
            check_same(f"{where}: data", data["identity"], self._data)
        check_fits(where, abstract)
        wanted = dict(zip(("state", "params"), pack(abstract), strict=True))
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**{k: request(v) for k, v in wanted.items()})
        )
        return unpack(restored["state"], restored["params"], abstract)

    def mark(self, step: int | None) -> None:
        """Marks the checkpoint of a step as the best, once it is on disk; None: no one is."""
        self.wait()
        self._policy.best = step
        if jax.process_index() == 0:
            kept.mark(self.directory, step)

    def hold(self, step: int) -> None:
        """The checkpoint of a step stays until `release`: something reads it."""
        self._policy.held.add(step)

    def release(self, step: int) -> None:
        """It stays no longer than others: it goes at the next save, or when this is closed."""
        self._policy.held.discard(step)
        self._released.add(step)

    def wait(self) -> None:
        """Returns when everything started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and stops the background threads."""
        if self._released and jax.process_count() == 1:  # several would have to meet for it
            self.wait()
            for step in set(self._policy.gone(self._manager.all_steps())) & self._released:
                self._manager.delete(step)
        self._manager.close()


def load_params(directory: Path | str, step: int | None = None) -> dict[str, np.ndarray]:
    """The parameters for inference as numpy, from the newest (or named) complete checkpoint; no
    mesh, no model.

    They are those of the model without adapters: these are merged, as the config in meta says.
    """
    where = find(directory, step)
    params = read_arrays(where / "params", list(saved_arrays(where / "params")))
    if not lora.split_adapters(params)[1]:
        return params
    body = _read_meta(where).get("config", {}).get("lora")
    if body is None:
        raise ValueError(
            f"{where}: holds adapters, but its meta no config.lora to merge them by; was it edited?"
        )
    return lora.merge(params, lora.LoRAConfig(**{**body, "targets": tuple(body["targets"])}))


def load_adapters(directory: Path | str, step: int | None = None) -> dict[str, np.ndarray]:
    """Only the adapters of the newest (or named) complete checkpoint, as numpy; empty when it has
    none.
    """
    where = find(directory, step) / "params"
    names = lora.split_adapters(saved_arrays(where))[1]
    return read_arrays(where, list(names)) if names else {}


def load_arrays(
    directory: Path | str, specs: dict[str, jax.ShapeDtypeStruct], allow_missing: Sequence[str] = ()
) -> dict[str, jax.Array]:
    """The inference parameters named in `specs`, read straight into its dtypes and shardings;
    others are not read.

    A parameter that the newest checkpoint lacks is left out where a pattern of `allow_missing`
    matches its name. Raises ValueError naming every other missing one, every one of another shape
    and every one that is not finite.
    """
    where = find(directory, None) / "params"
    saved = saved_arrays(where)
    wanted = {
        name: spec
        for name, spec in specs.items()
        if name in saved or not any(fnmatch.fnmatchcase(name, pattern) for pattern in allow_missing)
    }
    wrong = _unfit(saved, wanted)
    if wrong:
        raise ValueError(
            f"{where}: {len(wrong)} parameters do not fit:\n  "
            + "\n  ".join(sorted(wrong))
            + "\nset the sizes of the "
            "config in its meta item, or name a missing one in model.allow_missing"
        )
    if lora.split_adapters(saved)[1]:  # their base alone is not what the run learnt
        merged = load_params(directory)
        return {name: placed(merged[name], spec) for name, spec in wanted.items()}
    return read(where, wanted)


def load_meta(directory: Path | str, step: int | None = None) -> dict[str, Any]:
    """The meta item of the newest (or named) complete checkpoint. Raises ValueError on another
    schema.
    """
    return _read_meta(find(directory, step))


def load_data(directory: Path | str, step: int | None = None) -> dict[str, Any]:
    """The data item of the newest (or named) complete checkpoint: "identity" and positions."""
    return _read_json(find(directory, step) / "data")


def check_fits(where: Path, abstract: TrainState) -> None:
    """Raises ValueError naming each array in which the checkpoint `where` is not one of such
    states.
    """
    for item, target in zip(("state", "params"), pack(abstract), strict=True):
        _check_arrays(where / item, target)


def complete_steps(directory: Path | str) -> list[int]:
    """Steps whose checkpoint is whole, ascending; each other directory is ignored with a line."""
    good = []
    for path, missing in _inspect(Path(directory)):
        if missing:
            print(
                f"checkpoint {path} is half-written (no {', '.join(missing)}): ignored", flush=True
            )
        else:
            good.append(int(path.name))
    return sorted(good)


def within(folder: Path) -> Path:
    """The checkpoints directory of a work directory; of another folder, itself."""
    own = folder / "checkpoints"
    return own if own.is_dir() else folder


def is_complete(directory: Path | str, step: int) -> bool:
    """Whether the checkpoint of a step is there and whole."""
    path = Path(directory) / str(step)
    return path.is_dir() and not _lacking(path)


def find(directory: Path | str, step: int | None) -> Path:
    """The folder of a complete checkpoint: without a step the newest's, here and in all that reads
    a policy, but where one is marked as the best (kept.py), that one's.
    """
    steps = complete_steps(directory)
    if not steps or (step is not None and step not in steps):
        wanted = (
            "a complete checkpoint" if step is None else f"a complete checkpoint of step {step}"
        )
        raise ValueError(
            f"{directory}: expected {wanted}, got steps {steps}; give the checkpoints directory of"
            " a run"
        )
    return Path(directory).absolute() / str(kept.chosen(directory, steps) if step is None else step)


def _inspect(directory: Path) -> Iterator[tuple[Path, list[str]]]:
    """Checkpoint directories with what each lacks."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if path.is_dir() and ".orbax-checkpoint-tmp" in path.name:
            yield path, ["commit marker"]
        elif path.is_dir() and path.name.isdigit():
            yield path, _lacking(path)


def _lacking(path: Path) -> list[str]:
    """What the folder of a step lacks."""
    lacking = [item for item, content in CONTENTS.items() if not (path / item / content).exists()]
    return lacking + ([] if (path / MARKER).exists() else ["commit marker"])


def _set_aside(directory: Path) -> None:
    """Renames damaged steps, whose numbers training will need again. Orbax removes its own
    temporary directories.
    """
    complete_steps(directory)  # prints
    for path, missing in list(_inspect(directory)):
        if missing and path.name.isdigit():
            target = path.with_name(f"{path.name}.incomplete")
            for i in range(1, 1000):
                if not target.exists():
                    break
                target = path.with_name(f"{path.name}.incomplete{i}")
            os.replace(path, target)


def pack(state: TrainState) -> tuple[Flat, Flat]:
    """The items state and params. Each array is in one of them."""
    kept: Flat = {"step": state.step, "skipped": state.skipped}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state.opt_state)[0]:
        kept["opt" + "".join(f":{_key(part)}" for part in path)] = leaf
    if state.ema is not None:
        kept.update({f"params:{name}": value for name, value in state.params.items()})
    return kept, {**(state.params if state.ema is None else state.ema), **state.frozen}


def unpack(kept: Flat, params: Flat, like: TrainState) -> TrainState:
    paths, treedef = jax.tree_util.tree_flatten_with_path(like.opt_state)
    leaves = [kept["opt" + "".join(f":{_key(part)}" for part in path)] for path, _ in paths]
    inference = {name: params[name] for name in like.params}
    return TrainState(
        step=kept["step"],
        params=(
            inference
            if like.ema is None
            else {name: kept[f"params:{name}"] for name in like.params}
        ),
        frozen={name: params[name] for name in like.frozen},
        opt_state=jax.tree_util.tree_unflatten(treedef, leaves),
        ema=None if like.ema is None else inference,
        skipped=kept["skipped"],
    )


def _key(part: Any) -> str:
    for name in ("key", "name", "idx"):
        if hasattr(part, name):
            return str(getattr(part, name))
    raise TypeError(f"optimizer state: no name for the path part {part!r}")


def request(target: Flat, partial: bool = False) -> ocp.args.PyTreeRestore:
    args = {
        name: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        )
        for name, leaf in target.items()
    }
    return ocp.args.PyTreeRestore(item=target, restore_args=args, partial_restore=partial)


def _check_arrays(where: Path, target: Flat) -> None:
    saved = saved_arrays(where)
    wrong = _unfit(saved, target) + [
        f"{name} is not wanted" for name in saved.keys() - target.keys()
    ]
    if wrong:
        raise ValueError(
            f"{where}: the checkpoint does not fit this configuration:\n  "
            + "\n  ".join(sorted(wrong))
            + "\ntrain with the configuration saved beside it, or in a new work directory"
        )


def placed(value: np.ndarray, spec: jax.ShapeDtypeStruct) -> jax.Array:
    """A numpy array in the type and sharding of `spec`."""
    return jax.make_array_from_callback(
        spec.shape, spec.sharding, lambda at: value[at].astype(spec.dtype)
    )


def _unfit(saved: dict[str, Any], target: Flat) -> list[str]:
    """What of `target` is not saved, or in another shape."""
    wrong = [f"{name} is missing" for name in target.keys() - saved.keys()]
    for name in target.keys() & saved.keys():
        if tuple(saved[name].shape) != target[name].shape:
            wrong.append(
                f"{name}: expected shape {target[name].shape}, got {tuple(saved[name].shape)}"
            )
    return wrong


def read(where: Path, specs: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """The named arrays of an item in the types and shardings of `specs`; others are not read.
    Raises ValueError naming those that are not finite.
    """
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = dict(reader.restore(where, args=request(dict(specs), partial=True)))
    counts = jax.device_get(not_finite_on_device(arrays))
    refuse_not_finite(where, {name: int(count) for name, count in counts.items()})
    return arrays


def read_arrays(where: Path, names: list[str]) -> dict[str, np.ndarray]:
    """The named arrays of an item, as numpy; the others are not read. Raises ValueError naming
    those that are not finite.
    """
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names}
    request = ocp.args.PyTreeRestore(
        item=dict.fromkeys(names, 0), restore_args=as_numpy, partial_restore=True
    )
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        arrays = dict(reader.restore(where, args=request))
    refuse_not_finite(where, {name: not_finite(array) for name, array in arrays.items()})
    return arrays


def saved_arrays(where: Path) -> dict[str, Any]:
    """name -> what has .shape and .dtype, of every array of an item."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        return dict(reader.metadata(where).tree)


def _read_json(where: Path) -> dict[str, Any]:
    return json.loads((where / "metadata").read_text())


def _read_meta(where: Path) -> dict[str, Any]:
    meta = _read_json(where / "meta")
    if meta.get("schema") != SCHEMA:
        raise ValueError(
            f"{where}: expected checkpoint schema {SCHEMA}, got {meta.get('schema')}; read it with"
            f" the version of vla_jax that wrote it (libraries: {meta.get('libraries')})"
        )
    return meta
