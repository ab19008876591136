"""The one composition table: a config becomes data, a model and an optimizer. Every command builds through here."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines import mixture
from data_pipelines.datasets import DATASETS, Dataset
from data_pipelines.index import Index, open_index
from data_pipelines.loader import Loader, LoaderConfig
from vla_jax.actions import ActionSpec
from vla_jax.backbones import paligemma
from vla_jax.heads.lstm import LSTMHead
from vla_jax.heads.mlp import MLPHead
from vla_jax.heads.outputs import HeadConfig
from vla_jax.losses import ActionLoss
from vla_jax.model import VLA, VLAConfig
from vla_jax.optim import FreezeConfig, OptimConfig
from vla_jax.params import Build, Params

BACKBONES = {"paligemma": paligemma}
HEADS = {"lstm": LSTMHead, "mlp": MLPHead}

# Every dataset is standardised to the field's 7-D action; only the last number is binary.
BINARY = (6,)


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads: the index, how its numbers are normalised, and how words become ids."""

    dataset: Dataset
    index: Index
    spec: ActionSpec
    state_spec: ActionSpec
    encode: Callable[[str], np.ndarray]
    tokenizer: Path


def missing(config: ConfigDict) -> list[str]:
    """Everything this run needs and this machine lacks, one line each, with the command that mends it."""
    lines = []
    weights = config.model.weights
    if weights != "none" and not Path(weights).expanduser().exists():
        lines.append(
            f"weights: nothing at {Path(weights).expanduser().absolute()}\n"
            f"    huggingface-cli download google/{BACKBONES[_backbone(config)].__name__.rsplit('.', 1)[-1]}-"
            f"{config.model.variant} --local-dir {weights}\n"
            "    or --config.model.weights=DIR (a Hugging Face folder), FILE.npz (big_vision) or none (random weights)"
        )
    absent = mixture.problems(config.data.root, config.data.mixture)
    if absent:
        root = Path(config.data.root).expanduser().absolute()
        lines.append(
            f"data: {len(absent)} of {len(mixture.members(config.data.mixture))} datasets of the mixture "
            f"{config.data.mixture!r} cannot be read under {root}\n"
            + "".join(f"    {line}\n" for line in absent)
            + "    or --config.data.root=DIR where they are, or --config.data.mixture=bridge"
        )
    return lines


def data(config: ConfigDict, workdir: Path) -> Data:
    """Opens (or builds) the index of the config's dataset, fits its specs and loads or trains the tokenizer."""
    if config.data.datasets:
        raise ValueError(
            f"data.datasets: files of your own datasets are not read yet, got {config.data.datasets!r}; leave it empty "
            "and add the dataset to data_pipelines/datasets"
        )
    names = [name for name, _ in mixture.members(config.data.mixture)]
    if len(names) != 1:
        raise ValueError(
            f"data.mixture: one dataset at a time is supported so far, {config.data.mixture!r} has {len(names)}"
        )
    dataset = DATASETS[names[0]]
    index = open_index(config.data.root, dataset)
    train = index.splits["train"]
    spec = ActionSpec.fit(dataset.action_names, dataset.binary, train.stats["action"], _rules(config))
    if len(spec.names) != config.model.action_dim or spec.binary != BINARY:
        raise ValueError(
            f"model.action_dim: expected {len(spec.names)} (with the binary dims {spec.binary}) as {dataset.name} has, "
            f"got {config.model.action_dim} with {BINARY}"
        )
    state_spec = ActionSpec.fit(dataset.state_names, (), train.stats["state"], ("q99",))
    folder = tokenizer(config, index, workdir)
    encoder = BACKBONES[_backbone(config)].load_tokenizer(folder)
    blank = config.data.blank_instruction
    return Data(
        dataset,
        index,
        spec,
        state_spec,
        lambda text: np.asarray(encoder.encode("" if blank else text), np.int32),
        folder,
    )


def loader(config: ConfigDict, source: Data, split: str, shuffle: bool, rows: np.ndarray | None = None) -> Loader:
    """A loader over one split. `rows` are the rows of the global batch that this host builds (None: all)."""
    model = config.model
    return Loader(
        source.index,
        split,
        (source.spec, source.state_spec),
        LoaderConfig(
            window=model.window,
            chunk=model.chunk,
            cameras=tuple(model.cameras),
            image_size=model.image_size,
            prompt_length=model.prompt_length,
            batch_size=config.batch_size,
            seed=config.seed,
            ram_budget=config.data.ram_budget,
            shuffle=shuffle,
        ),
        source.encode,
        rows,
    )


def validation_split(index: Index) -> str:
    """The held-out split's name. Raises ValueError when there is none."""
    for name in ("val", "validation", "test"):
        if name in index.splits:
            return name
    raise ValueError(f"data: expected a split named val, validation or test, got {sorted(index.splits)}; write one")


def tokenizer(config: ConfigDict, index: Index, workdir: Path) -> Path:
    """The folder of the tokenizer: the config's, the weights' own, or one trained on the instructions into workdir."""
    model = config.model
    if model.tokenizer == "train":
        folder = workdir / "tokenizer"
        if not folder.is_dir():
            BACKBONES[_backbone(config)].train_tiny_tokenizer(sorted(set(index.splits["train"].instructions)), folder)
        return folder
    folder = Path(model.tokenizer or model.weights).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"model.tokenizer: expected a folder, got {str(folder)!r}; give --config.model.tokenizer=DIR "
            "(the weights' Hugging Face folder has one), or 'train' for a small one from the data's instructions"
        )
    return folder


def backbone_config(config: ConfigDict) -> Any:
    """The backbone's own config: its released sizes with this run's remat, layer loop and image size checked."""
    module = BACKBONES[_backbone(config)]
    if config.model.variant not in module.CONFIGS:
        raise ValueError(f"model.variant: expected one of {', '.join(module.CONFIGS)}, got {config.model.variant!r}")
    sizes = module.CONFIGS[config.model.variant]
    if sizes.image_size != config.model.image_size:
        raise ValueError(
            f"model.image_size: expected {sizes.image_size} for {config.model.variant}, got {config.model.image_size}"
        )
    return dataclasses.replace(sizes, remat=config.model.remat, layers=config.model.layers)


def load_backbone(config: ConfigDict, specs: dict[str, jax.ShapeDtypeStruct]) -> Params:
    """The backbone's pretrained parameters, in the dtypes and shardings of `specs`."""
    path, allowed = config.model.weights, tuple(config.model.allow_missing)
    return BACKBONES[_backbone(config)].load(path, backbone_config(config), specs, allowed)


def model(config: ConfigDict) -> Build:
    """A function of `nnx.Rngs` that makes the policy; nothing is allocated until it is called."""
    if config.model.head not in HEADS:
        raise ValueError(f"model.head: expected one of {', '.join(HEADS)}, got {config.model.head!r}")
    sizes = backbone_config(config)
    head_sizes = HeadConfig(
        chunk=config.model.chunk,
        action_dim=config.model.action_dim,
        binary=BINARY,
        loss=ActionLoss(**config.loss.to_dict()),
        hidden=config.model.head_hidden,
        layers=config.model.head_layers,
        mlp=tuple(config.model.head_mlp),
    )
    policy = VLAConfig(
        window=config.model.window,
        chunk=config.model.chunk,
        action_dim=config.model.action_dim,
        cameras=tuple(config.model.cameras),
        layout=config.model.layout,
        history=config.model.history,
    )
    module, head = BACKBONES[_backbone(config)], HEADS[config.model.head]

    def make(rngs: nnx.Rngs) -> VLA:
        backbone = module.PaliGemma(sizes, rngs)
        return VLA(backbone, head(backbone.width, head_sizes, rngs), policy, rngs)

    return make


def optim(config: ConfigDict) -> tuple[OptimConfig, FreezeConfig]:
    """The optimizer's and the freezing configs."""
    values = config.optim.to_dict()
    del values["ema"]  # belongs to the train step
    freeze = FreezeConfig(
        patterns=tuple(values.pop("freeze")),
        **{
            key: values.pop(key)
            for key in ("freeze_backbone", "train_vision", "train_text_embedding", "train_decoder_layers")
        },
    )
    return OptimConfig(**values), freeze


def meta(config: ConfigDict, source: Data) -> dict[str, Any]:
    """What a checkpoint must carry to be used without this repository's config files."""
    train = source.index.splits["train"]
    return {
        "config": config.to_dict(),
        "cameras": list(config.model.cameras),
        "tokenizer": {"folder": str(source.tokenizer), "sha256": digest(source.tokenizer)},
        "datasets": {
            source.dataset.name: {
                "digest": source.index.digest,
                "action": source.spec.to_json(),
                "state": source.state_spec.to_json(),
            }
        },
        "statistics": {
            source.dataset.name: {
                kind: {key: np.asarray(value).tolist() for key, value in stats.items()}
                for kind, stats in train.stats.items()
            }
        },
    }


def _rules(config: ConfigDict) -> tuple[Any, ...]:
    return tuple(rule if isinstance(rule, str) else tuple(rule) for rule in config.data.normalise)


def _backbone(config: ConfigDict) -> str:
    if config.model.backbone not in BACKBONES:
        raise ValueError(f"model.backbone: expected one of {', '.join(BACKBONES)}, got {config.model.backbone!r}")
    return config.model.backbone


def digest(folder: Path) -> str:
    """sha256 over the names and contents of the tokenizer's files, so that a changed tokenizer shows."""
    sha = hashlib.sha256()
    for file in sorted(folder.glob("tokenizer*")) + sorted(folder.glob("special_tokens*")):
        sha.update(file.name.encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()
