"""Tokenizers: those of pretrained folders, and a small one for models that are trained from
nothing.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NO_PIECES = 1_180  # ids of a small tokenizer: 1024 <loc>, 128 <seg>, up to 28 more


def open_tokenizer(folder: Path | str, needs: Sequence[str]) -> Any:
    """The transformers tokenizer of a local Hugging Face folder.

    `needs` are the kinds of special token it must have, such as "bos". Raises ValueError without
    the folder or one.
    """
    # Imported here: a training host with a tokenizer at hand is the only one that needs it.
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"tokenizer: expected a folder with tokenizer files, got {folder}")
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    lacking = [kind for kind in needs if getattr(tokenizer, f"{kind}_token_id") is None]
    if lacking:
        raise ValueError(
            f"tokenizer {folder}: expected a token for {', '.join(needs)}, got none for "
            f"{', '.join(lacking)}; is it another model's?"
        )
    return tokenizer


class Tokenizer:
    """A backbone's words: an instruction becomes the ids of its prompt, with special tokens before
    and after it.
    """

    def __init__(
        self,
        folder: Path | str,
        prompt: Callable[[str], str],
        before: Sequence[str],
        after: Sequence[str],
    ) -> None:
        """`before` and `after` are kinds of special token ("bos", "eos") or "newline", which is a
        piece of its own.
        """
        needs = [kind for kind in (*before, *after) if kind != "newline"]
        self._tokenizer, self._prompt = open_tokenizer(folder, needs), prompt
        self.template = prompt("{}")  # the prompt's text, with {} for the instruction
        # `closing` is `after` where the prompt's text ends its line itself.
        self.before, self.after, self.closing = (
            [id for kind in kinds for id in self._ids(kind)]
            for kinds in (before, after, [kind for kind in after if kind != "newline"])
        )

    @property
    def vocab(self) -> int:
        """One more than the largest id."""
        return len(self._tokenizer)

    def definition(self) -> dict[str, Any]:
        """What tokenizer.json would say of the tokenizer as it is used."""
        return json.loads(self._tokenizer.backend_tokenizer.to_str())

    def encode(self, instruction: str) -> list[int]:
        """Ids of the prompt."""
        return [*self.before, *self.ids(self._prompt(instruction)), *self.after]

    def ids(self, text: str) -> list[int]:
        """Ids of a text, without special tokens round it."""
        return self._tokenizer.encode(text, add_special_tokens=False)

    def answer(self, text: str) -> list[int]:
        """Ids of `text <eos>`: what follows a prompt where the model is to write."""
        if self._tokenizer.eos_token_id is None:
            raise ValueError("tokenizer: expected an <eos> token to end answers with, got none")
        words = self._tokenizer.encode(" ".join(text.split()), add_special_tokens=False)
        return [*words, self._tokenizer.eos_token_id]

    def _ids(self, kind: str) -> list[int]:
        if kind == "newline":
            return self._tokenizer.encode("\n", add_special_tokens=False)
        return [getattr(self._tokenizer, f"{kind}_token_id")]


def special_tokens(tokenizer: Any) -> int:
    """How many special tokens a transformers tokenizer names; each of a list counts."""
    named = tokenizer.special_tokens_map.values()
    return sum(len(value) if isinstance(value, list | tuple) else 1 for value in named)


def digest(folder: Path) -> str:
    """sha256 over the names and contents of the tokenizer's files, so that a changed tokenizer
    shows.
    """
    sha = hashlib.sha256()
    for file in sorted(folder.glob("tokenizer*")) + sorted(folder.glob("special_tokens*")):
        sha.update(file.name.encode() + b"\0" + file.read_bytes())
    return sha.hexdigest()


def train_tiny_tokenizer(
    texts: Sequence[str],
    out: Path | str,
    vocab: int = 1600,
    added: Sequence[str] = ("<image>",),
) -> None:
    """Trains a small tokenizer laid out like PaliGemma's: pieces, then <loc>, <seg> and the `added`
    tokens at the end. It has at most `vocab` ids, of which NO_PIECES are no pieces: where there is
    room words become one piece each, and a sentence of known words is one of known tokens.

    Deterministic in `texts`. Writes a Hugging Face folder, whole or not at all.
    """
    # Imported here: only a run without a pretrained tokenizer needs them.
    import sentencepiece as spm
    from sentencepiece import sentencepiece_model_pb2
    from transformers import GemmaTokenizer

    out = Path(out)
    letters = {c for text in texts for c in text}
    room = min(vocab - NO_PIECES, 2_000)
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(texts or ["a"]), model_writer=model, model_type="bpe",
        byte_fallback=True,
        vocab_size=max(300, min(room, 262 + len(letters) + 4 * len(texts))), hard_vocab_limit=False,
        add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
        character_coverage=1.0, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        user_defined_symbols=["<mask>"], num_threads=1, minloglevel=2,
    )  # fmt: skip
    model_pb2: Any = sentencepiece_model_pb2  # its classes are made at import time
    proto = model_pb2.ModelProto.FromString(model.getvalue())
    for piece in (*(f"<loc{i:04d}>" for i in range(1024)), *(f"<seg{i:03d}>" for i in range(128))):
        proto.pieces.add(
            piece=piece, score=0.0, type=model_pb2.ModelProto.SentencePiece.USER_DEFINED
        )
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (part / "tokenizer.model").write_bytes(proto.SerializeToString())
    tokenizer = GemmaTokenizer.from_pretrained(str(part))
    tokenizer.add_special_tokens({"additional_special_tokens": list(added)})
    tokenizer.save_pretrained(str(part))
    settings = part / "tokenizer_config.json"
    kept = json.loads(settings.read_text())
    kept.pop("vocab_file", None)  # where it was made: hosts that each make it must have the same
    settings.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    os.replace(part, out)
