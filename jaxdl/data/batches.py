"""Batches as a function of the step, so that a run resumed is the run uninterrupted."""

from collections.abc import Iterator
import functools
from typing import Any

import jax
import numpy as np

from jaxdl.core import tree

PyTree = Any


class Batches:
    """Batches of arrays in memory: `batches(step)` is a function of (seed, step) alone.

    `arrays` is any pytree of arrays [size, ...]: a dict, a pair, memory-mapped files.
    A batch is the same pytree with [batch_size, ...]. Each epoch is a permutation of
    its own, and the epochs follow one another without a gap: every batch is full, and
    over any number of whole epochs each example comes equally often. Finding the batch
    of a step does not depend on how many came before.

    Goes into `fit(data=...)` as it is. Raises ValueError when the arrays' sizes differ.

    >>> batches = Batches({"x": np.arange(6)}, batch_size=4, seed=0)
    >>> batches(0)["x"].shape, batches.steps_per_epoch
    ((4,), 2)
    >>> np.sort(np.concatenate([batches(0)["x"], batches(1)["x"]])[:6]).tolist()
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self, arrays: PyTree, batch_size: int, seed: int = 0, *, shuffle: bool = True
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
        self.arrays, self.batch_size = arrays, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.size = size_of(arrays)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches go once through the data; the last may run into the next."""
        return -(-self.size // self.batch_size)

    def __call__(self, step: int) -> PyTree:
        return take(self.arrays, self.indices(step))

    def indices(self, step: int) -> np.ndarray:
        """The rows that make up the batch of a step: int [batch_size]."""
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(places, self.size)
        if not self.shuffle:
            return places
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            rows[inside] = _order(self.seed, int(epoch), self.size)[places[inside]]
        return rows

    def epoch(self) -> Iterator[tuple[PyTree, np.ndarray]]:
        """Goes through the data once, in order: `(batch, weights)`, for evaluation.

        The last batch is filled up with copies of the last row, so that one compiled
        function serves all. `weights` float32 [batch_size] is 1 for a row that counts
        and 0 for a copy.
        """
        for start in range(0, self.size, self.batch_size):
            rows = np.arange(start, start + self.batch_size)
            weights = (rows < self.size).astype(np.float32)
            yield take(self.arrays, np.minimum(rows, self.size - 1)), weights


def split(
    arrays: PyTree, fraction: float, seed: int = 0, *, stratify: Any = None
) -> tuple[PyTree, PyTree]:
    """Splits the rows of arrays at random: `(rest, held_out)`, each in shuffled order.

    `fraction` of the rows, rounded, are held out; the split is a function of the seed
    and the size alone. `stratify` int [size] gives each of its values the same share of
    either part. Raises ValueError when one part would be empty.

    >>> rest, held_out = split(np.arange(10), 0.2, seed=0)
    >>> len(rest), len(held_out)
    (8, 2)
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction: expected 0 < fraction < 1, got {fraction}")
    size = size_of(arrays)
    order = np.random.default_rng(seed).permutation(size)
    if stratify is not None:
        order = order[_spread(np.asarray(stratify)[order])]
    count = round(fraction * size)
    if count in (0, size):
        raise ValueError(f"fraction {fraction} of {size} rows leaves one part empty")
    return take(arrays, order[count:]), take(arrays, order[:count])


def take(arrays: PyTree, rows: np.ndarray) -> PyTree:
    """The given rows of every array."""
    return jax.tree.map(lambda array: array[rows], arrays)


def size_of(arrays: PyTree) -> int:
    """The length of the leading axis, which all arrays share."""
    sizes = {path: np.shape(leaf)[:1] for path, leaf in tree.flatten(arrays).items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise ValueError(f"expected arrays of one leading size, got {sizes}")
    (size,) = next(iter(sizes.values()))
    if size == 0:
        raise ValueError("expected at least one row, got arrays of leading size 0")
    return size


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(size)


def _spread(classes: np.ndarray) -> np.ndarray:
    """An order in which every beginning holds the classes in their proportions."""
    place = np.empty(len(classes))
    for label in np.unique(classes):
        (rows,) = np.nonzero(classes == label)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.argsort(place, kind="stable")
