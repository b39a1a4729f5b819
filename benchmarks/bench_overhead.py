"""What calling a jitted training step costs in Python.

The work is tiny, and what is timed is the call alone, until it returns. JAX looks the
compiled program up, flattens the arguments, hands over the buffers and builds the
results again: more for more arrays, and for nested dicts more than for a flat list.

    python -m benchmarks.bench_overhead
"""

from collections.abc import Callable, Sequence
import functools

from benchmarks import harness, programs, work
from benchmarks.harness import Report, Target
from benchmarks.libraries import by_hand
from benchmarks.work import Program, Work

BASE, AGAIN = "by hand, dict", "by hand, dict again"
FLAT, SCAN = "by hand, flat list", "by hand, scan"
SEQUENTIAL, REPEAT = "jaxdl, Sequential", "jaxdl, Repeat"
TARGETS = {SEQUENTIAL: Target(1.02), REPEAT: Target(1.02, SCAN)}


def build(work: Work) -> dict[str, Program]:
    in_jaxdl, in_linen, in_nnx, in_equinox = map(
        programs.library, ("jaxdl", "linen", "nnx", "equinox")
    )
    made = {
        BASE: by_hand.mlp(work),
        SEQUENTIAL: in_jaxdl.mlp(work),
        AGAIN: by_hand.mlp(work),
        FLAT: by_hand.mlp(work, "list"),
        "linen": in_linen.mlp(work),
        "nnx, split and jax.jit": in_nnx.mlp(work),
        "nnx, nnx.jit": in_nnx.mlp(work, "nnx.jit"),
    }
    if in_equinox is not None:
        made["equinox, partition and jax.jit"] = in_equinox.mlp(work)
        made["equinox, filter_jit"] = in_equinox.mlp(work, "filter_jit")
    if len(set(work.config)) == 1:
        made[SCAN] = by_hand.scanned_mlp(work)
        made[REPEAT] = in_jaxdl.repeated_mlp(work)
    return made


def compare(report: Report, title: str, work: Work, calls: int, rounds: int) -> None:
    # Of equal programs the one that is compiled first is called some 8 % faster while
    # it is there. So that it is none of those compared, one more is compiled before.
    first = by_hand.mlp(work)
    first()
    made = build(work)
    harness.same_losses(made)
    measures: dict[str, Callable[[], float]] = {
        name: functools.partial(harness.seconds_of_call, program, calls)
        for name, program in made.items()
    }
    times = harness.interleave(report, title, measures, rounds)
    del first
    targets = {name: target for name, target in TARGETS.items() if name in times}
    report.compare(f"call: {title}", "µs", times, (BASE, AGAIN), targets)


def bench(report: Report) -> None:
    calls, rounds = (5, 3) if report.quick else (50, 100)
    compare(report, "4 arrays", work.mlp((2, 4, 1), batch_size=4), calls, rounds)

    layers = 5 if report.quick else 250
    calls, rounds = (5, 3) if report.quick else (10, 40)
    deep = work.deep_mlp(layers, width=4, batch_size=2)
    compare(report, f"{2 * layers} arrays, {layers} layers", deep, calls, rounds)


def main(arguments: Sequence[str] | None = None) -> Report:
    return harness.main({"overhead": bench}, arguments)


if __name__ == "__main__":
    main()
