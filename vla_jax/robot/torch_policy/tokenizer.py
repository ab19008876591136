"""A reader of tokenizer.json in pure Python: words become the ids that Hugging Face's `tokenizers` gives.

What it knows: byte-pair encoding with byte fallback behind a replacement of spaces (Gemma, LLaMA). `check` refuses any
other kind by name; the exporter calls it, and compares ids with those of the original on texts of many kinds.
"""

import json
import re
from pathlib import Path
from typing import Any


class Tokenizer:
    """A tokenizer.json and the prompt it is used in: `before`, the template with the instruction in it, `after`."""

    def __init__(self, body: dict[str, Any], prompt: dict[str, Any]) -> None:
        check(body)
        self._prompt, model = prompt, body["model"]
        self._vocab: dict[str, int] = model["vocab"]
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
        self._ranks = {(a, b): rank for rank, (a, b) in enumerate(pairs)}
        self._model, self._normalizer, self._pre = model, body["normalizer"], body["pre_tokenizer"]
        self._added = {token["content"]: token["id"] for token in body["added_tokens"]}
        # The longest of the added tokens that begin at a place.
        names = sorted(self._added, key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self._known: dict[str, list[int]] = {}

    @classmethod
    def open(cls, file: Path, prompt: dict[str, Any]) -> "Tokenizer":
        """Reads a tokenizer.json."""
        return cls(json.loads(file.read_text(encoding="utf-8")), prompt)

    def encode(self, instruction: str) -> list[int]:
        """Ids of the prompt."""
        text = self._prompt["template"].replace("{}", " ".join(instruction.split()))
        return [*self._prompt["before"], *self.ids(text), *self._prompt["after"]]

    def ids(self, text: str) -> list[int]:
        """Ids of a text, without special tokens round it."""
        pieces = self._split.split(text) if self._split else [text]
        out: list[int] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                out.append(self._added[piece])
            elif piece:
                for word in _words(_normalised(piece, self._normalizer), self._pre):
                    if word not in self._known:
                        self._known[word] = self._bpe(word)
                    out += self._known[word]
        return out

    def _bpe(self, word: str) -> list[int]:
        """Merges neighbours, the earliest learned pair first and the leftmost of it."""
        if self._model.get("ignore_merges") and word in self._vocab:
            return [self._vocab[word]]
        parts = self._symbols(word)
        while len(parts) > 1:
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in zip(parts, parts[1:], strict=False)]
            best = min(ranks)
            if best == len(self._ranks):
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return [self._vocab[part] for part in parts]

    def _symbols(self, word: str) -> list[str]:
        """The characters that are in the vocabulary, bytes for those that are not, else the unknown token."""
        out: list[str] = []
        unknown = self._model["unk_token"]
        for letter in word:
            if letter in self._vocab:
                out.append(letter)
                continue
            spelled = [f"<0x{byte:02X}>" for byte in letter.encode("utf-8")]
            if self._model["byte_fallback"] and all(byte in self._vocab for byte in spelled):
                out += spelled
            elif unknown is None:
                raise ValueError(
                    f"tokenizer: {letter!r} of {word!r} is in no vocabulary, and there is no unknown token"
                )
            elif not (self._model["fuse_unk"] and out and out[-1] == unknown):
                out.append(unknown)
        return out


def check(body: dict[str, Any]) -> None:
    """Raises ValueError naming what of a tokenizer.json this file does not compute."""
    model = body["model"]
    _expect("model.type", model.get("type", "BPE"), ("BPE",))
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        _expect(f"model.{key}", model.get(key), (None, 0.0, ""))
    for step in _steps(body["normalizer"], "normalizers"):
        _expect("normalizer", step["type"], ("Replace", "Prepend"))
        if step["type"] == "Replace":
            _expect("normalizer.Replace.pattern", next(iter(step["pattern"])), ("String",))
    for step in _steps(body["pre_tokenizer"], "pretokenizers"):
        _expect("pre_tokenizer", step["type"], ("Split",))
        _expect("pre_tokenizer.Split.pattern", next(iter(step["pattern"])), ("String",))
        _expect("pre_tokenizer.Split.behavior", step["behavior"], ("MergedWithPrevious",))
        _expect("pre_tokenizer.Split.invert", step["invert"], (False,))
    for token in body["added_tokens"]:
        for key in ("lstrip", "rstrip", "single_word"):
            _expect(f"added_tokens: {token['content']!r}: {key}", token[key], (False,))
        if token["normalized"] and _normalised(token["content"], body["normalizer"]) != token["content"]:
            raise ValueError(
                f"tokenizer.json: added_tokens: {token['content']!r}: expected one that normalising leaves"
            )


def _expect(where: str, got: Any, known: tuple[Any, ...]) -> None:
    if got not in known:
        raise ValueError(f"tokenizer.json: {where}: expected {' or '.join(map(repr, known))}, got {got!r}")


def _steps(body: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one step."""
    if body is None:
        return []
    return body[name] if body["type"] == "Sequence" else [body]


def _normalised(text: str, body: dict[str, Any] | None) -> str:
    for step in _steps(body, "normalizers"):
        if step["type"] == "Prepend":
            text = step["prepend"] + text if text else text
        else:
            text = text.replace(step["pattern"]["String"], step["content"])
    return text


def _words(text: str, body: dict[str, Any] | None) -> list[str]:
    """The pieces that are merged each on its own."""
    words = [text]
    for step in _steps(body, "pretokenizers"):
        mark = step["pattern"]["String"]
        words = [word for part in words for word in re.findall(f".*?{re.escape(mark)}|.+", part, re.DOTALL)]
    return words
