"""Prompts of different lengths as one array, padded on the left."""

from typing import Any, NamedTuple

import numpy as np


class Prompts(NamedTuple):
    """Rows of tokens that end together: int32 [batch, width], and how many are real."""

    tokens: np.ndarray
    lengths: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """Where each token stands, int32 [batch, width]; padding is below 0."""
        width = self.tokens.shape[1]
        return (np.arange(width) - (width - self.lengths)[:, None]).astype(np.int32)


def left_padded(prompts: Any, *, multiple: int = 1, pad: int = 0) -> Prompts:
    """Rows of token ids, of any lengths, as one array whose width is a `multiple`.

    `prompts` is a list of lists or int [batch, seq]. Raises ValueError where a row is
    empty, TypeError where there are no whole numbers.

    >>> left_padded([[5, 6, 7], [8]]).tokens.tolist()
    [[5, 6, 7], [0, 0, 8]]
    """
    rows = _rows("prompts", prompts)
    tokens = np.full((len(rows), _width(rows, multiple)), pad, np.int32)
    for number, row in enumerate(rows):
        tokens[number, tokens.shape[1] - len(row) :] = row
    return Prompts(tokens, np.array([len(row) for row in rows], np.int32))


def right_padded(source: Any, *, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows of token ids for an encoder: int32 [batch, width], and a mask of the real.

    Raises what `left_padded` raises.

    >>> right_padded([[5, 6, 7], [8]])[0].tolist()
    [[5, 6, 7], [8, 0, 0]]
    """
    rows = _rows("source", source)
    tokens = np.zeros((len(rows), _width(rows, multiple)), np.int32)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    lengths = np.array([len(row) for row in rows])
    return tokens, np.arange(tokens.shape[1]) < lengths[:, None]


def _width(rows: list[np.ndarray], multiple: int) -> int:
    return -(-max(map(len, rows)) // multiple) * multiple


def _rows(name: str, given: Any) -> list[np.ndarray]:
    if isinstance(given, str):
        raise TypeError(f"{name}: expected rows of token ids, got text")
    rows = list(given)
    if not rows or any(np.ndim(row) == 0 for row in rows[:1]):
        got = "none" if not rows else f"one row, {given!r}"
        raise ValueError(f"{name}: expected a list of rows of token ids, got {got}")
    rows = [np.asarray(row) for row in rows]
    for number, row in enumerate(rows):
        if row.ndim != 1 or row.size == 0:
            raise ValueError(
                f"{name}: expected rows of at least one token, got shape {row.shape} "
                f"in row {number}"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise TypeError(
                f"{name}: expected whole numbers, got {row.dtype} in row {number}; "
                "a tokenizer makes them of text"
            )
    return rows
