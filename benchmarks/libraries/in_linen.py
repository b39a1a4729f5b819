"""In Flax linen: compact modules, `apply`, and optax."""

from collections.abc import Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import work as given
from benchmarks.libraries import by_hand
from benchmarks.work import Program, Work


class MLP(nn.Module):
    widths: Sequence[int]

    @nn.compact
    def __call__(self, x):
        for index, width in enumerate(self.widths[1:]):
            x = jnp.tanh(nn.Dense(width, name=str(index))(x))
        return x


def mlp(work: Work) -> Program:
    model = MLP(work.config)

    def loss_fn(params, batch):
        x, target = batch
        return jnp.mean((model.apply({"params": params}, x) - target) ** 2)

    optimizer = optax.sgd(given.LEARNING_RATE)
    return by_hand.train(loss_fn, work.weights, work.batch, optimizer)


Norm = functools.partial(nn.BatchNorm, momentum=given.MOMENTUM, epsilon=given.EPSILON)


class ResidualBlock(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train: bool):
        norm = functools.partial(Norm, use_running_average=not train)
        conv = functools.partial(nn.Conv, self.features, use_bias=False)
        strides = (self.stride, self.stride)
        y = conv((3, 3), strides, padding=1, name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv((3, 3), padding=1, name="conv2")(y)
        y = norm(name="bn2")(y)
        if x.shape != y.shape:
            x = conv((1, 1), strides, name="project")(x)
            x = norm(name="project_norm")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    config: given.ResNetConfig

    @nn.compact
    def __call__(self, x, train: bool):
        config = self.config
        conv = nn.Conv(config.width, (3, 3), padding=1, use_bias=False, name="conv1")
        x = nn.relu(Norm(use_running_average=not train, name="bn1")(conv(x)))
        for path, _, features, stride in config.blocks():
            x = ResidualBlock(features, stride, name=path.replace("/", "_"))(x, train)
        return nn.Dense(config.num_classes, name="fc")(x.mean((1, 2)))


def resnet(work: Work) -> Program:
    model = ResNet(work.config)
    images = jnp.asarray(work.batch[0])
    shapes = jax.eval_shape(
        functools.partial(model.init, train=True), jax.random.key(0), images
    )

    def loss_fn(params, statistics, batch):
        images, labels = batch
        variables = {"params": params, "batch_stats": statistics}
        logits, changed = model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed["batch_stats"]

    params = {name: work.weights[name] for name in ("conv1", "bn1", "fc")}
    for path, *_ in work.config.blocks():
        stage, index = path.split("/")
        block = dict(work.weights[stage][index])
        if "downsample" in block:
            both = block.pop("downsample")
            block |= {"project": both["0"], "project_norm": both["1"]}
        params[f"{stage}_{index}"] = block
    statistics = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == "var")),
        shapes["batch_stats"],
    )
    optimizer = optax.sgd(given.LEARNING_RATE, given.MOMENTUM)
    return by_hand.train_with_state(loss_fn, params, statistics, work.batch, optimizer)


class TransformerBlock(nn.Module):
    num_heads: int

    @nn.compact
    def __call__(self, x, mask):
        norm = functools.partial(nn.LayerNorm, epsilon=given.EPSILON)
        attention = nn.MultiHeadDotProductAttention(self.num_heads, name="attn")
        x = x + attention(norm(name="attn_norm")(x), mask=mask)
        y = norm(name="mlp_norm")(x)
        y = nn.gelu(nn.Dense(4 * x.shape[-1], name="up")(y))
        return x + nn.Dense(x.shape[-1], name="down")(y)


class ScannedBlock(nn.Module):
    """A block as `nn.scan` wants it: (carry, broadcast) -> (carry, output)."""

    num_heads: int

    @nn.compact
    def __call__(self, x, mask):
        return TransformerBlock(self.num_heads, name="block")(x, mask), None


class GPT(nn.Module):
    config: Any
    scan: bool

    @nn.compact
    def __call__(self, tokens):
        config = self.config
        embed = nn.Embed(config.vocab_size, config.dim, name="embed")
        position = nn.Embed(config.seq_len, config.dim, name="position")
        x = embed(tokens) + position(jnp.arange(tokens.shape[1]))
        mask = nn.make_causal_mask(tokens[:1])
        if self.scan:
            blocks = nn.scan(
                ScannedBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,  # type: ignore[arg-type]
                length=config.num_layers,
            )
            x, _ = blocks(config.num_heads, name="blocks")(x, mask)
        else:
            for index in range(config.num_layers):
                x = TransformerBlock(config.num_heads, name=f"block{index}")(x, mask)
        return embed.attend(nn.LayerNorm(given.EPSILON, name="norm")(x))


def gpt(work: Work, scan: bool = True) -> Program:
    model = GPT(work.config, scan)

    def loss_fn(params, batch):
        tokens, labels = batch
        logits: Any = model.apply({"params": params}, tokens)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    params = dict(work.weights)
    blocks = renamed(params.pop("blocks"), work.config.num_heads)
    if scan:
        params["blocks"] = {"block": blocks}
    else:
        layers = given.unstack(blocks)
        params |= {f"block{index}": layer for index, layer in enumerate(layers)}
    optimizer = optax.adamw(given.LEARNING_RATE, weight_decay=given.WEIGHT_DECAY)
    return by_hand.train(loss_fn, params, work.batch, optimizer)


def renamed(blocks: dict, num_heads: int) -> dict:
    """A GPT's blocks under Flax's names; the heads become an axis of their own."""
    attn = blocks["attn"]

    def split(leaf: np.ndarray, axis: int) -> np.ndarray:
        """Splits an axis, counted from the end, into heads and what a head has."""
        axis += leaf.ndim
        shape = leaf.shape
        return leaf.reshape(*shape[:axis], num_heads, -1, *shape[axis + 1 :])

    attention = {
        name: jax.tree.map(functools.partial(split, axis=-1), attn[name[0]])
        for name in ("query", "key", "value")
    }
    out = {**attn["out"], "kernel": split(attn["out"]["kernel"], -2)}
    norms = {name: blocks[name] for name in ("attn_norm", "mlp_norm")}
    return {"attn": {**attention, "out": out}, **norms, **blocks["mlp"]}
