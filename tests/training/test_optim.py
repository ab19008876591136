"""Schedules, decay mask, freezing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vla_jax.training import optim
from vla_jax.training.optim import FreezeConfig, OptimConfig

SIZES = {
    "backbone/vision/patch/kernel": (2, 3),
    "backbone/embed/embedding": (5, 3),
    "backbone/decoder/layers/mlp/kernel": (4, 3, 2),
    "backbone/decoder/layers/norm/scale": (4, 3),
    "backbone/decoder/norm/scale": (3,),
    "head/w_ih": (3, 3),
    "head/bias": (3,),
    "readout_embedding": (1, 3),
}
SHAPES = {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in SIZES.items()}


def half_cosine(i, lr, warm, total, low):
    if i < warm:
        return lr * i / warm
    return lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (i - warm) / (total - warm))))


@pytest.mark.parametrize(("name", "low"), [("cosine", 0.0), ("half_cosine", 0.1)])
def test_cosine_schedules_follow_the_formula(name, low):
    config = OptimConfig(lr=2.0, schedule=name, min_lr_scale=low, warmup_steps=3, warmup_epochs=0.5)
    schedule = optim.make_schedule(config, 20, 4)  # 3 + 0.5 x 4 = 5 steps of warm-up
    for i in range(21):
        assert float(schedule(i)) == pytest.approx(half_cosine(i, 2.0, 5, 20, low), abs=1e-6)
    assert float(schedule(99)) == pytest.approx(2.0 * low, abs=1e-6)


def test_constant_schedule_warms_up_then_stays():
    schedule = optim.make_schedule(OptimConfig(lr=1.0, warmup_steps=2), 10, 1)
    assert [float(schedule(i)) for i in (0, 1, 2, 9)] == [0.0, 0.5, 1.0, 1.0]
    assert float(optim.make_schedule(OptimConfig(lr=1.0), 10, 1)(0)) == 1.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (OptimConfig(schedule="cosin"), "expected one of constant"),
        (OptimConfig(schedule="cosine", min_lr_scale=0.1), "has no effect"),
        (OptimConfig(warmup_epochs=2.0), "shorter than the 10 steps"),
    ],
)
def test_bad_schedules_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        optim.make_schedule(config, 10, 5)


def test_decay_by_name_and_not_by_rank():
    decayed = {name for name, on in optim.decay_mask(SHAPES).items() if on}
    assert decayed == {
        "backbone/vision/patch/kernel",
        "backbone/embed/embedding",
        "backbone/decoder/layers/mlp/kernel",
        "head/w_ih",
    }
    optimizer = optim.make_optimizer(
        OptimConfig(lr=0.1, weight_decay=0.5), FreezeConfig(), SHAPES, 10, 1
    )
    params = {name: np.ones(size, np.float32) for name, size in SIZES.items()}
    zeros = jax.tree.map(np.zeros_like, params)
    # As one program: one operation of one shape at a time takes seconds to compile.
    updates = jax.jit(
        lambda params: optimizer.transform.update(zeros, optimizer.transform.init(params), params)[
            0
        ]
    )(params)
    moved = {name for name, value in updates.items() if np.any(value)}
    assert moved == decayed


def test_clip_bounds_what_adam_sees():
    config = OptimConfig(lr=1.0, b1=0.0, b2=0.0, eps=1.0, clip=0.5)
    optimizer = optim.make_optimizer(config, FreezeConfig(), SHAPES, 10, 1)
    params = {"head/w_ih": jnp.zeros((2,))}
    updates, _ = optimizer.transform.update(
        {"head/w_ih": jnp.array([3.0, 4.0])}, optimizer.transform.init(params), params
    )
    np.testing.assert_allclose(
        updates["head/w_ih"], [0.3 / 1.3, 0.4 / 1.4], rtol=1e-6
    )  # g / (|g| + eps)


def test_named_parameters_step_further():
    config = OptimConfig(b1=0.0, b2=0.0, eps=1.0, faster=(("head/*", 50.0),))
    optimizer = optim.make_optimizer(config, FreezeConfig(), SHAPES, 10, 1)
    params = {"head/w_ih": jnp.zeros(2), "backbone/embed/embedding": jnp.zeros(2)}
    grads = {name: jnp.array([1.0, -3.0]) for name in params}
    updates, _ = optimizer.transform.update(grads, optimizer.transform.init(params), params)
    plain = np.array([0.5, -0.75])  # g / (|g| + eps)
    np.testing.assert_allclose(updates["backbone/embed/embedding"], plain, rtol=1e-6)
    np.testing.assert_allclose(updates["head/w_ih"], 50 * plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("freeze", "frozen"),
    [
        (FreezeConfig(), set()),
        (
            FreezeConfig(freeze_backbone=True),
            {name for name in SIZES if name.startswith("backbone/")},
        ),
        (FreezeConfig(train_vision=False), {"backbone/vision/patch/kernel"}),
        (FreezeConfig(train_text_embedding=False), {"backbone/embed/embedding"}),
        (FreezeConfig(train_decoder_layers=0), {name for name in SIZES if "/layers/" in name}),
        (FreezeConfig(train_decoder_layers=2), set()),
        (FreezeConfig(patterns=("*/bias", "head/w_*")), {"head/bias", "head/w_ih"}),
    ],
)
def test_partition(freeze, frozen):
    trainable, rest = optim.partition(SHAPES, freeze)
    assert set(rest) == frozen
    assert set(trainable) == set(SIZES) - frozen


def test_last_layers_only():
    masks = optim.make_optimizer(
        OptimConfig(), FreezeConfig(train_decoder_layers=1), SHAPES, 10, 1
    ).layers
    assert set(masks) == {name for name in SIZES if "/layers/" in name}
    ones = {name: jnp.ones(size) for name, size in SIZES.items()}
    masked = optim.mask_layers(ones, masks)
    for name, value in masked.items():
        np.testing.assert_array_equal(
            value, ones[name] if name not in masks else ones[name].at[:-1].set(0.0)
        )


def test_bad_freezes_are_refused():
    with pytest.raises(
        ValueError, match="'head/w_hi' to match a parameter, got none; nearest are head/w_ih"
    ):
        optim.partition(SHAPES, FreezeConfig(patterns=("head/w_hi",)))
    with pytest.raises(ValueError, match="leave no parameter"):
        optim.partition(SHAPES, FreezeConfig(patterns=("*",)))
    with pytest.raises(ValueError, match="at most 4"):
        optim.make_optimizer(OptimConfig(), FreezeConfig(train_decoder_layers=5), SHAPES, 10, 1)
    with pytest.raises(ValueError, match=r"backbone/vision/\*"):
        optim.partition({"head/bias": SHAPES["head/bias"]}, FreezeConfig(train_vision=False))


def test_first_moment_in_bfloat16():
    """Kept in half the bytes, it moves as the float32 one does but for its last bits; the second
    moment stays float32.
    """
    shapes = {"head/w_ih": SHAPES["head/w_ih"]}
    steps = {}
    for dtype in optim.MU_DTYPES:
        made = optim.make_optimizer(OptimConfig(mu_dtype=dtype), FreezeConfig(), shapes, 9, 1)
        params = {"head/w_ih": jnp.zeros((3, 3))}
        state = made.transform.init(params)
        for i in range(4):
            grads = {"head/w_ih": jnp.sin(jnp.arange(9.0).reshape(3, 3) + i)}
            steps[dtype], state = made.transform.update(grads, state, params)
        adam = state[1]
        assert adam.mu["head/w_ih"].dtype == dtype
        assert adam.nu["head/w_ih"].dtype == jnp.float32
    exact, rounded = (steps[dtype]["head/w_ih"] for dtype in optim.MU_DTYPES)
    assert 0 < float(jnp.abs(exact - rounded).max()) < 2**-7 * float(jnp.abs(exact).max())


def test_another_type_of_the_first_moment_is_refused():
    with pytest.raises(ValueError, match="expected one of float32, bfloat16, got 'int8'"):
        OptimConfig(mu_dtype="int8")
