"""How fast a run goes, and how it looks while it runs."""

from collections.abc import Mapping
import time
from typing import Any

import jax

from jaxdl.planning.chips import peak_flops
from jaxdl.planning.flops import jaxpr_flops

PyTree = Any


class Meter:
    """Measures steps, items and FLOP/s between records.

    items: what one step goes through, `{"tokens": 8192}`.
    flops_per_step: of the whole program, all devices together.
    devices: those that run it; the MFU is None unless the peak of all is known.
    """

    def __init__(self, items: Mapping[str, float], flops_per_step, devices):
        peaks = [peak_flops(device) for device in devices]
        self._items = items
        self.flops = flops_per_step
        self.peak = None if None in peaks else sum(p for p in peaks if p)
        self._last: tuple[int, float] | None = None

    def now(self) -> float:
        """Reads the clock, in seconds."""
        return time.perf_counter()

    def start(self, step: int) -> None:
        """Starts the clock: `step` is done now. Call it after every pause."""
        self._last = (step, self.now())

    def rates(self, step: int, at: float) -> dict[str, float]:
        """The speed since the last call, if `step` was done `at`; {} if none passed."""
        last, self._last = self._last, (step, at)
        if last is None or step <= last[0]:
            return {}
        speed = (step - last[0]) / max(at - last[1], 1e-9)
        rates = {"steps_per_second": speed}
        rates |= {f"{name}_per_second": speed * n for name, n in self._items.items()}
        if self.flops and self.peak:
            rates["mfu"] = speed * self.flops / self.peak
        return rates


def flops_of(step: Any, state: PyTree, batch: PyTree) -> float | None:
    """Model FLOPs of a jitted step, from its program; None where they are not known.

    Only what `jax.jit` returned has its trace at hand: another function would run anew.
    """
    if not hasattr(step, "trace"):
        return None
    flops = jaxpr_flops(step.trace(state, batch).jaxpr.jaxpr)
    return None if flops.loops or flops.opaque else flops.model


def items_of(batch: PyTree) -> dict[str, int]:
    """Counts the examples of a batch: the leading axis of its first array."""
    shapes = [jax.numpy.shape(leaf) for leaf in jax.tree.leaves(batch)]
    return {"examples": shapes[0][0]} if shapes and shapes[0] else {}


class Progress:
    """A bar in a terminal or notebook; elsewhere a line now and then.

    shown: False shows nothing. Only the first process shows anything.
    """

    def __init__(self, start: int, steps: int, shown: bool = True, seconds: float = 30):
        self._start, self._steps, self._seconds = start, steps, seconds
        self._printed = -float("inf")
        self._bar: Any = None
        self._console: Any = None
        self._numbers: dict[str, float] = {}
        if shown and jax.process_index() == 0:
            self._open()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def show(self, record: Mapping[str, float]) -> None:
        """Shows the numbers of a record, and keeps those of earlier ones."""
        if self._console is None:
            return
        self._numbers |= record
        text = summary(self._numbers)
        if self._bar is not None:
            self._bar.update(self._task, numbers=text)
        elif self._time_for_a_line(int(record["step"])):
            self._console.print(
                f"step {record['step']}/{self._steps}  {text}{self._remaining()}",
                highlight=False,
                soft_wrap=True,
            )

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open(self) -> None:
        from rich.console import Console

        self._console = Console()
        if self._console.is_terminal or self._console.is_jupyter:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task(
                "train", total=self._steps, completed=self._start, numbers=""
            )
            self._bar.start()

    def _time_for_a_line(self, step: int) -> bool:
        now = time.perf_counter()
        if step < self._steps and now - self._printed < self._seconds:
            return False
        self._printed = now
        return True

    def _remaining(self) -> str:
        speed = self._numbers.get("steps_per_second")
        left = self._steps - int(self._numbers["step"])
        if not speed or left <= 0:
            return ""
        minutes, seconds = divmod(round(left / speed), 60)
        hours, minutes = divmod(minutes, 60)
        return f"  {hours}:{minutes:02d}:{seconds:02d} left"


def summary(numbers: Mapping[str, float]) -> str:
    """Spells the numbers worth a line: losses, speeds, MFU, skipped steps."""
    losses = [name for name in numbers if name == "loss" or name.endswith("/loss")]
    words = [f"{name} {numbers[name]:.4g}" for name in losses]
    for name, value in numbers.items():
        if name.endswith("_per_second"):
            words.append(f"{_short(value)} {name.removesuffix('_per_second')}/s")
    if "mfu" in numbers:
        words.append(f"MFU {numbers['mfu']:.1%}")
    if numbers.get("skipped"):
        words.append(f"skipped {numbers['skipped']:.0f}")
    return "  ".join(words)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _bar(console: Any) -> Any:
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[numbers]}"),
        progress.TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )
