"""Optimisers that treat parameters by their paths. Any pytree has paths, so any works.

By role instead, for a Module: `optax.adamw(1e-3, mask=jd.mask(model, role="weight"))`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax

from jaxdl.core import tree

PyTree = Any


def scale_by_path(
    factors: Mapping[str, float | optax.Schedule],
) -> optax.GradientTransformation:
    """Multiplies updates by path, after an optimiser: learning rates for parts.

    A factor is a number or an optax schedule; a leaf that fits no pattern keeps its
    update. `optax.chain(optax.adam(1e-3), scale_by_path({"head/**": 10.0}))`.

    Raises ValueError, at init, for a pattern that fits nothing or a leaf that fits two:
    which of them should hold is not for us to guess.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> scale = scale_by_path({"**/bias": 0.5})
    >>> updates = {"a": {"kernel": jnp.array(1.0), "bias": jnp.array(1.0)}}
    >>> scaled, _ = scale.update(updates, scale.init(updates))
    >>> jax.tree.map(float, scaled)
    {'a': {'bias': 0.5, 'kernel': 1.0}}
    """
    groups = {
        pattern: optax.scale_by_schedule(factor)
        if callable(factor)
        else optax.scale(factor)
        for pattern, factor in factors.items()
    }
    return optax.partition(
        {**groups, _REST: optax.identity()}, lambda params: _labels(params, factors)
    )


def freeze(
    optimizer: optax.GradientTransformation, patterns: str | Iterable[str]
) -> optax.GradientTransformationExtraArgs:
    """Trains all but the leaves that fit: those get no update and no optimiser state.

    Wrap the whole chain, weight decay included: `freeze(optax.adamw(1e-3),
    "backbone/**")`. The gradients of frozen leaves are still computed, and then dropped
    by XLA where nothing else needs them.

    Raises ValueError, at init, for a pattern that fits nothing.
    """
    chosen = (patterns,) if isinstance(patterns, str) else tuple(patterns)

    def labels(params: PyTree) -> PyTree:
        frozen = fitting(chosen, params)
        return tree.map_with_path(
            lambda path, _: "frozen" if path in frozen else "trained", params
        )

    return optax.partition(
        {"frozen": optax.set_to_zero(), "trained": optimizer}, labels
    )


def decay_mask(*exempt: str) -> Callable[[PyTree], PyTree]:
    """A mask for `optax.adamw(mask=...)`: True for leaves that fit no pattern.

    By default biases and norms' scales are exempt, as jaxdl and Flax name them; a
    default that fits nothing is no error, a pattern that was given is.

    >>> decay_mask()({"kernel": 0, "bias": 0, "norm": {"scale": 0}})
    {'bias': False, 'kernel': True, 'norm': {'scale': False}}
    """

    def mask(params: PyTree) -> PyTree:
        if exempt:
            chosen = fitting(exempt, params)
        else:
            leaves = tree.flatten(params)
            chosen = {p for p in leaves if any(tree.matches(e, p) for e in _UNDECAYED)}
        return tree.map_with_path(lambda path, _: path not in chosen, params)

    return mask


_REST = ""
_UNDECAYED = ("**/bias", "**/scale")


def _labels(params: PyTree, patterns: Iterable[str]) -> PyTree:
    """The pattern that each leaf fits, or _REST."""
    patterns = list(patterns)
    fitting(patterns, params)  # raises for one that fits nothing

    def label(path: str, _: Any) -> str:
        fits = [pattern for pattern in patterns if tree.matches(pattern, path)]
        if len(fits) > 1:
            raise ValueError(f"{path}: expected one pattern that fits, got {fits}")
        return fits[0] if fits else _REST

    return tree.map_with_path(label, params)


def fitting(patterns: Iterable[str], params: PyTree) -> set[str]:
    """The paths that fit a pattern, which must each fit one.

    A parameter that an outer `optax.masked`, `optax.partition` or `freeze` has masked
    out is still there to be named. `optax.tree_utils.tree_map_params` tries optimisers
    on a stand-in that has no leaves at all: no pattern is to blame for that.
    """
    paths = tree.flatten(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    return set(tree.matching(patterns, paths)) if paths else set()
