"""The wire: what goes in comes out, and nothing that a stranger sends does more than raise
ValueError.
"""

from __future__ import annotations

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_jax.robot.client import pack, unpack

DTYPES = ("|b1", "|u1", "<i2", "<i8", "<f2", "<f4", ">f8")


def array(dtype: object, shape: object, data: object) -> bytes:
    return msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (2, 3, 4)])
def test_arrays_arrive_as_they_were(dtype: str, shape: tuple[int, ...]) -> None:
    sent = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    received = unpack(pack({"x": sent}))["x"]
    assert received.dtype == sent.dtype
    assert received.shape == sent.shape
    np.testing.assert_array_equal(received, sent)


def test_views_arrive_as_they_look() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2, ::-1]
    np.testing.assert_array_equal(unpack(pack(image)), image)


def test_numbers_of_numpy_become_plain_ones() -> None:
    received = unpack(
        pack({"a": np.float64(0.5), "b": np.int64(3), "c": np.bool_(True), "d": None, "e": "가"})
    )
    assert received == {"a": 0.5, "b": 3, "c": True, "d": None, "e": "가"}
    assert type(received["a"]) is float


def test_numpy_scalars_as_openpi_sends_them() -> None:
    sent = {b"__npgeneric__": True, b"data": np.float32(0.25).tobytes(), b"dtype": "<f4"}
    assert unpack(msgpack.packb({"x": sent}))["x"] == 0.25
    assert unpack(msgpack.packb({"x": {**sent, b"data": 0.25}}))["x"] == 0.25


@pytest.mark.parametrize(
    "value",
    [np.array(["a"]), np.array([None]), np.array([1j]), np.array(["2026"], "M8[Y]"), {1, 2}],
)
def test_other_values_are_not_sent(value: object) -> None:
    with pytest.raises(ValueError, match="message: expected"):
        pack({"x": value})


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("|O", [1], b"\0" * 8),
        ("<f4", [2], b"\0" * 4),
        ("<f4", [1 << 30, 1 << 30], b""),
        ("<f4", [-1], b"\0" * 4),
        ("<f4", [1] * 9, b"\0" * 4),
        ("<f4", [True], b"\0" * 4),
        ("<f4", [1.0], b"\0" * 4),
        ("<f4", "1", b"\0" * 4),
        ("<f4", [1], "text"),
        ("<f4", [1], None),
        ("<f3", [1], b"\0" * 3),
        ("<f4,<f4", [1], b"\0" * 8),
        ("M8[s]", [1], b"\0" * 8),
        (4, [1], b"\0" * 4),
        (None, None, None),
    ],
)
def test_arrays_that_do_not_fit_are_refused(dtype: object, shape: object, data: object) -> None:
    with pytest.raises(
        ValueError, match="message: array: expected dtype, shape and data that belong together"
    ):
        unpack(array(dtype, shape, data))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "expected one msgpack message"),
        (pack({"x": np.zeros(9)})[:-1], "expected one msgpack message"),
        (pack({"x": 1}) + b"\0", "got ExtraData"),
        (b"\x91" * 100_000, "expected one msgpack message, got StackError"),
        (b"\x81\x91\x01\x01", "expected one msgpack message"),  # a list as a key
        (b"\xdc\x04\x01" + b"\x80" * 1025, "expected at most 1000 maps and lists, got more"),
        (b"\xdc\x04\x01" + b"\x90" * 1025, "expected at most 1000 maps and lists, got more"),
    ],
)
def test_what_is_not_one_message_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        unpack(data)


def test_the_limit_is_in_bytes() -> None:
    data = pack({"x": 1})
    assert unpack(data, len(data)) == {"x": 1}
    with pytest.raises(
        ValueError, match=f"expected at most {len(data) - 1} bytes, got {len(data)}"
    ):
        unpack(data, len(data) - 1)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 255))
def test_strangers_bytes_raise_nothing_but_valueerror(noise: bytes, place: int, byte: int) -> None:
    valid = bytearray(
        pack(
            {
                "type": "act",
                "images": {"primary": np.zeros((2, 2, 3), np.uint8)},
                "x": [1, 0.5, None],
            }
        )
    )
    valid[place % len(valid)] = byte
    for data in (noise, bytes(valid)):
        with contextlib.suppress(ValueError):
            unpack(data)
