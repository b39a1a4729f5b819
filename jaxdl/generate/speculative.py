"""Speculative decoding: a small model drafts, the large one checks several at once."""

from collections.abc import Iterable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.core.keys import MISSING, OptionalKey, split
from jaxdl.generate import caches
from jaxdl.generate.contract import score
from jaxdl.generate.loop import Plan, choose, log_prob, multiple_of, plan_of
from jaxdl.generate.prefix import prefill
from jaxdl.generate.prompts import left_padded
from jaxdl.generate.sampling import History, Sampler, apply, greedy


class Speculated(NamedTuple):
    """What was generated, as in `Generated`, and how well the draft did.

    rounds: how often the large model ran after reading the prompts.
    accepted: how many tokens of each row are the draft's.
    """

    tokens: Int[Array, "batch max_new"]
    lengths: Int[Array, " batch"]
    log_probs: Float[Array, "batch max_new"]
    ended: Bool[Array, " batch"]
    rounds: Int[Array, ""]
    accepted: Int[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """What is static: the large model's plan, the draft, and how far it runs ahead."""

    plan: Plan
    draft: Any
    ahead: int


class Rounds(NamedTuple):
    """Generation under way, as `Loop`; rows are of different lengths here."""

    cache: Any
    draft_cache: Any
    tokens: Int[Array, "batch total"]
    real: Bool[Array, "batch total"]
    log_probs: Float[Array, "batch more"]
    positions: Int[Array, " batch"]
    lengths: Int[Array, " batch"]
    ended: Bool[Array, " batch"]
    done: Bool[Array, " batch"]
    rounds: Int[Array, ""]
    accepted: Int[Array, " batch"]


def speculate(
    model: Any,
    params: Any,
    draft: Any,
    draft_params: Any,
    prompts: Any,
    *,
    max_new: int,
    ahead: int = 4,
    sampler: Sampler = greedy,
    key: OptionalKey = MISSING,
    eos: int | Iterable[int] = (),
    pad: int = 0,
    cache_dtype: Any = jnp.float32,
    multiple: int = 1,
) -> Speculated:
    """As `generate`, in fewer runs of the model: a draft runs `ahead` tokens before it.

    What the draft says is accepted so often, and replaced so, that tokens have the
    distribution that the model alone gives them under this sampler (Leviathan et al.
    2023, arXiv:2211.17192); without a draw they are the same tokens. Both models share
    a vocabulary, and have a cache that can forget.

    Raises ValueError for unequal vocabularies or `ahead` below 1.
    """
    if ahead < 1:
        raise ValueError(f"speculate: expected ahead of at least 1, got {ahead}")
    given = left_padded(prompts, multiple=multiple_of(multiple, None), pad=pad)
    plan = plan_of(model, given, max_new, sampler, key, eos, pad)
    pair = Pair(plan, draft, ahead)
    key = key if plan.draws else None
    both = (params, draft_params)
    dtype = jnp.dtype(cache_dtype)
    run = _start(both, given.tokens, given.positions, key, pair=pair, dtype=dtype)
    run = _finish(both, run, key, pair=pair)
    return Speculated(
        tokens=run.tokens[:, plan.width : plan.width + max_new],
        lengths=run.lengths,
        log_probs=run.log_probs[:, :max_new],
        ended=run.ended,
        rounds=run.rounds,
        accepted=run.accepted,
    )


@functools.partial(jax.jit, static_argnames=("pair", "dtype"))
def _start(both, tokens, positions, key, *, pair: Pair, dtype) -> Rounds:
    plan, batch = pair.plan, tokens.shape[0]
    # A round takes as many slots as the luckiest row accepts tokens.
    room = plan.max_new * min(batch, pair.ahead + 1) + pair.ahead + 1
    # Rows that give back more leave holes, and a layer with a window would write over
    # what it still sees: it keeps everything, unless there is one row.
    chunk = max(plan.width, pair.ahead + 1) if batch == 1 else None
    sizes = {"room": room, "dtype": dtype, "chunk": chunk}
    logits, cache, following = prefill(
        plan.model, both[0], tokens, positions, None, **sizes
    )
    other, draft_cache, _ = prefill(
        pair.draft, both[1], tokens, positions, None, **sizes
    )
    if other.shape != logits.shape:
        raise ValueError(
            f"speculate: expected a draft with the model's vocabulary of "
            f"{logits.shape[-1]}, got {other.shape[-1]}"
        )
    total = (batch, plan.max_new + pair.ahead + 1)
    tokens = jnp.concatenate([tokens, jnp.full(total, plan.pad, jnp.int32)], axis=1)
    real = jnp.concatenate([positions >= 0, jnp.zeros(total, bool)], axis=1)
    if key is not None:
        key = jax.random.fold_in(key, 0)
    scores = apply(plan.sampler, logits, History(tokens, real, plan.width))
    token, stuck = choose(scores, key)
    here = log_prob(logits, token, stuck)
    token = jnp.where(stuck, plan.pad, token)
    ended = ~stuck & jnp.isin(token, jnp.array(plan.eos, jnp.int32))
    lengths = (~stuck).astype(jnp.int32)
    return Rounds(
        cache=cache,
        draft_cache=draft_cache,
        tokens=tokens.at[:, plan.width].set(token),
        real=real.at[:, plan.width].set(~stuck),
        log_probs=jnp.zeros(total).at[:, 0].set(here),
        positions=following + lengths,
        lengths=lengths,
        ended=ended,
        done=ended | stuck | (lengths >= plan.max_new),
        rounds=jnp.zeros((), jnp.int32),
        accepted=jnp.zeros(batch, jnp.int32),
    )


@functools.partial(jax.jit, static_argnames="pair", donate_argnames="run")
def _finish(both, run: Rounds, key, *, pair: Pair) -> Rounds:
    def step(run: Rounds) -> Rounds:
        keys = split(None, 3)
        if key is not None:
            keys = split(jax.random.fold_in(key, run.rounds + 1), 3)
        cache, words, guesses, fine = _draft(pair, both[1], run, keys[0])
        run = run._replace(draft_cache=cache)
        logits, cache = score(
            pair.plan.model, both[0], words, run.cache, _places(pair, run),
            last=pair.ahead + 1,
        )  # fmt: skip
        chances = _chances(pair, run, words, logits)
        taken = _taken(chances, guesses, words[:, 1:], fine, keys[1])
        rest = _rest(chances, guesses, taken)
        run = run._replace(cache=cache)
        return _write(pair, run, words, logits, taken, *choose(rest, keys[2]))

    return jax.lax.while_loop(lambda run: ~run.done.all(), step, run)


def _draft(pair: Pair, params, run: Rounds, key):
    """The draft's cache and tokens, [batch, ahead + 1] from the last one on.

    Also the chances [batch, ahead, vocab] that it gave, and where it had any.
    """
    plan, rows = pair.plan, jnp.arange(run.tokens.shape[0])
    last = plan.width + run.lengths - 1
    places = _places(pair, run)

    def step(carry, number):
        cache, tokens, real = carry
        token = tokens[rows, last + number][:, None]
        at = jnp.take(places, number, axis=1)[:, None]
        logits, cache = score(pair.draft, params, token, cache, at)
        scores = apply(plan.sampler, logits[:, -1], History(tokens, real, plan.width))
        own = None if key is None else jax.random.fold_in(key, number)
        new, stuck = choose(scores, own)
        tokens = tokens.at[rows, last + number + 1].set(new)
        real = real.at[rows, last + number + 1].set(True)
        return (cache, tokens, real), (new, _probs(plan, scores), ~stuck)

    # Once more than it drafts, so that its cache holds what the model's does.
    carry, (new, guesses, fine) = jax.lax.scan(
        step, (run.draft_cache, run.tokens, run.real), jnp.arange(pair.ahead + 1)
    )
    first = run.tokens[rows, last]
    words = jnp.concatenate([first[:, None], new[:-1].T], axis=1)
    guesses = jnp.where(fine[..., None], guesses, 0)
    return carry[0], words, guesses[:-1].swapaxes(0, 1), fine[:-1].T


def _places(pair: Pair, run: Rounds) -> jax.Array:
    """Where the last token and those drafted stand: [batch, ahead + 1]."""
    places = (run.positions - 1)[:, None] + jnp.arange(pair.ahead + 1)
    return jnp.where(run.done[:, None], -1, places)


def _chances(pair: Pair, run: Rounds, words, logits) -> jax.Array:
    """What the model gives each token after each word: [batch, ahead + 1, vocab]."""
    plan, rows = pair.plan, jnp.arange(words.shape[0])[:, None]
    start = (plan.width + run.lengths)[:, None]
    tokens = run.tokens.at[rows, start + jnp.arange(pair.ahead)].set(words[:, 1:])
    column = jnp.arange(tokens.shape[1])

    def one(logits, number):
        drafted = (column >= start) & (column < start + number)
        history = History(tokens, run.real | drafted, plan.width)
        return _probs(plan, apply(plan.sampler, logits, history))

    numbers = jnp.arange(pair.ahead + 1)
    return jax.vmap(one, in_axes=(1, 0), out_axes=1)(logits, numbers)


def _taken(chances, guesses, drafted, fine, key) -> jax.Array:
    """How many of the drafted tokens [batch, ahead] are accepted: int [batch]."""

    def of(probs):
        return jnp.take_along_axis(probs, drafted[..., None], axis=-1)[..., 0]

    bar = of(guesses)
    if key is not None:
        bar = bar * jax.random.uniform(key, bar.shape)
    # Without a draw both are 0 or 1, and equal where the two agree.
    agrees = bar < of(chances[:, :-1]) if key is not None else of(chances[:, :-1]) > 0
    return jnp.cumprod(agrees & fine, axis=1).sum(1)


def _rest(chances, guesses, taken) -> jax.Array:
    """Log-weights [batch, vocab] of the token after the accepted ones."""
    none = jnp.zeros_like(guesses[:, :1])
    guesses = jnp.concatenate([guesses, none], axis=1)

    def at(probs):
        return jnp.take_along_axis(probs, taken[:, None, None], axis=1)[:, 0]

    model, draft = at(chances), at(guesses)
    left = jnp.maximum(model - draft, 0)
    # Two equal distributions may leave nothing but rounding.
    left = jnp.where(left.sum(-1, keepdims=True) > 0, left, model)
    return jnp.log(left)


def _write(pair: Pair, run: Rounds, words, logits, taken, extra, stuck) -> Rounds:
    """Writes down what was accepted and the token after it; forgets the rest."""
    plan, ahead = pair.plan, pair.ahead
    rows, number = jnp.arange(words.shape[0]), jnp.arange(ahead + 1)
    padded = jnp.concatenate([words[:, 1:], words[:, :1]], axis=1)
    tokens = padded.at[rows, taken].set(extra)
    hits = jnp.isin(tokens, jnp.array(plan.eos, jnp.int32))
    hits &= (number < taken[:, None]) | ((number == taken[:, None]) & ~stuck[:, None])
    until_eos = jnp.where(hits.any(1), hits.argmax(1) + 1, ahead + 2)
    here = taken + ~stuck
    count = jnp.minimum(jnp.minimum(here, until_eos), plan.max_new - run.lengths)
    count = jnp.where(run.done, 0, count)
    ended = ~run.done & (until_eos <= count)
    lengths = run.lengths + count
    halted = stuck & (count == taken) & ~ended & (lengths < plan.max_new) & ~run.done
    valid = number < count[:, None]
    ends = number == count[:, None]
    log_probs = log_prob(logits, tokens, ends & halted[:, None])
    log_probs = jnp.where(valid | (ends & halted[:, None]), log_probs, 0)
    # What belongs to a row that is done is left alone.
    far = run.tokens.shape[1]
    at = jnp.where(run.done[:, None], far, run.lengths[:, None] + number)
    column = (rows[:, None], at + plan.width)
    new = jnp.where(valid, tokens, plan.pad)
    return run._replace(
        cache=caches.forget(run.cache, ahead + 1, count),
        draft_cache=caches.forget(run.draft_cache, ahead + 1, count),
        tokens=run.tokens.at[column].set(new, mode="drop"),
        real=run.real.at[column].set(valid, mode="drop"),
        log_probs=run.log_probs.at[rows[:, None], at].set(log_probs, mode="drop"),
        positions=run.positions + count,
        lengths=lengths,
        ended=run.ended | ended,
        done=run.done | ended | halted | (lengths >= plan.max_new),
        rounds=run.rounds + 1,
        accepted=run.accepted + jnp.minimum(taken, count),
    )


def _probs(plan: Plan, scores: jax.Array) -> jax.Array:
    """The distribution that tokens are drawn from; of one token without a draw."""
    if plan.draws:
        return jax.nn.softmax(scores, axis=-1)
    best = jax.nn.one_hot(scores.argmax(-1), scores.shape[-1])
    stuck = ~jnp.isfinite(scores.max(-1, keepdims=True))
    return jnp.where(stuck, jnp.nan, best)
