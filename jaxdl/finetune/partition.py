"""Params in two parts: what is trained, and what is frozen and may hold integers."""

from collections.abc import Callable, Iterable, Mapping
import inspect
from typing import Any

from jaxdl.core import tree
from jaxdl.finetune.surgery import merged

ADAPTERS = "**/lora/*"
"""The pattern of what `lora` and `dora` add; for masks, splits and learning rates."""


def split(params: Any, patterns: str | Iterable[str] = ADAPTERS) -> tuple[dict, dict]:
    """Params as (trained, frozen): the leaves that fit a pattern, and the rest.

    Differentiate a function of the first: the gradients and the optimizer's state are
    then of those leaves alone, and integers of quantised layers are never asked for
    one. Nested dicts; no array is copied. Raises ValueError for a pattern that fits
    nothing.

    >>> split({"kernel": 1, "lora": {"a": 2, "b": 3}})
    ({'lora': {'a': 2, 'b': 3}}, {'kernel': 1})
    """
    fit = set(tree.matching(patterns, tree.flatten(params)))
    return _only(params, fit, True, ""), _only(params, fit, False, "")


def join(trained: Any, frozen: Any) -> dict:
    """Params from their two parts; ValueError for a leaf that is in both.

    >>> join({"lora": {"a": 2, "b": 3}}, {"kernel": 1})
    {'kernel': 1, 'lora': {'a': 2, 'b': 3}}
    """
    return merged(frozen, trained)


def with_frozen(loss_fn: Callable) -> Callable:
    """A loss of params as one of the trained part, for `jaxdl.train.make_step`.

    `loss_fn(params, batch[, key])` -> `loss(trained, batch[, key], state)`: the frozen
    part is the `TrainState`'s `model_state`, and goes through a step as it is.

    ```python
    trained, frozen = finetune.split(params)
    state = TrainState.create(trained, optimizer, key=key, model_state=frozen)
    step = make_step(finetune.with_frozen(loss_fn), optimizer)
    state, metrics = step(state, batch)
    params = finetune.join(state.params, state.model_state)
    ```
    """

    def evaluate(trained, batch, frozen, **given):
        result = loss_fn(join(trained, frozen), batch, **given)
        loss, entries = result if isinstance(result, tuple) else (result, {})
        return loss, {**entries, "state": frozen}

    if "state" in inspect.signature(loss_fn).parameters:
        raise TypeError(
            "with_frozen: expected a loss (params, batch[, key]), got one that takes "
            "state: hold both in the model_state"
        )

    if "key" in inspect.signature(loss_fn).parameters:

        def with_key(trained, batch, *, key, state):
            return evaluate(trained, batch, state, key=key)

        return with_key

    def without_key(trained, batch, *, state):
        return evaluate(trained, batch, state)

    return without_key


def _only(node: Any, fit: set[str], wanted: bool, path: str) -> Any:
    """The leaves that fit, or that do not; empty dicts stay with those that do not."""
    kept = {}
    for name, value in node.items():
        below = f"{path}/{name}" if path else str(name)
        if not isinstance(value, Mapping):
            if (below in fit) == wanted:
                kept[name] = value
            continue
        part = _only(value, fit, wanted, below)
        if part or (not wanted and not value):
            kept[name] = part
    return kept
