"""A report for terminals and notebooks."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxdl.core.table import human_bytes
from jaxdl.planning.roofline import ASSUMPTIONS


def tables(report: Any) -> Group:
    """The tables of a report, and under them what is assumed and what is amiss."""
    style = "" if report.memory.available is None else "green"
    parts: list[Any] = [
        Text(heading(report), style="bold"),
        Text(verdict(report), style=style if report.fits else "red"),
        _memory(report),
        _work(report),
    ]
    if report.collectives:
        parts.append(_collectives(report))
    if report.largest:
        parts.append(_largest(report))
    if report.roofline is not None:
        parts += [Text(f"Assumed: {line}.", style="dim") for line in ASSUMPTIONS]
    parts += [Text(f"Note: {note}.", style="yellow") for note in report.notes]
    return Group(*parts)


def heading(report: Any) -> str:
    """What it is compiled for, in a line."""
    axes = ", ".join(f"{axis}={n}" for axis, n in report.mesh.items() if n > 1)
    chip = f"{report.chip.name}, " if report.chip else ""
    number = f"{report.devices} device{'s' * (report.devices > 1)}"
    return f"{report.target}: {chip}{number}" + (f", {axes}" if axes else "")


def memory_rows(report: Any) -> list[tuple[str, int]]:
    """What takes memory on each device, the arguments by name."""
    memory = report.memory
    rows = [(name, size) for name, size in memory.arguments.items()]
    small = memory.laid_out / 1000
    shown = [(name, size) for name, size in rows if size >= small]
    rest = memory.laid_out - sum(size for _, size in shown)
    shown += [("other arguments, padding", rest)] if rest > small else []
    shown += [("results", memory.outputs), ("temporaries", memory.temporaries)]
    return [*shown, *([("program", memory.code)] if memory.code else [])]


def verdict(report: Any) -> str:
    """Whether it fits, in words."""
    available = report.memory.available
    if available is None:
        return human_bytes(report.memory.total)
    share = f"{human_bytes(report.memory.total)} of {human_bytes(available)}"
    return f"{share}: {'fits' if report.fits else 'does not fit'}"


def work_rows(report: Any) -> list[tuple[str, str]]:
    """FLOPs, traffic and times of one step, in words."""
    flops, each = report.flops, report.devices
    rows = [("model FLOPs", _number(flops.model))]
    if flops.hardware != flops.model:
        again = f"{flops.hardware / flops.model - 1:.0%}" if flops.model else "all"
        computed = f"{_number(flops.hardware)} ({again} computed again)"
        rows.append(("hardware FLOPs", computed))
    rows += [
        ("FLOPs on each device", _number(flops.hardware / each)),
        ("memory traffic of each", human_bytes(report.traffic)),
        ("arithmetic intensity", f"{report.intensity:.0f} FLOPs/byte"),
    ]
    if report.roofline is not None:
        rows += _times(report)
    spent = sum(report.seconds.values())
    return [*rows, ("time to compile, here", f"{spent:.1f} s")]


def _times(report: Any) -> list[tuple[str, str]]:
    times = report.roofline
    rows = [
        ("time to compute", in_seconds(times.compute)),
        ("time of memory traffic", in_seconds(times.memory)),
    ]
    if times.network:
        rows.append(("time of collectives", in_seconds(times.communication)))
    low, high = times.at_least, times.seconds
    if low > 0:
        both = (
            in_seconds(low)
            if high == low
            else f"{in_seconds(low)} to {in_seconds(high)}"
        )
        rows.append(("a step takes at least", f"{both}, by {times.limit}"))
    if low > 0 and report.flops.model:
        most, least = report.mfu(low), report.mfu(high)
        shares = f"{most:.0%}" if high == low else f"{least:.0%} to {most:.0%}"
        rows.append(("MFU at most", shares))
    return rows


def _memory(report: Any) -> Table:
    table = _table("memory of each device")
    table.add_column("bytes", justify="right")
    for name, size in memory_rows(report):
        table.add_row(name, human_bytes(size))
    if report.memory.peak is not None and report.memory.peak < report.memory.total:
        table.add_row("at the fullest moment", human_bytes(report.memory.peak))
    return table


def _work(report: Any) -> Table:
    table = _table("one step")
    table.add_column("", justify="right")
    for row in work_rows(report):
        table.add_row(*row)
    return table


def _collectives(report: Any) -> Table:
    table = _table("collectives over")
    for name in ("kind", "runs", "bytes", "sent by each"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for row in report.by_axis():
        sizes = human_bytes(row["bytes"]), human_bytes(row["traffic"])
        table.add_row(row["axes"], row["kind"], str(row["count"]), *sizes)
    return table


def _largest(report: Any, number: int = 8) -> Table:
    table = _table("largest temporaries")
    for name in ("bytes", "in", "from"):
        table.add_column(name, justify="right" if name == "bytes" else "left")
    for buffer in report.largest[:number]:
        source = "/".join(buffer.source.split("/")[-2:])
        table.add_row(buffer.array, human_bytes(buffer.nbytes), buffer.scope, source)
    return table


def _table(first: str) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column(first, overflow="fold")
    return table


def _number(value: float) -> str:
    for power, unit in ((15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if value >= 10**power:
            return f"{value / 10**power:.2f} {unit}"
    return f"{value:,.0f} "


def in_seconds(value: float) -> str:
    """A time in words: `1.50 ms`."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"
