"""The layers of a mixture's experts: one kernel for each, stacked."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.core.layout import constrain
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.core.tap_primitive import tap
from jaxdl.nn import routing
from jaxdl.nn.checks import floating


class Stretches(NamedTuple):
    """Whose the rows are that are sorted by expert.

    sizes: how many rows each expert has. owners: the expert of each row.
    """

    sizes: Int[Array, " num_experts"]
    owners: Int[Array, " rows"]


class Experts(Module):
    """A gated feed-forward layer for each expert: [expert, slot, dim] -> the same.

    down(activation(gate(x)) * up(x)), or down(glu(gate(x), up(x))). With `stretches`
    it maps rows sorted by expert, [rows, dim] -> [rows, dim].

    Taps: `hidden`, what `down` reads.
    """

    gate: Module
    up: Module
    down: Module
    glu: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu

    def __call__(
        self,
        params,
        x: Float[Array, "... dim"],
        *,
        stretches: Stretches | None = None,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "... dim"]:
        part = routing.parts(self, params, key)
        gate = part("gate", x, stretches=stretches)
        up = part("up", x, stretches=stretches)
        hidden = self.activation(gate) * up if self.glu is None else self.glu(gate, up)
        return part("down", tap(hidden, "hidden"), stretches=stretches)

    def dtype(self, params) -> Any:
        """The dtype that the experts compute in."""
        matrix: Any = self.up.matrix  # type: ignore[attr-defined]
        return jax.eval_shape(matrix, params["up"]).dtype


class ExpertLinear(Module):
    """`nn.Linear` for each expert: [expert, slot, in] -> [expert, slot, out].

    With `stretches` it maps rows sorted by expert, [rows, in] -> [rows, out], each by
    the kernel of its own (`jax.lax.ragged_dot`). `kernel` is [expert, in, out].
    """

    num_experts: Size
    in_features: Size
    out_features: Size
    bias: bool = False
    axes: tuple[str | None, str | None] = (None, None)
    kernel_init: Any = initializers.lecun_normal(batch_axis=0)

    def spec(self):
        shape = (self.num_experts, self.in_features, self.out_features)
        axes = ("expert", *self.axes)
        spec = {"kernel": Param(shape, self.kernel_init, axes)}
        if self.bias:
            init = initializers.zeros
            spec["bias"] = Param(shape[::2], init, axes[::2], role="bias")
        return spec

    def __call__(
        self, params, x: Float[Array, "... in"], *, stretches: Stretches | None = None
    ) -> Float[Array, "... out"]:
        fits = x.ndim == (3 if stretches is None else 2)
        fits = fits and x.shape[-1] == self.in_features
        expect(fits, f"[expert, slot, {self.in_features}], or rows and stretches", x)
        kernel = params["kernel"]
        x = floating(x, kernel.dtype)
        if stretches is not None:
            y = jax.lax.ragged_dot(x, kernel, stretches.sizes)
            return y + params["bias"][stretches.owners] if self.bias else y
        x = constrain(x, "expert", "batch", self.axes[0])
        y = jnp.einsum("esi,eio->eso", x, kernel)
        y = y + params["bias"][:, None] if self.bias else y
        return constrain(y, "expert", "batch", self.axes[1])

    def matrix(self, params) -> Float[Array, "... expert fan_in fan_out"]:
        """The kernels. An adapted or quantised layer makes its own."""
        return params["kernel"]
