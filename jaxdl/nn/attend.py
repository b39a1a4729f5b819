"""The arithmetic of attention: who sees whom, and what is made of it."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from jaxdl.core.naming import expect
from jaxdl.core.tap_primitive import tap

Positions = Int[Array, "..."] | np.ndarray


class Sight(NamedTuple):
    """Where queries and keys stand, [seq] or [batch, seq], and who sees whom.

    causal: hides keys that stand after the query.
    window: hides keys that many places away or more.
    real: [batch, key], False at keys that nobody sees.
    segment_ids: [batch, seq]; each segment sees itself alone. A pair is of the queries
      and of the keys.
    mask: broadcasts to [batch, heads, query, key], True where a query may look.
    """

    queries: Positions
    keys: Positions
    causal: bool = False
    window: int | None = None
    real: Bool[Array, "batch key"] | None = None
    segment_ids: Any = None
    mask: Bool[Array, "..."] | None = None

    @property
    def in_order(self) -> bool:
        """Whether both are known, while tracing, to stand in a row from 0 on."""
        return all(
            isinstance(x, np.ndarray) and np.array_equal(x, np.arange(x.size))
            for x in (self.queries, self.keys)
        )

    @property
    def blind(self) -> bool:
        """Whether there may be queries that see nothing."""
        return self.mask is not None or self.real is not None

    def visible(self) -> Bool[Array, "..."] | None:
        """The sight as one mask; see `visibility`."""
        sight = self
        if self.in_order:  # counted by the program, not written into it
            queries = jnp.arange(self.queries.size)
            same = self.keys.size == self.queries.size
            keys = queries if same else jnp.arange(self.keys.size)
            sight = self._replace(queries=queries, keys=keys)
        return visibility(**sight._asdict())


def attend(
    q: Float[Array, "batch query heads head_dim"],
    k: Float[Array, "batch key kv_heads head_dim"],
    v: Float[Array, "batch key kv_heads v_dim"],
    *,
    scale: float,
    softcap: float | None = None,
    score_bias: Float[Array, "..."] | None = None,
    sinks: Float[Array, " heads"] | None = None,
    visible: Bool[Array, "..."] | None = None,
    blind: bool = True,
    drop: Callable[[jax.Array], jax.Array] = lambda pattern: pattern,
) -> Float[Array, "batch query heads v_dim"]:
    """softmax(q k scale + bias) v with every step named, in float32 up to the pattern.

    `visible` and `score_bias` broadcast to [batch, heads, query, key]. `softcap` bends
    scores below it, softcap tanh(scores / softcap), before the bias is added (Gemma 2).
    `sinks` are scores of a place that has no value, one for each head (gpt-oss).
    A query that sees no key gives zeros; without any such, `blind=False` saves a step.

    Taps: `scores` (before masking), `pattern`.
    """
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    q = q.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim) * scale
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, queries, keys)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if score_bias is not None:
        scores = scores + score_bias
    scores = tap(scores, "scores")
    if visible is not None:
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    if sinks is None:
        pattern = jax.nn.softmax(scores, axis=-1)
    else:
        sink = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))
        scores = jnp.concatenate([scores, sink.astype(scores.dtype)], axis=-1)
        pattern = jax.nn.softmax(scores, axis=-1)[..., :-1]
    if visible is not None and blind:
        # The softmax of a row that is masked throughout looks everywhere.
        pattern = jnp.where(visible, pattern, 0.0)
    pattern = drop(tap(pattern.astype(v.dtype), "pattern"))
    pattern = pattern.reshape(batch, kv_heads, heads // kv_heads, queries, keys)
    y = jnp.einsum("bkgts,bskd->btkgd", pattern, v)
    return y.reshape(batch, queries, heads, v.shape[-1])


def attend_fused(
    q: Float[Array, "batch query heads head_dim"],
    k: Float[Array, "batch key kv_heads head_dim"],
    v: Float[Array, "batch key kv_heads head_dim"],
    sight: Sight,
    *,
    scale: float,
    implementation: Any,
    score_bias: Float[Array, "..."] | None = None,
) -> Float[Array, "batch query heads head_dim"]:
    """The same by `jax.nn.dot_product_attention`, without taps in between.

    Causal rows are left to it, and their windows; the rest of the sight is a mask of
    [batch, heads, query, key].
    """
    rest, causal, reach = sight, False, None
    if sight.causal and sight.in_order:
        rest, causal = sight._replace(causal=False, window=None), True
        reach = None if sight.window is None else (sight.window - 1, 0)
    y = jax.nn.dot_product_attention(
        q, k, v, score_bias, rest.visible(),
        scale=scale, is_causal=causal, local_window_size=reach,
        implementation=implementation,
    )  # fmt: skip
    visible = sight.visible()
    if visible is not None and sight.blind:
        y = jnp.where(visible.any(-1).swapaxes(1, 2)[..., None], y, 0)
    return y


def visibility(
    queries: Positions,
    keys: Positions,
    *,
    causal: bool = False,
    window: int | None = None,
    real: Bool[Array, "..."] | None = None,
    segment_ids: Any = None,
    mask: Bool[Array, "..."] | None = None,
) -> Bool[Array, "..."] | None:
    """Who sees whom, [batch or 1, heads or 1, query, key]; None if everybody all.

    The arguments are those of `Sight`.
    """
    queries, keys = jnp.asarray(queries)[..., :, None], jnp.asarray(keys)[..., None, :]
    parts = []
    if causal:
        parts.append(_four(queries >= keys))
    if window is not None:
        distance = queries - keys if causal else jnp.abs(queries - keys)
        parts.append(_four(distance < window))
    if real is not None:
        parts.append(_four(real[..., None, :]))
    if segment_ids is not None:
        pair = segment_ids if isinstance(segment_ids, tuple) else (segment_ids,) * 2
        parts.append(_four(pair[0][:, :, None] == pair[1][:, None, :]))
    if mask is not None:
        parts.append(mask)
    return functools.reduce(jnp.logical_and, parts) if parts else None


def check_mask(mask: Any, batch: int, heads: int, queries: int, keys: int) -> None:
    """Raises ValueError unless a mask of bools broadcasts to the scores."""
    expect(mask.dtype == bool, "a mask of bools, True where a query may look", mask)
    _check_broadcast("a mask", mask, batch, heads, queries, keys)


def check_bias(bias: Any, batch: int, heads: int, queries: int, keys: int) -> None:
    """Raises ValueError unless a bias of the scores broadcasts to them."""
    floating = jnp.issubdtype(bias.dtype, jnp.floating)
    expect(floating, "a floating score_bias, added to the scores", bias)
    _check_broadcast("a score_bias", bias, batch, heads, queries, keys)


def _check_broadcast(name: str, array: Any, *sizes: int) -> None:
    batch, heads, queries, keys = sizes
    fits = array.ndim == 4 and all(
        got in (1, size) for got, size in zip(array.shape[:3], sizes, strict=False)
    )
    wanted = f"[{batch} or 1, {heads} or 1, {queries} or 1, {keys}]"
    expect(fits and array.shape[3] == keys, f"{name} {wanted}", array)


def _four(visible: jax.Array) -> jax.Array:
    """[query, key] or [batch, query, key] as [batch or 1, 1, query, key]."""
    return visible[None, None] if visible.ndim == 2 else visible[:, None]
