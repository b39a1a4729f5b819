"""Where we are in a model while it runs: the path that errors and taps name.

A module is a value and does not know its own place; the same `Linear` may stand in
three. Its place shows when it is called, by which of the caller's parameters it is
handed: `self.up(params["up"], x)` is `up`. The path changes names only, never numbers,
and all of this happens while tracing.
"""

from collections.abc import Iterator, Mapping
import contextlib
from contextvars import ContextVar
from typing import Any, NamedTuple


class Frame(NamedTuple):
    """One call under way: the module, the params it was handed, and its path."""

    module: Any
    params: Any
    path: str


_frame: ContextVar[Frame | None] = ContextVar("jaxdl_frame", default=None)


def current_path(name: str = "") -> str:
    """The path of the module that is running, with a name appended."""
    frame = _frame.get()
    return join(frame.path if frame else "", name)


def join(*names: str) -> str:
    """Joins path parts with slashes, leaving out empty ones."""
    return "/".join(name for name in names if name)


@contextlib.contextmanager
def scope(name: str = "", module: Any = None, params: Any = None) -> Iterator[str]:
    """Runs a block under a further name; what it calls sees the longer path.

    A combinator that hands its member another tree than its own (a slice, a cast copy)
    opens `scope(params=tree)`, so that the members' names are still found.

    >>> with scope("encoder") as path:
    ...     print(current_path("hidden"))
    encoder/hidden
    """
    outer = _frame.get()
    path = join(outer.path if outer else "", name)
    if module is None and outer is not None:
        module = outer.module
    token = _frame.set(Frame(module, params, path))
    try:
        yield path
    finally:
        _frame.reset(token)


def expect(condition: bool, expected: str, got: Any) -> None:
    """Raises ValueError `path: expected ..., got ...` unless the condition holds.

    An array is described by its dtype and shape.

    >>> import numpy as np
    >>> expect(True, "[..., 8]", np.zeros((2, 8)))
    """
    if not condition:
        where = current_path()
        frame = _frame.get()
        if not where and frame is not None:
            where = type(frame.module).__name__
        prefix = f"{where}: " if where else ""
        raise ValueError(f"{prefix}expected {expected}, got {describe(got)}")


def describe(value: Any) -> str:
    """Words for a value in an error: `float32[8, 16]` for an array, else its repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


def name_of(module: Any, params: Any) -> str:
    """The name by which the running module calls another, from the params handed."""
    frame = _frame.get()
    if frame is None or params is frame.params:
        return ""
    found = _find(frame.params, params)
    if found is None:
        # The params were rebuilt on the way (a cast, jax.checkpoint): go by the module.
        children = frame.module.children() if frame.module is not None else {}
        found = next((name for name, child in children.items() if child is module), "")
    return found


def _find(tree: Any, wanted: Any) -> str | None:
    """The path of a subtree, by identity: equal subtrees are still different places."""
    if isinstance(tree, Mapping):
        for name, node in tree.items():
            if node is wanted:
                return str(name)
        for name, node in tree.items():
            below = _find(node, wanted)
            if below is not None:
                return join(str(name), below)
    return None
