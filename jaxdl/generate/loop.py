"""Prompts go in, what a model says comes out: the loop, all of it on the device."""

from collections.abc import Iterable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from jaxdl.core.keys import MISSING, Missing, OptionalKey
from jaxdl.generate.contract import score
from jaxdl.generate.prefix import Prefix, prefill
from jaxdl.generate.prompts import Prompts, left_padded
from jaxdl.generate.sampling import History, Sampler, apply, greedy, is_greedy


class Generated(NamedTuple):
    """What was generated, row by row.

    tokens: the new ones alone; `pad` after a row's end.
    lengths: how many of them are the row's, the one that ended it included.
    log_probs: of each under the model itself, before any sampler; 0 after the end.
    ended: whether a token of `eos` ended the row, not max_new.
    """

    tokens: Int[Array, "batch max_new"]
    lengths: Int[Array, " batch"]
    log_probs: Float[Array, "batch max_new"]
    ended: Bool[Array, " batch"]

    def rows(self) -> list[list[int]]:
        """The tokens of each row, the one that ended it included."""
        rows = zip(np.asarray(self.tokens), np.asarray(self.lengths), strict=True)
        return [row[:length].tolist() for row, length in rows]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that the compiled programs depend on beside shapes."""

    model: Any
    sampler: Sampler
    draws: bool
    max_new: int
    width: int
    eos: tuple[int, ...] = ()
    pad: int = 0


class Loop(NamedTuple):
    """Generation under way: what one step hands the next."""

    cache: Any
    tokens: Int[Array, "batch total"]
    real: Bool[Array, "batch total"]
    log_probs: Float[Array, "batch max_new"]
    positions: Int[Array, " batch"]  # of the next token
    lengths: Int[Array, " batch"]
    ended: Bool[Array, " batch"]
    done: Bool[Array, " batch"]
    step: Int[Array, ""]

    def generated(self, plan: Plan) -> Generated:
        """What has been generated up to now."""
        tokens = self.tokens[:, plan.width :]
        return Generated(tokens, self.lengths, self.log_probs, self.ended)


def generate(
    model: Any,
    params: Any,
    prompts: Any,
    *,
    max_new: int,
    sampler: Sampler = greedy,
    key: OptionalKey = MISSING,
    eos: int | Iterable[int] = (),
    pad: int = 0,
    prefix: Prefix | None = None,
    cache_dtype: Any = jnp.float32,
    chunk: int | None = None,
    multiple: int = 1,
) -> Generated:
    """Continues each prompt by at most max_new tokens, until one of `eos`.

    model: any pure, hashable function `(params, tokens, *, cache, positions) ->
    (logits, cache)` with an `init_cache(batch, slots, dtype, chunk=)`, such as
    `models.Decoder`.
    prompts: rows of token ids, of any lengths.
    sampler: what may be chosen, drawn by `key`; with key=None the likeliest of it.
    prefix: what stands before every prompt, read once (`remember`).
    cache_dtype: of keys and values; jnp.int8 quantises them.
    chunk: reads prompts this many tokens at a time, to save memory.
    multiple: of it prompts are padded to a width, so that fewer shapes are compiled.

    One program reads the prompts, one is the loop; neither is compiled again for the
    same shapes. A row whose sampler leaves nothing to choose ends there, with a
    log-probability of NaN. Raises TypeError for a sampler that draws without a key,
    ValueError for sizes that are no sizes.
    """
    given = left_padded(prompts, multiple=multiple_of(multiple, chunk), pad=pad)
    plan = plan_of(model, given, max_new, sampler, key, eos, pad)
    loop = start(plan, params, given, key, prefix, cache_dtype, chunk)
    if max_new > 1:
        loop = go_on(plan, params, loop, key, steps=max_new)
    return loop.generated(plan)


def plan_of(
    model: Any,
    prompts: Prompts,
    max_new: int,
    sampler: Sampler,
    key: OptionalKey,
    eos: int | Iterable[int],
    pad: int,
) -> Plan:
    """The static part of a call, checked."""
    if max_new < 1:
        raise ValueError(f"generate: expected max_new of at least 1, got {max_new}")
    if isinstance(key, Missing) and not is_greedy(sampler):
        raise TypeError(
            f"generate: {sampler!r} draws: give a key, or key=None for the likeliest"
        )
    draws = not (key is None or is_greedy(sampler))
    width = prompts.tokens.shape[1]
    return Plan(model, sampler, draws, max_new, width, ids(eos), pad)


def ids(eos: int | Iterable[int]) -> tuple[int, ...]:
    """One id or several as a tuple that is equal for equal sets of them."""
    several = (eos,) if isinstance(eos, int | np.integer) else eos
    return tuple(sorted({int(id) for id in several}))


def start(
    plan: Plan,
    params: Any,
    prompts: Prompts,
    key: OptionalKey,
    prefix: Prefix | None = None,
    cache_dtype: Any = jnp.float32,
    chunk: int | None = None,
) -> Loop:
    """Reads the prompts and chooses the first token of each."""
    key = key if plan.draws else None
    positions = prompts.positions
    return _start(
        params, prompts.tokens, positions, key, prefix,
        plan=plan, dtype=jnp.dtype(cache_dtype), chunk=chunk or plan.width,
    )  # fmt: skip


def go_on(plan: Plan, params: Any, loop: Loop, key: OptionalKey, steps: int) -> Loop:
    """At most so many more tokens; `loop` is donated and no more to be used."""
    key = key if plan.draws else None
    return _go_on(params, loop, key, np.int32(steps), plan=plan)


@functools.partial(jax.jit, static_argnames=("plan", "dtype", "chunk"))
def _start(params, tokens, positions, key, prefix, *, plan, dtype, chunk):
    logits, cache, following = prefill(
        plan.model, params, tokens, positions, prefix,
        room=plan.max_new, dtype=dtype, chunk=chunk, pieces=chunk,
    )  # fmt: skip
    return first(plan, tokens, positions >= 0, following, logits, cache, key)


def first(plan: Plan, tokens, real, following, logits, cache, key) -> Loop:
    """The loop after prompts that were read: chooses the first token of each."""
    batch = tokens.shape[0]
    total = (batch, plan.max_new)
    loop = Loop(
        cache=cache,
        tokens=jnp.concatenate([tokens, jnp.full(total, plan.pad, jnp.int32)], 1),
        real=jnp.concatenate([real, jnp.zeros(total, bool)], 1),
        log_probs=jnp.zeros(total),
        positions=following,
        lengths=jnp.zeros(batch, jnp.int32),
        ended=jnp.zeros(batch, bool),
        done=jnp.zeros(batch, bool),
        step=jnp.zeros((), jnp.int32),
    )
    return _choose(plan, loop, logits, key)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="loop")
def _go_on(params, loop, key, steps, *, plan):
    until = jnp.minimum(loop.step + steps, plan.max_new)

    def more(loop: Loop):
        return (loop.step < until) & ~loop.done.all()

    def step(loop: Loop) -> Loop:
        last = jax.lax.dynamic_slice_in_dim(
            loop.tokens, plan.width + loop.step - 1, 1, axis=1
        )
        # A row that is done says padding, which nobody sees.
        at = jnp.where(loop.done, -1, loop.positions - 1)[:, None]
        logits, cache = score(plan.model, params, last, loop.cache, at)
        return _choose(plan, loop._replace(cache=cache), logits[:, -1], key)

    return jax.lax.while_loop(more, step, loop)


def _choose(plan: Plan, loop: Loop, logits, key) -> Loop:
    """Writes down the next token of every row that is not done."""
    history = History(loop.tokens, loop.real, plan.width)
    if key is not None:
        key = jax.random.fold_in(key, loop.step)
    token, stuck = choose(apply(plan.sampler, logits, history), key)
    here = log_prob(logits, token, stuck)
    says = ~loop.done & ~stuck
    token = jnp.where(says, token, plan.pad)
    hit = says & jnp.isin(token, jnp.array(plan.eos, jnp.int32))
    column = plan.width + loop.step
    return loop._replace(
        tokens=loop.tokens.at[:, column].set(token),
        real=loop.real.at[:, column].set(says),
        log_probs=loop.log_probs.at[:, loop.step].set(jnp.where(loop.done, 0, here)),
        positions=loop.positions + says,
        lengths=loop.lengths + says,
        ended=loop.ended | hit,
        done=loop.done | hit | stuck,
        step=loop.step + 1,
    )


def choose(logits: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """A token of logits [..., vocab], and whether there was nothing to choose."""
    stuck = ~jnp.isfinite(logits.max(-1))
    if key is None:
        return logits.argmax(-1).astype(jnp.int32), stuck
    return jax.random.categorical(key, logits).astype(jnp.int32), stuck


def log_prob(logits: jax.Array, token: jax.Array, stuck: jax.Array) -> jax.Array:
    """The log-probability of tokens [...] under logits [..., vocab]; NaN if stuck."""
    every = jax.nn.log_softmax(logits, axis=-1)
    here = jnp.take_along_axis(every, token[..., None], axis=-1)[..., 0]
    return jnp.where(stuck, jnp.nan, here)


def multiple_of(multiple: int, chunk: int | None) -> int:
    """Of what the width of prompts is a multiple: of both."""
    if multiple < 1 or (chunk is not None and chunk < 1):
        raise ValueError(
            "generate: expected multiple and chunk of at least 1, got "
            f"multiple={multiple}, chunk={chunk}"
        )
    return int(np.lcm(multiple, chunk or 1))
