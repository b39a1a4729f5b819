"""Written by hand: functions of nested dicts of arrays, `jax.jit` and optax."""

from collections.abc import Callable
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from benchmarks import work as given
from benchmarks.work import Program, Work


def train(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    optimizer: optax.GradientTransformation,
) -> Program:
    """A step on `loss_fn(params, batch) -> loss`."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, batch):
        params, opt_state = carry
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    params = jax.tree.map(jnp.asarray, params)
    carry = (params, optimizer.init(params))
    return Program(step, carry, jax.tree.map(jnp.asarray, batch))


def train_with_state(
    loss_fn: Callable[..., Any],
    params: Any,
    state: Any,
    batch: Any,
    optimizer: optax.GradientTransformation,
) -> Program:
    """A step on `loss_fn(params, state, batch) -> (loss, state)`."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, batch):
        params, state, opt_state = carry
        value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, state), grads = value_and_grad(params, state, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), loss

    params = jax.tree.map(jnp.asarray, params)
    carry = (params, state, optimizer.init(params))
    return Program(step, carry, jax.tree.map(jnp.asarray, batch))


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


# An MLP, in each of the forms that its parameters may have.


def mlp(work: Work, form: Literal["dict", "list"] = "dict") -> Program:
    """Parameters as nested dicts, or as one flat list of arrays."""
    names = list(work.weights)

    def from_dict(params, x):
        for name in names:
            x = jnp.tanh(linear(params[name], x))
        return x

    def from_list(params, x):
        for kernel, bias in zip(params[::2], params[1::2], strict=True):
            x = jnp.tanh(x @ kernel + bias)
        return x

    flat = [a for p in work.weights.values() for a in (p["kernel"], p["bias"])]
    params, forward = {
        "dict": (work.weights, from_dict),
        "list": (flat, from_list),
    }[form]

    def loss_fn(params, batch):
        x, target = batch
        return jnp.mean((forward(params, x) - target) ** 2)

    return train(loss_fn, params, work.batch, optax.sgd(given.LEARNING_RATE))


def scanned_mlp(work: Work) -> Program:
    """Layers of one shape, stacked: one scan over two arrays."""

    def loss_fn(params, batch):
        x, target = batch
        y, _ = jax.lax.scan(lambda x, p: (jnp.tanh(linear(p, x)), None), x, params)
        return jnp.mean((y - target) ** 2)

    params = given.stack(list(work.weights.values()))
    return train(loss_fn, params, work.batch, optax.sgd(given.LEARNING_RATE))


# A residual network, trained with the statistics of the batch.


def conv(params, x, stride: int = 1):
    kernel = params["kernel"]
    side = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(side, side), (side, side)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def batch_norm(params, state, x):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    y = (x - mean) * jax.lax.rsqrt(var + given.EPSILON)
    new = {
        "mean": given.MOMENTUM * state["mean"] + (1 - given.MOMENTUM) * mean,
        "var": given.MOMENTUM * state["var"] + (1 - given.MOMENTUM) * var,
    }
    return y * params["scale"] + params["bias"], new


def residual_block(params, state, x, stride: int):
    new = {}
    y = conv(params["conv1"], x, stride)
    y, new["bn1"] = batch_norm(params["bn1"], state["bn1"], y)
    y = conv(params["conv2"], jax.nn.relu(y))
    y, new["bn2"] = batch_norm(params["bn2"], state["bn2"], y)
    if "downsample" in params:
        project, norm = params["downsample"]["0"], params["downsample"]["1"]
        x = conv(project, x, stride)
        x, new["downsample"] = batch_norm(norm, state["downsample"], x)
    return jax.nn.relu(x + y), new


def resnet(work: Work) -> Program:
    def loss_fn(params, state, batch):
        images, labels = batch
        new = {}
        x = conv(params["conv1"], images)
        x, new["bn1"] = batch_norm(params["bn1"], state["bn1"], x)
        x = jax.nn.relu(x)
        for path, _, _, stride in work.config.blocks():
            stage, index = path.split("/")
            x, new[path] = residual_block(params[stage][index], state[path], x, stride)
        logits = linear(params["fc"], x.mean((1, 2)))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), new

    optimizer = optax.sgd(given.LEARNING_RATE, given.MOMENTUM)
    state = initial_statistics(work)
    return train_with_state(loss_fn, work.weights, state, work.batch, optimizer)


def initial_statistics(work: Work) -> dict:
    def statistics(features):
        return {"mean": jnp.zeros(features), "var": jnp.ones(features)}

    state: dict[str, Any] = {"bn1": statistics(work.config.width)}
    for path, before, after, _ in work.config.blocks():
        state[path] = {"bn1": statistics(after), "bn2": statistics(after)}
        if before != after:
            state[path]["downsample"] = statistics(after)
    return state


# A GPT: its blocks in one scan over stacked parameters, or one after the other.


def layer_norm(params, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    y = (x - mean) * jax.lax.rsqrt(var + given.EPSILON)
    return y * params["scale"] + params["bias"]


def attention(params, x, num_heads: int):
    batch, seq, dim = x.shape
    shape = (batch, seq, num_heads, dim // num_heads)
    q, k, v = (linear(params[name], x).reshape(shape) for name in "qkv")
    scores = jnp.einsum("bqhd,bkhd->bhqk", q * shape[-1] ** -0.5, k)
    causal = jnp.tril(jnp.ones((seq, seq), bool))
    pattern = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    heads = jnp.einsum("bhqk,bkhd->bqhd", pattern, v)
    return linear(params["out"], heads.reshape(x.shape))


def transformer_block(params, x, num_heads: int):
    y = layer_norm(params["attn_norm"], x)
    x = x + attention(params["attn"], y, num_heads)
    y = layer_norm(params["mlp_norm"], x)
    y = jax.nn.gelu(linear(params["mlp"]["up"], y))
    return x + linear(params["mlp"]["down"], y)


def gpt(work: Work, scan: bool = True) -> Program:
    heads = work.config.num_heads

    def scanned(blocks, x):
        step = functools.partial(transformer_block, num_heads=heads)
        return jax.lax.scan(lambda x, block: (step(block, x), None), x, blocks)[0]

    def looped(blocks, x):
        for block in blocks:
            x = transformer_block(block, x, heads)
        return x

    apply_blocks = scanned if scan else looped

    def loss_fn(params, batch):
        tokens, labels = batch
        table = params["embed"]["embedding"]
        x = table[tokens] + params["position"]["embedding"][: tokens.shape[1]]
        x = apply_blocks(params["blocks"], x)
        logits = layer_norm(params["norm"], x) @ table.T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    params = dict(work.weights)
    if not scan:
        params["blocks"] = given.unstack(params["blocks"])
    optimizer = optax.adamw(given.LEARNING_RATE, weight_decay=given.WEIGHT_DECAY)
    return train(loss_fn, params, work.batch, optimizer)
