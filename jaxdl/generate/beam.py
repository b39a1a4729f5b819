"""Beam search: the likeliest continuations, several of them kept at a time."""

from collections.abc import Iterable
import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.generate import caches
from jaxdl.generate.contract import score
from jaxdl.generate.loop import Plan, multiple_of, plan_of
from jaxdl.generate.prefix import Prefix, prefill
from jaxdl.generate.prompts import left_padded
from jaxdl.generate.sampling import History, Sampler, apply, chain

# What stands for "not there"; far below any sum of log-probabilities.
NOWHERE = -1e9


class Beams(NamedTuple):
    """The best continuations of each prompt, the best first.

    tokens: the new ones alone; `pad` after the end.
    lengths: how many there are, the one that ended it included; 0 for no continuation.
    scores: the sum of log-probabilities / length ** length_penalty; NaN for none.
    log_probs: of each token under the model itself; 0 after the end.
    """

    tokens: Int[Array, "batch beams max_new"]
    lengths: Int[Array, "batch beams"]
    scores: Float[Array, "batch beams"]
    log_probs: Float[Array, "batch beams max_new"]


@dataclasses.dataclass(frozen=True)
class Search:
    """What is static of a search."""

    plan: Plan
    beams: int
    length_penalty: float
    early_stopping: bool | str
    dtype: Any
    chunk: int


class Running(NamedTuple):
    """The search under way; `tokens` hold the prompts, `best` what has ended."""

    cache: Any
    tokens: Int[Array, "batch beams total"]
    real: Bool[Array, "batch 1 total"]
    log_probs: Float[Array, "batch beams max_new"]
    scores: Float[Array, "batch beams"]
    best: Beams
    ended: Bool[Array, "batch beams"]
    improvable: Bool[Array, " batch"]
    positions: Int[Array, " batch"]
    step: Int[Array, ""]


def beam_search(
    model: Any,
    params: Any,
    prompts: Any,
    *,
    max_new: int,
    beams: int = 4,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    sampler: Sampler = chain(),  # noqa: B008
    eos: int | Iterable[int] = (),
    pad: int = 0,
    prefix: Prefix | None = None,
    cache_dtype: Any = jnp.float32,
    chunk: int | None = None,
    multiple: int = 1,
) -> Beams:
    """Continues each prompt by the `beams` likeliest continuations that it finds.

    early_stopping: True ends a row's search once so many have ended; False when the
    running one, ended now, would be no better than those; "never" when it never can be.
    sampler: changes the log-probabilities that are summed (a penalty, `constrain`).

    Chooses what `transformers` does. Other arguments are those of `generate`. Raises
    ValueError for beams that are too few or another early_stopping.
    """
    if beams < 1:
        raise ValueError(f"beam_search: expected beams of at least 1, got {beams}")
    if early_stopping not in (True, False, "never"):
        raise ValueError(
            "beam_search: expected early_stopping True, False or 'never', got "
            f"{early_stopping!r}"
        )
    given = left_padded(prompts, multiple=multiple_of(multiple, chunk), pad=pad)
    plan = plan_of(model, given, max_new, sampler, None, eos, pad)
    search = Search(
        plan, beams, length_penalty, early_stopping, jnp.dtype(cache_dtype),
        chunk or plan.width,
    )  # fmt: skip
    run = _start(params, given.tokens, given.positions, prefix, search=search)
    return _finish(params, run, search=search).best


@functools.partial(jax.jit, static_argnames="search")
def _start(params, tokens, positions, prefix, *, search: Search) -> Running:
    plan, beams = search.plan, search.beams
    batch = tokens.shape[0]
    logits, cache, following = prefill(
        plan.model, params, tokens, positions, prefix,
        room=plan.max_new, dtype=search.dtype, chunk=search.chunk, pieces=search.chunk,
    )  # fmt: skip
    rows = jnp.repeat(jnp.arange(batch), beams)
    real = (positions >= 0)[:, None]
    new = (batch, beams, plan.max_new)
    best = Beams(
        tokens=jnp.full(new, plan.pad, jnp.int32),
        lengths=jnp.zeros(new[:2], jnp.int32),
        scores=jnp.full(new[:2], NOWHERE),
        log_probs=jnp.zeros(new),
    )
    whole = jnp.broadcast_to(tokens[:, None], (batch, beams, plan.width))
    run = Running(
        cache=caches.take_rows(cache, _axes(search), rows),
        tokens=jnp.concatenate([whole, best.tokens], axis=-1),
        real=jnp.concatenate([real, jnp.zeros((batch, 1, plan.max_new), bool)], -1),
        log_probs=jnp.zeros(new),
        # At first all are the same one: only the first counts.
        scores=jnp.zeros(new[:2]).at[:, 1:].set(NOWHERE),
        best=best,
        ended=jnp.zeros(new[:2], bool),
        improvable=jnp.ones(batch, bool),
        positions=following,
        step=jnp.zeros((), jnp.int32),
    )  # fmt: skip
    return _advance(search, run, logits[rows])


@functools.partial(jax.jit, static_argnames="search", donate_argnames="run")
def _finish(params, run: Running, *, search: Search) -> Running:
    plan = search.plan

    def more(run: Running):
        open_ = run.improvable.any() & (run.step < plan.max_new)
        if search.early_stopping is True:
            open_ &= ~run.ended.all()
        return open_

    def step(run: Running) -> Running:
        column = plan.width + run.step - 1
        last = jax.lax.dynamic_slice_in_dim(run.tokens, column, 1, axis=2)
        at = jnp.repeat(run.positions - 1, search.beams)[:, None]
        logits, cache = score(plan.model, params, last.reshape(-1, 1), run.cache, at)
        return _advance(search, run._replace(cache=cache), logits[:, -1])

    run = jax.lax.while_loop(more, step, run)
    best = run.best._replace(
        lengths=jnp.where(run.ended, run.best.lengths, 0),
        scores=jnp.where(run.ended, run.best.scores, jnp.nan),
    )
    return run._replace(best=best)


def _advance(search: Search, run: Running, logits) -> Running:
    """One more token: the candidates, which of them go on, and which have ended."""
    plan, beams = search.plan, search.beams
    batch, vocab = run.scores.shape[0], logits.shape[-1]
    every = jax.nn.log_softmax(logits, axis=-1)
    total = run.tokens.shape[-1]
    real = jnp.broadcast_to(run.real, run.tokens.shape)
    history = History(
        run.tokens.reshape(-1, total), real.reshape(-1, total), plan.width
    )
    allowed = apply(plan.sampler, every, history).reshape(batch, beams, vocab)
    sums = (run.scores[:, :, None] + allowed).reshape(batch, -1)
    # So many that enough go on even if the best of them end.
    number = min(max(2, 1 + len(plan.eos)) * beams, beams * vocab)
    sums, chosen = jax.lax.top_k(sums, number)
    parent, token = chosen // vocab, (chosen % vocab).astype(jnp.int32)
    here = jnp.take_along_axis(every.reshape(batch, -1), chosen, axis=1)
    tokens = _of(run.tokens, parent).at[:, :, plan.width + run.step].set(token)
    log_probs = _of(run.log_probs, parent).at[:, :, run.step].set(here)
    ends = jnp.isin(token, jnp.array(plan.eos, jnp.int32))
    ends |= run.step + 1 == plan.max_new
    run = _collect(search, run, tokens, log_probs, sums, ends)
    scores, order = jax.lax.top_k(jnp.where(ends, sums + NOWHERE, sums), beams)
    rows = jnp.arange(batch)[:, None] * beams + _of(parent, order)
    run = run._replace(
        cache=caches.take_rows(run.cache, _axes(search), rows.reshape(-1)),
        tokens=_of(tokens, order),
        real=run.real.at[:, :, plan.width + run.step].set(True),
        log_probs=_of(log_probs, order),
        scores=scores,
        positions=run.positions + 1,
        step=run.step + 1,
    )
    return run._replace(improvable=run.improvable & _can_improve(search, run))


def _collect(search: Search, run: Running, tokens, log_probs, sums, ends) -> Running:
    """Takes those that end now among the best that have ended."""
    plan, beams = search.plan, search.beams
    # Those behind the first `beams` are there only so that enough go on.
    ends &= jnp.arange(ends.shape[1]) < beams
    scores = sums / (run.step + 1.0) ** search.length_penalty
    closed = ~run.improvable[:, None]
    if search.early_stopping is True:
        closed |= run.ended.all(-1, keepdims=True)
    scores = scores + NOWHERE * closed + NOWHERE * ~ends
    lengths = jnp.broadcast_to(run.step + 1, scores.shape)
    new = Beams(tokens[:, :, plan.width :], lengths, scores, log_probs)
    both = [jnp.concatenate(pair, axis=1) for pair in zip(run.best, new, strict=True)]
    order = jax.lax.top_k(both[2], beams)[1]
    ended = _of(jnp.concatenate([run.ended, ends], axis=1), order)
    return run._replace(best=Beams(*(_of(part, order) for part in both)), ended=ended)


def _can_improve(search: Search, run: Running) -> jax.Array:
    """Whether a running one may yet be better than the worst that has ended."""
    length = run.step.astype(jnp.float32)
    if search.early_stopping == "never" and search.length_penalty > 0:
        length = float(search.plan.max_new)
    possible = run.scores[:, :1] / length**search.length_penalty
    worst = run.best.scores.min(-1, keepdims=True)
    return (possible > jnp.where(run.ended, worst, NOWHERE)).any(-1)


def _axes(search: Search) -> Any:
    return caches.row_axes(search.plan.model, search.plan.width, search.dtype, None)


def _of(array: jax.Array, index: jax.Array) -> jax.Array:
    """Those of [batch, beams, ...] that index [batch, n] names: [batch, n, ...]."""
    return jax.vmap(lambda row, at: row[at])(array, index)
