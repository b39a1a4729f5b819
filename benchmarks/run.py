"""Runs all benches in one process, or those that are named.

python -m benchmarks.run
python -m benchmarks.run step loss --json figures.json
"""

from collections.abc import Sequence

from benchmarks import (
    bench_attention,
    bench_compile,
    bench_data,
    bench_generate,
    bench_loss,
    bench_overhead,
    bench_step,
    harness,
)
from benchmarks.harness import Report

BENCHES = {
    "overhead": bench_overhead.bench,
    "compile": bench_compile.bench,
    "step": bench_step.bench,
    "loss": bench_loss.bench,
    "attention": bench_attention.bench,
    "generate": bench_generate.bench,
    "data": bench_data.bench,
}


def main(arguments: Sequence[str] | None = None) -> Report:
    return harness.main(BENCHES, arguments)


if __name__ == "__main__":
    main()
