"""The whole numbers among a module's fields: sizes are held to what they are.

A float that stands for a size is cut by one function and refused by another, far from
where it was written. `Module` checks its fields when it is made.
"""

from collections.abc import Hashable
import numbers
import types
from typing import Annotated, Any, Union, get_args, get_origin

_ABOVE_ZERO = "above 0"

Size = Annotated[int, _ABOVE_ZERO]
"""The annotation of a field that counts something: a whole number above 0."""


def check(name: str, annotation: Any, value: Any) -> None:
    """Raises TypeError or ValueError where numbers do not fit their annotation.

    Only `int` and `Size` are judged, alone, optional, or in tuples and unions of them.

    >>> check("Linear.out_features", Size, 8)
    >>> check("Linear.out_features", Size, 0)
    Traceback (most recent call last):
    ValueError: Linear.out_features: expected a whole number above 0, got 0
    """
    if _is_static(value) and not _fits(annotation, value):
        error = ValueError if _fits(_loosened(annotation), value) else TypeError
        raise error(f"{name}: expected {_words(annotation)}, got {value!r}")


def _is_static(value: Any) -> bool:
    """Whether a value may be a field at all; another check says why not."""
    if isinstance(value, list | tuple):
        return all(map(_is_static, value))
    return isinstance(value, Hashable)


def _fits(annotation: Any, value: Any) -> bool:
    if annotation is int or annotation == Size:
        whole = isinstance(value, numbers.Integral)
        return whole and (annotation is int or int(value) > 0)
    if annotation is None or annotation is types.NoneType:
        return value is None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_fits(option, value) for option in arguments)
    if origin is tuple and isinstance(value, tuple | list):
        if arguments[1:] == (...,):
            return all(_fits(arguments[0], item) for item in value)
        pairs = zip(arguments, value, strict=False)
        return all(_fits(argument, item) for argument, item in pairs)
    if origin is tuple:
        return False
    return True  # not ours to judge


def _loosened(annotation: Any) -> Any:
    """The annotation with any whole number where a size stands."""
    if annotation == Size:
        return int
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_loosened, arguments))]  # noqa: UP007
    if origin is tuple:
        loose = tuple(a if a is ... else _loosened(a) for a in arguments)
        return tuple[loose]
    return annotation


def _words(annotation: Any) -> str:
    if annotation == Size:
        return "a whole number above 0"
    if annotation is int:
        return "a whole number"
    if annotation is types.NoneType:
        return "None"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, arguments))
    if origin is tuple:
        items = [_words(a) for a in arguments if a is not ...]
        return f"a tuple of {items[0]}" if arguments[1:] == (...,) else "a tuple"
    return getattr(annotation, "__name__", str(annotation))
