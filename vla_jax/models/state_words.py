"""The robot's state as words of the prompt (model.state_words), in the place of a token: the text
of vla_jax/robot/state_words.py, where a backbone's own prompt has the instruction.

The instruction is what a prompt's ids are of; the numbers change at every frame. Their ids are
looked up by the network, in a table of all words, made once: no tokenizer runs while a policy
trains or acts. That is right where ids do not depend on what stands beside a word, which `prompt`
makes sure of.

Axes: b batch, t window step, f = b * t frames, p proprio, l text, q tokens of the state's words.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from vla_jax.models.sequence import MaskedTokens, concat_tokens
from vla_jax.models.tokenizer import Tokenizer
from vla_jax.robot import state_words
from vla_jax.robot.state_words import AFTER, BINS, INSTRUCTION, WORDS
from vla_jax.types import Array, Backbone, Observation

# What a small tokenizer is trained on beside instructions, to have the digits; none with a sign
# beside it, which it might join.
TEXT = " ".join([INSTRUCTION.format(""), *WORDS[:12], *AFTER.split("\n")])


@dataclasses.dataclass(frozen=True)
class StateWords:
    """Ids of each of state_words.WORDS, and of what follows the last number."""

    words: tuple[tuple[int, ...], ...]
    after: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens of the longest word."""
        return max(map(len, self.words))

    def ids(self) -> list[int]:
        """Those of all words."""
        return [id for word in (*self.words, self.after) for id in word]

    def count(self, dims: int) -> int:
        """Tokens of a state of so many numbers, q."""
        return len(self) * dims + len(self.after)

    def tokens(
        self, state: Float[Array, "b t p"], mask: Bool[Array, "b p"]
    ) -> tuple[Int[Array, "f q"], Bool[Array, "f q"]]:
        """The ids of a normalised state, and which of them are there: words differ in length."""
        b, t, p = state.shape
        # A bin is exact: its edges are multiples of 1/128, and no sum is rounded.
        half = BINS // 2
        number = jnp.clip(jnp.floor(state.astype(jnp.float32) * half) + half, -1, BINS - 1)
        place = jnp.where(mask[:, None], number.astype(jnp.int32) + 2, 0)
        table = [[*word, *[-1] * (len(self) - len(word))] for word in self.words]
        ids = jnp.array(table, jnp.int32)[place].reshape(b * t, p * len(self))
        after = jnp.broadcast_to(np.array(self.after, np.int32), (b * t, len(self.after)))
        ids = jnp.concatenate([ids, after], axis=1)
        return jnp.maximum(ids, 0), ids >= 0


BLANK = StateWords(((0,) * 4,) * len(WORDS), (0,) * 5)  # about as long as PaliGemma's


class Prompt(NamedTuple):
    """How an instruction becomes ids: `before`, the template with the instruction in it, `after`;
    or at once by `encode`.
    """

    before: list[int]
    template: str
    after: list[int]
    encode: Callable[[str], list[int]]


def prompt(encoder: Tokenizer, stated: bool) -> tuple[Prompt, StateWords | None]:
    """The prompt of a backbone's tokenizer; `stated` with the state, whose words then follow it.

    Raises ValueError for a tokenizer that joins words of the state with what stands beside them.
    """
    if not stated:
        return Prompt(encoder.before, encoder.template, encoder.after, encoder.encode), None
    opening, _, closing = encoder.template.partition("{}")
    template = opening + INSTRUCTION

    def encode(instruction: str) -> list[int]:
        text = template.replace("{}", state_words.cleaned(instruction))
        return [*encoder.before, *encoder.ids(text)]

    # Ids in their place: of a text alone some tokenizers make others.
    said = template.replace("{}", "")
    first = encoder.ids(said)

    def behind(known: list[int], text: str) -> list[int]:
        ids = encoder.ids(said + text)
        if ids[: len(known)] != known:
            raise _joined(said + text)
        return ids[len(known) :]

    words = [behind(first, f" {word}") for word in WORDS]
    end = f"{AFTER}{closing}"
    after = behind([*first, *words[0]], f" {WORDS[0]}{end}")
    shuffled = np.random.default_rng(0).permutation(np.repeat(np.arange(len(WORDS)), 8))
    for chosen in (*([i] for i in range(len(WORDS))), range(len(WORDS)), shuffled):
        text = "".join(f" {WORDS[i]}" for i in chosen)
        ids = [*first, *(id for i in chosen for id in words[i])]
        if behind(ids, text + end) != after:
            raise _joined(f"{said}{text}{end}")
    table = StateWords(tuple(map(tuple, words)), (*after, *encoder.closing))
    return Prompt(encoder.before, template, [], encode), table


def _joined(text: str) -> ValueError:
    return ValueError(
        "model.state_words: expected a tokenizer that does not join the state's numbers with what"
        f" stands beside them, got one that does in {text[:80]!r}; set model.state_words=False: the"
        " state is a token then"
    )


def prompt_tokens(backbone: Backbone, obs: Observation, words: StateWords | None) -> MaskedTokens:
    """The prompt's tokens in every frame [f l+q], those of the state's words behind the
    instruction's. Text is embedded once per example and repeated for its frames.
    """
    t = obs.step_mask.shape[1]
    said: Any = (backbone.embed_text(obs.prompt), obs.prompt_mask)
    prompt = MaskedTokens(*(jnp.repeat(x, t, axis=0) for x in said))
    if words is None:
        return prompt
    ids, valid = words.tokens(obs.proprio, obs.proprio_mask)
    return concat_tokens([prompt, MaskedTokens(backbone.embed_text(ids), valid)])
