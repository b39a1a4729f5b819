"""The keys and values that attention has seen, as an explicit value."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core.naming import expect


class KVCache(NamedTuple):
    """Keys and values by slot, and the position of each: a pytree, made by `empty`.

    A slot whose position is -1 is empty and never seen. Tokens are written one after
    the other; past the last slot writing goes on at the first, which is right for
    attention with a window (see `Attention`).
    """

    k: Float[Array, "batch slots kv_heads head_dim"]
    v: Float[Array, "batch slots kv_heads v_dim"]
    positions: Int[Array, "batch slots"]
    length: Int[Array, ""]

    @classmethod
    def empty(
        cls,
        batch: int,
        slots: int,
        kv_heads: int,
        head_dim: int,
        dtype: Any,
        v_dim: int | None = None,
    ) -> Any:
        """A cache in which no slot is taken yet; values of head_dim unless v_dim.

        The dtype jnp.int8 gives a `QuantizedKVCache`.
        """
        shape = (batch, slots, kv_heads)
        if jnp.issubdtype(dtype, jnp.integer):
            return QuantizedKVCache.empty(shape, head_dim, v_dim or head_dim, dtype)
        k = jnp.zeros((*shape, head_dim), dtype)
        v = jnp.zeros((*shape, v_dim or head_dim), dtype)
        positions = jnp.full((batch, slots), -1, jnp.int32)
        return cls(k, v, positions, jnp.zeros((), jnp.int32))

    @classmethod
    def holding(cls, k: jax.Array, v: jax.Array, positions: jax.Array) -> "KVCache":
        """A full cache of these tokens: k and v [batch, new, ...]; where they stand."""
        return cls(k, v, positions, jnp.asarray(k.shape[1], jnp.int32))

    def lost(self, new: int, window: int | None) -> Any:
        """Whether `new` more tokens overwrite keys that their queries still see."""
        if window is not None and self.slots >= window + new - 1:
            return False
        return self.length + new > self.slots

    @property
    def slots(self) -> int:
        """How many tokens fit: a static number."""
        return self.k.shape[-3]

    def append(self, k: jax.Array, v: jax.Array, positions: jax.Array) -> "KVCache":
        """Writes the next tokens: k and v [batch, new, ...], positions [batch, new]."""
        return appended(self, self.holding(k, v, positions))

    def forget(self, new: int, keep: Int[Array, " batch"]) -> "KVCache":
        """Takes back the last `new` tokens but for each row's first `keep` of them.

        Rows go on together: slots that only some rows gave back stay empty there.
        """
        positions, length = _forget(self.positions, self.length, new, keep)
        return self._replace(positions=positions, length=length)


class QuantizedKVCache(NamedTuple):
    """A `KVCache` of int8, with a float32 scale for each token and head.

    Takes a quarter of the memory of float32, but for the scales; what is read is off by
    at most 1 / 254 of the largest number of the token and head.
    """

    k_bytes: Int[Array, "batch slots kv_heads head_dim"]
    v_bytes: Int[Array, "batch slots kv_heads v_dim"]
    k_scale: Float[Array, "batch slots kv_heads 1"]
    v_scale: Float[Array, "batch slots kv_heads 1"]
    positions: Int[Array, "batch slots"]
    length: Int[Array, ""]

    @classmethod
    def empty(
        cls, shape: tuple[int, int, int], head_dim: int, v_dim: int, dtype: Any
    ) -> "QuantizedKVCache":
        """A cache [batch, slots, kv_heads] in which no slot is taken yet."""
        expect(jnp.dtype(dtype) == jnp.int8, "jnp.int8 or a dtype of floats", dtype)
        k, v = (jnp.zeros((*shape, width), jnp.int8) for width in (head_dim, v_dim))
        k_scale, v_scale = jnp.zeros((*shape, 1)), jnp.zeros((*shape, 1))
        positions = jnp.full(shape[:2], -1, jnp.int32)
        return cls(k, v, k_scale, v_scale, positions, jnp.zeros((), jnp.int32))

    @classmethod
    def holding(
        cls, k: jax.Array, v: jax.Array, positions: jax.Array
    ) -> "QuantizedKVCache":
        """A full cache of these tokens; see `KVCache.holding`."""
        (k, k_scale), (v, v_scale) = _quantized(k), _quantized(v)
        length = jnp.asarray(k.shape[1], jnp.int32)
        return cls(k, v, k_scale, v_scale, positions, length)

    @property
    def k(self) -> Float[Array, "batch slots kv_heads head_dim"]:
        """The keys as floats."""
        return self.k_bytes * self.k_scale

    @property
    def v(self) -> Float[Array, "batch slots kv_heads v_dim"]:
        """The values as floats."""
        return self.v_bytes * self.v_scale

    lost = KVCache.lost

    @property
    def slots(self) -> int:
        """How many tokens fit: a static number."""
        return self.k_bytes.shape[-3]

    def append(
        self, k: jax.Array, v: jax.Array, positions: jax.Array
    ) -> "QuantizedKVCache":
        """Writes the next tokens; see `KVCache.append`."""
        return appended(self, self.holding(k, v, positions))

    def forget(self, new: int, keep: Int[Array, " batch"]) -> "QuantizedKVCache":
        """Takes back tokens; see `KVCache.forget`."""
        positions, length = _forget(self.positions, self.length, new, keep)
        return self._replace(positions=positions, length=length)


def _quantized(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x as int8 and what to multiply it by, by its largest number on the last axis."""
    x = x.astype(jnp.float32)
    scale = jnp.abs(x).max(-1, keepdims=True) / 127
    # What is not finite stays so: its scale says it.
    steps = jnp.round(x / jnp.where(scale > 0, scale, 1))
    return jnp.where(jnp.isfinite(steps), steps, 1).astype(jnp.int8), scale


def _check_new(cache: Any, k: jax.Array) -> None:
    batch = cache.positions.shape[0]
    expect(k.shape[0] == batch, f"a batch of {batch}, the cache's", k)
    wanted = f"at most {cache.slots} tokens, the cache's slots"
    expect(k.shape[1] <= cache.slots, wanted, k)


def _write(length, slots: int, old: jax.Array, tokens: jax.Array) -> jax.Array:
    """The tokens [batch, new, ...] after what is there, round and round."""
    tokens, new = tokens.astype(old.dtype), tokens.shape[1]
    start = length % slots
    if new == 1:
        return jax.lax.dynamic_update_slice_in_dim(old, tokens, start, axis=1)
    at = (start + jnp.arange(new)) % slots
    return old.at[:, at].set(tokens, unique_indices=True)


def _forget(positions, length, new: int, keep) -> tuple[jax.Array, jax.Array]:
    if length.ndim:  # of several layers
        each = functools.partial(_forget, new=new, keep=keep)
        return jax.vmap(each)(positions, length)
    at = (length - new + jnp.arange(new)) % positions.shape[1]
    kept = jnp.arange(new) < keep[:, None]
    positions = positions.at[:, at].set(jnp.where(kept, positions[:, at], -1))
    return positions, length - new + keep.max()


def appended(cache: Any, new: Any) -> Any:
    """The cache with the tokens of another, which is full, after its own."""
    _check_new(cache, new.k)
    write = functools.partial(_write, cache.length, cache.slots)
    arrays = jax.tree.map(write, cache[:-1], new[:-1])
    return type(cache)(*arrays, cache.length + new.length)


def cached_length(cache: Any) -> jax.Array:
    """How many tokens a model's cache holds: int []; its layers hold equally many."""
    found = jax.tree.leaves(cache, is_leaf=lambda node: hasattr(node, "length"))
    lengths = [node.length for node in found if hasattr(node, "length")]
    expect(bool(lengths), "a cache that knows its length", cache)
    return lengths[0].reshape(-1)[0]
