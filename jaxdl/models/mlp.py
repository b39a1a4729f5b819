"""The multilayer perceptron."""

from collections.abc import Callable, Sequence

import jax

from jaxdl.core import init as initializers
from jaxdl.nn.combine import Sequential
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Linear

LECUN_NORMAL = initializers.lecun_normal()


def mlp(
    widths: Sequence[int],
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    *,
    dropout: float = 0.0,
    kernel_init: Callable[..., jax.Array] = LECUN_NORMAL,
) -> Sequential:
    """Linear layers with an activation between: [..., widths[0]] -> [..., widths[-1]].

    The last layer has none. Dropout, if any, follows each activation; without it the
    layers are "0", "2", "4" in the parameters. Raises ValueError for fewer than two
    widths.

    >>> model = mlp([2, 4, 1], jax.numpy.tanh)
    >>> sorted(model.init(jax.random.key(0)))
    ['0', '2']
    """
    if len(widths) < 2:
        raise ValueError(f"mlp: expected at least two widths, got {list(widths)}")
    layers: list = [Linear(widths[0], widths[1], kernel_init=kernel_init)]
    for before, width in zip(widths[1:], widths[2:], strict=False):
        layers.append(activation)
        if dropout:
            layers.append(Dropout(dropout))
        layers.append(Linear(before, width, kernel_init=kernel_init))
    return Sequential(layers)
