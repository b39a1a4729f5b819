"""Biases of attention scores by distance, for the keyword `bias` of `Attention`.

Each is called with the positions of queries and keys, [seq] or [batch, seq], and gives
[heads, query, key] or [batch, heads, query, key]. A model computes it once and hands it
to all of its layers, or one to each.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from jaxdl.core import init as initializers
from jaxdl.core.fields import Size
from jaxdl.core.module import Module
from jaxdl.core.naming import expect
from jaxdl.core.param import Param


class ALiBi(Module):
    """Lowers each score by a slope times the distance: [..., heads, query, key].

    The slopes are 2 ** (-8 i / num_heads) for head i from 1 on, and for a number of
    heads that is no power of two those of the paper's code (Press et al. 2021,
    arXiv:2108.12409). There is nothing to learn.
    """

    num_heads: Size

    def slopes(self) -> np.ndarray:
        """One slope for each head: [heads]."""
        power = 2 ** math.floor(math.log2(self.num_heads))
        slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
        # The further heads take every other slope of twice as many.
        finer = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1, 2) / (2 * power))
        return np.concatenate([slopes, finer[: self.num_heads - power]])

    def __call__(
        self, params, queries: Int[Array, "... query"], keys: Int[Array, "... key"]
    ) -> Float[Array, "... heads query key"]:
        distance = jnp.abs(_distance(queries, keys)).astype(jnp.float32)
        slopes = jnp.asarray(self.slopes(), jnp.float32)[:, None, None]
        return -slopes * distance[..., None, :, :]


class RelativeBias(Module):
    """A learned number for each head and range of distances: [..., heads, query, key].

    Half of the buckets are single distances, the rest grow logarithmically up to
    `max_distance`; `bidirectional` gives the keys after the query buckets of their own,
    otherwise they share that of distance 0 (Raffel et al. 2019, arXiv:1910.10683; T5's
    code). T5 computes it once and uses it in every layer, with `scale=1` attention.
    """

    num_heads: Size
    num_buckets: Size = 32
    max_distance: Size = 128
    bidirectional: bool = True

    def __post_init__(self):
        exact = self.num_buckets // (4 if self.bidirectional else 2)
        if exact < 1 or self.max_distance <= exact:
            raise ValueError(
                f"RelativeBias: expected max_distance above {exact} for num_buckets="
                f"{self.num_buckets}, got {self.max_distance}"
            )

    def spec(self):
        shape = (self.num_buckets, self.num_heads)
        init, axes = initializers.normal(0.02), (None, "heads")
        return {"embedding": Param(shape, init, axes, role="embedding")}

    def __call__(
        self, params, queries: Int[Array, "... query"], keys: Int[Array, "... key"]
    ) -> Float[Array, "... heads query key"]:
        buckets = self.bucket(-_distance(queries, keys))
        return jnp.moveaxis(params["embedding"][buckets], -1, -3)

    def bucket(self, offset: Int[Array, "..."]) -> Int[Array, "..."]:
        """The bucket of each offset, key position minus query position."""
        if self.bidirectional:
            start = jnp.where(offset > 0, self.num_buckets // 2, 0)
            distance = jnp.abs(offset)
        else:
            start, distance = 0, jnp.maximum(-offset, 0)
        # A table, because the logarithms of devices differ in the last digit.
        return (
            start + jnp.asarray(self._table())[jnp.minimum(distance, self.max_distance)]
        )

    def _table(self) -> np.ndarray:
        """The bucket of every distance up to max_distance."""
        num = self.num_buckets // 2 if self.bidirectional else self.num_buckets
        exact = num // 2
        distance = np.arange(self.max_distance + 1)
        octaves = np.log(np.maximum(distance, exact).astype(np.float32) / exact)
        span = np.float32(math.log(self.max_distance / exact))
        far = exact + (octaves / span * (num - exact)).astype(np.int32)
        return np.where(distance < exact, distance, np.minimum(far, num - 1))


def _distance(queries: jax.Array, keys: jax.Array) -> jax.Array:
    """Query position minus key position: [..., query, key]."""
    for name, positions in (("query", queries), ("key", keys)):
        integer = jnp.issubdtype(positions.dtype, jnp.integer)
        fits = integer and positions.ndim in (1, 2)
        expect(fits, f"integer {name} positions [seq] or [batch, seq]", positions)
    return queries[..., :, None] - keys[..., None, :]
