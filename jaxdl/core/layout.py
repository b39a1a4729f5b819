"""Logical axis names on a mesh: rules, the layout in force, and `constrain`.

A rule says over which mesh axes the dimensions of one name are split. Rules are a plain
mapping, `{"batch": ("data", "fsdp"), "mlp": "tensor"}`. A name without a rule is whole
on every device.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
from typing import Any, Literal, NamedTuple

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdl.core import tree
from jaxdl.core.naming import expect

MESH_AXES = ("data", "stage", "fsdp", "expert", "sequence", "tensor")

MeshAxes = str | tuple[str, ...] | None
Rules = Mapping[str, MeshAxes] | Iterable[tuple[str, MeshAxes]]
Names = tuple[str | None, ...]
Kind = Literal["parameter", "optimizer", "activation"]

# A rule for one kind of array alone goes before the rule for all of them.
_PREFIXES = {
    "parameter": ("parameter/", ""),
    "optimizer": ("optimizer/", "parameter/", ""),
    "activation": ("activation/", ""),
}


class Refused(NamedTuple):
    """A dimension that its rule would split, and that the mesh axis does not divide."""

    dim: int
    name: str
    size: int
    mesh_axis: str
    number: int

    def __str__(self) -> str:
        return (
            f"dimension {self.dim} ({self.name}, {self.size}) is not a multiple of "
            f"{self.mesh_axis}={self.number}"
        )


class Placement(NamedTuple):
    """Where an array goes, and which of its dimensions could not be split."""

    spec: PartitionSpec
    refused: tuple[Refused, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules by which arrays are split over it: a hashable value.

    A rule is for every array, or with a prefix for one kind alone: `optimizer/embed`,
    `activation/sequence`, `parameter/embed` (which the optimizer's state follows).

    Raises ValueError for two rules of one name, and for a mesh axis that is neither in
    the mesh nor one that `jd.mesh` would have.
    """

    mesh: Mesh | AbstractMesh
    rules: Any

    def __post_init__(self):
        rules = self.rules
        pairs = tuple(rules.items() if isinstance(rules, Mapping) else rules)
        pairs = tuple((name, axes_of(axes)) for name, axes in pairs)
        names = [name for name, _ in pairs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"rules: expected one rule for {name!r}, got several")
        known = (*self.mesh.axis_names, *MESH_AXES)
        for name, axes in pairs:
            for axis in axes:
                if axis not in known:
                    raise ValueError(
                        f"rules[{name!r}]: expected axes of the mesh "
                        f"{dict(self.mesh.shape)}, got {axis!r}; "
                        f"{tree.suggestion(axis, known)}"
                    )
        object.__setattr__(self, "rules", pairs)

    def mesh_axes(self, name: str | None, kind: Kind = "parameter") -> tuple[str, ...]:
        """The mesh axes of a name's rule; () for one that has none."""
        rules = dict(self.rules)
        found = [p + name for p in _PREFIXES[kind] if name and p + name in rules]
        return rules[found[0]] if found else ()

    def place(
        self,
        shape: tuple[int, ...],
        names: Names,
        kind: Kind = "parameter",
        first: str | None = None,
    ) -> Placement:
        """Splits the dimensions of an array by the rules for their names.

        Each mesh axis is used once for an array, by the first dimension that it
        divides (one called `first` goes before the others); of a rule with several
        axes those count that still divide.
        """
        taken: dict[int, tuple[str, ...]] = {dim: () for dim in range(len(shape))}
        refused: list[Refused] = []
        used: set[str] = set()
        for dim in sorted(taken, key=lambda dim: names[dim] != first):
            name, rest = names[dim], shape[dim]
            for axis in self.mesh_axes(name, kind):
                number = self.mesh.shape.get(axis, 1)
                if number == 1 or axis in used:
                    continue
                if rest % number:
                    refused.append(Refused(dim, name or "", shape[dim], axis, number))
                    continue
                taken[dim] += (axis,)
                used.add(axis)
                rest //= number
        lost = tuple(each for each in refused if each.mesh_axis not in used)
        return Placement(spec_of(taken.values()), lost)


# JAX keeps this value in the keys of its caches: what was traced under one layout is
# never reused under another, as it would be with a contextvar.
_layout = jax.make_user_context(None)


@contextlib.contextmanager
def use(mesh: Mesh | AbstractMesh, rules: Rules) -> Iterator[Layout]:
    """Puts a mesh and rules in force for `constrain`; it also decorates a function.

    `with use(mesh, rules): ...` is for what is called inside, and may stand inside of a
    `jax.jit` too. `use(mesh, rules)(function)` is the function that always runs so.
    Constraints say where values are and never change them.
    """
    layout = Layout(mesh, rules)
    with _layout(layout):
        yield layout


def current() -> Layout | None:
    """The layout in force, or None."""
    return _layout.value


def constrain(x: jax.Array, *names: str | None, first: str | None = None) -> jax.Array:
    """Splits an activation by the rules in force: `constrain(x, "batch", None)`.

    One name, or None, for each dimension; see `use`, and `Layout.place` for `first`.
    Returns x itself where no layout is in force or its mesh has a single device. Inside
    `jax.shard_map` the axes that are split by hand are left alone.

    Raises ValueError for another number of names than dimensions.
    """
    layout = current()
    expect(x.ndim == len(names), f"{len(names)} dimensions, {names}", x)
    mesh, automatic = free_axes()
    if layout is None or not automatic:
        return x
    spec = layout.place(x.shape, names, "activation", first).spec
    spec = spec_of(tuple(a for a in axes_of(part) if a in automatic) for part in spec)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def free_axes() -> tuple[Any, set[str]]:
    """The mesh in force and those of its axes that nobody splits by hand.

    There are none without a layout, and on a single device.
    """
    layout = current()
    if layout is None or layout.mesh.size == 1:
        return None, set()
    mesh = jax.sharding.get_abstract_mesh()
    mesh = layout.mesh if mesh.empty else mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return mesh, {name for name, kind in kinds if kind == AxisType.Auto}


def axes_of(axes: MeshAxes) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


def spec_of(taken: Iterable[tuple[str, ...]]) -> PartitionSpec:
    """The shortest `PartitionSpec` with these mesh axes for each dimension."""
    parts = [axes[0] if len(axes) == 1 else axes or None for axes in taken]
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)
