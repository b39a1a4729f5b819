"""Splash attention: the Pallas kernel for TPUs that comes with JAX."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from jaxdl.core import layout
from jaxdl.nn import blocks
from jaxdl.nn.attend import Sight

# Sequences are filled up to whole tiles of this many lanes.
_LANES = 128

# A segment of keys that no query belongs to.
_NOBODY = np.iinfo(np.int32).min


def attend_splash(
    q: Float[Array, "batch query heads head_dim"],
    k: Float[Array, "batch key kv_heads head_dim"],
    v: Float[Array, "batch key kv_heads v_dim"],
    sight: Sight,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Float[Array, " heads"] | None = None,
    interpret: bool = False,
) -> Float[Array, "batch query heads v_dim"]:
    """What `attend` computes, on a TPU (`splash_attention_kernel` of JAX).

    Under `jd.shard.use` each device computes its own rows of the batch and heads.
    `interpret` runs the kernel in plain JAX on any platform, slowly. See `refusal` for
    what it cannot do.
    """
    queries, keys = q.shape[1], k.shape[1]
    q, k, v = (blocks.padded(x, 1, _LANES) for x in (q * scale, k, v))
    segments = _segments(sight, q.shape[0], queries, keys)
    run = functools.partial(_attend, sight, softcap, interpret)
    y = _by_device(run, q, k, v, segments, sinks)[:, :queries]
    if sight.blind:
        # The kernel lets a query that sees nothing look everywhere.
        seen: Any = sight.visible()
        y = jnp.where(seen.any(-1).swapaxes(1, 2)[..., None], y, 0)
    return y


def refusal(q: Any, k: Any, v: Any, sight: Sight) -> str:
    """Why the kernel cannot do this; "" if it can."""
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{q.dtype} (it takes float32 and bfloat16)"
    if sight.mask is not None:
        return "a mask (it takes causal, window, padding and segment_ids)"
    if (sight.causal or sight.window is not None) and not sight.in_order:
        return "positions that are not known while tracing (a cache)"
    if sight.causal and q.shape[1] != k.shape[1]:
        return f"{q.shape[1]} causal queries of {k.shape[1]} keys"
    placing = _placing(q, k)
    if placing and placing.heads != placing.kv_heads and k.shape[2] > 1:
        heads, kv_heads = placing.heads, placing.kv_heads or "nothing"
        return f"heads split over {heads} where kv_heads are over {kv_heads}"
    return ""


def _attend(sight: Sight, softcap, interpret: bool, q, k, v, segments, sinks):
    """The kernel for each row of the batch."""
    pallas, shape = _pallas(), (q.shape[1], k.shape[1])
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([_mask(sight, shape)] * q.shape[2]),
        block_sizes=_block_sizes(*shape),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    ids = None if segments is None else pallas.SegmentIds(*segments)
    y = jax.vmap(kernel, (0, 0, 0, 0, None))(q, k, v, ids, sinks)
    return y.swapaxes(1, 2)


def _pallas() -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention  # slow to import

    return splash_attention


def _mask(sight: Sight, shape: tuple[int, int]) -> Any:
    pallas = _pallas()
    if sight.window is not None:
        reach = sight.window - 1
        return pallas.LocalMask(shape, (reach, 0 if sight.causal else reach), 0)
    return pallas.CausalMask(shape) if sight.causal else pallas.FullMask(shape)


def _block_sizes(queries: int, keys: int) -> Any:
    """Blocks of at most 512, as MaxText has them."""
    q, kv = (next(b for b in (512, 256, _LANES) if n % b == 0) for n in (queries, keys))
    return _pallas().BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=kv, block_q_dkv=q, block_kv_dkv=kv,
        block_kv_dkv_compute=kv, block_q_dq=q, block_kv_dq=kv,
    )  # fmt: skip


def _segments(sight: Sight, batch: int, queries: int, keys: int) -> Any:
    """Segments of queries and keys [batch, padded], which hide padding too."""
    filled = keys % _LANES and not sight.causal
    if sight.segment_ids is None and sight.real is None and not filled:
        return None
    given = sight.segment_ids
    pair = given if isinstance(given, tuple) else (given, given)
    ids = [
        jnp.zeros((batch, number), jnp.int32) if x is None else x.astype(jnp.int32)
        for x, number in zip(pair, (queries, keys), strict=True)
    ]
    if sight.real is not None:
        ids[1] = jnp.where(sight.real, ids[1], _NOBODY)
    missing = [(0, 0), (0, -keys % _LANES)]
    ids[1] = jnp.pad(ids[1], missing, constant_values=_NOBODY)
    return blocks.padded(ids[0], 1, _LANES), ids[1]


def _by_device(run: Callable, q, k, v, segments, sinks):
    """Runs on what each device has of the batch and the heads."""
    placing = _placing(q, k)
    if placing is None:
        return run(q, k, v, segments, sinks)
    batch, heads, kv_heads, mesh, axes = placing
    rows = layout.spec_of((batch, (), heads))
    columns = layout.spec_of((batch, (), kv_heads))
    others = layout.spec_of((batch,)), layout.spec_of((heads,))
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(rows, columns, columns, *others),
        out_specs=rows,
        axis_names=axes,
        check_vma=False,  # Pallas does not say between which devices its results differ
    )(q, k, v, segments, sinks)


class _Placing(NamedTuple):
    """The mesh axes of the batch, the heads, the kv_heads; the mesh; its free axes."""

    batch: tuple[str, ...]
    heads: tuple[str, ...]
    kv_heads: tuple[str, ...]
    mesh: Any
    axes: set[str]


def _placing(q, k) -> _Placing | None:
    """How the layout in force splits queries and keys; None if it does not."""
    mesh, axes = layout.free_axes()
    now = layout.current()
    if now is None or not axes:
        return None

    def split(x, heads: str):
        spec = now.place(x.shape, ("batch", None, heads, None), "activation").spec
        spec = (*spec, *[None] * (4 - len(spec)))
        return [tuple(a for a in layout.axes_of(part) if a in axes) for part in spec]

    (batch, _, heads, _), (_, _, kv_heads, _) = split(q, "heads"), split(k, "kv_heads")
    return _Placing(batch, heads, kv_heads, mesh, axes)
