"""The data of a run: opened, normalised, tokenised, and what of it travels with a checkpoint."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines import order, windows
from data_pipelines.config import LoaderConfig
from data_pipelines.datasets import Dataset
from data_pipelines.index import build_parts, open_index, parts_there
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member
from data_pipelines.selection import Selection
from experiments.composition import cotraining, datasets, selecting, spaces, strings
from vla_jax import build, build_heads, saved
from vla_jax.actions import places
from vla_jax.models import clip_text, state_words
from vla_jax.models.fast_vocabulary import FastVocabulary
from vla_jax.models.state_words import StateWords
from vla_jax.models.tokenizer import digest
from vla_jax.training import wandb_run
from vla_jax.training.checkpoint import complete_steps, load_meta
from vla_jax.training.reports import Units

TRAINED_ON = "trained_on.sha256"  # beside a tokenizer of a run: of what made it


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run reads: the datasets with how their numbers are normalised, and how words become
    ids.
    """

    train: list[Member]
    # The same datasets in the same order; without evaluation, those that hold something out.
    held_out: list[Member]
    encode: Callable[[str], np.ndarray]
    tokenizer: Path
    action_end: int  # one more than the largest id of an action token; 0: there are none
    texts: cotraining.Texts | None  # what is co-trained on
    target: (
        Callable[[str], np.ndarray] | None
    )  # an instruction to CLIP's embedding of it, for text_align
    vocabulary: FastVocabulary | None = None  # of the head fast or objectives.fast
    words: StateWords | None = None  # of the state, with model.state_words

    @property
    def known(self) -> tuple[int, FastVocabulary | None, StateWords | None]:
        """What only data and tokenizer know of a policy: arguments of build.model."""
        return self.action_end, self.vocabulary, self.words


def missing(config: ConfigDict) -> list[str]:
    """Everything this run needs and this machine lacks, one line each, with the command that mends
    it.
    """
    lines = []
    if config.wandb:
        try:
            wandb_run.package()
        except ValueError as error:
            lines.append(str(error))
    weights = config.model.weights
    if weights != "none" and not config.model.start and not Path(weights).expanduser().exists():
        hub = build.backbone_module(config).hub(config.model.variant)
        gated = "paligemma" in hub
        login = "    hf auth login    # gated: accept its licence on huggingface.co first\n"
        lines.append(
            f"weights: nothing at {Path(weights).expanduser().absolute()}\n{login * gated}    hf"
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
            f"    hf download openai/clip-vit-large-patch14 --local-dir {clip}\n"
            "    or --config.objectives.text_align.weight=0"
        )
    lines += [f"data: {line}" for line in spaces.problems(config)]
    return lines + datasets.missing(config) + cotraining.missing(config, datasets.root(config))


def read_share(config: ConfigDict, job: tuple[int, int]) -> list[Dataset]:
    """Reads this host's share of the files that are not indexed yet; `job` is (host, hosts).
    Returns their datasets, whose parts `data` puts together when all hosts have read theirs.
    """
    root, chosen = datasets.root(config), selecting.of_config(config)
    members = [dataset for dataset, _ in datasets.members(config)]
    return [each for each in members if build_parts(root, each, job, selection=chosen)]


def unshared(config: ConfigDict, read: list[Dataset]) -> list[str]:
    """What this host has to read itself after all: a line for each of the datasets `read` whose
    other hosts' parts are not seen here.
    """
    root, chosen, lines = datasets.root(config), selecting.of_config(config), []
    for dataset in read:
        there, of, parts = parts_there(root, dataset, selection=chosen)
        if there < of:
            lines.append(
                f"{dataset.name}: {of - there} of {of} files were read by other hosts, which do not"
                f" share {parts.parent}: this host reads them again; set VLA_JAX_CACHE to a folder"
                " that all hosts see, or index once with experiments.index_data and copy it"
            )
    return lines


def data(
    config: ConfigDict, workdir: Path, training: bool = True, scratch: Path | None = None
) -> Data:
    """Opens (or builds) the indexes of the mixture, fits the specs and loads or trains the
    tokenizer: into `scratch` (by default workdir), from where `workdir.claim` takes it.

    With `training` also the images with texts that are co-trained on.
    """
    chosen = selecting.of_config(config)
    train, held_out = _members(config, chosen)
    files = {name for member in train for s in member.index.splits.values() for name in s.listed}
    _check_lists(config, chosen, files)
    sentences = {text for member in train for text in member.index.splits["train"].sentences}
    sentences |= {state_words.TEXT} if config.model.state_words else set()
    folder = tokenizer(config, sorted(sentences), workdir, scratch)
    encoder = build.backbone_module(config).load_tokenizer(folder, config.model.layout)
    vocab = build.backbone_config(config).vocab
    if encoder.vocab > vocab:
        raise ValueError(
            f"model.tokenizer: {folder} has {encoder.vocab} tokens, {config.model.backbone}"
            f" {config.model.variant} embeds {vocab}; give the tokenizer that belongs to the"
            " weights"
        )
    prompt, words = state_words.prompt(encoder, config.model.state_words)
    ask: Callable[[str], list[int]] = encoder.encode
    answer: Callable[[str], list[int]] = encoder.answer
    tell = prompt.encode
    end = build_heads.action_token_end(config, folder)
    vocabulary = strings.vocabulary(config, train, workdir)
    if end:
        first = end - (vocabulary.size if vocabulary else config.model.bins)
        if words is not None:
            ids = words.ids()
            _without_actions(lambda _: ids, first, end)(state_words.TEXT)
        ask, tell, answer = (_without_actions(encode, first, end) for encode in (ask, tell, answer))
    blank = config.data.blank_instruction

    def encode(text: str) -> np.ndarray:
        return np.asarray(tell("" if blank else text), np.int32)

    align = config.objectives.text_align
    target = clip_text.embedder(Path(align.clip).expanduser()) if align.weight else None
    texts = cotraining.open_texts(config, datasets.root(config), ask, answer) if training else None
    return Data(train, held_out, encode, folder, end, texts, target, vocabulary, words)


def _members(config: ConfigDict, chosen: Selection) -> tuple[list[Member], list[Member]]:
    """The datasets to train on, and what each of them holds out."""
    train, held_out = [], []
    for dataset, weight in datasets.members(config):
        index = open_index(datasets.root(config), dataset, selection=chosen)
        sensors = build.sensors(config)
        rules, chunk = _rules(config), config.model.chunk
        member = Member.fit(index, "train", weight, rules, chunk, sensors)
        train.append(member)
        if index.held_out is not None:
            held_out.append(dataclasses.replace(member, split=index.held_out.name))
        elif config.eval_every:
            raise ValueError(
                f"{dataset.name}: nothing is held out (data.held_out={config.data.held_out}, of"
                f" {len(index.splits['train'].length)} episodes in train): expected two episodes or"
                " more to hold one out, or a split of its own; or train without evaluation:"
                " eval_every=0"
            )
    return train, held_out


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
            image_size=build.camera_sizes(config),
            resize=model.resize,
            prompt_length=model.prompt_length,
            batch_size=config.batch_size,
            seed=config.seed,
            ram_budget=config.data.ram_budget,
            windows_per_visit=config.data.windows_per_visit,
            stride=config.data.stride,
            shuffle=shuffle,
            sensors=build.sensors(config),
            past_action=model.past_action,
            future=tuple(forward.offsets) if forward.weight else (),
            action_names=tuple(model.action_names),
            state_names=tuple(model.state_names),
            embodiments=tuple(model.embodiments),
        ),
        source.encode,
        rows,
        source.target,
        strings.writer(config, source.vocabulary, source.action_end),
    )


def units(config: ConfigDict, source: Data) -> Units:
    """What turns errors into each dataset's robot units: 0 for a dim that it lacks, or that is
    constant there, which a robot is held in whatever the network says.
    """
    names = tuple(config.model.action_names)
    scale = np.zeros((len(source.train), len(names)), np.float32)
    for row, member in zip(scale, source.train, strict=True):
        spec = member.action_spec
        own = spec.units()
        own[list(spec.constant)] = 0.0
        row[places(spec.names, names)] = own
    return Units(names, scale)


def held_out(source: Data, stride: int) -> str:
    """What is evaluated on, a line a dataset."""
    lines = []
    for member in source.held_out:
        split = member.index.splits[member.split]
        name = split.label if split.label != split.name else f"split {split.name}"
        lines.append(
            f"{member.index.dataset.name}: {len(split.length)} episodes,"
            f" {order.windows(split.length, stride)} windows to evaluate on ({name})"
        )
    return "\n".join(lines) or "nothing is held out"


def tokenizer(
    config: ConfigDict, sentences: list[str], workdir: Path, scratch: Path | None = None
) -> Path:
    """The folder of the tokenizer: the config's, the weights' own, or one trained on the
    instructions, that of workdir or a new one in `scratch` (by default workdir). Raises ValueError
    where there is none, and where a run to begin from had another.
    """
    model = config.model
    if model.tokenizer == "train":
        folder = _trained_tokenizer(config, sentences, workdir, scratch or workdir)
    else:
        folder = _named_tokenizer(model)
    if not complete_steps(workdir / "checkpoints"):  # else it goes on, and its start may be gone
        _check_ids(model, folder)
    return folder


def _named_tokenizer(model: ConfigDict) -> Path:
    folder = Path(model.tokenizer or model.start or model.weights).expanduser()
    if not model.tokenizer and complete_steps(folder):  # of a run, or imported
        return saved.tokenizer_folder(folder, load_meta(folder))
    if not folder.is_dir():
        raise ValueError(
            f"model.tokenizer: expected a folder, got {str(folder)!r}; give"
            " --config.model.tokenizer=DIR (the weights' Hugging Face folder has one), or 'train'"
            " for a small one from the data's instructions"
        )
    return folder


def _check_ids(model: ConfigDict, folder: Path) -> None:
    """The ids of a tokenizer mean what they mean to the parameters of a run that is begun from."""
    for field in ("start", "weights"):
        begun = Path(model[field]).expanduser()
        if model[field] and complete_steps(begun):
            meta = load_meta(begun)
            if meta["tokenizer"]["sha256"] != digest(folder):
                raise ValueError(
                    f"model.tokenizer: expected that of model.{field}={model[field]}, whose words"
                    f" its parameters know, got {folder}"
                    f"{', of the instructions of this data' * (model.tokenizer == 'train')}; give"
                    f" --config.model.tokenizer={saved.tokenizer_folder(begun, meta)}, or '' for"
                    " its own"
                )


def _trained_tokenizer(
    config: ConfigDict, sentences: list[str], workdir: Path, scratch: Path
) -> Path:
    """The run's own tokenizer: that of workdir where it is of these sentences and this model, or in
    use: checkpoints know it, and the data that they were trained on. Else a new one in `scratch`.
    """
    known, new = workdir / "tokenizer", scratch / "tokenizer"
    note, vocab = known / TRAINED_ON, build.backbone_config(config).vocab
    made_of = [config.model.backbone, vocab, sentences]
    made_from = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    in_use = bool(complete_steps(workdir / "checkpoints"))
    if known.is_dir() and (in_use or (note.is_file() and note.read_text() == made_from)):
        return known
    if known.is_dir():
        print(f"{known}: is of other instructions or another model; training it again", flush=True)
    shutil.rmtree(new, ignore_errors=True)
    build.backbone_module(config).train_tiny_tokenizer(sentences, new, vocab)
    (new / TRAINED_ON).write_text(made_from)
    return new


def meta(config: ConfigDict, source: Data, workdir: Path) -> dict[str, Any]:
    """What a checkpoint in workdir must carry to be used without this repository's config files."""
    own = config.model.tokenizer == "train"  # in workdir from the first step on
    folder = workdir / "tokenizer" if own else source.tokenizer
    return {
        "config": config.to_dict(),
        "revision": revision(),
        "cameras": list(config.model.cameras),
        "tokenizer": {"folder": str(folder), "sha256": digest(source.tokenizer)},
        **({"action_vocabulary": source.vocabulary.to_json()} if source.vocabulary else {}),
        "datasets": {
            member.index.dataset.name: {
                "digest": member.index.digest,
                "action": member.action_spec.to_json(),
                "state": member.state_spec.to_json(),
                "control_hz": member.index.dataset.control_hz,
                "sensors": {name: spec.to_json() for name, spec in member.sensor_specs.items()},
                "targets": member.index.dataset.targets,
                "simulator": member.index.simulator,
                "motion": windows.motion(member.index.dataset),
            }
            for member in source.train
        },
        "statistics": {
            member.index.dataset.name: {
                kind: {key: np.asarray(value).tolist() for key, value in stats.items()}
                for kind, stats in (
                    member.index.splits["train"].stats | {"action": member.action_stats}
                ).items()
            }
            for member in source.train
        },
    }


def revision() -> str | None:
    """The commit of this repository, with "-dirty" where files differ from it; None outside of a
    git checkout, also where an installed copy lies in another project's.
    """
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _check_lists(config: ConfigDict, chosen: Selection, files: set[str]) -> None:
    """Raises ValueError when a list names files that no dataset has."""
    held = chosen.held_out if isinstance(chosen.held_out, frozenset) else frozenset()
    for field, listed in (("quarantine", chosen.quarantine), ("held_out", held)):
        foreign = sorted({file for file, _ in listed} - files)
        if foreign:
            raise ValueError(
                f"data.{field}: {config.data[field]} names {foreign[0]} and {len(foreign) - 1}"
                " other files that no dataset of the mixture has; is it the list of"
                f" {config.data.mixture!r}?"
            )


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
                f"model.head: the action tokens {first} to {end - 1} collide with token {taken[0]}"
                f" of the text {text!r}; use a tokenizer with unused tokens there, or fewer"
                " (model.bins of discrete, model.fast.tokens)"
            )
        return ids

    return checked
