"""What sharding does to each array, what it costs, and what is amiss."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import json
import math
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxdl.core import tree
from jaxdl.core.layout import Kind, Layout, Names, Rules
from jaxdl.core.module import Module
from jaxdl.core.table import Shown, human_bytes
from jaxdl.shard.placing import named, placements

PyTree = Any
_Leaf = tuple[Any, NamedSharding, Names]


class Row(NamedTuple):
    """One array: `per_device` is the bytes of it on each device.

    `copies` is how many devices hold the same part, 1 where nothing is held twice.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: Names
    spec: P
    bytes: int
    per_device: int
    copies: int

    @property
    def extra(self) -> int:
        """The bytes on each device that splitting it over all of them would spare."""
        return self.per_device - self.per_device // self.copies


class Finding(NamedTuple):
    """One line of the lint; `kind` is indivisible, replicated or unused.

    `path` is the array's, or the mesh axis that is unused.
    """

    kind: str
    path: str
    text: str


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation(Shown):
    """A row for each array and what the lint found; printed as a table."""

    mesh: Mapping[str, int]
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def bytes(self) -> int:
        """Of all arrays, each counted once."""
        return sum(row.bytes for row in self.rows)

    @property
    def per_device(self) -> int:
        """The bytes that every device holds."""
        return sum(row.per_device for row in self.rows)

    @property
    def extra(self) -> int:
        """The bytes of those that are held elsewhere too."""
        return sum(row.extra for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        rows = [{**row._asdict(), "spec": _parts(row)} for row in self.rows]
        return {
            "mesh": dict(self.mesh),
            "bytes": self.bytes,
            "per_device": self.per_device,
            "extra": self.extra,
            "rows": rows,
            "findings": [finding._asdict() for finding in self.findings],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def __rich__(self) -> Group:
        axes = ", ".join(f"{axis}={n}" for axis, n in self.mesh.items() if n > 1)
        title = f"mesh: {axes or 'one device'}"
        table = Table(title=title, box=box.SIMPLE, pad_edge=False, show_footer=True)
        total, here, extra = map(human_bytes, (self.bytes, self.per_device, self.extra))
        footers = ("total", "", total, here, "", extra)
        for name, footer in zip(_COLUMNS, footers, strict=True):
            justify = "left" if name in _COLUMNS[:2] else "right"
            table.add_column(name, footer, justify=justify, overflow="fold")
        for row in self.rows:
            table.add_row(*_cells(row))
        lines = [Text(f"{f.kind}: {f.path}: {f.text}") for f in self.findings]
        return Group(table, *lines)


def explain(
    model: Module | PyTree,
    mesh: Mesh | AbstractMesh | None = None,
    rules: Rules | None = None,
    *,
    axes: PyTree = None,
    overrides: Mapping[str, P] | None = None,
    kind: Kind = "parameter",
    large: int = 2**20,
) -> Explanation:
    """Tabulates where every array is, or would be by rules, and what is amiss.

    Without a mesh the leaves say themselves: arrays, or `jax.ShapeDtypeStruct`s with
    shardings, of which at least one is on a mesh. With a mesh and rules the arguments
    are those of `shardings`, and nothing needs to exist.

    The lint finds dimensions that a rule would split and that do not divide
    ("indivisible"), arrays of `large` bytes and more that are whole on every device
    ("replicated"), and mesh axes that split nothing ("unused").

    Raises ValueError for leaves without a sharding.
    """
    if mesh is None:
        found = _as_they_are(model, named(model, axes))
        mesh, layout = next(iter(found.values()))[1].mesh, None
        refused = []
    else:
        layout = Layout(mesh, rules or {})
        places = placements(model, layout, axes, overrides, kind)
        found = {
            path: (leaf, NamedSharding(mesh, placement.spec), names)
            for path, (leaf, names, placement) in places.items()
        }
        refused = [
            Finding("indivisible", path, f"{each}, so it is not split")
            for path, placed in places.items()
            for each in placed.placement.refused
        ]
    rows = tuple(_row(path, *each) for path, each in found.items())
    findings = (*refused, *_replicated(rows, mesh, large), *_unused(rows, mesh, layout))
    return Explanation(dict(mesh.shape), rows, findings)


_COLUMNS = ("path", "shape /split", "bytes", "per device", "copies", "extra")


def _as_they_are(values: PyTree, names: Mapping[str, Names]) -> dict[str, _Leaf]:
    """Every leaf with its sharding, those on no mesh as whole on one device of it."""
    leaves = tree.flatten(values)
    for path, leaf in leaves.items():
        if getattr(leaf, "sharding", None) is None:
            raise ValueError(
                f"{path}: expected an array with a sharding, got {type(leaf).__name__};"
                " give a mesh and rules to see where it would go"
            )
    placed = {path: leaf.sharding for path, leaf in leaves.items()}
    meshes = [s.mesh for s in placed.values() if isinstance(s, NamedSharding)]
    if not meshes:
        raise ValueError("explain: expected an array on a mesh, got none")
    whole = NamedSharding(meshes[0], P())
    for path, sharding in placed.items():
        placed[path] = sharding if isinstance(sharding, NamedSharding) else whole
    return {path: (leaf, placed[path], names[path]) for path, leaf in leaves.items()}


def _row(path: str, leaf: Any, sharding: NamedSharding, names: Names) -> Row:
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    parts = math.prod(sharding.mesh.shape[axis] for axis in _used(sharding.spec))
    shape = tuple(leaf.shape)
    return Row(
        path, shape, str(leaf.dtype), names, sharding.spec, size,
        math.prod(sharding.shard_shape(shape)) * leaf.dtype.itemsize,
        sharding.mesh.size // parts,
    )  # fmt: skip


def _replicated(rows: Iterable[Row], mesh: Any, large: int) -> Iterator[Finding]:
    for row in rows:
        if row.copies == mesh.size > 1 and row.bytes >= large:
            text = (
                f"{human_bytes(row.bytes)} whole on each of {mesh.size} devices, of "
                f"which splitting it would spare {human_bytes(row.extra)}"
            )
            yield Finding("replicated", row.path, text)


def _unused(rows: Iterable[Row], mesh: Any, layout: Layout | None):
    used = {axis for row in rows for axis in _used(row.spec)}
    if layout is not None:  # what activations alone are split over is used too
        used |= {axis for _, axes in layout.rules for axis in axes}
    for axis, size in mesh.shape.items():
        if size > 1 and axis not in used:
            yield Finding("unused", axis, f"{size} parts, over which nothing is split")


def _used(spec: P) -> list[str]:
    parts = [part if isinstance(part, tuple) else (part,) for part in spec]
    return [axis for part in parts for axis in part if axis is not None]


def _parts(row: Row) -> list[Any]:
    return [*row.spec, *(None,) * (len(row.shape) - len(row.spec))]


def _cells(row: Row) -> tuple[str, ...]:
    dimensions = [
        f"{name or ''} {size}{''.join(f' /{axis}' for axis in _used(P(part)))}".strip()
        for name, size, part in zip(row.axes, row.shape, _parts(row), strict=True)
    ]
    total, here, extra = map(human_bytes, (row.bytes, row.per_device, row.extra))
    return row.path, ", ".join(dimensions), total, here, str(row.copies), extra
