"""Sensors of a dataset: read from RLDS and LeRobot files, normalised, masked, refused by name."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import data_pipelines
from data_pipelines import convert, reading, stats
from data_pipelines.builders import rlds_files
from data_pipelines.config import LoaderConfig
from data_pipelines.files import formats, tfrecord
from data_pipelines.index import open_index
from data_pipelines.loader import Loader
from data_pipelines.mixture import Member
from tests.data_pipelines import lerobot_files, sensed
from tests.data_pipelines.loading import encode, same
from vla_jax.robot import sensing

SENSORS = sensing.parse(sensed.CONFIG)
BASE = LoaderConfig(window=2, image_size=(32,), batch_size=8, sensors=SENSORS)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return sensed.write(tmp_path_factory.mktemp("sensed"))


def loader(root, dataset=sensed.SENSED, split="train", **changes):
    return data_pipelines.open(root, dataset, dataclasses.replace(BASE, **changes), split)


def test_a_batch_holds_the_readings(root):
    """Normalised over the data where they are of a kind that is, one frame's in one place."""
    made = loader(root).episode(3).obs
    raw, _ = sensed.episode(3)
    spec = Member.fit(
        open_index(root, sensed.SENSED), "train", 1.0, ("q99",), sensors=SENSORS
    ).sensor_specs
    assert set(spec) == {"imu", "front", "cloud"}
    for sensor in SENSORS:
        got, steps = made.sensors[sensor.name], len(made.step_mask)
        for step in range(steps):
            given = raw[sensor.name] if sensor.name == "command" else raw[sensor.name][step]
            given = (given.astype(np.int16), sensed.RATE) if sensor.name == "command" else given
            given = given * np.float32(0.001) if sensor.name == "wrist" else given
            normalise = spec[sensor.name].normalise if sensor.name in spec else None
            values, mask = sensor.seen(sensor.values(given), normalise)
            np.testing.assert_array_equal(got.mask[step, 1], mask, sensor.name)
            np.testing.assert_allclose(got.values[step, 1], values, atol=2e-5)
            np.testing.assert_array_equal(got.values[step, 0], got.values[max(0, step - 1), 1])
    front = made.sensors["front"]
    assert 0.8 < front.mask.mean() < 1
    whole = np.concatenate([loader(root).episode(n).obs.sensors["front"].values for n in range(8)])
    assert abs(whole[whole != 0].std() - 1) < 0.05


def test_batches_read_ahead_are_the_same(root):
    made = loader(root, batch_size=5)
    stream = made.batches(2)
    try:
        same(next(stream), made.batch(2))
    finally:
        stream.close()
    assert loader(root, sensors=()).batch(0).obs.sensors == {}


def test_what_a_dataset_lacks_is_masked(root):
    """A mixture of one with sensors and one without."""
    plain = dataclasses.replace(sensed.SENSED, name="plain", tfds_name="sensed", sensors={})
    members = [
        Member.fit(open_index(root, each), "train", 1.0, ("q99",), sensors=SENSORS)
        for each in (sensed.SENSED, plain)
    ]
    batch = Loader(members, dataclasses.replace(BASE, batch_size=64), encode).batch(0)
    lame = batch.dataset_id == 1
    assert 0 < lame.sum() < 64
    for values, mask in batch.obs.sensors.values():
        assert not mask[lame].any()
        assert not values[lame].any()
        assert mask[~lame].reshape((~lame).sum(), -1).any(1).all()


def test_statistics_are_of_the_finite_numbers():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (100, 4, 3))
    x[rng.random(x.shape) < 0.2] = np.nan
    x[..., 2] = np.inf
    made = stats.finite(np.split(x, (20, 20, 70)))
    flat = x.reshape(-1, 3)[:, :2]
    np.testing.assert_allclose(made["mean"][:2], np.nanmean(flat, 0))
    np.testing.assert_allclose(made["std"][:2], np.nanstd(flat, 0))
    np.testing.assert_allclose(made["min"][:2], np.nanmin(flat, 0))
    assert made["count"].tolist() == [*np.isfinite(flat).sum(0), 0]
    assert [made[name][2] for name in ("mean", "std", "min", "max")] == [0, 0, 0, 0]


def test_numbers_that_hardly_vary_are_not_blown_up(root, tmp_path):
    features = sensed.features()
    raw, actions = sensed.episode(0)
    raw["imu"][..., 4] = 0.5
    folder = tmp_path / "sensed" / "1.0.0"
    folder.mkdir(parents=True)
    split = rlds_files.write_split(
        str(folder), "sensed", "train", [[sensed.example(raw, actions)] * 2]
    )
    rlds_files.finish(str(folder), "", features, [split])
    imu = loader(tmp_path).episode(0).obs.sensors["imu"]
    np.testing.assert_allclose(imu.values[..., 4], 0.5)


def test_a_depth_map_of_many_numbers_is_read_from_its_place(tmp_path):
    """float32 that is too much for the index."""
    folder, rng = tmp_path / "sensed" / "1.0.0", np.random.default_rng(0)
    folder.mkdir(parents=True)
    depth = rng.uniform(0.5, 2, (3, sensed.STEPS, 80, 60, 1)).astype(np.float32)
    examples = [
        tfrecord.encode(
            {
                **rlds_files.flags(sensed.STEPS),
                "steps/action": sensed.episode(n)[1],
                "steps/language_instruction": [b"go"] * sensed.STEPS,
                "steps/image": [sensed.png(np.zeros((32, 32, 3), np.uint8))] * sensed.STEPS,
                "steps/depth": depth[n],
            }
        )
        for n in range(3)
    ]
    described = {
        "action": rlds_files.tensor("float32", 7),
        "language_instruction": rlds_files.text(),
        "image": rlds_files.image("png", 32, 32),
        "depth": rlds_files.tensor("float32", 80, 60, 1),
    }
    split = rlds_files.write_split(str(folder), "sensed", "train", [examples])
    rlds_files.finish(str(folder), "", rlds_files.episode(described), [split])
    dataset = dataclasses.replace(
        sensed.SENSED, cameras={"primary": "image"}, sensors={"far": ("depth", 0.5)}
    )
    made = loader(tmp_path, dataset, sensors=sensing.parse("far=depth:8")).episode(1).obs
    (sensor,) = sensing.parse("far=depth:8")
    np.testing.assert_allclose(
        made.sensors["far"].values[:, 1], sensor.values(depth[1] / 2, lead=1), atol=1e-6
    )


WRONG = [
    ("gps=vector:1x3", r"expected sensors of the data \(cloud, .*\), got gps; name its feature"),
    ("front=scan:90", r"sensed: sensors\['front'\] \(scan\): expected 90 beams, got shape \(60,\)"),
    ("imu=vector:3x6", r"sensors\['imu'\] .* got shape \(5, 6\)"),
    ("finger=vector:1x3", r"expected at most 4096 numbers .* got a picture"),
    ("command=audio:16000x1", r"sensors\['command'\] .* 16000 samples a second, got 4000; resamp"),
    ("command=depth:8", r"sensors\['command'\] \(depth\): expected an array of numbers"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_sensor_that_is_another_is_refused(root, text, message):
    with pytest.raises(ValueError, match=message):
        loader(root, sensors=sensing.parse(text))


def test_two_datasets_with_different_shapes_are_told_apart(root):
    """The one that does not fit is named."""
    beams = dataclasses.replace(
        sensed.SENSED, name="other", tfds_name="sensed", sensors={"front": "observation/imu"}
    )
    pairs = [open_index(root, each) for each in (sensed.SENSED, beams)]
    members = [Member.fit(each, "train", 1.0, ("q99",)) for each in pairs]
    with pytest.raises(ValueError, match=r"^other: sensors\['front'\] .* got shape \(5, 6\)"):
        Loader(members, dataclasses.replace(BASE, sensors=SENSORS[1:2]), encode)


def test_raw_readings_of_an_episode(root):
    """As a robot has them: what a replay gives an exported policy."""
    split, rows = open_index(root, sensed.SENSED).splits["train"], np.arange(sensed.STEPS)
    raw, _ = sensed.episode(0)
    for sensor in SENSORS[:3]:
        np.testing.assert_array_equal(
            np.stack(split.sensed(sensor.name, sensor.kind, rows)),
            raw[sensor.name].astype(np.float32),
        )
    np.testing.assert_array_equal(split.sensed("finger", "tactile", rows), raw["finger"])
    np.testing.assert_allclose(split.sensed("wrist", "depth", rows), raw["wrist"] / 1e3, rtol=1e-6)
    ((samples, rate),) = split.sensed("command", "audio", rows)
    np.testing.assert_array_equal(samples, raw["command"])
    assert rate == sensed.RATE


def test_sensors_are_not_left_behind_unsaid(root, tmp_path):
    with pytest.raises(ValueError, match=r"sensed: expected no sensors, got imu, .* not converted"):
        convert.convert(str(root), sensed.SENSED, "lerobot", str(tmp_path))


def test_millimetres_are_refused_where_the_scale_is_not_said(root):
    sensors = {"wrist": "observation/wrist"}
    made = loader(
        root,
        dataclasses.replace(sensed.SENSED, name="mm", tfds_name="sensed", sensors=sensors),
        sensors=sensing.parse("wrist=depth:16"),
    )
    with pytest.raises(ValueError, match=r"record 0: sensor wrist .*expected metres, got 300"):
        made.episode(0)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (sensed.features(shape=("-1", "2")), r"mono Audio .* shape \[-1, 2\] .* mix stereo down"),
        (sensed.features(rate=0), r"with its sample rate, .* no samples a second"),
    ],
)
def test_sound_that_is_not_mono_or_has_no_rate_is_refused(tmp_path, features, message):
    sensed.write(tmp_path, 2, 1, features)
    with pytest.raises(ValueError, match=f"sensed: sensor 'command': .*{message}"):
        open_index(tmp_path, sensed.SENSED)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("observation/none", "sensor 'imu': expected the feature 'observation/none', got none"),
        ("language_instruction", "got Text of"),
    ],
)
def test_a_feature_that_is_none_is_refused(root, key, message):
    dataset = dataclasses.replace(sensed.SENSED, sensors={"imu": key})
    with pytest.raises(ValueError, match=message):
        open_index(root, dataset)


def test_an_index_without_sensors_has_the_key_it_had(root):
    """Indexes of before there were sensors stay valid."""
    plain = dataclasses.replace(sensed.SENSED, sensors={})
    folder = formats.folder(str(root), plain)
    assert "sensors" not in reading.key(plain, formats.check(folder, plain), {})


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_columns_of_a_lerobot_dataset(tmp_path, version):
    """With numbers that are not there."""
    lerobot_files.write(tmp_path / "mine", version, images=lerobot_files.CAMERAS)
    info = tmp_path / "mine/meta/info.json"
    body = json.loads(info.read_text())
    body["features"]["force"] = {"dtype": "float32", "shape": [6], "names": None}
    info.write_text(json.dumps(body))
    forces, rng = {}, np.random.default_rng(0)
    for path in sorted((tmp_path / "mine/data").rglob("*.parquet")):
        table = pq.read_table(path)
        force = rng.normal(size=(table.num_rows, 6)).astype(np.float32)
        force[::5] = np.nan
        episodes = np.array(table["episode_index"])
        forces |= {n: force[episodes == n] for n in np.unique(episodes).tolist()}
        pq.write_table(table.append_column("force", pa.array(force.tolist())), path)
    dataset = dataclasses.replace(lerobot_files.MINE, sensors={"force": ("force", 2.0)})
    index = open_index(tmp_path, dataset)
    sensors = sensing.parse("force=vector:1x6")
    made = Member.fit(index, "train", 1.0, ("q99",), sensors=sensors)
    config = dataclasses.replace(BASE, sensors=sensors, window=1)
    seen = Loader([made], config, encode).episode(0).obs.sensors["force"]
    there = np.isfinite(forces[0]).all(1)
    np.testing.assert_array_equal(seen.mask[:, 0, 0], there)
    np.testing.assert_allclose(
        made.sensor_specs["force"].unnormalise(seen.values[there, 0, 0]),
        2 * forces[0][there],
        atol=1e-5,
    )
    lacking = dataclasses.replace(lerobot_files.MINE, sensors={"force": "torque"})
    with pytest.raises(ValueError, match=r"sensor 'force': expected 'torque' as a column"):
        open_index(tmp_path, lacking)
