"""State-space layers: a recurrence whose steps depend on what is read (Mamba)."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.core.module import Module, fill, part
from jaxdl.core.naming import expect
from jaxdl.core.param import Param
from jaxdl.core.tap_primitive import tap
from jaxdl.nn import routing
from jaxdl.nn.checks import check_positions
from jaxdl.nn.linear import Linear


class SSMState(NamedTuple):
    """What a `Mamba` layer keeps of the tokens before: the same size for any number.

    conv: the last inputs of the convolution. ssm: the state of the recurrence.
    """

    conv: Float[Array, "batch conv_width-1 inner"]
    ssm: Float[Array, "batch inner state"]
    length: Int[Array, ""]


class Mamba(Module):
    """A selective state-space layer: [batch, seq, dim] -> [batch, seq, dim], causal.

    h' = exp(dt A) h + dt B x and y = C h + D x for each of `hidden` features (2 dim
    unless given), with dt, B and C made from x, after a short depthwise convolution,
    times a gate (Gu and Dao 2023, arXiv:2312.00752). Time runs in chunks: within one in
    parallel, from one to the next in a scan, so that memory for states is that of
    `chunk` steps.

    `segment_ids` start anew at each segment. A token at a negative position is padding,
    which leaves no trace. With a `cache` (of `init_cache`) it returns (y, cache).

    Taps: `step` (dt), `inner` (after the convolution), `states` (y before the gate).
    """

    dim: Size
    state: Size = 16
    hidden: Size | None = None
    conv_width: Size = 4
    rank: Size | None = None
    bias: bool = False
    chunk: Size = 64
    kernel_init: Any = initializers.lecun_normal()
    out_init: Any = initializers.lecun_normal()
    project: Module = part(default=None)
    select: Module = part(default=None)
    step: Module = part(default=None)
    out: Module = part(default=None)

    def __post_init__(self):
        fill(self, rank=math.ceil(self.dim / 16), hidden=2 * self.dim)
        inner, rank = self.inner, self.rank or 1
        into, bound = ("embed", "mlp"), rank**-0.5
        selected = rank + 2 * self.state
        fill(
            self,
            project=Linear(self.dim, 2 * inner, self.bias, into, self.kernel_init),
            select=Linear(inner, selected, False, ("mlp", None), self.kernel_init),
            step=Linear(
                rank, inner, True, (None, "mlp"),
                initializers.uniform(-bound, bound), StepInit(),
            ),
            out=Linear(inner, self.dim, self.bias, ("mlp", "embed"), self.out_init),
        )  # fmt: skip

    @property
    def inner(self) -> int:
        return self.hidden or 2 * self.dim

    def spec(self):
        inner, width = self.inner, self.conv_width
        bound = width**-0.5
        uniform = initializers.uniform(-bound, bound)
        return {
            **super().spec(),
            "conv": {
                "kernel": Param((width, 1, inner), uniform, (None, None, "mlp")),
                "bias": Param((inner,), uniform, ("mlp",), role="bias"),
            },
            "log_decay": Param(
                (inner, self.state), DecayInit(), ("mlp", None), role="scale"
            ),
            "skip": Param((inner,), initializers.ones, ("mlp",), role="scale"),
        }

    def init_cache(
        self,
        batch: int,
        slots: int,
        dtype: Any = jnp.float32,
        *,
        chunk: int | None = None,
    ) -> SSMState:
        """The state before any token; `slots` and `chunk` do not matter to it."""
        conv = jnp.zeros((batch, self.conv_width - 1, self.inner), dtype)
        ssm = jnp.zeros((batch, self.inner, self.state), jnp.float32)
        return SSMState(conv, ssm, jnp.zeros((), jnp.int32))

    def __call__(
        self,
        params,
        x: Float[Array, "batch seq dim"],
        *,
        segment_ids: Int[Array, "batch seq"] | None = None,
        positions: Int[Array, "..."] | None = None,
        cache: SSMState | None = None,
        key: OptionalKey = MISSING,
    ) -> Any:
        expect(x.ndim == 3 and x.shape[-1] == self.dim, f"[batch, seq, {self.dim}]", x)
        real = None
        if positions is not None:
            check_positions(positions, x)
            real = jnp.broadcast_to(positions >= 0, x.shape[:2])[..., None]
        if segment_ids is not None:
            wanted = f"segment_ids [{x.shape[0]}, {x.shape[1]}] and no cache"
            fits = segment_ids.shape == x.shape[:2] and cache is None
            expect(fits, wanted, segment_ids)
        before = self.init_cache(x.shape[0], 0, x.dtype) if cache is None else cache
        part = routing.parts(self, params, key)
        x, gate = jnp.split(part("project", x), 2, axis=-1)
        x = x if real is None else jnp.where(real, x, 0)
        inputs = jnp.concatenate([before.conv.astype(x.dtype), x], axis=1)
        x = jax.nn.silu(self._convolve(params["conv"], inputs, segment_ids))
        x = tap(x if real is None else jnp.where(real, x, 0), "inner")
        y, ssm = self._recur(params, part, x, before.ssm, real, segment_ids)
        y = tap(y, "states") * jax.nn.silu(gate)
        y = part("out", y)
        if cache is None:
            return y
        kept = inputs[:, inputs.shape[1] - self.conv_width + 1 :]
        length = cache.length + x.shape[1]
        return y, SSMState(kept.astype(cache.conv.dtype), ssm, length)

    def _convolve(self, params, inputs, segment_ids) -> jax.Array:
        """Each feature with the tokens before it, in its own segment."""
        width = self.conv_width
        seq = inputs.shape[1] - width + 1
        total = params["bias"]
        for back in range(width):
            start = width - 1 - back
            earlier = inputs[:, start : start + seq]
            if segment_ids is not None and back:
                # Before the first token lie zeros, whatever segment that is.
                shifted = jnp.pad(segment_ids, ((0, 0), (back, 0)))[:, :seq]
                earlier = jnp.where((shifted == segment_ids)[..., None], earlier, 0)
            total = total + earlier * params["kernel"][start, 0]
        return total

    def _recur(self, params, part, x, before, real, segment_ids):
        """The recurrence, in float32: y like x, and the last state."""
        selected = part("select", x).astype(jnp.float32)
        rank = self.rank or 1
        step, into, out = jnp.split(selected, [rank, rank + self.state], axis=-1)
        step = part("step", step.astype(x.dtype)).astype(jnp.float32)
        step = tap(jax.nn.softplus(step), "step")
        if real is not None:
            step = jnp.where(real, step, 0)  # time stands still on padding
        starts = None
        if segment_ids is not None:
            changes = segment_ids[:, 1:] != segment_ids[:, :-1]
            starts = jnp.pad(changes, ((0, 0), (1, 0)))
        wide = x.astype(jnp.float32)
        decay = -jnp.exp(params["log_decay"].astype(jnp.float32))

        def run(state, piece):
            step, wide, into, out, starts = piece
            keep = jnp.exp(step[..., None] * decay)  # [batch, time, inner, state]
            if starts is not None:
                keep = jnp.where(starts[..., None, None], 0.0, keep)
            new = (step * wide)[..., None] * into[..., None, :]
            keeps, news = jax.lax.associative_scan(_compose, (keep, new), axis=1)
            states = keeps * state[:, None] + news
            return states[:, -1], jnp.einsum("btis,bts->bti", states, out)

        last, y = _in_chunks(run, before, (step, wide, into, out, starts), self.chunk)
        return (y + wide * params["skip"]).astype(x.dtype), last


@dataclasses.dataclass(frozen=True)
class DecayInit:
    """log 1, log 2, ..., log state in every row: the real form of S4D."""

    random = False

    def __call__(self, key, shape, dtype) -> jax.Array:
        row = jnp.log(jnp.arange(1, shape[-1] + 1, dtype=dtype))
        return jnp.broadcast_to(row, shape)


@dataclasses.dataclass(frozen=True)
class StepInit:
    """Biases whose softplus is spread evenly, in its logarithm, from low to high."""

    low: float = 1e-3
    high: float = 1e-1

    def __call__(self, key, shape, dtype) -> jax.Array:
        low, high = math.log(self.low), math.log(self.high)
        step = jnp.exp(jax.random.uniform(key, shape, dtype, low, high))
        return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus


def _compose(first, second):
    """Two steps of h' = keep h + new as one."""
    return first[0] * second[0], second[0] * first[1] + second[1]


def _in_chunks(run, state, arrays, size: int):
    """Scans `run` over pieces of time, the last of which may be shorter."""
    seq = arrays[0].shape[1]
    if seq <= size:
        return run(state, arrays)
    whole = seq // size * size

    def split(array):
        pieces = array[:, :whole].reshape(array.shape[0], -1, size, *array.shape[2:])
        return pieces.swapaxes(0, 1)

    state, y = jax.lax.scan(run, state, jax.tree.map(split, arrays))
    y = y.swapaxes(0, 1).reshape(y.shape[1], whole, *y.shape[3:])
    if whole < seq:
        state, rest = run(state, jax.tree.map(lambda a: a[:, whole:], arrays))
        y = jnp.concatenate([y, rest], axis=1)
    return state, y
