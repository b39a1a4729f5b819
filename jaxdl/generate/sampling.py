"""Samplers: functions logits -> logits that leave what may be chosen, and compose.

Each is a hashable value, so that equal ones share a compiled program. A function of
one's own serves as well, `logits -> logits` on float32 [batch, vocab]; where it needs
what was said before, it asks for it by the keyword `history`.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxdl.nn.routing import keywords

Sampler = Callable[..., jax.Array]


class History(NamedTuple):
    """What each row has said so far; a slot of `tokens` counts where `real` is True.

    The first `width` columns are the prompt, padded on the left.
    """

    tokens: Int[Array, "batch total"]
    real: Bool[Array, "batch total"]
    width: int

    @property
    def counts(self) -> Int[Array, " batch"]:
        """How many tokens each row has generated."""
        return self.real[:, self.width :].sum(-1)

    @property
    def generated(self) -> Int[Array, "batch max_new"]:
        """What each row has generated: its first `counts` columns."""
        return self.tokens[:, self.width :]

    def seen(self, vocab: int) -> Bool[Array, "batch vocab"]:
        """Which tokens a row has in it, those of the prompt included."""
        rows = jnp.arange(self.tokens.shape[0])[:, None]
        # Padding is written past the end, where it is dropped.
        tokens = jnp.where(self.real, self.tokens, vocab)
        none = jnp.zeros((self.tokens.shape[0], vocab), bool)
        return none.at[rows, tokens].set(True, mode="drop")


def apply(sampler: Sampler, logits: jax.Array, history: History | None) -> jax.Array:
    """Calls a sampler, with the history if it asks for that."""
    if "history" in keywords(sampler):
        return sampler(logits, history=history)
    return sampler(logits)


@dataclasses.dataclass(frozen=True)
class temperature:
    """Divides the logits: below 1 the likely become likelier, above 1 less so."""

    value: float

    def __post_init__(self):
        _check(self.value > 0, self, "a value above 0; greedy is what 0 would be")

    def __call__(self, logits: Float[Array, "batch vocab"]) -> jax.Array:
        return logits / self.value


@dataclasses.dataclass(frozen=True)
class top_k:
    """Leaves the k likeliest tokens, and what ties with the last (Fan et al. 2018)."""

    k: int

    def __post_init__(self):
        _check(self.k >= 1, self, "a k of at least 1")

    def __call__(self, logits: Float[Array, "batch vocab"]) -> jax.Array:
        best = jax.lax.top_k(logits, min(self.k, logits.shape[-1]))[0]
        return _keep(logits, logits >= best[..., -1:])


@dataclasses.dataclass(frozen=True)
class top_p:
    """Leaves the likeliest tokens that together have probability p, and ties.

    A token stays if those likelier than it have less than p (Holtzman et al. 2020,
    arXiv:1904.09751).
    """

    p: float

    def __post_init__(self):
        _check(0 < self.p <= 1, self, "a p above 0 and at most 1")

    def __call__(self, logits: Float[Array, "batch vocab"]) -> jax.Array:
        # The bits of floats that are not negative are ordered as they are. So 31
        # halvings find the least probability that stays; sorting would cost more.
        probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

        def halve(_, bounds):
            low, high = bounds
            middle = low + (high - low) // 2
            above = jnp.where(bits > middle[..., None], probs, 0).sum(-1)
            enough = above < self.p
            return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

        start = jnp.zeros(logits.shape[:-1], jnp.int32), bits.max(-1)
        least = jax.lax.fori_loop(0, 31, halve, start)[1]
        return _keep(logits, bits >= least[..., None])


@dataclasses.dataclass(frozen=True)
class min_p:
    """Leaves tokens with at least p times the probability of the likeliest.

    (Nguyen et al. 2024, arXiv:2407.01082.)
    """

    p: float

    def __post_init__(self):
        _check(0 < self.p <= 1, self, "a p above 0 and at most 1")

    def __call__(self, logits: Float[Array, "batch vocab"]) -> jax.Array:
        least = logits.max(-1, keepdims=True) + math.log(self.p)
        return _keep(logits, logits >= least)


@dataclasses.dataclass(frozen=True)
class repetition_penalty:
    """Makes less likely what a row has in it already, its prompt included.

    Logits above 0 are divided by the penalty, others multiplied (Keskar et al. 2019,
    arXiv:1909.05858, section 4.1).
    """

    penalty: float

    def __post_init__(self):
        _check(self.penalty > 0, self, "a penalty above 0, 1 for none")

    def __call__(self, logits: Float[Array, "batch vocab"], *, history: History):
        seen = history.seen(logits.shape[-1])
        less = jnp.where(logits < 0, logits * self.penalty, logits / self.penalty)
        return jnp.where(seen, less, logits)


@dataclasses.dataclass(frozen=True)
class constrain:
    """Leaves what a function of the history allows: `History -> bool [batch, vocab]`.

    Where it allows nothing a row ends, and the log-probability there is NaN.
    """

    allowed: Callable[[History], jax.Array]

    def __call__(self, logits: Float[Array, "batch vocab"], *, history: History):
        allowed = self.allowed(history)
        if allowed.dtype != bool or allowed.shape != logits.shape:
            raise ValueError(
                f"constrain: expected bool{list(logits.shape)} of the function, got "
                f"{allowed.dtype}{list(allowed.shape)}"
            )
        return _keep(logits, allowed)


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Leaves the likeliest token alone, the first of those that tie."""

    def __call__(self, logits: Float[Array, "batch vocab"]) -> jax.Array:
        best = logits.argmax(-1, keepdims=True)
        return _keep(logits, jnp.arange(logits.shape[-1]) == best)


greedy = Greedy()


@dataclasses.dataclass(frozen=True)
class Chain:
    """Applies samplers one after the other; `chain` makes it."""

    samplers: tuple[Sampler, ...]

    def __call__(
        self, logits: Float[Array, "batch vocab"], *, history: History | None = None
    ) -> jax.Array:
        return functools.reduce(
            lambda logits, sampler: apply(sampler, logits, history),
            self.samplers,
            logits,
        )


def chain(*samplers: Sampler) -> Chain:
    """The samplers one after the other, as one.

    >>> sampler = chain(temperature(0.7), top_p(0.9))
    >>> sampler == chain(temperature(0.7), top_p(0.9))
    True
    """
    return Chain(samplers)


def is_greedy(sampler: Sampler) -> bool:
    """Whether a sampler leaves one token, so that nothing is left to chance."""
    if isinstance(sampler, Chain):
        return any(map(is_greedy, sampler.samplers))
    return isinstance(sampler, Greedy)


def _keep(logits: jax.Array, kept: jax.Array) -> jax.Array:
    return jnp.where(kept, logits, -jnp.inf)


def _check(fits: bool, sampler: Any, wanted: str) -> None:
    if not fits:
        raise ValueError(f"expected {wanted}, got {sampler!r}")
