"""Gets the numbers from the device without making it wait, and hands them on."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
import contextlib
import time
from typing import Any

import jax
import numpy as np

from jaxdl.train.logs import History, Log
from jaxdl.train.progress import Meter, Progress, flops_of, items_of

# How many steps may be under way at once: enough to hide the host's work, few enough
# that their batches do not fill the device's memory.
IN_FLIGHT = 8


def floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Fetches scalars from the device: waits for them. ValueError for anything else."""
    fetched = {k: np.asarray(v) for k, v in jax.device_get(dict(metrics)).items()}
    for name, value in fetched.items():
        if value.shape != ():
            raise ValueError(f"{name}: expected a scalar, got shape {value.shape}")
    return {name: float(value) for name, value in fetched.items()}


class Recorder:
    """Writes records to the history, the logs and the screen; a context manager."""

    def __init__(
        self, start: int, steps: int, logs: Sequence[Log], progress: bool, items, flops
    ):
        self.history = History()
        self._start = start
        # One process writes: the numbers are the same in all of them.
        self._logs = list(logs) if jax.process_index() == 0 else []
        self._items, self._flops = items, flops
        self._meter: Meter | None = None
        self._progress = Progress(start, steps, progress)
        self._pending: tuple[int, dict, float] | None = None
        self._in_flight: deque = deque()
        self._began, self._lost = time.perf_counter(), 0.0

    def __enter__(self) -> "Recorder":
        kept = [log.resume(self._start) for log in self._logs]
        self.history.records = next((records for records in kept if records), [])
        return self

    def __exit__(self, *error: Any) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._progress.close)
            for log in self._logs:
                stack.callback(log.close)
            if error[0] is None or issubclass(error[0], Exception):
                stack.callback(self._settle)

    def stepped(
        self, function: Callable, step: int, state: Any, batch: Any, metrics: dict
    ) -> None:
        """A step was dispatched, by `function`: time to fetch what came before it."""
        if self._meter is None:
            self._meter = self._start_meter(function, step, state, batch, metrics)
        self._settle()
        # One number is enough to wait for: those of a step come all at once.
        self._in_flight.append(next(iter(metrics.values()), None))
        if len(self._in_flight) > IN_FLIGHT:
            jax.block_until_ready(self._in_flight.popleft())
        self._progress.advance(step)

    def later(self, step: int, metrics: dict) -> None:
        """Records these metrics once the next step is under way, or at the end."""
        assert self._meter is not None
        self._pending = (step, metrics, self._meter.now())

    def now(self, step: int, record: Mapping[str, float]) -> None:
        """Records numbers that are here already, after the metrics that wait."""
        self._settle()
        self._write({"step": step} | dict(record))

    @contextlib.contextmanager
    def pause(self, step: int):
        """Leaves what happens inside out of the speed of the steps."""
        self._settle()
        while self._in_flight:
            jax.block_until_ready(self._in_flight.popleft())
        with self._losing():
            yield
        if self._meter is not None:
            self._meter.start(step)

    @contextlib.contextmanager
    def waiting(self):
        """Counts what happens inside, waiting for data, as time without training."""
        # While earlier steps are under way the device does not wait.
        if any(hasattr(x, "is_ready") and not x.is_ready() for x in self._in_flight):
            yield
            return
        with self._losing():
            yield

    @contextlib.contextmanager
    def _losing(self):
        start = time.perf_counter()
        yield
        self._lost += time.perf_counter() - start

    def _start_meter(self, function, step, state, batch, metrics) -> Meter:
        # Waits once, for the first step: the time of its compilation is no speed.
        jax.block_until_ready(metrics)
        self._lost = time.perf_counter() - self._began
        items = items_of(batch) if self._items is None else self._items
        leaves = [x for x in jax.tree.leaves(state) if isinstance(x, jax.Array)]
        devices = set().union(*(leaf.sharding.device_set for leaf in leaves))
        meter = Meter(items, self._flops, devices)
        if self._flops is None and meter.peak is not None:
            meter.flops = flops_of(function, state, batch)
        meter.start(step)
        return meter

    def _settle(self) -> None:
        if self._pending is None or self._meter is None:
            return
        (step, metrics, at), self._pending = self._pending, None
        arrays = [x for x in metrics.values() if hasattr(x, "is_ready")]
        ready = all(array.is_ready() for array in arrays)
        numbers = floats(metrics)
        # If the device was done before we asked, it waits for the host, and the time at
        # which the host gave it the step counts.
        at = at if ready else self._meter.now()
        rates = self._meter.rates(step, at)
        if rates:
            total = time.perf_counter() - self._began
            rates["goodput"] = max(0.0, 1 - self._lost / total)
        self._write({"step": step} | numbers | rates)

    def _write(self, record: dict) -> None:
        self.history.records.append(record)
        for log in self._logs:
            log.write(record)
        self._progress.show(record)
