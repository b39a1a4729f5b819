"""A small convolutional network, for images of some 8 to 32 pixels."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax

from jaxdl.core import init as initializers
from jaxdl.nn.combine import Sequential
from jaxdl.nn.conv import Conv
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Linear
from jaxdl.nn.pool import Flatten, MaxPool


def cnn(
    image_shape: tuple[int, int, int],
    num_classes: int,
    widths: Sequence[int] = (32, 64),
    activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
    *,
    dropout: float = 0.0,
) -> Sequential:
    """Classifies images: [batch, height, width, features] -> [batch, num_classes].

    For each width two 3x3 convolutions and a 2x2 max pooling (Simonyan and Zisserman
    2014, arXiv:1409.1556), then a linear layer on all that is left, with dropout before
    it. `image_shape` is (height, width, features). Raises ValueError when the pooling
    leaves nothing of the image.

    >>> model = cnn((8, 8, 1), num_classes=10)
    >>> model(model.init(jax.random.key(0)), jax.numpy.ones((2, 8, 8, 1))).shape
    (2, 10)
    """
    height, width, features = image_shape
    left = (height >> len(widths)) * (width >> len(widths))
    if not left or not widths:
        raise ValueError(
            "cnn: expected some widths, and images that can be halved for each, got "
            f"widths={tuple(widths)} and image_shape={image_shape}"
        )
    init = initializers.he_normal()
    layers: list = []
    for before, after in pairwise((features, *widths)):
        layers += [
            Conv(before, after, (3, 3), kernel_init=init),
            activation,
            Conv(after, after, (3, 3), kernel_init=init),
            activation,
            MaxPool((2, 2)),
        ]
    head = Linear(left * widths[-1], num_classes)
    return Sequential([*layers, Flatten(), Dropout(dropout), head])
