"""Preflight, on this machine's CPU devices in place of GPUs."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import preflight
from experiments.composition import ahead, spaces, steps
from experiments.composition.collectives import Collective
from experiments.composition.config import parse_argv
from experiments.learning import programs
from experiments.learning.batches import window_of
from vla_jax import params as params_of
from vla_jax import sharding
from vla_jax.actions import ActionSpec
from vla_jax.policy import JaxPolicy
from vla_jax.policy_io import PolicyIO
from vla_jax.types import Seen

TINY = ("--config=oxe_paligemma.py:tiny", "--config.model.layers=scan")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Programs are remembered between these tests, and nowhere else."""
    jax.devices()  # jax starts, whichever test is first: a later one asks for more of them
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def run(*words: str) -> int:
    return preflight.main([*TINY, "--topology=gpu:8xH100", *words])


@pytest.mark.slow
def test_a_run_that_fits(capsys):
    assert run("--config.batch_size=88", "--config.mesh.tensor=2", "--price=2") == 0
    said = capsys.readouterr().out
    for words in (
        "gpu:8xH100: 8 chips, mesh data 1 x fsdp 4 x tensor 2, batch 88",
        "of 75: fits",
        "all-gather         over fsdp         f32   parameters",
        "over tensor       f32   activations",
        "windows/s expected; 1,000 steps:",
        "at 2.0 each",
        "checkpoint:",
    ):
        assert words in said, said
    assert "whole batch" not in said


@pytest.mark.slow
def test_a_step_that_learns_by_trial(capsys):
    words = ("--config.rl.algorithm=ppo", "--config.rl.head_only=True", "--config.batch_size=88")
    words += ("--config.rl.environments=8",)
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "decisions/s expected in learning" in said
    assert "of 75: fits" in said
    assert "a round: 8 worlds at once, decisions in batches of 88" in said
    rates = {}
    for name in ("acts", "judges"):  # of all worlds; of a chip's part of a batch
        told = re.search(rf"^{name}: .* of 75, of it .*: fits; ([\d.,]+) GFLOP a chip", said, re.M)
        assert told is not None, said
        rates[name] = float(told[1])
    assert "whole batch" not in said
    assert re.search(r"all-gather +over fsdp +f32 +what is judged", said)
    assert rates["judges"] / 11 < rates["acts"] / 8 / 5  # what was read to act is not read again
    with pytest.raises(ValueError, match="not known before its clips are"):
        run("--config.rl.algorithm=dpo", "--config.model.head=mlp")


@pytest.mark.slow
def test_what_is_compiled_for_acting_gives_what_a_policy_plays():
    words = ("--config.rl.algorithm=ppo", "--config.rl.environments=2")
    config = spaces.resolve(parse_argv([*TINY, *words]).config)
    plan = steps.plan(config, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    rng = np.random.default_rng(0)
    weights = {
        name: jnp.asarray(rng.normal(0, 0.1, shape.shape), jnp.float32)
        for name, shape in plan.shapes.items()
    }
    names, length = tuple(config.model.action_names), config.model.prompt_length
    spec, encode = ActionSpec(names), lambda text: np.arange(len(text), dtype=np.int32)
    policy = JaxPolicy(
        plan.graphdef, weights, PolicyIO((32,), length, encode, spec, ActionSpec(()))
    )
    sessions = policy.sessions(2)
    played: list[list] = [[], []]
    for number, session in enumerate(sessions):
        session.reset("push", number)
    for _ in range(2):
        seen = [
            Seen(
                {name: rng.integers(0, 256, (32, 32, 3), np.uint8) for name in config.model.cameras}
            )
            for _ in sessions
        ]
        JaxPolicy.act_together(sessions, seen)
        for own, session in zip(played, sessions, strict=True):
            own.append(session.taken())
    read = jax.jit(lambda params, obs: params_of.merge(plan.graphdef, params).readouts(obs))
    windows = [window_of([obs for obs, _ in own], 1, 2) for own in played]
    obs = jax.tree.map(lambda *rows: np.concatenate(rows), *windows)
    kept = np.concatenate([read(weights, own[0][0]) for own in played])
    numbers = np.arange(2, dtype=np.uint32), np.ones(2, np.uint32)
    chunks = programs._act(plan)(weights, obs, kept, *numbers)
    for chunk, own in zip(chunks, played, strict=True):
        np.testing.assert_allclose(chunk[0], own[-1][1], atol=1e-5)
    assert np.abs(chunks[0] - chunks[1]).max() > 0.01


@pytest.mark.slow
def test_a_program_is_compiled_once_and_a_damaged_memory_of_it_again(monkeypatch, capsys):
    words = ("--config.batch_size=88", "--config.mesh.tensor=2")

    def said():  # without what a slow machine is told while it waits
        lines = capsys.readouterr().out.splitlines()
        return "\n".join(line for line in lines if "so far" not in line)

    run(*words)
    first, compiled = said(), []
    compile = jax.stages.Lowered.compile

    def counted(lowered, *args, **kwargs):
        compiled.append(1)
        return compile(lowered, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted)
    run(*words)
    assert said() == first
    assert not compiled
    for file in ahead.cache_folder().iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    run(*words)
    again = said()
    assert "is damaged" in again
    assert again.endswith(first.partition("\n")[2])
    assert compiled == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "efforts"), [((), ["O1", "UNKNOWN"]), (("--full",), ["UNKNOWN"])]
)
def test_that_it_does_not_fit_is_said_of_a_step_compiled_as_a_run_does(
    flags, efforts, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = []

    def full(_):
        made.append(jax.config.values["jax_optimization_level"])
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm")

    monkeypatch.setattr(jax.stages.Lowered, "compile", full)
    assert run("--config.batch_size=88", *flags) == 1
    assert made == efforts
    assert "does not fit: RESOURCE_EXHAUSTED" in capsys.readouterr().out


@pytest.mark.parametrize(("room", "efforts"), [(99, ["O1", "UNKNOWN"]), (100, ["O1"])])
def test_what_is_compiled_but_larger_than_a_chip_is_compiled_in_full(room, efforts, monkeypatch):
    made = []

    def compiled(_):
        made.append(jax.config.values["jax_optimization_level"])
        return {"fits": True, "arguments": 60, "temporaries": 40}

    monkeypatch.setattr(ahead, "_compile", compiled)
    ahead._with_less_effort(None, room)
    assert made == efforts


def test_topologies_are_listed(capsys):
    assert preflight.main(["--topology=list"]) == 0
    said = capsys.readouterr().out
    assert "v5e:16x16" in said
    assert "gpu:8xH100" in said


@pytest.mark.slow
def test_the_largest_batch_is_where_the_line_meets_the_memory(monkeypatch, capsys):
    """A card with room for just what 22 windows a device need: 11 and 5 tell it within a tenth."""
    config = spaces.resolve(parse_argv([*TINY, "--config.batch_size=176"]).config)
    card = ahead.CHIPS["H100"]
    machines = ahead.Machines("gpu:8xH100", card, sharding.make_mesh(1, 8, 1), full=False)
    step = ahead.compiled(config, machines)
    need = sum(step.memory.values()) / preflight.USABLE
    monkeypatch.setitem(ahead.CHIPS, "H100", card._replace(memory=need))
    assert run("--config.batch_size=88", "--largest") == 0
    told = re.search(r"fits is about \d+ \((\d+) windows a chip", capsys.readouterr().out)
    assert told is not None
    assert 20 <= int(told[1]) <= 24


@pytest.mark.slow
def test_a_batch_that_is_sent_is_named_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(sharding, "activations_over", lambda mesh: contextlib.nullcontext())
    assert run("--config.batch_size=88") == 1
    assert "activations of the whole batch are sent: all-reduce" in capsys.readouterr().out


@pytest.mark.slow
def test_a_step_that_does_not_fit_says_what_to_change(monkeypatch, capsys):
    small = ahead.CHIPS["H100"]._replace(memory=1e6)
    monkeypatch.setitem(ahead.CHIPS, "H100", small)
    assert run("--config.batch_size=88") == 1
    said = capsys.readouterr().out
    assert "does not fit" in said
    assert "model.remat=full" in said


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        (
            "v5x:2x4",
            "expected v5e:AxB, v5p:AxB, v6e:AxB or gpu:NxH100 \\(list shows them\\), got 'v5x:2x4'",
        ),
        ("v5e", "got 'v5e'"),
        ("gpu:64xH100", "expected to set 64 devices before jax starts, got 8"),
    ],
)
def test_topologies_that_are_none_are_refused(topology, message):
    with pytest.raises(ValueError, match=message):
        preflight.main([*TINY, f"--topology={topology}"])


def test_a_batch_that_the_mesh_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="expected a multiple of data x fsdp = 8, got 12"):
        run("--config.batch_size=12")


@pytest.fixture(scope="module")
def sizes() -> ahead.ParameterSizes:
    config = spaces.resolve(parse_argv([*TINY, "--config.batch_size=88"]).config)
    return ahead.parameter_sizes(steps.plan(config, sharding.make_mesh(1, 8, 1)))


def collective(kind: str, *arrays: tuple[str, tuple[int, ...]], axes=("fsdp",)) -> Collective:
    return Collective(kind, arrays, axes, 8, 1, "")


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (collective("all-gather", ("bf16", (1, 64, 256))), "parameters"),  # a layer's kernel
        (collective("reduce-scatter", ("bf16", (8, 256))), "parameters"),  # a device's part of it
        (collective("all-gather", ("bf16", (8, 1, 8))), "parameters"),  # a norm's gain, folded
        (collective("all-reduce", ("f32", ()), ("f32", (64, 256))), "parameters"),
        (collective("all-reduce", ("f32", ()), ("f32", (7, 13))), "numbers"),
        (collective("all-gather", ("s32", (88, 32))), "ids and masks"),
        (collective("reduce-scatter", ("bf16", (5, 256))), "parameters"),  # a piece of a kernel
        (collective("reduce-scatter", ("bf16", (264, 256))), "parameters"),  # one, padded: 3 x 88
        (collective("all-to-all", ("f32", (1, 11, 32, 8))), "own activations"),
        (collective("collective-permute", ("bf16", (8, 256))), "parameters"),
        (collective("all-reduce", ("f32", (88, 49, 256))), "batch"),
        (collective("all-reduce", ("f32", (64, 256)), ("f32", (8624, 64))), "batch"),
        (collective("all-reduce", ("f32", (11, 49, 64)), axes=("tensor",)), "activations"),
    ],
)
def test_what_is_carried(given, what, sizes):
    assert preflight.carried(given, sizes, {88, 176, 8624}) == what


def test_without_the_compiler_of_tpus_it_says_how_to_get_it(monkeypatch):
    def missing(**_):
        raise RuntimeError("no libtpu here")

    monkeypatch.setattr(ahead.topologies, "get_topology_desc", missing)
    with pytest.raises(ValueError, match=r"pip install .libtpu==0\.0\.42"):
        preflight.main([*TINY, "--topology=v5e:2x4"])


def test_a_parameters_axis_is_none_of_the_batch(sizes):
    """256 are all tokens of 32 windows too, and the width of an MLP: pieces of its gradient are
    sent. The tokens of the batch, 32 x 49, are no axis of a parameter.
    """
    batch = {32, 256, 32 * 49}
    piece = collective("reduce-scatter", ("f32", (5, 256)))
    assert preflight.carried(piece, sizes, batch) == "parameters"
    tokens = collective("all-reduce", ("f32", (32 * 49, 256)))
    assert preflight.carried(tokens, sizes, batch) == "batch"
