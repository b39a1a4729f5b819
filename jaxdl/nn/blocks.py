"""Rows and columns of attention as blocks on a leading axis, and tiles of both."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Index = Any  # a number, or an array that holds one


def rows(x, kv_heads: int, block: int):
    """[batch, query, heads, dim] -> [blocks, batch, kv_heads, group, block, dim]."""
    x = padded(x, 1, block)
    batch, _, heads, dim = x.shape
    x = x.reshape(batch, -1, block, kv_heads, heads // kv_heads, dim)
    return x.transpose(1, 0, 3, 4, 2, 5)


def from_rows(x, queries: int):
    """The reverse of `rows`."""
    blocks, batch, kv_heads, group, block, dim = x.shape
    x = x.transpose(1, 0, 4, 2, 3, 5)
    return x.reshape(batch, blocks * block, kv_heads * group, dim)[:, :queries]


def columns(x, block: int):
    """[batch, key, kv_heads, dim] -> [blocks, batch, kv_heads, block, dim]."""
    x = padded(x, 1, block)
    return x.reshape(x.shape[0], -1, block, *x.shape[2:]).transpose(1, 0, 3, 2, 4)


def from_columns(x, keys: int):
    """The reverse of `columns`."""
    blocks, batch, kv_heads, block, dim = x.shape
    x = x.transpose(1, 0, 3, 2, 4)
    return x.reshape(batch, blocks * block, kv_heads, dim)[:, :keys]


def split(x, block: int, mode: Any = "constant") -> Any:
    """[batch or 1, seq] or [seq] -> [blocks, batch or 1, block]."""
    x = padded(x if x.ndim == 2 else x[None], 1, block, mode)
    return x.reshape(x.shape[0], -1, block).swapaxes(0, 1)


def padded(x, axis: int, block: int, mode: Any = "constant") -> Any:
    """x with whole blocks along an axis, filled with zeros or, "edge", its last."""
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % block)
    if isinstance(x, np.ndarray):  # what is known while tracing stays known
        return np.pad(x, padding, mode=mode)
    return jnp.pad(x, padding, mode=mode)


def padded_square(x, size: tuple[int, int]) -> Any:
    """[..., query or 1, key] with whole tiles of this size."""
    if x is None:
        return None
    x = x if x.shape[-2] == 1 else padded(x, x.ndim - 2, size[0])
    return padded(x, x.ndim - 1, size[1])


def tile(x, size: tuple[int, int], row: Index, column: Index):
    """The tile of [batch, heads, query or 1, key] where two blocks meet."""
    if x is None:
        return None
    start, size = _place(x, size, row, column)
    return jax.lax.dynamic_slice(x, start, (*x.shape[:2], *size))


def put_tile(x, part, size: tuple[int, int], row: Index, column: Index):
    """x with one tile replaced."""
    if x is None:
        return None
    return jax.lax.dynamic_update_slice(x, part, _place(x, size, row, column)[0])


def take(tree, index: Index):
    """One block of every array in a tree."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, keepdims=False), tree
    )


def put(tree, part, index: Index):
    """The tree with one block of every array replaced."""
    return jax.tree.map(
        lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, index, 0), tree, part
    )


def by_group(x, shape: tuple[int, ...]):
    """[batch, heads or 1, ...] for scores [batch, kv_heads, group, query, key]."""
    heads = (1, 1) if x.shape[1] == 1 else shape[1:3]
    return x.reshape(x.shape[0], *heads, *x.shape[2:])


def _place(x, size: tuple[int, int], row: Index, column: Index):
    if x.shape[-2] == 1:
        return (0, 0, 0, column * size[1]), (1, size[1])
    return (0, 0, row * size[0], column * size[1]), size
