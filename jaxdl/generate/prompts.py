"""Prompts of different lengths as one array, padded on the left."""

from collections.abc import Sequence
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
    rows = [np.asarray(row) for row in _rows(prompts)]
    for number, row in enumerate(rows):
        if row.ndim != 1 or row.size == 0:
            raise ValueError(
                f"prompts: expected rows of at least one token, got shape {row.shape} "
                f"in row {number}"
            )
        if not np.issubdtype(row.dtype, np.integer):
            raise TypeError(
                f"prompts: expected whole numbers, got {row.dtype} in row {number}; "
                "a tokenizer makes them of text"
            )
    longest = max(map(len, rows))
    width = -(-longest // multiple) * multiple
    tokens = np.full((len(rows), width), pad, np.int32)
    for number, row in enumerate(rows):
        tokens[number, width - len(row) :] = row
    return Prompts(tokens, np.array([len(row) for row in rows], np.int32))


def _rows(prompts: Any) -> Sequence[Any]:
    if isinstance(prompts, str):
        raise TypeError("prompts: expected rows of token ids, got text")
    rows = list(prompts)
    if not rows or any(np.ndim(row) == 0 for row in rows[:1]):
        got = "none" if not rows else f"one row, {prompts!r}"
        raise ValueError(f"prompts: expected a list of rows of token ids, got {got}")
    return rows
