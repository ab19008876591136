"""How likely a chunk that flows out of noise is: along the path that it took, step by step.

Euler's steps (models/heads/euler.py) draw nothing but their beginning, and what they end at has no
density that could be had. So each step is one of the stochastic differential equation that has the
same distribution at every time (Flow-GRPO, arXiv 2505.05470, whose convention of times is ours):

    mean     x - dt (v + sigma^2 / (2 s) (x + (1 - s) v))
    width    sigma sqrt(dt),   sigma = std sqrt(s / (1 - s))

at the time s, with the velocity v and dt = 1 / STEPS; sigma at s = 1 is that of the next step, as
there. With a width of 0 these are Euler's steps. A path is as likely as all its steps together (as
in ReinFlow, arXiv 2505.22094, and in pi_RL's Flow-Noise, arXiv 2510.25889; not one step of it drawn
by lot, as in pi_RL's Flow-SDE). Its beginning is left out: it is as likely whatever the policy.

The velocity at a step of the chunk looks at all steps and dims of it: so the whole path counts,
that of steps which were not carried out too.

Axes: b decisions, q Euler steps, p places of a path (q + 1), k chunk step, a numbers that flow.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vla_jax.models.heads.euler import STEPS, Velocity
from vla_jax.types import Array

DT = 1 / STEPS
TIMES = 1 - np.arange(STEPS, dtype=np.float32) / STEPS  # of euler.integrate's steps
_LATER = np.minimum(TIMES, 1 - DT)
SIGMA = np.sqrt(TIMES / (1 - _LATER)).astype(np.float32)  # at std 1

Width = Float[Array, " a"]  # std, the noise level of each number


def draw(
    velocity: Velocity,
    start: Float[Array, "b k a"],
    std: Width,
    there: Bool[Array, "b a"],
    key: jax.Array,
) -> Float[Array, "b p k a"]:
    """A path from its beginning to the chunk. What is not `there` stays 0."""

    def step(x: jax.Array, given: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        at, sigma, own = given
        v = velocity(x[:, None], at)[:, 0]
        width = sigma * std[None, None]
        noise = math.sqrt(DT) * width * jax.random.normal(own, x.shape)
        x = jnp.where(there[:, None], mean(x, v, at, width) + noise, 0.0)
        return x, x

    start = jnp.where(there[:, None], start, 0.0)
    steps = jnp.asarray(TIMES), jnp.asarray(SIGMA), jax.random.split(key, STEPS)
    _, path = jax.lax.scan(step, start, steps)
    return jnp.concatenate([start[:, None], jnp.moveaxis(path, 0, 1)], axis=1)


def along(velocity: Velocity, path: Float[Array, "b p k a"]) -> Float[Array, "b q k a"]:
    """The velocities at all places of a path but the last. Of each the backward pass keeps where it
    was asked, not how it was answered.
    """

    def look(_: None, given: tuple[Array, Array]) -> tuple[None, Array]:
        x, at = given
        return None, velocity(x[:, None], at)[:, 0]

    _, out = jax.lax.scan(jax.checkpoint(look), None, (jnp.moveaxis(path[:, :-1], 1, 0), TIMES))
    return jnp.moveaxis(out, 0, 1)


def mean(x: Array, velocity: Array, at: Array, sigma: Array) -> Array:
    """Where the next place is, on average."""
    back = sigma**2 / (2 * at)
    return x - DT * (velocity + back * (x + (1 - at) * velocity))


def log_prob(
    velocity: Float[Array, "b q k a"],
    std: Width,
    path: Float[Array, "b p k a"],
    there: Bool[Array, "b a"],
) -> Float[Array, " b"]:
    """The logarithm of the density of the steps of each path, of the numbers that are `there`."""
    at, sigma = _steps(std)
    off = path[:, 1:] - mean(path[:, :-1], velocity, at, sigma)
    width = math.sqrt(DT) * sigma
    each = -0.5 * (off / width) ** 2 - jnp.log(width) - 0.5 * math.log(2 * math.pi)
    return _total(each, there)


def divergence(
    velocity: Float[Array, "b q k a"],
    other: Float[Array, "b q k a"],
    std: Width,
    there: Bool[Array, "b a"],
) -> Float[Array, " b"]:
    """Kullback and Leibler's divergence of the policy's steps from those of another one of the same
    width, along a path, in nats a chunk.
    """
    at, sigma = _steps(std)
    zero = jnp.zeros_like(velocity)
    off = mean(zero, velocity - other, at, sigma)
    return _total(0.5 * (off / (math.sqrt(DT) * sigma)) ** 2, there)


def _steps(std: Width) -> tuple[Float[Array, "1 q 1 1"], Float[Array, "1 q 1 a"]]:
    """Each step's time and sigma."""
    at, sigma = (jnp.asarray(x)[None, :, None, None] for x in (TIMES, SIGMA))
    return at, sigma * std[None, None, None]


def _total(each: Float[Array, "b q k a"], there: Bool[Array, "b a"]) -> Float[Array, " b"]:
    return jnp.sum(jnp.where(there[:, None, None], each, 0.0), axis=(1, 2, 3))
