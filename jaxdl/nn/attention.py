"""Attention, with every intermediate value named."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.core.tap_primitive import tap
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.linear import Linear
from jaxdl.nn.position import RoPE


class Attention(Module):
    """Self-attention: [batch, seq, dim] -> [batch, seq, dim] (Vaswani et al. 2017).

    `num_kv_heads` below `num_heads` shares each key and value head among several
    queries (GQA, Ainslie et al. 2023); 1 is multi-query attention. `causal` hides later
    tokens. `rope` rotates queries and keys by position. `implementation` None computes
    scores and pattern openly, so that they can be captured; "xla" and "cudnn" hand over
    to `jax.nn.dot_product_attention`.

    `mask` is True where a query may look: broadcast to [batch, heads, query, key]; a
    query that may look nowhere gives zeros. `segment_ids` [batch, seq] keep packed
    sequences apart. `positions` [batch, seq] count from 0 along the row if not
    given.

    Taps: `q`, `k`, `v`, `scores` (before masking), `pattern`, `heads`.
    """

    dim: int
    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    causal: bool = False
    rope: RoPE | None = None
    bias: bool = False
    dropout: float = 0.0
    kernel_init: Any = initializers.lecun_normal()
    out_init: Any = initializers.lecun_normal()
    implementation: str | None = None
    q: Module = part(default=None)
    k: Module = part(default=None)
    v: Module = part(default=None)
    out: Module = part(default=None)
    drop: Module = part(default=None)

    def __post_init__(self):
        fill(self, num_kv_heads=self.num_heads, head_dim=self.dim // self.num_heads)
        if self.num_heads % self.kv_heads:
            raise ValueError(
                "Attention: expected num_kv_heads to divide num_heads="
                f"{self.num_heads}, got {self.num_kv_heads}"
            )
        if self.implementation is not None and self.dropout:
            raise ValueError(
                "Attention: dropout of the pattern needs implementation=None, got "
                f"{self.implementation!r}"
            )
        queries, keys = self.num_heads * self.width, self.kv_heads * self.width
        init = self.kernel_init
        fill(
            self,
            q=Linear(self.dim, queries, self.bias, ("embed", "heads"), init),
            k=Linear(self.dim, keys, self.bias, ("embed", "kv_heads"), init),
            v=Linear(self.dim, keys, self.bias, ("embed", "kv_heads"), init),
            out=Linear(queries, self.dim, self.bias, ("heads", "embed"), self.out_init),
            drop=Dropout(self.dropout),
        )

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def width(self) -> int:
        return self.head_dim or self.dim // self.num_heads

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        mask: Bool[Array, "..."] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        key: OptionalKey = MISSING,
    ) -> Float[Array, "batch seq dim"]:
        expect(x.ndim == 3 and x.shape[-1] == self.dim, f"[batch, seq, {self.dim}]", x)
        q = self._heads(self.q(params["q"], x), self.num_heads)
        k = self._heads(self.k(params["k"], x), self.kv_heads)
        v = self._heads(self.v(params["v"], x), self.kv_heads)
        if self.rope is not None:
            if positions is None:
                positions = jnp.arange(x.shape[1])
            q = self.rope({}, q, positions=positions)
            k = self.rope({}, k, positions=positions)
        q, k, v = tap(q, "q"), tap(k, "k"), tap(v, "v")
        visible = _visible(
            x, mask, segment_ids, self.causal and self.implementation is None
        )
        if self.implementation is None:
            heads = self._open(params, q, k, v, visible, mask is not None, key)
        else:
            heads = jax.nn.dot_product_attention(
                q, k, v, mask=visible, is_causal=self.causal,
                implementation=self.implementation,  # type: ignore[arg-type]
            )  # fmt: skip
        heads = tap(heads, "heads")
        return self.out(params["out"], heads.reshape(*x.shape[:2], -1))

    def _heads(self, x: jax.Array, num: int) -> jax.Array:
        return x.reshape(*x.shape[:2], num, self.width)

    def _open(self, params, q, k, v, visible, masked, key) -> jax.Array:
        batch, seq = q.shape[:2]
        groups = self.num_heads // self.kv_heads
        q = q.reshape(batch, seq, self.kv_heads, groups, self.width) * self.width**-0.5
        scores = jnp.einsum(
            "btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32
        )
        scores = tap(scores.reshape(batch, self.num_heads, seq, seq), "scores")
        if visible is not None:
            scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        pattern = jax.nn.softmax(scores, axis=-1)
        if masked and visible is not None:
            # A query that may look nowhere would otherwise look everywhere.
            pattern = jnp.where(visible, pattern, 0.0)
        pattern = tap(pattern.astype(v.dtype), "pattern")
        pattern = self.drop(params["drop"], pattern, key=key)
        pattern = pattern.reshape(batch, self.kv_heads, groups, seq, seq)
        heads = jnp.einsum("bkgts,bskd->btkgd", pattern, v)
        return heads.reshape(batch, seq, self.num_heads, self.width)


def _visible(x: jax.Array, mask, segment_ids, causal: bool) -> jax.Array | None:
    """Joins the masks: True where a query may look, [batch, heads, query, key]."""
    batch, seq = x.shape[:2]
    parts = []
    if causal:
        parts.append(jnp.tril(jnp.ones((1, 1, seq, seq), bool)))
    if segment_ids is not None:
        expect(
            segment_ids.shape == (batch, seq),
            f"segment_ids [{batch}, {seq}]",
            segment_ids,
        )
        parts.append((segment_ids[:, :, None] == segment_ids[:, None, :])[:, None])
    if mask is not None:
        expect(mask.dtype == bool, "a mask of bools, True where a query may look", mask)
        fits = mask.ndim == 4 and mask.shape[-2:] == (seq, seq)
        expect(fits, f"a mask [batch or 1, heads or 1, {seq}, {seq}]", mask)
        parts.append(mask)
    if not parts:
        return None
    joined = parts[0]
    for further in parts[1:]:
        joined = joined & further
    return joined
