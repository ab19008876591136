"""Adapters: where they go, that they change nothing at first, merging, dropout, and training with
them.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from experiments import pretrain
from experiments.composition.config import load_config
from tests.training import tiny_run
from tests.weights.test_pretrained import to_hf, write_hf
from vla_jax import build, params, sharding
from vla_jax.models import lora
from vla_jax.models.backbones import paligemma
from vla_jax.models.lora import LoRAConfig
from vla_jax.models.stack import Stack, StackConfig
from vla_jax.models.transformer import BlockConfig, Linear
from vla_jax.training import optim, train
from vla_jax.training import state as training_state
from vla_jax.training.checkpoint import Checkpointer, load_adapters, load_params

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


def apply(flat, layers="scan", config=CONFIG):
    """The model's output on X; without adapters for config None."""
    plain = build_of(layers)
    graphdef, _, _ = params.abstract(plain if config is None else lora.attach(plain, config))
    return jax.jit(lambda flat: params.merge(graphdef, flat)(X))(flat)


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
    grads = jax.grad(lambda adapters: (apply({**base, **adapters}) ** 2).sum())(adapters)
    for name, grad in grads.items():
        each = np.abs(grad).reshape(DEPTH if name.startswith("layers/") else 1, -1)
        assert (each.max(1) > 0).all(), name


def test_quantities():
    _, shapes, _ = params.abstract(
        lora.attach(build_of(), CONFIG_OF("layers/*/attn/q/*", "projector/*"))
    )
    found = lora.quantities(shapes)
    assert found.kernels == ["layers/blocks/attn/q/kernel", "projector/kernel"]
    assert found.adapters == DEPTH * 2 * (WIDTH + WIDTH) + 2 * (5 + WIDTH)
    assert found.total - found.adapters == sum(
        leaf.size for leaf in params.abstract(build_of())[1].values()
    )
    assert f"lora: {found.adapters:,} of {found.total:,} parameters" in str(found)


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


# ----------------------------------------------------------------------------------------- training

ADAPTERS = LoRAConfig(
    rank=2, alpha=4.0, dropout=0.0, targets=("backbone/decoder/*", "backbone/vision/*")
)


@functools.cache
def setup_of(shape=(1, 1, 1), noise=0.1, **changes):
    """Made once per kind: compiling takes most of the time of these tests."""
    mesh = sharding.make_mesh(*shape, jax.devices()[: math.prod(shape)])
    config = tiny_run.config(**{"dtype": "bfloat16", "ema": 0.0, "adapter_dropout": 0.3, **changes})
    return tiny_run.Setup(mesh, config, None, noise, adapters=ADAPTERS)


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@functools.cache
def trained():
    """The state before and after 4 steps, on the host, and the losses."""
    setup, found = setup_of(), []
    state = setup.start()
    before = jax.device_get(state)
    for position in range(4):
        state, report = setup.step(state, setup.batch(position))
        found.append(float(report["loss"]))
    return before, jax.device_get(state), found


def test_only_adapters_and_what_is_not_backbone_train():
    before, after, losses = trained()
    base, adapters = lora.split_adapters(setup_of().shapes)
    assert before.frozen.keys() == {name for name in base if name.startswith("backbone/")}
    assert {value.dtype for value in before.frozen.values()} == {jnp.bfloat16.dtype}
    assert before.params.keys() == adapters.keys() | {"head/kernel", "head/bias"}
    assert before.opt_state[1].mu.keys() == before.params.keys()
    assert_equal(after.frozen, before.frozen)
    for name, value in after.params.items():
        assert (value != before.params[name]).any(), name
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_dropout_acts_in_training_is_new_each_step_and_never_in_evaluation():
    setup = setup_of(noise=0.0, adapter_dropout=0.5, dtype="float32")
    placed = setup.start()
    rng = np.random.default_rng(0)
    moved = {
        name: jnp.asarray(
            rng.normal(size=value.shape) if name.endswith("/lora_b") else value, jnp.float32
        )
        for name, value in {**placed.params, **placed.frozen}.items()
    }
    batch = tiny_run.make_batch(0)

    def state(step):
        fresh = setup.start()
        # Copies: the step donates its state.
        now = {
            name: jax.device_put(jnp.copy(moved[name]), value.sharding)
            for name, value in fresh.params.items()
        }
        return fresh._replace(step=jnp.full_like(fresh.step, step), params=now)

    @jax.jit
    def mean(flat):
        model = params.merge(setup.graphdef, flat)
        return (
            model.loss(batch, jax.random.key(0)).sums["action"] / model.mask_counts(batch)["action"]
        )

    plain = float(mean(moved))
    found = [float(setup.step(state(step), setup.batch(0))[1]["loss"]) for step in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    for step, loss in ((0, found[0]), (1, found[2])):
        key = jax.random.fold_in(
            jax.random.fold_in(jax.random.key(setup.config.seed), step), train.DROP
        )
        assert loss == pytest.approx(float(mean(lora.drop(moved, key, 0.5))), rel=1e-5)
        assert abs(loss - plain) > 1e-3
    total, weight = setup.eval_step(state(0), setup.batch(0))["loss/action"]
    assert float(total / weight) == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_mesh_and_accumulation_change_nothing():
    found = []
    for shape, accum in (((1, 1, 1), 1), ((1, 2, 2), 2)):
        setup = setup_of(shape, noise=0.0, adapter_dropout=0.5, dtype="float32", accum=accum)
        state, losses = setup.start(), []
        for position in range(4):
            state, report = setup.step(state, setup.batch(position))
            losses.append(float(report["loss"]))
        found.append(losses)
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_train_2n_equals_n_and_n(tmp_path):
    setup = setup_of()
    whole = setup.fit(tmp_path / "whole", steps=4, save_every=9, eval_every=9)
    setup.fit(tmp_path / "half", steps=2, save_every=9, eval_every=9)
    assert_equal(whole, setup.fit(tmp_path / "half", steps=4, save_every=9, eval_every=9))
    assert_equal(whole, trained()[1])


def test_a_checkpoint_gives_merged_parameters_or_adapters_alone(tmp_path):
    state = trained()[1]
    body = {
        "rank": ADAPTERS.rank,
        "alpha": ADAPTERS.alpha,
        "dropout": 0.0,
        "targets": ADAPTERS.targets,
    }
    for name, meta in (("run", {"config": {"lora": body}}), ("bare", {})):
        keeper = Checkpointer(tmp_path / name, meta, {})
        keeper.save(4, jax.tree.map(jnp.asarray, state))
        keeper.close()
    found = load_params(tmp_path / "run")
    assert found.keys() == params.abstract(tiny_run.Tiny)[1].keys()
    assert all(isinstance(value, np.ndarray) for value in found.values())
    name, flat = "backbone/decoder/layers/up", {**state.params, **state.frozen}
    kernel, a, b = (
        np.asarray(flat[f"{name}/{part}"], np.float32) for part in ("kernel", "lora_a", "lora_b")
    )
    assert np.abs(b).max() > 0
    np.testing.assert_array_equal(
        found[f"{name}/kernel"], (kernel + 2.0 * a @ b).astype(ml_dtypes.bfloat16)
    )
    assert_equal(load_adapters(tmp_path / "run"), lora.split_adapters(flat)[1])
    with pytest.raises(ValueError, match=r"no config\.lora to merge them by"):
        load_params(tmp_path / "bare")


@pytest.mark.parametrize(
    "changes", [{"freeze_backbone": True}, {"train_vision": False}, {"patterns": ("*/decoder/*",)}]
)
def test_freezing_an_adapter_is_refused(changes):
    with pytest.raises(ValueError, match=r"freeze \d+ of the 6 adapter arrays"):
        optim.partition(setup_of().shapes, optim.FreezeConfig(**changes))


def test_decay_touches_adapters_and_the_last_layers_may_train_alone():
    freeze = optim.FreezeConfig(train_text_embedding=False, train_decoder_layers=1)
    optimizer = optim.make_optimizer(optim.OptimConfig(), freeze, setup_of().shapes, 10, 1)
    assert sorted(optimizer.layers) == [
        f"backbone/decoder/layers/{x}/lora_{y}" for x in ("down", "up") for y in "ab"
    ]
    assert optim.decay_mask({"x/lora_a": 0, "x/lora_b": 0, "x/bias": 0}) == {
        "x/lora_a": True,
        "x/lora_b": True,
        "x/bias": False,
    }


# ------------------------------------------------------------------------------------------ configs


def test_the_config_word_turns_adapters_on_beside_a_head():
    for words, head in (("lora", "lstm"), ("tiny,lora", "lstm"), ("gpt,lora", "gpt")):
        config = load_config(f"oxe_paligemma.py:{words}")
        assert build.lora(config) == LoRAConfig(
            16, 16.0, 0.05, ("backbone/*/attn/*", "backbone/*/mlp/*")
        )
        assert config.model.head == head
    assert not load_config("oxe_paligemma.py").lora.rank
    tiny = load_config("oxe_paligemma.py:tiny,lora")
    _, shapes, _ = params.abstract(build.training_model(tiny))
    base, adapters = lora.split_adapters(shapes)
    assert len(adapters) == 2 * 13
    assert base.keys() == params.abstract(build.model(tiny))[1].keys()
    outside = load_config("oxe_paligemma.py:tiny,lora", ["--config.lora.targets=*/attn/*,"])
    with pytest.raises(ValueError, match='patterns that begin with "backbone/"'):
        build.training_model(outside)


@pytest.mark.slow
def test_pretrained_weights_load_around_fresh_adapters(tmp_path):
    rng = np.random.default_rng(0)
    _, sizes, _ = params.abstract(lambda rngs: paligemma.PaliGemma(paligemma.CONFIGS["tiny"], rngs))
    values = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in sizes.items()}
    folder = write_hf(tmp_path / "hf", to_hf(values))
    config = load_config("oxe_paligemma.py:tiny,lora", [f"--config.model.weights={folder}"])
    make = build.training_model(config)
    _, shapes, logical = params.abstract(make)
    shardings = sharding.resolve(shapes, logical, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    settings, freeze = build.optim(config)
    optimizer = optim.make_optimizer(settings, freeze, shapes, 100, 1)
    run = train.TrainConfig(steps=100, batch_size=1, dtype="float32")
    abstract = training_state.abstract_state(
        shapes, shardings, optim.partition(shapes, freeze)[0], optimizer, run
    )
    found = pretrain._parameters(config, make, abstract)
    assert found.keys() == shapes.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[f"backbone/{name}"], value, err_msg=name)
    adapters = lora.split_adapters(found)[1]
    assert len(adapters) == 26
    assert all(value.any() == name.endswith("/lora_a") for name, value in adapters.items())
