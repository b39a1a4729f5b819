"""In Flax nnx: modules that hold variables, and an optimiser that changes them."""

from collections.abc import Callable, Iterable
import functools
from typing import Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from benchmarks import work as given
from benchmarks.libraries import in_linen
from benchmarks.work import Program, Work

Jit = Literal["jax.jit", "nnx.jit"]


def train(
    model: nnx.Module,
    loss_fn: Callable[..., Any],
    batch: Any,
    optimizer: optax.GradientTransformation,
    jit: Jit = "jax.jit",
) -> Program:
    """A step under `nnx.jit`, or, faster to call, under `jax.jit` on a split state."""
    batch = jax.tree.map(jnp.asarray, batch)
    both = (model, nnx.Optimizer(model, optimizer, wrt=nnx.Param))

    def update(model, optimizer, batch):
        loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
        optimizer.update(model, grads)
        return loss

    if jit == "nnx.jit":
        jitted = nnx.jit(update, donate_argnums=(0, 1))

        def call(both, batch):
            model, optimizer = both
            return both, jitted(model, optimizer, batch)

        return Program(call, both, batch)

    graph, state = nnx.split(both)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        model, optimizer = nnx.merge(graph, state)
        loss = update(model, optimizer, batch)
        return nnx.state((model, optimizer)), loss

    return Program(step, state, batch)


def load(model: nnx.Module, weights: dict) -> nnx.Module:
    """Gives a model the weights; dicts with numbers for names are lists of modules."""
    nnx.update(model, nnx.State(numbered(jax.tree.map(jnp.asarray, weights))))
    return model


def numbered(weights: Any) -> Any:
    if not isinstance(weights, dict):
        return weights
    return {
        int(name) if name.isdigit() else name: numbered(part)
        for name, part in weights.items()
    }


def mlp(work: Work, jit: Jit = "jax.jit") -> Program:
    rngs = nnx.Rngs(0)
    layers: list[Any] = []
    for before, after in zip(work.config, work.config[1:], strict=False):
        layers += [nnx.Linear(before, after, rngs=rngs), jnp.tanh]
    model = nnx.Sequential(*layers)
    load(model, {"layers": {str(2 * int(n)): p for n, p in work.weights.items()}})

    def loss_fn(model, batch):
        x, target = batch
        return jnp.mean((model(x) - target) ** 2)

    return train(model, loss_fn, work.batch, optax.sgd(given.LEARNING_RATE), jit)


Norm = functools.partial(nnx.BatchNorm, momentum=given.MOMENTUM, epsilon=given.EPSILON)
Conv3x3 = functools.partial(nnx.Conv, kernel_size=(3, 3), padding=1, use_bias=False)


class ResidualBlock(nnx.Module):
    def __init__(self, before: int, after: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = Conv3x3(before, after, strides=(stride, stride), rngs=rngs)
        self.bn1 = Norm(after, rngs=rngs)
        self.conv2 = Conv3x3(after, after, rngs=rngs)
        self.bn2 = Norm(after, rngs=rngs)
        self.downsample = None
        if before != after:
            project = nnx.Conv(
                before, after, (1, 1), (stride, stride), use_bias=False, rngs=rngs
            )
            self.downsample = nnx.data((project, Norm(after, rngs=rngs)))

    def __call__(self, x):
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.downsample is not None:
            project, norm = self.downsample
            x = norm(project(x))
        return nnx.relu(x + y)


class ResNet(nnx.Module):
    def __init__(self, config: given.ResNetConfig, rngs: nnx.Rngs):
        self.conv1 = Conv3x3(3, config.width, rngs=rngs)
        self.bn1 = Norm(config.width, rngs=rngs)
        self.blocks = nnx.List(
            [ResidualBlock(*sizes, rngs=rngs) for _, *sizes in config.blocks()]
        )
        self.fc = nnx.Linear(config.widths[-1], config.num_classes, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((1, 2)))


def resnet(work: Work) -> Program:
    model = ResNet(work.config, nnx.Rngs(0))
    model.train()
    weights = {name: work.weights[name] for name in ("conv1", "bn1", "fc")}
    weights["blocks"] = {}
    for number, (path, *_) in enumerate(work.config.blocks()):
        stage, index = path.split("/")
        weights["blocks"][str(number)] = work.weights[stage][index]

    optimizer = optax.sgd(given.LEARNING_RATE, given.MOMENTUM)
    return train(load(model, weights), cross_entropy, work.batch, optimizer)


def cross_entropy(model, batch):
    x, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


class TransformerBlock(nnx.Module):
    def __init__(self, dim: int, num_heads: int, rngs: nnx.Rngs):
        norm = functools.partial(nnx.LayerNorm, dim, epsilon=given.EPSILON)
        self.attn_norm, self.mlp_norm = norm(rngs=rngs), norm(rngs=rngs)
        self.attn = nnx.MultiHeadAttention(num_heads, dim, decode=False, rngs=rngs)
        self.up = nnx.Linear(dim, 4 * dim, rngs=rngs)
        self.down = nnx.Linear(4 * dim, dim, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attn(self.attn_norm(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class GPT(nnx.Module):
    def __init__(self, config: Any, scan: bool, rngs: nnx.Rngs):
        dim, layers = config.dim, config.num_layers
        self.embed = nnx.Embed(config.vocab_size, dim, rngs=rngs)
        self.position = nnx.Embed(config.seq_len, dim, rngs=rngs)
        self.scan = scan

        def make(rngs: nnx.Rngs) -> TransformerBlock:
            return TransformerBlock(dim, config.num_heads, rngs)

        self.blocks: Any
        if scan:
            self.blocks = nnx.vmap(make)(rngs.split(layers))
        else:
            self.blocks = nnx.List([make(rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(dim, epsilon=given.EPSILON, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1]))
        mask = nnx.make_causal_mask(tokens[:1])
        if self.scan:
            x = scanned(x, self.blocks, mask)
        else:
            for block in self.blocks:
                x = block(x, mask)
        return self.embed.attend(self.norm(x))


@nnx.scan(in_axes=(nnx.Carry, 0, None), out_axes=nnx.Carry)
def scanned(x, block: TransformerBlock, mask):
    return block(x, mask)


def gpt(work: Work, scan: bool = True) -> Program:
    model = GPT(work.config, scan, nnx.Rngs(0))
    blocks = in_linen.renamed(work.weights["blocks"], work.config.num_heads)
    weights = {**work.weights, "blocks": blocks if scan else by_number(blocks)}
    optimizer = optax.adamw(given.LEARNING_RATE, weight_decay=given.WEIGHT_DECAY)
    return train(load(model, weights), cross_entropy, work.batch, optimizer)


def by_number(blocks: dict) -> dict:
    layers: Iterable[tuple[int, dict]] = enumerate(given.unstack(blocks))
    return {str(index): layer for index, layer in layers}
