"""Assertions on reports, for a project's own tests."""

from collections.abc import Iterator, Mapping

from jaxdl.core.table import human_bytes
from jaxdl.planning.report import Report
from jaxdl.planning.roofline import axes_name
from jaxdl.planning.tables import memory_rows


def assert_fits(report: Report, nbytes: float | None = None) -> None:
    """Asserts that a program takes at most `nbytes` on each device.

    nbytes: unless given, what is available to programs on the target.

    Raises ValueError where neither is known.
    """
    limit = report.memory.available if nbytes is None else nbytes
    if limit is None:
        raise ValueError(f"{report.target}: expected nbytes, its memory is not known")
    if report.memory.total > limit:
        rows = [f"  {human_bytes(n):>10}  {name}" for name, n in memory_rows(report)]
        total, most = human_bytes(report.memory.total), human_bytes(limit)
        raise AssertionError(
            "\n".join([f"{report.target}: {total} of {most} on each device", *rows])
        )


def assert_collectives(
    report: Report,
    at_most: Mapping[str | tuple[str, str], float],
    *,
    ignore: float = 2**16,
) -> None:
    """Asserts that a step exchanges at most so many bytes, and nothing unexpected.

    `assert_collectives(report, {"fsdp": 3e9, ("tensor", "all-reduce"): 1e9})` bounds
    the bytes (`Report.by_axis`) of all collectives over fsdp, and of the all-reduces
    over tensor; every other one must be below `ignore`. Which kind a compiler chooses
    is its own affair: bounds by axes alone hold longer.
    """
    wrong = list(_wrong(report, at_most, ignore))
    if wrong:
        raise AssertionError("\n".join([f"{report.target}: collectives", *wrong]))


def _wrong(report: Report, at_most: Mapping, ignore: float) -> Iterator[str]:
    sums: dict[str | tuple[str, str], int] = {}
    for row in report.by_axis():
        both = (row["axes"], row["kind"])
        key = both if both in at_most else row["axes"]
        key = key if key in at_most else both
        sums[key] = sums.get(key, 0) + row["bytes"]
    for key, size in sums.items():
        limit = at_most.get(key, ignore)
        if size > limit:
            name = key if isinstance(key, str) else " ".join(reversed(key))
            expected = human_bytes(limit) if key in at_most else "none"
            yield f"  {name}: {human_bytes(size)}, expected {expected}"
            yield from _sources(report, key)


def _sources(report: Report, key, number: int = 3) -> Iterator[str]:
    """Where the most of it comes from."""
    axes = key if isinstance(key, str) else key[0]
    kinds = None if isinstance(key, str) else {key[1]}
    of = [
        each
        for each in report.collectives
        if axes_name(each.axes) == axes and (kinds is None or each.kind in kinds)
    ]
    for each in sorted(of, key=lambda each: -each.total)[:number]:
        place = "  ".join(filter(None, (each.scope, each.source)))
        yield f"    {human_bytes(each.total)} in {each.count} {each.kind}: {place}"
