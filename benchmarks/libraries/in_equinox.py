"""In Equinox: modules that are pytrees, written for one example and vmapped."""

from collections.abc import Callable
import functools
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import work as given
from benchmarks.work import Program, Work
from jaxdl.core import tree

Jit = Literal["jax.jit", "filter_jit"]


def train(
    model: Any,
    loss_fn: Callable[..., Any],
    batch: Any,
    optimizer: optax.GradientTransformation,
    jit: Jit = "jax.jit",
) -> Program:
    """A step on `loss_fn(model, state, batch) -> (loss, state)` for `(model, state)`.

    Under `filter_jit`, or, faster to call, under `jax.jit` on the arrays alone.
    """
    batch = jax.tree.map(jnp.asarray, batch)

    def update(model, state, opt_state, batch):
        value_and_grad = eqx.filter_value_and_grad(loss_fn, has_aux=True)
        (loss, state), grads = value_and_grad(model, state, batch)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (eqx.apply_updates(model, updates), state, opt_state), loss

    model, state = model
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    carry = (model, state, opt_state)

    if jit == "filter_jit":
        # The batch comes first, because that is the one argument that may be kept.
        @eqx.filter_jit(donate="all-except-first")
        def jitted(batch, carry):
            model, state, opt_state = carry
            return update(model, state, opt_state, batch)

        return Program(lambda carry, batch: jitted(batch, carry), carry, batch)

    arrays, static = eqx.partition(carry, eqx.is_array)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(arrays, batch):
        model, state, opt_state = eqx.combine(arrays, static)
        carry, loss = update(model, state, opt_state, batch)
        return eqx.filter(carry, eqx.is_array), loss

    return Program(step, arrays, batch)


def load(model: Any, weights: dict) -> Any:
    """Gives a model the weights; dicts with numbers for names are its tuples."""
    leaves = {path: place(path) for path in tree.flatten(weights)}
    given = [features_first(leaf, p) for p, leaf in tree.flatten(weights).items()]
    return eqx.tree_at(
        lambda model: [functools.reduce(step, at, model) for at in leaves.values()],
        model,
        [jnp.asarray(leaf) for leaf in given],
    )


def place(path: str) -> list[str]:
    *parents, name = path.split("/")
    return [*parents, name if name == "bias" else "weight"]


def step(node: Any, name: str) -> Any:
    return node[int(name)] if name.isdigit() else getattr(node, name)


def features_first(leaf: np.ndarray, path: str) -> np.ndarray:
    """[in, out] -> [out, in], [height, width, in, out] -> [out, in, height, width]."""
    if path.endswith("kernel") and leaf.ndim == 4:
        return np.moveaxis(leaf, (-1, -2), (0, 1))
    return leaf.swapaxes(-1, -2) if path.endswith("kernel") else leaf


def mlp(work: Work, jit: Jit = "jax.jit") -> Program:
    key = jax.random.key(0)
    layers: list[Any] = []
    for before, after in zip(work.config, work.config[1:], strict=False):
        layers += [eqx.nn.Linear(before, after, key=key), eqx.nn.Lambda(jnp.tanh)]
    model = eqx.nn.Sequential(layers)
    weights = {str(2 * int(name)): p for name, p in work.weights.items()}
    model = load(model, {"layers": weights})

    def loss_fn(model, state, batch):
        x, target = batch
        return jnp.mean((jax.vmap(model)(x) - target) ** 2), state

    optimizer = optax.sgd(given.LEARNING_RATE)
    return train((model, None), loss_fn, work.batch, optimizer, jit)


class Norm(eqx.nn.BatchNorm):
    def __init__(self, features: int):
        super().__init__(
            features, "batch", given.EPSILON, momentum=given.MOMENTUM, mode="batch"
        )


class ResidualBlock(eqx.Module):
    conv1: eqx.nn.Conv2d
    bn1: Norm
    conv2: eqx.nn.Conv2d
    bn2: Norm
    downsample: tuple[eqx.nn.Conv2d, Norm] | None

    def __init__(self, before: int, after: int, stride: int, key: jax.Array):
        conv = functools.partial(eqx.nn.Conv2d, use_bias=False, key=key)
        self.conv1 = conv(before, after, 3, stride, padding=1)
        self.bn1 = Norm(after)
        self.conv2 = conv(after, after, 3, padding=1)
        self.bn2 = Norm(after)
        self.downsample = None
        if before != after:
            self.downsample = (conv(before, after, 1, stride), Norm(after))

    def __call__(self, x, state):
        y, state = self.bn1(self.conv1(x), state)
        y, state = self.bn2(self.conv2(jax.nn.relu(y)), state)
        if self.downsample is not None:
            project, norm = self.downsample
            x, state = norm(project(x), state)
        return jax.nn.relu(x + y), state


class ResNet(eqx.Module):
    conv1: eqx.nn.Conv2d
    bn1: Norm
    blocks: list[ResidualBlock]
    fc: eqx.nn.Linear

    def __init__(self, config: given.ResNetConfig, key: jax.Array):
        self.conv1 = eqx.nn.Conv2d(
            3, config.width, 3, padding=1, use_bias=False, key=key
        )
        self.bn1 = Norm(config.width)
        self.blocks = [
            ResidualBlock(before, after, stride, key)
            for _, before, after, stride in config.blocks()
        ]
        self.fc = eqx.nn.Linear(config.widths[-1], config.num_classes, key=key)

    def __call__(self, x, state):
        x, state = self.bn1(self.conv1(x), state)
        x = jax.nn.relu(x)
        for block in self.blocks:
            x, state = block(x, state)
        return self.fc(x.mean((1, 2))), state


def resnet(work: Work) -> Program:
    model, state = eqx.nn.make_with_state(ResNet)(work.config, jax.random.key(0))
    weights = {name: work.weights[name] for name in ("conv1", "bn1", "fc")}
    weights["blocks"] = {}
    for number, (path, *_) in enumerate(work.config.blocks()):
        stage, index = path.split("/")
        weights["blocks"][str(number)] = work.weights[stage][index]

    def loss_fn(model, state, batch):
        images, labels = batch
        forward = jax.vmap(
            model, axis_name="batch", in_axes=(0, None), out_axes=(0, None)
        )
        logits, state = forward(images, state)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    images, labels = work.batch
    batch = (np.moveaxis(images, -1, 1), labels)
    optimizer = optax.sgd(given.LEARNING_RATE, given.MOMENTUM)
    return train((load(model, weights), state), loss_fn, batch, optimizer)


class TransformerBlock(eqx.Module):
    attn_norm: eqx.nn.LayerNorm
    attn: eqx.nn.MultiheadAttention
    mlp_norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, dim: int, num_heads: int, key: jax.Array):
        self.attn_norm, self.mlp_norm = eqx.nn.LayerNorm(dim), eqx.nn.LayerNorm(dim)
        self.attn = eqx.nn.MultiheadAttention(
            num_heads,
            dim,
            use_query_bias=True,
            use_key_bias=True,
            use_value_bias=True,
            use_output_bias=True,
            key=key,
        )
        self.up = eqx.nn.Linear(dim, 4 * dim, key=key)
        self.down = eqx.nn.Linear(4 * dim, dim, key=key)

    def __call__(self, x, mask):
        y = jax.vmap(self.attn_norm)(x)
        x = x + self.attn(y, y, y, mask)
        y = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.mlp_norm)(x)))
        return x + jax.vmap(self.down)(y)


class GPT(eqx.Module):
    embed: eqx.nn.Embedding
    position: eqx.nn.Embedding
    blocks: Any
    norm: eqx.nn.LayerNorm
    scan: bool = eqx.field(static=True)

    def __init__(self, config: Any, scan: bool, key: jax.Array):
        dim = config.dim
        self.embed = eqx.nn.Embedding(config.vocab_size, dim, key=key)
        self.position = eqx.nn.Embedding(config.seq_len, dim, key=key)
        self.norm = eqx.nn.LayerNorm(dim)
        self.scan = scan
        make = functools.partial(TransformerBlock, dim, config.num_heads)
        keys = jax.random.split(key, config.num_layers)
        self.blocks = eqx.filter_vmap(make)(keys) if scan else [make(k) for k in keys]

    def __call__(self, tokens):
        mask = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        x = jax.vmap(self.embed)(tokens) + self.position.weight[: len(tokens)]
        if self.scan:
            arrays, static = eqx.partition(self.blocks, eqx.is_array)

            def apply(x, arrays):
                return eqx.combine(arrays, static)(x, mask), None

            x, _ = jax.lax.scan(apply, x, arrays)
        else:
            for block in self.blocks:
                x = block(x, mask)
        return jax.vmap(self.norm)(x) @ self.embed.weight.T


def gpt(work: Work, scan: bool = True) -> Program:
    def loss_fn(model, state, batch):
        tokens, labels = batch
        logits = jax.vmap(model)(tokens)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    blocks = renamed(work.weights["blocks"])
    if not scan:
        blocks = {str(i): block for i, block in enumerate(given.unstack(blocks))}
    model = GPT(work.config, scan, jax.random.key(0))
    model = load(model, {**work.weights, "blocks": blocks})
    optimizer = optax.adamw(given.LEARNING_RATE, weight_decay=given.WEIGHT_DECAY)
    return train((model, None), loss_fn, work.batch, optimizer)


def renamed(blocks: dict) -> dict:
    """A GPT's blocks under Equinox's names."""
    names = {
        "q": "query_proj",
        "k": "key_proj",
        "v": "value_proj",
        "out": "output_proj",
    }
    attn = {names[name]: leaf for name, leaf in blocks["attn"].items()}
    norms = {name: blocks[name] for name in ("attn_norm", "mlp_norm")}
    return {**norms, "attn": attn, **blocks["mlp"]}
