"""How likely a policy with a continuous head makes a chunk: a normal distribution around each
number, Bernoulli's for each binary one.

The head says where the middle is; how wide it is, is one number a dim, learned and the same in
every state. Steps of a chunk and dims are independent, so that logarithms add up over what was
carried out (`mask`): a chunk is one act.

Axes: b decisions, k chunk step, d action dim.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from vla_jax.types import Array

# What a head says of a chunk, [b k d]: the middle of each number, a logit where it is binary.
Raw = Float[Array, "b k d"]


def draw(raw: Raw, log_std: Float[Array, " d"], binary: tuple[int, ...], key: jax.Array) -> Raw:
    """A chunk; a binary number is 0 or 1."""
    normal, uniform = jax.random.split(key)
    arm = raw + jnp.exp(log_std)[None, None] * jax.random.normal(normal, raw.shape)
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
    wide = log_std[None, None]
    arm = -0.5 * ((chunk - raw) * jnp.exp(-wide)) ** 2 - wide - 0.5 * math.log(2 * math.pi)
    gripper = chunk * raw - jax.nn.softplus(raw)
    each = jnp.where(_is_binary(raw, binary), gripper, arm)
    return jnp.sum(jnp.where(mask, each, 0.0), axis=(1, 2))


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
    arm = 0.5 * ((raw - other) * jnp.exp(-log_std)[None, None]) ** 2
    p = jax.nn.sigmoid(raw)
    gripper = p * (raw - other) - jax.nn.softplus(raw) + jax.nn.softplus(other)
    each = jnp.where(_is_binary(raw, binary), gripper, arm)
    return jnp.sum(jnp.where(mask, each, 0.0), axis=(1, 2))


def _is_binary(raw: Raw, binary: tuple[int, ...]) -> Array:
    return jnp.asarray(np.isin(np.arange(raw.shape[-1]), binary))[None, None]
