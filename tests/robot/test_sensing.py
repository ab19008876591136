"""What a sensor's raw readings become, and which are none."""

import re

import numpy as np
import pytest

from vla_jax.robot import sensing

NAN, INF = np.nan, np.inf


def sensor(text):
    return sensing.parse(text)[0]


def test_a_line_of_sensors():
    made = sensing.parse("imu=vector:10x6, front=scan:180:2,command=audio:16000x3")
    assert [(each.name, each.kind, each.sizes, each.tokens) for each in made] == [
        ("imu", "vector", (10, 6), 1),
        ("front", "scan", (180,), 2),
        ("command", "audio", (16000, 3), 2),
    ]
    assert [each.shape for each in made] == [(10, 6), (180, 1), (300, 40)]
    assert sensing.parse("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imu", "expected name=kind:sizes"),
        ("imu=sonar:3", "a kind of vector, scan"),
        ("imu=vector:10", "imu: expected samples x numbers"),
        ("imu=vector:0x6", "all 1 or more"),
        ("front=scan:9,front=scan:8", "each name once"),
    ],
)
def test_another_line_is_refused(text, message):
    with pytest.raises(ValueError, match=f"model.sensors: .*{message}"):
        sensing.parse(text)


def test_fewer_samples_stand_at_the_end():
    imu = sensor("imu=vector:3x2")
    raw = np.array([[1, 2], [NAN, 4]])
    values, mask = imu.seen(imu.values(raw), lambda x: 10 * x)
    assert mask.tolist() == [False, True, False]
    assert values.tolist() == [[0, 0], [10, 20], [0, 0]]  # a sample counts with all of its numbers
    assert imu.values(np.array([7.0, 8.0]))[-1].tolist() == [7, 8]
    assert imu.values(np.ones((4, 5, 2, 2)), lead=2).shape == (4, 5, 3, 2)


def test_beams_that_came_back_with_nothing_are_masked():
    scan = sensor("front=scan:4")
    values, mask = scan.seen(scan.values([1.0, NAN, INF, -INF]), None)
    assert mask.tolist() == [True, False, False, False]
    assert values[:, 0].tolist() == [1, 0, 0, 0]


def test_points_are_chosen_evenly_or_filled_up():
    cloud = sensor("cloud=points:3x3")
    many = np.arange(15.0).reshape(5, 3)
    assert cloud.values(many)[:, 0].tolist() == [0, 6, 12]
    assert cloud.seen(cloud.values(many[:2]), None).mask.tolist() == [True, True, False]


def test_depth_is_its_logarithm_at_the_networks_size():
    depth = sensor("wrist=depth:2")
    raw = np.array([[1, 9, 0.1, 9], [9, 9, 9, 9], [0, 9, 10, 9], [9, 9, 9, 9]])
    values = depth.values(raw[..., None])  # the pixel in the middle of each quarter
    np.testing.assert_allclose(values[..., 0], 2 * np.log10(raw[1::2, 1::2]), rtol=1e-6)
    whole, mask = depth.seen(depth.values(np.array([[1.0, 0], [NAN, 0.1]])), None)
    assert mask.tolist() == [[True, False], [False, True]]
    np.testing.assert_allclose(whole[..., 0], [[0, 0], [0, -2]], atol=1e-6)


def test_touch_is_resized_as_cameras_are():
    finger = sensor("finger=tactile:8")
    assert (
        finger.values(np.full((3, 20, 16, 3), 7, np.uint8), lead=1).tolist()
        == np.full((3, 8, 8, 3), 7).tolist()
    )


def test_sound_as_bands():
    """A tone is loudest in its band, silence after it is masked, and 16 bits are as [-1, 1]."""
    voice = sensor("command=audio:8000x2")
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)
    values, mask = voice.seen(voice.values((tone, 8000)), None)
    assert values.shape == (200, 40)
    assert mask[:98].all()
    assert not mask[98:].any()
    mels = 2595 * np.log10(1 + np.array([1000, 4000]) / 700)
    assert (values[:98].argmax(1) == round(41 * mels[0] / mels[1]) - 1).all()
    whole = voice.values((np.round(tone * 32767).astype(np.int16), 8000))
    np.testing.assert_allclose(whole[:98].max(1), values[:98].max(1), atol=1e-3)
    assert np.abs(values).max() < 2


BAD = [
    ("imu=vector:3x2", np.zeros((4, 2)), "up to 3 samples of 2 numbers .* got shape (4, 2)"),
    ("imu=vector:3x2", np.zeros((3, 6)), "got shape (3, 6)"),
    ("imu=vector:3x2", "far", "expected numbers"),
    ("front=scan:180", np.zeros(181), "expected 180 beams, got shape (181,); give them all, NaN"),
    ("cloud=points:9x3", np.zeros((9, 4)), "points of 3 numbers"),
    ("wrist=depth:4", np.zeros((4, 4, 3)), "a depth map [h w], got shape (4, 4, 3)"),
    ("wrist=depth:4", np.full((4, 4), 700), "expected metres, got 700 .* 0.001) for millimetres"),
    ("finger=tactile:4", np.zeros((4, 4, 3)), "uint8 RGB [h w 3], got float64"),
    ("command=audio:16000x1", np.zeros(9), "expected a pair"),
    ("command=audio:16000x1", (np.zeros((9, 2)), 16000), "one channel, .* mix stereo down"),
    ("command=audio:16000x1", (np.zeros(9), 44100), "16000 samples a second, got 44100; resample"),
    ("command=audio:16000x1", (np.full(9, NAN), 16000), "finite samples"),
]


@pytest.mark.parametrize(("text", "raw", "message"), BAD)
def test_what_is_no_reading_is_refused_by_name(text, raw, message):
    made = sensor(text)
    pattern = ".*".join(re.escape(part) for part in message.split(" .* "))
    with pytest.raises(ValueError, match=rf"sensors\['{made.name}'\] .*{pattern}"):
        made.values(raw)


def test_a_frames_readings():
    """What is not given is absent, speech stands, and nothing else does."""
    sensors = sensing.parse("imu=vector:1x2,command=audio:4000x1")
    normalise, kept = {"imu": lambda x: x / 2}, {}
    tone = np.sin(np.arange(4000)), 4000
    first = sensing.readings(sensors, {"imu": [2, 4], "command": tone}, normalise, kept)
    assert first["imu"].values.tolist() == [[1, 2]]
    second = sensing.readings(sensors, None, normalise, kept)
    assert not second["imu"].mask.any()
    np.testing.assert_array_equal(second["command"].values, first["command"].values)
    assert not sensing.readings(sensors, None, normalise, {})["command"].mask.any()
    with pytest.raises(ValueError, match=r"expected those of the policy \(imu, command\), got"):
        sensing.readings(sensors, {"gps": [1]}, normalise, kept)
    with pytest.raises(ValueError, match=r"the data of this robot had no such sensor"):
        sensing.readings(sensors, {"imu": [2, 4]}, {}, kept)
