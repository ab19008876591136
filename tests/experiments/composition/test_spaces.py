"""One policy for any robot, and for several: dims by name, from descriptions to the artefact."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from data_pipelines.loader import Loader
from experiments.composition import beginning, changes, sources, spaces, steps
from experiments.composition.config import load_config
from tests import robots
from tests.fakes import FakeBackbone, initialise
from vla_jax import build, build_axes, params, saved, sharding
from vla_jax.export import artefact
from vla_jax.models.heads.mlp import MLPHead
from vla_jax.models.heads.outputs import HeadConfig
from vla_jax.models.vla import VLA, VLAConfig
from vla_jax.robot import torch_policy
from vla_jax.training.checkpoint import Checkpointer
from vla_jax.training.state import TrainState
from vla_jax.training.transfer import Transfer

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("robots")
    for dataset in robots.DATASETS.values():
        robots.write(root, dataset)
    return root


def config_of(root: Path, *names: str, **model: Any) -> ConfigDict:
    """A tiny policy of the robots of that name, its dims known."""
    config = load_config("oxe_paligemma.py:tiny", [f"--config.data.root={root}"])
    config.data.datasets = str(Path(robots.__file__))
    config.data.mixture = tuple((name, 1.0) for name in names)
    config.model.head_hidden, config.model.head_mlp, config.model.head_attention = 32, (16,), 4
    config.model.head_layers, config.batch_size = 1, 8
    config.model.update(model)
    return spaces.resolve(config)


def loaded(config: ConfigDict, folder: Path) -> tuple[sources.Data, Loader]:
    source = sources.data(config, folder)
    return source, sources.loader(config, source, source.train, shuffle=True)


def jittered(make: params.Build) -> tuple[Any, dict[str, np.ndarray]]:
    graphdef, shapes, _ = params.abstract(make)
    rng = np.random.default_rng(0)
    return graphdef, {
        name: (0.5 * rng.normal(size=x.shape) * x.shape[0] ** -0.5).astype(np.float32)
        for name, x in shapes.items()
    }


def checkpoint(config: ConfigDict, source: sources.Data, values: Any, folder: Path) -> Path:
    keeper = Checkpointer(folder / "checkpoints", sources.meta(config, source, folder), {})
    zero = jnp.zeros((), jnp.int32)
    keeper.save(1, TrainState(zero, jax.tree.map(jnp.asarray, values), {}, (), None, zero))
    keeper.close()
    return folder / "checkpoints"


# Every head, and a robot of every kind.
SPACES = {
    "robot_7d": {"head": "lstm", "proprio": True},
    "robot_8d": {"head": "mlp", "past_action": True},
    "robot_14d": {"head": "flow"},
    "robot_16d": {"head": "discrete", "chunk": 1, "bins": 64, "proprio": True},
    "robot_2d": {"head": "mlp", "chunk": 2},
    "robot_3d": {"head": "gpt", "past_action": True},
    "robot_4d": {"head": "attention"},
    "robot_30d": {"head": "lstm", "window": 1, "chunk": 2},
}
FAST = ("robot_2d",)


@pytest.mark.parametrize(
    "name",
    [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in SPACES],
)
def test_every_space_trains_acts_and_exports(name: str, data: Path, tmp_path: Path) -> None:
    """As its description has it, nothing else said; in torch what it is in JAX."""
    config, dataset = config_of(data, name, **SPACES[name]), robots.DATASETS[name]
    assert config.model.action_names == dataset.action_names
    assert config.model.action_dim == len(dataset.action_names)
    source, loader = loaded(config, tmp_path)
    batch = loader.batch(0)
    graphdef, values = jittered(build.training_model(config, source.action_end))

    @jax.jit
    def stepped(values: Any) -> Any:
        def loss(values: Any) -> Any:
            return params.merge(graphdef, values).loss(batch, KEY).sums["action"]

        value, grads = jax.value_and_grad(loss)(values)
        return value, grads, jax.tree.map(lambda x, g: x - 1e-3 * g, values, grads)

    loss, grads, after = stepped(values)
    assert np.isfinite(loss)
    changing = [path for path in build_axes.named_axes(config) if path in grads]
    assert changing or config.model.head == "discrete"
    for path in changing:
        axis = build_axes.named_axes(config)[path].axis
        moved = np.any(
            np.moveaxis(np.asarray(grads[path]), axis, -1), axis=tuple(range(grads[path].ndim - 1))
        )
        constant = [dataset.action_names[i] for i in source.train[0].action_spec.constant]
        assert moved.all() or constant, path

    opened = saved.open_checkpoint(checkpoint(config, source, after, tmp_path))
    proof = artefact.write(opened, tmp_path / "artefact", "float32")["float32"]
    assert [row.stage for row in proof] == ["vision", "readout", "action", "units"]
    assert not any(row.exceeds for row in proof)
    policy = torch_policy.load(tmp_path / "artefact")
    image = {"primary": np.asarray(batch.obs.images[0][0, -1])}
    state = np.linspace(-0.5, 0.5, len(dataset.state_names)) if config.model.proprio else None
    policy.reset("follow the mark")
    acted = policy.act(image, state)
    assert acted["actions"].shape == (config.model.chunk, len(dataset.action_names))
    assert acted["gripper"].shape[1] == len(dataset.binary)
    assert set(np.unique(acted["gripper"])) <= {0, 1}
    if state is not None:
        said = (tmp_path / "artefact/README.md").read_text()
        assert f"- State: {', '.join(dataset.state_names)}." in said
        assert f"proprio = frames['proprio'][0]  # {', '.join(dataset.state_names)}" in said


def test_the_config_knows_its_dims_from_the_descriptions_alone(tmp_path: Path) -> None:
    """No file is there. What the config fixes is held to them."""
    config = config_of(tmp_path, "robot_16d", "robot_14d", embodiment=True)
    assert config.model.action_dim == 16
    assert spaces.resolve(config.copy_and_resolve_references()) == config  # nothing is left
    assert sources.missing(config)[0].startswith("data: 2 of 2 datasets")
    everything = (*robots.DATASETS["robot_7d"].action_names, "spare")
    fixed = {"action_names": everything, "action_binary": ("gripper",)}
    assert config_of(tmp_path, "robot_4d", **fixed).model.action_dim == 8
    for change, message in (
        ({"action_dim": 6}, r"model.action_dim: expected 7, of robot_7d \(x, y, .*; got 6"),
        ({"action_names": ("x", "y")}, "action_names: robot_7d: expected dims among the policy's"),
        ({**fixed, "action_dim": 7}, "action_dim: expected 8, the number of model.action_names"),
        ({**fixed, "action_binary": ()}, r"action_binary: expected the binary dims .* \(gripper\)"),
    ):
        with pytest.raises(ValueError, match=message):
            config_of(tmp_path, "robot_7d", **change)
    assert changes.effect("model.action_names") is None  # another policy: not in place
    with pytest.raises(ValueError, match=r"robot_3d: its actions are linear_x, .* expected a dim"):
        config_of(tmp_path, "robot_7d", "robot_3d")
    wrong = config_of(tmp_path, "robot_7d")
    wrong.data.mixture = (("robot_7d", 1.0), ("robot_3d", 1.0))
    assert any(
        "expected dims among" in line or "expected a dim" in line for line in sources.missing(wrong)
    )


THREE = ("robot_7d", "robot_8d", "robot_30d")
MIXTURE = (*THREE, "robot_3d", "robot_3d_reversed")


def test_a_mixture_places_each_robots_numbers_by_name(data: Path, tmp_path: Path) -> None:
    config = config_of(data, *MIXTURE, proprio=True, embodiment=True, past_action=True)
    names, state = config.model.action_names, config.model.state_names
    assert len(set(names)) == len(names) == 7 + 7 + 24 + 3
    assert names[:8] == (*robots.DATASETS["robot_7d"].action_names, "joint_1")
    assert config.model.action_binary == ("gripper",)
    assert config.model.embodiments == MIXTURE
    source = sources.data(config, tmp_path)
    everything = sources.loader(config, source, source.train, shuffle=False)
    for number, member in enumerate(source.train):
        batch = everything.episode(number * 6)
        dataset, spec = member.index.dataset, member.action_spec
        assert (batch.dataset_id == number).all()
        assert (batch.obs.embodiment == number).all()
        has = [names.index(name) for name in dataset.action_names]
        lacks = [i for i in range(len(names)) if i not in has]
        alone = sources.loader(
            config_of(data, dataset.name, past_action=True), source, [member], shuffle=False
        ).episode(0)
        np.testing.assert_array_equal(batch.actions[..., has], alone.actions)
        np.testing.assert_array_equal(batch.action_mask[..., has], alone.action_mask)
        np.testing.assert_array_equal(batch.obs.past_action[..., has], alone.obs.past_action)
        for absent in (batch.actions, batch.action_mask, batch.obs.past_action):
            assert not absent[..., lacks].any()
        assert batch.obs.action_dims[:, has].all()
        assert not batch.obs.action_dims[:, lacks].any()
        seen = [state.index(name) for name in dataset.state_names]
        np.testing.assert_array_equal(batch.obs.proprio_mask.sum(1), len(seen))
        np.testing.assert_array_equal(
            batch.obs.proprio[..., seen], alone.obs.proprio[..., : len(seen)]
        )
        assert spec.names == dataset.action_names  # its own statistics
    # What is evaluated on may be fewer robots: they keep their places and numbers.
    fewer = sources.loader(config, source, source.held_out[3:4], shuffle=False).episode(0)
    assert fewer.actions.shape[-1] == len(names)
    assert (fewer.obs.embodiment == 3).all()
    units = sources.units(config, source)
    assert units.names == names
    assert (units.scale[3] > 0).sum() == 3


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mlp", "flow", "discrete"])
def test_a_mixture_exports_and_speaks_of_each_robots_own_dims(
    head: str, data: Path, tmp_path: Path
) -> None:
    """The artefact's proof is that of the robot that lacks the most; each other acts as in JAX."""
    model = {"chunk": 1, "bins": 64, "window": 1, "head": head, "state_words": head == "mlp"}
    config = config_of(data, *THREE, proprio=True, embodiment=True, past_action=True, **model)
    source = sources.data(config, tmp_path)
    _, values = jittered(build.model(config, source.action_end))
    opened = saved.open_checkpoint(checkpoint(config, source, values, tmp_path))
    artefact.write(opened, tmp_path / "artefact", "float32")
    body = json.loads((tmp_path / "artefact/config.json").read_text())
    assert body["action_names"] == list(config.model.action_names)
    assert body["embodiments"] == list(THREE)
    policy, rng = torch_policy.load(tmp_path / "artefact"), np.random.default_rng(0)
    in_jax = saved.jax_policy(opened, "robot_8d")
    for name in THREE:
        dataset = robots.DATASETS[name]
        policy.reset("follow the mark", name)
        in_jax.reset("follow the mark")
        for _ in range(2):
            image = {"primary": rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)}
            state = rng.uniform(-1, 1, len(dataset.state_names))
            acted = policy.act(image, state)["actions"]
            assert acted.shape == (1, len(dataset.action_names))
            if name == "robot_8d" and head != "flow":  # which draws
                np.testing.assert_allclose(acted, in_jax.act(image, state), atol=1e-3)


@pytest.mark.slow
def test_what_a_robot_lacks_has_no_gradient(data: Path, tmp_path: Path) -> None:
    """Windows of one robot alone: every other dim's parameters stay where they are."""
    config = config_of(data, "robot_7d", "robot_8d", chunk=2, window=1, head="mlp")
    source = sources.data(config, tmp_path)
    batch = sources.loader(config, source, source.train[1:], shuffle=True).batch(0)
    graphdef, values = jittered(build.model(config))
    grads = jax.jit(jax.grad(lambda p: params.merge(graphdef, p).loss(batch, KEY).sums["action"]))(
        values
    )
    own, seen = robots.DATASETS["robot_8d"].action_names, 0
    for path, (axis, names) in build_axes.named_axes(config).items():
        for place, name in enumerate(names if path in grads else ()):
            moved = np.take(np.asarray(grads[path]), place, axis=axis).any()
            assert moved == (name.split(" ")[0] in own), (path, name)
            seen += 1
    assert seen == 2 * 2 * (7 + 8 - 1)


@pytest.mark.slow
def test_fine_tuning_takes_dims_over_by_their_names(data: Path, tmp_path: Path) -> None:
    """Onto fewer dims all are kept, onto more the new ones begin at random and must be asked for,
    onto others the head is new.
    """
    model: dict[str, Any] = {"head": "mlp", "window": 1, "proprio": True, "past_action": True}
    one = config_of(data, "robot_7d", embodiment=True, **model)
    source = sources.data(one, tmp_path)
    _, values = jittered(build.model(one))
    start = {"start": str(checkpoint(one, source, values, tmp_path)), **model}
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])

    def begun(name: str, **more: Any) -> tuple[ConfigDict, Transfer, dict[str, Any]]:
        config = config_of(data, name, **{**start, **more})
        plan = steps.plan(config, mesh)
        taken = beginning.start(config, plan)
        assert taken is not None
        return config, taken, {**beginning.state(config, plan, taken).params}

    fewer, taken, made = begun("robot_4d")
    assert "head/outputs/arm/layers/1/kernel" in str(taken).split("by name ")[1].splitlines()[0]
    check_places(one, values, fewer, made, new=())
    assert not taken.new

    asking = r"layers/1/bias: shape \(120,\), there \(24,\); kept of it: x, y, z, roll, pitch, yaw"
    with pytest.raises(ValueError, match=asking):
        begun("robot_30d")
    allowed = ("head/*", "state/*", "past/*")
    more, _, made = begun("robot_30d", allow_missing=allowed)
    check_places(one, values, more, made, new=robots.joints(24, "finger_"))
    with pytest.raises(ValueError, match=r"model.start: .*allow_missing=head/\*,past/\*"):
        begun("robot_3d", proprio=False)
    _, taken, _ = begun("robot_7d", embodiment=True)
    assert not taken.new
    other, taken, made = begun(
        "robot_7d",
        embodiment=True,
        embodiments=("another", "robot_7d"),
        allow_missing=("embodiment/*",),
    )
    assert "kept of it: robot_7d" in taken.new["embodiment/table"]
    check_places(one, values, other, made, new=("another",))


def check_places(
    one: ConfigDict, there: Any, config: ConfigDict, made: Any, new: tuple[str, ...]
) -> None:
    """All named places of a policy that began from another's are that one's, but for those that
    are `new`, which are not.
    """
    theirs, seen = build_axes.named_axes(one), 0
    for path, (axis, names) in build_axes.named_axes(config).items():
        for place, name in enumerate(names if path in made else ()):
            got = np.take(np.asarray(made[path]), place, axis=axis)
            if name.split(" ")[0] in new:
                assert name not in theirs[path].names
            else:
                at = theirs[path].names.index(name)
                np.testing.assert_array_equal(got, np.take(there[path], at, axis=axis), path)
            seen += 1
    assert seen > 10


@functools.cache
def errors(root: Path, embodiment: bool) -> tuple[float, float]:
    """Held-out error of the next action of two robots with the same pictures and opposite actions
    after 250 steps, and that of saying the mean.
    """
    names = ("robot_3d", "robot_3d_reversed")
    config = config_of(root, *names, window=1, chunk=1, embodiment=embodiment)
    config.batch_size, config.model.image_size = 64, 32
    source, loader = loaded(config, root / f"tokenizer-{embodiment}")
    batches = [loader.batch(i) for i in range(8)]
    sizes = HeadConfig(1, 3, (), hidden=32, mlp=(32,))
    policy = VLAConfig(1, 1, 3, ("primary",), embodiments=2 if embodiment else 0)

    def make(rngs: Any) -> VLA:
        backbone = FakeBackbone(rngs, vocab=512, patch=32, image_size=32)
        return VLA(backbone, MLPHead(16, sizes, rngs), policy, rngs)

    graphdef, values = initialise(make)
    optimizer = optax.adam(3e-3)
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(each) for each in x]), *batches)

    @jax.jit
    def train(values: Any) -> Any:
        def step(carry: Any, number: Any) -> Any:
            values, state = carry
            batch = jax.tree.map(lambda x: x[number % len(batches)], stacked)
            grads = jax.grad(
                lambda p: params.merge(graphdef, p).loss(batch, KEY).sums["action"] / 64
            )(values)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(values, updates), state), None

        return jax.lax.scan(step, (values, optimizer.init(values)), jnp.arange(250))[0][0]

    trained = train(values)
    held_out = sources.loader(config, source, source.held_out, shuffle=True).batch(0)
    said = jax.jit(lambda p: params.merge(graphdef, p).act(held_out.obs, KEY))(trained)
    true = held_out.actions[:, 0]
    return float(np.abs(said - true).mean()), float(np.abs(true - true.mean(0)).mean())


@pytest.mark.slow
def test_told_which_robot_it_is_a_policy_learns_opposite_actions(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Ablation: without the token no more can be learnt than the mean."""
    root = tmp_path_factory.mktemp("opposite")
    for name in ("robot_3d", "robot_3d_reversed"):
        robots.write(root, robots.DATASETS[name], train=40, val=8)
    (told, mean), (untold, _) = errors(root, True), errors(root, False)
    print(f"held-out error: told {told:.4f}, not told {untold:.4f}, the mean {mean:.4f}")
    assert told < untold / 3
    assert untold > 0.8 * mean
