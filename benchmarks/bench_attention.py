"""Causal attention and its gradients: memory and time by kernel and sequence length.

Memory is what XLA plans for temporary values, and therefore the same in every run. All
must give the same gradients.

    python -m benchmarks.bench_attention
"""

from collections.abc import Callable, Sequence
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.bench_loss import temporary_bytes
from benchmarks.harness import Report
from benchmarks.work import Program
from jaxdl.nn.attend import Sight, attend, attend_fused
from jaxdl.nn.blockwise import attend_blockwise

HEADS, KV_HEADS, DIM = 8, 2, 64
JAX = "jax.nn.dot_product_attention"
OPEN, BLOCKWISE = "jaxdl, with taps", "jaxdl, blockwise"
LIMIT = 1.0


def kernels(seq: int) -> dict[str, Callable]:
    sight = Sight(np.arange(seq), np.arange(seq), causal=True)
    scale = DIM**-0.5

    def open_(q, k, v):
        return attend(q, k, v, scale=scale, visible=sight.visible(), blind=False)

    fused = functools.partial(attend_fused, sight=sight, implementation="xla")
    return {
        JAX: functools.partial(fused, scale=scale),
        OPEN: open_,
        BLOCKWISE: functools.partial(attend_blockwise, sight=sight, scale=scale),
    }


def inputs(seq: int) -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    return [
        jax.random.normal(key, (1, seq, number, DIM))
        for key, number in zip(keys, heads, strict=True)
    ]


def measure(program: Callable, arrays: Sequence[jax.Array]) -> Callable[[], float]:
    def step(carry, batch):
        value = program(*batch)
        return value, value

    return functools.partial(
        harness.seconds_of_step, Program(step, None, tuple(arrays))
    )


def compare(report: Report, seq: int, rounds: int) -> None:
    arrays = inputs(seq)
    compiled = {
        name: jax.jit(jax.grad(lambda *a, f=kernel: jnp.square(f(*a)).sum(), (0, 1, 2)))
        .lower(*arrays)
        .compile()
        for name, kernel in kernels(seq).items()
    }
    memory = {name: temporary_bytes(program) for name, program in compiled.items()}
    expected = compiled[JAX](*arrays)
    chex.assert_trees_all_close(
        compiled[BLOCKWISE](*arrays), expected, rtol=1e-4, atol=1e-4
    )
    del expected
    measures = {name: measure(program, arrays) for name, program in compiled.items()}
    times = harness.interleave(report, f"attention {seq}", measures, rounds)
    what = f"causal attention and its gradients, {seq} tokens"
    rows = []
    for name, size in memory.items():
        ratio = harness.ratio(times[name], times[JAX])
        row = {
            "program": name,
            "temporary MB": harness.number(size / 1e6),
            "ratio": harness.number(size / memory[JAX]),
            "time, ratio": harness.number(ratio),
            "quartiles": harness.spread(harness.pairs(times[name], times[JAX])),
            "target": "",
        }
        if name == BLOCKWISE:
            row["target"] = report.verdict(what, ratio, LIMIT)
        rows.append(row)
    report.add(what, rows, f"{HEADS} heads of {DIM}, {KV_HEADS} of keys and values")


def bench(report: Report) -> None:
    for seq, rounds in ((64, 2), (128, 2)) if report.quick else ((1024, 7), (4096, 3)):
        compare(report, seq, rounds)


def main(arguments: Sequence[str] | None = None) -> Report:
    return harness.main({"attention": bench}, arguments)


if __name__ == "__main__":
    main()
