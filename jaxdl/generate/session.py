"""A conversation that goes on: what the cache holds already is not read again."""

from collections.abc import Iterable, Iterator, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.generate import caches
from jaxdl.generate.contract import score_at
from jaxdl.generate.loop import Loop, Plan, first, plan_of
from jaxdl.generate.prompts import left_padded
from jaxdl.generate.sampling import Sampler, greedy
from jaxdl.generate.streaming import follow

# New tokens are read in pieces of these widths, so that few shapes are compiled.
PIECES = (128, 16)


class Session:
    """One row of text and the cache that holds it, for as many replies as fit.

    Every reply is given the whole text; what it shares with the last from the start on
    is in the cache already. Shapes do not depend on lengths: two programs read, one
    writes. A state that cannot be taken back (that of a recurrence) is built anew.

    slots: the most tokens there may be, those of the replies included.
    """

    def __init__(
        self, model: Any, params: Any, *, slots: int, cache_dtype: Any = jnp.float32
    ):
        self.model, self.params, self.slots = model, params, slots
        self.dtype = jnp.dtype(cache_dtype)
        self.tokens: list[int] = []  # those that the cache holds
        self.cache: Any = None

    def reply(
        self,
        tokens: Sequence[int],
        *,
        max_new: int,
        every: int = 8,
        sampler: Sampler = greedy,
        key: OptionalKey = MISSING,
        eos: int | Iterable[int] = (),
    ) -> Iterator[list[int]]:
        """Continues all these tokens; yields new ones as `stream` does.

        It may be left at any time, by an exception too: what was yielded is known.
        Raises ValueError where tokens and max_new exceed the slots.
        """
        tokens = [int(token) for token in tokens]
        if len(tokens) + max_new > self.slots:
            raise ValueError(
                f"Session: expected at most {self.slots} tokens, its slots, got "
                f"{len(tokens)} and max_new={max_new}"
            )
        given = left_padded([tokens, [0] * self.slots])
        plan = plan_of(self.model, given, max_new, sampler, key, eos, 0)
        key = key if plan.draws else None
        history = given.tokens[:1], given.positions[:1]
        logits = self._read(tokens)
        # From here on the loop has the cache, until it has said something.
        cache, self.cache, self.tokens = self.cache, None, []
        begun = _begin(*history, logits, cache, key, plan=plan)
        said, held = list[int](), (None, list[int]())
        for new, loop in follow(plan, self.params, begun, key, every):
            said += new
            # The last token is said and not read yet.
            held = loop.cache, tokens + said[:-1]
            self.cache, self.tokens = held
            if new:
                yield new
            self.cache, self.tokens = None, []  # the next round is given them
        self.cache, self.tokens = held

    def _read(self, tokens: list[int]) -> jax.Array:
        """Brings the cache to these tokens; the logits [1, vocab] after them."""
        known = self._rewind(tokens)
        logits = None
        while known < len(tokens):
            left = len(tokens) - known
            width = next((w for w in PIECES if left >= w), PIECES[-1])
            piece = np.zeros((1, width), np.int32)
            number = min(left, width)
            piece[0, :number] = tokens[known : known + number]
            cache, self.cache, self.tokens = self.cache, None, []
            logits, self.cache = _piece(
                self.params, piece, cache, np.int32(known), np.int32(number),
                model=self.model,
            )  # fmt: skip
            known += number
            self.tokens = tokens[:known]
        if logits is None:
            raise ValueError("Session: expected at least one token, got none")
        return logits

    def _rewind(self, tokens: list[int]) -> int:
        """Takes back what is not in tokens; how many of them the cache still holds."""
        pairs = zip(self.tokens, tokens[:-1], strict=False)
        different = (n for n, (a, b) in enumerate(pairs) if a != b)
        shared = next(different, min(len(self.tokens), len(tokens) - 1))
        if self.cache is not None and shared < len(self.tokens):
            self.cache = caches.rewound(self.cache, shared)
        if self.cache is None:
            # Room for a piece that is not full; windows too keep everything.
            room, shared = self.slots + PIECES[0], 0
            self.cache = caches.empty(self.model, 1, room, self.dtype, None)
        self.tokens = tokens[:shared]
        return shared


@functools.partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _piece(params, tokens, cache, known, number, *, model):
    """Reads the first `number` of these tokens after the `known`."""
    order = jnp.arange(tokens.shape[1])
    at = jnp.where(order < number, known + order, -1)[None]
    logits, cache = score_at(model, params, tokens, cache, at, number - 1)
    return logits, caches.shortened(cache, known + number)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="cache")
def _begin(tokens, positions, logits, cache, key, *, plan: Plan) -> Loop:
    return first(plan, tokens, positions >= 0, positions[:, -1] + 1, logits, cache, key)
