"""Adapters: where they go, that they change nothing at first, merging, dropout, and training with
them.
"""

import functools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from vla_jax import params, sharding
from vla_jax.models import lora
from vla_jax.models.lora import LoRAConfig
from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import BlockConfig, Linear

DEPTH, WIDTH = 2, 8
BLOCK = BlockConfig(
    width=WIDTH,
    mlp=12,
    heads=2,
    kv_heads=1,
    head_dim=4,
    norm="rms1",
    eps=1e-6,
    gated=True,
    bias=True,
    q_scale=0.5,
)
CONFIG = LoRAConfig(
    rank=2, alpha=6.0, dropout=0.0, targets=("layers/*/attn/*", "layers/*/mlp/*", "projector/*")
)


class Model(nnx.Module):
    """A stack of layers and a linear layer of its own."""

    def __init__(self, layers, rngs):
        self.projector = Linear((5, WIDTH), ("vision", "embed"), bias=True, rngs=rngs)
        self.layers = Stack(BLOCK, DEPTH, StackConfig(layers=layers), rngs)

    def __call__(self, x):
        n, s, _ = x.shape
        return self.layers(
            self.projector(x), jnp.ones((n, s, s), bool), jnp.zeros((n, s), jnp.int32)
        )


def build_of(layers="scan"):
    return lambda rngs: Model(layers, rngs)


X = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)


def made():
    """Parameters with adapters as at step 0: lora_b is zero. From numpy, which compiles nothing."""
    rng = np.random.default_rng(2)
    shapes = params.abstract(lora.attach(build_of(), CONFIG))[1]
    flat = {
        name: 0.4 * rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()
    }
    return {
        name: np.zeros_like(value) if name.endswith("lora_b") else value
        for name, value in flat.items()
    }


KERNELS = ("projector/kernel", "layers/blocks/attn/q/kernel", "layers/blocks/mlp/down/kernel")


def fresh(build, names):
    """Those of the initial parameters."""
    whole = sharding.replicated(sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    return params.initialise(build, 0, dict.fromkeys(names, whole))


@functools.cache
def program(layers, config):
    """Compiled once for all parameters."""
    plain = build_of(layers)
    graphdef, _, _ = params.abstract(plain if config is None else lora.attach(plain, config))
    return jax.jit(lambda flat: params.merge(graphdef, flat)(X))


def apply(flat, layers="scan", config=CONFIG):
    """The model's output on X; without adapters for config None."""
    return program(layers, config)(flat)


def jittered(flat):
    rng = np.random.default_rng(1)
    return {
        k: np.asarray(v) + 0.1 * rng.normal(size=v.shape).astype(np.float32)
        for k, v in flat.items()
    }


# ------------------------------------------------------------------------------------ attach, merge


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_step_0_is_the_base_model_and_merged_equals_unmerged(layers):
    plain, _ = lora.split_adapters(made())
    np.testing.assert_array_equal(apply(made(), layers), apply(plain, layers, None))
    moved = jittered(made())
    after = apply(moved, layers)
    merged = lora.merge(moved, CONFIG)
    assert merged.keys() == plain.keys()
    np.testing.assert_allclose(apply(merged, layers, None), after, rtol=1e-5, atol=1e-5)
    assert (
        np.abs(apply(lora.split_adapters(moved)[0], layers, None) - after).max() > 0.1
    )  # the adapters do something


def test_initial_values():
    adapted = lora.attach(build_of(), CONFIG)
    base, adapters = lora.split_adapters(params.abstract(adapted)[1])
    assert len(adapters) == 2 * (7 + 1)
    assert base.keys() == params.abstract(build_of())[1].keys()
    flat, plain = fresh(adapted, [*adapters, *KERNELS]), fresh(build_of(), KERNELS)
    for name in KERNELS:  # the base keeps its random numbers
        np.testing.assert_array_equal(flat[name], plain[name])
    q, down = "layers/blocks/attn/q", "layers/blocks/mlp/down"
    assert {name: flat[f"{name}/lora_a"].shape for name in (q, down, "projector")} == {
        q: (DEPTH, WIDTH, 2),
        down: (DEPTH, 12, 2),
        "projector": (5, 2),
    }
    assert flat[f"{down}/lora_b"].shape == (DEPTH, 2, WIDTH)
    assert not any(value.any() for name, value in flat.items() if name.endswith("lora_b"))
    each = [np.asarray(value) for name, value in flat.items() if name.endswith("lora_a")]
    unit = np.concatenate([(a * a.shape[-2] ** 0.5).ravel() for a in each])
    assert unit.std() == pytest.approx(1, rel=0.15)  # the fan-in of one layer, not of the stack
    assert (flat[f"{q}/lora_a"][0] != flat[f"{q}/lora_a"][1]).all()


def CONFIG_OF(*targets, rank=2):
    return LoRAConfig(rank=rank, alpha=6.0, dropout=0.0, targets=targets)


def test_the_scale_is_alpha_over_rank():
    a, b = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.ones((2, 4), np.float32)
    flat = {
        "x/kernel": np.ones((3, 4), np.float32),
        "x/lora_a": a,
        "x/lora_b": b,
        "x/bias": np.ones(4),
    }
    merged = lora.merge(flat, CONFIG_OF("x"))
    np.testing.assert_array_equal(merged["x/kernel"], 1 + 3.0 * a @ b)
    assert merged["x/bias"] is flat["x/bias"]
    halves = {**flat, "x/kernel": flat["x/kernel"].astype(ml_dtypes.bfloat16)}
    rounded = lora.merge(halves, CONFIG_OF("x"))["x/kernel"]
    np.testing.assert_array_equal(rounded, (1 + 3.0 * a @ b).astype(ml_dtypes.bfloat16))
    assert lora.merge({"x/kernel": a}, CONFIG_OF("x")) == {"x/kernel": a}


def test_what_cannot_be_merged_is_refused():
    flat = {"x/kernel": np.ones((3, 4)), "x/lora_a": np.ones((3, 2)), "x/lora_b": np.ones((2, 4))}
    with pytest.raises(ValueError, match=r"x/lora_a: expected rank 4, got 2"):
        lora.merge(flat, CONFIG_OF("x", rank=4))
    for lost in flat:
        rest = {name: value for name, value in flat.items() if name != lost}
        if lost != "x/kernel":
            with pytest.raises(ValueError, match=f"not found: {lost}"):
                lora.merge(rest, CONFIG_OF("x"))


@pytest.mark.parametrize(
    "pattern", ["layers/*/attention/*", "layers/blocks/attn/q/bias", "layers/blocks/norm_attn/*"]
)
def test_a_target_that_matches_no_kernel_is_named_with_what_is_near(pattern):
    with pytest.raises(ValueError, match=re.escape(repr(pattern))) as caught:
        params.abstract(lora.attach(build_of(), CONFIG_OF("projector/*", pattern)))
    assert "nearest are layers/blocks/" in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"rank": -1}, {"alpha": 0.0}, {"dropout": 1.0}, {"dropout": -0.1}, {"targets": ()}]
)
def test_bad_numbers_are_refused(changes):
    with pytest.raises(ValueError, match="expected rank >= 0"):
        LoRAConfig(**{"rank": 1, "alpha": 1.0, "dropout": 0.0, "targets": ("a",), **changes})


def test_rank_0_is_off():
    plain = build_of()
    assert lora.attach(plain, LoRAConfig(rank=0, alpha=1.0, dropout=0.0, targets=())) is plain


def test_gradient_reaches_both_halves_in_every_layer():
    base, adapters = lora.split_adapters(
        {name: jnp.asarray(value) for name, value in jittered(made()).items()}
    )
    grads = jax.jit(jax.grad(lambda adapters: (apply({**base, **adapters}) ** 2).sum()))(adapters)
    grads = jax.device_get(grads)
    for name, grad in grads.items():
        each = np.abs(grad).reshape(DEPTH if name.startswith("layers/") else 1, -1)
        assert (each.max(1) > 0).all(), name


def test_quantities():
    _, shapes, _ = params.abstract(
        lora.attach(build_of(), CONFIG_OF("layers/*/attn/q/*", "projector/*"))
    )
    quantities = lora.quantities(shapes)
    assert quantities.kernels == ["layers/blocks/attn/q/kernel", "projector/kernel"]
    assert quantities.adapters == DEPTH * 2 * (WIDTH + WIDTH) + 2 * (5 + WIDTH)
    assert quantities.total - quantities.adapters == sum(
        leaf.size for leaf in params.abstract(build_of())[1].values()
    )
    assert f"lora: {quantities.adapters:,} of {quantities.total:,} parameters" in str(quantities)


def test_adapters_are_sharded_like_their_kernels():
    _, shapes, logical = params.abstract(lora.attach(build_of(), CONFIG))
    resolved = sharding.resolve(shapes, logical, sharding.make_mesh(2, 2, 2))
    name = "layers/blocks/mlp/down"  # mlp -> tensor, embed -> fsdp
    assert tuple(resolved[f"{name}/kernel"].spec) == (None, "tensor", "fsdp")
    assert tuple(resolved[f"{name}/lora_a"].spec) == (None, "tensor")
    assert tuple(resolved[f"{name}/lora_b"].spec) == (None, None, "fsdp")


# ------------------------------------------------------------------------------------------ dropout


def test_dropout_leaves_out_rows_of_a_and_keeps_the_mean():
    flat = {
        "x/kernel": jnp.ones((50, 3)),
        "x/lora_a": jnp.ones((4, 50, 3)),
        "x/lora_b": jnp.ones((4, 3, 3)),
    }
    flat["y/lora_a"] = flat["x/lora_a"]
    dropped = [lora.drop(flat, jax.random.key(i), 0.25) for i in (0, 0, 1)]
    for name in ("x/kernel", "x/lora_b"):
        assert dropped[0][name] is flat[name]
    a = np.asarray(dropped[0]["x/lora_a"])
    assert set(np.unique(a)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (a == a[..., :1]).all()  # whole rows
    assert (a[0] != a[1]).any()  # another mask per layer
    assert (a != np.asarray(dropped[0]["y/lora_a"])).any()  # and per adapter
    assert np.mean(
        [lora.drop(flat, jax.random.key(i), 0.25)["x/lora_a"].mean() for i in range(20)]
    ) == pytest.approx(1, abs=0.03)
    np.testing.assert_array_equal(a, dropped[1]["x/lora_a"])
    assert (a != np.asarray(dropped[2]["x/lora_a"])).any()
    assert lora.drop(flat, jax.random.key(0), 0.0) is flat
