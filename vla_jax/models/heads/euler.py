"""From noise to a chunk along a velocity, in a few Euler steps; on its own, or led to a plan.

The convention is flow.py's: at time s the chunk is x = s * noise + (1 - s) * actions, the velocity
says noise - actions, and s falls from 1 to 0. So x - s * velocity is what the actions look like
from there. Real-time chunking (arXiv 2506.07339, eq. 2 to 4, whose time is 1 - s) adds to each step
what would bring those nearer to the plan: their difference to it, weighted, times the derivative of
that look by x, which knows how the steps of a chunk hang together.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from vla_jax.types import Array, Guide

STEPS = 10
STRONGEST = 5.0  # the guidance at most, beta of the paper

Velocity = Callable[[Array, Any], Array]  # (x, time) -> as x


def integrate(
    velocity: Velocity,
    noise: Float[Array, "b t k a"],
    there: Float[Array, "b 1 1 a"],
    guide: Guide | None = None,
) -> Float[Array, "b t k a"]:
    """The chunks at time 0. What is not `there` stays 0. The guide is of a numbers too."""

    def step(x: Array, at: Array) -> tuple[Array, None]:
        v = velocity(x, at) if guide is None else _led(velocity, x, at, guide, there)
        return (x - v / STEPS) * there, None

    x, _ = jax.lax.scan(step, noise * there, 1 - jnp.arange(STEPS) / STEPS)
    return x


def _led(
    velocity: Velocity,
    x: Float[Array, "b t k a"],
    at: Float[Array, ""],
    guide: Guide,
    there: Float[Array, "b 1 1 a"],
) -> Float[Array, "b t k a"]:
    """The velocity, less the pull towards the plan."""

    def looked(x: Array) -> tuple[Array, Array]:
        v = velocity(x, at)
        return x - at * v, v

    clean, back, v = jax.vjp(looked, x, has_aux=True)
    (pull,) = back((guide.actions[:, None] - clean) * guide.weight[:, None] * there)
    gone = 1 - at
    # (1 - tau) / (tau r^2) with r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2); at tau = 0 the limit.
    strength = (gone**2 + at**2) / jnp.maximum(gone * at, 1e-9)
    return v - jnp.minimum(strength, STRONGEST) * pull
