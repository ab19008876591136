"""Attention's pieces alone: biases, positions, masks by frames, windows."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fakes import dense_by_hand, random_frame_mask
from vla_jax.models.attention import (
    EVERYWHERE,
    FrameMask,
    alibi,
    attend,
    attend_frames,
    local_mask,
    rope,
    sinusoid,
    take_last_queries,
)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [  # arXiv 2108.12409, section 3, and its code for numbers of heads that are no power of two
        (4, (2**-2, 2**-4, 2**-6, 2**-8)),
        (6, (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)),
    ],
)
def test_alibi_has_the_papers_slopes(heads: int, slopes: tuple[float, ...]) -> None:
    bias = alibi(jnp.asarray([[0, 1, 2, 3], [0, 0, 0, 1]]), heads)
    for head, slope in enumerate(slopes):
        np.testing.assert_allclose(bias[0, head], [-3 * slope, -2 * slope, -slope, 0])
        np.testing.assert_allclose(bias[1, head], [-slope, -slope, -slope, 0])


def test_sinusoid_by_hand() -> None:
    x = np.asarray(sinusoid(jnp.asarray([[0, 7]]), 6))
    np.testing.assert_array_equal(x[0, 0], [0, 0, 0, 1, 1, 1])
    angles = [7.0, 7e-2, 7e-4]  # frequencies 1, 1e-2, 1e-4
    np.testing.assert_allclose(x[0, 1], [*map(math.sin, angles), *map(math.cos, angles)], rtol=1e-5)


def test_rope_depends_on_distances_only_and_turns_pairs_half_a_head_apart() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def score(at_q: int, at_k: int) -> float:
        return float(
            (rope(q, jnp.asarray([[at_q]]), 100.0) * rope(k, jnp.asarray([[at_k]]), 100.0)).sum()
        )

    assert score(3, 1) == pytest.approx(score(13, 11), abs=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    turned = rope(
        jnp.eye(4)[None, :1, None], jnp.asarray([[2]]), 1e4
    )  # the first of four: with the third
    np.testing.assert_allclose(turned[0, 0, 0], [math.cos(2), 0, math.sin(2), 0], atol=1e-6)


def test_attend_shares_keys_among_groups_of_heads_and_a_row_without_keys_is_finite() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, 5, heads, 4)).astype(np.float32) for heads in (4, 2, 2))
    bias = rng.normal(size=(2, 4, 5)).astype(np.float32)
    mask = rng.random((2, 5, 5)) < 0.7
    mask[:, np.arange(5), np.arange(5)] = True
    expected = np.zeros_like(q)
    for i, s, h in np.ndindex(2, 5, 4):
        scores = 3 * np.tanh(k[i, :, h // 2] @ q[i, s, h] / 3) + bias[i, h]
        weights = np.where(mask[i, s], np.exp(scores), 0)
        expected[i, s, h] = weights / weights.sum() @ v[i, :, h // 2]
    out = attend(
        jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(mask), 3.0, jnp.asarray(bias)
    )
    np.testing.assert_allclose(out, expected, atol=1e-6)
    none = attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.zeros((2, 5, 5), bool))
    assert np.isfinite(none).all()


def test_a_frame_mask_by_hand() -> None:
    # Two frames of an image token, a word, a readout; the second sequence's word is padding.
    valid = jnp.asarray([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1]], bool)
    order, shared = (
        jnp.tile(jnp.asarray([[0, 0, 1]]), (2, 2)),
        jnp.tile(jnp.asarray([[True, True, False]]), (2, 2)),
    )
    mask = FrameMask(valid, order, shared, frame=3)
    np.testing.assert_array_equal(mask.dense(0, 3)[0], [[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(
        mask.dense(1, 3), 
        [
            [[1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 1, 1]],
            # padding sees itself, and is not seen
            [[1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 0, 1]],
        ],
    )  # fmt: skip
    np.testing.assert_array_equal(mask.dense(1, 1), mask.dense(1, 3)[:, -1:])


@pytest.mark.parametrize("window", [None, 2, EVERYWHERE])
def test_frame_masks_are_what_they_say(window: int | None) -> None:
    mask = random_frame_mask(np.random.default_rng(1), n=2, frame=5, frames=3)
    expected = dense_by_hand(mask, window)
    if window is not None:
        mask = local_mask(mask, window, 15)
    for number in range(3):
        end = 5 * (number + 1)
        np.testing.assert_array_equal(mask.dense(number, 5), expected[:, end - 5 : end, :end])
        assert not expected[
            :, end - 5 : end, end:
        ].any()  # nothing later is seen, which attend_frames relies on


def test_a_window_limits_a_dense_mask_except_where_tokens_see_each_other() -> None:
    at = np.arange(6)
    mask = (at[:, None] >= at) | ((at[:, None] < 4) & (at < 4))  # a prefix of 4, then causal
    local = np.asarray(local_mask(jnp.asarray(mask)[None], 2, 6))[0]
    near = at[:, None] - at < 2
    np.testing.assert_array_equal(local[:4], mask[:4])
    np.testing.assert_array_equal(local[4:], (mask & near)[4:])
    assert not local[5, 3]


@pytest.mark.parametrize("window", [None, 3])
def test_attention_by_frames_equals_attention_under_the_dense_mask_in_value_and_gradient(
    window: int | None,
) -> None:
    mask = random_frame_mask(np.random.default_rng(2), n=2, frame=4, frames=2)
    dense = jnp.asarray(dense_by_hand(mask, window))
    if window is not None:
        mask = dataclasses.replace(mask, window=jnp.asarray(window))
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 8, 4, 8))
    k, v = (jax.random.normal(key, (2, 8, 2, 8)) for key in keys[1:3])
    bias = alibi(jnp.tile(jnp.arange(8)[None], (2, 1)), 4)
    weights = jax.random.normal(keys[3], q.shape)

    def by_frames(*args: jax.Array) -> jax.Array:
        return attend_frames(*args[:3], mask, 2.0, args[3])

    def whole(*args: jax.Array) -> jax.Array:
        return attend(*args[:3], dense, 2.0, args[3])

    def both_ways(function: Any) -> tuple[jax.Array, ...]:
        def run(*args: jax.Array) -> tuple[jax.Array, ...]:
            out, pullback = jax.vjp(function, *args)
            return out, *pullback(weights)

        return jax.jit(run)(q, k, v, bias)

    values = [both_ways(by_frames), both_ways(whole)]
    for ours, expected in zip(*values, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    # Only the last token of each frame, as the last layer does.
    part = jax.jit(by_frames)(take_last_queries(q, 1, mask), k, v, bias)
    np.testing.assert_allclose(part, values[1][0][:, 3::4], atol=1e-5)


def test_last_takes_tokens_from_the_end_of_the_sequence_or_of_each_frame() -> None:
    x = jnp.arange(12)[None]
    np.testing.assert_array_equal(take_last_queries(x, 2, jnp.ones((1, 12, 12), bool)), [[10, 11]])
    mask = random_frame_mask(np.random.default_rng(0), n=1, frame=4, frames=3)
    np.testing.assert_array_equal(take_last_queries(x, 2, mask), [[2, 3, 6, 7, 10, 11]])
