"""Sequences of many lengths in rows of one: packed one after the other, kept apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def pack(
    examples: Sequence[Mapping[str, Any]],
    seq_len: int,
    *,
    fill: Mapping[str, Any] | None = None,
    longest_first: bool = False,
) -> dict[str, np.ndarray]:
    """Packs examples into rows: arrays [length] by name -> arrays [rows, seq_len].

    Each example goes, in order, into the first row that has room for all of it: the
    same examples always give the same rows. `longest_first` orders them by length
    before, which leaves fewer gaps. Beside the examples' own arrays there are
    `segment_ids`, 1, 2, ... along a row and 0 where it is empty, and `positions`, from
    0 in each example and -1 where the row is empty: what `models.Decoder` and
    `nn.Attention` take. Empty places hold `fill[name]`, else 0.

    Targets are shifted before packing, so that none is of the next example. Raises
    ValueError for an example that is empty or longer than a row, or whose arrays differ
    in length or names from the rest.

    >>> rows = pack([{"inputs": [5, 6, 7]}, {"inputs": [8, 9]}, {"inputs": [4]}], 4)
    >>> rows["inputs"].tolist(), rows["positions"].tolist()
    ([[5, 6, 7, 4], [8, 9, 0, 0]], [[0, 1, 2, 0], [0, 1, -1, -1]])
    """
    lengths = _lengths(examples, seq_len)
    order = np.arange(len(lengths))
    if longest_first:
        order = np.argsort(-lengths, kind="stable")
    rows, starts, number = _places(lengths, order, seq_len)
    return _filled(examples, order, rows, starts, (number, seq_len), fill or {})


def pad(
    examples: Sequence[Mapping[str, Any]],
    seq_len: int,
    *,
    fill: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """As `pack`, but each example has a row to itself, in order: [examples, seq_len].

    >>> pad([{"x": [5, 6, 7]}, {"x": [8]}], 4)["x"].tolist()
    [[5, 6, 7, 0], [8, 0, 0, 0]]
    """
    count = len(_lengths(examples, seq_len))
    rows, starts = np.arange(count), np.zeros(count, int)
    return _filled(examples, rows, rows, starts, (count, seq_len), fill or {})


def _filled(examples, order, rows, starts, shape, fill) -> dict[str, np.ndarray]:
    packed = {}
    for name, first in examples[0].items():
        dtype = np.asarray(first).dtype
        dtype = np.int32 if dtype == np.int64 else dtype
        packed[name] = np.full(shape, fill.get(name, 0), dtype)
    packed["segment_ids"] = np.zeros(shape, np.int32)
    packed["positions"] = np.full(shape, -1, np.int32)
    segments = np.zeros(shape[0], np.int32)
    for index in order:
        row, example = rows[index], examples[index]
        length = len(next(iter(example.values())))
        place = slice(starts[index], starts[index] + length)
        segments[row] += 1
        packed["segment_ids"][row, place] = segments[row]
        packed["positions"][row, place] = np.arange(length)
        for name, values in example.items():
            packed[name][row, place] = values
    return packed


def _lengths(examples: Sequence[Mapping[str, Any]], seq_len: int) -> np.ndarray:
    if not len(examples):
        raise ValueError("examples: expected at least one, got none")
    names = set(examples[0])
    if not names or names & {"segment_ids", "positions"}:
        raise ValueError(
            "examples: expected names of their own, and neither segment_ids nor "
            f"positions, got {sorted(names)}"
        )
    lengths = []
    for index, example in enumerate(examples):
        if set(example) != names:
            raise ValueError(
                f"example {index}: expected {sorted(names)}, got {sorted(example)}"
            )
        shapes = {name: np.shape(values) for name, values in example.items()}
        shape, *others = set(shapes.values())
        if others or len(shape) != 1 or not 0 < shape[0] <= seq_len:
            raise ValueError(
                f"example {index}: expected arrays of one length from 1 to "
                f"seq_len={seq_len}, got {shapes}; cut it or leave it out"
            )
        lengths.append(shape[0])
    return np.array(lengths)


def _places(lengths: np.ndarray, order: Any, seq_len: int):
    """The row and the start of each example, and the number of rows: first fit.

    `room` is a tree over the rows: a node has the most room of any row below it, so
    the first row with enough is found in as many steps as the tree is high.
    """
    leaves = 1 << max(len(lengths) - 1, 0).bit_length()
    room = [seq_len] * (2 * leaves)
    rows, starts = np.zeros_like(lengths), np.zeros_like(lengths)
    for index in order:
        node, length = 1, int(lengths[index])
        while node < leaves:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        rows[index], starts[index] = node - leaves, seq_len - room[node]
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows, starts, int(rows.max()) + 1
