"""Which experts a token takes, and with what weight."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.core.tap_primitive import tap


class Router(Module):
    """Chooses top_k of num_experts: [tokens, dim] -> weights, experts [tokens, top_k].

    `score` turns logits into weights: "softmax" over all experts, "sigmoid" of each, or
    "top_k", a softmax over those chosen alone (gpt-oss). `normalize` makes the weights
    of those chosen sum to 1 (Mixtral, DeepSeek), `scale` multiplies them.

    `correction` adds a number for each expert to the scores when choosing, not to the
    weights; `nn.balanced` moves it, gradients do not (DeepSeek-V3). `groups` splits the
    experts; only those in the `top_groups` with the largest sum of their two best
    scores can be chosen (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).

    Computes in float32. Taps: `logits`, `weights`, `experts`.
    """

    dim: Size
    num_experts: Size
    top_k: Size
    score: Literal["softmax", "sigmoid", "top_k"] = "softmax"
    normalize: bool = True
    scale: float = 1.0
    bias: bool = False
    correction: bool = False
    groups: Size = 1
    top_groups: Size = 1

    def __post_init__(self):
        if self.score not in ("softmax", "sigmoid", "top_k"):
            raise ValueError(
                f"Router.score: expected softmax, sigmoid or top_k, got {self.score!r}"
            )
        per_group, rest = divmod(self.num_experts, self.groups)
        reachable = per_group * min(self.top_groups, self.groups)
        if rest or self.top_k > reachable or self.top_groups > self.groups:
            raise ValueError(
                f"Router: expected top_k={self.top_k} experts within {self.top_groups} "
                f"of {self.groups} equal groups of num_experts={self.num_experts}"
            )

    def spec(self):
        init = initializers.normal(0.02)
        kernel = Param((self.dim, self.num_experts), init, ("embed", None))
        spec = {"kernel": kernel}
        for name in ("bias", "correction"):
            if getattr(self, name):
                spec[name] = Param((self.num_experts,), initializers.zeros, role="bias")
        return spec

    def __call__(
        self, params, x: Float[Array, "tokens dim"]
    ) -> tuple[Float[Array, "tokens top_k"], Int[Array, "tokens top_k"]]:
        fits = x.ndim == 2 and x.shape[-1] == self.dim
        expect(fits, f"[tokens, {self.dim}]", x)
        # Products of narrow numbers summed wide: near ties are many among experts.
        logits = x.astype(jnp.float32) @ params["kernel"].astype(jnp.float32)
        if self.bias:
            logits = logits + params["bias"]
        logits = tap(logits, "logits")
        if self.score == "softmax":
            scores = jax.nn.softmax(logits, axis=-1)
        else:
            scores = jax.nn.sigmoid(logits) if self.score == "sigmoid" else logits
        experts = tap(self._choose(params, scores), "experts")
        weights = jnp.take_along_axis(scores, experts, axis=-1)
        if self.score == "top_k":
            weights = jax.nn.softmax(weights, axis=-1)
        elif self.normalize:
            weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
        return tap(weights * self.scale, "weights"), experts

    def _choose(self, params, scores: jax.Array) -> jax.Array:
        if self.correction:
            scores = scores + jax.lax.stop_gradient(params["correction"])
        if self.groups > 1:
            grouped = scores.reshape(scores.shape[0], self.groups, -1)
            best, _ = jax.lax.top_k(grouped, min(2, grouped.shape[-1]))
            _, groups = jax.lax.top_k(best.sum(-1), self.top_groups)
            open_groups = jax.nn.one_hot(groups, self.groups, dtype=bool).any(1)
            scores = jnp.where(open_groups[..., None], grouped, -jnp.inf)
            scores = scores.reshape(scores.shape[0], self.num_experts)
        _, experts = jax.lax.top_k(scores, self.top_k)
        return experts
