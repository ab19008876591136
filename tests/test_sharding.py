"""The mesh, the resolver, and the rows of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vla_jax import sharding


def shapes(**sizes):
    return {name: jax.ShapeDtypeStruct(size, jnp.float32) for name, size in sizes.items()}


def test_mesh_fills_the_rest_and_uses_auto_axes():
    mesh = sharding.make_mesh(-1, 2, 2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
    assert sharding.make_mesh(1, 1, 1, jax.devices()[:1]).size == 1


@pytest.mark.parametrize("shape", [(3, 1, 1), (-1, -1, 2), (-1, 3, 1), (0, 8, 1), (-2, 2, 2)])
def test_mesh_refuses_a_wrong_product(shape):
    with pytest.raises(ValueError, match="expected data x fsdp x tensor to give 8 devices"):
        sharding.make_mesh(*shape)


def test_rules_first_come_and_replicate_when_indivisible():
    mesh = sharding.make_mesh(2, 2, 2)
    logical = {
        "stacked": (None, "embed", "mlp"),
        "square": ("embed", "vision"),  # both want fsdp: the first gets it
        "odd": ("embed", "mlp"),
        "gain": (None, "embed"),
    }
    out = sharding.resolve(
        shapes(stacked=(3, 8, 4), square=(4, 4), odd=(3, 4), gain=(3, 8)), logical, mesh
    )
    assert {name: s.spec for name, s in out.items()} == {
        "stacked": P(None, "fsdp", "tensor"),
        "square": P("fsdp"),
        "odd": P(None, "tensor"),
        "gain": P(None, "fsdp"),
    }


def test_large_parameters_must_be_split_over_fsdp():
    mesh = sharding.make_mesh(2, 2, 2)
    out = sharding.resolve(shapes(w=(3, 8)), {"w": ("embed", "mlp")}, mesh, large=64)
    assert out["w"].spec == P(None, ("tensor", "fsdp"))
    with pytest.raises(ValueError, match=r"head/w of shape \[3, 6\]"):
        sharding.resolve(shapes(**{"head/w": (3, 6)}), {"head/w": ("embed", "mlp")}, mesh, large=64)
    with pytest.raises(
        ValueError, match="large and no named axis"
    ):  # the layer axis is never split
        sharding.resolve(shapes(w=(8, 3)), {"w": (None, "embed")}, mesh, large=64)


def test_a_plan_needs_no_devices():
    mesh = jax.sharding.AbstractMesh((4, 64, 1), sharding.AXES)
    given = shapes(w=(128, 8))
    out = sharding.resolve(given, {"w": ("embed", "mlp")}, mesh)
    assert out["w"].spec == P("fsdp")
    assert "(fsdp)" in sharding.table(given, out)


def test_unknown_logical_axis_is_refused():
    with pytest.raises(ValueError, match="got emmbed"):
        sharding.resolve(shapes(w=(4,)), {"w": ("emmbed",)}, sharding.make_mesh(2, 2, 2))


def test_table_counts_bytes_per_device():
    mesh = sharding.make_mesh(2, 2, 2)
    given = shapes(kernel=(8, 4), bias=(3,))
    text = sharding.table(
        given, sharding.resolve(given, {"kernel": ("embed", "mlp"), "bias": (None,)}, mesh)
    )
    assert "(fsdp, tensor)" in text
    assert text.splitlines()[1].endswith(" 32")
    assert text.splitlines()[-1].startswith("total: 35 parameters, 140 bytes, 44 bytes per device")


def test_slices_carry_the_data_axis():
    class Device:
        platform = device_kind = "fake"

        def __init__(self, index):
            self.id, self.slice_index, self.process_index = index, index // 4, index // 4

    devices = [Device(i) for i in range(8)]
    grid = sharding._arrange((2, 4, 1), devices)
    assert [{d.slice_index for d in part.flat} for part in grid] == [{0}, {1}]
    grid = sharding._arrange((1, 8, 1), devices)  # data has too few parts: fsdp spans the slices
    assert [d.slice_index for d in grid.flat] == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match="cannot be laid over 2 slices"):
        sharding._arrange((1, 1, 8), devices)


def test_an_axis_of_the_mesh_may_take_a_part_of_a_torus() -> None:
    """64 of a v5e-256, whose sides are 16, hold the parameters, four times."""

    class Chip:
        platform, device_kind, core_on_chip, slice_index = "tpu", "TPU v5 lite", 0, 0

        def __init__(self, index: int) -> None:
            self.id, self.coords, self.process_index = index, (index % 16, index // 16, 0), 0

    grid = sharding._arrange((4, 64, 1), [Chip(i) for i in range(256)])
    assert grid.shape == (4, 64, 1)
    assert len({chip.id for chip in grid.flat}) == 256
    for part in grid:  # a block of the torus, not chips from all over it
        places = np.array([chip.coords for chip in part.flat])
        assert np.prod(np.ptp(places, axis=0) + 1) == 64, places


def test_batch_goes_to_its_rows():
    mesh = sharding.make_mesh(2, 2, 2)
    assert sharding.rows(mesh, 8).tolist() == list(range(8))
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    out = sharding.global_batch({"x": x}, mesh, 8)["x"]
    np.testing.assert_array_equal(np.asarray(out), x)
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 3)}
    with pytest.raises(ValueError, match="multiple of data x fsdp = 4, got 6"):
        sharding.rows(mesh, 6)
    with pytest.raises(ValueError, match="expected the 8 rows"):
        sharding.global_batch({"x": x[:4]}, mesh, 8)


def test_own_rows_need_not_start_at_zero(monkeypatch):
    """A process that owns rows 4..7 hands over its four local rows."""
    mesh = sharding.make_mesh(2, 1, 1, jax.devices()[:2])
    monkeypatch.setattr(sharding, "rows", lambda mesh, batch_size: np.arange(4, 8))
    pieces = {}

    def record(shape, sharding_, piece):
        pieces["last"] = piece((slice(4, 8), slice(None)))
        return jnp.asarray(pieces["last"])

    monkeypatch.setattr(jax, "make_array_from_callback", record)
    sharding.global_batch(np.arange(4)[:, None], mesh, 8)
    assert pieces["last"][:, 0].tolist() == [0, 1, 2, 3]
