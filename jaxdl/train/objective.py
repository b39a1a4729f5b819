"""What the trainer asks of a loss function, and the checks that it keeps to it.

A loss is any pure function `loss_fn(params, batch)` of any library. It may also name
`key` (for dropout, augmentation) and `state` (BatchNorm statistics, ...) in its
signature and is then given them. It returns a scalar, or `(scalar, dict)` with any of:

- `weight`: how many tokens or examples the loss is a mean over,
- `metrics`: a dict of scalars to report,
- `state`: the new model state.
"""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdl.core import tree

PyTree = Any

ENTRIES = ("weight", "metrics", "state")
RESERVED = ("loss", "grad_norm", "skipped", "weight")


class Outcome(NamedTuple):
    """What one evaluation of the loss gave; scalars are float32.

    weight is None when the loss function did not say.
    """

    loss: jax.Array
    weight: jax.Array | None
    metrics: dict[str, jax.Array]
    state: PyTree


def objective(loss_fn: Callable) -> Callable[..., Outcome]:
    """Wraps a loss function as `(params, batch, key, state) -> Outcome`.

    Raises TypeError when the signature is not `(params, batch[, key][, state])`. While
    tracing, TypeError or ValueError when the result is not what the module describes.
    """
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    asked, required = _keywords(loss_fn, name)

    def evaluate(params, batch, key, state) -> Outcome:
        _check_state_is_used(name, state, asked, required)
        offered = {"key": key} if state is None else {"key": key, "state": state}
        chosen = {word: offered[word] for word in asked if word in offered}
        return _outcome(name, loss_fn(params, batch, **chosen), state)

    return evaluate


def _keywords(loss_fn: Callable, name: str) -> tuple[list[str], list[str]]:
    """The words of key, state that the signature names, and those without a default."""
    parameters = inspect.signature(loss_fn).parameters
    asked = [word for word in ("key", "state") if word in parameters]
    try:
        inspect.signature(loss_fn).bind(None, None, **dict.fromkeys(asked))
    except TypeError as error:
        raise TypeError(
            f"{name}: expected the signature (params, batch), with key and state if it "
            f"wants them, got {inspect.signature(loss_fn)}: {error}"
        ) from None
    required = [w for w in asked if parameters[w].default is inspect.Parameter.empty]
    return asked, required


def _check_state_is_used(name: str, state: PyTree, asked, required) -> None:
    if state is not None and "state" not in asked:
        raise TypeError(
            f"{name}: the TrainState holds a model_state, but the signature does not "
            "name `state`; take it and return it: (loss, {'state': new_state})"
        )
    if state is None and "state" in required:
        raise TypeError(
            f"{name}: the signature names `state`, but the TrainState holds none; "
            "give it one: TrainState.create(..., model_state=...)"
        )


def _outcome(name: str, result: Any, state: PyTree) -> Outcome:
    loss, entries = _split(name, result)
    return Outcome(
        loss=_scalar(f"{name}: loss", loss, floating=True),
        weight=_weight(name, entries.get("weight")),
        metrics=_metrics(name, entries.get("metrics", {})),
        state=_new_state(name, entries, state),
    )


def _split(name: str, result: Any) -> tuple[Any, Mapping]:
    if not isinstance(result, tuple):
        return result, {}
    if len(result) != 2 or not isinstance(result[1], Mapping):
        shown = ", ".join(type(part).__name__ for part in result)
        raise TypeError(f"{name}: expected loss or (loss, dict), got ({shown})")
    unknown = [entry for entry in result[1] if entry not in ENTRIES]
    if unknown:
        raise ValueError(
            f"{name}: unknown entries {unknown} beside the loss; expected some of "
            f"{list(ENTRIES)} (numbers to report go into 'metrics')"
        )
    return result


def _scalar(what: str, value: Any, floating: bool = False) -> jax.Array:
    shape, dtype = jnp.shape(value), jnp.result_type(value)
    if shape != ():
        raise ValueError(f"{what}: expected a scalar, got shape {shape}; take its mean")
    if floating and not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{what}: expected a floating scalar, got {dtype}")
    if not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_) or (
        jnp.issubdtype(dtype, jnp.complexfloating)
    ):
        raise TypeError(f"{what}: expected a real number, got {dtype}")
    return jnp.asarray(value, jnp.float32)


def _weight(name: str, weight: Any) -> jax.Array | None:
    # The weight is a count: without the stop a loss that divides by it could leak
    # gradient into it.
    if weight is None:
        return None
    return jax.lax.stop_gradient(_scalar(f"{name}: weight", weight))


def _metrics(name: str, metrics: Any) -> dict[str, jax.Array]:
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{name}: metrics: expected a dict of scalars, got {type(metrics).__name__}"
        )
    taken = [key for key in metrics if key in RESERVED]
    if taken:
        raise ValueError(f"{name}: metrics: {taken} are reported already; rename them")
    return {key: _scalar(f"{name}: {key}", value) for key, value in metrics.items()}


def _new_state(name: str, entries: Mapping, state: PyTree) -> PyTree:
    if state is None:
        if entries.get("state") is not None:
            raise ValueError(
                f"{name}: returned a 'state', but the TrainState holds none; "
                "give it one: TrainState.create(..., model_state=...)"
            )
        return None
    if "state" not in entries:
        raise ValueError(
            f"{name}: expected (loss, {{'state': new_state, ...}}), because the "
            f"TrainState holds a model_state; got the entries {list(entries)}"
        )
    _check_same_layout(name, entries["state"], state)
    return entries["state"]


def _check_same_layout(name: str, new: PyTree, old: PyTree) -> None:
    new_leaves, old_leaves = tree.flatten(new), tree.flatten(old)
    if jax.tree.structure(new) != jax.tree.structure(old):
        lost = [path for path in old_leaves if path not in new_leaves]
        extra = [path for path in new_leaves if path not in old_leaves]
        raise ValueError(
            f"{name}: the new state has another structure than the old one: "
            f"missing {lost}, unexpected {extra}; expected "
            f"{jax.tree.structure(old)}, got {jax.tree.structure(new)}"
        )
    for path, leaf in old_leaves.items():
        expected, got = jax.typeof(leaf), jax.typeof(new_leaves[path])
        if (expected.shape, expected.dtype) != (got.shape, got.dtype):
            raise ValueError(
                f"{name}: state/{path}: expected {expected.str_short()} as before the "
                f"step, got {got.str_short()}"
            )
