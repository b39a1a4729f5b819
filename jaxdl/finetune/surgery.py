"""Replaces parts of a model and their params: (model, params) -> the same."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxdl.core import tree
from jaxdl.core.module import Module, check_params, map_modules
from jaxdl.core.naming import join

Change = Callable[[str, Module, Any], tuple[Module, Any]]


def convert(model: Module, params: Any, change: Change, kinds: Any) -> tuple[Any, Any]:
    """Rebuilds the modules of some kinds: `change(path, module, params there)`.

    It returns the module and the params that stand there instead. Inside `nn.Repeat`
    params are stacked. Inner modules come first, as in `jd.map_modules`.
    """
    check_params(model, params)

    def visit(path: str, module: Module) -> Module:
        nonlocal params
        if not isinstance(module, kinds):
            return module
        module, there = change(path, module, get(params, path))
        params = put(params, path, there)
        return module

    return map_modules(visit, model), params


def places(model: Module, kinds: Any) -> dict[str, Module]:
    """The modules of some kinds by path; of two at one path the outer one."""
    found = {}

    def visit(path: str, module: Module) -> Module:
        if isinstance(module, kinds):
            found[path] = module
        return module

    map_modules(visit, model)
    return found


def chosen(
    model: Module, kinds: Any, patterns: str | Iterable[str] | None
) -> list[str]:
    """The paths of the modules of some kinds that fit a pattern; all of them for None.

    Raises ValueError for a pattern that fits none.
    """
    paths = list(places(model, kinds))
    return paths if patterns is None else tree.matching(patterns, paths)


def get(params: Any, path: str) -> Any:
    """The part of nested dicts at a path; all of it at ""."""
    for name in path.split("/") if path else ():
        params = params[name]
    return params


def put(params: Any, path: str, value: Any) -> Any:
    """A copy of nested dicts with another value at a path."""
    if not path:
        return value
    name, _, rest = path.partition("/")
    return {**params, name: put(params.get(name, {}), rest, value)}


def merged(first: Any, second: Any, path: str = "") -> Any:
    """Nested dicts with the leaves of both; ValueError for a path in both."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        raise ValueError(f"{path or 'params'}: expected a leaf in one tree, got two")
    both = dict(first)
    for name, value in second.items():
        taken = name in first
        both[name] = (
            merged(first[name], value, join(path, str(name))) if taken else value
        )
    return both
