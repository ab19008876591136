"""FAST's vocabulary, beside scipy's DCT and a byte-pair encoder written out by hand."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.fft import dct, idct

from vla_jax.models import fast_vocabulary
from vla_jax.models.fast_vocabulary import FastVocabulary, check_fits, fit, of_json, read

K, NAMES = 8, ("x", "y", "gripper")
DATA = "0123456789abcdef"


def smooth(n: int, seed: int = 0) -> np.ndarray:
    """Chunks as a robot's are: slow waves, and a gripper that changes once."""
    rng = np.random.default_rng(seed)
    t = np.arange(K)[None, :, None]
    waves = np.sin(0.3 * t * rng.uniform(0.2, 1, (n, 1, 2)) + rng.uniform(0, 6, (n, 1, 2)))
    gripper = np.where(t > rng.integers(0, 2 * K, (n, 1, 1)), 1.0, -1.0)
    return np.concatenate([0.8 * waves, gripper], axis=2).astype(np.float32)


@pytest.fixture(scope="module")
def vocabulary() -> FastVocabulary:
    return fit(smooth(400), NAMES, DATA, scale=10.0, tokens=160)


def merged_by_hand(numbers: list[int], vocabulary: FastVocabulary) -> list[int]:
    """The pair that was learnt first merges first, and of equal ones the leftmost."""
    index = {piece: i for i, piece in enumerate(vocabulary.pieces)}
    ranks = {pair: rank for rank, pair in reversed([*enumerate(vocabulary.merges)])}
    string = [index[(number,)] for number in numbers]
    while True:
        found = [
            (ranks[pair], i) for i, pair in enumerate(itertools.pairwise(string)) if pair in ranks
        ]
        if not found:
            return string
        i = min(found)[1]
        whole = vocabulary.pieces[string[i]] + vocabulary.pieces[string[i + 1]]
        string[i : i + 2] = [index[whole]]


def test_numbers_are_scipys_dct(vocabulary: FastVocabulary) -> None:
    values = smooth(50, seed=1)
    expected = np.around(dct(values.astype(np.float64), axis=1, norm="ortho") * 10)
    numbers = vocabulary.quantised(values)
    inside = np.clip(expected.reshape(50, -1), vocabulary.low, vocabulary.high)
    np.testing.assert_array_equal(numbers, inside)  # low frequencies first, dims side by side
    assert (inside == expected.reshape(50, -1)).mean() > 0.99
    restored = idct(numbers.reshape(50, K, 3) / 10, axis=1, norm="ortho")
    np.testing.assert_allclose(vocabulary.values(numbers), restored, atol=1e-12)


def test_a_round_trip_loses_the_rounding_alone(vocabulary: FastVocabulary) -> None:
    values = smooth(50, seed=2)
    numbers = vocabulary.quantised(values)
    for string, row, chunk in zip(vocabulary.encode(values), numbers, values, strict=True):
        assert [x for token in string for x in vocabulary.pieces[token]] == row.tolist()
        decoded = vocabulary.decode([*string, vocabulary.end, 7])
        np.testing.assert_array_equal(decoded, vocabulary.values(row[None])[0])
        again = vocabulary.encode(decoded[None])[0]
        assert again == string
        # Half a step in each coefficient, in an orthonormal basis.
        assert np.linalg.norm(decoded - chunk, axis=0).max() <= 0.5 * K**0.5 / 10 + 1e-6


def test_pieces_are_those_of_byte_pair_encoding(vocabulary: FastVocabulary) -> None:
    values = smooth(40, seed=3)
    strings = vocabulary.encode(values)
    assert strings == [
        merged_by_hand(row, vocabulary) for row in vocabulary.quantised(values).tolist()
    ]
    assert np.mean([len(string) for string in strings]) < 0.6 * vocabulary.numbers
    assert max(len(piece) for piece in vocabulary.pieces) > 2
    assert len(set(vocabulary.pieces)) == vocabulary.end == vocabulary.size - 1
    assert vocabulary.size == 160


def test_fitting_is_deterministic_and_writes_what_it_reads(
    vocabulary: FastVocabulary, tmp_path: Path
) -> None:
    assert fit(smooth(400), NAMES, DATA, 10.0, 160) == vocabulary
    file = tmp_path / "fast.json"
    file.write_text(json.dumps(vocabulary.to_json()))
    assert read(file) == vocabulary
    assert hash(read(file)) == hash(vocabulary)


def test_written_strings_end_and_are_padded(vocabulary: FastVocabulary) -> None:
    values = smooth(5, seed=4)
    strings = vocabulary.encode(values)
    tokens, there = vocabulary.write(values, most=25)
    for row, mask, string in zip(tokens, there, strings, strict=True):
        assert row.tolist() == string + [vocabulary.end] * (25 - len(string))
        assert mask.tolist() == [True] * (len(string) + 1) + [False] * (24 - len(string))
    longest = max(map(len, strings))
    assert vocabulary.write(values, most=longest + 1)[0].shape == (5, longest + 1)
    with pytest.raises(ValueError, match=rf"model\.fast\.most: expected at least {longest + 1}"):
        vocabulary.write(values, most=longest)
    assert vocabulary.write(values[:0], most=4)[0].shape == (0, 4)


def test_numbers_beyond_the_range_are_its_ends(vocabulary: FastVocabulary) -> None:
    far = np.full((1, K, 3), 9.0, np.float32)
    assert vocabulary.quantised(far).max() == vocabulary.high
    assert vocabulary.decode([*vocabulary.encode(far)[0], vocabulary.end]).shape == (K, 3)


@pytest.mark.parametrize(
    ("string", "message"),
    [
        (lambda good, v: good, "expected the end token 159, got none"),
        (lambda good, v: [*good[:-1], v.end], "expected 24 numbers, got"),
        (lambda good, v: [*good, 0, v.end], "expected 24 numbers, got 25"),
        (lambda good, v: [500, v.end], "expected tokens below 160, got 500"),
        (lambda good, v: [-1, v.end], "got -1"),
        (lambda good, v: [], "got none"),
    ],
)
def test_strings_that_are_not_whole_are_refused(vocabulary, string, message) -> None:
    good = vocabulary.encode(smooth(1, seed=5))[0]
    with pytest.raises(ValueError, match=message):
        vocabulary.decode(string(good, vocabulary))


@pytest.mark.parametrize(
    "bad", [np.full((1, K, 3), np.nan), np.zeros((1, K, 2)), np.zeros((1, 7, 3))]
)
def test_other_chunks_are_refused(vocabulary: FastVocabulary, bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected finite chunks of 8 steps of x, y, gripper"):
        vocabulary.encode(bad)


def test_a_vocabulary_of_other_data_is_refused(vocabulary: FastVocabulary) -> None:
    check_fits(vocabulary, K, NAMES, DATA, "fast.json")
    for other, message in (
        ((4, NAMES, DATA), "expected chunks of 4, got 8"),
        ((K, ("x", "y", "z"), DATA), "expected the dims x, y, z, got x, y, gripper"),
        ((K, NAMES, "ffff"), "expected data with the statistics ffff, got 0123456789ab"),
    ):
        with pytest.raises(ValueError, match=f"fast.json is of other data: {message}"):
            check_fits(vocabulary, *other, "fast.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "of format 2; fit it again"),
        ({"more": 1}, "with the fields chunk, names"),
        ({"scale": "10"}, "is no FAST vocabulary"),
        ({"chunk": 8.5}, "is no FAST vocabulary"),
        ({"merges": [[0, 1], [0, 9_999]]}, "is no FAST vocabulary"),
        ({"merges": [[-1, 1]]}, "is no FAST vocabulary"),
        ({"high": 60_000}, "is no FAST vocabulary"),
        ({"low": 99}, "is no FAST vocabulary"),
    ],
)
def test_a_file_that_is_not_as_written_is_refused(vocabulary, change, message) -> None:
    with pytest.raises(ValueError, match=f"here: .*{message}"):
        of_json({**vocabulary.to_json(), **change}, "here")


def test_what_is_no_file_of_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a FAST vocabulary in JSON"):
        read(tmp_path / "none.json")
    with pytest.raises(ValueError, match="got list"):
        of_json([], "here")


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model\.fast\.tokens: expected at least \d+, one for each"
    ):
        fit(smooth(10), NAMES, DATA, 10.0, 20)
    with pytest.raises(ValueError, match="expected chunks to fit on, got none"):
        fit(smooth(0), NAMES, DATA, 10.0, 200)


def test_few_data_make_a_smaller_vocabulary() -> None:
    small = fit(smooth(2), NAMES, DATA, 10.0, 4_000)
    assert small.high - small.low + 2 <= small.size < 1_000
    assert of_json(small.to_json(), "here") == small
    assert fast_vocabulary.basis(1).tolist() == [[1.0]]
