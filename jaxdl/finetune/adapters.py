"""Layers that add a trained change of low rank to a layer that stays as it is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING
from jaxdl.core.module import Module, declared, inline
from jaxdl.core.param import Param
from jaxdl.finetune.quantized import QuantizedLinear
from jaxdl.nn import routing
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Linear


class LoRA(Module):
    """x W + alpha / rank x A B: [..., in_features] -> [..., out_features].

    A [in, rank] and B [rank, out] are trained, the layer inside is not (Hu et al. 2021,
    arXiv:2106.09685). B starts at 0 and A as PEFT's, uniform within in ** -0.5. Params
    are the layer's own, at the same path, and `lora/a`, `lora/b`. `dropout` is of what
    A sees and needs a caller that hands a key on: combinators do, `nn.Attention` does
    not.
    """

    inner: Any = inline()
    rank: Size = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self):
        if not isinstance(self.inner, Linear | QuantizedLinear):
            raise TypeError(
                f"{type(self).__name__}: expected an nn.Linear or a QuantizedLinear, "
                f"got {type(self.inner).__name__}"
            )
        Dropout(self.dropout)  # holds the rate to its range

    def members(self) -> tuple[Module, ...]:
        # Without dropout it takes no key: those of the layers beside stay as they were.
        drop = (Dropout(self.dropout),) if self.dropout else ()
        return (self.inner, *drop)

    def spec(self):
        rows, columns = self.inner.axes
        a = Param((self.inner.in_features, self.rank), _INIT, (rows, None))
        shape = (self.rank, self.inner.out_features)
        b = Param(shape, initializers.zeros, (None, columns))
        return {**declared(self.inner), "lora": {"a": a, "b": b}}

    def __call__(self, params, x: Float[Array, "... in"], **given: Any):
        routing.check(self, given)
        y, _ = routing.run(self.inner, _own(self.inner, params), x, None, {})
        return y + self._change(params, x, given).astype(y.dtype)

    def matrix(self, params) -> Float[Array, "... fan_in fan_out"]:
        """The matrix that multiplies x, the change included."""
        kernel = self.inner.matrix(params)
        return self._sum(params, kernel).astype(kernel.dtype)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def _change(self, params, x, given) -> jax.Array:
        lora = params["lora"]
        if self.dropout:
            x = Dropout(self.dropout)({}, x, key=given.get("key", MISSING))
        return x.astype(lora["a"].dtype) @ lora["a"] @ lora["b"] * self.scale

    def _sum(self, params, kernel) -> jax.Array:
        change = params["lora"]["a"] @ params["lora"]["b"]
        return kernel.astype(jnp.float32) + self.scale * change.astype(jnp.float32)


class DoRA(LoRA):
    """LoRA that learns the length of each output's column apart from its direction.

    The matrix is m V / |V| with V = W + alpha / rank A B (Liu et al. 2024,
    arXiv:2402.09353). |V| is a constant of the gradient (section 4.3). The magnitude m
    [out], at `lora/magnitude`, has to start as |W|: `dora` sets it, `init` does not.
    """

    def spec(self):
        spec = super().spec()
        shape, axes = (self.inner.out_features,), self.inner.axes[1:]
        magnitude = Param(shape, initializers.ones, axes, role="scale")
        return {**spec, "lora": {**spec["lora"], "magnitude": magnitude}}

    def __call__(self, params, x: Float[Array, "... in"], **given: Any):
        routing.check(self, given)
        plain = dataclasses.replace(self.inner, bias=False)
        y, _ = routing.run(plain, _own(plain, params), x, None, {})
        y = y + self._change(params, x, given).astype(y.dtype)
        v = self._sum(params, self.inner.matrix(params))
        y = y * self._ratio(params, v).astype(y.dtype)
        return y + params["bias"] if self.inner.bias else y

    def matrix(self, params) -> Float[Array, "... fan_in fan_out"]:
        """The matrix that multiplies x, the change and the magnitude included."""
        kernel = self.inner.matrix(params)
        v = self._sum(params, kernel)
        return (v * self._ratio(params, v)[..., None, :]).astype(kernel.dtype)

    def _ratio(self, params, v) -> jax.Array:
        length = jax.lax.stop_gradient(lengths(v))
        return params["lora"]["magnitude"].astype(jnp.float32) / length


def lengths(kernel: Float[Array, "... fan_in fan_out"]) -> Float[Array, "... fan_out"]:
    """The Euclidean length of each column, in float32; never 0."""
    length = jnp.linalg.norm(kernel.astype(jnp.float32), axis=-2)
    return jnp.maximum(length, jnp.finfo(jnp.float32).tiny)


# Variance 1 / (3 fan_in): uniform within fan_in ** -0.5.
_INIT = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _own(inner: Module, params: Any) -> dict:
    return {name: params[name] for name in declared(inner)}
