"""Counts FLOPs in a traced program, loops by the number of their iterations.

A multiplication and an addition are two FLOPs. Attention is counted as it is written:
a causal mask over a whole matrix of scores saves nothing.
"""

from collections import Counter
from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn
import jax.numpy as jnp
import numpy as np

from jaxdl.core import jaxprs

Trips = int | Mapping[str, int] | None


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs of one call, all devices together.

    model: of matrix products and convolutions, without what `jax.checkpoint` computes a
      second time: what MFU is a share of (Chowdhery et al. 2022, arXiv:2204.02311).
    hardware: the same, with it.
    elementwise: of everything else: one for each element that arithmetic or a function
      gives, or that a reduction reads.
    loops: the while loops whose iterations are not known; they are counted once.
    opaque: operations that compute an unknown amount; they are not counted.
    """

    model: int = 0
    hardware: int = 0
    elementwise: int = 0
    loops: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(
            self.model + other.model,
            self.hardware + other.hardware,
            self.elementwise + other.elementwise,
            tuple(dict.fromkeys(self.loops + other.loops)),
            tuple(dict.fromkeys(self.opaque + other.opaque)),
        )

    def times(self, number: int) -> "Flops":
        """Of `number` such calls."""
        return dataclasses.replace(
            self,
            model=self.model * number,
            hardware=self.hardware * number,
            elementwise=self.elementwise * number,
        )


def count_flops(function: Callable, *args: Any, trips: Trips = None) -> Flops:
    """Counts the FLOPs of `function(*args)`, of which nothing is computed.

    args: arrays, or anything with a shape and a dtype in their place.
    trips: how often while loops run: one number for all, or by name. A scan and a
      `fori_loop` between plain integers say it themselves.

    Of a `cond` the branch with the most is counted; of a `shard_map`, all devices; of a
    kernel, its cost estimate where it has one. Zeros that pad or dilate a convolution
    are not counted, as XLA does not count them. What is traced is counted, also if no
    result needs it.

    Raises ValueError for a while loop that `trips` does not name.

    >>> x = jax.ShapeDtypeStruct((8, 16), "float32")
    >>> count_flops(lambda x: x @ x.T, x).model
    2048
    """
    flops = jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr, trips)
    if flops.loops:
        raise ValueError(
            f"while loops of unknown length: {', '.join(flops.loops)}; say how often "
            f"they run, as trips={{{flops.loops[0]!r}: 10}}, or one number for all"
        )
    return flops


def jaxpr_flops(jaxpr: Jaxpr, trips: Trips = None) -> Flops:
    """Counts the FLOPs of a jaxpr; `Flops.loops` names what `trips` leaves unknown."""
    return _count(jaxpr, _Context(trips))


class _Context:
    """What is the same all over a program: the loops seen, and how often they run."""

    def __init__(self, trips: Trips):
        self.trips = trips
        self.seen: Counter[str] = Counter()

    def loop(self, scope: str) -> tuple[str, int | None]:
        """The name of the next while loop, and how often it runs."""
        name = jaxprs.numbered(f"{scope}/while" if scope else "while", self.seen)
        trips = self.trips
        return name, trips.get(name) if isinstance(trips, Mapping) else trips


def _count(
    jaxpr: Jaxpr, context: _Context, scope: str = "", again: bool = False
) -> Flops:
    """FLOPs of a jaxpr; again: it stands in what is computed a second time."""
    total = Flops()
    for eqn in jaxpr.eqns:
        inner = "/".join(filter(None, (scope, jaxprs.scope(eqn))))
        total += _equation(eqn, context, inner, again or jaxprs.is_recomputed(eqn))
    return total


def _equation(eqn: JaxprEqn, context: _Context, scope: str, again: bool) -> Flops:
    name = eqn.primitive.name
    if name in _PRODUCTS:
        number = _PRODUCTS[name](eqn)
        return Flops(0 if again else number, number)
    if name in _OPAQUE:
        return Flops(opaque=(name,))
    if name == "while":
        return _while(eqn, context, scope, again)
    if name == "pallas_call":
        return _kernel(eqn, context, scope, again)
    if (elementwise := _elementwise(eqn)) is not None:
        return Flops(elementwise=elementwise)
    if name == "custom_linear_solve":
        solve = jaxprs.closed(eqn.params["jaxprs"].solve).jaxpr
        return _count(solve, context, scope, again)
    parts = [_count(p, context, scope, again) for p in jaxprs.sub_jaxprs(eqn)]
    if name == "cond":
        return max(parts, key=lambda part: (part.hardware, part.elementwise))
    return sum(parts, Flops()).times(jaxprs.repetitions(eqn))


def _while(eqn: JaxprEqn, context: _Context, scope: str, again: bool) -> Flops:
    name, trips = context.loop(scope)
    condition, body = (
        _count(jaxprs.closed(eqn.params[part]).jaxpr, context, scope, again)
        for part in ("cond_jaxpr", "body_jaxpr")
    )
    once = 1 if trips is None else trips
    total = body.times(once) + condition.times(once + 1)
    return total + Flops(loops=(name,)) if trips is None else total


def _kernel(eqn: JaxprEqn, context: _Context, scope: str, again: bool) -> Flops:
    estimate = eqn.params["cost_estimate"]
    if estimate is not None:
        number = int(estimate.flops)
        return Flops(0 if again else number, number)
    grid = eqn.params["grid_mapping"].grid
    if not all(isinstance(size, int) for size in grid):
        return Flops(opaque=("pallas_call",))
    body = _count(eqn.params["jaxpr"], context, scope, again)
    return body.times(math.prod(grid))


def _dot(eqn: JaxprEqn) -> int:
    (contracting, _), _ = eqn.params["dimension_numbers"]
    shape = _shape(eqn.invars[0])
    return 2 * _size(eqn.outvars[0]) * math.prod(shape[axis] for axis in contracting)


def _ragged_dot(eqn: JaxprEqn) -> int:
    """Every row meets the matrix of its own group; no row counts for two groups."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (contracting, _), _ = numbers.dot_dimension_numbers
    lhs = _shape(eqn.invars[0])
    total = 2 * _size(eqn.outvars[0]) * math.prod(lhs[axis] for axis in contracting)
    if set(numbers.lhs_ragged_dimensions) & set(contracting):
        return total // _shape(eqn.invars[2])[-1]
    return total


def _conv(eqn: JaxprEqn) -> int:
    numbers = eqn.params["dimension_numbers"]
    lhs, rhs = map(_shape, eqn.invars)
    out = _shape(eqn.outvars[0])
    pairs = [
        _meetings(lhs[lhs_axis], rhs[rhs_axis], out[out_axis], eqn.params, spatial_axis)
        for spatial_axis, (lhs_axis, rhs_axis, out_axis) in enumerate(
            zip(
                numbers.lhs_spec[2:],
                numbers.rhs_spec[2:],
                numbers.out_spec[2:],
                strict=True,
            )
        )
    ]
    batch, features = (out[axis] for axis in numbers.out_spec[:2])
    return 2 * batch * features * rhs[numbers.rhs_spec[1]] * math.prod(pairs)


def _meetings(size: int, kernel: int, out: int, params: Mapping, axis: int) -> int:
    """How often an element of the kernel meets one of the input, along one axis."""
    places = (
        np.arange(out)[:, None] * params["window_strides"][axis]
        + np.arange(kernel) * params["rhs_dilation"][axis]
        - params["padding"][axis][0]
    )
    holes = params["lhs_dilation"][axis]
    inside = (places >= 0) & (places <= (size - 1) * holes) & (places % holes == 0)
    return int(inside.sum())


def _elementwise(eqn: JaxprEqn) -> int | None:
    """FLOPs of an operation on elements; None if it is none, or not on floats."""
    name = eqn.primitive.name
    if name in _READS:
        return _size(eqn.invars[_READS[name]]) * _is_float(eqn.outvars[0])
    if name in _GIVES:
        return _size(eqn.outvars[0]) * _is_float(eqn.outvars[0])
    return None


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))


def _is_float(variable: Any) -> bool:
    return jnp.issubdtype(variable.aval.dtype, jnp.inexact)


_PRODUCTS: dict[str, Callable[[JaxprEqn], int]] = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _conv,
}

# What an operation reads decides, by the argument; scatters combine their updates.
_READS = dict.fromkeys(
    """reduce_sum reduce_max reduce_min reduce_prod cumsum cumprod cummax cummin
    cumlogsumexp reduce_window_sum reduce_window_max reduce_window_min""".split(),
    0,
) | dict.fromkeys(("scatter-add", "scatter_add", "scatter_mul"), 2)

_GIVES = frozenset(
    """abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp cos cosh
    digamma div erf erf_inv erfc exp exp2 expm1 floor integer_pow lgamma log log1p
    logistic max min mul neg pow rem round rsqrt sign sin sinh sqrt square sub tan
    tanh""".split()
)

_OPAQUE = frozenset(
    """cholesky eig eigh fft ffi_call householder_product hessenberg lu qr schur svd
    triangular_solve tridiagonal tridiagonal_solve custom_call
    dot_product_attention_fwd_wrapper dot_product_attention_bwd_wrapper""".split()
)
