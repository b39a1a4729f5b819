"""The memory that a language model's loss takes when the vocabulary is large.

The logits of all tokens are the largest array of a small language model, and naive
differentiation holds several of that size. `losses.chunked_cross_entropy` holds those
of a few tokens at a time. Memory is what XLA plans for temporary values, and therefore
the same in every run; both must give the same gradients.

    python -m benchmarks.bench_loss
"""

from collections.abc import Sequence
import functools

import chex
import jax
import jax.numpy as jnp
import optax

from benchmarks import harness
from benchmarks.harness import Report
from benchmarks.work import Program
from jaxdl import losses

NAIVE, CHUNKED = "by hand, all logits", "jaxdl, chunked"
LIMIT = 0.25


def naive(hidden, kernel, labels):
    logits = hidden @ kernel
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def whole(hidden, kernel, labels):
    return losses.cross_entropy(hidden @ kernel, labels)


def temporary_bytes(compiled) -> int:
    analysis = compiled.memory_analysis()
    assert analysis is not None, "this backend does not say what memory it plans"
    return analysis.temp_size_in_bytes


def bench(report: Report) -> None:
    tokens, dim, vocab = (64, 8, 512) if report.quick else (4096, 256, 32_768)
    chunk_size = tokens // 16
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (tokens, dim))
    kernel = jax.random.normal(keys[1], (dim, vocab)) * dim**-0.5
    labels = jax.random.randint(keys[2], (tokens,), 0, vocab)

    functions = {
        NAIVE: naive,
        "jaxdl, all logits": whole,
        CHUNKED: functools.partial(losses.chunked_cross_entropy, chunk_size=chunk_size),
    }
    compiled = {
        name: jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
        .lower(hidden, kernel, labels)
        .compile()
        for name, function in functions.items()
    }
    memory = {name: temporary_bytes(program) for name, program in compiled.items()}
    expected = compiled[NAIVE](hidden, kernel, labels)
    for program in compiled.values():
        chex.assert_trees_all_close(
            program(hidden, kernel, labels), expected, rtol=1e-4, atol=1e-6
        )
    del expected

    def measure(program):
        def step(carry, batch):
            value = program(*batch)
            return value, value

        return functools.partial(
            harness.seconds_of_step, Program(step, None, (hidden, kernel, labels))
        )

    measures = {name: measure(program) for name, program in compiled.items()}
    rounds = 2 if report.quick else 5
    times = harness.interleave(report, "loss", measures, rounds)

    what = f"loss and gradients, {tokens} tokens, vocabulary {vocab}"
    rows = []
    for name, size in memory.items():
        row = {
            "program": name,
            "temporary MB": harness.number(size / 1e6),
            "ratio": harness.number(size / memory[NAIVE]),
            "time, ratio": harness.number(harness.ratio(times[name], times[NAIVE])),
            "quartiles": harness.spread(harness.pairs(times[name], times[NAIVE])),
            "target": "",
        }
        if name == CHUNKED:
            row["target"] = report.verdict(what, size / memory[NAIVE], LIMIT)
        rows.append(row)
    logits = jnp.dtype(jnp.float32).itemsize * tokens * vocab / 1e6
    report.add(what, rows, f"the logits are {logits:.1f} MB")


def main(arguments: Sequence[str] | None = None) -> Report:
    return harness.main({"loss": bench}, arguments)


if __name__ == "__main__":
    main()
