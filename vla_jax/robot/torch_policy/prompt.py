"""The prompt of a frame in torch: the instruction's ids, and where the state is told in words,
theirs behind them. What vla_jax/models/state_words.py does.

Axes: b episodes, l text, p proprio, q tokens of the state's words.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..state_words import BINS, WORDS

if TYPE_CHECKING:
    from .network import Inputs


class Prompt:
    """`body` is "state_words" of config.json: ids of every word, and of what follows the numbers;
    None: the state is not told in words. `vocab`: so many ids there are.
    """

    def __init__(self, body: dict[str, Any] | None, vocab: int) -> None:
        self.words = body is not None
        if body is None:
            return
        words, after = body["words"], body["after"]
        ids = [id for each in (*words, after) for id in each]
        if len(words) != len(WORDS) or not all(0 <= id < vocab for id in ids):
            raise ValueError(
                f"config.json: state_words: expected ids below {vocab} of {len(WORDS)} words"
            )
        longest = max(map(len, words))
        # Not tensors, which would be made where the network is: on "meta", to be filled later.
        self._table = np.array([[*each, *[-1] * (longest - len(each))] for each in words])
        self._after = np.array([after], np.int64)

    def __call__(self, inputs: "Inputs") -> tuple[Tensor, Tensor]:
        """The ids [b l+q] of the prompt, and which of them are there."""
        if not self.words:
            return inputs.prompt, inputs.prompt_mask
        state, there, device = inputs.proprio, inputs.proprio_mask, inputs.prompt.device
        assert state is not None
        half = BINS // 2
        number = (torch.floor(state.float() * half) + half).clamp(-1, BINS - 1)
        place = number.long() + 2
        place = place if there is None else torch.where(there, place, 0)
        table, after = (torch.from_numpy(x).to(device) for x in (self._table, self._after))
        ids = torch.cat([table[place].flatten(1), after.expand(len(state), -1)], 1)
        valid = torch.cat([inputs.prompt_mask, ids >= 0], 1)
        return torch.cat([inputs.prompt, ids.clamp(min=0)], 1), valid
