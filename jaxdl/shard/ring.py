"""Attention where each device has a part of the sequence.

The functions have the signature of `attend_blockwise` and are handed to a layer or a
model: `nn.Attention(..., implementation=shard.ring_attention)`. How batch, sequence and
heads are split, and over which devices, follows from the layout in force
(`shard.use(mesh, rules)`); where it leaves the sequence whole, or there is none, they
are `attend_blockwise` itself.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxdl.core import layout
from jaxdl.core.naming import expect
from jaxdl.nn.attend import Sight
from jaxdl.nn.blockwise import (
    attend_blockwise,
    attend_gradients,
    attend_with_lse,
    merge,
)
from jaxdl.shard.context import Splitting, differing, splitting, zigzag_order

Query = Float[Array, "batch query heads head_dim"]
Key = Float[Array, "batch key kv_heads head_dim"]
Value = Float[Array, "batch key kv_heads v_dim"]
Output = Float[Array, "batch query heads v_dim"]


def ring_attention(
    q: Query,
    k: Key,
    v: Value,
    sight: Sight,
    *,
    sinks: Float[Array, " heads"] | None = None,
    **options: Any,
) -> Output:
    """Keys and values travel from device to device, and each queries what comes by.

    (Liu et al. 2023, arXiv:2310.01889.) What is computed, and the arguments, are those
    of `attend_blockwise`. Every device holds its part of the sequence and one part
    that is on its way, so that memory is linear in the part; the backward pass sends
    keys, values and their gradients around once more.

    Under a causal mask devices that hold late tokens have more to do than others; see
    `zigzag_attention`.

    Raises ValueError for a mask or score_bias, for a cache or memory, and where the
    devices do not divide the sequence.
    """
    split = splitting(q, k, sight, options)
    if split is None:
        return attend_blockwise(q, k, v, sight, sinks=sinks, **options)
    return _around(split, q, k, v, sight, sinks, options)


def zigzag_attention(
    q: Query,
    k: Key,
    v: Value,
    sight: Sight,
    *,
    sinks: Float[Array, " heads"] | None = None,
    **options: Any,
) -> Output:
    """`ring_attention` of a sequence in zigzag order, where all have the same work.

    Tokens, targets, segment_ids and positions are put in that order by `to_zigzag`,
    with as many parts as there are devices along the sequence. Who is causal to whom,
    and windows, are of the order before; positions for RoPE must be given, and are
    `zigzag_order` unless sequences are packed.
    """
    split = splitting(q, k, sight, options)
    if split is None:
        return attend_blockwise(q, k, v, sight, sinks=sinks, **options)
    order = zigzag_order(q.shape[1], split.parts)
    moved = sight._replace(queries=sight.queries[order], keys=sight.keys[order])
    return _around(split, q, k, v, moved, sinks, options)


def all_to_all_attention(
    q: Query,
    k: Key,
    v: Value,
    sight: Sight,
    *,
    sinks: Float[Array, " heads"] | None = None,
    **options: Any,
) -> Output:
    """Devices exchange parts of the sequence for heads, and back after attention.

    (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509.) Four all-to-alls send
    less than a ring does, but there must be as many kv_heads as devices, and each
    device holds the whole sequence for its heads. Causal work is balanced.

    Raises ValueError as `ring_attention` does, and where the devices along the sequence
    do not divide the kv_heads of each.
    """
    split = splitting(q, k, sight, options)
    if split is None:
        return attend_blockwise(q, k, v, sight, sinks=sinks, **options)
    wanted = f"a multiple of {split.parts} kv_heads on each device, as for the sequence"
    expect(split.local_kv_heads % split.parts == 0, wanted, k)

    def attend(q, k, v, real, segment_ids, sinks):
        here = sight._replace(real=real, segment_ids=segment_ids)
        q, k, v = (_exchanged(split, x, 2, 1) for x in (q, k, v))
        y = attend_blockwise(q, k, v, here, sinks=sinks, **options)
        return _exchanged(split, y, 1, 2)

    whole = layout.spec_of((split.batch,))
    heads = layout.spec_of(((*split.heads, *split.sequence),))
    specs = (split.queries, split.keys, split.keys, whole, whole, heads)
    run = split.manual(attend, specs, split.queries)
    return run(q, k, v, *_rows(sight, q), sinks)


def _exchanged(split: Splitting, x, cut: int, joined: int):
    """Cuts one dimension among the devices of the sequence and joins another."""
    return jax.lax.all_to_all(x, split.sequence, cut, joined, tiled=True)


def _around(split: Splitting, q, k, v, sight: Sight, sinks, options) -> Output:
    """Ring attention of whole arrays; the sight says where each place belongs."""
    given = {name: value for name, value in options.items() if name != "score_bias"}
    ring = _Ring(
        split.sequence, split.varying, split.parts, sight.causal, sight.window, **given
    )
    tables = _Tables(
        *(jnp.asarray(x).reshape(split.parts, -1) for x in (sight.queries, sight.keys))
    )

    def attend(q, k, v, real, segment_ids, sinks, tables):
        # Each device finds its own part of a gradient. What is the same on several is
        # made to differ first, and the transpose of that is the sum of the parts.
        differ = functools.partial(differing, wanted=ring.varying)
        k, v = differ((k, v), specs[1])
        rows = differ((real, segment_ids), specs[3])
        return _attend(ring, q, k, v, differ(sinks, specs[5]), rows, tables)

    heads = layout.spec_of((split.heads,))
    rows = (split.rows, split.rows)
    specs = (split.queries, split.keys, split.keys, *rows, heads, PartitionSpec())
    run = split.manual(attend, specs, split.queries)
    return run(q, k, v, *_rows(sight, q), sinks, tables)


def _rows(sight: Sight, q) -> list[jax.Array | None]:
    """Which places are real and their segments, one row for each of the batch."""
    given = sight.real, sight.segment_ids
    return [None if x is None else jnp.broadcast_to(x, q.shape[:2]) for x in given]


class _Ring(NamedTuple):
    """What is known of a ring while it is traced; it is hashable."""

    axes: tuple[str, ...]
    varying: tuple[str, ...]  # all axes over which what is computed differs
    parts: int
    causal: bool
    window: int | None
    scale: float
    softcap: float | None = None
    block: int = 256

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": self.scale, "softcap": self.softcap, "block": self.block}

    def passed_on(self, tree):
        """What the device before had."""
        pairs = [(i, (i + 1) % self.parts) for i in range(self.parts)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, pairs), tree)


class _Tables(NamedTuple):
    """Where the tokens of every part stand, [parts, seq of one]."""

    queries: jax.Array
    keys: jax.Array


class _Travelling(NamedTuple):
    """What goes around the ring."""

    k: jax.Array
    v: jax.Array
    real: jax.Array | None
    segment_ids: jax.Array | None


def _sight(ring: _Ring, tables: _Tables, mine, there: _Travelling, step) -> Sight:
    """What the queries here see of the keys that have come `step` devices far."""
    here = jax.lax.axis_index(ring.axes)
    source = (here - step) % ring.parts
    ids = None if mine is None else (mine, there.segment_ids)
    places = tables.queries[here], tables.keys[source]
    return Sight(*places, ring.causal, ring.window, there.real, ids)


def _forward(ring: _Ring, q, k, v, sinks, rows, tables):
    start = _Travelling(k, v, *rows)

    def look(step, y, lse, there: _Travelling):
        sight = _sight(ring, tables, rows[1], there, step)
        part, part_lse = attend_with_lse(q, there.k, there.v, sight, **ring.options)
        return merge(y, lse, part.astype(jnp.float32), part_lse)

    def step(state, number):
        y, lse, there = state
        # What is sent on does not wait for what is computed.
        return (*look(number, y, lse, there), ring.passed_on(there)), None

    y = jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32)
    # The place without a value is a part of its own.
    lse = -jnp.inf if sinks is None else sinks.astype(jnp.float32)
    y = differing(y, PartitionSpec(), ring.varying)
    lse = lse + jnp.zeros_like(y[..., 0])
    numbers = jnp.arange(ring.parts - 1)
    (y, lse, start), _ = jax.lax.scan(step, (y, lse, start), numbers)
    y, lse = look(ring.parts - 1, y, lse, start)
    return y.astype(v.dtype), lse


def _attend_forward(ring: _Ring, q, k, v, sinks, rows, tables):
    y, lse = _forward(ring, q, k, v, sinks, rows, tables)
    return y, (q, k, v, sinks, rows, tables, y, lse)


def _attend_backward(ring: _Ring, saved, d_y):
    """The keys go around again, and their gradients with them, until they are home."""
    q, k, v, sinks, rows, tables, y, lse = saved
    start = _Travelling(k, v, *rows)

    def look(step, d_q, d_there, there: _Travelling):
        sight = _sight(ring, tables, rows[1], there, step)
        arrays = q, there.k, there.v, sight, y, lse, d_y
        d = attend_gradients(*arrays, **ring.options)
        return d_q + d[0], (d_there[0] + d[1], d_there[1] + d[2])

    def step(state, number):
        d_q, d_there, there = state
        d_q, d_there = look(number, d_q, d_there, there)
        return (d_q, ring.passed_on(d_there), ring.passed_on(there)), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    d_q, d_k, d_v = differing(zeros, PartitionSpec(), ring.varying)
    state = d_q, (d_k, d_v), start
    state, _ = jax.lax.scan(step, state, jnp.arange(ring.parts - 1))
    d_q, d_there = look(ring.parts - 1, *state)
    d_k, d_v = ring.passed_on(d_there)
    d_sinks = None if sinks is None else _sink_gradients(sinks, y, lse, d_y)
    d = (d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), d_sinks)
    return (*d, None, None)


def _sink_gradients(sinks, y, lse, d_y):
    """A sink only takes weight from the rest."""
    weight = jnp.exp(sinks.astype(jnp.float32) - lse)
    common = jnp.sum(y.astype(jnp.float32) * d_y, -1)
    return -jnp.sum(weight * common, (0, 1)).astype(sinks.dtype)


def _attend_value(ring, *arrays):
    return _forward(ring, *arrays)[0]


_attend: Any = jax.custom_vjp(_attend_value, nondiff_argnums=(0,))
_attend.defvjp(_attend_forward, _attend_backward)
