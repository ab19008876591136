"""How likely a policy with a continuous head makes a chunk: a normal distribution around its
numbers, Bernoulli's for each binary one.

The head says where the middle is; how wide it is, is one number a dim, learned and the same in
every state. The steps of a chunk stray together: two of them are correlated by CORRELATION in a
dim. Independent ones would cancel each other out on the way that a chunk drives, and nothing new
would be tried. Dims are independent. What was carried out of a chunk is its first steps (`mask`),
which have the same distribution for a shorter chunk.

Axes: b decisions, k chunk step, d action dim.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vla_jax.types import Array

CORRELATION = 0.5
# What a head says of a chunk, [b k d]: the middle of each number, a logit where it is binary.
Raw = Float[Array, "b k d"]


def draw(raw: Raw, log_std: Float[Array, " d"], binary: tuple[int, ...], key: jax.Array) -> Raw:
    """A chunk; a binary number is 0 or 1."""
    common, own, uniform = jax.random.split(key, 3)
    b, _, d = raw.shape
    noise = math.sqrt(CORRELATION) * jax.random.normal(common, (b, 1, d))
    noise += math.sqrt(1 - CORRELATION) * jax.random.normal(own, raw.shape)
    arm = raw + jnp.exp(log_std)[None, None] * noise
    gripper = jax.random.uniform(uniform, raw.shape) < jax.nn.sigmoid(raw)
    return jnp.where(_is_binary(raw, binary), gripper.astype(raw.dtype), arm)


def log_prob(
    raw: Raw,
    log_std: Float[Array, " d"],
    binary: tuple[int, ...],
    chunk: Raw,
    mask: Bool[Array, "b k d"],
) -> Float[Array, " b"]:
    """The logarithm of the density of what was carried out of each chunk."""
    chunk = jnp.where(mask, chunk, 0.0)
    steps = jnp.sum(mask, axis=1, dtype=jnp.float32)  # b d
    scaled = (chunk - raw) * jnp.exp(-log_std)[None, None]
    spread = (steps - 1) * math.log(1 - CORRELATION)  # of the determinant
    spread += jnp.log(1 - CORRELATION + steps * CORRELATION)
    wide = steps * (log_std[None] + 0.5 * math.log(2 * math.pi))
    arm = -0.5 * (_square(scaled, mask) + spread) - wide
    gripper = jnp.sum(jnp.where(mask, chunk * raw - jax.nn.softplus(raw), 0.0), axis=1)
    return jnp.sum(jnp.where(_is_binary(raw, binary)[0], gripper, arm), axis=1)


def divergence(
    raw: Raw,
    other: Raw,
    log_std: Float[Array, " d"],
    binary: tuple[int, ...],
    mask: Bool[Array, "b k d"],
) -> Float[Array, " b"]:
    """Kullback and Leibler's divergence of the policy from another one of the same width, in nats a
    chunk: sum p log(p / q).
    """
    arm = 0.5 * _square((raw - other) * jnp.exp(-log_std)[None, None], mask)
    p = jax.nn.sigmoid(raw)
    each = p * (raw - other) - jax.nn.softplus(raw) + jax.nn.softplus(other)
    gripper = jnp.sum(jnp.where(mask, each, 0.0), axis=1)
    return jnp.sum(jnp.where(_is_binary(raw, binary)[0], gripper, arm), axis=1)


def _square(x: Raw, mask: Bool[Array, "b k d"]) -> Float[Array, "b d"]:
    """x^T C^-1 x over the steps that are there, where C is 1 on the diagonal and CORRELATION
    elsewhere (the formula of Sherman and Morrison).
    """
    x = jnp.where(mask, x, 0.0)
    steps = jnp.sum(mask, axis=1, dtype=jnp.float32)
    part = CORRELATION / (1 - CORRELATION + steps * CORRELATION)
    return (jnp.sum(x**2, axis=1) - part * jnp.sum(x, axis=1) ** 2) / (1 - CORRELATION)


def _is_binary(raw: Raw, binary: tuple[int, ...]) -> Array:
    return jnp.asarray(np.isin(np.arange(raw.shape[-1]), binary))[None, None]
