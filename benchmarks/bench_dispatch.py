"""What a jitted training step costs in Python: jaxdl beside hand-written JAX and Flax.

A stack of 50 small linear layers (100 arrays) takes a step of SGD. The work is tiny, so
that the time is that of the call. Times are medians over interleaved rounds, and the
ratios, which are what can be compared between machines, are of pairs in one round.

Run: python benchmarks/bench_dispatch.py
"""

from collections.abc import Callable
import statistics
import time

from flax import nnx
import flax.linen
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxdl import nn

LAYERS, WIDTH, ROUNDS, CALLS = 50, 4, 30, 20
x = jnp.ones((2, WIDTH))


def sgd(loss: Callable) -> Callable:
    def step(params, x):
        grads = jax.grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    return jax.jit(step, donate_argnums=0)


def by_hand():
    params = [(jnp.eye(WIDTH), jnp.zeros(WIDTH)) for _ in range(LAYERS)]

    def loss(params, x):
        for kernel, bias in params:
            x = jnp.tanh(x @ kernel + bias)
        return x.sum()

    return sgd(loss), params


def jaxdl_layers():
    layers = [
        layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), jnp.tanh)
    ]
    model = nn.Sequential(layers)
    return sgd(lambda params, x: model(params, x).sum()), model.init(jax.random.key(0))


def jaxdl_repeat():
    model = nn.Repeat(nn.Sequential([nn.Linear(WIDTH, WIDTH), jnp.tanh]), LAYERS)
    return sgd(lambda params, x: model(params, x).sum()), model.init(jax.random.key(0))


def linen():
    layers = [f for _ in range(LAYERS) for f in (flax.linen.Dense(WIDTH), jnp.tanh)]
    model = flax.linen.Sequential(layers)
    return sgd(lambda params, x: model.apply(params, x).sum()), model.init(
        jax.random.key(0), x
    )


def nnx_split():
    rngs = nnx.Rngs(0)
    layers = [
        f
        for _ in range(LAYERS)
        for f in (nnx.Linear(WIDTH, WIDTH, rngs=rngs), jnp.tanh)
    ]
    graph, params = nnx.split(nnx.Sequential(*layers))
    return sgd(lambda params, x: nnx.merge(graph, params)(x).sum()), params


def seconds(step: Callable, params) -> tuple[float, object]:
    """The time of one call, over several; donated params go from call to call."""
    start = time.perf_counter()
    for _ in range(CALLS):
        params = step(params, x)
    elapsed = time.perf_counter() - start
    jax.block_until_ready(params)
    return elapsed / CALLS, params


def main() -> None:
    programs = {
        "hand-written, list of pairs": by_hand(),
        "jaxdl, Sequential": jaxdl_layers(),
        "jaxdl, Repeat": jaxdl_repeat(),
        "flax.linen": linen(),
        "flax.nnx, split and merge": nnx_split(),
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    state = {name: seconds(*program)[1] for name, program in programs.items()}
    for _ in range(ROUNDS):
        for name, (step, _) in programs.items():
            elapsed, state[name] = seconds(step, state[name])
            times[name].append(elapsed)

    table = Table(
        title=f"one step of SGD, {LAYERS} layers, {jax.devices()[0].device_kind}"
    )
    for heading in ("program", "microseconds", "ratio"):
        table.add_column(heading, justify="left" if heading == "program" else "right")
    base = times["hand-written, list of pairs"]
    for name, measured in times.items():
        ratio = statistics.median(a / b for a, b in zip(measured, base, strict=True))
        table.add_row(name, f"{statistics.median(measured) * 1e6:.0f}", f"{ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
