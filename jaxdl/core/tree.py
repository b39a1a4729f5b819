"""Paths into pytrees: one spelling for every leaf, wherever it is named.

A path joins the keys from the root to a leaf with slashes: `blocks/attn/q/kernel`.
The same spelling names parameters, activations, sharding rules, checkpoint entries and
masks. Every function takes any pytree: nested dicts, optax states, Flax variables.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
import re
from typing import Any

import jax
import numpy as np

PyTree = Any


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict:
    """Lists the leaves by path: `{"attn/q/kernel": array, ...}`, in tree order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_string(path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict:
    """Builds nested dicts from leaves by path; the inverse of `flatten` for dicts.

    Raises ValueError when one path is both a leaf and the parent of another.
    """
    tree: dict = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(
                    f"{path}: {parent!r} is a leaf and cannot have children"
                )
        if name in node:
            raise ValueError(
                f"{path}: expected a new path, got one that already exists"
            )
        node[name] = leaf
    return tree


def map_with_path(
    function: Callable, tree: PyTree, *rest: PyTree, is_leaf=None
) -> PyTree:
    """Maps `function(path, leaf, *rest_leaves)` over a tree; the path is a string."""
    return jax.tree_util.tree_map_with_path(
        lambda path, *leaves: function(path_string(path), *leaves),
        tree,
        *rest,
        is_leaf=is_leaf,
    )


def path_string(path: Iterable[Any]) -> str:
    """Spells a JAX key path with slashes: `(DictKey("a"), SequenceKey(0))` -> `a/0`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def matches(pattern: str, path: str) -> bool:
    """Tells whether a path fits a pattern: `*` is (part of) a name, `**` many names.

    `blocks/*/kernel` fits `blocks/up/kernel`; `**/bias` fits `bias` and `a/b/bias`;
    `**/w_*` fits `a/w_in`. Every other character stands for itself.
    """
    return _compile(pattern).fullmatch(path) is not None


def matching(patterns: str | Iterable[str], paths: Iterable[str]) -> list[str]:
    """Lists the paths that fit any of the patterns, in the order of `paths`.

    Raises ValueError when a pattern fits no path, naming the nearest ones: a pattern
    that selects nothing is almost always a misspelling.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    paths = list(paths)
    for pattern in patterns:
        if not any(matches(pattern, path) for path in paths):
            raise ValueError(
                f"pattern {pattern!r} fits no path; {suggestion(pattern, paths)}"
            )
    return [path for path in paths if any(matches(p, path) for p in patterns)]


def mask(tree: PyTree, patterns: str | Iterable[str]) -> PyTree:
    """Marks the leaves whose path fits a pattern: bools in the same structure.

    Raises ValueError when a pattern fits no leaf.
    """
    chosen = set(matching(patterns, flatten(tree)))
    return map_with_path(lambda path, _: path in chosen, tree)


def count(tree: PyTree) -> int:
    """Counts the elements of every array (or `jax.ShapeDtypeStruct`) in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """Sums the bytes of every array (or `jax.ShapeDtypeStruct`) in a tree."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def suggestion(wanted: str, available: Iterable[str]) -> str:
    """Words for an error: the available names nearest to the wanted one."""
    import difflib

    available = list(available)
    if not available:
        return "there are none"
    near = difflib.get_close_matches(wanted, available, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    shown = ", ".join(available[:8]) + (", ..." if len(available) > 8 else "")
    return f"there are {len(available)}: {shown}"


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern:
    # `**/` may stand for nothing, so that `**/bias` also fits a top-level `bias`.
    parts = re.split(r"(\*\*/|/\*\*|\*\*|\*)", pattern)
    words = {"**/": "(?:.*/)?", "/**": "(?:/.*)?", "**": ".*", "*": "[^/]*"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts))
