"""Linear maps and embeddings."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.module import Module, scoped
from jaxdl.core.naming import expect
from jaxdl.core.param import Param


class Linear(Module):
    """Multiplies by a kernel, adds a bias: [..., in_features] -> [..., out_features].

    Computes in the dtype of the kernel. `axes` are the logical names of the kernel's
    two dimensions. `kernel` is [in, out], the transpose of PyTorch's `weight`.
    """

    in_features: int
    out_features: int
    bias: bool = True
    axes: tuple[str | None, str | None] = (None, None)
    kernel_init: Callable[..., jax.Array] = initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = initializers.zeros

    def spec(self):
        shape = (self.in_features, self.out_features)
        spec = {"kernel": Param(shape, self.kernel_init, self.axes)}
        if self.bias:
            axes = (self.axes[1],)
            spec["bias"] = Param(
                (self.out_features,), self.bias_init, axes, role="bias"
            )
        return spec

    def __call__(self, params, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        expect(x.shape[-1:] == (self.in_features,), f"[..., {self.in_features}]", x)
        y = floating(x, params["kernel"].dtype) @ params["kernel"]
        return y + params["bias"] if self.bias else y


class Embedding(Module):
    """Looks up a row for each token: int [...] -> [..., features].

    A token outside [0, num_embeddings) gives NaN, never another token's row. `logits`
    uses the same table as an output layer (Press and Wolf 2017).
    """

    num_embeddings: int
    features: int
    axes: tuple[str | None, str | None] = ("vocab", "embed")
    embedding_init: Callable[..., jax.Array] = initializers.normal(0.02)

    def spec(self):
        shape = (self.num_embeddings, self.features)
        table = Param(shape, self.embedding_init, self.axes, role="embedding")
        return {"embedding": table}

    def __call__(
        self, params, tokens: Int[Array, "..."]
    ) -> Float[Array, "... features"]:
        integer = jnp.issubdtype(jnp.result_type(tokens), jnp.integer)
        expect(integer, "integer tokens", tokens)
        rows = params["embedding"].at[jnp.asarray(tokens)]
        return rows.get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    @scoped
    def logits(
        self, params, x: Float[Array, "... features"]
    ) -> Float[Array, "... num"]:
        """Scores every token: [..., features] -> [..., num_embeddings]."""
        expect(x.shape[-1:] == (self.features,), f"[..., {self.features}]", x)
        return floating(x, params["embedding"].dtype) @ params["embedding"].T


def floating(x: Any, dtype: Any) -> jax.Array:
    """Casts a floating array to a dtype; an integer one is an error, not a number."""
    x = jnp.asarray(x)
    expect(jnp.issubdtype(x.dtype, jnp.floating), "a floating dtype", x)
    return x.astype(dtype)
