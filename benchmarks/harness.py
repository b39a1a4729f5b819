"""Times programs side by side, and reports ratios with how far they scatter.

A machine that does other work at the same time is slow for minutes and then fast again,
so seconds mean little and a difference between two programs may be a difference between
two minutes. Therefore every round runs every program once, in an order drawn anew, and
a ratio is the median over the rounds of the ratio within one round. Quartiles say how
far it scatters.

Two programs that are the same may differ all the same, by where in memory each was
built. So the base is built twice, once before and once after what is held to a target,
and a ratio is to the mean of both: what drifts falls out, and how far the two are from
1 says how much to believe.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import gc
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import random
import statistics
import time
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from benchmarks.work import Program

Times = Mapping[Any, Sequence[float]]
WIDTH = 110  # of the tables, whatever the terminal's


@dataclasses.dataclass(frozen=True)
class Target:
    """At most `limit` times what `against` takes, or else the table's base."""

    limit: float
    against: str | None = None


@dataclasses.dataclass
class Report:
    """Prints tables as they come, and keeps their numbers for `--json`."""

    quick: bool = False
    console: Console = dataclasses.field(default_factory=lambda: Console(width=WIDTH))
    tables: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    verdicts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def add(
        self, title: str, rows: Sequence[Mapping[str, Any]], note: str = ""
    ) -> None:
        """Prints rows of cells by heading; a cell is text, or a (text, value) pair."""
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for index, heading in enumerate(rows[0]):
            table.add_column(
                heading, justify="right" if index else "left", no_wrap=True
            )
        for row in rows:
            table.add_row(*(text_of(cell) for cell in row.values()))
        self.console.print(table)
        if note:
            self.console.print(f"  {note}\n", highlight=False)
        values = [{name: value_of(cell) for name, cell in row.items()} for row in rows]
        self.tables.append({"title": title, "rows": values})

    def compare(
        self,
        title: str,
        unit: str,
        times: Times,
        bases: Sequence[str],
        targets: Mapping[str, Target],
        note: str = "",
    ) -> None:
        """A table of medians and of ratios to the mean of the bases."""
        scale = {"µs": 1e6, "ms": 1e3}[unit]
        base = [statistics.mean(r) for r in zip(*map(times.get, bases), strict=True)]
        rows = []
        for name, measured in times.items():
            row = {
                "program": name,
                unit: number(statistics.median(measured) * scale),
                "quartiles": spread([value * scale for value in measured]),
                "ratio": number(ratio(measured, base)),
                "of the ratio": spread(pairs(measured, base)),
                "target": "",
            }
            if name in targets:
                target = targets[name]
                against = times[target.against] if target.against else base
                what = f"{title}: {name} to {target.against or bases[0]}"
                value = ratio(measured, against)
                row["target"] = self.verdict(what, value, target.limit)
                if target.against:
                    row["target"] += f"\nto {target.against}"
            rows.append(row)
        self.add(title, rows, note)

    def verdict(self, what: str, value: float, limit: float) -> str:
        """Says whether a value is within a limit, in a cell and in the summary."""
        passed = value <= limit
        self.verdicts.append(
            {"what": what, "value": value, "limit": limit, "passed": passed}
        )
        word = "[green]PASS[/]" if passed else "[red]FAIL[/]"
        return f"{value:.3f} <= {limit:g} {word}"

    def summary(self) -> None:
        for verdict in self.verdicts:
            word = "[green]PASS[/]" if verdict["passed"] else "[red]FAIL[/]"
            value = f"{verdict['value']:.3f} <= {verdict['limit']:g}"
            self.console.print(f"{word} {value}  {verdict['what']}", highlight=False)

    def save(self, path: Path) -> None:
        content = {
            "machine": machine(),
            "tables": self.tables,
            "targets": self.verdicts,
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[], None]]:
        """A bar while a bench runs; nothing where the output is no terminal."""
        columns = (
            "[progress.description]{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        bar = Progress(
            *columns,
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            task = bar.add_task(label, total=total)
            yield lambda: bar.advance(task)


def interleave(
    report: Report,
    label: str,
    measures: Mapping[Any, Callable[[], float]],
    rounds: int,
) -> dict[Any, list[float]]:
    """Calls every measure once a round, in an order drawn anew: seconds by name.

    A fixed order would have one program always follow the same neighbour, and find the
    caches and the threads as that one leaves them.
    """
    times: dict[Any, list[float]] = {name: [] for name in measures}
    order = random.Random(0)
    total = rounds * len(measures)
    with report.progress(label, total) as advance, no_garbage_collection():
        for _ in range(rounds):
            gc.collect()
            for name in order.sample(list(measures), len(measures)):
                times[name].append(measures[name]())
                advance()
    return times


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python collects only where it is told to; what exists already stays out of it."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def seconds_of_step(program: Program, calls: int = 1) -> float:
    """A step with all its work, the mean of several in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        program()
    program.wait()
    return (time.perf_counter() - start) / calls


def seconds_of_call(program: Program, calls: int) -> float:
    """Until a step's call returns, the median of several, in time of this thread.

    JAX hands the work to other threads, so this is what the call costs in Python. Each
    call finds the work of the one before done; in a queue it would have to wait for it.
    The first call is not timed: it finds the caches full of another program.
    """
    times = []
    for _ in range(1 + calls):
        start = time.thread_time()
        program()
        times.append(time.thread_time() - start)
        program.wait()
    return statistics.median(times[1:])


def same_losses(programs: Mapping[str, Program], steps: int = 3) -> None:
    """Runs some steps of each program and asserts that the losses agree.

    The first loss shows the same weights and the same forward pass, the following ones
    the same gradients and the same update. Programs are compiled by this, and warm.
    """
    expected: list[float] = []
    for name, program in programs.items():
        losses = [float(program()) for _ in range(steps)]
        expected = expected or losses
        for step, (loss, wanted) in enumerate(zip(losses, expected, strict=True)):
            difference = abs(loss - wanted) / abs(wanted)
            assert difference < 1e-4, (
                f"{name}: expected the loss {wanted} at step {step}, got {loss}"
            )
    assert min(expected) < expected[0], f"the loss does not fall: {expected}"


def pairs(times: Sequence[float], base: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(times, base, strict=True)]


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    return statistics.median(pairs(times, base))


def spread(values: Sequence[float]) -> tuple[str, list[float]]:
    """The quartiles, which half of the rounds lie between."""
    if len(values) < 2:
        return "", []
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{number(low)[0]}-{number(high)[0]}", [low, high]


def number(value: float) -> tuple[str, float]:
    """A number with some three figures behind its first."""
    digits = 3 if value < 10 else 1 if value < 1000 else 0
    return f"{value:.{digits}f}", value


def text_of(cell: Any) -> str:
    return cell[0] if isinstance(cell, tuple) else str(cell)


def value_of(cell: Any) -> Any:
    return cell[1] if isinstance(cell, tuple) else cell


def cores() -> int:
    """The cores that this process may use; JAX and PyTorch get the same ones."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    versions = {}
    for name in ("jax", "flax", "optax", "equinox", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "device": jax.devices()[0].device_kind,
        "cores": cores(),
        "python": platform.python_version(),
        "versions": versions,
        "load": load,
    }


def main(
    benches: Mapping[str, Callable[[Report], None]],
    arguments: Sequence[str] | None = None,
) -> Report:
    """The command line that every bench has: `--quick`, `--json FILE`."""
    parser = argparse.ArgumentParser(description="; ".join(benches))
    if len(benches) > 1:
        parser.add_argument("bench", nargs="*", help=f"some of {', '.join(benches)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    chosen = getattr(options, "bench", None) or list(benches)
    if unknown := set(chosen) - benches.keys():
        parser.error(f"expected some of {', '.join(benches)}, got {', '.join(unknown)}")

    report = Report(options.quick)
    about = machine()
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    load = "" if about["load"] is None else f", load {about['load']:.1f}"
    cores = f"{about['cores']} cores{load}"
    report.console.print(f"{about['device']}, {cores}; {versions}\n", highlight=False)
    for name in chosen:
        benches[name](report)
    report.summary()
    if options.json is not None:
        report.save(options.json)
    return report
