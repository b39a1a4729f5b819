"""Losses that optax lacks: weighted token cross-entropy, whole or chunked.

Every other loss is optax's; `weighted_mean` turns its per-example values into a scalar:
`weighted_mean(optax.squared_error(y, target), weights)`, and so for
`optax.sigmoid_binary_cross_entropy`, `optax.huber_loss` and the rest.

Labels are class indices in `[0, vocab)`; tokens to ignore get weight 0, whatever their
label. A label out of range with any other weight makes the loss and all its gradients
NaN: compiled code cannot raise, and a plausible number would be worse.
"""

from functools import partial
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from jaxdl.core.mark_primitive import Choice, mark


def cross_entropy(
    logits: Float[Array, "*batch vocab"],
    labels: Int[Array, "*batch"],
    *,
    weights: Real[Array, "*batch"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
) -> Float[Array, ""]:
    """Weighted mean of `token_cross_entropy`: [..., vocab], [...] -> float32 scalar.

    `weights=None` weighs every token 1; weights that sum to 0 give 0.

    >>> print(cross_entropy(jnp.zeros((2, 4)), jnp.array([3, 1])))  # ln 4
    1.3862944
    """
    options = _Options(label_smoothing, z_loss, soft_cap)
    _check_options(options)
    _check_labels(labels, logits.shape[:-1])
    losses = weighted_mean(_token_losses(logits, labels, options), weights)
    loss = losses * _validity(labels, weights, logits.shape[-1])
    return mark(loss, "loss", _WHOLE, name="cross_entropy")


def token_cross_entropy(
    logits: Float[Array, "*batch vocab"],
    labels: Int[Array, "*batch"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy of each token in nats: [..., vocab], [...] -> [...], in float32.

    `soft_cap` replaces the logits by `cap * tanh(logits / cap)` (Gemma 2,
    arXiv:2408.00118); `label_smoothing` mixes the target with the uniform distribution
    (`optax.smooth_labels`); `z_loss` adds `z_loss * logsumexp(logits)**2` (PaLM,
    arXiv:2204.02311, section 5). Labels out of range give NaN.
    """
    options = _Options(label_smoothing, z_loss, soft_cap)
    _check_options(options)
    _check_labels(labels, logits.shape[:-1])
    losses = _token_losses(logits, labels, options)
    losses = jnp.where(_in_range(labels, logits.shape[-1]), losses, jnp.nan)
    return mark(losses, "loss", _WHOLE, name="token_cross_entropy")


def weighted_mean(
    values: Real[Array, "*batch"], weights: Real[Array, "*batch"] | None = None
) -> Float[Array, ""]:
    """Mean of the values by weight, in float32; 0 when the weights sum to 0.

    A value of weight 0 does not count, not even when it is NaN. Raises ValueError when
    the shapes differ: a broadcast weight is almost always a mistake.

    >>> print(weighted_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 3, 0])))
    2.5
    """
    values, weights = jnp.asarray(values), _weights(weights, jnp.shape(values))
    values = jnp.where(weights == 0, 0.0, values.astype(jnp.float32))
    return _divide(jnp.sum(values * weights), jnp.sum(weights))


def chunked_cross_entropy(
    hidden: Float[Array, "*batch dim"],
    kernel: Float[Array, "dim vocab"],
    labels: Int[Array, "*batch"],
    *,
    chunk_size: int = 256,
    bias: Float[Array, " vocab"] | None = None,
    weights: Real[Array, "*batch"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    token_shards: int = 1,
) -> Float[Array, ""]:
    """`cross_entropy(hidden @ kernel + bias, labels)` that never holds all the logits.

    [..., dim], [dim, vocab], [...] -> float32 scalar. Tokens go through the head
    `chunk_size` at a time, so that the logits take `4 * chunk_size * vocab` bytes.
    Under differentiation each chunk computes its gradients while its logits are there:
    no logit is stored or computed twice, and the kernel's gradient is summed in
    float32. Matrix products are taken in the inputs' dtypes and summed in float32;
    gradients come in the inputs' dtypes. Forward-mode differentiation is not defined.

    On a mesh that splits the tokens (in order) over several devices, give their number
    as `token_shards`: each device then sums its own kernel gradient over all its
    chunks, and one reduction follows the loop; with 1 there is one for each chunk.
    `chunk_size` counts the tokens of one shard. Gather a kernel that is sharded over
    the same devices on its vocabulary first, or every chunk's tokens are gathered.

    Raises ValueError when shapes disagree or `token_shards` does not divide the tokens.
    """
    options = _Options(label_smoothing, z_loss, soft_cap)
    _check_options(options)
    _check_head(hidden, kernel, bias)
    _check_labels(labels, hidden.shape[:-1])
    weights = _weights(weights, labels.shape)
    if token_shards < 1 or labels.size % token_shards or chunk_size < 1:
        raise ValueError(
            "expected token_shards that divides the tokens and a chunk_size from 1, "
            f"got {token_shards} for {labels.size} tokens and {chunk_size}"
        )
    split = partial(_split, shards=token_shards, chunk_size=chunk_size)
    head = (kernel, bias)
    chunks = (split(hidden, labels.ndim), split(labels), split(weights))
    total: jax.Array = _chunked_sum(options, head, *chunks)  # type: ignore[assignment]
    validity = _validity(labels, weights, kernel.shape[-1])
    loss = _divide(total, jnp.sum(weights)) * validity
    return mark(loss, "loss", Choice("chunked"), name="chunked_cross_entropy")


_WHOLE = Choice("plain", "takes all the logits; chunked_cross_entropy holds a chunk")


class _Options(NamedTuple):
    label_smoothing: float
    z_loss: float
    soft_cap: float | None


def _token_losses(logits, labels, options: _Options):
    # The label's logit is picked by comparison, not by a gather: the gradient needs no
    # scatter, and the vocabulary may be sharded.
    logits = logits.astype(jnp.float32)
    if options.soft_cap is not None:
        logits = options.soft_cap * jnp.tanh(logits / options.soft_cap)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    is_label = jnp.arange(logits.shape[-1]) == labels[..., None]
    target = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    if options.label_smoothing:
        uniform = jnp.mean(logits, axis=-1)
        target += options.label_smoothing * (uniform - target)
    losses = normalizer - target
    return losses + options.z_loss * normalizer**2 if options.z_loss else losses


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_sum(options, head, hidden, labels, weights):
    """Weighted sum of the losses; tokens are [chunks, shards, chunk_size, ...]."""

    def step(total, chunk):
        hidden, labels, weights = chunk
        losses = _token_losses(_logits(head, hidden), labels, options)
        return total + jnp.sum(losses * weights, axis=1), None

    totals = jnp.zeros(hidden.shape[1], jnp.float32)
    return jnp.sum(jax.lax.scan(step, totals, (hidden, labels, weights))[0])


def _chunked_sum_forward(options, head, hidden, labels, weights):
    kernel, bias = head
    dtype = jnp.result_type(hidden, kernel)

    def step(carry, chunk):
        total, d_kernel, d_bias = carry
        hidden, labels, weights = chunk
        losses, pull = jax.vjp(
            lambda logits: _token_losses(logits, labels, options), _logits(head, hidden)
        )
        (d_logits,) = pull(weights)
        if bias is not None:
            d_bias += jnp.sum(d_logits, axis=1)
        d_logits = d_logits.astype(dtype)
        d_hidden = _product("scv,dv->scd", d_logits, kernel).astype(hidden.dtype)
        d_kernel += _product("scd,scv->sdv", hidden, d_logits)
        total += jnp.sum(losses * weights, axis=1)
        return (total, d_kernel, d_bias), (d_hidden, losses)

    # A sum of each kind for each shard, so that the loop needs no reduction.
    zeros = jax.tree.map(
        lambda x: jnp.zeros((hidden.shape[1], *x.shape), jnp.float32),
        (jnp.float32(0.0), kernel, bias),
    )
    sums, per_token = jax.lax.scan(step, zeros, (hidden, labels, weights))
    total, *d_head = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
    return total, (head, tuple(d_head), *per_token)


def _chunked_sum_backward(options, residuals, cotangent):
    head, d_head, d_hidden, losses = residuals
    d_head = jax.tree.map(lambda x, d: (d * cotangent).astype(x.dtype), head, d_head)
    d_hidden = (d_hidden * cotangent).astype(d_hidden.dtype)
    return d_head, d_hidden, None, losses * cotangent


_chunked_sum.defvjp(_chunked_sum_forward, _chunked_sum_backward)


def _logits(head, hidden):
    kernel, bias = head
    logits = _product("scd,dv->scv", hidden, kernel)
    return logits if bias is None else logits + bias.astype(jnp.float32)


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _split(array, token_axes: int | None = None, *, shards: int, chunk_size: int):
    """[*tokens, ...] -> [chunks, shards, chunk, ...], padded with zeros."""
    features = array.shape[token_axes:] if token_axes is not None else ()
    per_shard = math.prod(array.shape) // math.prod(features) // shards
    chunks = max(1, math.ceil(per_shard / chunk_size))
    # The smallest chunks that make this number of them, for the least padding.
    chunk = max(1, math.ceil(per_shard / chunks))
    padding = [(0, 0), (0, chunks * chunk - per_shard)] + [(0, 0)] * len(features)
    padded = jnp.pad(array.reshape(shards, per_shard, *features), padding)
    # A chunk takes every `chunks`-th token. Neighbours would lie on one device of a
    # mesh that splits the tokens, and XLA would have every device compute all of them.
    return jnp.moveaxis(padded.reshape(shards, chunk, chunks, *features), 2, 0)


def _validity(labels, weights, vocab: int) -> jax.Array:
    """1, or NaN when a label that counts is out of range; a factor of the loss."""
    wrong = ~_in_range(labels, vocab) & (_weights(weights, labels.shape) != 0)
    return jnp.where(jnp.any(wrong), jnp.nan, 1.0)


def _in_range(labels, vocab: int) -> jax.Array:
    return (labels >= 0) & (labels < vocab)


def _divide(total: jax.Array, weight: jax.Array) -> jax.Array:
    # The inner where keeps the gradient of the branch that is not taken finite.
    return jnp.where(weight == 0, 0.0, total / jnp.where(weight == 0, 1.0, weight))


def _weights(weights, shape: tuple[int, ...]) -> jax.Array:
    if weights is None:
        return jnp.ones(shape, jnp.float32)
    if jnp.shape(weights) != shape:
        raise ValueError(
            f"weights: expected one for each value, shape {shape}, got "
            f"{jnp.shape(weights)}"
        )
    return jnp.asarray(weights, jnp.float32)


def _check_options(options: _Options) -> None:
    if not 0.0 <= options.label_smoothing < 1.0:
        share = options.label_smoothing
        raise ValueError(f"label_smoothing: expected a share in [0, 1), got {share}")
    if options.z_loss < 0.0:
        raise ValueError(f"z_loss: expected 0 or more, got {options.z_loss}")
    if options.soft_cap is not None and not options.soft_cap > 0.0:
        raise ValueError(
            f"soft_cap: expected a positive number or None, got {options.soft_cap}"
        )


def _check_labels(labels, shape: tuple[int, ...]) -> None:
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"labels: expected integer classes, got {jnp.result_type(labels)}"
        )
    if jnp.shape(labels) != shape:
        raise ValueError(f"labels: expected shape {shape}, got {jnp.shape(labels)}")


def _check_head(hidden, kernel, bias) -> None:
    if kernel.ndim != 2 or hidden.shape[-1:] != kernel.shape[:1]:
        raise ValueError(
            "expected hidden [..., dim] and kernel [dim, vocab], got "
            f"{hidden.shape} and {kernel.shape}"
        )
    if bias is not None and bias.shape != kernel.shape[1:]:
        raise ValueError(f"bias: expected shape {kernel.shape[1:]}, got {bias.shape}")
