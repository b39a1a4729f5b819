"""Shardings of any pytree from logical axes, and arrays that are born with them."""

from collections.abc import Callable, Mapping
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxdl.core import tree
from jaxdl.core.derive import abstract
from jaxdl.core.derive import axes as declared_axes
from jaxdl.core.layout import (
    Kind,
    Layout,
    Names,
    Placement,
    Rules,
    axes_of,
    spec_of,
)
from jaxdl.core.module import Module

PyTree = Any


def shardings(
    model: Module | PyTree,
    mesh: Mesh | AbstractMesh,
    rules: Rules,
    *,
    axes: PyTree = None,
    overrides: Mapping[str, PartitionSpec] | None = None,
    kind: Kind = "parameter",
) -> PyTree:
    """The `NamedSharding` of every parameter of a model, or of every leaf of a pytree.

    model: a Module; or arrays or `jax.ShapeDtypeStruct`s, with `axes`.
    axes: the logical names of a plain pytree's dimensions. A tree of tuples (or of
      `PartitionSpec`s, as `flax.linen.get_partition_spec` returns); or a mapping from
      path patterns to tuples, of which the first that fits counts; or one tuple for
      all, whose names are those of the leading dimensions. What no pattern fits is
      whole on every device.
    overrides: the spec itself for the paths that fit a pattern, whatever the rules say.
    kind: "optimizer" gives what the optimizer's state is split by; see
      `optimizer_state`.

    A dimension that its mesh axis does not divide is not split: `explain` tells.

    Raises ValueError for patterns that fit nothing, names that are not one for each
    dimension, and overrides that do not divide.

    >>> import jaxdl as jd
    >>> mesh = jd.mesh(fsdp=2, devices=jax.devices()[:2])
    >>> shardings(jd.nn.Linear(4, 3, axes=("embed", "mlp")), mesh, jd.shard.FSDP)
    {'bias': NamedSharding(..., spec=P(), ...),
     'kernel': NamedSharding(..., spec=P('fsdp',), ...)}
    """
    found = placements(model, Layout(mesh, rules), axes, overrides, kind)
    leaves = [NamedSharding(mesh, each.placement.spec) for each in found.values()]
    return jax.tree.unflatten(jax.tree.structure(_shapes(model)), leaves)


def init(
    model: Module | Callable[[jax.Array], PyTree],
    key: jax.Array,
    mesh: Mesh | AbstractMesh,
    rules: Rules,
    *,
    axes: PyTree = None,
    overrides: Mapping[str, PartitionSpec] | None = None,
) -> PyTree:
    """Draws parameters each on its own devices: the bits of `model.init(key)`.

    One compiled program, whose results are sharded: no array is whole on a host or
    device, unless its initialiser needs it so (`orthogonal`). `model` is a Module, or
    a function from a key to any pytree, with `axes` as in `shardings`.
    """
    draw: Callable = model.init if isinstance(model, Module) else model
    shapes = model if isinstance(model, Module) else jax.eval_shape(model, key)
    placed = shardings(shapes, mesh, rules, axes=axes, overrides=overrides)
    return jax.jit(draw, out_shardings=placed)(key)


def place(
    values: PyTree,
    mesh: Mesh | AbstractMesh,
    rules: Rules,
    *,
    axes: PyTree,
    overrides: Mapping[str, PartitionSpec] | None = None,
) -> PyTree:
    """Moves arrays that exist onto the mesh; `axes` as in `shardings`.

    `place(batch, mesh, rules, axes=("batch",))` splits every leaf of a batch.
    """
    placed = shardings(values, mesh, rules, axes=axes, overrides=overrides)
    return jax.device_put(values, placed)


def optimizer_state(optimizer: Any, params: Module | PyTree, placed: PyTree) -> PyTree:
    """The sharding of every leaf of an optimizer's state, whatever the transformation.

    A leaf whose path ends in a parameter's path belongs to it (`0/mu/blocks/up/kernel`)
    and has its sharding. If its shape is another one (a factored second moment), each
    dimension is split as the next one of the parameter that has its size; the rest,
    counters above all, is whole on every device.

    optimizer: an optax transformation, or anything with `init(params)`.
    params: a Module, or arrays or `jax.ShapeDtypeStruct`s.
    placed: the shardings of the params; for ZeRO-1 `shardings(..., kind="optimizer")`.

    >>> import optax
    >>> mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> params = {"w": jax.ShapeDtypeStruct((4, 3), "float32")}
    >>> placed = {"w": NamedSharding(mesh, PartitionSpec("fsdp"))}
    >>> optimizer_state(optax.adam(1e-3), params, placed)[0].mu["w"].spec
    P('fsdp',)
    """
    params = _shapes(params)
    shapes, _ = jax.tree_util.tree_flatten_with_path(params)
    targets = jax.tree.leaves(placed)
    owners = {
        path: (leaf.shape, target)
        for (path, leaf), target in zip(shapes, targets, strict=True)
    }
    whole = NamedSharding(targets[0].mesh, PartitionSpec())

    def follow(path, leaf):
        shape, target = _owner(path, owners) or ((), whole)
        return target if leaf.shape == shape else _matched(leaf.shape, shape, target)

    state = jax.eval_shape(optimizer.init, params)
    return jax.tree_util.tree_map_with_path(follow, state)


class Placed(NamedTuple):
    """A leaf, the names of its dimensions, and where it goes."""

    leaf: Any
    names: Names
    placement: Placement


def placements(
    model: Module | PyTree,
    layout: Layout,
    axes: PyTree = None,
    overrides: Mapping[str, PartitionSpec] | None = None,
    kind: Kind = "parameter",
) -> dict[str, Placed]:
    """Where every leaf goes, by path, in tree order; see `shardings`."""
    names = named(model, axes)
    leaves = tree.flatten(_shapes(model))
    fixed = _by_pattern(overrides or {}, leaves)
    found = {}
    for path, leaf in leaves.items():
        if path in fixed:
            placement = Placement(_checked(path, leaf.shape, fixed[path], layout.mesh))
        else:
            placement = layout.place(leaf.shape, names[path], kind)
        found[path] = Placed(leaf, names[path], placement)
    return found


def named(model: Module | PyTree, axes: PyTree = None) -> dict[str, Names]:
    """The names of every leaf's dimensions, by path; see `shardings`."""
    leaves = tree.flatten(_shapes(model))
    if axes is None and isinstance(model, Module):
        axes = declared_axes(model)
    given = _given(axes, leaves, jax.tree.structure(_shapes(model)))
    for path, leaf in leaves.items():
        names = given.setdefault(path, (None,) * len(leaf.shape))
        if len(names) != len(leaf.shape):
            raise ValueError(
                f"{path}: expected one axis name for each dimension of "
                f"{list(leaf.shape)}, got {names}"
            )
    return given


def _given(axes: PyTree, leaves: Mapping[str, Any], structure) -> dict[str, Names]:
    if axes is None:
        return {}
    if _is_names(axes):
        return {path: _padded(axes, len(leaf.shape)) for path, leaf in leaves.items()}
    if jax.tree.structure(axes, is_leaf=_is_names) == structure:
        found = tree.flatten(axes, is_leaf=_is_names)
    elif isinstance(axes, Mapping) and all(map(_is_names, axes.values())):
        found = _by_pattern(axes, leaves)
    else:
        raise ValueError(
            "axes: expected a tree of tuples like the arrays', a mapping from path "
            f"patterns to tuples, or one tuple, got {_words(axes)} for {structure}"
        )
    # A PartitionSpec may be shorter than the array, as in JAX.
    short = {p for p, names in found.items() if not isinstance(names, tuple)}
    return {
        path: _padded(names, len(leaves[path].shape)) if path in short else names
        for path, names in found.items()
    }


def _padded(names: Any, length: int) -> Names:
    return (*(names or ()), *(None,) * length)[:length]


def _words(axes: PyTree) -> str:
    return str(jax.tree.structure(axes, is_leaf=_is_names))


def _is_names(node: Any) -> bool:
    if isinstance(node, PartitionSpec) or node is None:
        return True
    # A NamedTuple is a part of the tree.
    plain = isinstance(node, tuple) and not hasattr(node, "_fields")
    return plain and all(name is None or isinstance(name, str) for name in node)


def _by_pattern(patterns: Mapping[str, Any], paths: Mapping[str, Any]) -> dict:
    """What the first fitting pattern gives each path; every pattern must fit some."""
    found: dict = {}
    for pattern, value in patterns.items():
        for path in tree.matching(pattern, paths):
            found.setdefault(path, value)
    return found


def _checked(path: str, shape, spec: PartitionSpec, mesh: Any) -> PartitionSpec:
    """An override as it is; ValueError if it does not fit."""
    parts = [math.prod(mesh.shape.get(a, 0) for a in axes_of(part)) for part in spec]
    if len(parts) > len(shape) or any(
        number == 0 or size % number for size, number in zip(shape, parts, strict=False)
    ):
        raise ValueError(
            f"overrides: {path}: expected a spec that divides {list(shape)} on "
            f"{dict(mesh.shape)}, got {spec}"
        )
    return spec


def _shapes(model: Module | PyTree) -> PyTree:
    return abstract(model) if isinstance(model, Module) else model


def _owner(path: tuple, owners: Mapping[tuple, Any]) -> Any:
    """What belongs to the longest parameter's path that this path ends in."""
    ends = (path[start:] for start in range(len(path) + 1))
    return next((owners[end] for end in ends if end in owners), None)


def _matched(shape, owner: tuple[int, ...], target: NamedSharding) -> NamedSharding:
    """Splits each dimension as the next one of the owner that has its size."""
    spec = (*target.spec, *(None,) * len(owner))
    parts, start = [], 0
    for size in shape:
        place = owner.index(size, start) if size in owner[start:] else None
        parts.append(() if place is None else axes_of(spec[place]))
        start = start if place is None else place + 1
    return NamedSharding(target.mesh, spec_of(parts))
