"""Tokens that a head writes, one by one behind the newest frame of a window.

Axes: b episodes, f frames, s tokens of all frames, n readouts, c width, q tokens that are written,
v that each is chosen from, d action dim.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .attention import Cache
from .token_heads import TokenHead

if TYPE_CHECKING:  # it imports this
    from .network import Frame, Network


class Decoded(NamedTuple):
    """Tokens so far: their count [1], ids [b q], -1 after them, and the logits [b q v] each was
    chosen by, zeros after them, and the cache of all tokens.
    """

    num_tokens: Tensor
    ids: Tensor
    logits: Tensor
    cache: Cache


def repeated(
    decode_next: Callable[[Any], Any], done: Any, times: int, end: int | None = None
) -> Any:
    """`decode_next` applied `times` times at most, to `done` first, a Decoded or what counts like
    it: until all have written `end`, where there is one.
    """
    for _ in range(times):
        if end is not None and bool((done.ids == end).any(1).all()):
            break
        done = decode_next(done)
    return done


def decode(
    network: "Network", frames: "Frame", head: TokenHead, noise: Tensor | None, dims: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The newest frame's readouts [b n c], its tokens [b q], and the logits [b q v] each was chosen
    by. Noise is [b q v], dims [b d].
    """
    mask, positions, media = network.attention_mask(frames)
    x = frames.tokens.flatten(1, 2)
    b, s = positions.shape[:2]  # s: of all frames
    slots = torch.arange(s + head.tokens - 1, device=x.device)
    cache: Any = network.backbone.decoder.layers.empty_cache(x, len(slots))
    mask = torch.cat([mask, mask.new_zeros(b, s, len(slots) - s)], 2)
    hidden = network.backbone.encode(x, mask, positions, network.readouts, media, cache)
    readout, newest_mask, position = hidden.float(), mask[:, -1:], positions[:, -1:]
    newest_media = None if media is None else media._replace(mask=media.mask[:, -1:])

    def choose(done: Decoded, hidden: Tensor) -> Decoded:
        logits = network.backbone.logits(hidden, head.token_range)  # b 1 v
        drawn = None if noise is None else noise.index_select(1, done.num_tokens)[:, 0]
        chosen = head.choose(logits[:, 0], drawn)[:, None]
        if dims is not None:
            there = dims.index_select(1, done.num_tokens % head.action_dim)
            chosen = torch.where(there, chosen, head.middle)
        if head.end_token is not None:
            ended = (done.ids == head.end_token).any(1, keepdim=True)
            chosen = torch.where(ended, head.end_token, chosen)
        return Decoded(
            done.num_tokens + 1,
            done.ids.index_copy(1, done.num_tokens, chosen),
            done.logits.index_copy(1, done.num_tokens, logits),
            done.cache,
        )

    def decode_next(done: Decoded) -> Decoded:
        seen = newest_mask | (slots >= s) & (slots < s + done.num_tokens)
        last_id = done.ids.index_select(1, done.num_tokens - 1)[:, 0]
        hidden = network._encode_token(
            last_id, seen, position + done.num_tokens, newest_media, done.cache
        )
        return choose(done, hidden)

    ids = positions.new_full((b, head.tokens), -1)
    logits = readout.new_zeros(b, head.tokens, head.token_range[1] - head.token_range[0])
    done = choose(Decoded(positions.new_zeros(1), ids, logits, cache), hidden[:, -1:])
    done = network.repeat(decode_next, done, head.tokens - 1, head.end_token)
    if head.end_token is None:
        return readout, done.ids, done.logits
    return readout, torch.where(done.ids < 0, head.end_token, done.ids), done.logits
