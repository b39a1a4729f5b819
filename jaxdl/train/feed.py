"""Where the batches come from: a function of the step, or an iterable."""

from collections.abc import Callable, Iterator
from typing import Any

import jax


class Feed:
    """Gives the batch of each step, in order, beginning at `start`.

    data: one of
      - a function `data(step) -> batch`: nothing to save, resumes exactly;
      - an iterable whose iterator has `get_state` and `set_state` (grain): the state is
        saved with every checkpoint and set again on resume;
      - any other iterable: iterated anew and advanced past the batches already used,
        which resumes exactly if it gives the same batches in the same order.
    saved: the iterator's state from the checkpoint, if one was saved.

    Raises TypeError for anything else.
    """

    def __init__(self, data: Any, start: int, saved: Any = None):
        self._function: Callable | None = None
        self._iterator: Iterator | None = None
        if callable(data):
            self._function = data
        elif hasattr(data, "__iter__"):
            self._iterator = _positioned(iter(data), start, saved)
        else:
            raise TypeError(
                "data: expected a function of the step or an iterable of batches, got "
                f"{type(data).__name__}"
            )

    def batch(self, step: int) -> Any:
        """Returns the batch of a step; ValueError when the data has ended."""
        if self._function is not None:
            return self._function(step)
        assert self._iterator is not None
        return _next(self._iterator, step)

    def state(self) -> Any:
        """Returns what to save so that the next batch can be found again, or None."""
        if not hasattr(self._iterator, "get_state"):
            return None
        return self._iterator.get_state()  # type: ignore[union-attr]


def _positioned(iterator: Iterator, start: int, saved: Any) -> Iterator:
    if hasattr(iterator, "get_state") and jax.process_count() > 1:
        raise ValueError(
            "data: the iterator of each process has its own state, which is not saved; "
            "with several processes give a function of the step"
        )
    if saved is not None:
        if not hasattr(iterator, "set_state"):
            raise ValueError(
                "data: the checkpoint holds the state of an iterator with set_state, "
                f"got {type(iterator).__name__} without"
            )
        iterator.set_state(saved)  # type: ignore[attr-defined]
        return iterator
    for step in range(start):
        _next(iterator, step)
    return iterator


def _next(iterator: Iterator, step: int) -> Any:
    try:
        return next(iterator)
    except StopIteration:
        raise ValueError(
            f"data: ended before step {step}; give an endless iterator or a function "
            "of the step, or train for fewer steps"
        ) from None
