"""Every dataset's entry: the contract on generated episodes, and the entries against the field's
registries.
"""

import dataclasses
import itertools
import re
import zlib
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.datasets import DATASETS
from data_pipelines.datasets.mixtures import MIXTURES
from data_pipelines.datasets.table import README, table
from data_pipelines.standardise import Recipe
from tests.data_pipelines.raw_episodes import EXTERNAL, WIDTHS, generate

REGISTRY = Path(__file__).parents[3] / "shared" / "reference" / "oxe_registry.yaml"
SLOTS = ("primary", "secondary", "wrist")

# ------------------------------------------------------------------------------------ The contract


def test_every_dataset_is_in_the_table_of_widths():
    assert set(WIDTHS) == set(DATASETS)
    for name, dataset in DATASETS.items():
        assert name == dataset.name
        assert set(WIDTHS[name]) == set(dataset.columns), name


# Datasets that our own builders write: no registry knows them.
OURS = {"blocks", "calvin", "calvin_play", "calvin_scene", "metaworld", "navigation"}


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 40])
def test_contract(name, steps):
    dataset = DATASETS[name]
    raw = generate(name, steps, -3, 3)
    before = {key: column.copy() for key, column in raw.items()}
    out = DATASETS[name].standardise(raw)
    rows = len(out.frames)
    assert out.actions.shape == (rows, len(dataset.action_names))
    assert out.state.shape == (rows, len(dataset.state_names))
    for values in (out.actions, out.state):
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
    assert np.issubdtype(out.frames.dtype, np.integer)
    assert (np.diff(out.frames) > 0).all()
    assert ((out.frames >= 0) & (out.frames < max(steps, 1))).all()
    if isinstance(dataset.standardise, Recipe):  # the table of blocks is generated within range
        gripper = out.actions[:, list(dataset.binary)]
        assert ((gripper >= 0) & (gripper <= 1)).all()
    for key, column in raw.items():
        np.testing.assert_array_equal(column, before[key])
    again = DATASETS[name].standardise(raw)
    for first, second in zip(out, again, strict=True):
        np.testing.assert_array_equal(first, second)
    if steps == 40:
        assert rows >= 7


@pytest.mark.parametrize("name", DATASETS)
def test_entry_is_complete(name):
    dataset = DATASETS[name]
    assert set(dataset.cameras) <= set(SLOTS)
    assert set(dataset.bgr) <= set(dataset.cameras)
    assert "{root}" in dataset.download
    assert "{" not in dataset.download.format(root="/data")
    assert re.fullmatch(r"\d+\.\d+\.\d+", dataset.version)
    for names in (dataset.action_names, dataset.state_names):
        assert len(set(names)) == len(names)
    assert all(dataset.action_names[i].endswith("gripper") for i in dataset.binary)
    assert all(note.endswith((".", ")")) for note in dataset.notes)
    assert dataset.robot or name in ("mujoco_manip", "ppgm", "ppgm_static", "ppgm_wrist")
    if "primary" not in dataset.cameras:
        assert any("camera" in note for note in dataset.notes)
    if dataset.bgr:
        assert any("blue first" in note for note in dataset.notes)


def test_mixtures_name_datasets_once():
    for name, members in MIXTURES.items():
        assert len(dict(members)) == len(members), name
        assert all(member in DATASETS and weight > 0 for member, weight in members), name


def test_labels_have_units_where_they_are_known():
    bridge = DATASETS["bridge"]
    assert bridge.action_labels[:1] + bridge.action_labels[-2:] == (
        "x (m)",
        "yaw (rad)",
        "gripper (1 = open)",
    )
    silent = dataclasses.replace(bridge, action_units={}, state_units={})
    assert silent.action_labels == (*silent.action_names[:-1], "gripper (1 = open)")
    assert silent.state_labels == silent.state_names
    half = dataclasses.replace(bridge, state_names=("x", "joint_1"))  # from an entry with more
    assert half.state_labels == ("x (m)", "joint_1")
    assert DATASETS["calvin"].action_labels[0] == "x (m / 0.02)"


def test_readme_is_what_the_command_writes():
    assert README.read_text() == table(), "run python -m data_pipelines.datasets.table"


def test_taco_play_state_has_the_width_of_the_gripper():
    raw = generate("taco_play", 5, 0, 1)
    np.testing.assert_array_equal(
        DATASETS["taco_play"].standardise(raw).state[:, 6], raw["observation/robot_obs"][:, 6]
    )


# Against the registries
# ----------------------------------------------------------------------------------------------

SAME = {
    "bridge_dataset": "bridge",
    "bridge_orig": "bridge",
}  # two names of the field for one set of files
JOINTS = ("berkeley_mvp_converted_externally_to_rlds", "berkeley_rpt_converted_externally_to_rlds")
CAMERAS = {
    "dobbe": {"primary": "wrist_image"},  # the slots disagree; OpenVLA's, whose mixture has it
    "bridge_oxe": {"primary": "image"},  # version 0.1.0 has no image_1
}
STATE = {
    "taco_play": "gripper width instead of the first arm joint",
    f"utokyo_xarm_bimanual{EXTERNAL}": (
        "pose_r, as OpenVLA's keys say: the files have no end_effector_pose"
    ),
}
# Deliberate differences that these episodes do not reach, tested in test_standardise.py: angles are
# wrapped; an unsettled gripper is thresholded; grippers are clipped to [0, 1]; DROID's idle steps
# are left out.


@pytest.fixture(scope="module")
def registry():
    if not REGISTRY.is_file():
        pytest.skip("no registry beside the repository")
    return pytest.importorskip("yaml").safe_load(REGISTRY.read_text())


def entry(registry, name):
    """The registry's entry of one of our datasets. Bridge: OpenVLA's, which drops the first
    step.
    """
    return registry["datasets"]["bridge_orig" if name == "bridge" else name]


def variant(body, name):
    transforms = body["transform"]
    return (
        transforms["octo"]
        if name in JOINTS or "openvla" not in transforms
        else transforms["openvla"]
    )


def _operate(op, x):
    op, _, argument = op.partition(":")
    if op == "as_col":
        return x[:, None] if x.ndim == 1 else x
    if op == "binarize":  # every in-between value takes the next decided one, scanning backwards
        out, carry = np.empty_like(x), x[-1]
        for t in reversed(range(len(x))):
            carry = 1.0 if x[t] > 0.95 else 0.0 if x[t] < 0.05 else carry
            out[t] = carry
        return out
    if op == "rel2abs":
        events = [0 if v > 0.1 else 1 if v < -0.1 else None for v in x.reshape(-1)]
        first = next((e for e in events if e is not None), 0)
        out, carry = [], 1 - first
        for e in events:
            carry = carry if e is None else e
            out.append(carry)
        return np.array(out, float)[:, None]
    if op == "euler_from_quat_xyzw":
        qx, qy, qz, qw = x.T
        m = [[1 - 2 * (qy**2 + qz**2), None, None], [2 * (qx * qy + qz * qw), None, None]]
        m += [[2 * (qx * qz - qy * qw), 2 * (qy * qz + qx * qw), 1 - 2 * (qx**2 + qy**2)]]
        return np.stack(
            [np.arctan2(m[2][1], m[2][2]), np.arcsin(-m[2][0]), np.arctan2(m[1][0], m[0][0])],
            axis=1,
        )
    if op == "zlib_f32":
        return np.frombuffer(b"".join(zlib.decompress(c) for c in x), np.float32).reshape(
            len(x), int(argument)
        )
    plain = {
        "clip01": lambda: np.clip(x, 0, 1),
        "invert": lambda: 1 - x,
        "first_col": lambda: x[:, :1],
    }
    plain |= {"cast_f32": lambda: x, "div": lambda: x / float(argument)}
    return plain[op]()


def _evaluate(parts, raw):
    """The registry's parts, read by themselves: [T, d]."""
    steps, out = len(next(iter(raw.values()))), []
    for part in parts:
        if "const" in part:
            out.append(np.full((steps, part["width"]), part["const"]))
        elif "zeros_like" in part:
            out.append(np.zeros_like(raw[part["zeros_like"]]))
        else:
            x = raw[part["src"]]
            x = x if x.dtype == object else x.astype(float)
            if "slice" in part:
                x = x[:, slice(*(int(v) if v else None for v in part["slice"].split(":")))]
            for op in part.get("ops", ()):
                x = _operate(op, x)
            out.append(x if x.ndim > 1 else x[:, None])
    return np.concatenate(out, axis=1)


def _directly(transform, parts, raw):
    """Actions and `parts` of the registry's transform, up to the step that relabelling drops."""
    raw = {
        key: x[transform.get("drop_first", 0) :: transform.get("stride", 1)]
        for key, x in raw.items()
    }
    relabel = transform.get("relabel")
    kept = (
        transform["action"][-1:] if relabel else transform["action"]
    )  # relabelling replaces the others
    actions, state = _evaluate(kept, raw), _evaluate(parts, raw) if parts else None
    if relabel:
        low, high = relabel["dims"]
        reached = raw[relabel["state"]].astype(float)[:, low:high]
        actions = np.concatenate(
            [np.diff(reached, axis=0), actions[:-1, -relabel["keep_action_tail"] :]], axis=1
        )
        state = state[:-1]
    return actions, state


def _state_parts(body, name):
    transforms = body["transform"]
    parts = transforms.get("octo", {}).get("proprio", [])
    if not parts and "openvla" in transforms:
        parts = [part for group in transforms["openvla"].get("sets", {}).values() for part in group]
    return (
        parts if any("src" in part for part in parts) else []
    )  # a lone constant is Octo's word for no state


def _raw(name, transform):
    """An episode whose numbers are in [0, 1], but for relative grippers in [-1, 1]."""
    raw = generate(name, 30, 0, 1)
    for part in transform["action"]:
        if "rel2abs" in part.get("ops", ()):
            raw[part["src"]] = raw[part["src"]] * 2 - 1
    return raw


def test_all_datasets_of_the_registry_are_there(registry):
    assert len(registry["datasets"]) == 78
    assert {SAME.get(name, name) for name in registry["datasets"]} == set(DATASETS) - OURS


def registered():
    return [name for name in DATASETS if name not in OURS]


@pytest.mark.parametrize("name", registered())
def test_entry_agrees_with_the_registry(registry, name):
    dataset, body = DATASETS[name], entry(registry, name)
    cameras = CAMERAS.get(name) or {
        slot: key for slot, key in body.get("images", {}).items() if key
    }
    assert dataset.cameras == {slot: f"observation/{key}" for slot, key in cameras.items()}
    rate, stride = body["control_hz"], variant(body, name).get("stride", 1)
    assert dataset.control_hz == (None if rate is None else rate / stride)
    assert dataset.languages[0] == body["language"]["from"]  # droid draws one of three
    assert dataset.blanked == str(body["language"].get("octo", "")).startswith("blanked")
    prep = body.get("prep", [])
    flips = {"primary": "flip_image_channels", "wrist": "flip_wrist_image_channels"}
    assert set(dataset.bgr) == {slot for slot, step in flips.items() if step in prep}
    assert dataset.tfds_name == body["tfds_name"]
    if body["version"] is not None:
        assert dataset.version in re.findall(r"\d+\.\d+\.\d+", body["version"])
    assert body.get("tfds_importer_location", "") in dataset.download
    encodings = body.get("action_encoding", {"openvla": "EEF_POS"})  # ppgm: transform only
    mask = registry["encodings"]["action"][next(iter(encodings.values()))]["normalize_mask"]
    assert len(dataset.action_names) == len(mask)
    assert dataset.binary == tuple(i for i, bit in enumerate(mask) if bit == "0")


@pytest.mark.parametrize("name", [name for name in registered() if name != "gnm_dataset"])
def test_numbers_agree_with_the_registry(registry, name):
    body = entry(registry, name)
    transform, parts = variant(body, name), _state_parts(body, name)
    raw = _raw(name, transform)
    actions, state = _directly(transform, parts if name not in STATE else [], raw)
    out = DATASETS[name].standardise(raw)
    np.testing.assert_allclose(out.actions, actions, rtol=1e-6, atol=1e-6)
    if name in STATE:
        return
    if parts:
        np.testing.assert_allclose(out.state, state, rtol=1e-6, atol=1e-6)
    else:
        assert DATASETS[name].state_names == ()


def test_waypoints_agree_with_the_registry(registry):
    """gnm, by hand: scale |a0| / |p1 - p0|, every third step, R(yaw)^T (p[t+1] - p[t]) scale,
    without the last.
    """
    assert registry["datasets"]["gnm_dataset"]["transform"]["octo"]["special"].startswith(
        "gnm: scale=|a0|/|p1-p0|; str"
    )
    raw = generate("gnm_dataset", 20, -1, 1)
    pose, action = raw["observation/state"].astype(float), raw["action"].astype(float)
    scale = np.linalg.norm(action[0]) / np.linalg.norm(pose[1, :2] - pose[0, :2])
    kept = pose[::3]
    expected = []
    for here, there in itertools.pairwise(kept):
        c, s = np.cos(here[2]), np.sin(here[2])
        expected.append(np.array([[c, -s], [s, c]]).T @ (there - here)[:2] * scale)
    out = DATASETS["gnm_dataset"].standardise(raw)
    np.testing.assert_allclose(out.actions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.state, kept[:-1], rtol=1e-6)
    still = raw | {
        "observation/state": np.concatenate(
            [raw["observation/state"][:1], raw["observation/state"]]
        )
    }
    still["action"] = np.concatenate([np.zeros((1, 2)), raw["action"]])
    assert np.isfinite(
        DATASETS["gnm_dataset"].standardise(still).actions
    ).all()  # a robot that stands at first


def test_mixtures_agree_with_the_registry(registry):
    def resolved(members):
        weights = {}
        for name, weight in members:
            weights.setdefault(SAME.get(name, name), weight)  # first weight wins
        return weights

    tables = registry["mixtures"]
    expected = {name: resolved(members) for name, members in tables["openvla"].items()}
    octo = tables["octo"] | {
        name.split()[0]: members for name, members in tables["octo_unregistered"].items()
    }
    for name, members in octo.items():
        same = expected.get(name, resolved(members)) == resolved(members)
        expected[name if same else f"octo_{name}"] = resolved(members)
    expected |= {"blocks": {"blocks": 1.0}, "rt_1": {"fractal20220817_data": 1.0}}
    assert {name: dict(members) for name, members in MIXTURES.items()} == expected
