"""What sharded programs send: the real train step of every family, compiled, holds no collective
over the batch.
"""

import contextlib
import os
import subprocess
import sys

import jax
import pytest

from experiments.composition import spaces, steps
from experiments.composition.collectives import carries_batch, read
from experiments.composition.config import parse_argv
from vla_jax import sharding

PRIME = 11  # divides no size of a tiny model: an axis that it divides is one of the batch


def line(kind: str, shapes: str, groups: str) -> str:
    return f'  %x.1 = {shapes} {kind}(%y), channel_id=3, {groups}, metadata={{op_name="jit(a)/b"}}'


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return sharding.make_mesh(2, 2, 2)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", ("fsdp",)),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[4,2]<=[4,2]T(1,0)", ("fsdp",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("data", "fsdp")),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ("data",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", ("fsdp", "tensor")),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1':(1)2}", ("fsdp",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1':(2)2}", ("tensor",)),
        (
            "replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_0'}",
            ("fsdp",),
        ),
        ("source_target_pairs={{0,4},{4,0}}", ("data",)),
    ],
)
def test_along_which_axes_devices_exchange(groups, axes, mesh):
    (only,) = read(line("all-gather", "f32[22,64]{1,0}", groups), mesh)
    assert (only.kind, only.arrays, only.source) == ("all-gather", (("f32", (22, 64)),), "jit(a)/b")
    assert only.axes == axes


def test_every_array_of_a_tuple_counts(mesh):
    shapes = "(bf16[3,2]{1,0:T(8,128)(2,1)}, /*index=5*/f32[]{:T(128)})"
    text = "\n".join(
        [
            line("all-reduce-start", shapes, "replica_groups=[1,8]<=[8]"),
            "  %x.2 = f32[3]{0} all-reduce-done(%x.1)",
            line("all-reduce", "f32[5]{0}", "replica_groups=[8,1]<=[8]"),  # moves nothing
        ]
    )
    (only,) = read(text, mesh)
    assert (only.kind, only.bytes, len(only.arrays)) == ("all-reduce", 16, 2)


PROGRAM = """HloModule jit_step

%body.1 (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g.1 = f32[64]{0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8]
}

%cond.1 (x: (s32[], f32[8])) -> pred[] {
  %c.1 = s32[]{:T(128)} constant(18)
}

%inner.2 (x: f32[8]) -> f32[8] {
  %g.2 = f32[64]{0} all-gather(%p), channel_id=2, replica_groups=[1,8]<=[8]
}

%piece.3 (x: f32[8]) -> f32[8] {
  %g.3 = f32[64]{0} all-gather(%p), channel_id=2, replica_groups=[1,8]<=[8]
}

%body.4 (x: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f.1 = f32[8]{0} fusion(%p), kind=kCustom, calls=%inner.2
  %f.2 = f32[8]{0} fusion(%p), kind=kCustom, calls=%piece.3
}

%all-reduce-scatter.5 (x: f32[64,3]) -> f32[8,3] {
  %r.1 = f32[64,3]{1,0} all-reduce(%x), channel_id=3, replica_groups=[1,8]<=[8], to_apply=%add
}

ENTRY %main.6 (x: f32[8]) -> f32[8] {
  %w.1 = (s32[], f32[8]) while(%t), condition=%cond.1, body=%body.1
  %w.2 = (s32[], f32[8]) while(%t), condition=%c, body=%body.4, x={"known_trip_count":{"n":"5"}}
  %f.3 = f32[8,3]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.5
}
"""


def test_loops_pieces_and_a_tpus_reduce_scatter(mesh):
    looped, pieces, scattered = read(PROGRAM, mesh)
    assert (looped.times, looped.sent) == (18, 18 * 256 * 7 / 8)
    assert pieces.times == 5  # the second piece is the same one
    assert (scattered.kind, scattered.arrays) == ("reduce-scatter", (("f32", (8, 3)),))
    assert scattered.sent == 7 * 8 * 3 * 4


def test_groups_that_cannot_be_read_are_shown(mesh):
    with pytest.raises(ValueError, match=r"groups or pairs of devices, got: .*somehow"):
        read(line("all-reduce", "f32[5]{0}", "replica_groups=somehow"), mesh)


def config_of(words: str, shape: tuple[int, int, int], *fields: str):
    data, fsdp, tensor = shape
    sizes = (f"mesh.data={data}", f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}")
    batch = PRIME * data * fsdp * (2 if "accum=2" in fields else 1)
    given = ("model.layers=scan", "model.remat=full", f"batch_size={batch}", *sizes, *fields)
    argv = [f"--config={words}", *(f"--config.{field}" for field in given)]
    return spaces.resolve(parse_argv(argv).config)


def moved(words: str, shape: tuple[int, int, int], *fields: str, evaluate: bool = False):
    """The collectives that carry activations of several devices' windows, and the number of all."""
    config, mesh = config_of(words, shape, *fields), sharding.make_mesh(*shape)
    traced = steps.trace(config, steps.plan(config, mesh), evaluate)
    found = read(traced.lower().compile().as_text(), mesh)
    return [x for x in found if carries_batch(x, PRIME, shape[0] * shape[1])], len(found)


FAMILIES = {
    "lstm": ("oxe_paligemma.py:tiny",),
    "gpt": ("oxe_paligemma.py:tiny,gpt",),
    "attention": ("oxe_paligemma.py:tiny,attention",),
    "flow": ("oxe_paligemma.py:tiny,flow",),
    "expert": ("oxe_paligemma.py:tiny,expert",),
    "expert of pi0.5": (
        "oxe_paligemma.py:tiny,expert",
        "model.proprio=True",
        "model.head_options=time='adaptive',state='expert',padded=32",
    ),
    "discrete": ("oxe_paligemma.py:tiny,discrete",),
    "fast": ("oxe_paligemma.py:tiny,fast",),
    "oft": ("oxe_paligemma.py:tiny,oft",),
    "oft, discrete": ("oxe_paligemma.py:tiny,oft", "model.head_options=readout='discrete'"),
    "by trial": ("oxe_paligemma.py:tiny,discrete", "rl.algorithm=grpo"),
    "flow by trial": ("oxe_paligemma.py:tiny,flow", "rl.algorithm=ppo"),
    "lora": ("oxe_paligemma.py:tiny,lora",),
    "interleaved": ("oxe_paligemma.py:tiny", "model.history=interleaved"),
    "growing": ("oxe_paligemma.py:tiny", "model.history_start=grow"),
    "robovlms_pre": (
        "oxe_paligemma.py:tiny",
        "model.history=interleaved",
        "model.layout=robovlms_pre",
        "model.history_start=grow",
    ),
    "convolutions, heat maps": (
        "oxe_paligemma.py:tiny",
        "model.variant=seeing",
        "model.keypoints.points=5",
        "objectives.sensed.weight=0.1",
        "objectives.sensed.sensor=scene=vector:1x4",
    ),
    "tasks": (
        "oxe_paligemma.py:tiny",
        *(f"objectives.{task}.weight=0.1" for task in ("forward", "caption", "text_align", "fast")),
    ),
    "robovlms layout, resampler, state, past action": (
        "oxe_paligemma.py:tiny",
        "model.layout=robovlms",
        "model.resampler.depth=1",
        "model.resampler.latents=4",
        "model.proprio=True",
        "model.past_action=True",
    ),
    "embodiment, sensors": (
        "oxe_paligemma.py:tiny",
        "model.embodiment=True",
        "model.sensors=imu=vector:10x6,front=scan:180,cloud=points:64x3",
    ),
    "accumulation": ("oxe_paligemma.py:tiny", "accum=2"),
    "unrolled, augmented": (
        "oxe_paligemma.py:tiny",
        "model.layers=unroll",
        "model.remat=none",
        "augment.crop_scale=(0.8,1.0)",
        "augment.hue=0.1",
    ),
    "kosmos2": ("calvin_kosmos.py:tiny",),
    "llava": ("oxe_llava.py:tiny",),
    "llava, its own output layer": ("oxe_llava.py:tiny,discrete",),
    "flamingo": ("calvin_flamingo.py:tiny",),
    "qwen3vl": ("oxe_qwen3vl.py:tiny", "model.history=interleaved"),
    "qwen3vl, discrete": ("oxe_qwen3vl.py:tiny,discrete",),
    "smolvlm": ("oxe_smolvlm.py:tiny",),
    "smolvlm, its own output layer": ("oxe_smolvlm.py:tiny,discrete",),
}


# Of these also with all devices along one axis: each backbone, and each way a head is taught.
ALONG_FSDP = (
    *("lstm", "expert", "discrete", "by trial", "interleaved", "tasks"),
    *("kosmos2", "llava", "flamingo", "qwen3vl", "smolvlm"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        *((family, (2, 2, 2)) for family in FAMILIES),
        *((family, (1, 8, 1)) for family in ALONG_FSDP),
    ],
    ids=str,
)
def test_no_activation_of_the_batch_is_communicated(family, shape):
    carrying, number = moved(FAMILIES[family][0], shape, *FAMILIES[family][1:])
    assert number > 5  # weights are
    assert carrying == []


@pytest.mark.parametrize(
    "family", ["lstm", *(pytest.param(x, marks=pytest.mark.slow) for x in ("discrete", "growing"))]
)
def test_nor_in_evaluation(family):
    carrying, number = moved(FAMILIES[family][0], (2, 2, 2), *FAMILIES[family][1:], evaluate=True)
    assert number > 5
    assert carrying == []


@pytest.mark.slow
def test_without_the_constraints_it_is(monkeypatch):
    monkeypatch.setattr(sharding, "activations_over", lambda mesh: contextlib.nullcontext())
    carrying, _ = moved("oxe_paligemma.py:tiny", (2, 2, 2), evaluate=True)
    assert len(carrying) > 5


TEMPORARIES = """
import sys
import jax
from experiments.composition import steps
from tests.experiments.composition.test_collectives import config_of
from vla_jax import sharding
for shape in ((1, 2, 1), (1, 16, 1), (1, 2, 2), (2, 4, 2)):
    config = config_of("oxe_paligemma.py:tiny", shape)
    mesh = sharding.make_mesh(*shape, jax.devices()[: shape[0] * shape[1] * shape[2]])
    compiled = steps.trace(config, steps.plan(config, mesh)).lower().compile()
    print(compiled.memory_analysis().temp_size_in_bytes)
"""


@pytest.mark.slow
def test_memory_of_a_device_does_not_grow_with_their_number():
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=16")
    run = subprocess.run(
        [sys.executable, "-c", TEMPORARIES],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    two, sixteen, two_by_two, eight_by_two = (int(number) for number in run.stdout.split())
    assert sixteen < 1.1 * two
    assert eight_by_two < 1.1 * two_by_two
