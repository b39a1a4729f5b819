"""The work that every library is given: one set of weights, one batch.

The weights are a nested dict of numpy arrays: kernels [in, out], convolutions [height,
width, in, out], the blocks of a GPT stacked on a leading axis. The file of each library
turns them into its own. They come from the initialisers of jaxdl and a little noise on
top, because weights that all start as 0 or 1 would hide a swapped name.
"""

from collections.abc import Iterator
import dataclasses
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import models
from jaxdl.core import tree

LEARNING_RATE = 1e-3
MOMENTUM = 0.9  # of the optimiser and of the running statistics
WEIGHT_DECAY = 1e-2
EPSILON = 1e-5


class Work(NamedTuple):
    """The initial weights, the batch `(x, target)`, and the sizes behind them."""

    weights: dict[str, Any]
    batch: tuple[np.ndarray, np.ndarray]
    config: Any = None


@dataclasses.dataclass
class Program:
    """A training step, what it carries from call to call, and the batch it is given.

    `step(carry, batch)` returns `(carry, loss)`. The carry is donated, so a program
    owns it.
    """

    step: Any
    carry: Any
    batch: Any

    def __call__(self) -> Any:
        self.carry, loss = self.step(self.carry, self.batch)
        return loss

    def wait(self) -> None:
        """Until the last step is done; PyTorch's is when it returns."""
        jax.block_until_ready(self.carry)


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """ResNet in its form for small images; the depths are those of ResNet-18."""

    depths: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    num_classes: int = 10

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width * 2**stage for stage in range(len(self.depths)))

    def blocks(self) -> Iterator[tuple[str, int, int, int]]:
        """Each block's path, its features in and out, and its stride."""
        before = self.width
        for stage, (depth, width) in enumerate(
            zip(self.depths, self.widths, strict=True)
        ):
            for index in range(depth):
                stride = 2 if stage and not index else 1
                yield f"layer{stage + 1}/{index}", before, width, stride
                before = width


def mlp(widths: tuple[int, ...], batch_size: int) -> Work:
    """Linear layers "0", "1", ..., each with a tanh, and the mean squared error."""
    model = models.mlp(widths, jnp.tanh)
    params = model.init(jax.random.key(0))
    weights = noisy({str(i): params[str(2 * i)] for i in range(len(widths) - 1)})
    # In the order of the layers: JAX has sorted the names, and "10" is before "2".
    weights = {str(i): weights[str(i)] for i in range(len(weights))}
    rng = np.random.default_rng(0)
    x, target = (normal(rng, (batch_size, size)) for size in (widths[0], widths[-1]))
    return Work(weights, (x, target), widths)


def deep_mlp(layers: int, width: int, batch_size: int) -> Work:
    """As `mlp`, with every kernel near the identity.

    The signal must not die on the way: a CPU is slow at subnormal numbers, and this is
    to measure the call.
    """
    work = mlp((width,) * (layers + 1), batch_size)
    for layer in work.weights.values():
        layer["kernel"] = np.eye(width, dtype=np.float32) + 0.1 * layer["kernel"]
    return work


def resnet(config: ResNetConfig, batch_size: int) -> Work:
    """Images of 32 x 32 pixels; the weights are called as in torchvision."""
    model = models.ResNet(
        config.depths,
        config.widths,
        num_classes=config.num_classes,
        small_images=True,
    )
    rng = np.random.default_rng(0)
    images = normal(rng, (batch_size, 32, 32, 3))
    labels = rng.integers(config.num_classes, size=batch_size).astype(np.int32)
    weights = noisy(model.init(jax.random.key(0)))
    return Work(weights, (images, labels), config)


def gpt(config: models.DecoderConfig, batch_size: int) -> Work:
    """Random tokens and their successors."""
    weights = models.Decoder(config).init(jax.random.key(0))
    rng = np.random.default_rng(0)
    size = (batch_size, config.seq_len + 1)
    tokens = rng.integers(config.vocab_size, size=size).astype(np.int32)
    return Work(noisy(weights), (tokens[:, :-1], tokens[:, 1:]), config)


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def noisy(weights: dict) -> dict:
    """Arrays of numpy with some noise; parts without any array are left out."""
    rng = np.random.default_rng(1)
    return tree.unflatten(
        {
            path: np.asarray(leaf) + 0.02 * normal(rng, leaf.shape)
            for path, leaf in tree.flatten(weights).items()
        }
    )


def unstack(blocks: dict) -> list[dict]:
    """Splits stacked layers into one dict of weights for each."""
    number = len(jax.tree.leaves(blocks)[0])
    return [jax.tree.map(operator.itemgetter(index), blocks) for index in range(number)]


def stack(layers: list[dict]) -> dict:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
