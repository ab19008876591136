"""A velocity led to a plan, in torch: what vla_jax/models/heads/euler.py does.

Axes: b episodes, k chunk step, a numbers of an action that flow.
"""

from collections.abc import Callable

import torch
from torch import Tensor

FLOW_STEPS = 10
STRONGEST = 5.0


def led(
    velocity: Callable[[Tensor], Tensor],
    x: Tensor,
    time: Tensor | float,
    plan: tuple[Tensor, Tensor],
    there: Tensor,
) -> Tensor:
    """The velocity at x [b k a] and a time in 1..0, less the pull towards a plan: its numbers, and
    how much each of them counts [b k a or 1]. What is not `there` [b 1 a] pulls nothing.

    Not to be called in inference mode: it differentiates.
    """
    actions, weight = plan
    at = torch.as_tensor(time, dtype=x.dtype, device=x.device)
    with torch.enable_grad():
        moved = x.detach().requires_grad_()
        v = velocity(moved)
        clean = moved - at * v
        error = ((actions - clean) * weight * there).detach()
        (pull,) = torch.autograd.grad(clean, moved, error)
    gone = 1 - at
    strength = (gone**2 + at**2) / (gone * at).clamp(min=1e-9)
    return v.detach() - strength.clamp(max=STRONGEST) * pull
