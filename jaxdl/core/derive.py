"""What follows from a declaration alone: shapes, axes, roles, paths, masks."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from jaxdl.core import tree
from jaxdl.core.module import Module, declared
from jaxdl.core.naming import join
from jaxdl.core.param import Declaration, Param, State


def abstract(model: Module) -> dict:
    """The params as `jax.ShapeDtypeStruct`: same structure as `model.init`, no memory.

    >>> from jaxdl import nn
    >>> abstract(nn.Linear(2, 3))["bias"]
    ShapeDtypeStruct(shape=(3,), dtype=float32)
    """
    return _each(model, lambda param: param.abstract)


def abstract_state(model: Module) -> dict:
    """The state as `jax.ShapeDtypeStruct`: same structure as `model.init_state`."""
    return jax.tree.map(lambda state: state.abstract, declared(model, State))


def axes(model: Module) -> dict:
    """The logical axis names of every parameter, a tuple for each leaf."""
    return _each(model, lambda param: param.axes)


def roles(model: Module) -> dict:
    """The role of every parameter: weight, bias, scale or embedding."""
    return _each(model, lambda param: param.role)


def paths(model: Module, role: str | Iterable[str] | None = None) -> tuple[str, ...]:
    """The paths of the parameters, of some roles only if given.

    Paths are patterns too: they go wherever patterns are taken (masks, precision,
    learning rates).

    >>> from jaxdl import nn
    >>> paths(nn.Linear(2, 3), role="bias")
    ('bias',)
    """
    wanted = (role,) if isinstance(role, str) else role
    found = tree.flatten(declared(model, Param))
    return tuple(
        p for p, param in found.items() if wanted is None or param.role in wanted
    )


def mask(model: Module, role: str | Iterable[str]) -> dict:
    """Marks the parameters of some roles: bools in the structure of params, for optax.

    `optax.adamw(1e-3, mask=jd.mask(model, ("weight", "embedding")))` decays neither
    biases nor scales.
    """
    chosen = set(paths(model, role))
    return tree.map_with_path(lambda path, _: path in chosen, abstract(model))


def declarations(model: Module) -> dict[str, Declaration]:
    """Every `Param` and `State` of a model by path, in the order they were declared."""
    return dict(_walk(declared(model), ""))


def _each(model: Module, function: Callable[[Param], Any]) -> dict:
    return jax.tree.map(function, declared(model, Param))


def _walk(node: Any, path: str) -> Iterator[tuple[str, Declaration]]:
    if isinstance(node, Declaration):
        yield path, node
        return
    for name, value in node.items():
        yield from _walk(value, join(path, name))
