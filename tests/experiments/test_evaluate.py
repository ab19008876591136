"""Evaluation: what is printed is what is executed, on any number of devices; its yardsticks."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.builders.blocks import write_blocks
from experiments import evaluate
from experiments.composition import sources, spaces, steps
from experiments.composition.config import load_config
from experiments.evaluate import best_constant, blanked
from vla_jax import build, sharding
from vla_jax import params as flat
from vla_jax.actions import ActionSpec
from vla_jax.training.checkpoint import Checkpointer, load_params
from vla_jax.training.state import init_state
from vla_jax.types import Batch, Observation


def constant(targets: np.ndarray, mask: np.ndarray) -> float:
    """`best_constant` of targets that come in two parts."""
    parts = [(targets[: len(targets) // 2], mask[: len(mask) // 2])]
    parts.append((targets[len(targets) // 2 :], mask[len(mask) // 2 :]))
    return best_constant(lambda: iter(parts))


def test_in_the_quadratic_range_the_best_constant_is_the_mean() -> None:
    rng = np.random.default_rng(0)
    targets = rng.uniform(-0.4, 0.4, (100, 3, 4))
    mask = rng.random(targets.shape[:2]) < 0.8
    mean = (targets * mask[..., None]).sum(0) / mask.sum(0)[:, None]
    expected = (0.5 * (targets - mean) ** 2 * mask[..., None]).sum() / (4 * mask.sum())
    np.testing.assert_allclose(constant(targets, mask), expected, rtol=1e-6)


def test_no_constant_beats_it_in_the_linear_range() -> None:
    targets = 5 * np.random.default_rng(1).normal(size=(200, 1, 1)) ** 3
    best = constant(targets, np.ones((200, 1), bool))
    tried = [evaluate.huber(targets - c).mean() for c in np.linspace(-3, 3, 1001)]
    assert best <= min(tried) + 1e-6


def test_masked_targets_do_not_count() -> None:
    targets = np.array([0.1, 0.1, 99.0]).reshape(3, 1, 1)
    mask = np.array([True, True, False]).reshape(3, 1)
    assert constant(targets, mask) < 1e-9


def test_blanking_replaces_every_prompt_and_its_mask() -> None:
    obs = Observation(
        (np.zeros((2, 1, 4, 4, 3), np.uint8),), np.ones((2, 1, 1), bool),
        np.zeros((2, 1, 7), np.float32),
        np.ones(2, bool), np.full((2, 5), 9, np.int32), np.ones((2, 5), bool),
        np.ones((2, 1), bool),
    )  # fmt: skip
    out = blanked(np.array([2, 3]), 5)(obs)
    assert out.prompt.tolist() == [[2, 3, 0, 0, 0]] * 2
    assert out.prompt_mask.tolist() == [[True, True, False, False, False]] * 2


class Windows:
    """A loader of `count` windows that have no pixels."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.size = count, batch_size

    def ids(self, position: int) -> np.ndarray:
        return np.minimum(position * self.size + np.arange(self.size), self.count - 1)

    def batches(self, start: int) -> Iterator[Batch]:
        nothing: Any = 0
        blank = Observation((), *[nothing] * 6)
        for _ in range(-(-self.count // self.size)):
            yield Batch(blank, np.zeros(0), np.zeros(0), np.zeros(0))


def test_memory_does_not_grow_with_the_number_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ActionSpec(("x", "y", "gripper"), (2,))
    monkeypatch.setattr(evaluate, "BLOCK", 256)
    monkeypatch.setattr(evaluate, "HALVINGS", 2)

    def peak(count: int) -> int:
        actions = np.random.default_rng(0).random((count, 3)).astype(np.float32)
        state = np.zeros((count, 0), np.float32)
        split = SimpleNamespace(
            actions=actions, state=state, first=np.array([0]), length=np.array([count])
        )
        many = SimpleNamespace(
            name="many", action_names=spec.names, action_units={}, targets="", binary=(2,)
        )
        index = SimpleNamespace(splits={"val": split}, dataset=many)
        member: Any = SimpleNamespace(index=index, split="val", action_spec=spec)
        monkeypatch.setattr(sources, "loader", lambda *args, **kwargs: Windows(count, 256))
        said = np.zeros((256, 10, 3), np.float32)
        policy = evaluate.Policy(lambda obs, number: said, lambda rows: rows, 10)
        names = member.action_spec.names
        config: Any = ConfigDict(
            {"batch_size": 256, "data": {"stride": 1}, "model": {"action_names": names}}
        )
        tracemalloc.start()
        body = evaluate.figures(config, None, member, policy, lambda obs: obs, None)  # type: ignore
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert body["windows"] == body["of"] == count
        return most

    peak(512)  # what is imported and cached once
    assert peak(25_600) < 1.2 * peak(2_560)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of a run of no step."""
    root = tmp_path_factory.mktemp("run")
    write_blocks(root / "data", train=4, val=3)
    config = load_config(
        "oxe_paligemma.py:tiny", [f"--config.data.root={root / 'data'}", "--config.batch_size=12"]
    )
    spaces.resolve(config)
    source = sources.data(config, root)
    plan = steps.plan(config, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    params = flat.initialise(plan.make, 0, plan.shardings)
    params = {
        name: 3 * value if name.startswith("head/") else value for name, value in params.items()
    }
    keeper = Checkpointer(root / "checkpoints", sources.meta(config, source, root), {})
    keeper.save(1, init_state(params, plan.abstract, plan.optimizer))
    keeper.close()
    return root


def by_hand(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chunks as executed and as recorded [n k d] in robot units, and which steps count: everything
    at once, on one device.
    """
    meta = evaluate.load_meta(root / "checkpoints")
    config = evaluate.of_checkpoint(meta, root)
    source = sources.data(config, root, training=False)
    graphdef = flat.abstract(build.model(config))[0]
    params = jax.device_put(load_params(root / "checkpoints"), jax.devices()[0])
    model: Any = flat.merge(graphdef, params)
    (member,) = source.held_out
    split, loader = member.index.splits["val"], sources.loader(config, source, [member], False)
    obs, true, within = [], [], []
    for number, length in enumerate(split.length.tolist()):
        obs.append(loader.episode(number).obs)
        own = split.actions[int(split.first[number]) :][:length]
        at = np.arange(length)[:, None] + np.arange(config.model.chunk)
        true.append(own[np.minimum(at, length - 1)])
        within.append(at < length)
    together = jax.tree.map(lambda *parts: np.concatenate(parts), *obs)
    said, spec = np.asarray(model.act(together, jax.random.key(0))), member.action_spec
    assert np.abs(said[..., spec.constant]).max() > 0.005  # the network's noise
    return spec.unnormalise(said), np.concatenate(true), np.concatenate(within)


@pytest.mark.slow
def test_what_is_printed_is_what_is_executed_on_one_device_and_on_eight(run: Path) -> None:
    executed, true, within = by_hand(run)
    spec = ActionSpec.from_json(
        evaluate.load_meta(run / "checkpoints")["datasets"]["blocks"]["action"]
    )
    error = evaluate.huber(spec.normalise(executed) - spec.normalise(true))[..., :6].mean(-1)
    for devices in (1, 8):
        mesh = sharding.make_mesh(1, -1, 1, jax.devices()[:devices])
        body = evaluate.evaluate(run, mesh)["datasets"]["blocks"]
        assert body["windows"] == body["of"] == len(executed)
        assert body["arm_loss"] == pytest.approx(error[within].mean(), abs=1e-6)
        assert body["arm_error"] == pytest.approx(error[:, 0].mean(), abs=1e-6)
        for i, name in enumerate(spec.names):
            mine = np.abs(executed[:, 0, i] - true[:, 0, i]).mean()
            assert body["l1"][name] == pytest.approx(mine, abs=1e-6)
        assert body["l1"]["roll"] == body["l1"]["pitch"] == 0  # a robot does not turn there
        assert body["gripper_accuracy"] == pytest.approx(1 - body["l1"]["gripper"], abs=1e-6)
        targets = spec.normalise(true)[..., :6]
        assert body["arm_loss_best_constant"] == pytest.approx(constant(targets, within), abs=1e-6)
    assert (run / "actions.png").stat().st_size > 1000


@pytest.mark.slow
def test_some_windows_are_drawn_the_same_ones_each_time(run: Path) -> None:
    mesh = sharding.make_mesh(1, -1, 1)
    one, other = (evaluate.evaluate(run, mesh, 20)["datasets"]["blocks"] for _ in range(2))
    assert one == other
    assert one["windows"] == 20 < one["of"]
    every = evaluate.evaluate(run, mesh, 10**6, 8)["datasets"]["blocks"]
    assert every["windows"] == every["of"]
    assert one["arm_loss"] != every["arm_loss"]
