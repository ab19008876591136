"""What sensors are for: on episodes where one alone tells each number of the action, a policy that
has it errs less than a third as much as one that has not. `pytest -s` prints the table.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.config import LoaderConfig
from data_pipelines.index import open_index
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member
from tests.data_pipelines import sensed
from tests.data_pipelines.loading import encode
from tests.fakes import OPTIMISED, FakeBackbone, initialise
from vla_jax import build, params
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.robot import sensing
from vla_jax.types import Batch

WIDTH, STEPS, BATCH = 32, 500, 64
KEY = jax.random.key(0)


def windows(index, split, sensors) -> Batch:
    """All of a split."""
    member = Member.fit(index, split, 1.0, ("q99",), sensors=sensors)
    count = len(index.splits[split].actions)
    config = LoaderConfig(image_size=(8,), batch_size=count, sensors=sensors, shuffle=False)
    return Loader([member], config, encode).batch(0)


def learnt(index, text: str) -> np.ndarray:
    """The mean held-out error of each number of the action, in network units, of a policy with the
    sensors of `text`.
    """
    sensors = sensing.parse(text)
    encoders = {each.name: partial(build.ENCODERS[each.kind], each) for each in sensors}
    config = VLAConfig(1, 1, 7, ("primary",), history="one_step", sensors=sensors)

    def make(rngs):
        backbone = FakeBackbone(rngs, width=WIDTH, vocab=256)
        head = MLPHead(WIDTH, HeadConfig(1, 7, (6,), hidden=64, mlp=(64,)), rngs)
        return VLA(backbone, head, config, rngs, encoders=encoders)

    graphdef, flat = initialise(make)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))
    train, held_out = windows(index, "train", sensors), windows(index, "val", sensors)

    def loss(flat, batch):
        return params.merge(graphdef, flat).loss(batch, KEY).sums["action"] / BATCH

    def step(carry, rows):
        flat, state = carry
        batch = jax.tree.map(lambda x: jnp.asarray(x)[rows], train)
        update, state = optimizer.update(jax.grad(loss)(flat, batch), state)
        return (optax.apply_updates(flat, update), state), None

    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(train.actions), (STEPS, BATCH))
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, rows)[0][0], compiler_options=OPTIMISED)
    flat = run((flat, optimizer.init(flat)))
    act = jax.jit(lambda flat, obs: params.merge(graphdef, flat).act(obs, KEY))
    return np.abs(np.asarray(act(flat, held_out.obs)) - held_out.actions[:, 0]).mean((0, 1))


@pytest.mark.slow
def test_with_a_sensor_the_error_is_less_than_a_third(tmp_path):
    index = open_index(sensed.write(tmp_path, train=250, val=30), sensed.SENSED)
    having, lacking = learnt(index, sensed.CONFIG), learnt(index, "")
    rows = list(zip(sensed.TOLD, sensed.NAMES, having, lacking, strict=False))
    print("\nheld-out error of the number that the sensor tells, network units")
    for sensor, number, one, other in rows:
        print(f"{sensor:8s} {number:6s} with {one:.3f}  without {other:.3f}  {one / other:.2f}")
    assert all(one < other / 3 for _, _, one, other in rows), rows
