"""One training step over a mesh, for a model of jaxdl, one of Flax and a dict.

    python examples/shard_anything.py              # all devices there are
    python examples/shard_anything.py --fake 8     # eight made of one CPU

The three learn the same task by the same step. What differs is who knows the names of
the dimensions: jaxdl's model declares them, the others are given them by path.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen
import jax
import jax.numpy as jnp
import optax

import jaxdl as jd
from jaxdl import nn, shard
from jaxdl.train import TrainState, make_step

DIM, HIDDEN = 16, 64


class Example(NamedTuple):
    """A model: how it starts, what it computes, and the names of its dimensions."""

    start: Any
    apply: Callable[..., Any]
    axes: Any


def of_jaxdl() -> Example:
    model = nn.Sequential([
        nn.Linear(DIM, HIDDEN, axes=("embed", "mlp")),
        jnp.tanh,
        nn.Linear(HIDDEN, DIM, axes=("mlp", "embed")),
    ])  # fmt: skip
    return Example(model, model, jd.axes(model))


def of_flax() -> Example:
    model = linen.Sequential([linen.Dense(HIDDEN), jnp.tanh, linen.Dense(DIM)])
    axes = {
        "params/layers_0/kernel": ("embed", "mlp"),
        "params/layers_2/kernel": ("mlp", "embed"),
    }
    return Example(lambda key: model.init(key, jnp.zeros((1, DIM))), model.apply, axes)


def by_hand() -> Example:
    def start(key):
        up, down = jax.random.split(key)
        return {
            "up": jax.random.normal(up, (DIM, HIDDEN)) / DIM**0.5,
            "down": jax.random.normal(down, (HIDDEN, DIM)) / HIDDEN**0.5,
        }

    def apply(params, x):
        hidden = shard.constrain(jnp.tanh(x @ params["up"]), "batch", "mlp")
        return hidden @ params["down"]

    return Example(start, apply, {"up": ("embed", "mlp"), "down": ("mlp", "embed")})


EXAMPLES = {"jaxdl": of_jaxdl, "flax": of_flax, "by hand": by_hand}


def train(example: Example, mesh: Any, rules: Any, steps: int = 20) -> tuple:
    """Trains to reverse the features of random vectors; the state and the losses."""
    optimizer = optax.adamw(1e-2)

    @shard.use(mesh, rules)
    def loss(params, x):
        return jnp.mean((example.apply(params, x) - x[:, ::-1]) ** 2)

    key = jax.random.key(0)
    state = TrainState.sharded(
        example.start, optimizer, mesh, rules, key=key, axes=example.axes
    )
    step = make_step(loss, optimizer, shardings=state.shardings)
    found = []
    for index in range(steps):
        x = jax.random.normal(jax.random.fold_in(key, index), (32, DIM))
        state, metrics = step(state, shard.place(x, mesh, rules, axes=("batch",)))
        found.append(float(metrics["loss"]))
    return state, found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fake", type=int, help="make this many devices of the CPU")
    parser.add_argument("--tensor", type=int, default=1, help="size of that axis")
    options = parser.parse_args(arguments)
    if options.fake:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.fake)
    mesh = jd.mesh(fsdp=-1, tensor=options.tensor)
    for name, build in EXAMPLES.items():
        example = build()
        state, losses = train(example, mesh, shard.FSDP_TENSOR)
        print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}")
        print(shard.explain(state.params, axes=example.axes))


if __name__ == "__main__":
    main()
