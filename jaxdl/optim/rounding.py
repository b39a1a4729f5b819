"""bfloat16 without a bias: numbers are rounded up or down at random."""

from typing import Any, NamedTuple
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float
import numpy as np
import optax

from jaxdl.core import tree

PyTree = Any


def stochastic_rounding(
    optimizer: optax.GradientTransformation, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Trains bfloat16 parameters with an optimiser that sees float32.

    A nearest bfloat16 has 8 bits: an update below 1/512 of a parameter would be lost in
    every step. Here it moves the parameter to the next number with the probability that
    makes the mean right (Zamirai et al. 2020, arXiv:2010.06192). The optimiser, whole
    chain included, sees gradients and parameters as float32, and so is its state.
    `optax.apply_updates` with what `update` returns gives the rounded parameters.
    Leaves of other dtypes are updated as usual.

    The bits follow from the seed, the number of the step and the parameter's path.
    Raises ValueError where `update` is not given the params.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> StochasticRoundingState:
        key = jax.random.key(seed)
        return StochasticRoundingState(jnp.int32(0), key, inner.init(_wide(params)))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any):
        if params is None:
            raise ValueError("stochastic_rounding: expected update(..., params)")
        updates, inner_state = inner.update(
            _wide(updates), state.inner_state, _wide(params), **extra
        )
        key = jax.random.fold_in(state.key, state.count)

        def rounded(path, param, update):
            if param.dtype != jnp.bfloat16:
                return update
            old = param.astype(jnp.float32)
            new = round_stochastically(path_key(key, path), old + update)
            # What is added to a bfloat16 in float32 to make the other one.
            return new.astype(jnp.float32) - old

        updates = tree.map_with_path(rounded, params, updates)
        count = optax.safe_increment(state.count)
        return updates, StochasticRoundingState(count, state.key, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


class StochasticRoundingState(NamedTuple):
    """The number of steps done, the key of them all, and the optimiser's own state."""

    count: Any
    key: jax.Array
    inner_state: Any


def round_stochastically(
    key: jax.Array, x: Float[Array, "..."]
) -> BFloat16[Array, "..."]:
    """One of the two nearest bfloat16, x on average: float32 -> bfloat16.

    What has a bfloat16 keeps it. Infinity and NaN stay; what is larger than the largest
    may become infinite.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    # The upper half of a float32 is a bfloat16; a carry out of the lower half, which
    # has its probability, makes it the next one.
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def path_key(key: jax.Array, path: str) -> jax.Array:
    """A key for each path, the same wherever it stands in a tree."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))


def _wide(values: PyTree) -> PyTree:
    def wide(leaf):
        return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else leaf

    return jax.tree.map(wide, values)
