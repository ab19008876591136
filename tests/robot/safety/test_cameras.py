"""Cameras that fail are noticed, and good ones are not: on drawn scenes, and on the real Bridge and
CALVIN samples where they are.
"""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from data_pipelines.index import open_index
from experiments.composition.footage import frame
from tests.robot.safety.limits_of_tests import HZ, make_limits
from vla_jax.robot.safety import cameras
from vla_jax.robot.safety.cameras import CameraWatch
from vla_jax.robot.safety.filter import Reading, SafetyFilter

SHARED = Path(__file__).parents[4] / "shared" / "data"
N = 10  # frames until one is frozen
STILL = [0.001, 0, 0, 0, 0, 0, 1]


def drawn() -> list[np.ndarray]:
    """A reddish table with a blue block that moves, under a sensor's noise."""
    rng, frames = np.random.default_rng(0), []
    y, x = np.mgrid[:64, :64]
    table = np.stack([150 + 0.5 * x, 110 + 0.5 * y, 80 + 0.2 * x], -1)
    for t in range(120):
        picture = table.copy()
        picture[20:36, 5 + t // 3 : 17 + t // 3] = 30, 40, 160
        picture[40:, 50:] = 200, 40, 30
        noisy = picture + rng.normal(0, 2, picture.shape)
        frames.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return frames


def bridge() -> list[np.ndarray]:
    if not (SHARED / "rlds" / "bridge_dataset").is_dir():
        pytest.skip(f"the real Bridge sample is not at {SHARED / 'rlds'}")
    split = open_index(SHARED / "rlds", DATASETS["bridge"]).splits["train"]
    return [
        frame(split, "primary", row, False, 224, "lanczos") for row in range(len(split.actions))
    ]


def calvin(camera: str) -> list[np.ndarray]:
    files = sorted((SHARED / "calvin_sample" / "training").glob("episode_*.npz"))
    if not files:
        pytest.skip(f"the CALVIN sample is not at {SHARED}")
    return [np.load(file)[camera] for file in files]


SOURCES = {
    "drawn": drawn,
    "bridge": bridge,
    "calvin, static": lambda: calvin("rgb_static"),
    "calvin, gripper": lambda: calvin("rgb_gripper"),
}


@pytest.fixture(scope="module", params=SOURCES)
def frames(request: pytest.FixtureRequest) -> list[np.ndarray]:
    return SOURCES[request.param]()


def causes(frames: list[np.ndarray], known: list[np.ndarray] | None) -> list[cameras.Causes]:
    """What each frame of a camera beside a good one is found to be."""
    watch, rng = CameraWatch(N), np.random.default_rng(1)
    seen = None if known is None else {"primary": cameras.statistics(known)}
    good = rng.integers(0, 255, (len(frames), 16, 16, 3), dtype=np.uint8)
    pairs = zip(frames, good, strict=True)
    return [watch.look({"primary": image, "wrist": other}, seen) for image, other in pairs]


def test_no_alarm_on_frames_of_the_same_recordings(frames: list[np.ndarray]) -> None:
    """Known is every fourth frame; all are looked at."""
    assert causes(frames, frames[::4]) == [{}] * len(frames)
    assert causes(frames, None) == [{}] * len(frames)


FAULTS = {
    "black": ("blank", lambda image, rng: rng.integers(0, 4, image.shape)),
    "lens cap": ("blank", lambda image, rng: np.clip(rng.normal(16, 2, image.shape), 0, 255)),
    "unplugged": ("blank", lambda image, rng: np.broadcast_to([0, 0, 255], image.shape)),
    "swapped": ("swapped", lambda image, rng: image[..., ::-1]),
    "overexposed": ("unlike", lambda image, rng: np.minimum(image.astype(int) * 3 + 60, 255)),
    "no red": ("unlike", lambda image, rng: image * np.array([0, 1, 1])),
    "night": ("unlike", lambda image, rng: image // 6),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_frame_of_a_failed_camera_is_found(frames: list[np.ndarray], fault: str) -> None:
    cause, failed = FAULTS[fault]
    rng = np.random.default_rng(2)
    broken = [failed(image, rng).astype(np.uint8) for image in frames[1::7]]
    expected = [{cause: ("primary",)}] * len(broken)
    if fault == "unplugged":  # the same bytes always
        expected[N - 1 :] = [{"frozen": ("primary",), **each} for each in expected[N - 1 :]]
    got = causes(broken, frames[::4])
    if fault == "swapped":  # a picture without colours is the same with any two exchanged
        missed = [i for i, each in enumerate(got) if not each]
        assert len(missed) <= 0.1 * len(got)
        got = [expected[i] if i in missed else each for i, each in enumerate(got)]
    assert got == expected


def test_a_frozen_camera_is_found_after_some_frames_and_until_it_moves() -> None:
    frames = drawn()
    stuck = [*frames[:3], *[frames[3]] * 15, frames[4]]
    found = causes(stuck, None)
    assert found == [{}] * (3 + N - 1) + [{"frozen": ("primary",)}] * (15 - N + 1) + [{}]


def test_the_filter_stops_and_latches_as_its_limits_say() -> None:
    now = [1.0]
    limits = make_limits(cameras={"blank": 2, "unlike": None})
    safety = SafetyFilter(limits, gripper=1.0, clock=lambda: now[0])
    safety.reset("test", pose=np.zeros(6))
    safety.rest()

    def moved(found: cameras.Causes | None) -> bool:
        now[0] += 1 / HZ
        return bool(safety.step(STILL, Reading(now[0], cameras=found))[:6].any())

    assert moved(None)
    assert moved({"frozen": ("primary",)})  # ignored by these limits
    for _ in range(20):
        assert not moved({"unlike": ("primary",)})
    assert moved({})
    assert not moved({"blank": ("wrist",)})
    assert safety.latched is None
    assert not moved({"blank": ("wrist",)})
    assert safety.latched is not None
    assert "blank" in safety.latched.causes
    assert safety.events[-2].causes == {"blank": ("wrist",)}
    assert not moved({})
