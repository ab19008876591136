"""Checkpoints: what they hold, what is refused, and what a kill leaves behind."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.training import tiny_run
from vla_jax import sharding
from vla_jax.training import optim, train
from vla_jax.training import state as training_state
from vla_jax.training.checkpoint import (
    Checkpointer,
    complete_steps,
    is_complete,
    load_arrays,
    load_meta,
    load_params,
    saved_arrays,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A setup with EMA and frozen parameters, its state after two steps, and a directory with steps
    1 and 2.
    """
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    setup = tiny_run.Setup(
        mesh, tiny_run.config(dtype="bfloat16"), optim.FreezeConfig(train_vision=False)
    )
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    keeper = Checkpointer(directory, tiny_run.META, tiny_run.DATA)
    state = setup.start()
    for position in range(2):
        state, _ = setup.step(state, setup.batch(position))
        keeper.save(position + 1, state)
        # the next step donates what is being written; orbax copies first, this only orders the
        # files
        keeper.wait()
    keeper.close()
    return setup, state, directory


@pytest.fixture
def directory(trained, tmp_path):
    return shutil.copytree(trained[2], tmp_path / "checkpoints")


def restore(setup, directory, meta=tiny_run.META, data=tiny_run.DATA, step=None):
    keeper = Checkpointer(directory, meta, data)
    try:
        return keeper.restore(setup.abstract, step)
    finally:
        keeper.close()


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_restores_every_bit_on_other_meshes(trained, directory):
    setup, state, _ = trained
    assert_equal(restore(setup, directory), state)
    for shape, count in (((2, 2, 2), 8), ((1, 2, 1), 2)):
        mesh = sharding.make_mesh(*shape, jax.devices()[:count])
        other = tiny_run.Setup(mesh, setup.config, optim.FreezeConfig(train_vision=False))
        restored = restore(other, directory)
        assert_equal(restored, state)
        name = "backbone/decoder/layers/up/kernel"
        assert restored.opt_state[1].mu[name].sharding.is_equivalent_to(other.shardings[name], 3)
    assert int(restore(setup, directory, step=1).step) == 1


def test_arrays_are_stored_once(trained, directory):
    stored = [
        array
        for item in ("state", "params")
        for array in saved_arrays(directory / "2" / item).values()
    ]
    held = jax.tree.leaves(trained[1])
    assert sorted((a.shape, a.dtype.name) for a in stored) == sorted(
        (a.shape, a.dtype.name) for a in held
    )


def test_without_ema(tmp_path):
    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    setup = tiny_run.Setup(mesh, tiny_run.config(ema=0.0))
    keeper = Checkpointer(tmp_path, {}, {})
    state = setup.start()
    keeper.save(0, state)
    keeper.close()
    restored = restore(setup, tmp_path, {}, {})
    assert restored.ema is None
    assert_equal(restored, state)
    assert_equal(load_params(tmp_path), state.params)


def test_params_and_meta_without_mesh_or_model(trained, directory):
    _, state, _ = trained
    loaded = load_params(directory)
    assert all(isinstance(value, np.ndarray) for value in loaded.values())
    assert_equal(loaded, jax.device_get(training_state.inference_params(state)))
    meta = load_meta(directory)
    assert meta["statistics"] == tiny_run.META["statistics"]
    assert meta["schema"] == 1
    assert "jax" in meta["libraries"]
    assert json.loads((directory / "2" / "data" / "metadata").read_text()) == {
        "identity": tiny_run.DATA,
        "position": 2,
    }
    with pytest.raises(
        ValueError, match=r"expected a complete checkpoint of step 7, got steps \[1, 2\]"
    ):
        load_params(directory, 7)


@pytest.mark.parametrize(
    "lost", ["_CHECKPOINT_METADATA", "params/manifest.ocdbt", "data/metadata", "state"]
)
def test_half_written_is_ignored_with_a_line(trained, directory, lost, capsys):
    setup, state, _ = trained
    gone = directory / "2" / lost
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    (directory / "3.orbax-checkpoint-tmp-17").mkdir()
    assert complete_steps(directory) == [1]
    said = capsys.readouterr().out
    assert f"{directory / '2'} is half-written" in said
    assert "3.orbax-checkpoint-tmp-17 is half-written" in said
    keeper = Checkpointer(directory, tiny_run.META, tiny_run.DATA)
    assert keeper.latest() == 1
    assert int(keeper.restore(setup.abstract).step) == 1
    keeper.save(2, state)  # its number is free again
    keeper.close()
    assert complete_steps(directory) == [1, 2]
    assert (directory / "2.incomplete").exists()
    assert not list(directory.glob("*tmp*"))


def test_only_so_many_are_kept(trained, directory):
    _setup, state, _ = trained
    keeper = Checkpointer(directory, tiny_run.META, tiny_run.DATA, keep=2)
    keeper.save(3, state)
    keeper.close()
    assert complete_steps(directory) == [2, 3]


def test_nothing_there(trained, tmp_path):
    assert restore(trained[0], tmp_path / "new") is None
    with pytest.raises(ValueError, match="expected a complete checkpoint, got steps"):
        load_meta(tmp_path / "nowhere")


def test_another_schema_is_refused(trained, directory):
    path = directory / "2" / "meta" / "metadata"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    for read in (load_meta, lambda directory: restore(trained[0], directory)):
        with pytest.raises(ValueError, match="expected checkpoint schema 1, got 99"):
            read(directory)


def test_other_statistics_are_refused(trained, directory):
    meta = {"statistics": {"toy": {"actions": {"mean": [0.0, 1.5], "count": 7}}}}
    with pytest.raises(ValueError, match=r"toy/actions/mean\[1\]: checkpoint 1.0, this run 1.5"):
        restore(trained[0], directory, meta)
    with pytest.raises(
        ValueError, match=r"other: only in this run\n  toy: only in the checkpoint"
    ) as caught:
        restore(trained[0], directory, {"statistics": {"other": {}}})
    assert "statistics differ" in str(caught.value)
    with pytest.raises(ValueError, match="digest: checkpoint 'abc', this run 'abd'"):
        restore(trained[0], directory, data={**tiny_run.DATA, "digest": "abd"})


def test_another_model_is_refused(trained, directory):
    setup = trained[0]
    params = dict(setup.abstract.params)
    params["head/kernel"] = jax.ShapeDtypeStruct(
        (3, 3), np.float32, sharding=params["head/kernel"].sharding
    )
    params["head/extra"] = params.pop("head/bias")
    keeper = Checkpointer(directory, tiny_run.META, tiny_run.DATA)
    with pytest.raises(ValueError, match="does not fit") as caught:
        keeper.restore(setup.abstract._replace(params=params))
    keeper.close()
    said = str(caught.value)
    assert "params:head/kernel: expected shape (3, 3), got (8, 12)" in said
    assert "params:head/extra is missing" in said
    assert "params:head/bias is not wanted" in said


def test_meta_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="expected JSON values in meta and data, got set"):
        Checkpointer(tmp_path, {"cameras": {"a", "b"}}, {})
    keeper = Checkpointer(tmp_path, {"statistics": {"toy": np.arange(2.0)}}, {})
    keeper.close()


def test_some_arrays_are_read_into_any_sharding_and_type(trained, directory):
    setup, state, _ = trained
    mesh = sharding.make_mesh(2, 2, 2)
    other = tiny_run.Setup(mesh, setup.config, optim.FreezeConfig(train_vision=False))
    names = [name for name in setup.shapes if name.startswith("backbone/decoder")]
    specs = {
        name: jax.ShapeDtypeStruct(
            setup.shapes[name].shape, "bfloat16", sharding=other.shardings[name]
        )
        for name in names
    }
    loaded = load_arrays(directory, specs)
    assert loaded.keys() == specs.keys()
    for name, value in loaded.items():
        assert value.sharding == specs[name].sharding
        np.testing.assert_array_equal(
            np.asarray(value), np.asarray(state.ema[name]).astype("bfloat16")
        )
    absent = jax.ShapeDtypeStruct(
        (2,), "float32", sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    assert (
        load_arrays(directory, {**specs, "backbone/new": absent}, ("*/new",)).keys() == specs.keys()
    )
    with pytest.raises(
        ValueError, match=r"2 parameters do not fit:\n.*expected shape \(2,\).*\n.*new is missing"
    ):
        load_arrays(directory, {"backbone/new": absent, names[0]: absent})


def test_arrays_of_a_run_with_adapters_are_merged(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in (("x/kernel", (4, 3)), ("x/lora_a", (4, 2)), ("x/lora_b", (2, 3)))
    }
    config = {"rank": 2, "alpha": 4.0, "dropout": 0.0, "targets": ["x/*"]}
    keeper = Checkpointer(tmp_path, {"config": {"lora": config}}, {})
    keeper.save(0, train.TrainState(np.int32(0), values, {}, (), None, np.int32(0)))
    keeper.close()
    spec = jax.ShapeDtypeStruct(
        (4, 3), "float32", sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    merged = values["x/kernel"] + 2 * values["x/lora_a"] @ values["x/lora_b"]
    np.testing.assert_allclose(
        load_arrays(tmp_path, {"x/kernel": spec})["x/kernel"], merged, atol=1e-6
    )


@pytest.mark.parametrize("adapters", [False, True])
def test_parameters_that_are_not_finite_are_named(adapters, tmp_path):
    values = {
        "x/kernel": np.array([[1.0, np.nan], [np.inf, 2.0]], np.float32),
        "y/bias": np.zeros(3, "bfloat16"),
        "z/bias": np.full(3, -np.inf, "bfloat16"),
    }
    if adapters:
        values |= {"x/lora_a": np.ones((2, 1), "float32"), "x/lora_b": np.ones((1, 2), "float32")}
    config = {"rank": 1, "alpha": 4.0, "dropout": 0.0, "targets": ["x/*"]}
    keeper = Checkpointer(tmp_path, {"config": {"lora": config}}, {})
    keeper.save(0, train.TrainState(np.int32(0), values, {}, (), None, np.int32(0)))
    keeper.close()
    place = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    specs = {
        name: jax.ShapeDtypeStruct(
            values[name].shape, "float32", sharding=sharding.replicated(place)
        )
        for name in ("x/kernel", "y/bias", "z/bias")
    }
    said = r"in 2 arrays:\n  x/kernel: 2\n  z/bias: 3\n"
    with pytest.raises(ValueError, match=said):
        load_params(tmp_path)
    with pytest.raises(ValueError, match=said):
        load_arrays(tmp_path, specs)
    if not adapters:  # what is not wanted is not read
        assert load_arrays(tmp_path, {"y/bias": specs["y/bias"]}).keys() == {"y/bias"}


@pytest.mark.slow
def test_what_is_held_stays_until_it_is_released(trained, tmp_path):
    _, state, _ = trained
    keeper = Checkpointer(tmp_path, tiny_run.META, tiny_run.DATA, keep=1)
    keeper.save(1, state)
    keeper.hold(1)
    for step in (2, 3):
        keeper.save(step, state)
    keeper.wait()
    assert complete_steps(tmp_path) == [1, 3]
    assert is_complete(tmp_path, 1)
    assert not is_complete(tmp_path, 2)
    keeper.hold(3)  # whoever reads it is cut off: it stays for the next time
    keeper.release(1)
    keeper.save(4, state)
    keeper.wait()
    assert complete_steps(tmp_path) == [3, 4]
    keeper.close()
    keeper = Checkpointer(tmp_path, tiny_run.META, tiny_run.DATA, keep=1)
    keeper.hold(3)
    keeper.save(5, state)
    keeper.release(3)  # no save comes after it
    keeper.close()
    assert complete_steps(tmp_path) == [5]
