"""The policy in JAX and the plan that is underway while it thinks."""

import dataclasses

import numpy as np
import pytest

from tests.test_policy import IO, SPEC, D, K, build, episode
from vla_jax.actions import ActionSpec
from vla_jax.models.vla import VLAConfig
from vla_jax.policy import JaxPolicy
from vla_jax.robot.realtime import Underway, soft_mask
from vla_jax.robot.relative import Relative
from vla_jax.types import Seen

PLAN = Underway(np.array([[0.5, -0.5, 1.0]]), 1)


def test_the_plan_is_in_network_units_and_relative_to_the_newest_state() -> None:
    """Of a robot whose x is told as a position, among a policy's dims."""
    spec = dataclasses.replace(SPEC, relative=(Relative("number", (0,), (0,)),))
    state = ActionSpec(("a", "gripper"))
    io = dataclasses.replace(
        IO, action_spec=spec, state_spec=state, action_names=("gripper", "more", "y", "x")
    )
    config = VLAConfig(1, K, 4, ("primary",), "prefix", "head", 1)
    guide = io.guide(config, True, PLAN, np.array([0.2, 1.0]))
    assert guide is not None
    np.testing.assert_allclose(guide.actions[0], [[1, 0, -0.5, 0.3], [0, 0, 0, 0]], atol=1e-6)
    np.testing.assert_array_equal(guide.weight[0, :, 0], soft_mask(1, 1, K))
    assert io.guide(config, True, None, None) is None
    with pytest.raises(ValueError, match="expected a policy that flows"):
        io.guide(config, False, PLAN, None)
    with pytest.raises(ValueError, match="delay: expected 0 to 1 control steps"):
        io.guide(config, True, Underway(np.zeros((2, D)), K), None)


@pytest.mark.slow
def test_who_is_led_and_who_is_not_act_together_as_alone() -> None:
    graphdef, flat = build("head", "prefix", "flow")
    policy, (images, _) = JaxPolicy(graphdef, flat, IO), episode()
    frame = {name: frames[0] for name, frames in images.items()}
    alone = []
    for underway in (PLAN, None, Underway(np.zeros((0, D)), 1)):
        policy.reset("ab")
        alone.append(policy.act(frame, underway=underway))
    assert np.abs(alone[0] - alone[1])[0, :2].max() > 0.05
    np.testing.assert_array_equal(alone[2], alone[1])
    sessions = policy.sessions(2)
    for session in sessions:
        session.reset("ab")
    shown = [Seen(frame, underway=underway) for underway in (PLAN, None)]
    for acted, expected in zip(policy.act_together(sessions, shown), alone, strict=False):
        np.testing.assert_allclose(acted, expected, atol=1e-5)


def test_a_head_that_does_not_flow_is_refused_by_name() -> None:
    policy = JaxPolicy(*build("head", "prefix", "lstm"), IO)
    policy.reset("ab")
    frame = {name: frames[0] for name, frames in episode()[0].items()}
    with pytest.raises(ValueError, match=r"expected a policy that flows \(the heads flow and"):
        policy.act(frame, underway=PLAN)
