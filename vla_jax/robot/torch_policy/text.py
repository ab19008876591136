"""The steps of a tokenizer.json before its model: normalisers and pre-tokenisers, in pure Python;
tokenizer.py says why not `tokenizers`.

Written from the behaviour of Hugging Face's `tokenizers`, which tests compare with.
"""

import base64
import itertools
import re
import struct
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

Step = dict[str, Any]

NORMALISERS = ("Replace", "Prepend", "NFC", "NFKC", "Precompiled")
PRETOKENISERS = ("Split", "ByteLevel", "WhitespaceSplit", "Metaspace", "Digits")
# Patterns that Replace may have: XLM-RoBERTa's, which means the same to Python's `re`.
REGEXES = (" {2,}",)
# Those that Split may have, and that cut a text into pieces which are all kept: Qwen2's, and the
# same over the classes of `_class`, "R" a line's end.
QWEN = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
QWEN_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d|\u017f)", re.IGNORECASE)
QWEN_RUNS = re.compile("[ SO]?L+|N| ?O+R*|[ SR]*R|[ SR]+(?![LNO])|[ SR]+")
# What a ByteLevel step splits at (GPT-2's pattern), over the classes of `_class`.
CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
RUNS = re.compile(" ?L+| ?N+| ?O+|[ S]+(?![LNO])|[ S]+")


def check(body: dict[str, Any]) -> None:
    """Raises ValueError naming a step that this file does not compute."""
    for step in steps(body["normalizer"], "normalizers"):
        expect("normalizer", step["type"], NORMALISERS)
        if step["type"] == "Replace" and "String" not in step["pattern"]:
            expect("normalizer.Replace.pattern", step["pattern"].get("Regex"), REGEXES)
    for step in steps(body["pre_tokenizer"], "pretokenizers"):
        expect("pre_tokenizer", step["type"], PRETOKENISERS)
        if step["type"] == "Split":
            whole = "Regex" in step["pattern"]
            if whole:
                expect("pre_tokenizer.Split.pattern", step["pattern"]["Regex"], (QWEN,))
            wanted = "Isolated" if whole else "MergedWithPrevious"
            expect("pre_tokenizer.Split.behavior", step["behavior"], (wanted,))
            expect("pre_tokenizer.Split.invert", step["invert"], (False,))
        elif step["type"] == "Metaspace":
            known = ("always", "first", "never")
            expect(
                "pre_tokenizer.Metaspace.prepend_scheme",
                step.get("prepend_scheme", "always"),
                known,
            )


def expect(where: str, got: Any, known: tuple[Any, ...]) -> None:
    """Raises ValueError when a switch has a value that is not computed."""
    if got not in known:
        raise ValueError(
            f"tokenizer.json: {where}: expected {' or '.join(map(repr, known))}, got {got!r}"
        )


def steps(body: Step | None, name: str) -> list[Step]:
    """The steps of a sequence, or the one step."""
    if body is None:
        return []
    return body[name] if body["type"] == "Sequence" else [body]


def normaliser(body: Step | None) -> Callable[[str], str]:
    """text -> normalised text."""
    calls = [_normaliser(step) for step in steps(body, "normalizers")]

    def normalise(text: str) -> str:
        for call in calls:
            text = call(text)
        return text

    return normalise


def _normaliser(step: Step) -> Callable[[str], str]:
    kind = step["type"]
    if kind == "Prepend":
        return lambda text: step["prepend"] + text if text else text
    if kind == "Replace":
        pattern = step["pattern"].get("Regex") or re.escape(step["pattern"]["String"])
        return lambda text: re.sub(pattern, lambda _: step["content"], text)
    if kind == "Precompiled":
        return Precompiled(base64.b64decode(step["precompiled_charsmap"]))
    return lambda text: unicodedata.normalize(kind, text)


class Precompiled:
    """sentencepiece's normalisation: a double-array trie over bytes, whose values are offsets into
    replacements.

    As `tokenizers` applies it: to a grapheme of less than 6 bytes as a whole, otherwise to its
    characters, and the shortest entry that begins there counts for all of it.
    """

    def __init__(self, body: bytes) -> None:
        (size,) = struct.unpack_from("<I", body)
        self._units = struct.unpack_from(f"<{size // 4}I", body, 4)
        self._replacements = body[4 + size :]

    def __call__(self, text: str) -> str:
        out = []
        for grapheme in _graphemes(text):
            replacement = self._find(grapheme) if len(grapheme.encode()) < 6 else None
            if replacement is not None:
                out.append(replacement)
                continue
            for letter in grapheme:
                replacement = self._find(letter)
                out.append(letter if replacement is None else replacement)
        return "".join(out)

    def _find(self, key: str) -> str | None:
        node = _offset(self._units[0])
        for byte in key.encode():
            if byte == 0:
                return None
            node ^= byte
            unit = self._units[node] if node < len(self._units) else 0
            if unit & 0x800000FF != byte:
                return None
            node ^= _offset(unit)
            if unit >> 8 & 1:
                start = self._units[node] & 0x7FFFFFFF
                return self._replacements[start : self._replacements.index(b"\0", start)].decode()
        return None


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _graphemes(text: str) -> Iterator[str]:
    """Characters with the marks that follow them. That equals Unicode's graphemes for those of less
    than 6 bytes; longer ones are not looked up as a whole.
    """
    start = 0
    for i in range(1, len(text) + 1):
        if i < len(text):
            before, here = text[i - 1], text[i]
            marks = unicodedata.category(here)[0] == "M" or here in "\u200c\u200d"
            control = (
                unicodedata.category(before) in ("Cc", "Zl", "Zp", "Cf")
                and before not in "\u200c\u200d"
            )
            if (marks and not control) or (before == "\r" and here == "\n"):
                continue
        if i > start:
            yield text[start:i]
        start = i


def pretokeniser(body: Step | None) -> Callable[[str, bool], list[str]]:
    """(text, it begins the whole text) -> the pieces that the model takes each on its own."""
    parts = steps(body, "pretokenizers")

    def split(text: str, first: bool) -> list[str]:
        words = [(text, first)]
        for step in parts:
            words = [
                (piece, begins and i == 0)
                for word, begins in words
                for i, piece in enumerate(_split(step, word, begins))
            ]
        return [word for word, _ in words]

    return split


def _split(step: Step, text: str, first: bool) -> list[str]:
    kind = step["type"]
    if kind == "Split" and "Regex" in step["pattern"]:
        return list(_cut(text, QWEN_CONTRACTION, QWEN_RUNS, "R"))
    if kind == "Split":
        return re.findall(f".*?{re.escape(step['pattern']['String'])}|.+", text, re.DOTALL)
    if kind == "WhitespaceSplit":
        return [word for word in re.split(r"(?:(?![\x1c-\x1f])\s)+", text) if word]
    if kind == "Metaspace":
        mark, scheme = step["replacement"], step.get("prepend_scheme", "always")
        text = text.replace(" ", mark)
        if not text.startswith(mark) and (scheme == "always" or (scheme == "first" and first)):
            text = mark + text
        return (
            re.findall(f"{mark}[^{mark}]*|[^{mark}]+", text) if step.get("split", True) else [text]
        )
    if kind == "Digits":
        signs = itertools.groupby(text, lambda letter: _class(letter) == "N")
        runs = [("".join(run), number) for number, run in signs]
        one_by_one = step["individual_digits"]
        return [part for run, number in runs for part in (run if number and one_by_one else [run])]
    if step["add_prefix_space"] and not text.startswith(" "):
        text = " " + text
    words = _cut(text, CONTRACTION, RUNS, "S") if step.get("use_regex", True) else [text]
    return ["".join(_letters()[byte] for byte in word.encode()) for word in words]


def _cut(
    text: str, contraction: re.Pattern[str], runs: re.Pattern[str], line_end: str
) -> Iterator[str]:
    """Contractions, and runs of letters, numbers and other signs with what `runs` has round them;
    `line_end` is the class of one.
    """
    classes = "".join(line_end if letter in "\r\n" else _class(letter) for letter in text)
    start = 0
    while start < len(text):
        match = contraction.match(text, start) or runs.match(classes, start)
        assert match is not None  # runs have all classes
        yield text[start : match.end()]
        start = match.end()


def _class(letter: str) -> str:
    """A letter's class in RUNS: " " a space, S white space, L a letter, N a number, O any other."""
    if letter == " ":
        return " "
    if letter.isspace() and letter not in "\x1c\x1d\x1e\x1f":
        return "S"
    kind = unicodedata.category(letter)[0]
    return kind if kind in "LN" else "O"


@lru_cache(1)
def _letters() -> dict[int, str]:
    """The letter that stands for each byte: itself where it can be printed, otherwise the next free
    one from U+0100 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    out = {byte: chr(byte) for byte in plain}
    free = (byte for byte in range(256) if byte not in out)
    return out | {byte: chr(256 + i) for i, byte in enumerate(list(free))}
