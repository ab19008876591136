"""What a run with the head fast or objectives.fast needs of its data: the vocabulary that its
chunks are written in, and what writes them into batches.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from data_pipelines import windows
from data_pipelines.mixture import Member
from vla_jax import build_heads, saved
from vla_jax.actions import places
from vla_jax.models import fast_vocabulary
from vla_jax.models.fast_vocabulary import FastVocabulary
from vla_jax.models.heads.fast import widened
from vla_jax.training.checkpoint import complete_steps, load_meta
from vla_jax.types import ActionTokens, Batch

FILE = "fast.json"  # in a work directory
MOST = 2**17  # chunks that are fitted on, over all datasets
SHOWN = 2**12  # chunks that the printed figures are of


def vocabulary(
    config: ConfigDict, members: Sequence[Member], workdir: Path
) -> FastVocabulary | None:
    """That of the run's checkpoints where there are any, else of model.fast.file: of a file, or
    fitted on the members. None where no chunk becomes a string.

    Raises ValueError for one of other chunks, dims or statistics, and as `fast_vocabulary.fit`.
    """
    model, checkpoints = config.model, workdir / "checkpoints"
    if not build_heads.has_strings(config):
        return None
    names, data = tuple(model.action_names), fingerprint(members)
    if complete_steps(checkpoints):
        where, given = checkpoints, saved.vocabulary(load_meta(checkpoints), checkpoints)
    elif model.fast.file != "fit":
        where = Path(model.fast.file).expanduser()
        given = fast_vocabulary.read(where)
    else:
        chunks = np.concatenate(_chunks(config, members))
        made = fast_vocabulary.fit(chunks, names, data, model.fast.scale, model.fast.tokens)
        print(_told(made, chunks), flush=True)
        return made
    if given is None:
        raise ValueError(
            f"{where}: expected the vocabulary of the head fast or of objectives.fast, got none:"
            " the run began without; begin another from it, with model.start"
        )
    fast_vocabulary.check_fits(given, model.chunk, names, data, where)
    return given


def fingerprint(members: Sequence[Member]) -> str:
    """The hash of what the network units of these datasets' actions mean: their specs and their
    statistics, to six digits, as the last ones depend on the order of sums.
    """
    body = {
        member.index.dataset.name: [
            member.action_spec.to_json(),
            {key: np.asarray(value).tolist() for key, value in member.action_stats.items()},
        ]
        for member in members
    }
    return hashlib.sha256(json.dumps(_short(body), sort_keys=True).encode()).hexdigest()


def writer(
    config: ConfigDict, vocabulary: FastVocabulary | None, end: int
) -> Callable[[Batch], ActionTokens] | None:
    """What makes Batch.action_tokens of the rest of a batch; None without a vocabulary. `end` is
    one more than the largest id of a token.
    """
    if vocabulary is None:
        return None
    known, q, binary = vocabulary, build_heads.strings(config), build_heads.binary(config)

    def write(batch: Batch) -> ActionTokens:
        b, t, k, d = batch.actions.shape
        assert batch.obs.action_dims is not None  # a loader's has them
        has = np.broadcast_to(np.asarray(batch.obs.action_dims)[:, None], (b, t, d))
        values = widened(np.asarray(batch.actions), has, binary)
        tokens, there = known.write(values.reshape(b * t, k, d), q)
        ids = (end - 1 - tokens).astype(np.int32)
        return ActionTokens(ids.reshape(b, t, q), there.reshape(b, t, q))

    return write


def save(vocabulary: FastVocabulary, workdir: Path) -> None:
    """Writes it into a work directory, for other runs on the same data and for who looks at it."""
    part = workdir / f"{FILE}.part"
    part.write_text(json.dumps(vocabulary.to_json()) + "\n", encoding="utf-8")
    os.replace(part, workdir / FILE)


def _chunks(config: ConfigDict, members: Sequence[Member]) -> list[Float[np.ndarray, "n k d"]]:
    """Of each dataset's training episodes, evenly over them, as strings have them: equally many of
    all that have as many.
    """
    model, out = config.model, []
    names, most = tuple(model.action_names), MOST // len(members)
    for member in members:
        split, dataset = member.index.splits["train"], member.index.dataset
        rows = np.arange(0, len(split.actions), -(-len(split.actions) // most) or 1)
        episode = np.searchsorted(split.first, rows, side="right") - 1
        first, length = (x[episode].astype(np.int64) for x in (split.first, split.length))
        steps = windows.steps(rows - first, length, 1, model.chunk)
        actions = windows.actions(split.actions, first, steps, windows.motion(dataset))[:, 0]
        own = member.action_spec.normalise(actions, np.asarray(split.state[rows])[:, None])
        where = places(member.action_spec.names, names)
        whole = np.zeros((len(rows), model.chunk, len(names)), np.float32)
        whole[..., where] = own
        has = np.broadcast_to(np.isin(np.arange(len(names)), where), (len(rows), len(names)))
        out.append(widened(whole, has, build_heads.binary(config)))
    return out


def _told(vocabulary: FastVocabulary, chunks: Float[np.ndarray, "n k d"]) -> str:
    """A line on how short strings are and what is lost."""
    shown = chunks[:: -(-len(chunks) // SHOWN)]
    lengths = [len(string) + 1 for string in vocabulary.encode(shown)]
    lost = np.abs(vocabulary.values(vocabulary.quantised(shown)) - shown).mean()
    return (
        f"FAST: {vocabulary.size} tokens fitted on {len(chunks):,} chunks of {vocabulary.numbers}"
        f" numbers, which take {np.mean(lengths):.1f} tokens on average and {max(lengths)} at most"
        f" (model.fast.most); rounding moves an action by {lost:.4f} on average, in network units"
    )


def _short(body: Any) -> Any:
    """JSON with six digits of each number."""
    if isinstance(body, dict):
        return {key: _short(value) for key, value in body.items()}
    if isinstance(body, list):
        return [_short(value) for value in body]
    return f"{body:.6g}" if isinstance(body, float) else body
