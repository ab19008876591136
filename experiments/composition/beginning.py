"""Where a run begins: its parameters at step 0, its state when it goes on from another run's, and
its place in the data.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines import place
from data_pipelines.image_text import Reader
from data_pipelines.loader import Loader
from experiments.composition import cotraining
from experiments.composition.steps import Plan
from vla_jax import build, build_axes
from vla_jax import params as flat
from vla_jax.models import lora
from vla_jax.saved_config import of_checkpoint
from vla_jax.training import state as training_state
from vla_jax.training import transfer
from vla_jax.training.checkpoint import POSITION, complete_steps, load_data, load_meta
from vla_jax.training.facts import as_json, differences
from vla_jax.training.transfer import Transfer

IMAGE_TEXT = "image_text"  # the other stream of the data, in identities and beside POSITION


class Begin(NamedTuple):
    """A run's first step here, and where in the data it reads on.

    Attributes:
        step: steps done.
        resumes: whether it is this run's own checkpoint that it goes on from.
        windows, texts: positions in the two streams.
        other: what of data and statistics is other than in the checkpoint it goes on from, a line
            each; none where a position means the same batch.
        lines: what is repeated or skipped.
        digest: of the identity of the data.
    """

    step: int
    resumes: bool
    windows: int
    texts: int
    other: list[str]
    lines: list[str]
    digest: str

    @property
    def ahead(self) -> dict[str, int]:
        """As the Checkpointer takes it."""
        return {POSITION: self.windows - self.step, IMAGE_TEXT: self.texts - self.step}


def begin(
    config: ConfigDict, folder: Path, loader: Loader, texts: Reader | None, meta: dict[str, Any]
) -> Begin:
    """Where the run in `folder` begins: at its newest checkpoint, at that of model.start with
    start_state=full, else at 0. `meta` is that of its own checkpoints.
    """
    now = as_json(cotraining.identity(loader, texts))
    digest = hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()[:16]
    kept = complete_steps(folder / "checkpoints")
    source, resumes = folder / "checkpoints", bool(kept)
    if not resumes:
        if config.model.start_state != "full":
            return Begin(0, False, 0, 0, [], [], digest)
        source = Path(config.model.start).expanduser()
        kept = complete_steps(source)
    step = kept[-1]
    saved = load_data(source, step)
    windows, told = saved[POSITION], saved.get(IMAGE_TEXT, saved[POSITION])
    then = saved["identity"]
    statistics = load_meta(source, step).get("statistics", {})
    other = [f"data: {line}" for line in differences(then, now)]
    other += _statistics(statistics, as_json(meta["statistics"]))
    lines: list[str] = []
    own = {name: value for name, value in now.items() if name != IMAGE_TEXT}
    if {name: value for name, value in then.items() if name != IMAGE_TEXT} != own:
        windows, lines = place.move(loader, then, windows)
    if texts is None:
        told = windows
    elif then.get(IMAGE_TEXT) != now[IMAGE_TEXT]:
        told, line = _texts(then.get(IMAGE_TEXT), now[IMAGE_TEXT], told)
        lines.append(line)
    return Begin(step, resumes, windows, told, other, lines, digest)


def _statistics(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each dataset whose statistics are other."""
    lines = []
    for name in sorted(then.keys() | now.keys()):
        if name not in then or name not in now:
            lines.append(f"statistics of {name}: {'new' if name in now else 'gone'}")
        elif different := differences(then[name], now[name]):
            lines.append(f"statistics of {name}: {len(different)} numbers, as {different[0]}")
    return lines


def _texts(then: dict[str, Any] | None, now: dict[str, Any], position: int) -> tuple[int, str]:
    """Where the images with texts are read on, and a line that says so."""
    if then is None or then["dataset"] != now["dataset"]:
        return 0, f"images with texts: {now['dataset'][0]} is new, read from its beginning"
    read = position * then["batch_size"]
    at = read // now["batch_size"]
    return at, (
        f"images with texts: {read:,} were read; goes on at image {at * now['batch_size']:,} of"
        " the new order"
    )


def start(config: ConfigDict, plan: Plan) -> Transfer | None:
    """What a new run takes over from model.start; None without it. Reads no array, and needs no
    data.

    Raises ValueError for parameters that would begin at random unasked, and for a run that is
    already further.
    """
    how = config.model.start_state
    full = how == "full"
    if how not in ("params", "full") or (full and not config.model.start):
        raise ValueError(
            "--config.model.start_state: expected params, or full with model.start, got"
            f" {how!r} with model.start={config.model.start!r}"
        )
    if not config.model.start:
        return None
    where = Path(config.model.start).expanduser()
    axes = (
        build_axes.named_axes(config),
        build_axes.named_axes(of_checkpoint(load_meta(where), where)),
    )
    taken = transfer.plan(where, plan.abstract, full, *axes)
    taken.check(tuple(config.model.allow_missing))
    if full and taken.step >= config.steps:
        raise ValueError(
            f"--config.steps: expected more than the {taken.step} that {taken.where} has done, got"
            f" {config.steps}; with start_state=full a run goes on from that step"
        )
    return taken


def state(config: ConfigDict, plan: Plan, taken: Transfer | None) -> training_state.TrainState:
    """The state of a new run, in its shardings."""
    if taken is not None and taken.full:
        return transfer.whole_state(
            taken, plan.abstract, lambda names: _random(config, plan, names)
        )
    params = _parameters(config, plan, taken)
    return training_state.init_state(params, plan.abstract, plan.optimizer)


def _parameters(config: ConfigDict, plan: Plan, taken: Transfer | None) -> flat.Params:
    """All parameters: those of model.start, or the backbone's from the weights; the rest random.

    Neither knows adapters: these are always fresh.
    """
    specs = {**plan.abstract.params, **plan.abstract.frozen}
    loaded: flat.Params = {}
    base, _ = lora.split_adapters(specs)
    if taken is not None:
        loaded = transfer.parameters(taken, base)
    elif config.model.weights != "none":
        prefix = "backbone/"
        backbone = {
            name.removeprefix(prefix): leaf
            for name, leaf in base.items()
            if name.startswith(prefix)
        }
        loaded = build.load_backbone(config, backbone)
        loaded = {prefix + name: value for name, value in loaded.items()}
    fresh = _random(config, plan, [name for name in specs if name not in loaded])
    if taken is not None and taken.parts:
        fresh |= transfer.partly(taken, fresh)
    return {name: loaded[name] if name in loaded else fresh[name] for name in specs}


def interpolated(config: ConfigDict) -> str:
    """A line where the positions of images do not fit the weights as they were released; ""
    elsewhere.
    """
    if config.model.weights == "none" or config.model.start:
        return ""
    released = build.backbone_module(config).CONFIGS[config.model.variant].image_size
    if config.model.image_size == released:
        return ""
    return (
        f"model.image_size is {config.model.image_size}, {config.model.variant}'s is {released}:"
        " the positions of images are interpolated where the weights have others"
    )


def _random(config: ConfigDict, plan: Plan, names: list[str]) -> flat.Params:
    """The named parameters as the model makes them."""
    specs = {**plan.abstract.params, **plan.abstract.frozen}
    return flat.initialise(plan.make, config.seed, {name: specs[name].sharding for name in names})
