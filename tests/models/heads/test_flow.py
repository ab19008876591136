"""What the flow head does on top of the contract of heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.fakes import initialise
from tests.models.heads.test_heads import CONFIG, KEY, C, example, jitter
from vla_jax import params
from vla_jax.models.heads import flow
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.types import HeadContext


@pytest.mark.slow
def test_flow_follows_the_field_it_was_given(monkeypatch):
    """With the velocity noise - a, which is what it is trained to say, ten Euler steps land on a
    exactly.
    """
    config = HeadConfig(2, 3, (1,), hidden=8, mlp=(8,), attention_heads=2)
    graphdef, flat = initialise(lambda rngs: FlowHead(C, config, rngs))
    wanted = np.linspace(-0.9, 0.9, 4, dtype=np.float32).reshape(1, 1, 2, 2)
    # At time s the chunk is s * noise + (1 - s) * a, so noise - a = (x - a) / s.
    monkeypatch.setattr(
        FlowHead, "_velocity", lambda self, features, x, time, valid: (x - wanted) / time
    )
    chunk = jax.jit(
        lambda p: params.merge(graphdef, p).act(HeadContext(jnp.zeros((2, 3, 1, C))), KEY)
    )(flat)
    np.testing.assert_allclose(chunk[..., [0, 2]], np.broadcast_to(wanted, (2, 3, 2, 2)), atol=1e-5)


def test_flow_times_are_those_of_beta():
    noise, time = flow.draw(KEY, (400, 50, 1, 2))
    assert 0.001 <= time.min() < time.max() <= 1
    np.testing.assert_allclose(time.mean(), 1.5 / 2.5, atol=0.005)  # of Beta(1.5, 1)
    np.testing.assert_allclose((time < 0.5).mean(), 0.5**1.5, atol=0.01)
    assert abs(float(noise.mean())) < 0.01
    assert noise.std() == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_flow_acts_otherwise_with_another_key():
    graphdef, flat = initialise(lambda rngs: FlowHead(C, CONFIG, rngs))
    flat, readouts = jitter(flat), example()[0]
    other = jax.jit(lambda p, key: params.merge(graphdef, p).act(HeadContext(readouts), key))
    assert np.abs(other(flat, KEY) - other(flat, jax.random.key(1)))[..., CONFIG.arm].max() > 0.01


def test_flow_of_binary_dims_alone_is_refused():
    with pytest.raises(ValueError, match="expected an arm dim"):
        initialise(lambda rngs: FlowHead(C, HeadConfig(1, 1, (0,)), rngs))


def test_the_network_is_to_say_noise_minus_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says noise - action has no loss, who says the opposite has that of twice the velocity.

    At time s the chunk is x = s * noise + (1 - s) * action, so noise - action = (x - action) / s.
    """
    b, t, k, d = 2, 3, 2, 2
    action = np.linspace(-0.9, 0.9, b * t * k * d, dtype=np.float32).reshape(b, t, k, d)
    config = HeadConfig(chunk=k, action_dim=d, binary=(), hidden=8, attention_heads=2)
    head = nnx.eval_shape(lambda: FlowHead(4, config, nnx.Rngs(0)))  # its network is not run
    monkeypatch.setattr(FlowHead, "features", lambda self, readouts: jnp.zeros((b, t, 8)))

    def loss(sign: float) -> float:
        monkeypatch.setattr(
            FlowHead, "_velocity", lambda self, _, x, time, valid: sign * (x - action) / time
        )
        return float(
            head.loss(
                HeadContext(jnp.zeros((b, t, 1, 4))), action, np.ones(action.shape, bool), KEY
            ).sum
        )

    noise, _ = flow.draw(KEY, action.shape)
    assert loss(1.0) == pytest.approx(0, abs=1e-6)
    assert loss(-1.0) == pytest.approx(
        float(((2 * (noise - action)) ** 2).mean(-1).sum()), rel=1e-4
    )
