"""Numbers as tokens of a frame, as in vla_jax/models/tokens.py.

Axes: b episodes, c width, d action dim, p proprio.
"""

import torch
from torch import Tensor, nn

from .layers import Linear


class StateToken(nn.Module):
    """The robot's normalised state [b p] as one token [b c]; a gripper above 0 is open."""

    def __init__(self, width: int, dims: int, gripper: int | None) -> None:
        super().__init__()
        self.dims, self.gripper, self.rest = dims, gripper, [i for i in range(dims) if i != gripper]
        self.arm = Linear(len(self.rest), width)
        self.embedding = None if gripper is None else nn.Parameter(torch.empty(2, width))
        self.output = Linear(width if gripper is None else 2 * width, width)

    def forward(self, state: Tensor, mask: Tensor | None = None) -> Tensor:
        """What is not there by the mask [b p] adds nothing."""
        if mask is not None:
            state = torch.where(mask, state, 0)
        arm = self.arm(state[:, self.rest])
        if self.embedding is None:
            return self.output(arm)
        gripper = self.embedding[(state[:, self.gripper] > 0).long()]  # b c
        if mask is not None:
            gripper = torch.where(mask[:, self.gripper, None], gripper, 0)
        return self.output(torch.cat([arm, gripper.to(arm.dtype)], -1))


class ActionToken(nn.Module):
    """A normalised action [b d] as one token [b c]."""

    def __init__(self, width: int, dims: int, binary: list[int]) -> None:
        super().__init__()
        half, self.dims, self.binary = width // 2, dims, binary
        self.rest = [i for i in range(dims) if i not in binary]
        self.arm, self.middle = Linear(len(self.rest), half), Linear(half, half)
        self.output = Linear(half, width)
        self.gripper = Linear(len(binary), half) if binary else None

    def forward(self, action: Tensor) -> Tensor:
        x = self.arm(action[:, self.rest])
        x = x if self.gripper is None else x + self.gripper(action[:, self.binary])
        return self.output(self.middle(x))


class EmbodimentToken(nn.Module):
    """Which of `count` robots [b] it is as one token [b c]."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count, width))

    def forward(self, number: Tensor) -> Tensor:
        return self.table[number]
