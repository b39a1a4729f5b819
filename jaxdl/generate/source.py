"""What an encoder-decoder reads first: afterwards it is a model of its text alone."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdl.generate.prompts import right_padded
from jaxdl.nn.routing import keywords


class Conditioned(NamedTuple):
    """A model and params as every function here takes them; the source is in params."""

    model: Any
    params: Any


def conditioned(
    model: Any, params: Any, source: Any, *, mask: Any = None, multiple: int = 1
) -> Conditioned:
    """Encodes a source once, to be handed to `generate` or any other function here.

    source: rows of token ids, of any lengths, or an array as the encoder reads it: ids
    [batch, seq] with a `mask`, False where they are padding, or the features of sounds.
    multiple: of it rows of ids are padded to a width, so that fewer shapes are
    compiled.
    model: has `encode(params, source)`, `remember(params, memory)`, and the two halves
    of its decoder, `hidden(params, tokens, *, memory, cache, positions)` and `logits`,
    with an `init_cache(batch, slots, dtype, chunk=)`, such as `models.T5`. The first
    two are given the mask if there is one.

    One program encodes; it is compiled once for each shape. The prompts are then what
    the decoder starts with, a row for each of the source; where there are n times as
    many, n in turn read the same source.

    >>> summarise = conditioned(t5, params, articles)  # doctest: +SKIP
    >>> generate(*summarise, [[0]] * len(articles), max_new=60, eos=1)  # doctest: +SKIP
    """
    if not hasattr(source, "dtype"):
        if mask is not None:
            raise TypeError(
                "conditioned: expected no mask for rows, which have lengths"
            )
        source, mask = right_padded(source, multiple=multiple)
    memory = _encode(params, source, mask, model=model)
    return Conditioned(Reader(model), {"model": params, "memory": memory})


@dataclasses.dataclass(frozen=True)
class Reader:
    """The decoder of a model, as a language model whose params hold what it reads."""

    model: Any

    def __call__(self, params, tokens, *, cache, positions) -> tuple[jax.Array, Any]:
        x, cache = self.hidden(params, tokens, cache=cache, positions=positions)
        return self.logits(params, x), cache

    def hidden(self, params, tokens, *, cache, positions) -> tuple[jax.Array, Any]:
        """What `logits` reads, and the cache."""
        given = {"memory": params["memory"], "cache": cache, "positions": positions}
        given |= _without_dropout(self.model.hidden)
        return self.model.hidden(params["model"], tokens, **given)

    def logits(self, params, hidden) -> jax.Array:
        """The scores of every token."""
        return self.model.logits(params["model"], hidden)

    def init_cache(
        self, batch: int, slots: int, dtype: Any = jnp.float32, *, chunk: Any = None
    ) -> Any:
        """An empty cache of the decoder alone: what it reads is in params."""
        return self.model.init_cache(batch, slots, dtype, chunk=chunk)


@functools.partial(jax.jit, static_argnames="model")
def _encode(params, source, mask, *, model):
    given = {} if mask is None else {"mask": mask}
    memory = model.encode(params, source, **given, **_without_dropout(model.encode))
    return model.remember(params, memory, **given)


def _without_dropout(function: Any) -> dict[str, None]:
    return {"key": None} if "key" in keywords(function) else {}
