"""Tokens and text as they come, some at a time, for a terminal or a server."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdl.core.keys import MISSING, OptionalKey
from jaxdl.generate.loop import Loop, Plan, go_on, multiple_of, plan_of, start
from jaxdl.generate.prefix import Prefix
from jaxdl.generate.prompts import left_padded
from jaxdl.generate.sampling import Sampler, greedy


def stream(
    model: Any,
    params: Any,
    prompt: Iterable[int],
    *,
    max_new: int,
    every: int = 8,
    sampler: Sampler = greedy,
    key: OptionalKey = MISSING,
    eos: int | Iterable[int] = (),
    prefix: Prefix | None = None,
    cache_dtype: Any = jnp.float32,
    chunk: int | None = None,
    multiple: int = 1,
) -> Iterator[list[int]]:
    """Continues one prompt; yields its new tokens, `every` so many at a time.

    The tokens are those that `generate` gives, the one that ended it included; the
    first is yielded alone, as soon as the prompt is read. Arguments are those of
    `generate`. Whoever stops listening stops the model.
    """
    given = left_padded([np.asarray(prompt)], multiple=multiple_of(multiple, chunk))
    plan = plan_of(model, given, max_new, sampler, key, eos, 0)
    loop = start(plan, params, given, key, prefix, cache_dtype, chunk)
    for tokens, _ in follow(plan, params, loop, key, every):
        if tokens:
            yield tokens


def follow(
    plan: Plan, params: Any, loop: Loop, key: OptionalKey, every: int
) -> Iterator[tuple[list[int], Loop]]:
    """The new tokens of one row, and the loop that has said them, until it is done."""
    if every < 1:
        raise ValueError(f"stream: expected every of at least 1, got {every}")
    said = 0
    while True:
        length = int(loop.lengths[0])
        new = loop.tokens[0, plan.width + said : plan.width + length]
        finished = bool(loop.done[0]) or int(loop.step) >= plan.max_new
        yield np.asarray(new).tolist(), loop
        if finished:
            return
        said = length
        loop = go_on(plan, params, loop, key, every)


def text_of(tokenizer: Any, pieces: Iterable[list[int]]) -> Iterator[str]:
    """The text of tokens as they come, never half a character.

    tokenizer: has `stream()`, as `hub.Pretrained.tokenizer` has.

    >>> for text in text_of(tokenizer, stream(...)):  # doctest: +SKIP
    ...     print(text, end="", flush=True)
    """
    text = tokenizer.stream()
    for piece in pieces:
        new = "".join(text.push(token) for token in piece)
        if new:
            yield new
    rest = text.finish()
    if rest:
        yield rest
