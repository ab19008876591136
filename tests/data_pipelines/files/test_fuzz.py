"""Random and damaged TFRecord files and Example messages: the exact content or a ValueError,
nothing else.
"""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data_pipelines.files import tfrecord

SETTINGS = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=150,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture
    ],  # each example writes the file anew
)

INTS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20).map(lambda v: np.array(v, np.int64))
FLOATS = st.lists(st.floats(width=32), max_size=20).map(lambda v: np.array(v, np.float32))
BYTES = st.lists(st.binary(max_size=200), max_size=5)
FEATURES = st.dictionaries(st.text(max_size=8), st.one_of(INTS, FLOATS, BYTES), max_size=5)
RECORDS = st.lists(st.binary(max_size=60), min_size=1, max_size=4)


def content(data, features):
    """The features with byte strings instead of places."""
    return {
        key: [data[a : a + n] for a, n in zip(*value, strict=True)]
        if isinstance(value, tfrecord.Spans)
        else (value.dtype, value.tobytes())
        for key, value in features.items()
    }


def attempt(call):
    """(what a call returns, None), or (None, the ValueError it raises)."""
    try:
        return call(), None
    except ValueError as error:
        return None, error


def refused(path):
    """Whether reading all records of a file is refused, with a message that names it."""
    _, error = attempt(lambda: list(tfrecord.read(path)))
    assert error is None or (isinstance(error, tfrecord.Damaged) and str(path) in str(error))
    return error is not None


def check_places(data, features, error):
    """A message is refused as malformed, or all its byte strings lie inside it."""
    if error is not None:
        assert "malformed Example" in str(error)
        return
    for value in features.values():
        if isinstance(value, tfrecord.Spans):
            assert (
                (value.offset >= 0)
                & (value.length >= 0)
                & (value.offset + value.length <= len(data))
            ).all()


@pytest.mark.slow
@SETTINGS
@given(FEATURES)
def test_example_round_trip(features):
    data = tfrecord.encode(features)
    expected = {
        key: value if isinstance(value, list) else (value.dtype, value.tobytes())
        for key, value in features.items()
    }
    assert content(data, tfrecord.parse(data)) == expected
    for key in features:
        assert content(data, tfrecord.parse(data, {key})) == {key: expected[key]}


@SETTINGS
@given(st.binary(max_size=300))
@example(b"\x0a\x00")
@example(b"\x08\x01")  # the map as a number
@example(b"\x02\x00")  # field 0
@example(b"\xff" * 11)
def test_random_bytes_are_an_example_or_refused(data):
    check_places(data, *attempt(lambda: tfrecord.parse(data)))


@SETTINGS
@given(FEATURES.filter(bool), st.data())
def test_damaged_example_is_read_inside_its_bytes_or_refused(features, draw):
    data = bytearray(tfrecord.encode(features))
    if draw.draw(st.booleans()):
        data = data[: draw.draw(st.integers(0, len(data) - 1))]
    else:
        data[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    check_places(data, *attempt(lambda: tfrecord.parse(bytes(data))))


@SETTINGS
@given(RECORDS)
def test_records_round_trip(tmp_path, records):
    path = tmp_path / "file"
    assert tfrecord.write(path, records) == path.stat().st_size
    read = list(tfrecord.read(path))
    assert [record.data for record in read] == records
    assert [record.number for record in read] == list(range(len(records)))
    body = path.read_bytes()
    assert all(body[r.offset : r.offset + len(r.data)] == r.data for r in read)


@SETTINGS
@given(RECORDS, st.data())
def test_no_flipped_bit_is_accepted(tmp_path, records, draw):
    path = tmp_path / "file"
    tfrecord.write(path, records)
    body = bytearray(path.read_bytes())
    body[draw.draw(st.integers(0, len(body) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    path.write_bytes(body)
    assert refused(path)


@SETTINGS
@given(RECORDS, st.data())
def test_a_cut_leaves_whole_records_or_is_refused(tmp_path, records, draw):
    path = tmp_path / "file"
    size = tfrecord.write(path, records)
    keep = draw.draw(st.integers(0, size - 1))
    path.write_bytes(path.read_bytes()[:keep])
    ends = np.cumsum([0, *(len(record) + 16 for record in records)]).tolist()
    if keep in ends:
        assert [record.data for record in tfrecord.read(path)] == records[: ends.index(keep)]
    else:
        assert refused(path)


@SETTINGS
@given(st.binary(min_size=1, max_size=300))
@example(
    struct.pack("<QI", 2**63, tfrecord.masked_crc(struct.pack("<Q", 2**63)))
)  # a length no file has
def test_random_files_are_refused(tmp_path, body):
    path = tmp_path / "file"
    path.write_bytes(body)
    assert refused(path)


@SETTINGS
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=2, max_size=4), st.data())
def test_records_after_a_damaged_one_are_still_found(tmp_path, records, draw):
    path = tmp_path / "file"
    tfrecord.write(path, records)
    bad = draw.draw(st.integers(0, len(records) - 1))
    body = bytearray(path.read_bytes())
    body[sum(len(record) + 16 for record in records[:bad]) + 12] ^= 1
    path.write_bytes(body)
    reported = []
    numbers = [record.number for record in tfrecord.read(path, reported.append)]
    assert numbers == [i for i in range(len(records)) if i != bad]
    assert [error.record for error in reported] == [bad]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({"kind": 2, "list": b"\x0a\x03abc"}, "floats"),  # 3 bytes of floats
        ({"kind": 1, "list": b"\x08\x07"}, "wrong wire type"),  # a number among byte strings
        ({"kind": 3, "list": b"\x0a\x01\xff"}, "varint does not end"),
        ({"kind": 3, "list": b"\x0a\x0b" + b"\x80" * 10 + b"\x01"}, "longer than 10 bytes"),
    ],
)
def test_values_that_contradict_their_kind_are_refused(body, what):
    feature = bytes([body["kind"] << 3 | 2, len(body["list"])]) + body["list"]
    entry = b"\x0a\x01k\x12" + bytes([len(feature)]) + feature
    message = b"\x0a" + bytes([len(entry)]) + entry
    with pytest.raises(ValueError, match=f"malformed Example: .*{what}"):
        tfrecord.parse(b"\x0a" + bytes([len(message)]) + message)


def test_two_lists_in_a_feature_are_refused():
    feature = b"\x0a\x00\x1a\x00"  # byte strings and integers
    entry = b"\x0a\x01k\x12" + bytes([len(feature)]) + feature
    message = b"\x0a" + bytes([len(entry)]) + entry
    with pytest.raises(ValueError, match="more than one list"):
        tfrecord.parse(b"\x0a" + bytes([len(message)]) + message)


def test_field_number_0_is_refused():
    with pytest.raises(ValueError, match="field number 0"):
        tfrecord.parse(b"\x02\x00")


def test_a_feature_that_stands_twice_is_refused():
    one = tfrecord.encode({"a": np.arange(3)})
    with pytest.raises(ValueError, match="'a' stands there twice"):
        tfrecord.parse(one + one)
