"""What a program moves, against programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest

from experiments.composition import traffic

KIB = 1024


def moved(function, *shapes: tuple[int, ...], donate=()) -> float:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return traffic.read(jax.jit(function, donate_argnums=donate).lower(*arrays).compile().as_text())


def test_a_fused_chain_reads_and_writes_once():
    """1 MiB each: two in, one out; nothing between."""
    size = (512, 512)
    assert moved(lambda a, b: jnp.tanh(a * b + 1) * a, size, size) == 3 * KIB * KIB


def test_a_product_reads_both_and_writes_its_result():
    assert moved(lambda a, b: a @ b, (256, 512), (512, 1024)) == 4 * (
        256 * 512 + 512 * 1024 + 256 * 1024
    )


def test_layers_of_a_loop_are_read_one_by_one():
    """Eight layers of 1 MiB: the stack is read once in all, whatever the loop, and the activations
    of every turn are written and read.
    """
    x, stack = (64, 512), (8, 512, 512)

    def run(x, stack):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, stack)[0]

    one = 4 * 64 * 512
    total = moved(run, x, stack)
    kernels = 8 * KIB * KIB
    # A copy of the kernel out of the stack (read, written, read) is the most a compiler may need.
    assert kernels + 16 * one <= total <= 3 * kernels + 40 * one


def test_writing_a_part_moves_the_part():
    def run(table, row):
        return jax.lax.dynamic_update_slice(table, row, (3, 0))

    total = moved(run, (4096, 256), (1, 256), donate=0)
    assert total < 16 * KIB, total  # the table has 4 MiB


TEXT = """
%fused (param_1.2: s32[], param_0.1: bf16[8,64,64]) -> bf16[64,64] {
  %param_1.2 = s32[] parameter(1)
  %param_0.1 = bf16[8,64,64]{2,1,0} parameter(0)
  %cut = bf16[1,64,64]{2,1,0} dynamic-slice(%param_0.1, %param_1.2), dynamic_slice_sizes={1,64,64}
  ROOT %flat = bf16[64,64]{1,0} bitcast(%cut)
}

%body (state: (s32[], bf16[8,64,64])) -> (s32[], bf16[8,64,64]) {
  %state = (s32[], bf16[8,64,64]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = bf16[8,64,64]{2,1,0} get-tuple-element(%state), index=1
  %layer = bf16[64,64]{1,0:S(1)} fusion(%stack, %i), kind=kLoop, calls=%fused
  ROOT %out = (s32[], bf16[8,64,64]{2,1,0}) tuple(%i, %stack)
}

%condition (state.1: (s32[], bf16[8,64,64])) -> pred[] {
  %state.1 = (s32[], bf16[8,64,64]{2,1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] constant(8)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (a: bf16[8,64,64]) -> bf16[8,64,64] {
  %a = bf16[8,64,64]{2,1,0} parameter(0)
  %start = (bf16[8,64,64]{2,1,0}, bf16[8,64,64]{2,1,0:S(1)}, u32[]{:S(2)}) copy-start(%a)
  %done = bf16[8,64,64]{2,1,0:S(1)} copy-done(%start)
  %zero = s32[] constant(0)
  %both = (s32[], bf16[8,64,64]{2,1,0}) tuple(%zero, %a)
  %loop = (s32[], bf16[8,64,64]{2,1,0}) while(%both), condition=%condition, body=%body
  ROOT %last = bf16[8,64,64]{2,1,0} get-tuple-element(%loop), index=1
}
"""


def test_vector_memory_is_not_the_chips_memory():
    """A TPU's text: a copy into S(1) reads 64 KiB; each of eight turns reads a layer of 8 KiB, and
    four bytes of the counter three times, once in the condition's product of one.
    """
    layers, copied = 8 * 64 * 64 * 2, 8 * 64 * 64 * 2
    assert traffic.read(TEXT) == pytest.approx(layers + copied, abs=8 * 16)
