"""TFRecord and Example on the wire; test_rlds.py has damaged files."""

import struct

import numpy as np
import pytest

from data_pipelines.files import tfrecord


def test_masked_crc_is_that_of_the_format():
    # The CRC-32C check value of "123456789" is e3069283; rotated by 15 and shifted by the constant
    # of the format.
    expected = ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    assert tfrecord.masked_crc(b"123456789") == expected


def test_example_round_trip():
    features = {
        "bytes": [b"", b"abc", b"x" * 300],
        "floats": np.array([1.5, -2, 3e8], np.float32),
        "ints": np.array([0, 1, -1, 2**62, -(2**63)]),
        "none": [],
    }
    data = tfrecord.encode(features)
    parsed = tfrecord.parse(data)
    assert [data[a : a + n] for a, n in zip(*parsed["bytes"], strict=True)] == features["bytes"]
    np.testing.assert_array_equal(parsed["floats"], features["floats"])
    np.testing.assert_array_equal(parsed["ints"], features["ints"])
    assert set(tfrecord.parse(data, {"ints"})) == {"ints"}


def test_unpacked_numbers_are_read():
    floats = b"".join(b"\x0d" + struct.pack("<f", v) for v in (1.0, 2.5))
    ints = b"\x08\x07\x08\x80\x01"

    def entry(key, kind, body):
        feature = bytes([kind << 3 | 2, len(body)]) + body
        inner = b"\x0a" + bytes([len(key)]) + key + b"\x12" + bytes([len(feature)]) + feature
        return b"\x0a" + bytes([len(inner)]) + inner

    body = entry(b"f", 2, floats) + entry(b"i", 3, ints)
    parsed = tfrecord.parse(b"\x0a" + bytes([len(body)]) + body)
    assert parsed["f"].tolist() == [1.0, 2.5]
    assert parsed["i"].tolist() == [7, 128]


def test_malformed_example_is_refused():
    data = tfrecord.encode({"a": np.arange(3.0)})
    for damaged in (data[:-2], data[:1] + b"\xff" * 11):
        with pytest.raises(ValueError, match="malformed Example"):
            tfrecord.parse(damaged)
