"""Low-rank adapters: a second, small set of arrays beside frozen kernels (LoRA, arXiv 2106.09685).

A kernel [.., in, out] with an adapter acts as `kernel + alpha / rank * lora_a @ lora_b`, lora_a
[.., in, rank] random and lora_b [.., rank, out] zero at the start, so that step 0 is the base model
bit for bit. Leading axes are those of stacked layers. `attach` adds them to a model,
`split_adapters` takes them out of its dict, `merge` turns the dict into that of the model without
adapters: the one way to evaluation, checkpoint readers and export.
"""

import dataclasses
import difflib
import fnmatch
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from vla_jax.models.transformer import Linear
from vla_jax.params import Build, Params, Shapes

ADAPTERS = ("lora_a", "lora_b")

Leaf = TypeVar("Leaf")


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """What is adapted and how.

    Attributes:
        rank: inner size of the adapters; 0 is none.
        alpha: adapters are multiplied by alpha / rank.
        dropout: share of the input features of every adapter that a training step leaves out, see
            `drop`.
        targets: fnmatch patterns on the paths of kernels, e.g. ("backbone/*/attn/*",); `*` crosses
            slashes.
    """

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if (
            self.rank < 0
            or self.alpha <= 0
            or not 0 <= self.dropout < 1
            or (self.rank and not self.targets)
        ):
            raise ValueError(
                "lora: expected rank >= 0 (0 = off), alpha > 0, 0 <= dropout < 1 and at least one"
                f" target, got rank {self.rank}, alpha {self.alpha}, dropout {self.dropout},"
                f" targets {self.targets}"
            )

    @property
    def scale(self) -> float:
        """What the product of the two arrays is multiplied by."""
        return self.alpha / self.rank


class Quantities(NamedTuple):
    """How much is adapted."""

    kernels: list[str]  # names of the parameters with an adapter
    adapters: int  # numbers in the adapters
    total: int  # numbers in all parameters, the adapters included

    def __str__(self) -> str:
        lines = [
            f"lora: {self.adapters:,} of {self.total:,} parameters"
            f" ({100 * self.adapters / self.total:.3f}%) are adapters, of {len(self.kernels)}"
            " kernels:"
        ]
        return "\n  ".join([*lines, *self.kernels])


def attach(build: Build, config: LoRAConfig) -> Build:
    """`build` with an adapter at every transformer.Linear that a target matches; `build` itself
    when rank is 0.

    The base parameters are those of `build`: adapters draw their randomness after it. Calling the
    result raises ValueError when a target matches no Linear.
    """
    if not config.rank:
        return build

    def adapted(rngs: nnx.Rngs) -> nnx.Module:
        module = build(rngs)
        linears = {
            "/".join(str(part) for part in path): part
            for path, part in nnx.iter_modules(module)
            if isinstance(part, Linear)
        }
        wanted = [name for pattern in config.targets for name in _matching(pattern, linears)]
        for name in dict.fromkeys(wanted):
            _adapt(linears[name], config, rngs)
        return module

    return adapted


def split_adapters(params: Mapping[str, Leaf]) -> tuple[dict[str, Leaf], dict[str, Leaf]]:
    """(base, adapters) of the flat parameters (or shapes) of a model; without adapters the second
    is empty.
    """
    base: dict[str, Leaf] = {}
    adapters: dict[str, Leaf] = {}
    for name, value in params.items():
        (adapters if name.rsplit("/", 1)[-1] in ADAPTERS else base)[name] = value
    return base, adapters


def merge(params: Mapping[str, Any], config: LoRAConfig) -> dict[str, Any]:
    """The parameters of the model without adapters, computed in float32 and returned in each
    kernel's dtype.

    `params` are numpy or JAX arrays, of which those without an adapter come back as they are.
    Raises ValueError when an adapter lacks its other half or its kernel, or has another rank than
    `config` says.
    """
    base, adapters = split_adapters(params)
    for where in dict.fromkeys(name.rpartition("/")[0] for name in adapters):
        parts = (f"{where}/kernel", *(f"{where}/{part}" for part in ADAPTERS))
        absent = [name for name in parts if name not in params]
        if absent:
            raise ValueError(
                f"lora: {where}: expected kernel, lora_a and lora_b, not found: {', '.join(absent)}"
            )
        kernel, a, b = (params[name] for name in parts)
        if a.shape[-1] != config.rank:
            raise ValueError(
                f"lora: {parts[1]}: expected rank {config.rank}, got {a.shape[-1]} (shape"
                f" {a.shape}); give the config that the adapters were trained with"
            )
        # Accelerators would multiply float32 in fewer bits.
        with jax.default_matmul_precision("highest"):
            delta = a.astype(jnp.float32) @ b.astype(jnp.float32)
        base[parts[0]] = (kernel.astype(jnp.float32) + config.scale * delta).astype(kernel.dtype)
    return base


def drop(params: Params, key: jax.Array, rate: float) -> Params:
    """Dropout of adapters: a share `rate` of the rows of every lora_a is zero, the others are
    divided by 1 - rate.

    A row of lora_a is an input feature: what it drops is dropped for all tokens of the step, in
    each layer of a stack another. The paper drops features of each token alone; that would need a
    random key inside the modules, which hold none. The expectation is the same, and there is no
    cost per token.
    """
    if not rate:
        return params

    def masked(name: str, a: jax.Array) -> jax.Array:
        # By name, so that an adapter's mask does not depend on which others there are.
        each = jax.random.fold_in(key, zlib.crc32(name.encode()))
        keep = jax.random.bernoulli(each, 1 - rate, (*a.shape[:-1], 1))
        return jnp.where(keep, a / (1 - rate), jnp.zeros_like(a))

    return {
        name: masked(name, value) if name.endswith(f"/{ADAPTERS[0]}") else value
        for name, value in params.items()
    }


def quantities(shapes: Shapes) -> Quantities:
    """What the adapters add to a model with these parameters."""
    _, adapters = split_adapters(shapes)
    kernels = [
        f"{name.rpartition('/')[0]}/kernel" for name in adapters if name.endswith(f"/{ADAPTERS[0]}")
    ]
    return Quantities(
        kernels, *(sum(leaf.size for leaf in each.values()) for each in (adapters, shapes))
    )


def _adapt(linear: Linear, config: LoRAConfig, rngs: nnx.Rngs) -> None:
    *stacked, size, out = linear.kernel[...].shape
    first, last = linear.kernel.get_metadata()["logical"]
    a = jax.random.normal(rngs.params(), (*stacked, size, config.rank)) * size**-0.5
    linear.lora_a = nnx.data(nnx.Param(a, logical=(first, None)))
    linear.lora_b = nnx.data(
        nnx.Param(jnp.zeros((*stacked, config.rank, out)), logical=(None, last))
    )
    linear.lora_scale = config.scale


def _matching(pattern: str, linears: Mapping[str, Linear]) -> list[str]:
    names = [name for name in linears if fnmatch.fnmatchcase(f"{name}/kernel", pattern)]
    if not names:
        kernels = [f"{name}/kernel" for name in linears]
        near = difflib.get_close_matches(pattern, kernels, n=3, cutoff=0.0)
        raise ValueError(
            f"lora.targets: expected {pattern!r} to match the kernel of a linear layer, got none of"
            f" {len(kernels)}; nearest are {', '.join(near)}"
        )
    return names
