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

from data_pipelines import mixture, quarantine, remote
from data_pipelines.datasets import DATASETS, Dataset, user
from data_pipelines.datasets.mixtures import MIXTURES
from data_pipelines.index import HELD_OUT, Index, open_index
from data_pipelines.loader import Loader, LoaderConfig
from data_pipelines.mixture import Part
from experiments import cotraining
from vla_jax.actions import ActionSpec
from vla_jax.augment import AugmentConfig
from vla_jax.backbones import kosmos2, paligemma
from vla_jax.checkpoint import complete_steps, load_arrays, load_meta
from vla_jax.heads.attention import AttentionHead
from vla_jax.heads.discrete import DiscreteConfig, DiscreteHead, action_end
from vla_jax.heads.flow import FlowHead
from vla_jax.heads.gpt import GPTHead
from vla_jax.heads.lstm import LSTMHead
from vla_jax.heads.mlp import MLPHead
from vla_jax.heads.outputs import HeadConfig
from vla_jax.lora import LoRAConfig, attach
from vla_jax.losses import ActionLoss
from vla_jax.model import VLA, PastConfig, StateConfig, VLAConfig
from vla_jax.objectives import ForwardConfig
from vla_jax.optim import FreezeConfig, OptimConfig
from vla_jax.params import Build, Params
from vla_jax.resampler import ResamplerConfig
from vla_jax.tokenizer import open_tokenizer, special_tokens
from vla_jax.train import Units

# Name in the config -> the file and the module in it.
BACKBONES: dict[str, tuple[Any, Callable[..., nnx.Module]]] = {
    "paligemma": (paligemma, paligemma.PaliGemma),
    "kosmos2": (kosmos2, kosmos2.Kosmos2),
}
HEADS: dict[str, Callable[..., nnx.Module]] = {
    "lstm": LSTMHead,
    "mlp": MLPHead,
    "gpt": GPTHead,
    "attention": AttentionHead,
    "flow": FlowHead,
}
DISCRETE = "discrete"  # the head without parameters

# Every dataset is standardised to the field's 7-D action; only the last number is binary.
BINARY = (6,)


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads: the datasets with how their numbers are normalised, and how words become ids."""

    train: list[Part]
    held_out: list[Part]  # the same datasets in the same order
    encode: Callable[[str], np.ndarray]
    tokenizer: Path
    action_end: int  # one more than the largest id of an action token, for the head discrete
    texts: cotraining.Texts | None  # what is co-trained on


def missing(config: ConfigDict) -> list[str]:
    """Everything this run needs and this machine lacks, one line each, with the command that mends it."""
    lines = []
    weights = config.model.weights
    if weights != "none" and not Path(weights).expanduser().exists():
        lines.append(
            f"weights: nothing at {Path(weights).expanduser().absolute()}\n"
            f"    huggingface-cli download {_module(config).hub(config.model.variant)} --local-dir {weights}\n"
            "    or --config.model.weights=DIR (a Hugging Face folder), FILE.npz (big_vision) or none (random weights)"
        )
    root, wanted = _root(config), members(config)
    datasets = [dataset for dataset, _ in wanted]
    names = datasets[0].action_names
    unfit = mixture.misfits(datasets, tuple(config.model.cameras), names)
    if unfit:
        lines.append(
            f"data: {len(unfit)} reasons why the mixture {config.data.mixture!r} cannot be learnt together\n"
            + "".join(f"    {line}\n" for line in unfit)
            + "    leave them out (a list of (name, weight) as data.mixture in a config file), or change model.cameras"
        )
    absent = mixture.problems(root, datasets)
    if absent:
        lines.append(
            f"data: {len(absent)} of {len(wanted)} datasets of the mixture {config.data.mixture!r} are not under "
            f"{root}\n"
            + "".join(f"    {line}\n" for line in absent)
            + "    or --config.data.root=DIR where they are, or --config.data.mixture=bridge"
        )
    return lines + cotraining.missing(config, root)


def members(config: ConfigDict) -> list[tuple[Dataset, float]]:
    """The datasets of the config's mixture and their weights. Those of data.datasets are known beside ours."""
    known, mixtures = dict(DATASETS), dict(MIXTURES)
    if config.data.datasets:
        own, own_mixtures = user.load(config.data.datasets)
        known, mixtures = known | own, mixtures | own_mixtures
    return [(known[name], weight) for name, weight in mixture.members(config.data.mixture, known, mixtures)]


def data(config: ConfigDict, workdir: Path, training: bool = True) -> Data:
    """Opens (or builds) the indexes of the mixture, fits the specs and loads or trains the tokenizer.

    With `training` also the images with texts that are co-trained on.
    """
    skipped = quarantine.read(config.data.quarantine) if config.data.quarantine else frozenset()
    wanted = members(config)
    train, held_out = [], []
    for dataset, weight in wanted:
        index = open_index(_root(config), dataset, quarantine=skipped)
        stats = index.splits["train"].stats
        spec = ActionSpec.fit(dataset.action_names, dataset.binary, stats["action"], _rules(config))
        if len(spec.names) != config.model.action_dim or spec.binary != BINARY:
            raise ValueError(
                f"model.action_dim: expected {len(spec.names)} (with the binary dims {spec.binary}) as {dataset.name} "
                f"has, got {config.model.action_dim} with {BINARY}"
            )
        state_spec = ActionSpec.fit(dataset.state_names, (), stats["state"], ("q99",))
        train.append(Part(index, "train", weight, spec, state_spec))
        held_out.append(Part(index, validation_split(index), weight, spec, state_spec))
    files = {shard.rsplit("/", 1)[-1] for part in train for s in part.index.splits.values() for shard in s.shards}
    foreign = sorted({file for file, _ in skipped} - files)
    if foreign:
        raise ValueError(
            f"data.quarantine: {config.data.quarantine} names {foreign[0]} and {len(foreign) - 1} other files that no "
            f"dataset of the mixture has; is it the list of {config.data.mixture!r}?"
        )
    sentences = {text for part in train for text in part.index.splits["train"].sentences}
    folder = tokenizer(config, sorted(sentences), workdir)
    encoder, vocab = _module(config).load_tokenizer(folder), backbone_config(config).vocab
    if encoder.vocab > vocab:
        raise ValueError(
            f"model.tokenizer: {folder} has {encoder.vocab} tokens, {config.model.backbone} {config.model.variant} "
            f"embeds {vocab}; give the tokenizer that belongs to the weights"
        )
    blank = config.data.blank_instruction

    def encode(text: str) -> np.ndarray:
        return np.asarray(encoder.encode("" if blank else text), np.int32)

    end = 0
    if config.model.head == DISCRETE:
        plain = open_tokenizer(folder, ())
        end = action_end(plain.vocab_size, special_tokens(plain))
        _check_free(config, end, sentences, encode)
    texts = cotraining.open_texts(config, _root(config), encoder) if training else None
    return Data(train, held_out, encode, folder, end, texts)


def loader(
    config: ConfigDict,
    source: Data,
    parts: list[Part],
    shuffle: bool,
    rows: np.ndarray | None = None,
    target: Callable[[str], np.ndarray] | None = None,
) -> Loader:
    """A loader over the train or the held-out parts of `source`. `rows` of the global batch are this host's.

    `target` embeds an instruction for `Batch.text_target`.
    """
    model, forward = config.model, config.objectives.forward
    return Loader(
        parts,
        LoaderConfig(
            window=model.window,
            chunk=model.chunk,
            cameras=tuple(model.cameras),
            image_size=(model.image_size,) * len(model.cameras),
            prompt_length=model.prompt_length,
            batch_size=config.batch_size,
            seed=config.seed,
            ram_budget=config.data.ram_budget,
            windows_per_visit=config.data.windows_per_visit,
            shuffle=shuffle,
            past_action=model.past_action,
            future=tuple(forward.offsets) if forward.weight else (),
        ),
        source.encode,
        rows,
        target,
    )


def units(source: Data) -> Units:
    """What turns errors into each dataset's robot units."""
    return Units(source.train[0].action_spec.names, np.stack([part.action_spec.units() for part in source.train]))


def validation_split(index: Index) -> str:
    """The held-out split's name. Raises ValueError when there is none."""
    for name in HELD_OUT:
        if name in index.splits:
            return name
    raise ValueError(
        f"{index.dataset.name}: expected a split of {', '.join(HELD_OUT)}, or two episodes in train to hold one out, "
        f"got {', '.join(sorted(index.splits))}"
    )


def tokenizer(config: ConfigDict, sentences: list[str], workdir: Path) -> Path:
    """The folder of the tokenizer: the config's, the weights' own, or one trained on the instructions into workdir."""
    model = config.model
    if model.tokenizer == "train":
        folder = workdir / "tokenizer"
        if not folder.is_dir():
            _module(config).train_tiny_tokenizer(sentences, folder)
        return folder
    folder = Path(model.tokenizer or model.weights).expanduser()
    if not model.tokenizer and complete_steps(folder):  # of a run, or imported: it says where its tokenizer is
        named = Path(load_meta(folder)["tokenizer"]["folder"] or "tokenizer")
        folder = folder / named if (folder / named).is_dir() else named
    if not folder.is_dir():
        raise ValueError(
            f"model.tokenizer: expected a folder, got {str(folder)!r}; give --config.model.tokenizer=DIR "
            "(the weights' Hugging Face folder has one), or 'train' for a small one from the data's instructions"
        )
    return folder


def backbone_config(config: ConfigDict) -> Any:
    """The backbone's own config: its released sizes with this run's remat, layer loop and image size checked."""
    module = _module(config)
    if config.model.variant not in module.CONFIGS:
        raise ValueError(f"model.variant: expected one of {', '.join(module.CONFIGS)}, got {config.model.variant!r}")
    sizes = module.CONFIGS[config.model.variant]
    if sizes.image_size != config.model.image_size:
        raise ValueError(
            f"model.image_size: expected {sizes.image_size} for {config.model.variant}, got {config.model.image_size}"
        )
    return dataclasses.replace(sizes, remat=config.model.remat, layers=config.model.layers)


def load_backbone(config: ConfigDict, specs: dict[str, jax.ShapeDtypeStruct]) -> Params:
    """The backbone's pretrained parameters, in the dtypes and shardings of `specs`.

    model.weights is what the backbone's file reads, or a checkpoints directory of a run or of import_weights.
    """
    path, allowed = Path(config.model.weights).expanduser(), tuple(config.model.allow_missing)
    if complete_steps(path):
        prefix = "backbone/"
        allowed = tuple(prefix + pattern for pattern in allowed)
        found = load_arrays(path, {prefix + name: spec for name, spec in specs.items()}, allowed)
        return {name.removeprefix(prefix): value for name, value in found.items()}
    return _module(config).load(path, backbone_config(config), specs, allowed)


def lora(config: ConfigDict) -> LoRAConfig:
    """The adapters' config."""
    wanted = LoRAConfig(**config.lora.to_dict())
    outside = [pattern for pattern in wanted.targets if not pattern.startswith("backbone/")]
    if wanted.rank and outside:
        raise ValueError(
            f'lora.targets: expected patterns that begin with "backbone/", got {outside}; the rest is trained whole'
        )
    return wanted


def training_model(config: ConfigDict, action_end: int | None = None) -> Build:
    """What is trained: the policy of `model`, with adapters when lora.rank > 0."""
    return attach(model(config, action_end), lora(config))


def model(config: ConfigDict, action_end: int | None = None) -> Build:
    """A function of `nnx.Rngs` that makes the policy; nothing is allocated until it is called. It has
    no adapters, as `checkpoint.load_params` gives none.

    `action_end` (see Data) is for the head discrete: the tokenizer decides where its tokens are. None, where only
    shapes matter: the end of the vocabulary.
    """
    sizes, model = backbone_config(config), config.model
    make_backbone, head = BACKBONES[_backbone(config)][1], _head(config, action_end or sizes.vocab)
    policy = VLAConfig(
        window=model.window,
        chunk=model.chunk,
        action_dim=model.action_dim,
        cameras=tuple(model.cameras),
        layout=model.layout,
        history=model.history,
        readouts=model.readouts,
        resampler=ResamplerConfig(**model.resampler.to_dict()) if model.resampler.depth else None,
        state=_state(config) if model.proprio else None,
        past=PastConfig(BINARY, model.past_action_hidden) if model.past_action else None,
        forward=_forward(config) if config.objectives.forward.weight else None,
        text_embedding=config.objectives.text_align.width if config.objectives.text_align.weight else 0,
        scales=(("action", 1.0), *((name, task.weight) for name, task in config.objectives.items() if task.weight)),
    )

    def make(rngs: nnx.Rngs) -> VLA:
        backbone: Any = make_backbone(sizes, rngs)
        return VLA(backbone, head(backbone.width, rngs), policy, rngs)

    return make


def _head(config: ConfigDict, action_end: int) -> Callable[[int, nnx.Rngs], Any]:
    """(width, rngs) -> the policy head."""
    model, loss = config.model, ActionLoss(**config.loss.to_dict())
    if model.head == DISCRETE:
        sizes = DiscreteConfig(
            model.chunk, model.action_dim, BINARY, action_end, model.bins, temperature=model.temperature, loss=loss
        )
        return lambda width, rngs: DiscreteHead(sizes)
    if model.head not in HEADS:
        raise ValueError(f"model.head: expected one of {', '.join((*HEADS, DISCRETE))}, got {model.head!r}")
    head_config = HeadConfig(
        chunk=model.chunk,
        action_dim=model.action_dim,
        binary=BINARY,
        tokens=model.readouts,
        loss=loss,
        hidden=model.head_hidden,
        layers=model.head_layers,
        mlp=tuple(model.head_mlp),
        attention_heads=model.head_attention,
        window=model.window,
    )
    return lambda width, rngs: HEADS[model.head](width, head_config, rngs)


def _state(config: ConfigDict) -> StateConfig:
    """The state that all datasets of the mixture share."""
    spaces = {dataset.state_names: dataset.name for dataset, _ in members(config)}
    if len(spaces) != 1 or () in spaces:
        lines = "".join(f"\n  {name}: {', '.join(names) or 'none'}" for names, name in spaces.items())
        raise ValueError(f"model.proprio: expected datasets with one and the same state, got{lines}\nset it to False")
    (names,) = spaces
    return StateConfig(len(names), names.index("gripper") if "gripper" in names else None)


def _forward(config: ConfigDict) -> ForwardConfig:
    task = config.objectives.forward
    return ForwardConfig(
        len(task.offsets), len(config.model.cameras), task.tokens, task.width, task.depth, task.patch,
        config.model.image_size,
    )  # fmt: skip


def _check_free(config: ConfigDict, end: int, sentences: set[str], encode: Callable[[str], np.ndarray]) -> None:
    """Raises ValueError when an instruction uses a token that stands for an action."""
    first = end - config.model.bins
    for text in sorted(sentences):
        taken = [int(i) for i in encode(text) if first <= i < end]
        if taken:
            raise ValueError(
                f"model.head=discrete: the action tokens {first} to {end - 1} collide with token {taken[0]} of the "
                f"instruction {text!r}; use a tokenizer with {config.model.bins} unused tokens there, or fewer bins"
            )


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


def augmentation(config: ConfigDict) -> AugmentConfig:
    """What is done to images in training."""
    shift = config.augment.shift
    if shift and len(shift) != len(config.model.cameras):
        raise ValueError(f"augment.shift: expected one number per camera {tuple(config.model.cameras)}, got {shift}")
    return AugmentConfig(**config.augment.to_dict())


def meta(config: ConfigDict, source: Data) -> dict[str, Any]:
    """What a checkpoint must carry to be used without this repository's config files."""
    return {
        "config": config.to_dict(),
        "cameras": list(config.model.cameras),
        "tokenizer": {"folder": str(source.tokenizer), "sha256": digest(source.tokenizer)},
        "datasets": {
            part.index.dataset.name: {
                "digest": part.index.digest,
                "action": part.action_spec.to_json(),
                "state": part.state_spec.to_json(),
            }
            for part in source.train
        },
        "statistics": {
            part.index.dataset.name: {
                kind: {key: np.asarray(value).tolist() for key, value in stats.items()}
                for kind, stats in part.index.splits["train"].stats.items()
            }
            for part in source.train
        },
    }


def _root(config: ConfigDict) -> str:
    """data.root as a URL or an absolute path."""
    root = config.data.root
    return root if remote.is_remote(root) else str(Path(root).expanduser().absolute())


def _rules(config: ConfigDict) -> tuple[Any, ...]:
    return tuple(rule if isinstance(rule, str) else tuple(rule) for rule in config.data.normalise)


def _backbone(config: ConfigDict) -> str:
    if config.model.backbone not in BACKBONES:
        raise ValueError(f"model.backbone: expected one of {', '.join(BACKBONES)}, got {config.model.backbone!r}")
    return config.model.backbone


def _module(config: ConfigDict) -> Any:
    """The file of the backbone."""
    return BACKBONES[_backbone(config)][0]


def digest(folder: Path) -> str:
    """sha256 over the names and contents of the tokenizer's files, so that a changed tokenizer shows."""
    sha = hashlib.sha256()
    for file in sorted(folder.glob("tokenizer*")) + sorted(folder.glob("special_tokens*")):
        sha.update(file.name.encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()
