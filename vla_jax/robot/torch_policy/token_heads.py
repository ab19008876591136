"""The policy heads in torch that write their chunk in tokens of the language model, which
decoding.py decodes: what the tokens mean. They have no parameters.

Each does what its namesake in vla_jax/models/heads does. `body` is "head" of config.json.

Axes: b episodes, k chunk step, d action dim, q action tokens, n tokens to choose from, m numbers of
a chunk, k * d.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .heads import Head, bin_centres


class TokenHead(Head):
    """`token_range` are the ids that can be written, `tokens` how many at most; `end_token` is the
    one that ends a string where its length varies. `middle` is the id in the place of what a robot
    lacks.
    """

    reads_prefix = True
    token_range: tuple[int, int]
    tokens: int
    end_token: int | None = None
    middle: int = 0

    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__()
        del width
        self.chunk, self.action_dim = body["chunk"], body["action_dim"]
        self.binary, self.end = list(body["binary"]), body["end"]

    def choose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """The next token [b] of logits [b n]: the likeliest, or a draw with noise [b n]."""
        del noise
        return logits.argmax(-1) + self.token_range[0]

    def actions(self, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [b q] and the logits [b q n] each was chosen by -> normalised actions [b k d], and
        the probability of what each number was read from [b m].
        """
        raise NotImplementedError


class DiscreteHead(TokenHead):
    """Each number is one token."""

    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__(width, body)
        self.temperature, self.bins = body["temperature"], body["bins"]
        self.low, self.high = body["low"], body["high"]
        self.token_range = (self.end - self.bins, self.end)  # ids that stand for an action
        self.tokens = self.chunk * self.action_dim
        self.middle = body.get("middle", self.end - 1)  # in the place of what a robot lacks
        if self.temperature:  # Gumbel noise for each token
            self.noise_shape = (self.tokens, self.bins)

    def choose(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """The next token [b] of logits [b bins]: the likeliest, or a draw with noise [b bins]."""
        if self.temperature:
            if noise is None:
                raise ValueError(
                    f"head discrete: expected noise of shape {self.noise_shape}, got None"
                )
            logits = logits / self.temperature + noise
        return logits.argmax(-1) + self.token_range[0]

    def actions(self, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See TokenHead."""
        centres = bin_centres(self.low, self.high, self.bins, ids.device)

        def value(ids: Tensor) -> Tensor:
            return centres[(self.end - ids - 1).clamp(0, self.bins - 2)]

        ones = (
            value(torch.arange(*self.token_range, device=ids.device)) > (self.high + self.low) / 2
        )
        log_p = logits.log_softmax(-1)
        yes, no = (log_p.masked_fill(~part, -math.inf).logsumexp(-1) for part in (ones, ~ones))
        shape = (self.chunk, self.action_dim)
        binary = torch.zeros(self.action_dim, dtype=torch.bool, device=ids.device)
        binary[self.binary] = True
        action = torch.where(
            binary, torch.sigmoid(yes - no).unflatten(-1, shape), value(ids).unflatten(-1, shape)
        )
        index = (ids - self.token_range[0])[..., None]
        return action, logits.softmax(-1).gather(2, index)[..., 0]


class FastHead(TokenHead):
    """A chunk is a string of pieces, each of several DCT coefficients, and an end token. NaN: a
    string that is not whole.
    """

    def __init__(self, width: int, body: dict[str, Any]) -> None:
        super().__init__(width, body)
        pieces = [[int(number) for number in piece.split()] for piece in body["pieces"]] + [[]]
        self.tokens, self.token_range = body["tokens"], (self.end - len(pieces), self.end)
        self.end_token = self.token_range[0]
        longest = max(map(len, pieces))
        table = [piece + [0] * (longest - len(piece)) for piece in pieces]
        # Whatever the default device: no parameters, and wanted where the tokens are.
        self.numbers = torch.tensor(table, device="cpu")
        self.sizes = torch.tensor([len(piece) for piece in pieces], device="cpu")
        step = torch.arange(self.chunk, dtype=torch.float64, device="cpu")
        waves = torch.cos(math.pi * (step[:, None] + 0.5) * step / self.chunk)
        waves = waves * math.sqrt(2 / self.chunk)
        waves[:, 0] /= math.sqrt(2)
        self.waves = (waves / body["scale"]).float()  # k frequency

    def actions(self, ids: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See TokenHead; all numbers are as sure as the string: the geometric mean of its tokens'
        probabilities.
        """
        ended = torch.eq(ids, self.token_range[0])
        before = ended.cumsum(1) == 0
        pieces = self.end - 1 - ids
        lengths = torch.where(before, self.sizes.to(ids.device)[pieces], 0)  # b q
        numbers, m = self._numbers(pieces, lengths), self.chunk * self.action_dim
        waves = self.waves.to(ids.device)
        values = waves @ numbers.float().unflatten(-1, (self.chunk, self.action_dim))
        binary = torch.zeros(self.action_dim, dtype=torch.bool, device=ids.device)
        binary[self.binary] = True
        action = torch.where(binary, ((values + 1) / 2).clamp(0, 1), values)
        whole = ended.any(1) & (lengths.sum(1) == m)
        action = torch.where(whole[:, None, None], action, math.nan)
        index = (ids - self.token_range[0])[..., None]
        log_p = logits.log_softmax(-1).gather(2, index)[..., 0]
        written = before | (ended & (ended.cumsum(1) == 1))  # the end token among them
        mean = torch.where(written, log_p, 0).sum(1) / written.sum(1)
        return action, mean.exp()[:, None].expand(-1, m)

    def _numbers(self, pieces: Tensor, lengths: Tensor) -> Tensor:
        """The numbers [b m] of pieces [b q] of so many each; where they end before, anything."""
        stop = lengths.cumsum(1)
        place = torch.arange(self.chunk * self.action_dim, device=pieces.device)[None]
        token = (stop[:, :, None] <= place[:, None]).sum(1).clamp(max=pieces.shape[1] - 1)
        offset = place - (stop - lengths).gather(1, token)
        table = self.numbers.to(pieces.device)
        return table[pieces.gather(1, token), offset.clamp(0, table.shape[1] - 1)]


HEADS: dict[str, type[Head]] = {"discrete": DiscreteHead, "fast": FastHead}
