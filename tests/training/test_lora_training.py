"""Adapters in a run: what trains, dropout, checkpoints, configs."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from experiments.composition import beginning, spaces, steps
from experiments.composition.config import load_config
from tests.training import tiny_run
from tests.weights.test_pretrained import to_hf, write_hf
from vla_jax import build, params, sharding
from vla_jax.models import lora
from vla_jax.models.backbones import paligemma
from vla_jax.models.lora import LoRAConfig
from vla_jax.training import optim, train
from vla_jax.training import state as training_state
from vla_jax.training.checkpoint import Checkpointer, load_adapters, load_params

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
    setup, losses = setup_of(), []
    state = setup.start()
    before = jax.device_get(state)
    for position in range(4):
        state, report = setup.step(state, setup.batch(position))
        losses.append(float(report["loss"]))
    return before, jax.device_get(state), losses


@pytest.mark.slow
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
    losses = [float(setup.step(state(step), setup.batch(0))[1]["loss"]) for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
    for step, loss in ((0, losses[0]), (1, losses[2])):
        key = jax.random.fold_in(
            jax.random.fold_in(jax.random.key(setup.config.seed), step), train.DROP
        )
        assert loss == pytest.approx(float(mean(lora.drop(moved, key, 0.5))), rel=1e-5)
        assert abs(loss - plain) > 1e-3
    total, weight = setup.eval_step(state(0), setup.batch(0))["loss/action"]
    assert float(total / weight) == pytest.approx(plain, rel=1e-5)


@pytest.mark.slow
def test_mesh_and_accumulation_change_nothing():
    runs = []
    for shape, accum in (((1, 1, 1), 1), ((1, 2, 2), 2)):
        setup = setup_of(shape, noise=0.0, adapter_dropout=0.5, dtype="float32", accum=accum)
        state, losses = setup.start(), []
        for position in range(4):
            state, report = setup.step(state, setup.batch(position))
            losses.append(float(report["loss"]))
        runs.append(losses)
    np.testing.assert_allclose(*runs, rtol=1e-5)


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
    merged = load_params(tmp_path / "run")
    assert merged.keys() == params.abstract(tiny_run.Tiny)[1].keys()
    assert all(isinstance(value, np.ndarray) for value in merged.values())
    name, flat = "backbone/decoder/layers/up", {**state.params, **state.frozen}
    kernel, a, b = (
        np.asarray(flat[f"{name}/{part}"], np.float32) for part in ("kernel", "lora_a", "lora_b")
    )
    assert np.abs(b).max() > 0
    np.testing.assert_array_equal(
        merged[f"{name}/kernel"], (kernel + 2.0 * a @ b).astype(ml_dtypes.bfloat16)
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
    tiny = spaces.resolve(load_config("oxe_paligemma.py:tiny,lora"))
    _, shapes, _ = params.abstract(build.training_model(tiny))
    base, adapters = lora.split_adapters(shapes)
    assert len(adapters) == 2 * 13
    assert base.keys() == params.abstract(build.model(tiny))[1].keys()
    outside = load_config("oxe_paligemma.py:tiny,lora", ["--config.lora.targets=*/attn/*,"])
    with pytest.raises(ValueError, match='patterns that begin with "backbone/"'):
        build.training_model(spaces.resolve(outside))


@pytest.mark.slow
def test_pretrained_weights_load_around_fresh_adapters(tmp_path):
    rng = np.random.default_rng(0)
    _, sizes, _ = params.abstract(lambda rngs: paligemma.PaliGemma(paligemma.CONFIGS["tiny"], rngs))
    values = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in sizes.items()}
    folder = write_hf(tmp_path / "hf", to_hf(values))
    config = load_config(
        "oxe_paligemma.py:tiny,lora",
        [f"--config.model.weights={folder}", "--config.model.dtype=float32"],
    )
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    plan = steps.plan(spaces.resolve(config), mesh)
    filled = training_state.inference_params(beginning.state(config, plan, None))
    assert filled.keys() == plan.shapes.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(filled[f"backbone/{name}"], value, err_msg=name)
    adapters = lora.split_adapters(filled)[1]
    assert len(adapters) == 26
    assert all(value.any() == name.endswith("/lora_a") for name, value in adapters.items())
