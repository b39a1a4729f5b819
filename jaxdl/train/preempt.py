"""Being told to leave: SIGTERM, as schedulers send it before they take a machine."""

import signal
import sys
import threading
from typing import Any

import jax


class Preemption:
    """Within the context, SIGTERM is remembered; the handler before is put back after.

    With one process: a handler of its own, if this is the main thread (elsewhere Python
    allows none, and SIGTERM does what it did). With several: JAX's preemption service,
    so that all of them stop after the same step.
    """

    def __init__(self):
        self._received = False
        self._alone = jax.process_count() == 1
        self._previous: Any = None
        self._installed = False

    def __enter__(self) -> "Preemption":
        main = threading.current_thread() is threading.main_thread()
        if main and self._alone:
            self._previous = signal.signal(signal.SIGTERM, self._receive)
            self._installed = True
        return self

    def __exit__(self, *error: Any) -> None:
        if self._installed:
            # None: the handler was not set from Python and cannot be put back.
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    def requested(self, step: int) -> bool:
        """Tells whether to leave after this step; the same in all processes."""
        if self._alone:
            return self._received
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def leave(self, step: int, checkpoints: Any) -> None:
        """Says what was done and raises SystemExit(143), the status of a SIGTERM."""
        where = f"saved in {checkpoints.directory}" if checkpoints else "not saved"
        again = "; the same command goes on from there" if checkpoints else ""
        print(f"SIGTERM: stopped after step {step}, {where}{again}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM)

    def _receive(self, *signal_and_frame: Any) -> None:
        self._received = True
