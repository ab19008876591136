"""Matrix products of a training step in 8 bits, by qwix (pip install "vla_jax[eight_bits]").

Both operands of a product are rounded to their largest magnitude along the summed axis: each token
and each column of a kernel has a scale. So is the product that gives the activations' gradient;
that of the kernel's, which sums over all tokens, stays in the compute type, as in MaxText's int8.
Master weights and the optimizer know nothing of it.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float

from vla_jax.types import Array

# The types of a product's operands, and of the gradient that comes back.
KINDS = {"int8": ("int8", "int8"), "float8": ("float8_e4m3fn", "float8_e5m2")}
LAST = (((1,), (1,)), ((), ()))  # sums over the last axis of both


def product(x: Float[Array, "f i"], kernel: Float[Array, "i o"], kind: str) -> Float[Array, "f o"]:
    """`x @ kernel` in the inputs' type, computed in 8 bits; "" is `x @ kernel` as it is."""
    return _rounded(x, kernel, kind) if kind else x @ kernel


def check(kind: str) -> None:
    """Raises ValueError for an unknown kind, and for one that nothing here can compute."""
    if kind and kind not in KINDS:
        raise ValueError(f'model.eight_bits: expected "", {" or ".join(KINDS)}, got {kind!r}')
    if kind:
        try:
            import qwix  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"model.eight_bits={kind}: expected qwix, got {error}; pip install"
                ' "vla_jax[eight_bits]"'
            ) from error


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x: Array, kernel: Array, kind: str) -> Array:
    forward, _ = KINDS[kind]
    return _dot(x, kernel.T, (forward, forward))


def _forward(x: Array, kernel: Array, kind: str) -> tuple[Array, tuple[Array, Array]]:
    return _rounded(x, kernel, kind), (x, kernel)


def _backward(kind: str, kept: tuple[Array, Array], out: Array) -> tuple[Array, Array]:
    (x, kernel), (forward, gradient) = kept, KINDS[kind]
    return _dot(out, kernel, (gradient, forward)), x.T @ out


_rounded.defvjp(_forward, _backward)


def _dot(a: Float[Array, "m s"], b: Float[Array, "n s"], types: tuple[str, str]) -> Array:
    """a @ b.T, each row rounded with a scale of its own."""
    import qwix

    rounded = (
        qwix.quantize(each, jnp.dtype(kind), channelwise_axes=(0,))
        for each, kind in zip((a, b), types, strict=True)
    )
    return qwix.dot_general(*rounded, LAST).astype(a.dtype)
