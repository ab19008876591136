"""A reader of tokenizer.json in pure Python: words become the ids that Hugging Face's `tokenizers`
gives.

What it knows: byte-pair encoding, with byte fallback (Gemma, LLaMA) or on bytes (GPT-NeoX under
MPT, SmolLM2), and unigram models (Kosmos-2), behind the steps of text.py. `check` refuses anything
else by name; the exporter calls it, and compares ids with those of the original on texts of many
kinds.

It is written here because an artefact promises to run with torch, numpy and safetensors alone, on a
robot's computer whose image may have no `tokenizers` for its Python and processor.
"""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from ..state_words import cleaned
from . import text as steps
from .text import expect

MODELS = ("BPE", "Unigram")
UNKNOWN_PENALTY = 10.0  # of an unknown character, below the score of the least likely piece


class BPE:
    """Merges neighbours, the earliest learned pair first and the leftmost of it."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body, self._vocab = body, body["vocab"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in body["merges"])
        self._ranks = {(a, b): rank for rank, (a, b) in enumerate(pairs)}

    def ids(self, word: str) -> list[int]:
        """Ids of the pieces of a word."""
        if self._body.get("ignore_merges") and word in self._vocab:
            return [self._vocab[word]]
        parts = self._symbols(word)
        unmerged = len(self._ranks)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, unmerged) for pair in itertools.pairwise(parts)]
            best = min(ranks)
            if best == unmerged:
                break
            i = ranks.index(best)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self._vocab[part] for part in parts]

    def _symbols(self, word: str) -> list[str]:
        """The characters that are in the vocabulary; for others their bytes, the unknown token, or
        nothing.
        """
        out: list[str] = []
        unknown = self._body["unk_token"]
        for letter in word:
            spelled = [f"<0x{byte:02X}>" for byte in letter.encode("utf-8")]
            if letter in self._vocab:
                out.append(letter)
            elif self._body.get("byte_fallback") and all(byte in self._vocab for byte in spelled):
                out += spelled
            elif unknown is not None and not (
                self._body.get("fuse_unk") and out and out[-1] == unknown
            ):
                out.append(unknown)
        return out


class Unigram:
    """The likeliest way to cut a word into pieces."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._ids = {piece: i for i, (piece, _) in enumerate(body["vocab"])}
        self._scores: dict[str, float] = dict(body["vocab"])
        self._longest = max(map(len, self._scores))
        self._unknown: int = body["unk_id"]
        self._penalty = min(score for _, score in body["vocab"]) - UNKNOWN_PENALTY

    def ids(self, word: str) -> list[int]:
        """Ids of the pieces of a word; unknown characters that stand together are one."""
        # By end: the best last piece's (score of all up to there, start, is known).
        best: list[tuple[float, int, bool] | None] = [(0.0, 0, False)] + [None] * len(word)
        for start in range(len(word)):
            reached = best[start]
            assert reached is not None  # every single character is a piece or unknown
            for end in range(start + 1, min(start + self._longest, len(word)) + 1):
                score = self._scores.get(word[start:end])
                known = score is not None
                if score is None and end == start + 1:
                    score = self._penalty
                here = best[end]
                if score is not None and (here is None or reached[0] + score > here[0]):
                    best[end] = (reached[0] + score, start, known)
        out: list[int] = []
        end = len(word)
        while end:
            step = best[end]
            assert step is not None
            piece = self._ids[word[step[1] : end]] if step[2] else self._unknown
            if not (piece == self._unknown and out and out[-1] == self._unknown):
                out.append(piece)
            end = step[1]
        return out[::-1]


class Tokenizer:
    """A tokenizer.json and the prompt it is used in: the ids `before`, the template with the
    instruction in it, the ids `after`.
    """

    def __init__(self, body: dict[str, Any], prompt: dict[str, Any]) -> None:
        check(body)
        self._prompt = prompt
        self._model = (
            BPE(body["model"])
            if body["model"].get("type", "BPE") == "BPE"
            else Unigram(body["model"])
        )
        self._normalise = steps.normaliser(body["normalizer"])
        self._words = steps.pretokeniser(body["pre_tokenizer"])
        self._added = {token["content"]: token["id"] for token in body["added_tokens"]}
        # Of several added tokens that match, the longest counts; some include the white space
        # round them.
        patterns = [
            (r"\s*" if token["lstrip"] else "")
            + re.escape(token["content"])
            + (r"\s*" if token["rstrip"] else "")
            for token in sorted(
                body["added_tokens"], key=lambda token: len(token["content"]), reverse=True
            )
        ]
        self._split = re.compile("(" + "|".join(patterns) + ")") if patterns else None
        self._known: dict[str, list[int]] = {}

    @classmethod
    def open(cls, file: Path, prompt: dict[str, Any]) -> "Tokenizer":
        """Reads a tokenizer.json."""
        return cls(json.loads(file.read_text(encoding="utf-8")), prompt)

    def encode(self, instruction: str) -> list[int]:
        """Ids of the prompt; with the state in it, of what stands before its numbers."""
        stated = self._prompt.get("state_words", False)
        said = cleaned(instruction) if stated else " ".join(instruction.split())
        text = self._prompt["template"].replace("{}", said)
        return [*self._prompt["before"], *self.ids(text), *self._prompt["after"]]

    def ids(self, text: str) -> list[int]:
        """Ids of a text, without special tokens round it."""
        pieces = self._split.split(text) if self._split else [text]
        out: list[int] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                out.append(self._added[piece if piece in self._added else piece.strip()])
            elif piece:
                for word in self._words(self._normalise(piece), i == 0):
                    if word not in self._known:
                        self._known[word] = self._model.ids(word)
                    out += self._known[word]
        return out


def check(body: dict[str, Any]) -> None:
    """Raises ValueError naming what of a tokenizer.json is not computed here."""
    model = body["model"]
    expect("model.type", model.get("type", "BPE"), MODELS)
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        expect(f"model.{key}", model.get(key), (None, 0.0, ""))
    if model.get("type") == "Unigram":
        expect("model.byte_fallback", model.get("byte_fallback", False), (False,))
        expect("model.unk_id is set", model.get("unk_id") is not None, (True,))
    steps.check(body)
    normalise = steps.normaliser(body["normalizer"])
    for token in body["added_tokens"]:
        expect(f"added_tokens: {token['content']!r}: single_word", token["single_word"], (False,))
        if token["normalized"]:
            expect(
                f"added_tokens: {token['content']!r} normalised",
                normalise(token["content"]),
                (token["content"],),
            )
