"""What stands before every prompt, read once."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np

from jaxdl.generate import caches
from jaxdl.generate.contract import read
from jaxdl.generate.prompts import left_padded


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("tokens", "cache"),
    meta_fields=("dtype",),
)
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Tokens [1, seq] and the cache that holds them; `remember` makes it."""

    tokens: Int[Array, "1 seq"]
    cache: Any
    dtype: Any

    @property
    def length(self) -> int:
        """How many tokens: a static number."""
        return self.tokens.shape[1]

    def broadcast(self, model: Any, batch: int, slots: int) -> Any:
        """A cache of so many rows: each the prefix, with room for `slots` more."""
        axes = caches.row_axes(model, self.length, self.dtype, None)
        rows = jnp.zeros(batch, jnp.int32)
        cache = caches.take_rows(self.cache, axes, rows)
        return caches.grown(model, cache, batch, self.length + slots, self.dtype)


def remember(
    model: Any, params: Any, tokens: Any, *, cache_dtype: Any = jnp.float32
) -> Prefix:
    """Reads a prefix once, to be handed to any number of calls of `generate`.

    The tokens are one row, [seq]. A sampler's history does not hold them.
    """
    row = jnp.asarray(left_padded([np.asarray(tokens)]).tokens)
    dtype = jnp.dtype(cache_dtype)
    return Prefix(row, _read(params, row, model=model, dtype=dtype), dtype)


def prefill(
    model: Any,
    params: Any,
    tokens: Int[Array, "batch width"],
    positions: Int[Array, "batch width"],
    prefix: Prefix | None,
    *,
    room: int,
    dtype: Any,
    chunk: int | None,
    pieces: int | None = None,
) -> tuple[jax.Array, Any, jax.Array]:
    """Reads prompts: logits [batch, vocab], a cache with `room`, the next positions.

    chunk: how many tokens at most the cache will be given at once; None if what is
    taken back has to fit too. pieces: how many tokens of the prompt are read at once.
    """
    batch, width = tokens.shape
    if prefix is None:
        cache = caches.empty(model, batch, width + room, dtype, chunk)
    else:
        positions = jnp.where(positions >= 0, positions + prefix.length, -1)
        cache = prefix.broadcast(model, batch, width + room)
    logits, cache = read(model, params, tokens, cache, positions, pieces or width)
    return logits, cache, positions[:, -1] + 1


@functools.partial(jax.jit, static_argnames=("model", "dtype"))
def _read(params, tokens, *, model, dtype):
    width = tokens.shape[1]
    # Without a chunk layers with a window keep all of it, so that it can grow.
    cache = caches.empty(model, 1, width, dtype, None)
    return read(model, params, tokens, cache, jnp.arange(width)[None], width)[1]
