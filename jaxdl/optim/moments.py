"""AdamW with small moments: a byte for each number, or bfloat16."""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdl.core import tree
from jaxdl.optim.blockwise import decode, encode
from jaxdl.optim.by_path import fitting
from jaxdl.optim.rounding import path_key, round_stochastically

PyTree = Any


def adamw_8bit(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    *,
    keep: str | Iterable[str] = (),
    min_size: int = 4096,
    block_size: int = 256,
) -> optax.GradientTransformationExtraArgs:
    """AdamW that keeps 2 bytes for each parameter instead of 8 (arXiv:2110.02861).

    keep: patterns of what has float32 moments all the same. The authors keep
      embeddings: `keep=jd.paths(model, role="embedding")`.
    min_size: arrays of fewer numbers, biases and scales, have float32 moments too.
    block_size: how many numbers of the last axis share a float32 scale.

    Raises ValueError, at init, for a pattern that fits nothing.
    """
    patterns = (keep,) if isinstance(keep, str) else tuple(keep)

    def labels(params: PyTree) -> PyTree:
        kept = fitting(patterns, params)

        def label(path, leaf):
            large = leaf.ndim > 0 and leaf.size >= min_size
            return "8bit" if large and path not in kept else "float32"

        return tree.map_with_path(label, params)

    small = scale_by_adam_8bit(b1, b2, eps, block_size=block_size)
    plain = optax.scale_by_adam(b1, b2, eps)
    return optax.chain(
        optax.partition({"8bit": small, "float32": plain}, labels),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


def adamw_bf16(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    mask: Any = None,
    *,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW that keeps both moments in bfloat16: 4 bytes for each parameter, not 8."""
    return optax.chain(
        scale_by_adam_bf16(b1, b2, eps, seed=seed),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )


class ScaleByAdam8bitState(NamedTuple):
    """Moments as `optim.blockwise` keeps them; trees with the structure of params.

    mu, nu: uint8, shaped as the parameter: they are sharded as it is.
    mu_scale, nu_scale: float32, its leading axes and then blocks of the last.
    """

    count: Any
    mu: PyTree
    mu_scale: PyTree
    nu: PyTree
    nu_scale: PyTree


def scale_by_adam_8bit(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    block_size: int = 256,
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with a byte for each number of its moments.

    Params have an axis at least.
    """
    adam: Any = optax.scale_by_adam(b1, b2, eps)
    mu_as = {"signed": True, "block_size": block_size}
    nu_as = {"signed": False, "block_size": block_size}

    def small(state: optax.ScaleByAdamState) -> ScaleByAdam8bitState:
        mu, nu = _encoded(state.mu, **mu_as), _encoded(state.nu, **nu_as)
        return ScaleByAdam8bitState(state.count, *mu, *nu)

    def init(params: PyTree) -> ScaleByAdam8bitState:
        return small(adam.init(params))

    def update(updates: PyTree, state: Any, params: PyTree = None):
        mu = jax.tree.map(partial(decode, **mu_as), state.mu, state.mu_scale)
        nu = jax.tree.map(partial(decode, **nu_as), state.nu, state.nu_scale)
        wide = optax.ScaleByAdamState(state.count, mu, nu)
        updates, wide = adam.update(updates, wide, params)
        return updates, small(wide)

    return optax.GradientTransformation(init, update)


class ScaleByAdamBf16State(NamedTuple):
    """The moments in bfloat16, and the key that rounds the second."""

    key: jax.Array
    count: Any
    mu: PyTree
    nu: PyTree


def scale_by_adam_bf16(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, seed: int = 0
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with both moments in bfloat16.

    With b2 = 0.999 a second moment loses 1/1000 a step. To the nearest bfloat16 that is
    nothing, and it could only ever grow; so it is rounded by chance.
    """
    adam: Any = optax.scale_by_adam(b1, b2, eps)

    def init(params: PyTree) -> ScaleByAdamBf16State:
        zeros = adam.init(optax.tree.cast(params, jnp.bfloat16))
        return ScaleByAdamBf16State(jax.random.key(seed), *zeros)

    def update(updates: PyTree, state: Any, params: PyTree = None):
        moments = optax.tree.cast((state.mu, state.nu), jnp.float32)
        wide = optax.ScaleByAdamState(state.count, *moments)  # type: ignore[misc]
        updates, wide = adam.update(updates, wide, params)
        key = jax.random.fold_in(state.key, state.count)
        nu = tree.map_with_path(
            lambda path, x: round_stochastically(path_key(key, path), x), wide.nu
        )
        mu = optax.tree.cast(wide.mu, jnp.bfloat16)
        return updates, ScaleByAdamBf16State(state.key, wide.count, mu, nu)

    return optax.GradientTransformation(init, update)


def _encoded(values: PyTree, **options: Any) -> tuple[PyTree, PyTree]:
    """The tree of codes and that of scales; compiled, each leaf is encoded once."""
    codes = jax.tree.map(lambda x: encode(x, **options)[0], values)
    return codes, jax.tree.map(lambda x: encode(x, **options)[1], values)
