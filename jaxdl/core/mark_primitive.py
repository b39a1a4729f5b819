"""mark: leave word in a program of which kernel computes a value, at no cost.

Like a tap, a mark is the identity and lowers to nothing. `jd.which_backend` reads it.
"""

from typing import Any, NamedTuple

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxdl.core import naming

mark_p = Primitive("mark")


class Choice(NamedTuple):
    """A kernel, the platform it is for ("" is any other), and why it is no faster."""

    kernel: str
    reason: str = ""
    platform: str = ""


def mark(value: jax.Array, kind: str, *choices: Choice, name: str = "") -> jax.Array:
    """Says which kernel computes a value on each platform; returns it unchanged.

    kind: "attention", "experts" or "loss".
    name: of the operation within the module that is running.
    """
    path = naming.current_path(name)
    return mark_p.bind(value, kind=kind, path=path, choices=choices)


def _batch(args, dims, **params):
    return mark_p.bind(*args, **params), dims[0]


def _jvp(primals, tangents, **params):
    # The derivative is computed by the same kernel, and is told of once.
    return mark_p.bind(*primals, **params), tangents[0]


def _lower(context: Any, value: Any, **params: Any) -> list[Any]:
    return [value]


mark_p.def_impl(lambda value, **params: value)
mark_p.def_abstract_eval(lambda value, **params: value)
mlir.register_lowering(mark_p, _lower)
ad.primitive_jvps[mark_p] = _jvp
batching.primitive_batchers[mark_p] = _batch
