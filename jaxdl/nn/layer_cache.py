"""Caches of several layers, written where they stand.

A scan over layers that takes the cache of each and returns it copies all of it twice
for every token. Here the scan carries the stacked cache, and each layer writes where
its own part stands.
"""

import dataclasses
import functools
from typing import Any

import jax
from jaxtyping import Array, Int

from jaxdl.nn.cache import KVCache, QuantizedKVCache, appended


def split(carry: Any) -> tuple[list[Any], Any]:
    """The caches of tokens in a tree, and the tree with a mark in place of each."""
    found = []

    def leave(node):
        if not _is_cache(node):
            return node
        found.append(node)
        return _Mark(len(found) - 1)

    return found, jax.tree.map(leave, carry, is_leaf=_is_cache)


def at_layer(found: list[Any], rest: Any, index: Any) -> Any:
    """The tree that one layer is called with, of what `split` gave."""
    views = [LayerCache(cache, index, place) for place, cache in enumerate(found)]
    return join(views, rest)


def left(found: list[Any], new: Any) -> tuple[list[Any], Any]:
    """`split` of what a layer returned; caches that it did not return are unchanged."""
    found = list(found)

    def leave(node):
        if not isinstance(node, LayerCache):
            return node
        found[node.place] = node.stacked
        return _Mark(node.place)

    rest = jax.tree.map(leave, new, is_leaf=lambda node: isinstance(node, LayerCache))
    return found, rest


def join(found: list[Any], rest: Any) -> Any:
    """The tree with the caches in place of their marks."""
    return jax.tree.map(
        lambda node: found[node.place] if isinstance(node, _Mark) else node,
        rest,
        is_leaf=lambda node: isinstance(node, _Mark),
    )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("stacked", "index"),
    meta_fields=("place",),
)
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """One layer of a stacked cache, with the interface of a `KVCache`."""

    stacked: Any  # a KVCache or QuantizedKVCache
    index: Int[Array, ""]
    place: int = 0

    @property
    def own(self) -> Any:
        """This layer's part, as a cache of its own."""
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_index_in_dim(leaf, self.index, 0, False),
            self.stacked,
        )

    k = property(lambda self: self.own.k)
    v = property(lambda self: self.own.v)
    positions = property(lambda self: self.own.positions)
    length = property(lambda self: self.own.length)
    slots = property(lambda self: self.stacked.slots)
    lost = KVCache.lost

    def append(self, k: jax.Array, v: jax.Array, positions: jax.Array) -> "LayerCache":
        """Writes the next tokens; see `KVCache.append`."""
        new = self.stacked.holding(k, v, positions)
        after = appended(self.own, new)
        if k.shape[1] == 1:  # then of all the arrays only one slot is touched
            put = functools.partial(_put, self.index, self.length % self.slots)
            arrays = jax.tree.map(put, self.stacked[:-1], new[:-1])
        else:
            put = functools.partial(_put, self.index, 0)
            arrays = jax.tree.map(put, self.stacked[:-1], after[:-1])
        length = self.stacked.length.at[self.index].set(after.length)
        stacked = type(self.stacked)(*arrays, length)
        return dataclasses.replace(self, stacked=stacked)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Mark:
    """Where a cache stood: no leaf, so it passes through a scan."""

    place: int


def _is_cache(node: Any) -> bool:
    return isinstance(node, KVCache | QuantizedKVCache)


def _put(layer, start, stacked: jax.Array, part: jax.Array) -> jax.Array:
    """Writes part [batch, new, ...] into stacked [layers, batch, slots, ...]."""
    at = (layer, 0, start) + (0,) * (stacked.ndim - 3)
    return jax.lax.dynamic_update_slice(stacked, part[None].astype(stacked.dtype), at)
