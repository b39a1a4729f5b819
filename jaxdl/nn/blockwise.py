"""Attention block by block: its memory grows with the sequence, not with its square.

The softmax is taken as blocks of keys come in (Milakov & Gimelshein 2018,
arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682), and the backward pass computes
each block of weights again from the log-sum-exp of its rows (FlashAttention-2, Dao
2023, arXiv:2307.08691, algorithms 1 and 2). It is plain JAX, so it runs everywhere.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jaxtyping import Array, Float
import numpy as np

from jaxdl.nn import blocks
from jaxdl.nn.attend import Sight
from jaxdl.nn.blocks import put, take

Query = Float[Array, "batch query heads head_dim"]
Key = Float[Array, "batch key kv_heads head_dim"]
Value = Float[Array, "batch key kv_heads v_dim"]
Output = Float[Array, "batch query heads v_dim"]
LogSumExp = Float[Array, "batch query heads"]

# A query that has seen nothing yet has this maximum; what is hidden is twice as low.
_LOWEST = float(np.finfo(np.float32).min) / 2

_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attend_blockwise(
    q: Query,
    k: Key,
    v: Value,
    sight: Sight,
    *,
    sinks: Float[Array, " heads"] | None = None,
    **options: Any,
) -> Output:
    """What `attend` computes, without taps and in memory linear in the sequence.

    `sinks` are scores of a place without a value, one for each head. The sight and the
    options are those of `attend_with_lse`.
    """
    y, lse = attend_with_lse(q, k, v, sight, **options)
    if sinks is None:
        return y
    share = jax.nn.sigmoid(lse - sinks.astype(lse.dtype))
    return (y * share[..., None]).astype(y.dtype)


def attend_with_lse(
    q: Query,
    k: Key,
    v: Value,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None = None,
    score_bias: Float[Array, "..."] | None = None,
    block: int = 256,
) -> tuple[Output, LogSumExp]:
    """Attention, and the log-sum-exp of each query's scores; both have gradients.

    `scale`, `softcap` and `score_bias` are those of `attend`; `block` queries meet as
    many keys at once. Where the positions of the sight are NumPy arrays, blocks that
    cannot see each other are left out of the program. Other blocks in which nobody sees
    anybody are passed over while it runs.

    Products are summed in float32. A query that sees nothing gives zeros, and a
    log-sum-exp of about -1.7e38. Parts of the keys are put together by `merge`.
    """
    problem = _problem(q, k, v, sight, scale, softcap, score_bias, block)
    y, lse = _attend(*problem)
    return blocks.from_rows(y, q.shape[1]), blocks.from_rows(
        lse[..., None], q.shape[1]
    )[..., 0]


def attend_gradients(
    q: Query,
    k: Key,
    v: Value,
    sight: Sight,
    y: Output,
    lse: LogSumExp,
    d_y: Output,
    *,
    scale: float,
    softcap: float | None = None,
    block: int = 256,
) -> tuple[Query, Key, Value]:
    """Gradients of q, k and v, float32, where k and v are a part of the keys.

    `y` and `lse` are those of all keys, and `d_y` is the gradient of y. Summed over the
    parts they are the gradients of the whole: for keys that travel between devices.
    """
    problem = _problem(q, k, v, sight, scale, softcap, None, block)
    y, d_y, lse = (
        blocks.rows(x, k.shape[2], problem.plan.size[0])
        for x in (y, d_y, lse[..., None])
    )
    results = _Results(y, lse[..., 0])
    d = _gradients(*problem, results, _Results(d_y, jnp.zeros_like(results.lse)))
    d_k, d_v = (blocks.from_columns(x, k.shape[1]) for x in (d.k, d.v))
    return blocks.from_rows(d.q, q.shape[1]), d_k, d_v


def merge(
    y: Output, lse: LogSumExp, other_y: Output, other_lse: LogSumExp
) -> tuple[Output, LogSumExp]:
    """Attention to two parts of the keys made attention to both, with its LSE."""
    both = jnp.logaddexp(lse, other_lse)
    mine, theirs = jnp.exp(lse - both)[..., None], jnp.exp(other_lse - both)[..., None]
    return (y * mine + other_y * theirs).astype(y.dtype), both


class _Plan(NamedTuple):
    """What is known of a problem while it is traced; it is hashable."""

    pairs: tuple[tuple[int, int], ...]  # blocks of queries and of keys that may meet
    size: tuple[int, int]  # queries and keys in a block
    causal: bool
    window: int | None
    scale: float
    softcap: float | None
    dynamic: bool  # whether more pairs may turn out not to see each other


class _Arrays(NamedTuple):
    """What has a gradient."""

    q: jax.Array  # [row blocks, batch, kv_heads, group, rows, head_dim]
    k: jax.Array  # [column blocks, batch, kv_heads, columns, head_dim]
    v: jax.Array
    bias: jax.Array | None  # padded to whole blocks


class _Places(NamedTuple):
    """The arrays of a sight, in blocks: [blocks, batch or 1, block]."""

    queries: Any
    keys: Any
    real: Any
    segments: Any
    mask: jax.Array | None  # padded to whole blocks


class _Problem(NamedTuple):
    plan: _Plan
    arrays: _Arrays
    places: _Places


class _Results(NamedTuple):
    y: jax.Array  # [row blocks, batch, kv_heads, group, rows, v_dim]
    lse: jax.Array  # [row blocks, batch, kv_heads, group, rows]


def _problem(q, k, v, sight: Sight, scale, softcap, bias, block) -> _Problem:
    size = rows, columns = min(block, q.shape[1]), min(block, k.shape[1])
    queries = blocks.split(sight.queries, rows, "edge")
    keys = blocks.split(sight.keys, columns, "edge")
    known = isinstance(queries, np.ndarray) and isinstance(keys, np.ndarray)
    real, segments = sight.real, sight.segment_ids
    if k.shape[1] % columns and real is None:
        real = np.ones(k.shape[1], bool)
    if segments is not None:
        pair = segments if isinstance(segments, tuple) else (segments, segments)
        segments = blocks.split(pair[0], rows), blocks.split(pair[1], columns)
    places = _Places(
        queries,
        keys,
        None if real is None else blocks.split(real, columns),
        segments,
        blocks.padded_square(sight.mask, size),
    )
    arrays = _Arrays(
        blocks.rows(q, k.shape[2], rows),
        blocks.columns(k, columns),
        blocks.columns(v, columns),
        blocks.padded_square(bias, size),
    )
    pairs = _meeting(queries, keys, sight, known)
    dynamic = not known or sight.blind or segments is not None
    plan = _Plan(pairs, size, sight.causal, sight.window, scale, softcap, dynamic)
    return _Problem(plan, arrays, places)


def _meeting(queries, keys, sight: Sight, known: bool) -> tuple[tuple[int, int], ...]:
    """The pairs of blocks in which somebody may see somebody, row by row."""
    meet = np.ones((queries.shape[0], keys.shape[0]), bool)
    if known:
        first, last = queries.min((1, 2))[:, None], queries.max((1, 2))[:, None]
        begin, end = keys.min((1, 2)), keys.max((1, 2))
        if sight.causal:
            meet &= last >= begin
        if sight.window is not None:
            meet &= first - end < sight.window
            meet &= sight.causal | (begin - last < sight.window)
    return tuple((int(row), int(column)) for row, column in np.argwhere(meet))


def _attend_blocks(plan: _Plan, arrays: _Arrays, places: _Places) -> _Results:
    """Queries meet keys block by block; their softmax so far is put right each time."""
    q, k, v, bias = arrays

    def step(state, pair):
        row, column = pair
        visible = _visible(plan, places, row, column)

        def look(state):
            top, total, y = state
            raw = _product("bkgtd,bksd->bkgts", take(q, row), take(k, column))
            scores = _scores(
                plan, visible, raw, blocks.tile(bias, plan.size, row, column)
            )
            new_top = jnp.maximum(top, scores.max(-1))
            shrink = jnp.exp(top - new_top)
            weights = jnp.exp(scores - new_top[..., None])
            seen = _product(
                "bkgts,bksd->bkgtd", weights.astype(v.dtype), take(v, column)
            )
            total = total * shrink + weights.sum(-1)
            return new_top, total, y * shrink[..., None] + seen

        new = _unless_blind(plan, visible, look, take(state, row))
        return put(state, new, row), None

    top = jnp.full(q.shape[:-1], _LOWEST, jnp.float32)
    y = jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32)
    top, total, y = _over_pairs(plan, step, (top, jnp.zeros_like(top), y), arrays)
    total = jnp.where(total == 0, 1.0, total)
    return _Results((y / total[..., None]).astype(v.dtype), top + jnp.log(total))


def _attend_forward(plan, arrays, places):
    results = _attend_blocks(plan, arrays, places)
    return results, (arrays, places, results)


def _attend_backward(plan, saved, d_results):
    arrays, places, results = saved
    d = _gradients(plan, arrays, places, results, d_results)
    return jax.tree.map(lambda d, x: d.astype(x.dtype), d, arrays), None


_attend: Any = jax.custom_vjp(_attend_blocks, nondiff_argnums=(0,))
_attend.defvjp(_attend_forward, _attend_backward)


def _gradients(plan: _Plan, arrays, places, results: _Results, d_results) -> _Arrays:
    """The gradients in float32; the weights are computed again, block by block."""
    q, k, v, bias = arrays
    d_y, d_lse = d_results
    # What each query's weights have in common, for their sum to stay 1.
    common = jnp.sum(results.y.astype(jnp.float32) * d_y, -1) - d_lse

    def step(total: _Arrays, pair):
        row, column = pair
        visible = _visible(plan, places, row, column)

        def look(d: _Arrays) -> _Arrays:
            queries, rows_d_y = take((q, d_y), row)
            some_keys, values = take((k, v), column)
            raw = _product("bkgtd,bksd->bkgts", queries, some_keys)
            shape = functools.partial(_scores, plan, visible)
            scores, pull = jax.vjp(
                shape, raw, blocks.tile(bias, plan.size, row, column)
            )
            weights = jnp.exp(scores - take(results.lse, row)[..., None])
            d_weights = _product("bkgtd,bksd->bkgts", rows_d_y, values)
            d_raw, d_tile = pull(weights * (d_weights - take(common, row)[..., None]))
            d_raw, weights = d_raw.astype(q.dtype), weights.astype(d_y.dtype)
            return _Arrays(
                d.q + _product("bkgts,bksd->bkgtd", d_raw, some_keys),
                d.k + _product("bkgts,bkgtd->bksd", d_raw, queries),
                d.v + _product("bkgts,bkgtd->bksd", weights, rows_d_y),
                None if d_tile is None else d.bias + d_tile,
            )

        before = _Arrays(
            take(total.q, row),
            take(total.k, column),
            take(total.v, column),
            blocks.tile(total.bias, plan.size, row, column),
        )
        after = _unless_blind(plan, visible, look, before)
        return _Arrays(
            put(total.q, after.q, row),
            put(total.k, after.k, column),
            put(total.v, after.v, column),
            blocks.put_tile(total.bias, after.bias, plan.size, row, column),
        ), None

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), arrays)
    return _over_pairs(plan, step, start, arrays)


def _scores(plan: _Plan, visible, raw, bias):
    """What the softmax is taken of, [batch, kv_heads, group, query, key]."""
    scores = raw * plan.scale
    if plan.softcap is not None:
        scores = plan.softcap * jnp.tanh(scores / plan.softcap)
    if bias is not None:
        scores = scores + blocks.by_group(bias, raw.shape)
    if visible is None:
        return scores
    return jnp.where(blocks.by_group(visible, raw.shape), scores, 2 * _LOWEST)


def _visible(plan: _Plan, places: _Places, row, column) -> jax.Array | None:
    """Who sees whom in one pair of blocks."""
    segments = places.segments
    if segments is not None:
        segments = take(segments[0], row), take(segments[1], column)
    return Sight(
        take(places.queries, row),
        take(places.keys, column),
        plan.causal,
        plan.window,
        take(places.real, column),
        segments,
        blocks.tile(places.mask, plan.size, row, column),
    ).visible()


def _unless_blind(plan: _Plan, visible, look: Callable, state):
    """Leaves the state as it is where nobody sees anybody."""
    if visible is None or not plan.dynamic:
        return look(state)
    return jax.lax.cond(visible.any(), look, lambda state: state, state)


def _over_pairs(plan: _Plan, step: Callable, start: Any, arrays: _Arrays) -> Any:
    """Runs a step for each pair of blocks."""
    if AxisType.Manual in jax.sharding.get_abstract_mesh().axis_types:
        # In jax.shard_map a carry that will differ between devices must from the start.
        differs = [x.ravel()[0] == 0 for x in jax.tree.leaves(arrays)]
        zero = functools.reduce(jnp.logical_or, differs) & False
        start = jax.tree.map(lambda x: x + zero.astype(x.dtype), start)
    pairs = np.asarray(plan.pairs, np.int32).reshape(-1, 2)
    return jax.lax.scan(step, start, (pairs[:, 0], pairs[:, 1]))[0]
