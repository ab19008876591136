"""Random numbers for the parameters of tiny policies: a hash of few instructions. jax's own, of
good quality, are most of what initialising one compiles, which takes longer than its training step.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random


def _mixed(x: jax.Array) -> jax.Array:
    """A permutation of 32 bits, each of which depends on all (C. Wellons' lowbias32)."""
    x = x + jnp.uint32(0x9E3779B9)
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _seed(seed: jax.Array) -> jax.Array:
    return _mixed(jnp.asarray(seed).astype(jnp.uint32))[None]


def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    return _mixed(_mixed(key) + jnp.asarray(data).astype(jnp.uint32)[None])


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    numbers = jax.lax.iota(jnp.uint32, int(np.prod(shape)))
    return _mixed(~_mixed(key)[None] + numbers[:, None]).reshape(*shape, 1)


def _bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    numbers = jax.lax.iota(jnp.uint32, int(np.prod(shape)))
    kind = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}[width]
    return _mixed(_mixed(numbers) ^ key).astype(kind).reshape(shape)


HASH = random.define_prng_impl(
    key_shape=(1,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name="hash"
)
