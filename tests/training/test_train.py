"""The train step and the loop, on a tiny model."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny_run
from vla_jax import sharding
from vla_jax.training import augment, hosts, metrics, optim, train
from vla_jax.training import state as training_state
from vla_jax.training.clock import KINDS


@functools.cache
def setup_of(shape=(1, 1, 1), freeze=None, noise=0.1, **changes):
    """Made once per kind: compiling takes most of the time of these tests."""
    mesh = sharding.make_mesh(*shape, jax.devices()[: math.prod(shape)])
    return tiny_run.Setup(mesh, tiny_run.config(**changes), freeze, noise)


def run(setup, steps, state=None, start=0):
    """The state after `steps` steps and the metrics of each."""
    state = setup.start() if state is None else state
    reports = []
    for position in range(start, start + steps):
        state, report = setup.step(state, setup.batch(position))
        reports.append(jax.device_get(report))
    return state, reports


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_loss_falls_and_report_is_complete():
    _, reports = run(setup_of(), 30)
    assert reports[-1]["loss"] < 0.5 * reports[0]["loss"]
    assert {"loss", "arm", "grad_norm", "lr", "skipped", "l1/x", "l1/gripper"} <= set(reports[0])
    assert reports[0]["lr"] == 0
    assert reports[2]["lr"] == pytest.approx(1e-2)


def test_l1_is_in_the_units_of_each_dataset():
    setup = setup_of()
    batch = setup.batch(0)
    first = [
        run_one(setup, batch._replace(dataset_id=jnp.full_like(batch.dataset_id, i)))
        for i in (0, 1)
    ]
    assert first[1]["l1/x"] == pytest.approx(5 * first[0]["l1/x"], rel=1e-5)


def run_one(setup, batch):
    return jax.device_get(setup.step(setup.start(), batch)[1])


@pytest.mark.slow
def test_mesh_changes_nothing():
    one, many = run(setup_of(), 5)[1], run(setup_of((2, 2, 2)), 5)[1]
    for a, b in zip(one, many, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_accumulation_equals_the_whole_batch():
    whole = run(setup_of(noise=0.0), 4)[1]
    parts = run(setup_of((2, 1, 4), noise=0.0, accum=4), 4)[1]
    for a, b in zip(whole, parts, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match="multiple of accum"):
        setup_of(accum=3)


def test_each_part_of_a_batch_has_a_key_of_its_own():
    """With one key for all parts, all would draw the same noise."""

    def grad(params, part, key):
        drawn = params["w"] * jax.random.normal(key)
        return {"w": drawn}, {"drawn": (drawn**2, jnp.ones(()))}

    accum, key = 4, jax.random.key(3)
    batch = jax.tree.map(jnp.asarray, tiny_run.make_batch(0))
    grads, pairs = train._accumulate(grad, {"w": jnp.ones(())}, batch, key, accum)
    drawn = np.array([jax.random.normal(jax.random.fold_in(key, i)) for i in range(accum)])
    assert np.ptp(drawn) > 0.1
    assert float(grads["w"]) == pytest.approx(drawn.sum(), rel=1e-5)
    assert float(pairs["drawn"][0]) == pytest.approx((drawn**2).sum(), rel=1e-5)
    assert float(pairs["drawn"][1]) == accum


AUGMENTED = augment.AugmentConfig(crop_scale=(0.5, 0.9), brightness=0.2, hue=0.1, shift=(1,))


@pytest.mark.slow
def test_augmentation_does_not_depend_on_mesh_or_accumulation():
    plain = run(setup_of(noise=0.0), 3)[1]
    whole = run(setup_of(noise=0.0, augment=AUGMENTED), 3)[1]
    parts = run(setup_of((2, 1, 4), noise=0.0, accum=4, augment=AUGMENTED), 3)[1]
    for a, b, c in zip(whole, parts, plain, strict=True):
        assert a["loss"] == pytest.approx(float(b["loss"]), rel=1e-5)
        assert a["loss"] != c["loss"]


@pytest.mark.slow
def test_augmentation_is_new_each_step_and_again_the_same_and_never_in_evaluation():
    setup = setup_of(noise=0.0, augment=AUGMENTED)
    batch, state = setup.batch(0), setup.start()
    losses = []
    for step in (0, 1, 0):
        at = state._replace(step=jnp.full_like(state.step, step))
        losses.append(float(setup.step(jax.tree.map(jnp.copy, at), batch)[1]["loss"]))
    assert losses[0] == losses[2] != losses[1]
    assert setup.evaluate(setup.start()) == setup_of(noise=0.0).evaluate(
        setup_of(noise=0.0).start()
    )


def test_not_finite_steps_are_skipped_and_counted():
    setup = setup_of()
    state, _ = run(setup, 3)
    before = jax.device_get(state)
    good = setup.batch(3)
    bad = good._replace(
        actions=good.actions.at[0, 0, 0, 0].set(jnp.nan),
        action_mask=jnp.ones_like(good.action_mask),
    )
    for count in (1, 2):
        state, report = setup.step(state, bad)
        assert int(report["skipped"]) == int(state.skipped) == count
        assert not np.isfinite(report["loss"])
    assert int(state.step) == 5
    assert_equal(
        (state.params, state.opt_state, state.ema), (before.params, before.opt_state, before.ema)
    )
    state, report = setup.step(state, good)
    assert int(report["skipped"]) == 0
    assert np.isfinite(report["loss"])


def test_freezing():
    freeze = optim.FreezeConfig(train_vision=False, train_decoder_layers=1, patterns=("head/bias",))
    setup = setup_of(freeze=freeze, dtype="bfloat16")
    start = setup.start()
    assert {value.dtype for value in start.frozen.values()} == {jnp.bfloat16.dtype}
    assert set(start.frozen) == {"backbone/vision/kernel", "head/bias"}
    before = jax.device_get(start)
    state, _ = run(setup, 4, start)
    assert_equal(state.frozen, before.frozen)
    for name, value in state.params.items():
        same = np.asarray(value) == before.params[name]
        assert same[:-1].all() if "/layers/" in name else not same.all(), name
        assert not same[-1].all(), name


def test_ema_follows_the_parameters():
    setup = setup_of()
    state, average = setup.start(), None
    for position in range(3):
        average = jax.device_get(state.params) if average is None else average
        state, _ = setup.step(state, setup.batch(position))
        average = {
            name: 0.9 * value + 0.1 * np.asarray(state.params[name])
            for name, value in average.items()
        }
    for name, value in state.ema.items():
        np.testing.assert_allclose(value, average[name], rtol=1e-5)
    assert training_state.inference_params(state).keys() == setup.shapes.keys()


def test_state_is_donated_and_a_masked_batch_gives_zero():
    setup = setup_of()
    state, batch = setup.start(), setup.batch(0)
    new, report = setup.step(state, batch._replace(action_mask=jnp.zeros_like(batch.action_mask)))
    assert float(report["loss"]) == 0
    assert int(report["skipped"]) == 0
    assert np.isnan(report["arm"])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(new))


@pytest.mark.slow
def test_train_2n_equals_n_and_n(tmp_path):
    setup = setup_of(augment=AUGMENTED)
    whole = setup.fit(tmp_path / "whole", steps=6)
    setup.fit(tmp_path / "half", steps=3)
    with (tmp_path / "half" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "loss": 99}\n{"step": 5, "lo')  # as a kill leaves it
    halves = setup.fit(tmp_path / "half", steps=6)
    assert_equal(whole, halves)
    first, second = rows(tmp_path / "whole"), rows(tmp_path / "half")
    assert [row["step"] for row in second] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in first] == [row["loss"] for row in second]
    assert [step for step in range(6) if "val/loss" in second[step]] == [2, 5]
    assert second[-1]["train/mfu"] is None
    assert second[-1]["train/windows_per_s"] > 0
    assert list((tmp_path / "half" / "tensorboard").iterdir())


def test_the_loop_stops_when_nothing_is_finite(tmp_path):
    def feed(start, own):
        for position, batch in enumerate(tiny_run.batches(start, own), start):
            yield (
                batch._replace(actions=batch.actions * np.float32(np.nan))
                if position >= 2
                else batch
            )

    with pytest.raises(RuntimeError, match="not finite for 4 steps"):  # seen one step late
        setup_of().fit(tmp_path, feed, steps=50, nan_patience=3, save_every=100, eval_every=100)
    written = rows(tmp_path)
    assert [row["loss"] is None for row in written[:5]] == [False, False, True, True, True]
    assert [int(path.name) for path in (tmp_path / "checkpoints").iterdir()] == [
        written[-1]["step"]
    ]


def test_a_host_transfer_in_the_step_is_refused(tmp_path, monkeypatch):
    setup = setup_of()
    place, count = sharding.global_batch, []

    def forget(batch, mesh, size):
        count.append(0)
        return batch if len(count) > 1 else place(batch, mesh, size)

    monkeypatch.setattr(sharding, "global_batch", forget)
    with pytest.raises(Exception, match=r"(?i)disallowed host-to-device"):
        setup.fit(tmp_path)


def test_hosts_agree_before_each_save(tmp_path, monkeypatch):
    """What they do not agree on is not saved."""
    asked = []

    def agree(where, facts):
        asked.append(where)
        if where == "step 6":
            raise ValueError("hosts differ")

    monkeypatch.setattr(hosts.ALONE, "same", agree)
    with pytest.raises(ValueError, match="hosts differ"):
        setup_of().fit(tmp_path, steps=9)
    assert asked == ["step 0", "step 3", "step 6"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_batches_that_end_are_an_error(tmp_path):
    setup = setup_of()
    with pytest.raises(ValueError, match="got none at position 2"):
        setup.fit(
            tmp_path, lambda start, own: iter([tiny_run.make_batch(0), tiny_run.make_batch(1)])
        )


def test_sigterm_saves_the_running_step(tmp_path, capsys, monkeypatch):
    write = metrics.Recorder.write

    def asked_for(self, row):
        if row["step"] == 3:  # its row is written while step 4 runs
            os.kill(os.getpid(), signal.SIGTERM)
        write(self, row)

    monkeypatch.setattr(metrics.Recorder, "write", asked_for)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        setup_of().fit(tmp_path / "stopped", steps=9, save_every=100)
    assert left.value.code == train.SIGTERM_EXIT == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert "SIGTERM: step 4 is saved" in capsys.readouterr().out
    monkeypatch.undo()
    assert_continues(tmp_path, "stopped", 9)


def test_steps_that_a_restart_repeats_are_lost_time(tmp_path):
    def feed(start, own):
        for position, batch in enumerate(tiny_run.batches(start, own), start):
            if position == 6 and start == 0:
                raise OSError("the disk is gone")
            yield batch

    def record():
        return json.loads((tmp_path / "goodput.json").read_text())

    with pytest.raises(OSError, match="the disk is gone"):
        setup_of().fit(tmp_path, feed, steps=7)
    before = record()
    assert before["seconds"]["lost"] == 0
    assert [int(path.name) for path in (tmp_path / "checkpoints").iterdir()] == [3]
    setup_of().fit(tmp_path, feed, steps=7)
    after = record()
    repeated = before["seconds"]["productive"] - before["productive_at_saves"]["3"]
    assert after["seconds"]["lost"] == pytest.approx(repeated)
    assert repeated > 0
    assert after["starts"] == 2
    assert all(seconds > 0 for kind, seconds in after["seconds"].items() if kind != "input")


@pytest.mark.slow
def test_sigusr1_has_the_next_steps_traced(tmp_path, capsys, monkeypatch):
    write = metrics.Recorder.write

    def asked_for(self, row):
        if row["step"] in (1, 2):  # asked again while the trace runs: another one follows
            os.kill(os.getpid(), signal.SIGUSR1)
        write(self, row)

    monkeypatch.setattr(metrics.Recorder, "write", asked_for)
    before = signal.getsignal(signal.SIGUSR1)
    setup_of().fit(tmp_path, steps=7, save_every=100, eval_every=100)
    assert signal.getsignal(signal.SIGUSR1) == before
    said = capsys.readouterr().out
    for step in (3, 6):  # of 3 steps; the second is cut short by the end
        where = tmp_path / "profiles" / f"step_{step}"
        assert f"SIGUSR1: a profile is in {where}" in said
        assert [path.stat().st_size > 0 for path in where.rglob("*.xplane.pb")] == [True]
    assert len(list((tmp_path / "profiles").iterdir())) == 2
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 8))


@pytest.mark.slow
def test_sigkill_leaves_the_last_complete_checkpoint(tmp_path):
    flags = ["--workdir", str(tmp_path / "killed"), "--steps=12", "--save_every=5", "--slow"]
    command = [sys.executable, "-m", "tests.training.tiny_run", *flags]
    # Compiled as here, so that the numbers are these to the bit.
    env = {
        **os.environ,
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
    }
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    log, end = tmp_path / "killed" / "metrics.jsonl", time.monotonic() + 60
    while not (log.exists() and len(log.read_text().splitlines()) >= 8):
        assert process.poll() is None, "the run ended before step 8"
        assert time.monotonic() < end, "the run did not reach step 8"
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert_continues(tmp_path, "killed", 12)


def assert_continues(tmp_path, name, steps):
    """The run in `name`, continued, ends as one that nobody interrupted."""
    stopped = setup_of().fit(tmp_path / name, steps=steps, save_every=100)
    whole = setup_of().fit(tmp_path / "whole", steps=steps, save_every=100)
    assert_equal(stopped, whole)
    stopped, whole = (
        [(row["step"], row["loss"]) for row in rows(tmp_path / run)] for run in (name, "whole")
    )
    assert stopped == whole
    assert len(whole) == steps


def test_evaluation_of_nothing_is_an_error():
    setup = setup_of()
    with pytest.raises(ValueError, match="at least one batch"):
        train.evaluate(setup.eval_step, setup.start(), [], tiny_run.UNITS)


def test_speed_is_that_of_training_and_waiting_is_a_share_of_it():
    meter = metrics.Meter(8, 5e12, setup_of().mesh)
    spent = dict.fromkeys(KINDS, 3.0)
    assert meter.read(1, spent)["windows_per_s"] is None
    more = {"productive": 6, "input": 2, "checkpoint": 2, "evaluation": 90, "other": 5}
    read = meter.read(11, {kind: seconds + more.get(kind, 0) for kind, seconds in spent.items()})
    assert read["windows_per_s"] == pytest.approx(8)
    assert read["input_wait"] == pytest.approx(0.2)
    assert read["tflops"] == pytest.approx(5)


def test_flops_count_every_turn_of_a_scan():
    def forward(x, w):
        return jax.lax.scan(
            lambda x, w: (jax.checkpoint(lambda x: jnp.tanh(x @ w))(x), None), x, w
        )[0]

    x, w = jnp.ones((2, 4)), jnp.ones((5, 4, 4))
    assert metrics.count_flops(jax.make_jaxpr(forward)(x, w).jaxpr) == 5 * 2 * 2 * 4 * 4
    image, kernel = jnp.ones((1, 6, 6, 3)), jnp.ones((2, 2, 3, 7))
    layout = ("NHWC", "HWIO", "NHWC")
    convolve = jax.make_jaxpr(
        lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "VALID", dimension_numbers=layout)
    )
    assert metrics.count_flops(convolve(image, kernel).jaxpr) == 2 * (3 * 3 * 7) * (2 * 2 * 3)
