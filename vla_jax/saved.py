"""A trained policy as a checkpoint holds it: opened from its folder, it acts in JAX
(`vla_jax.load_policy`) or becomes an artefact (export/).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vla_jax import build, build_heads
from vla_jax.actions import ActionSpec
from vla_jax.models import fast_vocabulary, state_words
from vla_jax.models.fast_vocabulary import FastVocabulary
from vla_jax.models.state_words import StateWords
from vla_jax.models.tokenizer import digest
from vla_jax.params import Build, abstract
from vla_jax.policy import JaxPolicy
from vla_jax.policy_io import PolicyIO
from vla_jax.rl import reward, success
from vla_jax.rl.learner import CRITIC
from vla_jax.robot import sensing
from vla_jax.saved_config import of_checkpoint
from vla_jax.training.checkpoint import find, load_meta, load_params
from vla_jax.types import DTYPES

# What are no policies, by the word of rl.algorithm.
REWARDS = {
    reward.ALGORITHM: "reward model of experiments.train_reward",
    success.ALGORITHM: "success classifier of experiments.train_success",
}


class DatasetSpec(NamedTuple):
    """What a dataset's numbers mean: its actions', its state's where it has one, its steps per
    second if known, what its actions are ("absolute", "delta", "relative"; "" where nobody says),
    its sensors' that statistics normalise, and which of its action dims are 0 at rest.
    """

    action: ActionSpec
    state: ActionSpec | None
    control_hz: float | None
    targets: str = ""
    sensors: Mapping[str, ActionSpec] = {}
    motion: tuple[int, ...] = ()


@dataclass(frozen=True)
class SavedPolicy:
    """All that a policy is, with nothing left to look up.

    Attributes:
        build: makes the policy, without adapters.
        params: its parameters as numpy, adapters merged.
        specs: per dataset what its numbers mean.
        tokenizer: the effective tokenizer.json.
        prompt: {"before": ids, "template": text with {} for the instruction, "after": ids,
            "length": tokens}, and with the state in it "state_words": True.
        encode: an instruction to its token ids.
        image_size: pixels of a side, one per camera.
        resize: how images of other sizes get it, one of types.RESIZES.
        dtype: what it acts in unless told otherwise, one of DTYPES.
        origin: where it comes from; JSON-able.
        action_names, state_names: the policy's dims, among which are those of each dataset.
        embodiments: the datasets that it tells apart; (): none.
    """

    build: Build
    params: Mapping[str, np.ndarray]
    specs: Mapping[str, DatasetSpec]
    tokenizer: dict[str, Any]
    prompt: dict[str, Any]
    encode: Callable[[str], list[int]]
    image_size: tuple[int, ...]
    resize: str
    dtype: str
    origin: dict[str, Any]
    action_names: tuple[str, ...]
    state_names: tuple[str, ...]
    embodiments: tuple[str, ...]

    def io(self, dataset: str) -> PolicyIO:
        """What stands between the robot of `dataset` and the network."""
        spec = self.specs[dataset]
        return PolicyIO(
            image_size=self.image_size,
            prompt_length=self.prompt["length"],
            encode=lambda text: np.asarray(self.encode(text), np.int32),
            action_spec=spec.action,
            state_spec=spec.state or ActionSpec(()),
            resize=self.resize,
            action_names=self.action_names,
            state_names=self.state_names,
            embodiment=self.embodiments.index(dataset) if self.embodiments else 0,
            sensor_specs=spec.sensors,
            motion=spec.motion,
        )


def open_checkpoint(
    directory: Path, step: int | None = None, tokenizer: Path | None = None
) -> SavedPolicy:
    """The policy in a checkpoints directory of a run or an import.

    Args:
        directory: holds a folder per step.
        step: None: the best one where the run marks it, else the newest.
        tokenizer: its folder, where the checkpoint's has moved.

    Raises ValueError without a complete checkpoint, for a config that another version wrote, and
    when the tokenizer is gone or another.
    """
    meta = load_meta(directory, step)
    config = of_checkpoint(meta, directory)
    if config.rl.algorithm in REWARDS:
        raise ValueError(
            f"{directory}: expected a policy, got a {REWARDS[config.rl.algorithm]}, whose"
            " head was never trained; it is for --config.rl.reward of experiments.finetune_rl"
        )
    return _opened(directory, step, tokenizer, meta, config)


def open_reward(directory: Path) -> SavedPolicy:
    """What stands around a reward model in its checkpoints directory, as of the policy that it
    began with. Raises ValueError for what is none, and as `open_checkpoint`.
    """
    meta = load_meta(directory)
    config = of_checkpoint(meta, directory)
    if config.rl.algorithm not in REWARDS:
        raise ValueError(
            f"{directory}: expected a {' or a '.join(REWARDS.values())}, got a run that learns a"
            " policy"
        )
    return _opened(directory, None, None, meta, config)


def _opened(
    directory: Path, step: int | None, tokenizer: Path | None, meta: dict[str, Any], config: Any
) -> SavedPolicy:
    folder = tokenizer or tokenizer_folder(directory, meta)
    if digest(folder) != meta["tokenizer"]["sha256"]:
        raise ValueError(
            f"{directory}: the tokenizer in {folder} is not the one the checkpoint was trained with"
        )
    encoder = build.backbone_module(config).load_tokenizer(folder, config.model.layout)
    prompt, words = state_words.prompt(encoder, config.model.state_words)
    end = build_heads.action_token_end(config, folder)
    blank = config.data.blank_instruction
    sensors = {sensor.name for sensor in sensing.parse(config.model.sensors)}
    specs = {name: _spec(body, sensors) for name, body in meta["datasets"].items()}
    return SavedPolicy(
        build=build.model(config, end, vocabulary(meta, directory), words),
        params={
            name: value
            for name, value in load_params(directory, step).items()
            if not name.startswith(CRITIC)
        },
        specs=specs,
        tokenizer=encoder.definition(),
        prompt={
            "before": prompt.before,
            "template": prompt.template.replace("{}", "" if blank else "{}"),
            "after": prompt.after,
            "length": config.model.prompt_length,
            **({"state_words": True} if words else {}),
        },
        encode=lambda text: prompt.encode("" if blank else text),
        image_size=build.camera_sizes(config),
        resize=config.model.resize,
        dtype=config.model.act_dtype,
        origin={
            "checkpoint": str(directory.absolute()),
            "step": int(find(directory, step).name),
            "trained_at": meta.get("revision"),
            "libraries": meta["libraries"],
            **_simulators(meta),
        },
        action_names=tuple(config.model.action_names),
        state_names=tuple(config.model.state_names) if config.model.proprio else (),
        embodiments=tuple(config.model.embodiments) if config.model.embodiment else (),
    )


def known(
    config: ConfigDict, directory: Path
) -> tuple[int, FastVocabulary | None, StateWords | None]:
    """What only data and tokenizer know of a policy that begins as the one in a checkpoints
    directory: arguments of build.model. Raises ValueError when the tokenizer is gone.
    """
    meta = load_meta(directory)
    folder = tokenizer_folder(directory, meta)
    encoder = build.backbone_module(config).load_tokenizer(folder, config.model.layout)
    words = state_words.prompt(encoder, config.model.state_words)[1]
    return build_heads.action_token_end(config, folder), vocabulary(meta, directory), words


def vocabulary(meta: dict[str, Any], where: Path) -> FastVocabulary | None:
    """That of a checkpoint's head fast or of its objectives.fast; None without."""
    body = meta.get("action_vocabulary")
    return None if body is None else fast_vocabulary.of_json(body, f"{where}: action_vocabulary")


def _simulators(meta: dict[str, Any]) -> dict[str, Any]:
    """What the pictures of simulated data were drawn with, where that is known."""
    datasets = meta["datasets"].items()
    known = {name: body["simulator"] for name, body in datasets if body.get("simulator")}
    return {"simulators": known} if known else {}


def tokenizer_folder(directory: Path, meta: dict[str, Any]) -> Path:
    """Where a checkpoint's tokenizer is: beside it, or at the path it was trained with. Raises
    ValueError when it is at neither.
    """
    named = Path(meta["tokenizer"]["folder"] or "tokenizer")
    for folder in (directory / named, directory.parent / named.name, named):
        if folder.is_dir():
            return folder
    raise ValueError(
        f"{directory}: expected its tokenizer at {named}; give --tokenizer=DIR"
        " (--config.model.tokenizer=DIR to train on from it)"
    )


def jax_policy(
    saved: SavedPolicy, dataset: str, device: str | None = None, dtype: str | None = None
) -> JaxPolicy:
    """The policy for rollouts on the robot of `dataset`.

    Args:
        device: a platform of JAX: "cpu", "cuda", "tpu". None: the default device.
        dtype: what the backbone computes in; None: the policy's own.

    Raises ValueError for another dtype, and where the checkpoint lacks parameters.
    """
    dtype = dtype or saved.dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    graphdef, shapes, _ = abstract(saved.build)
    missing = sorted(shapes.keys() - saved.params.keys())
    if missing:
        raise ValueError(
            f"{saved.origin['checkpoint']}: lacks {', '.join(missing)}; is it an imported backbone"
            " without a policy head? train it first"
        )
    params = {name: np.asarray(value).astype(dtype) for name, value in saved.params.items()}
    place = None if device is None else jax.devices(device)[0]
    return JaxPolicy(graphdef, jax.device_put(params, place), saved.io(dataset))


def _spec(body: dict[str, Any], sensors: set[str]) -> DatasetSpec:
    """Of a dataset in a checkpoint's meta item, of its sensors those that the policy has: others it
    was only taught by (objectives.sensed).
    """
    return DatasetSpec(
        action=ActionSpec.from_json(body["action"]),
        state=ActionSpec.from_json(body["state"]) if body.get("state") else None,
        control_hz=body.get("control_hz"),
        targets=body.get("targets", ""),
        sensors={
            name: ActionSpec.from_json(each)
            for name, each in body.get("sensors", {}).items()
            if name in sensors
        },
        motion=tuple(body.get("motion", ())),  # none until 2026-11-29
    )
