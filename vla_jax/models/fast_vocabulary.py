"""FAST: a chunk of actions as a string of few tokens (arXiv 2501.09747; the processor of
physical-intelligence/fast).

    values [k d] -> DCT-II over the steps, orthonormal -> times `scale`, rounded: whole numbers
    -> one row, low frequencies first, the dims of a frequency side by side
    -> byte-pair encoding: runs of numbers that come often are one piece

Nothing but the rounding is lost. Numbers beyond the range that was fitted count as its ends.

A string is whole when its pieces hold k * d numbers and the end token follows. Any other is
refused, by `decode` here and by what decodes on a device (heads/fast.py).

Fitting and encoding, which take `tokenizers`, happen where data is; decoding takes the table of
pieces alone. Numpy only, but for that.

Axes: n chunks, k chunk step, d action dim, q tokens of a string.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

FORMAT = 1
FIRST = 0x100  # the letter of the lowest number: behind it all are letters as far as any range goes
LETTERS = 0xD700 - FIRST  # that there are at most


@dataclass(frozen=True)
class FastVocabulary:
    """What the tokens mean. Token i is pieces[i]; the one after the last is the end.

    Attributes:
        chunk: steps of a chunk, k.
        names: of the dims, d.
        scale: a coefficient's steps per network unit.
        low, high: the range of the rounded coefficients, each of which is a piece.
        merges: the two pieces that make each further one, in the order in which they merge.
        data: the hash of what it was fitted on, which says what a network unit is.
    """

    chunk: int
    names: tuple[str, ...]
    scale: float
    low: int
    high: int
    merges: tuple[tuple[int, int], ...]
    data: str

    @functools.cached_property
    def pieces(self) -> tuple[tuple[int, ...], ...]:
        """The numbers that each token stands for."""
        listed: list[tuple[int, ...]] = [(n,) for n in range(self.low, self.high + 1)]
        known = set(listed)
        for left, right in self.merges:
            piece = listed[left] + listed[right]
            if piece not in known:  # two merges may make the same
                known.add(piece)
                listed.append(piece)
        return tuple(listed)

    @property
    def numbers(self) -> int:
        """Numbers of a chunk."""
        return self.chunk * len(self.names)

    @property
    def end(self) -> int:
        """The end token."""
        return len(self.pieces)

    @property
    def size(self) -> int:
        """Tokens, the end among them."""
        return len(self.pieces) + 1

    def quantised(self, values: Float[np.ndarray, "n k d"]) -> Int[np.ndarray, "n q"]:
        """The whole numbers of chunks, in the order in which they are written. Raises ValueError
        for chunks of another size and numbers that are not finite.
        """
        if values.shape[1:] != (self.chunk, len(self.names)) or not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(
                f"FAST: expected finite chunks of {self.chunk} steps of {', '.join(self.names)},"
                f" got shape {values.shape[1:]} with {bad} numbers that are not"
            )
        return np.clip(rounded(values, self.scale), self.low, self.high)

    def values(self, numbers: Int[np.ndarray, "n q"]) -> Float[np.ndarray, "n k d"]:
        """The inverse of `quantised`, float64."""
        coefficients = numbers.reshape(-1, self.chunk, len(self.names)) / self.scale
        return np.einsum("kf,nfd->nkd", basis(self.chunk), coefficients)

    def encode(self, values: Float[np.ndarray, "n k d"]) -> list[list[int]]:
        """The pieces of chunks, without the end. Raises as `quantised`."""
        words = [self._spelled(row) for row in self.quantised(values).tolist()]
        return [encoding.ids for encoding in self._bpe.encode_batch(words)]

    def decode(self, tokens: Sequence[int]) -> Float[np.ndarray, "k d"]:
        """The values of a string, to its end token; what follows is not looked at. Raises
        ValueError, which says why, for one that is not whole.
        """
        written: list[int] = []
        for token in tokens:
            if token == self.end:
                break
            if not 0 <= token < self.end:
                raise ValueError(f"FAST: expected tokens below {self.size}, got {token}")
            written += self.pieces[token]
        else:
            raise ValueError(f"FAST: expected the end token {self.end}, got none")
        if len(written) != self.numbers:
            raise ValueError(f"FAST: expected {self.numbers} numbers, got {len(written)}")
        return self.values(np.array([written]))[0]

    def write(
        self, values: Float[np.ndarray, "n k d"], most: int
    ) -> tuple[Int[np.ndarray, "n q"], Bool[np.ndarray, "n q"]]:
        """The tokens of chunks with their end, padded with it to `most`, and which are there.
        Raises ValueError where one needs more, and as `quantised`.
        """
        strings = self.encode(values)
        longest = 1 + max(map(len, strings), default=0)
        if longest > most:
            raise ValueError(
                f"model.fast.most: expected at least {longest}, the tokens of a chunk of this data"
                f" with their end, got {most}; 0 takes as many as any chunk can need"
            )
        tokens = np.full((len(strings), most), self.end, np.int32)
        for row, string in zip(tokens, strings, strict=True):
            row[: len(string)] = string
        length = np.array([[len(string)] for string in strings], int).reshape(-1, 1)
        return tokens, np.arange(most)[None] <= length

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which `of_json` reads."""
        return {"format": FORMAT, "kind": "fast", **json.loads(json.dumps(asdict(self)))}

    def _spelled(self, numbers: Sequence[int]) -> str:
        return "".join(chr(FIRST + number - self.low) for number in numbers)

    @functools.cached_property
    def _bpe(self) -> Any:
        from tokenizers import Tokenizer  # here: who only decodes needs none
        from tokenizers.models import BPE

        letters = [self._spelled(piece) for piece in self.pieces]
        merges = [(letters[left], letters[right]) for left, right in self.merges]
        return Tokenizer(BPE({text: i for i, text in enumerate(letters)}, merges))


def of_json(body: Any, where: Path | str) -> FastVocabulary:
    """The vocabulary that `to_json` wrote. Raises ValueError, which names `where` it is from, for
    anything else.
    """
    names = [field.name for field in fields(FastVocabulary)]
    if not isinstance(body, dict) or set(body) != {"format", "kind", *names}:
        got = ", ".join(sorted(body)) if isinstance(body, dict) else type(body).__name__
        raise ValueError(
            f"{where}: expected a FAST vocabulary with the fields {', '.join(names)}, got {got}"
        )
    if (body["format"], body["kind"]) != (FORMAT, "fast"):
        raise ValueError(
            f"{where}: expected a FAST vocabulary of format {FORMAT}, got {body['kind']!r} of"
            f" format {body['format']!r}; fit it again"
        )
    try:
        made = FastVocabulary(
            chunk=int(body["chunk"]),
            names=tuple(map(str, body["names"])),
            scale=float(body["scale"]),
            low=int(body["low"]),
            high=int(body["high"]),
            merges=tuple((int(left), int(right)) for left, right in body["merges"]),
            data=str(body["data"]),
        )
        sound = made.to_json() == body and _sound(made)
    except (TypeError, ValueError, IndexError, OverflowError):
        sound = False
    if not sound:
        raise ValueError(f"{where}: is no FAST vocabulary as it was written: fit it again")
    return made


def read(file: Path) -> FastVocabulary:
    """The vocabulary in a file. Raises ValueError as `of_json`, and without the file."""
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: expected a FAST vocabulary in JSON ({error})") from error
    return of_json(body, file)


def check_fits(
    vocabulary: FastVocabulary, chunk: int, names: Sequence[str], data: str, where: Path | str
) -> None:
    """Raises ValueError, which says in what, for a vocabulary of other chunks, dims or data."""
    for what, expected, got in (
        ("chunks of", chunk, vocabulary.chunk),
        ("the dims", ", ".join(names), ", ".join(vocabulary.names)),
        ("data with the statistics", data[:12], vocabulary.data[:12]),
    ):
        if expected != got:
            raise ValueError(
                f"model.fast.file: {where} is of other data: expected {what} {expected}, got {got};"
                " 'fit' makes one of the run's own"
            )


def blank(chunk: int, names: Sequence[str], tokens: int) -> FastVocabulary:
    """A vocabulary of so many tokens that is of no data: for shapes."""
    return FastVocabulary(chunk, tuple(names), 1.0, 0, tokens - 2, (), "")


def fit(
    values: Float[np.ndarray, "n k d"], names: Sequence[str], data: str, scale: float, tokens: int
) -> FastVocabulary:
    """The vocabulary of `tokens` tokens at most, the end among them, for chunks in network units.
    Deterministic.

    Raises ValueError without chunks, and where the range of the numbers alone needs more tokens.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    if not len(values):
        raise ValueError("FAST: expected chunks to fit on, got none")
    numbers = rounded(values, scale)
    low, high = int(numbers.min()), int(numbers.max())
    letters = high - low + 1
    if letters + 1 > tokens or letters > LETTERS:
        raise ValueError(
            f"model.fast.tokens: expected at least {letters + 1}, one for each of the numbers {low}"
            f" to {high} and the end, got {tokens}; or a smaller model.fast.scale than {scale:g}"
        )
    plain = FastVocabulary(values.shape[1], tuple(names), scale, low, high, (), data)
    bpe = Tokenizer(BPE())
    bpe.train_from_iterator(
        (plain._spelled(row) for row in numbers.tolist()),
        BpeTrainer(
            vocab_size=tokens - 1,
            min_frequency=2,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=[plain._spelled([number]) for number in range(low, high + 1)],
        ),
    )
    known = {plain._spelled(piece): i for i, piece in enumerate(plain.pieces)}
    merges = []
    for left, right in json.loads(bpe.to_str())["model"]["merges"]:
        merges.append((known[left], known[right]))
        known.setdefault(left + right, len(known))
    return FastVocabulary(plain.chunk, plain.names, scale, low, high, tuple(merges), data)


def rounded(values: Float[np.ndarray, "n k d"], scale: float) -> Int[np.ndarray, "n q"]:
    """DCT coefficients of chunks over their steps, times scale, as whole numbers (half to even)."""
    coefficients = np.einsum("kf,nkd->nfd", basis(values.shape[1]), values.astype(np.float64))
    n, k, d = coefficients.shape
    return np.rint(coefficients * scale).astype(np.int64).reshape(n, k * d)


@functools.lru_cache
def basis(chunk: int) -> Float[np.ndarray, "k f"]:
    """The orthonormal DCT-II's waves over the steps, one a column: values = basis @ coefficients,
    coefficients = basis.T @ values.
    """
    step, frequency = np.arange(chunk)[:, None], np.arange(chunk)[None]
    waves = np.sqrt(2 / chunk) * np.cos(np.pi * (step + 0.5) * frequency / chunk)
    waves[:, 0] /= np.sqrt(2)
    return waves


def _sound(vocabulary: FastVocabulary) -> bool:
    """Whether its numbers make sense, and every merge is of pieces that are there before it."""
    singles = vocabulary.high - vocabulary.low + 1
    if min(vocabulary.numbers, vocabulary.scale) <= 0 or not 0 < singles <= LETTERS:
        return False
    return all(
        0 <= left < singles + i and 0 <= right < singles + i
        for i, (left, right) in enumerate(vocabulary.merges)
    ) and all(len(piece) <= vocabulary.numbers for piece in vocabulary.pieces)
