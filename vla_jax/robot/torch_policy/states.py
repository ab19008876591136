"""States of several episodes, which go through the network together."""

from typing import Any

import torch

from .network import Frame, Grown, State


def split_episodes(state: State, b: int) -> list[State]:
    """The states of b episodes, one by one."""
    if isinstance(state, Frame | Grown):
        parts: list[Any] = [[None] * b if x is None else x.split(1) for x in state]
        return [type(state)(*part) for part in zip(*parts, strict=True)]
    return [None] * b if state is None else list(state.split(1))


def join_episodes(states: list[State]) -> State:
    """The states of single episodes as one of all of them: the inverse of `split_episodes`."""
    parts: Any = states
    if isinstance(states[0], Frame | Grown):
        fields: Any = (
            None if field[0] is None else torch.cat(field) for field in zip(*parts, strict=True)
        )
        return type(states[0])(*fields)
    return None if states[0] is None else torch.cat(parts)
