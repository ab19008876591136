"""Real-time chunking in the artefact: torch is led as JAX is."""

import jax
import numpy as np
import pytest

from tests.export.test_export import checkpoint
from vla_jax import load_policy, params
from vla_jax.export import artefact
from vla_jax.robot import torch_policy
from vla_jax.robot.realtime import Underway
from vla_jax.types import Seen

CASES = {
    "flow": {"head": "flow", "window": 2},
    "expert": {
        "head": "expert", "window": 1, "proprio": True, "history": "one_step", "readouts": 2,
        "head_options": "state='expert',time='adaptive',padded=9,inner=48,bound=0.0",
    },
}  # fmt: skip


def frames(count: int) -> list[Seen]:
    """Frames of an episode, and the plan that is underway at all but the first."""
    rng, out = np.random.default_rng(2), []
    for now in range(count):
        image = rng.integers(0, 256, (32, 32, 3), np.uint8)
        plan = rng.uniform(-0.1, 0.1, (3, 7)).astype(np.float32)
        plan[:, 6] = plan[:, 6] > 0
        underway = Underway(plan, 2) if now else None
        state = rng.uniform(-0.1, 0.1, 7).astype(np.float32)
        out.append(Seen({"primary": image}, state, plan[0], None, underway))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_torch_is_led_as_jax_is(case, tmp_path):
    from experiments import export

    where, seen = checkpoint(tmp_path, **CASES[case], chunk=4), frames(3)
    artefact.write(export.source(where), tmp_path / "artefact", "float32")
    ours, theirs = load_policy(where), torch_policy.load(tmp_path / "artefact")
    head = params.merge(ours._graphdef, ours._params).head
    begin = "push the red block to the left"
    ours.reset(begin)
    theirs.reset(begin)
    unled = theirs.new_session()
    unled.reset(begin)
    for now, (images, state, executed, _, underway) in enumerate(seen):
        ours.act(images, state, executed, underway=underway)
        wanted = ours.stages().action
        noise = np.asarray(head.noise(jax.random.fold_in(jax.random.key(0), now)))
        theirs.act(images, state, executed, noise, underway=underway)
        got = theirs.stages["action"].numpy()
        np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
        assert np.abs(wanted).max() > 0.05
        unled.act(images, state, executed, noise)
        assert (np.abs(unled.stages["action"].numpy() - got).max() > 1e-3) == (now > 0)
    together_as_alone(theirs, seen, begin)


def together_as_alone(policy: torch_policy.Policy, seen: list[Seen], begin: str) -> None:
    """One that is led, and one that is not, in one pass: as each on its own."""
    sessions, alone = [policy.new_session() for _ in range(2)], []
    noise = np.random.default_rng(3).normal(size=policy.network.head.noise_shape)
    given = [(seen[1].images, seen[1].proprio, None, noise, None, seen[1].underway)]
    given.append((*given[0][:5], None))
    for each in given:
        policy.reset(begin)
        alone.append(policy.act(*each)["actions"])
    for session in sessions:
        session.reset(begin)
    prepared = [session.prepared(*each) for session, each in zip(sessions, given, strict=True)]
    for out, expected in zip(torch_policy.act_together(sessions, prepared), alone, strict=True):
        np.testing.assert_allclose(out["actions"], expected, atol=1e-5)
    with pytest.raises(ValueError, match="delay: expected 0 to 3 control steps"):
        policy.prepared(*given[0][:5], Underway(np.zeros((4, 7)), 4))
