"""How a combinator hands each member the keywords that its signature names."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import inspect
from typing import Any

from jaxdl.core.keys import MISSING, Missing, OptionalKey, split
from jaxdl.core.module import Module, is_stateful
from jaxdl.core.naming import current_path

Layer = Module | Callable[..., Any]


def keywords(layer: Layer) -> frozenset[str]:
    """The keywords a layer takes: those of its signature and of a combinator's members.

    >>> from jaxdl import nn
    >>> sorted(keywords(nn.Sequential([nn.Linear(2, 3), nn.Dropout(0.1)])))
    ['key']
    """
    own = _signature(type(layer).__call__ if isinstance(layer, Module) else layer)
    members = getattr(layer, "members", tuple)
    return own.union(*map(keywords, members()))


def check(combinator: Module, given: Mapping[str, Any]) -> None:
    """Raises TypeError for a keyword that no member of a combinator takes."""
    taken = keywords(combinator)
    for name in given:
        if name not in taken:
            where = current_path() or type(combinator).__name__
            known = ", ".join(sorted(taken)) or "none"
            raise TypeError(
                f"{where}: no member takes the keyword {name!r}; taken: {known}"
            )


def carried(combinator: Module, state: Any, given: dict[str, Any]) -> Any:
    """What members hand back beside y: the state, or the `cache` among the keywords.

    Takes the cache out of the keywords. Raises TypeError for state that is missing or
    not wanted, and for both at once.
    """
    name, cache = type(combinator).__name__, given.pop("cache", None)
    missing = isinstance(state, Missing | None)
    if not is_stateful(combinator):
        if not missing:
            raise TypeError(f"{name}: no member has state, but state was given")
        return cache
    if missing:
        raise TypeError(
            f"{name}: a member has state: call it (params, x, state, ...) with state "
            "from init_state()"
        )
    if cache is not None:
        raise TypeError(f"{name}: expected state or a cache, got both")
    return state


def calls(
    layers: Sequence[Layer], params: Any, carry: Any, given: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[[Any], tuple]]]:
    """Each member's name, its position, and the call `x -> (y, carry)` of it.

    The key is split among the members that take one.
    """
    takers = [i for i, layer in enumerate(layers) if "key" in keywords(layer)]
    keys = dict(zip(takers, split(given.get("key", MISSING), len(takers)), strict=True))
    for index, layer in enumerate(layers):
        name = str(index)
        before = None
        if carry is not None:
            before = carry[name] if is_stateful(layer) else carry.get(name)
        own = {**given, "key": keys.get(index, MISSING)}
        yield (
            name,
            functools.partial(run, layer, params.get(name), carry=before, given=own),
        )


def run(
    layer: Layer, params: Any, x: Any, carry: Any, given: Mapping[str, Any]
) -> tuple:
    """Calls a layer with the keywords it takes: (y, state or cache), or (y, None)."""
    taken = keywords(layer)
    chosen = {n: v for n, v in given.items() if n in taken and v is not MISSING}
    if not isinstance(layer, Module):
        return layer(x, **chosen), None
    if is_stateful(layer):
        return layer(params, x, carry, **chosen)
    if carry is not None:
        return layer(params, x, cache=carry, **chosen)
    return layer(params, x, **chosen), None


def parts(module: Module, params: Any, key: OptionalKey = MISSING) -> Callable:
    """A function that calls a module's parts by name: `part("up", x)` -> y.

    Keywords are handed on to a part that takes them. The key is split among the parts
    that take one; if a single one does it is not split, so that a layer computes as
    ever until another of its parts, an adapter with dropout, asks for a key too.
    """
    takers = _takers(module)
    keys = [key] if len(takers) == 1 else split(key, len(takers)) if takers else []
    own = dict(zip(takers, keys, strict=True))

    def part(name: str, x: Any, **given: Any) -> Any:
        given["key"] = own.get(name, MISSING)
        return run(getattr(module, name), params[name], x, None, given)[0]

    return part


def caches(layers: Sequence[Layer], *sizes: Any, **options: Any) -> dict[str, Any]:
    """Empty caches of the members that take one, by position."""
    return {
        str(index): layer.init_cache(*sizes, **options)  # type: ignore[union-attr]
        for index, layer in enumerate(layers)
        if "cache" in keywords(layer)
    }


@functools.lru_cache(maxsize=4096)
def _takers(module: Module) -> tuple[str, ...]:
    found = module.children().items()
    return tuple(name for name, child in found if "key" in keywords(child))


@functools.lru_cache(maxsize=4096)
def _signature(function: Callable) -> frozenset[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a builtin without a signature
        return frozenset()
    return frozenset(p.name for p in parameters if p.kind == p.KEYWORD_ONLY)
