"""Layers that add a trained change of low rank to a layer that stays as it is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING
from jaxdl.core.module import Module, declared, inline, scoped
from jaxdl.core.param import Param
from jaxdl.finetune.factors import Factors, factors
from jaxdl.nn import routing
from jaxdl.nn.checks import floating
from jaxdl.nn.dropout import Dropout


class LoRA(Module):
    """x W + alpha / rank x A B: [..., in_features] -> [..., out_features].

    A [in, rank] and B [rank, out] are trained, the layer inside is not (Hu et al. 2021,
    arXiv:2106.09685). A starts as PEFT's, uniform within in ** -0.5, and B at 0. Params
    are the layer's own, at the same path, and `lora/a`, `lora/b`. What A and B are for
    a layer that is no matrix is in `finetune.factors`.

    `dropout` is of what A sees; that of tokens there is none. `nn`'s layers and blocks
    hand a key on to it; a module that calls its parts itself does so by
    `nn.routing.parts`.
    """

    inner: Any = inline()
    rank: Size = 8
    alpha: float = 16.0
    dropout: float = 0.0

    def __post_init__(self):
        try:
            factors(self.inner, self.rank)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}") from None
        Dropout(self.dropout)  # holds the rate to its range

    def members(self) -> tuple[Module, ...]:
        # Without dropout it takes no key: those of the layers beside stay as they were.
        drop = (Dropout(self.dropout),) if self.dropout and self.form.droppable else ()
        return (self.inner, *drop)

    def spec(self):
        a, b = self.form.declare()
        return {**declared(self.inner), "lora": {"a": a, "b": b}}

    def __call__(self, params, x: Any, **given: Any) -> jax.Array:
        routing.check(self, given)
        y, _ = routing.run(self.inner, _own(self.inner, params), x, None, given)
        return y + self._change(params, x, given).astype(y.dtype)

    @scoped
    def logits(self, params, x: Float[Array, "... features"]) -> jax.Array:
        """Scores every token with an adapted Embedding, as `nn.Embedding.logits`."""
        if not hasattr(self.inner, "logits"):
            raise AttributeError(f"logits: {type(self.inner).__name__} has none")
        table = self.matrix(params)
        return floating(x, table.dtype) @ table.T

    def matrix(self, params) -> Float[Array, "... fan_in fan_out"]:
        """The layer's own matrix, kernel or table, the change included."""
        kernel = self.inner.matrix(params)
        return self._sum(params, kernel).astype(kernel.dtype)

    @property
    def form(self) -> Factors:
        """How A and B make the change."""
        return factors(self.inner, self.rank)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def _change(self, params, x, given) -> jax.Array:
        a, b = params["lora"]["a"], params["lora"]["b"]
        given = dict(given)
        key = given.pop("key", MISSING)
        if self.dropout and self.form.droppable:
            x = Dropout(self.dropout)({}, x, key=key)
        return self.form.change(a, b, x, given) * self.scale

    def _sum(self, params, kernel) -> jax.Array:
        change = self.form.product(params["lora"]["a"], params["lora"]["b"])
        return kernel.astype(jnp.float32) + self.scale * change.astype(jnp.float32)


class DoRA(LoRA):
    """LoRA that learns the length of each output's column apart from its direction.

    The matrix is m V / |V| with V = W + alpha / rank A B (Liu et al. 2024,
    arXiv:2402.09353). |V| is a constant of the gradient (section 4.3). The magnitude m
    [out], at `lora/magnitude`, has to start as |W|: `dora` sets it, `init` does not.
    """

    def spec(self):
        spec, columns = super().spec(), self.form.columns
        shape, axes = (tuple(part) for part in zip(*columns, strict=True))
        magnitude = Param(shape, initializers.ones, axes, role="scale")
        return {**spec, "lora": {**spec["lora"], "magnitude": magnitude}}

    def __call__(self, params, x: Any, **given: Any) -> jax.Array:
        routing.check(self, given)
        plain, biased = self.inner, getattr(self.inner, "bias", False)
        if biased:
            plain = dataclasses.replace(self.inner, bias=False)
        y, _ = routing.run(plain, _own(plain, params), x, None, given)
        y = y + self._change(params, x, given).astype(y.dtype)
        v = self._sum(params, self.inner.matrix(params))
        y = y * self.form.spread(self._ratio(params, v), given).astype(y.dtype)
        return y + self.form.spread(params["bias"], given) if biased else y

    def matrix(self, params) -> Float[Array, "... fan_in fan_out"]:
        """The layer's own matrix, the change and the magnitude included."""
        kernel = self.inner.matrix(params)
        v = self._sum(params, kernel)
        ratio = jnp.expand_dims(self._ratio(params, v), self.form.summed)
        return (v * ratio).astype(kernel.dtype)

    def _ratio(self, params, v) -> jax.Array:
        length = jax.lax.stop_gradient(self.form.lengths(v))
        return params["lora"]["magnitude"].astype(jnp.float32) / length


def _own(inner: Module, params: Any) -> dict:
    return {name: params[name] for name in declared(inner)}
