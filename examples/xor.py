"""The founding program: exclusive or, learned by a network of two, four and one units.

    python examples/xor.py

Whether such a network learns depends on where it starts. So each variant is trained
from 100 seeds at once, as one vectorised program, and the table says how many of the
100 give the right answer to all four inputs. docs/xor.md explains what it shows.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.nn import sigmoid
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import jaxdl as jd
from jaxdl import models

X = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
T = jnp.array([[0.0], [1.0], [1.0], [0.0]])


class Loss(NamedTuple):
    """What is minimised, and how the network's output is read: above 1/2 means 1."""

    error: Callable
    read: Callable


LOSSES = {
    "squared error": Loss(optax.squared_error, lambda y: y),
    "squared error of a sigmoid": Loss(
        lambda y, t: optax.squared_error(sigmoid(y), t), sigmoid
    ),
    "sigmoid cross-entropy": Loss(optax.sigmoid_binary_cross_entropy, sigmoid),
    "the same, after a sigmoid": Loss(
        lambda y, t: optax.sigmoid_binary_cross_entropy(sigmoid(y), t),
        lambda y: sigmoid(sigmoid(y)),
    ),
}
ACTIVATIONS = {
    "none": lambda x: x,
    "tanh": jnp.tanh,
    "sigmoid": sigmoid,
    "relu": jax.nn.relu,
}
OPTIMIZERS = {
    "gradient descent": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "Adam": optax.adam(0.1),
}
VARIANTS = [
    ("none", "squared error"),
    *(("tanh", loss) for loss in LOSSES),
    *((hidden, loss) for hidden in ("sigmoid", "relu") for loss in list(LOSSES)[::2]),
]


def train(
    key: jax.Array,
    model: jd.Module,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    steps: int,
):
    """Trains one network on the four examples: `(params, errors [steps])`."""

    def error(params):
        return loss.error(model(params, X), T).mean()

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(error)(params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = model.init(key)
    start = (params, optimizer.init(params))
    (params, _), errors = jax.lax.scan(step, start, length=steps)
    return params, errors


def learned(
    model: jd.Module,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    seeds: int = 100,
    steps: int = 1000,
) -> jax.Array:
    """Whether the network of each seed gets all four inputs right: bool [seeds]."""

    def succeeds(key):
        params, _ = train(key, model, loss, optimizer, steps)
        return jnp.all((loss.read(model(params, X)) > 0.5) == (T > 0.5))

    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.jit(jax.vmap(succeeds))(keys)


def main(arguments: list[str] | None = None) -> dict[tuple[str, str, str], int]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=4, help="units in the middle")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args(arguments)
    console = Console()

    network = models.mlp([2, given.hidden, 1], jnp.tanh)
    loss, optimizer = LOSSES["squared error"], OPTIMIZERS["gradient descent"]
    params, errors = train(jax.random.key(0), network, loss, optimizer, given.steps)
    console.print(f"error {errors[0]:.4f} before, {errors[-1]:.4f} after; it answers")
    for inputs, answer in zip(X, network(params, X), strict=True):
        console.print(f"  {inputs[0]:.0f} xor {inputs[1]:.0f} = {answer[0]:.2f}")

    table = Table(
        title=f"right from how many of {given.seeds} seeds, {given.steps} steps"
    )
    for column in ("hidden layer", "loss", *OPTIMIZERS):
        table.add_column(column, justify="right" if column in OPTIMIZERS else "left")
    counts = {}
    for hidden, loss in track(VARIANTS, "training", console=console, transient=True):
        network = models.mlp([2, given.hidden, 1], ACTIVATIONS[hidden])
        for name, optimizer in OPTIMIZERS.items():
            right = learned(network, LOSSES[loss], optimizer, given.seeds, given.steps)
            counts[hidden, loss, name] = int(right.sum())
        row = (str(counts[hidden, loss, name]) for name in OPTIMIZERS)
        table.add_row(hidden, loss, *row)
    console.print(table)
    return counts


if __name__ == "__main__":
    main()
