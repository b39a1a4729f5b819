"""The keys and values that attention has seen, as an explicit value."""

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
    ) -> "KVCache":
        """A cache in which no slot is taken yet; values of head_dim unless v_dim."""
        shape = (batch, slots, kv_heads)
        k = jnp.zeros((*shape, head_dim), dtype)
        v = jnp.zeros((*shape, v_dim or head_dim), dtype)
        positions = jnp.full((batch, slots), -1, jnp.int32)
        return cls(k, v, positions, jnp.zeros((), jnp.int32))

    def lost(self, new: int, window: int | None) -> Any:
        """Whether `new` more tokens overwrite keys that their queries still see."""
        if window is not None and self.slots >= window + new - 1:
            return False
        return self.length + new > self.slots

    @property
    def slots(self) -> int:
        """How many tokens fit: a static number."""
        return self.k.shape[1]

    def append(self, k: jax.Array, v: jax.Array, positions: jax.Array) -> "KVCache":
        """Writes the next tokens: k and v [batch, new, ...], positions [batch, new]."""
        new, fits = k.shape[1], k.shape[0] == self.k.shape[0]
        expect(fits, f"a batch of {self.k.shape[0]}, the cache's", k)
        expect(new <= self.slots, f"at most {self.slots} tokens, the cache's slots", k)
        start = self.length % self.slots

        def write(old: jax.Array, tokens: jax.Array) -> jax.Array:
            tokens = tokens.astype(old.dtype)
            if new == 1:
                return jax.lax.dynamic_update_slice_in_dim(old, tokens, start, axis=1)
            slots = (start + jnp.arange(new)) % self.slots
            return old.at[:, slots].set(tokens, unique_indices=True)

        return KVCache(
            write(self.k, k),
            write(self.v, v),
            write(self.positions, positions),
            self.length + new,
        )


def cached_length(cache: Any) -> jax.Array:
    """How many tokens a model's cache holds: int []; its layers hold equally many."""
    found = jax.tree.leaves(cache, is_leaf=lambda node: isinstance(node, KVCache))
    lengths = [node.length for node in found if isinstance(node, KVCache)]
    expect(bool(lengths), "a cache with a KVCache in it", cache)
    return lengths[0].reshape(-1)[0]
