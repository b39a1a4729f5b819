"""Linear and Embedding whose weights are small integers, multiplied out where used."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module, scoped
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.finetune import codes
from jaxdl.nn.checks import floating
from jaxdl.nn.linear import Embedding, Linear


class QuantizedLinear(Module):
    """`nn.Linear` with weight-only integers: [..., in_features] -> [..., out_features].

    `codes` are int8 [in, out], or uint8 [in / 2, out] with two 4-bit numbers in each,
    and `scale` is [in / group, out]; without a group each output has one. Computes in
    the dtype of the scale. `quantize` makes both; initial ones stand for zeros.
    """

    in_features: Size
    out_features: Size
    bias: bool = True
    axes: tuple[str | None, str | None] = (None, None)
    bits: Literal[8, 4] = 8
    group: Size | None = None

    def __post_init__(self):
        _check(self, self.in_features)

    def spec(self):
        stored = _stored(self.in_features, self.bits)
        groups = self.in_features // (self.group or self.in_features)
        shapes = (stored, self.out_features), (groups, self.out_features)
        spec = _declare(*shapes, self.axes, self.bits, 0)
        if self.bias:
            axes = (self.axes[1],)
            spec["bias"] = Param(
                (self.out_features,), initializers.zeros, axes, role="bias"
            )
        return spec

    def __call__(
        self, params, x: Float[Array, "... in"]
    ) -> Float[Array, "... fan_out"]:
        expect(x.shape[-1:] == (self.in_features,), f"[..., {self.in_features}]", x)
        x = floating(x, params["scale"].dtype)
        y = codes.product(x, params["codes"], params["scale"])
        return y + params["bias"] if self.bias else y

    def matrix(self, params) -> Float[Array, "... fan_in fan_out"]:
        """The matrix that the integers stand for."""
        return codes.decode(params["codes"], params["scale"], self.in_features, -2)

    def plain(self) -> Linear:
        """The layer that it was."""
        return Linear(self.in_features, self.out_features, self.bias, self.axes)


class QuantizedEmbedding(Module):
    """`nn.Embedding` with weight-only integers: int [...] -> [..., features].

    `codes` are int8 [num_embeddings, features], or uint8 with two 4-bit numbers in
    each, and `scale` is [num_embeddings, features / group]; without a group each row
    has one. As in `nn.Embedding` a token out of range gives NaN.
    """

    num_embeddings: Size
    features: Size
    axes: tuple[str | None, str | None] = ("vocab", "embed")
    bits: Literal[8, 4] = 8
    group: Size | None = None

    def __post_init__(self):
        _check(self, self.features)

    def spec(self):
        rows = self.num_embeddings
        groups = self.features // (self.group or self.features)
        stored = _stored(self.features, self.bits)
        shapes = (rows, stored), (rows, groups)
        return _declare(*shapes, self.axes, self.bits, 1, "embedding")

    def __call__(
        self, params, tokens: Int[Array, "..."]
    ) -> Float[Array, "... features"]:
        integer = jnp.issubdtype(jnp.result_type(tokens), jnp.integer)
        expect(integer, "integer tokens", tokens)
        tokens = jnp.asarray(tokens)
        fill = {"mode": "fill", "wrap_negative_indices": False}
        rows = params["codes"].at[tokens].get(fill_value=0, **fill)
        scale = params["scale"].at[tokens].get(fill_value=jnp.nan, **fill)
        return codes.decode(rows, scale, self.features, -1)

    @scoped
    def logits(
        self, params, x: Float[Array, "... features"]
    ) -> Float[Array, "... num"]:
        """Scores every token: [..., features] -> [..., num_embeddings]."""
        expect(x.shape[-1:] == (self.features,), f"[..., {self.features}]", x)
        x = floating(x, params["scale"].dtype)
        return codes.product(x, params["codes"].T, params["scale"].T)

    def matrix(self, params) -> Float[Array, "... num features"]:
        """The table of rows that the integers stand for."""
        return codes.decode(params["codes"], params["scale"], self.features, -1)

    def plain(self) -> Embedding:
        """The layer that it was."""
        return Embedding(self.num_embeddings, self.features, self.axes)


def _stored(size: int, bits: int) -> int:
    return size if bits == 8 else -(-size // 2)


def _declare(
    stored: tuple[int, int],
    scales: tuple[int, int],
    axes: tuple[str | None, str | None],
    bits: int,
    grouped: int,
    role: Literal["weight", "embedding"] = "weight",
) -> dict:
    dtype = jnp.int8 if bits == 8 else jnp.uint8
    names = list(axes)
    if scales[grouped] == 1:
        names[grouped] = None
    return {
        "codes": Param(stored, initializers.zeros, axes, dtype, role=role),
        "scale": Param(scales, initializers.ones, tuple(names), role="scale"),
    }


def _check(layer: QuantizedLinear | QuantizedEmbedding, size: int) -> None:
    name = type(layer).__name__
    if layer.bits not in (8, 4):
        raise ValueError(f"{name}.bits: expected 8 or 4, got {layer.bits!r}")
    if layer.group is not None and size % layer.group:
        raise ValueError(
            f"{name}.group: expected a size that divides {size}, got {layer.group}"
        )
