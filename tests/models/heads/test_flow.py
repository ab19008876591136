"""The flow head: what its loss asks the network to say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vla_jax.models.heads import flow
from vla_jax.models.heads.flow import FlowHead
from vla_jax.models.heads.outputs import HeadConfig

KEY = jax.random.key(0)


def test_the_network_is_to_say_noise_minus_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who says noise - action has no loss, who says the opposite has that of twice the velocity.

    At time s the chunk is x = s * noise + (1 - s) * action, so noise - action = (x - action) / s.
    """
    b, t, k, d = 2, 3, 2, 2
    action = np.linspace(-0.9, 0.9, b * t * k * d, dtype=np.float32).reshape(b, t, k, d)
    config = HeadConfig(chunk=k, action_dim=d, binary=(), hidden=8, attention_heads=2)
    head = nnx.eval_shape(lambda: FlowHead(4, config, nnx.Rngs(0)))  # its network is not run
    monkeypatch.setattr(FlowHead, "_features", lambda self, readouts: jnp.zeros((b, t, 8)))

    def loss(sign: float) -> float:
        monkeypatch.setattr(
            FlowHead, "_velocity", lambda self, _, x, time, valid: sign * (x - action) / time
        )
        return float(
            head.loss(jnp.zeros((b, t, 1, 4)), action, np.ones(action.shape, bool), KEY).sum
        )

    noise, _ = flow.draw(KEY, action.shape)
    assert loss(1.0) == pytest.approx(0, abs=1e-6)
    assert loss(-1.0) == pytest.approx(
        float(((2 * (noise - action)) ** 2).mean(-1).sum()), rel=1e-4
    )
