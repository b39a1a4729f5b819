"""Batches of any sequence of records as a function of the step, read ahead of time."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

PyTree = Any


class Steps:
    """Batches of records: `steps(step)` is a function of the step alone.

    records: anything with an index: a grain pipeline, which shuffles, repeats, maps and
      mixes (`grain.MapDataset.source(...).shuffle(seed=0).repeat().map(encode)`), or a
      sequence, which is repeated.
    batch_size: of the whole program; each of `processes` reads its part of the rows, so
      that the run is the same on any number of them. Default: this process's part of
      JAX's processes.
    threads: that read records of a batch side by side.

    Finding the batch of a step costs the same at any step, so a run resumes at once and
    exactly. Goes into `fit(data=...)` as it is; see `ReadAhead`.

    >>> steps = Steps([{"x": i} for i in range(5)], batch_size=2)
    >>> steps(1)["x"].tolist(), steps(2)["x"].tolist()
    ([2, 3], [4, 0])
    """

    def __init__(
        self,
        records: Sequence[Any] | Any,
        batch_size: int,
        *,
        process: tuple[int, int] | None = None,
        threads: int = 8,
    ):
        self.records, self.batch_size = records, batch_size
        self.rows = rows_of(batch_size, process)
        if len(records) == 0:
            raise ValueError("records: expected at least one, got none")
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def __call__(self, step: int) -> PyTree:
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        first = step * self.batch_size
        places = [(first + row) % len(self.records) for row in self.rows]
        each = map if self._pool is None else self._pool.map
        rows = list(each(self.records.__getitem__, places))
        for place, row in zip(places, rows, strict=True):
            if row is None:
                raise ValueError(
                    f"record {place}: filtered out; filter before `source` or pack, so "
                    "that every step has its records"
                )
        return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def rows_of(batch_size: int, process: tuple[int, int] | None = None) -> range:
    """Which rows of a batch a process reads: `process` is its index and their number.

    Raises ValueError unless the processes divide the batch.

    >>> rows_of(8, (1, 4))
    range(2, 4)
    """
    index, count = process or (jax.process_index(), jax.process_count())
    if batch_size < 1 or batch_size % count or not 0 <= index < count:
        raise ValueError(
            f"batch_size: expected a multiple of {count} processes, got {batch_size} "
            f"for process {index}"
        )
    size = batch_size // count
    return range(index * size, (index + 1) * size)


class ReadAhead:
    """The same batches, the next ones read in a thread while a step runs.

    batches: a function of the step, such as `Steps`.
    ahead: how many batches beyond the one that was asked for; at least 1.
    place: what to do with a batch in the thread, such as `jax.device_put`, or a
      function that puts it on a mesh.

    An error of a batch is raised when that step asks for it. Steps may be asked for in
    any order; in turn is what is fast.

    >>> read = ReadAhead(lambda step: np.full(2, step), ahead=2)
    >>> [int(read(step)[0]) for step in (0, 1, 7, 8)]
    [0, 1, 7, 8]
    """

    def __init__(
        self,
        batches: Callable[[int], PyTree],
        ahead: int = 2,
        place: Callable[[PyTree], PyTree] | None = None,
    ):
        if ahead < 1:
            raise ValueError(f"ahead: expected 1 or more, got {ahead}")
        self.batches, self.ahead, self.place = batches, ahead, place
        self._coming: dict[int, Future] = {}
        self._thread = ThreadPoolExecutor(1, "jaxdl-data")

    def __call__(self, step: int) -> PyTree:
        wanted = range(step, step + self.ahead + 1)
        for other in [other for other in self._coming if other not in wanted]:
            self._coming.pop(other).cancel()
        for each in wanted:
            if each not in self._coming:
                self._coming[each] = self._thread.submit(self._read, each)
        return self._coming.pop(step).result()

    def _read(self, step: int) -> PyTree:
        batch = self.batches(step)
        return batch if self.place is None else self.place(batch)
