"""Where tokens stand in torch: their positions, and tokens of different width side by side. Each
function does what its namesake in vla_jax/models/sequence.py does.

Axes: b episodes, f frames in a row, s tokens of a frame, c width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

FIRST_IMAGE = {"prefix": 0, "robovlms": 1, "robovlms_pre": 2}  # its token's place in a frame

Squares = list[tuple[int, int]]  # of tokens with a row and a column: the first, how many to a side


def squares(layout: str, sides: list[int]) -> Squares:
    """The squares of a frame whose cameras, in the config's order, have `sides` tokens a side."""
    out, first = [], FIRST_IMAGE[layout]
    for side in sides if layout == "prefix" else sides[::-1]:
        out.append((first, side))
        first += side * side
    return out


def places(valid: Tensor, num_unshared: int, squares: Squares) -> Tensor:
    """The positions [b f*s] of tokens of which valid[b f s] are there; with squares those of time,
    row and column, [b f*s 3].
    """
    f, s = valid.shape[1:]
    taken = torch.ones(s, dtype=torch.int64, device=valid.device)
    offsets = torch.zeros(s, 3, dtype=torch.int64, device=valid.device)
    for first, side in squares:
        index = torch.arange(side * side, device=valid.device)
        taken[first + side : first + side * side] = 0
        place = torch.stack([torch.zeros_like(index), index // side, index % side], 1)
        offsets[first : first + side * side] = place + 1 - (index + 1).clamp(max=side)[:, None]
    counts = valid * taken if squares else valid
    inside = counts.cumsum(2)  # b f s
    counted = counts[:, :, : s - num_unshared].sum(2)
    start = counted.cumsum(1) - counted  # b f: taken by earlier frames
    line = (start[:, :, None] + inside - 1).clamp(min=0).flatten(1)
    return (line[:, :, None] + offsets.repeat(f, 1)).clamp(min=0) if squares else line


def concat_tokens(parts: list[Tensor]) -> Tensor:
    """Tokens [b ... c] one behind the other in the first part's dtype, zeros behind the narrower
    ones.
    """
    width = max(part.shape[-1] for part in parts)
    return torch.cat(
        [
            part if part.shape[-1] == width else F.pad(part, (0, width - part.shape[-1]))
            for part in (each.to(parts[0].dtype) for each in parts)
        ],
        1,
    )
