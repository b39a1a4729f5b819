"""Attention, with every intermediate value named."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.core.layout import constrain
from jaxdl.core.module import Module, fill, part, scoped
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.core.tap_primitive import tap
from jaxdl.nn import dispatch, routing
from jaxdl.nn.attend import Sight, check_bias, check_mask
from jaxdl.nn.cache import KVCache
from jaxdl.nn.checks import check_positions
from jaxdl.nn.dropout import Dropout
from jaxdl.nn.layer_cache import LayerCache
from jaxdl.nn.linear import Linear
from jaxdl.nn.rope import RoPE


class Attention(Module):
    """Each token reads the others: [batch, seq, dim] -> [batch, seq, dim].

    (Vaswani et al. 2017.) `num_kv_heads` below `num_heads` shares each key and value
    head among several queries (GQA, Ainslie et al. 2023); 1 is multi-query attention.
    `causal` hides later tokens, `window` those that many places away or more. `rope`
    rotates queries and keys by position. `softcap` bounds the scores. `q_norm` and
    `k_norm` are norms of each head (features = head_dim) or of all heads together.
    `scale` multiplies the scores, head_dim ** -0.5 unless given. `sinks` learns for
    each head the score of a place without a value, so that it may attend to nothing.

    Called with `memory` [batch, memory_seq, memory_dim] the keys and values are the
    memory's (cross-attention). `mask` is True where a query may look and `score_bias`
    is added to the scores, both broadcast to [batch, heads, query, key]. `segment_ids`
    [batch, seq] keep packed sequences apart. `positions` [batch, seq] or [seq] count
    from 0 along the row if not given; a token at a negative position is padding, which
    nobody sees. A query that sees nothing gives zeros.

    With a `cache` (of `init_cache`) x follows what the cache holds, and the call
    returns (y, cache). When the cache is full, a layer with a window writes over what
    no query sees any more; without one, or if fewer than window + seq - 1 slots are
    there, the result is NaN, never a wrong number.

    `implementation` None computes scores and pattern openly, so that they can be
    captured. All others give up those two taps for speed or memory: "blockwise" (see
    `attend_blockwise`), "splash" on TPUs, "cudnn" on NVIDIA's GPUs and "xla" (those of
    `jax.nn.dot_product_attention`); one that cannot do what is asked is an error.
    "auto" takes what a platform has, splash or cudnn, else blockwise; see
    `jd.which_backend`. A function with the signature of `attend_blockwise` is called in
    its place: `jd.shard.ring_attention` where devices have parts of the sequence.

    Taps: `q`, `k`, `v`, `scores` (before masking), `pattern`, `heads`.
    """

    dim: Size
    num_heads: Size
    num_kv_heads: Size | None = None
    head_dim: Size | None = None
    causal: bool = False
    window: Size | None = None
    rope: RoPE | None = None
    softcap: float | None = None
    scale: float | None = None
    bias: bool = False
    sinks: bool = False
    memory_dim: Size | None = None
    dropout: float = 0.0
    kernel_init: Any = initializers.lecun_normal()
    out_init: Any = initializers.lecun_normal()
    implementation: dispatch.Implementation = None
    q: Module = part(default=None)
    k: Module = part(default=None)
    v: Module = part(default=None)
    q_norm: Module | None = part(default=None)
    k_norm: Module | None = part(default=None)
    out: Module = part(default=None)
    drop: Module = part(default=None)

    def __post_init__(self):
        fill(self, num_kv_heads=self.num_heads)
        self._check_sizes()
        fill(self, head_dim=self.dim // self.num_heads, memory_dim=self.dim)
        fill(self, scale=self.width**-0.5)
        self._check_choices()
        queries, keys = self.num_heads * self.width, self.kv_heads * self.width
        init, memory = self.kernel_init, self.memory_dim or self.dim
        fill(
            self,
            q=Linear(self.dim, queries, self.bias, ("embed", "heads"), init),
            k=Linear(memory, keys, self.bias, ("embed", "kv_heads"), init),
            v=Linear(memory, keys, self.bias, ("embed", "kv_heads"), init),
            out=Linear(queries, self.dim, self.bias, ("heads", "embed"), self.out_init),
            drop=Dropout(self.dropout),
        )

    def spec(self):
        spec = dict(super().spec())
        if self.sinks:
            init, axes = initializers.zeros, ("heads",)
            spec["sinks"] = Param((self.num_heads,), init, axes, role="bias")
        return spec

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def width(self) -> int:
        return self.head_dim or self.dim // self.num_heads

    def init_cache(
        self,
        batch: int,
        slots: int,
        dtype: Any = jnp.float32,
        *,
        chunk: int | None = None,
    ) -> KVCache:
        """An empty cache for this many tokens of each sequence.

        A layer with a window needs only window + chunk - 1 slots when at most `chunk`
        tokens are given at once; without `chunk` it has all of them.
        """
        if chunk is not None and self.window is not None:
            slots = min(slots, self.window + chunk - 1)
        return KVCache.empty(batch, slots, self.kv_heads, self.width, dtype)

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        memory: Float[Array, "batch memory_seq memory_dim"] | KVCache | None = None,
        mask: Bool[Array, "..."] | None = None,
        score_bias: Float[Array, "..."] | None = None,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        cache: KVCache | None = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        expect(x.ndim == 3 and x.shape[-1] == self.dim, f"[batch, seq, {self.dim}]", x)
        self._check_call(x, memory, segment_ids, cache)
        if positions is not None:
            check_positions(positions, x)
        if cache is not None and positions is None:
            positions = cache.length + jnp.arange(x.shape[1])
        part = routing.parts(self, params, key)
        q = tap(self._heads(part, "q", x, positions), "q")
        if memory is not None:
            seen = self._of_memory(part, x, memory)
        elif cache is not None:
            seen = self._of_cache(part, x, positions, cache)
        else:
            seen = self._of_row(part, x, positions)
        given: dict[str, Any] = {
            "mask": mask,
            "score_bias": score_bias,
            "segment_ids": segment_ids,
        }
        if key is not None and self.drop != Dropout(0.0):
            given["drop"] = functools.partial(part, "drop")
        heads = tap(self._attend(params, q, seen, **given), "heads")
        y = part("out", heads.reshape(*x.shape[:2], -1))
        if cache is None:
            return y
        lost = cache.lost(x.shape[1], self.window)
        return jnp.where(lost, jnp.nan, y), seen.cache

    @scoped
    def remember(
        self,
        params,
        memory: Float[Array, "batch memory_seq memory_dim"],
        *,
        mask: Bool[Array, "batch memory_seq"] | None = None,
        key: OptionalKey = MISSING,
    ) -> KVCache:
        """The memory's keys and values, to be handed as `memory` any number of times.

        `mask` is False where the memory is padding.
        """
        return self._remembered(routing.parts(self, params, key), memory, mask)

    def _remembered(self, part, memory, mask=None) -> KVCache:
        fits = memory.ndim == 3 and memory.shape[-1] == self.memory_dim
        expect(fits, f"a memory [batch, memory_seq, {self.memory_dim}]", memory)
        k = self._heads(part, "k", memory, None)
        v = self._heads(part, "v", memory, None)
        positions = jnp.broadcast_to(jnp.arange(memory.shape[1]), memory.shape[:2])
        if mask is not None:
            wanted = f"a mask of bools [{memory.shape[0]}, {memory.shape[1]}]"
            expect(mask.shape == memory.shape[:2] and mask.dtype == bool, wanted, mask)
            positions = jnp.where(mask, positions, -1)
        return KVCache.holding(k, v, positions)

    def _of_memory(self, part, x, memory: Any) -> "_Seen":
        stored = isinstance(memory, KVCache | LayerCache)
        seen = memory if stored else self._remembered(part, memory)
        expect(seen.k.shape[0] == x.shape[0], f"a memory of batch {x.shape[0]}", seen.k)
        real = seen.positions >= 0 if stored else None
        k, v = tap(seen.k, "k"), tap(seen.v, "v")
        return _Seen(k, v, jnp.arange(x.shape[1]), seen.positions, real)

    def _of_cache(self, part, x, positions, cache: KVCache) -> "_Seen":
        k = tap(self._heads(part, "k", x, positions), "k")
        v = tap(self._heads(part, "v", x, None), "v")
        positions = jnp.broadcast_to(positions, x.shape[:2])
        seen = cache.append(k, v, positions)
        real = seen.positions >= 0
        return _Seen(seen.k, seen.v, positions, seen.positions, real, seen)

    def _of_row(self, part, x, positions) -> "_Seen":
        k = tap(self._heads(part, "k", x, positions), "k")
        v = tap(self._heads(part, "v", x, None), "v")
        # Packed sequences count from 0 each: who is later is a matter of the row.
        order = np.arange(x.shape[1])
        return _Seen(k, v, order, order, None if positions is None else positions >= 0)

    def _heads(self, part, name: str, x, positions) -> jax.Array:
        """Queries, keys or values by head: normed, and turned by their positions."""
        y = part(name, x)
        norm = getattr(self, f"{name}_norm", None)
        if norm is not None and norm.features != self.width:
            y = part(f"{name}_norm", y)
        y = constrain(y.reshape(*x.shape[:2], -1, self.width), *_AXES[name])
        if norm is not None and norm.features == self.width:
            y = part(f"{name}_norm", y)
        if self.rope is None or name == "v":
            return y
        if positions is None:
            positions = jnp.arange(x.shape[1])
        return self.rope({}, y, positions=positions)

    def _attend(self, params, q, seen, *, mask, score_bias, segment_ids, drop=None):
        sizes = (q.shape[0], self.num_heads, q.shape[1], seen.k.shape[1])
        if mask is not None:
            check_mask(mask, *sizes)
        if score_bias is not None:
            check_bias(score_bias, *sizes)
        sight = Sight(
            seen.queries,
            seen.keys,
            self.causal,
            self.window,
            seen.real,
            segment_ids,
            mask,
        )
        sinks = params["sinks"] if self.sinks else None
        ask = dispatch.Options(
            sight, self.scale or 1.0, self.softcap, score_bias, sinks, drop
        )
        return dispatch.dispatch(self.implementation, q, seen.k, seen.v, ask)

    def _check_sizes(self) -> None:
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"Attention: expected num_heads to divide dim={self.dim} where no "
                f"head_dim is given, got {self.num_heads}"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                "Attention: expected num_kv_heads to divide num_heads="
                f"{self.num_heads}, got {self.num_kv_heads}"
            )

    def _check_choices(self) -> None:
        features = ("dropout", "softcap", "sinks")
        dispatch.check(
            self.implementation, {name: getattr(self, name) for name in features}
        )
        for name, heads in (("q", self.num_heads), ("k", self.kv_heads)):
            norm: Any = getattr(self, f"{name}_norm")
            wanted = (self.width, heads * self.width)
            if norm is not None and norm.features not in wanted:
                raise ValueError(
                    f"Attention: expected {name}_norm with features {wanted[0]}, for "
                    f"each head, or {wanted[1]}, for all, got {norm.features}"
                )

    def _check_call(self, x, memory, segment_ids, cache) -> None:
        if segment_ids is not None:
            integer = jnp.issubdtype(segment_ids.dtype, jnp.integer)
            wanted = f"integer segment_ids [{x.shape[0]}, {x.shape[1]}]"
            fits = integer and segment_ids.shape == x.shape[:2]
            expect(fits, wanted, segment_ids)
            expect(cache is None, "no segment_ids with a cache", segment_ids)
        if cache is not None:
            expect(self.causal, "causal=True with a cache", self)
        if memory is not None:
            alone = segment_ids is None and cache is None
            expect(alone, "a memory without segment_ids and cache", memory)
            placed = self.causal or self.window is not None or self.rope is not None
            expect(not placed, "no causal, window or rope with a memory", self)


# Where the sequence is split, each device reads all keys and values for its queries.
_KEYS = ("batch", "key_sequence", "kv_heads", None)
_AXES = {"q": ("batch", "sequence", "heads", None), "k": _KEYS, "v": _KEYS}


class _Seen(NamedTuple):
    """What the queries look at, and where both stand."""

    k: jax.Array
    v: jax.Array
    queries: jax.Array
    keys: jax.Array
    real: jax.Array | None
    cache: KVCache | None = None
