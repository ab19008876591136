"""Real-time chunking of the heads that flow: a chunk that is led to a plan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fakes import initialise
from tests.models.heads.test_expert import PI05, config_of, example, policy
from tests.models.heads.test_expert import D as EXPERT_D
from tests.models.heads.test_expert import K as EXPERT_K
from tests.models.heads.test_heads import CONFIG, KEY, C, D, K, jitter
from tests.models.heads.test_heads import example as readouts_of
from vla_jax import params
from vla_jax.models.heads import euler
from vla_jax.models.heads.flow import FlowHead
from vla_jax.robot.realtime import soft_mask
from vla_jax.types import Guide, HeadContext, newest


def reference(velocity, noise, target, weight, there):
    """A chunk [k a] by the formulas of arXiv 2506.07339, whose time goes the other way."""
    x = noise * there
    for step in range(10):
        tau = step / 10
        v, jacobian = (np.asarray(y, np.float64) for y in velocity(x, np.float32(1 - tau)))
        v, jacobian = -v, -jacobian.reshape(x.size, x.size)
        clean = x + (1 - tau) * v
        error = ((target - clean) * weight * there).ravel()
        pull = error @ (np.eye(x.size) + (1 - tau) * jacobian)
        r2 = (1 - tau) ** 2 / (tau**2 + (1 - tau) ** 2)
        beta = 5.0 if tau == 0 else min(5.0, (1 - tau) / (tau * r2))
        x = (x + 0.1 * (v + beta * pull.reshape(x.shape))) * there
    return x


def guide_of(k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """A plan of which all but a step are left, two of them before the chunk is there."""
    target = np.random.default_rng(7).uniform(-1, 1, (k, d)).astype(np.float32)
    return target, soft_mask(k - 1, min(2, k - 1), k)[:, None]


@pytest.mark.slow
def test_flow_is_led_as_by_the_formulas_and_by_nothing_not_at_all() -> None:
    graphdef, flat = initialise(lambda rngs: FlowHead(C, CONFIG, rngs))
    flat, readouts = jitter(flat), readouts_of(1)[0][:, :1]
    dims = np.ones((1, D), bool)
    dims[0, 1] = False  # a dim that the robot lacks leads nobody
    arm = list(CONFIG.arm)

    @jax.jit
    def velocity(flat, x, time):
        head = params.merge(graphdef, flat)
        features = head.features(jnp.asarray(readouts))

        def at(x):
            one = jnp.full((1, 1, 1, 1), time)
            return head._velocity(features, x[None, None], one, jnp.ones((1, 1, K), bool))[0, 0]

        return at(x), jax.jacfwd(at)(x)

    @jax.jit
    def act(flat, guide):
        head = params.merge(graphdef, flat)
        context = HeadContext(readouts=readouts, dims=dims, guide=guide)
        return head.act(context, KEY)[0, 0], head.noise(KEY)

    target, weight = guide_of(K, D)
    unled, noise = act(flat, None)
    led, _ = act(flat, Guide(target[None], weight[None]))
    there = dims[:, arm].astype(np.float32)
    field = lambda *at: velocity(flat, *at)  # noqa: E731
    expected = reference(field, np.asarray(noise), target[:, arm], weight, there)
    assert (np.abs(expected) < 1).mean() > 0.6  # limits hide few differences
    np.testing.assert_allclose(led[:, arm], np.clip(expected, -1, 1), atol=1e-5)
    assert np.abs(led - unled)[:, arm].max() > 0.05
    binary = list(CONFIG.binary)
    np.testing.assert_array_equal(led[:, binary], unled[:, binary])
    nowhere, _ = act(flat, Guide(target[None], 0 * weight[None]))
    np.testing.assert_array_equal(nowhere, unled)


@pytest.mark.slow
def test_the_expert_is_led_as_by_the_formulas_binary_dims_too() -> None:
    config = config_of(PI05)
    config.model.action_binary = ("gripper",)
    graphdef, flat = policy(config, True)
    obs = newest(example(b=1).obs)
    target, weight = guide_of(EXPERT_K, EXPERT_D)
    target[:, 6] = target[:, 6] > 0

    def context(model, guide):
        state = model.head_state(obs.proprio, obs.proprio_mask)
        made = model.prefix_context(model.sequence(obs), 1, obs.action_dims, state)
        return made._replace(guide=guide)

    @jax.jit
    def velocity(flat, x, time):
        model = params.merge(graphdef, flat)
        before = model.head._before(context(model, None))

        def at(x):
            one, all_steps = jnp.full((1, 1), time), jnp.ones((1, EXPERT_K), bool)
            return model.head._velocity(before, x[None], one, all_steps)[0]

        return at(x), jax.jacfwd(at)(x)

    @jax.jit
    def act(flat, guide):
        model = params.merge(graphdef, flat)
        return model.head.act(context(model, guide), KEY)[0, 0], model.head.noise(KEY)

    led, noise = act(flat, Guide(target[None], weight[None]))
    unled, _ = act(flat, None)
    behind = ((0, 0), (0, noise.shape[1] - EXPERT_D))
    wide, wide_weight = np.pad(target, behind), np.pad(weight + 0 * target, behind)
    wide[:, 6] = 2 * target[:, 6] - 1
    field = lambda *at: velocity(flat, *at)  # noqa: E731
    x = reference(field, np.asarray(noise), wide, wide_weight, np.ones(1))
    x[:, 6] = np.clip((x[:, 6] + 1) / 2, 0, 1)
    np.testing.assert_allclose(led, x[:, :EXPERT_D], atol=1e-5 * max(1, np.abs(led).max()))
    assert np.abs(led - unled).max() > 0.05
    nowhere, _ = act(flat, Guide(target[None], 0 * weight[None]))
    np.testing.assert_array_equal(nowhere, unled)


def test_a_field_that_knows_its_actions_is_led_to_the_plan_where_it_counts() -> None:
    """Where the velocity is (x - a) / s for any a that is asked, the plan's weight decides alone:
    the Jacobian of its look is 0, and nothing pulls.
    """
    wanted = jnp.asarray([[[[0.5], [-0.25]]]])
    guide = Guide(jnp.ones((1, 2, 1)), jnp.ones((1, 2, 1)))
    there = jnp.ones((1, 1, 1, 1))
    x = euler.integrate(lambda x, at: (x - wanted) / at, 0.3 * wanted, there, guide)
    np.testing.assert_allclose(x, wanted, atol=1e-6)
