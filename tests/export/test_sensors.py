"""Sensors in an artefact: equal to the JAX policy in torch and in ONNX, refused where they are
wrong, without them as before.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import vla_jax
from experiments import export
from tests.export.test_export import checkpoint
from vla_jax import saved
from vla_jax.actions import ActionSpec
from vla_jax.export import artefact, onnx
from vla_jax.robot import torch_policy

# torch's own, while it exports
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*isinstance\(treespec, LeafSpec\):FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning"),
]

SENSORS = (
    "imu=vector:10x6,front=scan:60:2,cloud=points:24x3,wrist=depth:16,finger=tactile:16,"
    "command=audio:4000x1,torque=vector:3x2"
)


def source(root, **model):
    """A jittered policy with every kind of sensor; one of them, torque, is not in the data."""
    opened = export.source(checkpoint(root, sensors=SENSORS, **model))
    specs = {}
    for name, numbers in (("imu", 6), ("front", 1), ("cloud", 3)):
        zero, one = np.arange(numbers) / 10, np.ones(numbers)
        stats = {"mean": zero, "std": one * 2, "min": -one, "max": one, "q01": -one, "q99": one}
        names = tuple(f"{name}_{i}" for i in range(numbers))
        specs[name] = ActionSpec.fit(names, (), stats, ("gaussian",))
    with_sensors = {name: spec._replace(sensors=specs) for name, spec in opened.specs.items()}
    return dataclasses.replace(opened, specs=with_sensors)


CASES = {
    "one step": {"head": "mlp", "history": "one_step", "window": 1, "proprio": True},
    "interleaved, robovlms": {
        "backbone": "kosmos2", "layout": "robovlms", "history": "interleaved", "window": 2,
    },
    "flamingo, discrete": {
        "backbone": "flamingo", "head": "discrete", "bins": 64, "chunk": 1,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_torch_equals_jax(case, tmp_path):
    proof = artefact.write(source(tmp_path, **CASES[case]), tmp_path / "artefact", "float32")
    for row in proof["float32"]:
        assert row.difference <= 1e-5 * max(1, row.largest), row
    with np.load(tmp_path / "artefact" / "golden.npz") as golden:
        assert np.isnan(golden["sensor/imu"][2]).all()  # and one that is absent among them
        assert np.isnan(golden["sensor/torque"]).all()
        assert 0.5 < np.isfinite(golden["sensor/front"][:2]).mean() < 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("sensors")
    made = source(root, head="mlp", history="one_step", window=1)
    artefact.write(made, root / "artefact", "float32")
    return made, root / "artefact"


@pytest.mark.slow
def test_onnx_equals_jax(exported, tmp_path):
    rows = onnx.write(exported[1], tmp_path / "onnx")
    assert all(row.difference <= 1e-5 * max(1, row.largest) for row in rows)
    io = json.loads((tmp_path / "onnx" / "io.json").read_text())["inputs"]
    assert io["sensor_front"] == {"dtype": "float32", "shape": [1, 60, 1]}
    assert io["sensor_finger"] == {"dtype": "uint8", "shape": [1, 16, 16, 3]}
    assert io["sensor_cloud_mask"] == {"dtype": "bool", "shape": [1, 24]}


@pytest.mark.slow
def test_a_robots_readings(exported):
    """Through both policies alike; every sensor changes what is done, speech goes on, and what is
    wrong is refused and changes nothing.
    """
    made, folder = exported
    rng, image = np.random.default_rng(0), np.full((32, 32, 3), 90, np.uint8)
    given = {
        "imu": rng.normal(size=(10, 6)),
        "front": np.where(rng.random(60) < 0.1, np.inf, rng.uniform(1, 5, 60)),
        "cloud": rng.normal(size=(40, 3)),
        "wrist": rng.uniform(0.3, 2, (48, 64)).astype(np.float32),
        "finger": rng.integers(0, 256, (32, 24, 3), np.uint8),
        "command": (rng.uniform(-1, 1, 3000), 4000),
    }
    ours, theirs = saved.jax_policy(made, "blocks"), vla_jax.load_policy(folder)

    def act(policy, *frames):
        policy.reset("push the red block")
        return np.stack([policy.act({"primary": image}, sensors=each) for each in frames])

    whole = act(theirs, given)
    np.testing.assert_allclose(whole, act(ours, given), atol=1e-4)
    for name in given:
        fewer = {other: raw for other, raw in given.items() if other != name}
        assert np.abs(act(theirs, fewer) - whole)[..., :6].max() > 1e-4, name
    quiet = {name: raw for name, raw in given.items() if name != "command"}
    for policy in (ours, theirs):
        first, second = act(policy, given, quiet)
        np.testing.assert_array_equal(first, second)
        for wrong, message in (
            ({"imu": np.zeros((10, 5))}, r"sensors\['imu'\]"),
            ({"command": (np.zeros(9), 8000)}, "4000 samples a second, got 8000"),
            ({"torque": np.zeros(2)}, "the data of this robot had no such sensor"),
            ({"sonar": np.zeros(2)}, r"got \['sonar'\]"),
        ):
            with pytest.raises(ValueError, match=message):
                policy.act({"primary": image}, sensors={**given, **wrong})
        np.testing.assert_array_equal(policy.act({"primary": image}, sensors=quiet), second)


@pytest.mark.slow
def test_sensors_that_are_not_the_networks_are_refused(exported, tmp_path):
    copy = shutil.copytree(exported[1], tmp_path / "copy")
    body = json.loads((copy / "config.json").read_text())
    body["sensors"][0]["sizes"] = [9, 6]
    (copy / "config.json").write_text(json.dumps(body))
    artefact.sign(copy)
    with pytest.raises(ValueError, match=r"config.json: .*sensors: expected those of the network"):
        torch_policy.load(copy)
