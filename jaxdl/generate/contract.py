"""What generation asks of a model: a pure function of (params, tokens, cache)."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.nn.routing import keywords


def score(
    model: Any, params: Any, tokens: Any, cache: Any, positions: Any, last: int = 1
) -> tuple[jax.Array, Any]:
    """The logits of the last tokens, float32 [batch, last, vocab], and the cache.

    A model in two halves, `hidden` and `logits`, makes no logits of the others.
    """
    given = _keywords(model, cache, positions)
    if _has_halves(model):
        hidden, cache = model.hidden(params, tokens, **given)
        logits = model.logits(params, hidden[:, -last:])
    else:
        logits, cache = model(params, tokens, **given)
        logits = logits[:, -last:]
    return logits.astype(jnp.float32), cache


def score_at(
    model: Any, params: Any, tokens: Any, cache: Any, positions: Any, index: Any
) -> tuple[jax.Array, Any]:
    """The logits of the token at an index, float32 [batch, vocab], and the cache."""
    given = _keywords(model, cache, positions)
    if _has_halves(model):
        hidden, cache = model.hidden(params, tokens, **given)
        one = jax.lax.dynamic_slice_in_dim(hidden, index, 1, axis=1)
        logits = model.logits(params, one)
    else:
        logits, cache = model(params, tokens, **given)
        logits = jax.lax.dynamic_slice_in_dim(logits, index, 1, axis=1)
    return logits[:, 0].astype(jnp.float32), cache


def read(
    model: Any, params: Any, tokens: Any, cache: Any, positions: Any, chunk: int
) -> tuple[jax.Array, Any]:
    """Reads a prompt, `chunk` tokens at a time: logits [batch, vocab] and the cache.

    `chunk` divides the number of tokens.
    """
    batch, width = tokens.shape

    def pieces(array):
        return jnp.moveaxis(array.reshape(batch, width // chunk, chunk), 1, 0)

    def step(cache, piece):
        return score(model, params, piece[0], cache, piece[1])[1], None

    every = pieces(tokens), pieces(positions)
    if width > chunk:
        before = jax.tree.map(lambda piece: piece[:-1], every)
        cache, _ = jax.lax.scan(step, cache, before)
    logits, cache = score(model, params, every[0][-1], cache, every[1][-1])
    return logits[:, -1], cache


def _keywords(model: Any, cache: Any, positions: Any) -> dict[str, Any]:
    given = {"cache": cache, "positions": positions}
    if "key" in keywords(model):
        given["key"] = None  # no dropout
    return given


def _has_halves(model: Any) -> bool:
    return hasattr(model, "hidden") and hasattr(model, "logits")
