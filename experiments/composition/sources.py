"""The data of a run: opened, normalised, tokenised, and what of it travels with a checkpoint."""

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import quarantine
from data_pipelines.config import LoaderConfig
from data_pipelines.index import HELD_OUT, Index, open_index
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member
from experiments.composition import cotraining, datasets
from vla_jax import build
from vla_jax.models import clip_text
from vla_jax.models.tokenizer import digest
from vla_jax.training.checkpoint import complete_steps, load_meta
from vla_jax.training.reports import Units


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads: the datasets with how their numbers are normalised, and how words become
    ids.
    """

    train: list[Member]
    held_out: list[Member]  # the same datasets in the same order
    encode: Callable[[str], np.ndarray]
    tokenizer: Path
    action_end: int  # one more than the largest id of an action token; 0: there are none
    texts: cotraining.Texts | None  # what is co-trained on
    target: (
        Callable[[str], np.ndarray] | None
    )  # an instruction to CLIP's embedding of it, for text_align


def missing(config: ConfigDict) -> list[str]:
    """Everything this run needs and this machine lacks, one line each, with the command that mends
    it.
    """
    lines = []
    weights = config.model.weights
    if weights != "none" and not config.model.start and not Path(weights).expanduser().exists():
        hub = build.backbone_module(config).hub(config.model.variant)
        lines.append(
            f"weights: nothing at {Path(weights).expanduser().absolute()}\n    huggingface-cli"
            f" download {hub} --local-dir {weights}\n    or --config.model.weights=DIR (a Hugging"
            " Face folder, a checkpoints directory), FILE.npz (big_vision) or none (random"
            " weights)"
        )
    start = config.model.start
    if start and not complete_steps(Path(start).expanduser()):
        lines.append(
            f"start: no complete checkpoint in {Path(start).expanduser().absolute()}; give"
            " --config.model.start=DIR"
        )
    clip = Path(config.objectives.text_align.clip).expanduser()
    if config.objectives.text_align.weight and not clip.exists():
        lines.append(
            f"text_align: nothing at {clip.absolute()}\n"
            f"    huggingface-cli download openai/clip-vit-large-patch14 --local-dir {clip}\n"
            "    or --config.objectives.text_align.weight=0"
        )
    return lines + datasets.missing(config) + cotraining.missing(config, datasets.root(config))


def data(config: ConfigDict, workdir: Path, training: bool = True) -> Data:
    """Opens (or builds) the indexes of the mixture, fits the specs and loads or trains the
    tokenizer.

    With `training` also the images with texts that are co-trained on.
    """
    skipped = quarantine.read(config.data.quarantine) if config.data.quarantine else frozenset()
    wanted = datasets.members(config)
    train, held_out = [], []
    for dataset, weight in wanted:
        index = open_index(datasets.root(config), dataset, quarantine=skipped)
        member = Member.fit(index, "train", weight, _rules(config))
        spec = member.action_spec
        if len(spec.names) != config.model.action_dim or spec.binary != build.BINARY:
            raise ValueError(
                f"model.action_dim: expected {len(spec.names)} (with the binary dims {spec.binary})"
                f" as {dataset.name} has, got {config.model.action_dim} with {build.BINARY}"
            )
        train.append(member)
        held_out.append(dataclasses.replace(member, split=validation_split(index)))
    files = {
        shard.rsplit("/", 1)[-1]
        for member in train
        for s in member.index.splits.values()
        for shard in s.shards
    }
    foreign = sorted({file for file, _ in skipped} - files)
    if foreign:
        raise ValueError(
            f"data.quarantine: {config.data.quarantine} names {foreign[0]} and {len(foreign) - 1}"
            " other files that no dataset of the mixture has; is it the list of"
            f" {config.data.mixture!r}?"
        )
    sentences = {text for member in train for text in member.index.splits["train"].sentences}
    folder = tokenizer(config, sorted(sentences), workdir)
    encoder = build.backbone_module(config).load_tokenizer(folder, config.model.layout)
    vocab = build.backbone_config(config).vocab
    if encoder.vocab > vocab:
        raise ValueError(
            f"model.tokenizer: {folder} has {encoder.vocab} tokens, {config.model.backbone}"
            f" {config.model.variant} embeds {vocab}; give the tokenizer that belongs to the"
            " weights"
        )
    say: Callable[[str], list[int]] = encoder.encode
    answer: Callable[[str], list[int]] = encoder.answer
    end = build.action_token_end(config, folder)
    if end:
        say, answer = (
            _without_actions(encode, end - config.model.bins, end) for encode in (say, answer)
        )
    blank = config.data.blank_instruction

    def encode(text: str) -> np.ndarray:
        return np.asarray(say("" if blank else text), np.int32)

    align = config.objectives.text_align
    target = clip_text.embedder(Path(align.clip).expanduser()) if align.weight else None
    texts = cotraining.open_texts(config, datasets.root(config), say, answer) if training else None
    return Data(train, held_out, encode, folder, end, texts, target)


def loader(
    config: ConfigDict,
    source: Data,
    members: list[Member],
    shuffle: bool,
    rows: np.ndarray | None = None,
) -> Loader:
    """A loader over the train or the held-out members of `source`. `rows` of the global batch are
    this host's.
    """
    model, forward = config.model, config.objectives.forward
    return Loader(
        members,
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
        source.target,
    )


def units(source: Data) -> Units:
    """What turns errors into each dataset's robot units."""
    return Units(
        source.train[0].action_spec.names,
        np.stack([member.action_spec.units() for member in source.train]),
    )


def validation_split(index: Index) -> str:
    """The held-out split's name. Raises ValueError when there is none."""
    for name in HELD_OUT:
        if name in index.splits:
            return name
    raise ValueError(
        f"{index.dataset.name}: expected a split of {', '.join(HELD_OUT)}, or two episodes in train"
        f" to hold one out, got {', '.join(sorted(index.splits))}"
    )


def tokenizer(config: ConfigDict, sentences: list[str], workdir: Path) -> Path:
    """The folder of the tokenizer: the config's, the weights' own, or one trained on the
    instructions into workdir.
    """
    model = config.model
    if model.tokenizer == "train":
        folder = workdir / "tokenizer"
        if not folder.is_dir():
            build.backbone_module(config).train_tiny_tokenizer(sentences, folder)
        return folder
    folder = Path(model.tokenizer or model.start or model.weights).expanduser()
    if not model.tokenizer and complete_steps(
        folder
    ):  # of a run, or imported: it says where its tokenizer is
        named = Path(load_meta(folder)["tokenizer"]["folder"] or "tokenizer")
        folder = folder / named if (folder / named).is_dir() else named
    if not folder.is_dir():
        raise ValueError(
            f"model.tokenizer: expected a folder, got {str(folder)!r}; give"
            " --config.model.tokenizer=DIR (the weights' Hugging Face folder has one), or 'train'"
            " for a small one from the data's instructions"
        )
    return folder


def meta(config: ConfigDict, source: Data) -> dict[str, Any]:
    """What a checkpoint must carry to be used without this repository's config files."""
    return {
        "config": config.to_dict(),
        "revision": revision(),
        "cameras": list(config.model.cameras),
        "tokenizer": {"folder": str(source.tokenizer), "sha256": digest(source.tokenizer)},
        "datasets": {
            member.index.dataset.name: {
                "digest": member.index.digest,
                "action": member.action_spec.to_json(),
                "state": member.state_spec.to_json(),
                "control_hz": member.index.dataset.control_hz,
            }
            for member in source.train
        },
        "statistics": {
            member.index.dataset.name: {
                kind: {key: np.asarray(value).tolist() for key, value in stats.items()}
                for kind, stats in member.index.splits["train"].stats.items()
            }
            for member in source.train
        },
    }


def revision() -> str | None:
    """The commit of this repository, with "-dirty" where files differ from it; None outside of a
    git checkout.
    """
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _rules(config: ConfigDict) -> tuple[Any, ...]:
    return tuple(rule if isinstance(rule, str) else tuple(rule) for rule in config.data.normalise)


def _without_actions(
    encode: Callable[[str], list[int]], first: int, end: int
) -> Callable[[str], list[int]]:
    """`encode`, which then raises ValueError for a text that uses a token standing for an
    action.
    """

    def checked(text: str) -> list[int]:
        ids = encode(text)
        taken = [i for i in ids if first <= i < end]
        if taken:
            raise ValueError(
                f"model.head=discrete: the action tokens {first} to {end - 1} collide with token"
                f" {taken[0]} of the text {text!r}; use a tokenizer with unused tokens there, or"
                " fewer model.bins"
            )
        return ids

    return checked
