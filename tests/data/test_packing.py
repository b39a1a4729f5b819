from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from jaxdl import data

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=40)


def examples_of(lengths):
    """Examples in which every token is another number, from 1."""
    ends = np.cumsum(lengths)
    tokens = np.arange(1, ends[-1] + 1, dtype=np.int32)
    parts = np.split(tokens, ends[:-1])
    return [{"tokens": part, "halves": part / 2} for part in parts]


@given(LENGTHS, st.integers(9, 14), st.booleans())
def test_every_token_stands_once_in_a_row_of_its_own_segment(lengths, size, longest):
    examples = examples_of(lengths)
    rows = data.pack(examples, size, longest_first=longest)
    full = rows["segment_ids"] > 0
    assert all(array.shape == full.shape for array in rows.values())
    found = np.sort(rows["tokens"][full])
    np.testing.assert_array_equal(found, np.arange(1, sum(lengths) + 1))
    np.testing.assert_array_equal(rows["halves"], rows["tokens"] / 2)
    np.testing.assert_array_equal(rows["positions"] >= 0, full)
    segments = []
    for row in range(len(full)):
        ids = rows["segment_ids"][row]
        # Numbered from 1 in order, then the padding.
        number = ids.max()
        assert number >= 1 and (np.diff(ids[ids > 0]) >= 0).all()
        np.testing.assert_array_equal(np.unique(ids[ids > 0]), np.arange(1, number + 1))
        assert not full[row, np.count_nonzero(ids) :].any()
        for segment in range(1, number + 1):
            inside = ids == segment
            segments.append(rows["tokens"][row, inside].tolist())
            places = rows["positions"][row, inside]
            np.testing.assert_array_equal(places, np.arange(inside.sum()))
    wanted = [example["tokens"].tolist() for example in examples]
    assert sorted(segments) == wanted


@given(LENGTHS, st.integers(9, 14))
def test_each_goes_into_the_first_row_with_room(lengths, size):
    rows = data.pack(examples_of(lengths), size)
    room, expected = [], []
    for length in lengths:
        row = next((i for i, left in enumerate(room) if left >= length), len(room))
        if row == len(room):
            room.append(size)
        room[row] -= length
        expected.append(row)
    firsts = np.cumsum([1, *lengths[:-1]])
    found = [int(np.argwhere(rows["tokens"] == first)[0, 0]) for first in firsts]
    assert found == expected and len(rows["tokens"]) == len(room)


def test_the_same_examples_give_the_same_rows_and_padding_is_what_is_asked():
    examples = examples_of([3, 5, 2, 6])
    first, again = (data.pack(examples, 8, fill={"tokens": 99}) for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert (first["tokens"][first["segment_ids"] == 0] == 99).all()
    assert {str(first[name].dtype) for name in ("tokens", "positions")} == {"int32"}


def test_padded_rows_hold_one_example_each():
    rows = data.pad(examples_of([3, 1]), 4, fill={"tokens": -1})
    assert rows["tokens"].tolist() == [[1, 2, 3, -1], [4, -1, -1, -1]]
    assert rows["segment_ids"].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]
    assert rows["positions"].tolist() == [[0, 1, 2, -1], [0, -1, -1, -1]]


def test_many_examples_are_packed_in_no_time():
    lengths = np.random.default_rng(0).integers(1, 600, 20_000)
    rows = data.pack([{"x": np.ones(n, np.int8)} for n in lengths], 1024)
    assert rows["x"].sum() == lengths.sum()
    assert (rows["segment_ids"] > 0).mean() > 0.95


def test_examples_that_do_not_fit_are_refused_by_number():
    with pytest.raises(ValueError, match="expected at least one"):
        data.pack([], 8)
    with pytest.raises(ValueError, match="example 1: .*from 1 to seq_len=4"):
        data.pack([{"x": [1]}, {"x": [1] * 5}], 4)
    with pytest.raises(ValueError, match="example 0: .*one length"):
        data.pack([{"x": [1], "y": [1, 2]}], 4)
    with pytest.raises(ValueError, match="example 0: .*one length"):
        data.pack([{"x": []}], 4)
    with pytest.raises(ValueError, match=r"example 1: expected \['x'\], got \['y'\]"):
        data.pack([{"x": [1]}, {"y": [1]}], 4)
    with pytest.raises(ValueError, match="neither segment_ids nor positions"):
        data.pack([{"positions": [1]}], 4)
