"""Mixture of experts: each token goes through a few of many feed-forward layers."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.core.mark_primitive import Choice, mark
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.nn import routing
from jaxdl.nn.checks import floating
from jaxdl.nn.experts import ExpertLinear, Experts, Stretches
from jaxdl.nn.router import Router


class MoE(Module):
    """A router chooses experts for each token: [..., dim] -> [..., dim].

    The result is the sum of the chosen experts' outputs times their weights, plus
    `shared`, a layer that every token takes (Shazeer et al. 2017, arXiv:1701.06538;
    Mixtral, arXiv:2401.04088; DeepSeek, arXiv:2401.06066). `router` says how they are
    chosen; `top_k` of softmax unless given.

    `dispatch` "ragged" sorts tokens by expert and drops none (`jax.lax.ragged_dot`,
    which `jax.vmap` can batch over models but not yet over tokens alone);
    "capacity" gives each expert at most `capacity` times its even share of the tokens,
    and those that find no place pass through no expert (GShard, arXiv:2006.16668);
    "dense" has every expert look at every token, for small models and as an oracle.

    Taps: those of the router (`router/logits`, `router/weights`, `router/experts`) and
    `experts/hidden`.
    """

    dim: Size
    hidden: Size
    num_experts: Size
    top_k: Size = 2
    glu: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu
    bias: bool = False
    dispatch: Literal["ragged", "capacity", "dense"] = "ragged"
    capacity: float = 1.25
    kernel_init: Any = initializers.lecun_normal(batch_axis=0)
    out_init: Any = initializers.lecun_normal(batch_axis=0)
    router: Module = part(default=None)
    shared: Module | None = part(default=None)
    experts: Module = part(default=None)

    def __post_init__(self):
        if self.dispatch not in ("ragged", "capacity", "dense"):
            raise ValueError(
                "MoE.dispatch: expected ragged, capacity or dense, got "
                f"{self.dispatch!r}"
            )
        num, dim, hidden = self.num_experts, self.dim, self.hidden
        axes, init = ("embed", "mlp"), self.kernel_init
        into = ExpertLinear(num, dim, hidden, self.bias, axes, init)
        axes, init = ("mlp", "embed"), self.out_init
        out = ExpertLinear(num, hidden, dim, self.bias, axes, init)
        fill(
            self,
            router=Router(dim, num, self.top_k),
            experts=Experts(into, into, out, self.glu, self.activation),
        )

    def __call__(
        self, params, x: Float[Array, "... dim"], *, key: OptionalKey = MISSING
    ) -> Float[Array, "... dim"]:
        expect(x.shape[-1:] == (self.dim,), f"[..., {self.dim}]", x)
        part = routing.parts(self, params, key)
        x = floating(x, self.experts.dtype(params["experts"]))  # type: ignore[attr-defined]
        rows = x.reshape(-1, self.dim)
        weights, experts = part("router", rows)
        weights = weights.astype(rows.dtype)
        run = {"ragged": self._ragged, "capacity": self._capacity, "dense": self._dense}
        y = run[self.dispatch](part, rows, weights, experts)
        if self.dispatch != "ragged":  # which speaks for itself
            y = mark(y, "experts", Choice(self.dispatch, "named by dispatch"))
        if self.shared is not None:
            y = y + part("shared", rows)
        return y.reshape(x.shape)

    def _ragged(self, part, rows, weights, experts):
        """Tokens sorted by expert, so that each expert has a stretch of the rows."""
        chosen = experts.ravel()
        order = jnp.argsort(chosen, stable=True)
        sizes = jnp.bincount(chosen, length=self.num_experts).astype(jnp.int32)
        stretches = Stretches(sizes, chosen[order])
        y = part("experts", rows[order // weights.shape[1]], stretches=stretches)
        y = y * weights.ravel()[order][:, None]
        return jnp.zeros_like(rows).at[order // weights.shape[1]].add(y)

    def _capacity(self, part, rows, weights, experts):
        """A place for each expert and slot: [expert, slot, dim]."""
        tokens, top_k = experts.shape
        slots = max(1, int(self.capacity * tokens * top_k / self.num_experts))
        chosen = jax.nn.one_hot(experts, self.num_experts, dtype=jnp.int32)
        # First choices find places before second ones, early tokens before late.
        flat = chosen.swapaxes(0, 1).reshape(-1, self.num_experts)
        earlier = jnp.cumsum(flat, axis=0).reshape(top_k, tokens, self.num_experts)
        earlier = earlier.swapaxes(0, 1)
        place = ((earlier - 1) * chosen).sum(-1)  # [token, choice]
        slot = jax.nn.one_hot(place, slots, dtype=rows.dtype)  # zeros beyond the last
        route = chosen.astype(rows.dtype)
        send = jnp.einsum("nke,nks->nes", route, slot)
        x = jnp.einsum("nes,nd->esd", send, rows)
        y = part("experts", x)
        collect = jnp.einsum("nk,nke,nks->nes", weights, route, slot)
        return jnp.einsum("nes,esd->nd", collect, y)

    def _dense(self, part, rows, weights, experts):
        """All experts for all tokens."""
        x = jnp.broadcast_to(rows, (self.num_experts, *rows.shape))
        y = part("experts", x)
        route = jax.nn.one_hot(experts, self.num_experts, dtype=rows.dtype)
        return jnp.einsum("nk,nke,end->nd", weights, route, y)


def load_balance_loss(
    logits: Float[Array, "... num_experts"], experts: Int[Array, "... top_k"]
) -> Float[Array, ""]:
    """1 where tokens are spread evenly, up to num_experts where they are not.

    num_experts times the sum over experts of the share of choices that it got and the
    mean probability it was given (Switch, arXiv:2101.03961, equation 4). Both arrays
    are the router's taps.
    """
    num = logits.shape[-1]
    shares = jax.nn.one_hot(experts, num).mean(tuple(range(experts.ndim)))
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return num * jnp.sum(shares * probabilities.mean(tuple(range(logits.ndim - 1))))


def router_z_loss(logits: Float[Array, "... num_experts"]) -> Float[Array, ""]:
    """The mean square of the router's log-sum-exp (ST-MoE, arXiv:2202.08906)."""
    return jnp.square(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)).mean()


def balanced(
    correction: Float[Array, " num_experts"],
    experts: Int[Array, "... top_k"],
    rate: float = 1e-3,
) -> Float[Array, " num_experts"]:
    """The router's correction after a step: up where an expert got too few tokens.

    By `rate` towards the sign of the mean load minus the expert's (balance without a
    loss, Wang et al. 2024, arXiv:2408.15664; DeepSeek-V3).
    """
    load = jnp.bincount(experts.ravel(), length=correction.shape[0])
    return correction + rate * jnp.sign(load.mean() - load).astype(correction.dtype)
