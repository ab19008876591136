"""Preflight, on this machine's CPU devices in place of GPUs."""

import contextlib
import re

import jax
import pytest

from experiments import preflight
from experiments.composition import ahead, spaces, steps
from experiments.composition.collectives import Collective
from experiments.composition.config import parse_argv
from vla_jax import sharding

TINY = ("--config=oxe_paligemma.py:tiny", "--config.model.layers=scan")


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Programs are remembered between these tests, and nowhere else."""
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
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "decisions/s expected in learning" in said
    assert "of 75: fits" in said
    with pytest.raises(ValueError, match="not known before its clips are"):
        run("--config.rl.algorithm=dpo", "--config.model.head=mlp")


@pytest.mark.slow
def test_a_program_is_compiled_once_and_a_damaged_memory_of_it_again(monkeypatch, capsys):
    words = ("--config.batch_size=88", "--config.mesh.tensor=2")
    run(*words)
    first, compiled = capsys.readouterr().out, []
    compile = jax.stages.Lowered.compile

    def counted(lowered, *args, **kwargs):
        compiled.append(1)
        return compile(lowered, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", counted)
    run(*words)
    assert capsys.readouterr().out == first
    assert not compiled
    for file in ahead.cache_folder().iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    run(*words)
    said = capsys.readouterr().out
    assert "is damaged" in said
    assert said.endswith(first.partition("\n")[2])
    assert compiled == [1]


def test_topologies_are_listed(capsys):
    assert preflight.main(["--topology=list"]) == 0
    said = capsys.readouterr().out
    assert "v5e:16x16" in said
    assert "gpu:8xH100" in said


@pytest.mark.slow
def test_the_largest_batch_is_where_the_line_meets_the_memory(monkeypatch, capsys):
    """A card with room for just what 22 windows a device need: 11 and 5 tell it within a tenth."""
    config = spaces.resolve(parse_argv([*TINY, "--config.batch_size=176"]).config)
    step = ahead.compiled(config, sharding.make_mesh(1, 8, 1), "gpu:8xH100")
    need = sum(step.memory.values()) / preflight.USABLE
    card = ahead.CHIPS["H100"]._replace(memory=need)
    monkeypatch.setitem(ahead.CHIPS, "H100", card)
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
