"""A run that begins from another's checkpoint, against that checkpoint's arrays one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny_run
from vla_jax import sharding
from vla_jax.models import lora
from vla_jax.training import optim, transfer
from vla_jax.training.checkpoint import Checkpointer, load_params

ADAPTERS = lora.LoRAConfig(rank=2, alpha=4.0, dropout=0.0, targets=("backbone/decoder/*",))


def setup(adapters=None, freeze=None, **changes):
    mesh = sharding.make_mesh(1, 2, 1, jax.devices()[:2])
    return tiny_run.Setup(mesh, tiny_run.config(**changes), freeze, adapters=adapters)


def trained(run, directory, adapters=None):
    """The state after two steps, and a checkpoint of it."""
    state = run.start()
    for position in range(2):
        state, _ = run.step(state, run.batch(position))
    body = {} if adapters is None else {"config": {"lora": {**vars(adapters)}}}
    keeper = Checkpointer(directory, {**tiny_run.META, **body}, tiny_run.DATA)
    keeper.save(2, state)
    keeper.close()
    return state


def begun(directory, run, full=True, abstract=None):
    abstract = run.abstract if abstract is None else abstract
    plan = transfer.plan(directory, abstract, full)

    def initialise(names):
        specs = {**abstract.params, **abstract.frozen}
        return {name: jnp.full(specs[name].shape, 7.0) for name in names}

    return plan, transfer.whole_state(plan, abstract, initialise)


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run with an average and a frozen part, its state and its checkpoints."""
    run = setup(freeze=optim.FreezeConfig(train_vision=False))
    directory = tmp_path_factory.mktemp("averaged")
    return run, trained(run, directory), directory


def test_the_same_policy_goes_on_bit_for_bit(averaged):
    run, state, directory = averaged
    plan, goes_on = begun(directory, run)
    assert (plan.new, plan.dropped, plan.step) == ({}, {}, 2)
    assert_equal(goes_on, state)
    stepped = [run.step(jax.tree.map(jnp.copy, s), run.batch(2))[0] for s in (goes_on, state)]
    assert_equal(*stepped)


def test_without_the_average_the_trained_parameters_go_on(averaged):
    _, state, directory = averaged
    frozen = optim.FreezeConfig(train_vision=False)
    _, goes_on = begun(directory, setup(freeze=frozen, ema=0.0))
    assert goes_on.ema is None
    assert_equal(goes_on.params, state.params)
    assert_equal(goes_on.opt_state, state.opt_state)


@pytest.mark.slow
def test_an_average_that_is_switched_on_begins_at_the_parameters(tmp_path):
    run = setup(ema=0.0)
    state = trained(run, tmp_path)
    averaging = setup(ema=0.5)
    _, goes_on = begun(tmp_path, averaging)
    assert_equal(goes_on.ema, state.params)
    assert_equal(goes_on.params, state.params)
    after, _ = averaging.step(goes_on, averaging.batch(2))  # donates both: they share no buffer
    name = "head/bias"
    np.testing.assert_allclose(
        after.ema[name], 0.5 * state.params[name] + 0.5 * after.params[name], rtol=1e-6
    )


def test_a_part_that_trains_now_has_moments_of_zero(averaged):
    _, state, directory = averaged
    plan, goes_on = begun(directory, setup())
    vision = "backbone/vision/kernel"
    assert vision in state.frozen
    np.testing.assert_array_equal(goes_on.params[vision], state.frozen[vision])
    assert not goes_on.opt_state[1].mu[vision].any()
    assert int(goes_on.opt_state[1].count) == 2
    assert_equal(goes_on.opt_state[1].mu["head/kernel"], state.opt_state[1].mu["head/kernel"])
    assert "optimizer: " in str(plan)
    assert ", 2 new (zero)" in str(plan)


def test_another_head_is_new_and_must_be_asked_for(averaged):
    run, state, directory = averaged
    like, place = run.abstract.params, run.abstract.params["head/bias"].sharding
    other = {name: spec for name, spec in like.items() if name != "head/bias"}
    other["head/kernel"] = jax.ShapeDtypeStruct((8, 24), np.float32, sharding=place)
    other["head/gain"] = like["head/bias"]
    moments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(run.optimizer.transform.init, other),
    )
    abstract = run.abstract._replace(params=other, ema=dict(other), opt_state=moments)
    plan, goes_on = begun(directory, run, abstract=abstract)
    assert plan.new == {
        "head/kernel": "shape (8, 24), there (8, 12)", "head/gain": "shape (12,), not there"
    }  # fmt: skip
    assert plan.dropped == {
        "head/kernel": "shape (8, 12), here (8, 24)", "head/bias": "shape (12,)"
    }  # fmt: skip
    for tree in (goes_on.params, goes_on.ema):
        assert (np.asarray(tree["head/kernel"]) == 7).all()
    assert not goes_on.opt_state[1].nu["head/kernel"].any()
    table = "backbone/embed/embedding"
    assert_equal(goes_on.opt_state[1].nu[table], state.opt_state[1].nu[table])
    asking = r"1 would begin at random: head/kernel; say so with .*allow_missing=head/\*"
    with pytest.raises(ValueError, match=asking):
        plan.check(("head/gain",))
    plan.check(("head/*",))


@pytest.mark.slow
def test_adapters_of_the_same_rank_go_on_and_of_another_are_merged(tmp_path):
    run = setup(ADAPTERS)
    state = trained(run, tmp_path, ADAPTERS)
    plan, goes_on = begun(tmp_path, run)
    assert not plan.merged
    assert_equal(goes_on, state)

    wider = setup(lora.LoRAConfig(3, 4.0, 0.0, ADAPTERS.targets))
    plan, goes_on = begun(tmp_path, wider)
    assert plan.merged
    assert set(plan.new) == set(lora.split_adapters(plan.new)[1])
    plan.check(())  # adapters are new by nature
    merged, kernel = load_params(tmp_path), "backbone/decoder/layers/up/kernel"
    assert (merged[kernel] != np.asarray(state.frozen[kernel])).any()
    np.testing.assert_array_equal(goes_on.frozen[kernel], merged[kernel])


def test_the_parameters_alone_are_the_average(averaged):
    run, state, directory = averaged
    plan = transfer.plan(directory, run.abstract, full=False)
    loaded = transfer.parameters(plan, {**run.abstract.params, **run.abstract.frozen})
    assert_equal(loaded, {**state.ema, **state.frozen})
    assert "optimizer" not in str(plan)


def test_an_import_has_no_optimizer_to_go_on_with(averaged, tmp_path):
    run, _, _ = averaged
    keeper = Checkpointer(tmp_path, tiny_run.META, {})
    values = {name: np.zeros(spec.shape, np.float32) for name, spec in run.abstract.params.items()}
    keeper.save(
        0,
        run.abstract._replace(
            step=np.int32(0), params=values, frozen={}, opt_state=(), ema=None, skipped=np.int32(0)
        ),
    )
    keeper.close()
    with pytest.raises(ValueError, match="holds no optimizer to go on with, as an import does"):
        transfer.plan(tmp_path, run.abstract, full=True)
