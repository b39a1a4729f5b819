"""Looking after a run: one that hangs is ended, chosen steps are profiled."""

import faulthandler
from pathlib import Path
import sys
from typing import Any

import jax


class Watchdog:
    """Within the context, a step that takes longer than `seconds` ends the process.

    All threads' stacks go to stderr and the exit status is 1, so that what started the
    run can start it again from its last checkpoint. It works where Python does not run
    any more, in a collective that waits for a lost peer, say: the clock is a thread of
    C (`faulthandler`). None watches nothing.

    The clock starts with the first `beat`: before it the step is compiled.
    """

    def __init__(self, seconds: float | None):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"hang_after: expected seconds above 0, got {seconds!r}")
        self._seconds = seconds

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *error: Any) -> None:
        self.rest()

    def beat(self) -> None:
        """Starts the clock anew: a step is done."""
        if self._seconds is not None:
            # sys.__stderr__: a notebook's stderr has no file that C could write to.
            faulthandler.dump_traceback_later(
                self._seconds, exit=True, file=sys.__stderr__ or 2
            )

    def rest(self) -> None:
        """Stops the clock, for what may take long: an evaluation, a save."""
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()


class Profile:
    """A callback of `fit` that traces some steps with JAX's profiler.

    first, last: the steps, counted from 1 as in the logs; 1 would show compilation.
    directory: where the trace goes: TensorBoard and https://ui.perfetto.dev read it.
    """

    def __init__(self, directory: str | Path, first: int, last: int):
        if not 2 <= first <= last:
            raise ValueError(
                f"Profile: expected 2 <= first <= last, got {first} and {last}"
            )
        self.directory, self.first, self.last = str(directory), first, last
        self._tracing = False

    def __call__(self, step: int, state: Any, metrics: dict) -> None:
        if step == self.first - 1:
            jax.block_until_ready(metrics)  # else the trace begins in an earlier step
            jax.profiler.start_trace(self.directory)
            self._tracing = True
        elif self._tracing and step >= self.last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._tracing = False
