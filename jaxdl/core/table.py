"""A table of what a model declares."""

import math
from typing import Any

from rich.console import Console
from rich.jupyter import JupyterMixin
from rich.table import Table

from jaxdl.core import tree
from jaxdl.core.derive import declarations
from jaxdl.core.module import Module
from jaxdl.core.param import Declaration, State


class Shown(JupyterMixin):
    """A value with `__rich__` that is as readable by `str` and in a notebook."""

    def __str__(self) -> str:
        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    __repr__ = __str__

    def _repr_mimebundle_(self, include: Any = (), exclude: Any = (), **_: Any) -> dict:
        return super()._repr_mimebundle_(include, exclude)  # type: ignore[misc]


class Summary(Shown):
    """A rich table with a row for each array, for terminals and notebooks."""

    def __init__(self, title: str, rows: list[tuple[str, ...]], total: tuple[int, int]):
        self.title, self.rows, self.total = title, rows, total

    def __rich__(self) -> Table:
        count, size = self.total
        table = Table(title=self.title, show_footer=True)
        footers = ("total", "", "", f"{count:,}", human_bytes(size), "")
        for name, footer in zip(_COLUMNS, footers, strict=True):
            justify = "right" if name in ("params", "bytes") else "left"
            table.add_column(name, footer, justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table


def summary(model: Module | Any) -> Summary:
    """Tabulates every array: path, shape, dtype, params, bytes and axes (or role).

    Takes a Module, from its declaration alone, or any pytree of arrays.
    """
    leaves = declarations(model) if isinstance(model, Module) else tree.flatten(model)
    rows = [_row(path, leaf) for path, leaf in leaves.items()]
    trained = [leaf for leaf in leaves.values() if not isinstance(leaf, State)]
    total = (tree.count(trained), tree.nbytes(trained))
    return Summary(type(model).__name__, rows, total)


def human_bytes(size: float) -> str:
    """A size in words: `1.5 MiB`."""
    power = min(int(math.log2(size) // 10), 5) if size >= 1 else 0
    number = size / 1024**power
    return f"{number:.0f} B" if power == 0 else f"{number:.1f} {'KMGTP'[power - 1]}iB"


_COLUMNS = ("path", "shape", "dtype", "params", "bytes", "axes")


def _row(path: str, leaf: Any) -> tuple[str, ...]:
    axes = ""
    if isinstance(leaf, Declaration) and leaf.axes is not None:
        axes = ", ".join(name or "-" for name in leaf.axes)
    count = "state" if isinstance(leaf, State) else f"{tree.count(leaf):,}"
    return (
        path,
        str(list(leaf.shape)),
        str(leaf.dtype),
        count,
        human_bytes(tree.nbytes(leaf)),
        axes,
    )
