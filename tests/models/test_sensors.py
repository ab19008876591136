"""Sensors as tokens: the contract of every encoder, and what of them reaches a readout."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.configs import oxe_paligemma
from tests.fakes import FakeBackbone, initialise, make_batch
from vla_jax import build, params
from vla_jax.models.heads.lstm import LSTMHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.sensors.tokens import SensorTokens
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.robot import sensing
from vla_jax.training.augment import drop_sensors
from vla_jax.types import SensorReading, newest

# One of every kind. A new kind has a line here.
EACH = {
    "vector": "imu=vector:10x6",
    "scan": "front=scan:21:2",
    "points": "cloud=points:9x3",
    "depth": "wrist=depth:8",
    "tactile": "finger=tactile:8",
    "audio": "command=audio:4000x1",
}
WIDTH, KEY = 16, jax.random.key(0)


def reading(sensor, lead=(2, 3), seed=0):
    """Random, with a third of the samples missing, and of the first row all."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(*lead, *sensor.shape)).astype(np.float32)
    if sensor.dtype is np.uint8:
        values = rng.integers(0, 256, values.shape, np.uint8)
    mask = rng.random(values.shape[:-1]) < (1 if sensor.dtype is np.uint8 else 0.7)
    mask[0] = False
    return SensorReading(np.where(mask[..., None], values, 0).astype(sensor.dtype), mask)


def tokens_of(kind):
    (sensor,) = sensing.parse(EACH[kind])
    make = partial(build.ENCODERS[kind], sensor)
    graphdef, flat = initialise(lambda rngs: SensorTokens(WIDTH, sensor.tokens, make, rngs))
    return sensor, flat, jax.jit(lambda flat, x: params.merge(graphdef, flat)(x))


def test_every_kind_has_an_encoder():
    assert set(EACH) == set(build.ENCODERS) == set(sensing.KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EACH)
def test_the_contract_of_an_encoder(kind):
    """n tokens of the width; readings tell frames apart; what is masked changes nothing; a frame
    without a sample has the absent tokens; every parameter learns.
    """
    sensor, flat, run = tokens_of(kind)
    given = reading(sensor)
    made = np.asarray(run(flat, given))
    assert made.shape == (6, sensor.tokens, WIDTH)
    assert np.isfinite(made).all()
    np.testing.assert_array_equal(made[:3], np.broadcast_to(flat["absent"], made[:3].shape))
    assert np.abs(np.diff(made[3:], axis=0)).max(axis=(1, 2)).min() > 1e-3
    if sensor.dtype is not np.uint8:
        fewer = given._replace(mask=given.mask.copy())
        fewer.mask[1, :, 0] = False
        values = np.where(fewer.mask[..., None], fewer.values, 0)
        assert np.abs(run(flat, fewer._replace(values=values)) - made)[3:].max() > 1e-4
    grads = jax.jit(
        jax.grad(lambda flat: jnp.sum(run(flat, given) * np.arange(WIDTH)[None, None]))
    )(flat)
    grads = jax.device_get(grads)
    assert all(np.isfinite(grad).all() for grad in grads.values())
    still = {name for name, grad in grads.items() if not np.any(grad)}
    assert not {name for name in still if not name.endswith("attn/k/bias")}  # softmax ignores it


def test_points_have_no_order():
    sensor, flat, run = tokens_of("points")
    given = reading(sensor)
    order = np.random.default_rng(1).permutation(9)
    other = SensorReading(given.values[:, :, order], given.mask[:, :, order])
    np.testing.assert_allclose(run(flat, other), run(flat, given), atol=1e-6)
    far = np.where(given.mask[..., None], given.values, 9).astype(np.float32)
    np.testing.assert_array_equal(run(flat, given._replace(values=far)), run(flat, given))


def test_as_many_tokens_as_squares():
    for text in ("wrist=depth:8:3", "wrist=depth:9:4"):
        (sensor,) = sensing.parse(text)
        with pytest.raises(ValueError, match=r"model.sensors: wrist: expected as many tokens"):
            build.ENCODERS["depth"](sensor, WIDTH, nnx.Rngs(0))


@cache
def policy(**changes):
    """(graphdef, params, batch) of a policy with two sensors."""
    sensors = sensing.parse("imu=vector:4x2,front=scan:9:2")
    config = VLAConfig(3, 2, 7, ("primary", "wrist"), readouts=2, sensors=sensors, **changes)
    encoders = {each.name: partial(build.ENCODERS[each.kind], each) for each in sensors}
    cross = changes.get("layout") == "robovlms"

    def make(rngs):
        backbone = FakeBackbone(rngs, cross=cross)
        head = LSTMHead(WIDTH, HeadConfig(2, 7, (6,), tokens=2, hidden=8, mlp=(8,)), rngs)
        return VLA(backbone, head, config, rngs, encoders=encoders)

    graphdef, flat = initialise(make)
    flat["readout_embedding"] = jax.random.normal(KEY, flat["readout_embedding"].shape)
    batch = make_batch(t=3)
    given = {each.name: reading(each, seed=i) for i, each in enumerate(sensors)}
    obs = batch.obs._replace(sensors=given, step_mask=np.ones((2, 3), bool))
    return graphdef, flat, batch._replace(obs=obs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"history": "interleaved"},
        {"layout": "robovlms"},  # with a backbone that cross-attends
        {"layout": "robovlms_pre", "history": "interleaved"},
    ],
)
def test_a_reading_reaches_the_readouts_of_its_frame(changes):
    """And with history "interleaved" of later ones; not of earlier ones."""
    graphdef, flat, batch = policy(**changes)
    run = jax.jit(lambda flat, obs: params.merge(graphdef, flat).readouts(obs))
    before = np.asarray(run(flat, batch.obs))
    for name, given in batch.obs.sensors.items():
        values = given.values.copy()
        values[1, 1] += given.mask[1, 1][..., None]
        others = {**batch.obs.sensors, name: given._replace(values=values)}
        change = np.abs(run(flat, batch.obs._replace(sensors=others)) - before).max(axis=(2, 3))
        assert not change[0].any()
        assert change[1, 0] == 0
        assert change[1, 1] > 1e-4
        assert (change[1, 2] > 1e-5) == (changes.get("history") == "interleaved")


def test_the_loss_and_a_lacking_sensor():
    graphdef, flat, batch = policy()
    loss = jax.jit(lambda flat, batch: params.merge(graphdef, flat).loss(batch, KEY))
    assert np.isfinite(loss(flat, batch).sums["action"])
    assert newest(batch.obs).sensors["front"].values.shape == (2, 1, 9, 1)
    lacking = batch._replace(obs=batch.obs._replace(sensors={}))
    with pytest.raises(ValueError, match=r"Observation\.sensors: expected imu .* got none"):
        jax.eval_shape(loss, flat, lacking)


def test_without_sensors_nothing_is_there():
    """Neither arrays of a batch, nor parameters, nor tokens."""
    assert len(jax.tree.leaves(make_batch().obs)) == 8
    config = oxe_paligemma.get_config("tiny")
    config.model.action_names, config.model.action_binary = ("x", "gripper"), ("gripper",)
    bare = params.abstract(build.model(config))[1]
    config.model.sensors = ",".join(EACH.values())
    more = params.abstract(build.model(config))[1]
    assert {name for name in more if not name.startswith("sensor_")} == set(bare)
    assert len({name.split("/")[0] for name in more.keys() - bare.keys()}) == len(EACH)


def test_sensors_are_dropped_whole_and_each_for_itself():
    given = SensorReading(np.ones((200, 2, 10, 6), np.float32), np.ones((200, 2, 10), bool))
    out = drop_sensors({"a": given, "b": given}, KEY, 0.25)
    left = np.stack([np.asarray(out[name].mask).reshape(200, -1) for name in "ab"])
    assert (left.all(2) == left.any(2)).all()
    assert np.abs(left[..., 0].mean(1) - 0.75).max() < 0.1
    assert (left[0, :, 0] != left[1, :, 0]).any()
