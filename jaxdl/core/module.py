"""Module: a hashable value that declares parameters, and a pure function of them."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import typing
from typing import Any, ClassVar, Literal, dataclass_transform
import zlib

import jax
import numpy as np

from jaxdl.core import fields, naming, tree
from jaxdl.core.param import Declaration, Param, State

Spec = Mapping[str, Any]


def inline(**kwargs: Any) -> Any:
    """A field whose Modules appear under the owner's own path, without its name.

    `Sequential.layers` is one: its parameters are `0`, `1`, not `layers/0`, `layers/1`.
    """
    return dataclasses.field(metadata={"inline": True}, **kwargs)


def part(*, default: None, kw_only: Literal[True] = True) -> Any:
    """A field for a sub-module that the module builds itself unless it is given one.

    Written `up: Module = part(default=None)`: type checkers look for the default there.
    `__post_init__` calls `fill(self, up=...)`. So a layer is made from sizes, and model
    surgery (`dataclasses.replace`, `map_modules`) still reaches every part of it.
    """
    return dataclasses.field(default=default, kw_only=kw_only)


@dataclass_transform(
    frozen_default=True, field_specifiers=(dataclasses.field, inline, part)
)
class Module:
    """A model, or a part of one: static structure, with no arrays in it.

    A subclass is a frozen dataclass. Its fields are the structure, `spec` declares the
    parameters, and `__call__(params, x)` computes. Modules compare and hash by value,
    so one can be closed over, passed through `jax.jit` as an argument, or used as a
    key.

    >>> class Scale(Module):
    ...     dim: int
    ...
    ...     def spec(self):
    ...         return {"scale": Param((self.dim,), axes=("embed",), role="scale")}
    ...
    ...     def __call__(self, params, x):
    ...         return x * params["scale"]
    >>> Scale(8) == Scale(8)
    True
    """

    __call__: ClassVar[Callable[..., Any]]
    __post_init__: ClassVar[Callable[..., None]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__call__" in cls.__dict__:
            cls.__call__ = scoped(cls.__dict__["__call__"])
        cls.__post_init__ = _checking(cls, getattr(cls, "__post_init__", None))
        dataclasses.dataclass(frozen=True)(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.name in ("spec", "children", "init", "init_state"):
                raise TypeError(
                    f"{cls.__name__}: a field cannot be called {field.name!r}"
                )
        cls.__init__ = _freezing(cls, cls.__init__)
        cls.__hash__ = _cached(cls.__hash__)
        jax.tree_util.register_static(cls)

    def spec(self) -> Spec:
        """Declares parameters: names to `Param`, `State`, Modules, or dicts of them.

        By default the fields that are Modules, and the Modules in tuples by position.
        """
        children = self.children()
        own = children.pop("", None)
        return {**(own.spec() if own else {}), **tree.unflatten(children)}

    def children(self) -> dict[str, "Module"]:
        """The Modules among the fields, by path: `up`, or `blocks/0` within a tuple."""
        found = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            found.update(_modules(_label(field), getattr(self, field.name)))
        return found

    def init(self, key: jax.Array) -> dict:
        """Draws the parameters: nested dicts of arrays, one for each declared `Param`.

        A value depends on the key and its path alone: adding a layer changes none of
        its neighbours, and jit, vmap and any sharding give the same bits.
        """
        return _draw(declared(self, Param), key)

    def init_state(self, key: jax.Array | None = None) -> dict:
        """Draws the initial state; {} if no part of the model declares `State`.

        The key is needed only where a state starts at random.
        """
        declarations = declared(self, State)
        if key is None:
            for path, state in tree.flatten(declarations).items():
                if getattr(state.init, "random", True):
                    raise TypeError(
                        f"{path}: its state starts at random: init_state(key)"
                    )
            key = jax.random.key(0)
        return _draw(declarations, key)

    def __getstate__(self) -> dict:
        # A hash of strings differs between processes: it must not travel.
        return {k: v for k, v in self.__dict__.items() if k != "_hash"}


def fill(module: Module, **parts: Any) -> None:
    """Sets the fields that are still None; for `__post_init__`."""
    for name, value in parts.items():
        if getattr(module, name) is None:
            object.__setattr__(module, name, value)


def declared(model: Module, kind: type[Declaration] = Declaration) -> dict:
    """The model's declarations, all or of one kind: nested dicts of `Param`, `State`.

    A part without parameters is an empty dict, so that `params["name"]` always exists;
    in the tree of State only the parts that have any appear. Raises TypeError, naming
    the path, for anything else in a spec.
    """
    return _only(_resolve(model, ""), kind)


def is_stateful(module: Any) -> bool:
    """Whether any part of a module declares `State`; False for a plain function."""
    return isinstance(module, Module) and _is_stateful(module)


def mismatches(model: Module, params: Any) -> list[str]:
    """Lists what keeps params from fitting the model, a line for each path.

    >>> from jaxdl import nn
    >>> mismatches(nn.Linear(2, 3), {"kernel": np.ones((2, 4), np.float32)})
    ['bias: missing, expected float32[3]',
     'kernel: expected float32[2, 3], got float32[2, 4]']
    """
    expected = tree.flatten(declared(model, Param))
    given = tree.flatten(params)
    lines = []
    for path, param in expected.items():
        wanted = naming.describe(param)
        if path not in given:
            lines.append(f"{path}: missing, expected {wanted}")
        elif tuple(getattr(given[path], "shape", ("?",))) != param.shape:
            lines.append(
                f"{path}: expected {wanted}, got {naming.describe(given[path])}"
            )
    lines += [f"{path}: unexpected" for path in given if path not in expected]
    return lines


def check_params(model: Module, params: Any) -> None:
    """Raises ValueError listing every missing, unexpected and mis-shaped path."""
    problems = mismatches(model, params)
    if problems:
        name = type(model).__name__
        raise ValueError("\n  ".join([f"params do not fit {name}:", *problems]))


def map_modules(
    function: Callable[[str, Module], Module], model: Any, path: str = ""
) -> Any:
    """Rebuilds a model with every Module replaced by `function(path, module)`.

    Inner modules first; return the module itself to leave it as it is.

    >>> from jaxdl import nn
    >>> model = nn.Sequential([nn.Linear(2, 3), nn.Dropout(0.1)])
    >>> def no_dropout(path, module):
    ...     return nn.Dropout(0.0) if isinstance(module, nn.Dropout) else module
    >>> map_modules(no_dropout, model).layers[1].rate
    0.0
    """
    if isinstance(model, tuple):
        return tuple(
            map_modules(function, item, naming.join(path, str(i)))
            for i, item in enumerate(model)
        )
    if not isinstance(model, Module):
        return model
    changes = {}
    for field in dataclasses.fields(model):  # type: ignore[arg-type]
        old = getattr(model, field.name)
        new = map_modules(function, old, naming.join(path, _label(field)))
        if new != old:
            changes[field.name] = new
    return function(path, dataclasses.replace(model, **changes) if changes else model)  # type: ignore[type-var]


def scoped(method: Callable) -> Callable:
    """Makes a method `(self, params, ...)` run under its module's path.

    `__call__` has this by itself; a further method that takes params (`logits`,
    `encode`) is decorated with it, so that its errors and taps name the path.
    """

    @functools.wraps(method)
    def call(self, params, *args, **kwargs):
        name = naming.name_of(self, params)
        with naming.scope(name, self, params), _profiled(name):
            try:
                return method(self, params, *args, **kwargs)
            except Exception as error:
                _explain(error, self, params)
                raise

    return call


def _profiled(name: str):
    return jax.named_scope(name) if name else contextlib.nullcontext()


def _explain(error: Exception, module: Module, params: Any) -> None:
    """Notes on an error, once: the path it happened in, and what params lack."""
    if getattr(error, "jaxdl_path", None) is not None:
        return
    path = naming.current_path()
    error.jaxdl_path = path  # type: ignore[attr-defined]
    kind = type(module).__name__
    error.add_note(f"in {path} ({kind})" if path else f"in {kind}")
    for problem in mismatches(module, params):
        error.add_note(f"  {naming.join(path, problem)}")


def _resolve(node: Any, path: str) -> Any:
    if isinstance(node, Declaration):
        return node
    if isinstance(node, Module):
        node = node.spec()
    if isinstance(node, Mapping):
        for name in node:
            if not isinstance(name, str) or not name or set(name) & set("/*@"):
                where = path or "spec"
                raise TypeError(f"{where}: expected names without / * @, got {name!r}")
        return {
            name: _resolve(value, naming.join(path, name))
            for name, value in node.items()
        }
    raise TypeError(
        f"{path or 'spec'}: expected a Param, State, Module or dict in a spec, "
        f"got {type(node).__name__}"
    )


def _label(field: dataclasses.Field) -> str:
    return "" if field.metadata.get("inline") else field.name


def _modules(path: str, value: Any) -> Iterator[tuple[str, Module]]:
    if isinstance(value, Module):
        yield path, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _modules(naming.join(path, str(index)), item)


def _draw(declarations: dict, key: Any) -> dict:
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"expected a key such as jax.random.key(0), got {key!r}")
    paths = {}
    for path in tree.flatten(declarations):
        other = paths.setdefault(zlib.crc32(path.encode()), path)
        if other != path:
            raise ValueError(
                f"{path} and {other} have the same crc32: rename one of them"
            )
    return tree.map_with_path(lambda path, leaf: leaf.sample(key, path), declarations)


def _only(node: Mapping, kind: type) -> dict:
    kept = {}
    for name, value in node.items():
        if isinstance(value, kind):
            kept[name] = value
        elif isinstance(value, Mapping):
            below = _only(value, kind)
            if below or kind is not State:
                kept[name] = below
    return kept


@functools.lru_cache(maxsize=4096)
def _is_stateful(module: Module) -> bool:
    return bool(declared(module, State))


def _checking(cls: type, post_init: Callable | None) -> Callable:
    """Holds whole numbers to their annotations before anything is made of them."""

    @functools.cache
    def annotations() -> dict[str, Any]:
        try:
            return typing.get_type_hints(cls, include_extras=True)
        except (NameError, TypeError):  # names that only a type checker can see
            return {}

    def __post_init__(self):
        if type(self) is cls:
            for field in dataclasses.fields(self):  # type: ignore[arg-type]
                if field.name in annotations():
                    fields.check(
                        f"{cls.__name__}.{field.name}",
                        annotations()[field.name],
                        getattr(self, field.name),
                    )
        if post_init is not None:
            post_init(self)

    return __post_init__


def _freezing(cls: type, init: Callable) -> Callable:
    """Lets the constructor take lists, and refuses what cannot be hashed."""

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        init(self, *args, **kwargs)
        if type(self) is cls:
            for field in dataclasses.fields(self):  # type: ignore[arg-type]
                value = _frozen(
                    f"{cls.__name__}.{field.name}", getattr(self, field.name)
                )
                object.__setattr__(self, field.name, value)

    return __init__


def _frozen(name: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return tuple(_frozen(f"{name}[{i}]", item) for i, item in enumerate(value))
    if isinstance(value, jax.Array | np.ndarray):
        raise TypeError(
            f"{name}: expected static structure, got {naming.describe(value)}; "
            "arrays belong in spec() or in the arguments of __call__"
        )
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(
            f"{name}: expected a hashable value, got {type(value).__name__}; "
            "use a tuple or a frozen dataclass"
        ) from error
    return value


def _cached(compute: Callable) -> Callable:
    def __hash__(self):
        value = self.__dict__.get("_hash")
        if value is None:
            value = compute(self)
            object.__setattr__(self, "_hash", value)
        return value

    return __hash__
