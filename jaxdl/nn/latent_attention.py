"""Attention through a small latent: what DeepSeek's models keep of each token."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.core.mark_primitive import Choice, mark
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.core.tap_primitive import tap
from jaxdl.nn import routing
from jaxdl.nn.attend import attend, check_mask, visibility
from jaxdl.nn.cache import KVCache
from jaxdl.nn.checks import check_positions
from jaxdl.nn.linear import Linear
from jaxdl.nn.norm import RMSNorm
from jaxdl.nn.rope import RoPE


class LatentAttention(Module):
    """Multi-head latent attention: [batch, seq, dim] -> [batch, seq, dim], causal.

    Keys and values are made from a latent of `kv_rank` features; of each key
    `rope_dim` features are rotated, and shared by all heads (DeepSeek-V2,
    arXiv:2405.04434, section 2.1). Queries go through a latent of `q_rank`, or directly
    if that is None. The cache holds the latent and the rotated part alone: kv_rank +
    rope_dim numbers a token, whatever the number of heads.

    Keywords, padding and the cache are those of `nn.Attention`.

    Taps: `q`, `k`, `v`, `scores` (before masking), `pattern`, `heads`.
    """

    dim: Size
    num_heads: Size
    kv_rank: Size
    head_dim: Size
    rope_dim: Size
    v_dim: Size
    rope: RoPE
    q_rank: Size | None = None
    scale: float | None = None
    bias: bool = False
    epsilon: float = 1e-6
    kernel_init: Any = initializers.lecun_normal()
    out_init: Any = initializers.lecun_normal()
    q_down: Module | None = part(default=None)
    q_norm: Module | None = part(default=None)
    q_up: Module | None = part(default=None)
    q: Module | None = part(default=None)
    kv_down: Module = part(default=None)
    kv_norm: Module = part(default=None)
    kv_up: Module = part(default=None)
    out: Module = part(default=None)

    def __post_init__(self):
        heads, init = self.num_heads, self.kernel_init
        width = self.head_dim + self.rope_dim
        fill(self, scale=width**-0.5)
        if self.rope.head_dim != self.rope_dim:
            raise ValueError(
                f"LatentAttention: expected rope for rope_dim={self.rope_dim}, got one "
                f"for head_dim={self.rope.head_dim}"
            )
        queries = heads * width
        if self.q_rank is None:
            axes = ("embed", "heads")
            fill(self, q=Linear(self.dim, queries, False, axes, init))
        else:
            down = Linear(self.dim, self.q_rank, self.bias, ("embed", None), init)
            up = Linear(self.q_rank, queries, False, (None, "heads"), init)
            norm = RMSNorm(self.q_rank, self.epsilon, None)
            fill(self, q_down=down, q_norm=norm, q_up=up)
        latent, values = self.kv_rank + self.rope_dim, heads * self.v_dim
        axes = ("heads", "embed")
        fill(
            self,
            kv_down=Linear(self.dim, latent, self.bias, ("embed", None), init),
            kv_norm=RMSNorm(self.kv_rank, self.epsilon, None),
            kv_up=Linear(
                self.kv_rank, heads * (self.head_dim + self.v_dim), False,
                (None, "heads"), init,
            ),
            out=Linear(values, self.dim, self.bias, axes, self.out_init),
        )  # fmt: skip

    def init_cache(
        self,
        batch: int,
        slots: int,
        dtype: Any = jnp.float32,
        *,
        chunk: int | None = None,
    ) -> KVCache:
        """An empty cache: as `k` the latent, as `v` the part of keys that turns."""
        return KVCache.empty(batch, slots, 1, self.kv_rank, dtype, self.rope_dim)

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        mask: Bool[Array, "..."] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        cache: KVCache | None = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        expect(x.ndim == 3 and x.shape[-1] == self.dim, f"[batch, seq, {self.dim}]", x)
        order = jnp.arange(x.shape[1])
        real = None if positions is None else positions >= 0
        if positions is None:
            positions = order if cache is None else cache.length + order
        check_positions(positions, x)
        part = routing.parts(self, params, key)
        q = tap(self._queries(part, x, positions), "q")
        latent, turned = self._latent(part, x, positions)
        queries = keys = order
        seen = None
        if cache is not None:
            expect(segment_ids is None, "no segment_ids with a cache", segment_ids)
            queries = jnp.broadcast_to(positions, x.shape[:2])
            seen = cache.append(latent[:, :, None], turned, queries)
            latent, turned, keys = seen.k[:, :, 0], seen.v, seen.positions
            real = keys >= 0
        k, v = self._expand(part, latent, turned)
        if mask is not None:
            check_mask(mask, x.shape[0], self.num_heads, x.shape[1], k.shape[1])
        visible = visibility(
            queries, keys, causal=True, real=real, segment_ids=segment_ids, mask=mask
        )
        blind = mask is not None or real is not None
        heads = attend(
            q, tap(k, "k"), tap(v, "v"), scale=self.scale or 1.0, visible=visible,
            blind=blind,
        )  # fmt: skip
        heads = mark(
            heads, "attention", Choice("plain", "latent attention keeps its taps")
        )
        y = part("out", tap(heads, "heads").reshape(*x.shape[:2], -1))
        if cache is None:
            return y
        return jnp.where(cache.lost(x.shape[1], None), jnp.nan, y), seen

    def _queries(self, part, x, positions) -> jax.Array:
        if self.q is not None:
            q = part("q", x)
        else:
            q = part("q_up", part("q_norm", part("q_down", x)))
        q = q.reshape(*x.shape[:2], self.num_heads, self.head_dim + self.rope_dim)
        still, turning = q[..., : self.head_dim], q[..., self.head_dim :]
        turned = self.rope({}, turning, positions=positions)
        return jnp.concatenate([still, turned], axis=-1)

    def _latent(self, part, x, positions) -> tuple[jax.Array, jax.Array]:
        """The latent [batch, seq, kv_rank]; the turned [batch, seq, 1, rope_dim]."""
        both = part("kv_down", x)
        latent = part("kv_norm", both[..., : self.kv_rank])
        turning = both[..., None, self.kv_rank :]
        return latent, self.rope({}, turning, positions=positions)

    def _expand(self, part, latent, turned) -> tuple[jax.Array, jax.Array]:
        """Keys and values of every head."""
        kv = part("kv_up", latent)
        kv = kv.reshape(*latent.shape[:2], self.num_heads, self.head_dim + self.v_dim)
        still, v = kv[..., : self.head_dim], kv[..., self.head_dim :]
        shared = jnp.broadcast_to(turned, (*still.shape[:3], self.rope_dim))
        return jnp.concatenate([still, shared.astype(still.dtype)], axis=-1), v
