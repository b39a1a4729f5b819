"""A model's cache as a whole: made, given more slots, its rows chosen, taken back.

Which axis of an array is its rows is found by asking the model for caches of two sizes,
so this serves any cache that `init_cache` makes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def empty(model: Any, batch: int, slots: int, dtype: Any, chunk: int | None) -> Any:
    """The model's own empty cache; TypeError if a part of it cannot be of the dtype."""
    cache = model.init_cache(batch, slots, dtype, chunk=chunk)
    if not jnp.issubdtype(dtype, jnp.integer):
        return cache
    nodes = jax.tree.leaves(cache, is_leaf=_has_length)
    for node in nodes:
        own = {leaf.dtype for leaf in jax.tree.leaves(node)}
        if jnp.dtype(dtype) in own and not hasattr(node, "k_scale"):
            raise TypeError(
                f"cache_dtype: expected floats, as {type(node).__name__} is not "
                f"quantised, got {jnp.dtype(dtype)}"
            )
    return cache


def grown(model: Any, cache: Any, batch: int, slots: int, dtype: Any) -> Any:
    """The same cache with more slots; none of it may have been written over."""
    larger = empty(model, batch, slots, dtype, None)

    def put(new, old):
        return jax.lax.dynamic_update_slice(new, old, (0,) * new.ndim)

    return jax.tree.map(put, larger, cache)


def row_axes(model: Any, slots: int, dtype: Any, chunk: int | None) -> Any:
    """For each array of a cache the axis of its rows, -1 where it has none."""

    def shapes(batch):
        return jax.eval_shape(lambda: empty(model, batch, slots, dtype, chunk))

    def axis(one, other):
        pairs = enumerate(zip(one.shape, other.shape, strict=True))
        return next((n for n, (a, b) in pairs if a != b), -1)

    return jax.tree.map(axis, shapes(2), shapes(3))


def take_rows(cache: Any, axes: Any, rows: Int[Array, " new_batch"]) -> Any:
    """The cache whose row i is row `rows[i]` of this one."""

    def take(leaf, axis):
        return leaf if axis < 0 else jnp.take(leaf, rows, axis=axis)

    return jax.tree.map(take, cache, axes)


def forget(cache: Any, new: int, keep: Int[Array, " batch"]) -> Any:
    """Takes back the last `new` tokens but the first `keep`; see `KVCache.forget`.

    Raises TypeError for a cache that cannot, such as the state of a recurrence.
    """

    def take_back(node):
        if not hasattr(node, "forget"):
            raise TypeError(
                f"expected a cache that can forget tokens, got {type(node).__name__}"
            )
        return node.forget(new, keep)

    return jax.tree.map(take_back, cache, is_leaf=_has_length)


def rewound(cache: Any, length: int) -> Any:
    """The cache of one row as it was after so many tokens; None if it cannot be."""
    nodes = jax.tree.leaves(cache, is_leaf=_has_length)
    if not all(hasattr(node, "positions") for node in nodes):
        return None
    return shortened(cache, length)


def shortened(cache: Any, length: Any) -> Any:
    """Leaves the first tokens of one row; a node without positions is left alone."""

    def shorten(node):
        if not hasattr(node, "positions"):
            return node
        positions = jnp.where(node.positions < length, node.positions, -1)
        return node._replace(
            positions=positions, length=jnp.full_like(node.length, length)
        )

    return jax.tree.map(shorten, cache, is_leaf=_has_length)


def _has_length(node: Any) -> bool:
    return hasattr(node, "length")
