"""How long a training step takes to trace and to compile, as a GPT grows deeper.

A scan over stacked layers is one layer to the tracer and to the compiler, whatever the
depth; a loop is as many as there are. The GPT is narrow: compilation does not depend on
the width, and the weights must be made. Nothing comes from a cache. Seconds are those
of the processor, all threads together, which other work on the machine changes less
than those on the wall.

    python -m benchmarks.bench_compile
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import time
from typing import Any

import jax

from benchmarks import harness, programs, work
from benchmarks.harness import Report
from benchmarks.work import Program
from jaxdl import models

SCAN = "by hand, scan"
OURS = "jaxdl, Repeat"
LIMIT = 1.15


def build(layers: int, scan: bool) -> dict[str, Program]:
    config = models.DecoderConfig(
        vocab_size=64, seq_len=16, dim=16, num_layers=layers, num_heads=2
    )
    given = work.gpt(config, batch_size=2)
    made = {}
    for name in ("by hand", "jaxdl", "linen", "nnx", "equinox"):
        module: Any = programs.library(name)
        if module is None:
            continue
        if name == "jaxdl":
            if scan:
                made[OURS] = module.gpt(given)
        else:
            form = "scan" if scan else "loop"
            made[f"{name}, {form}"] = module.gpt(given, scan=scan)
    return made


def measure(program: Program, parts: list[tuple[float, float]]) -> float:
    """Seconds to trace and compile a step; both parts are appended to the list."""
    jax.clear_caches()
    start = time.process_time()
    lowered = program.step.lower(program.carry, program.batch)
    middle = time.process_time()
    lowered.compile()
    end = time.process_time()
    parts.append((middle - start, end - middle))
    return end - start


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def compare(
    report: Report, title: str, depths: Sequence[int], scan: bool, rounds: int
) -> None:
    measures: dict[tuple[str, int], Callable[[], float]] = {}
    parts: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for depth in depths:
        for name, program in build(depth, scan).items():
            parts[name, depth] = []
            measures[name, depth] = functools.partial(
                measure, program, parts[name, depth]
            )
    if rounds > 1:
        # The first time costs what is done once in a process: imports, signatures.
        for name, depth in measures:
            if depth == depths[0]:
                measures[name, depth]()
                parts[name, depth].clear()
    harness.interleave(report, title, measures, rounds)

    # The work is the same in every round and other work only adds to it, so that of so
    # few rounds the best one says most.
    best = {
        key: [min(times) for times in zip(*measured, strict=True)]
        for key, measured in parts.items()
    }
    first, last = depths[0], depths[-1]
    at = "/".join(map(str, depths))
    names = list(dict.fromkeys(name for name, _ in measures))
    rows = []
    for name in names:
        row: dict[str, Any] = {"program": name}
        for index, what in enumerate(("trace", "compile")):
            values = [best[name, depth][index] for depth in depths]
            row[f"{what} {at}"] = ("/".join(f"{v:.2f}" for v in values), values)
        total = {depth: sum(best[name, depth]) for depth in depths}
        growth = total[last] / total[first]
        row["ratio"] = harness.number(total[last] / sum(best[names[0], last]))
        row[f"{last} to {first}"] = harness.number(growth)
        row["target"] = ""
        if name == OURS:
            what = f"{title}: {name}, {last} layers to {first}"
            row["target"] = report.verdict(what, growth, LIMIT)
        rows.append(row)
    note = f"ratio: trace and compile, {last} layers, to {names[0]}"
    report.add(f"{title}, seconds", rows, note)


def bench(report: Report) -> None:
    scanned, looped, rounds = (12, 24, 48), (6, 12), 3
    if report.quick:
        scanned, looped, rounds = (1, 2), (1, 2), 1
    with without_cache():
        compare(report, "trace and compile, scan", scanned, True, rounds)
        # Once, and not so deep: these take minutes at 48 layers.
        compare(report, "trace and compile, loop", looped, False, 1)


def main(arguments: Sequence[str] | None = None) -> Report:
    return harness.main({"compile": bench}, arguments)


if __name__ == "__main__":
    main()
