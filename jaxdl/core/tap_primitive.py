"""tap: give a value inside a model a name, at no cost.

A tap is a primitive of its own that computes the identity and lowers to nothing: the
compiled program is the one without it. `jaxdl.core.transforms` looks for taps in the
traced program, which is why they reach through jit, grad, vmap, scan and remat.
"""

from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp

from jaxdl.core import naming, tree

tap_p = Primitive("tap")


def tap(value: Any, name: str) -> Any:
    """Names a value under the path of the module that is running; returns it unchanged.

    A pytree gets a name for each leaf. `capture` reads the value, `patch` changes it.

    >>> hidden = tap(jnp.ones((2, 3)), "hidden")
    """
    path = naming.current_path(name)

    def bind(leaf_path, leaf):
        full = naming.join(path, leaf_path)
        return tap_p.bind(jnp.asarray(leaf), name=full, batch_dims=())

    return tree.map_with_path(bind, value)


def _batch(args, dims, *, name, batch_dims):
    # The batch axis stays where it is, which costs nothing; its place is remembered, so
    # that capture and patch can show it in front.
    (value,), (dim,) = args, dims
    inner = tuple(d + (d >= dim) for d in batch_dims)
    return tap_p.bind(value, name=name, batch_dims=(dim, *inner)), dim


def _jvp(primals, tangents, **params):
    # Only the primal is a named value: a tap inside a gradient is that of the forward
    # pass.
    return tap_p.bind(*primals, **params), tangents[0]


tap_p.def_impl(lambda value, **params: value)
tap_p.def_abstract_eval(lambda value, **params: value)
mlir.register_lowering(tap_p, lambda context, value, **params: [value])
ad.primitive_jvps[tap_p] = _jvp
batching.primitive_batchers[tap_p] = _batch


def save_taps(*patterns: str):
    """A `jax.checkpoint` policy that keeps named values for the backward pass.

    `nn.Repeat(block, 12, remat=jd.save_taps("**/mlp/hidden"))`
    """
    return _SaveTaps(patterns)


class _SaveTaps:
    """The policy as a value, so that equal models stay equal."""

    def __init__(self, patterns: tuple[str, ...]):
        self.patterns = patterns

    def __call__(self, primitive, *_, **params) -> bool:
        if primitive is not tap_p:
            return False
        return any(tree.matches(pattern, params["name"]) for pattern in self.patterns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SaveTaps) and self.patterns == other.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)

    def __repr__(self) -> str:
        return f"save_taps{self.patterns}"
