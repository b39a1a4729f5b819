"""One training step: any loss, any optimizer, one compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxdl.core import tree
from jaxdl.train.objective import Outcome, objective
from jaxdl.train.state import TrainState

PyTree = Any


def make_step(
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    policy: Any = None,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    skip_nonfinite: bool = True,
    shardings: TrainState | None = None,
):
    """Compiles `step(state, batch) -> (state, metrics)`; the state is donated.

    The result is what `jax.jit` returns: `.lower(state, batch)` plans it ahead of time.
    Metrics are float32 scalars: loss, grad_norm (before clipping), skipped (so far),
    weight (if the loss gives one) and the loss function's own.

    loss_fn: `loss_fn(params, batch[, key=][, state=]) -> loss | (loss, {"weight",
      "metrics", "state"})`; see `jaxdl.train.objective`.
    accumulate: in how many microbatches to go through the batch. Gradients and metrics
      are means weighted by the loss's `weight`, so that the result is the full batch's.
      The model state goes through the microbatches one after the other.
    policy: anything with `.cast(params)`; the loss sees the cast params, gradients and
      updates are those of the params as they are kept.
    clip_norm: scales the gradients down to this global norm (`optax`).
    ema_decay: `ema <- decay * ema + (1 - decay) * params`, after the update. The
      average starts as the initial params and is therefore not debiased.
    skip_nonfinite: a step whose loss or gradient norm is not finite changes nothing but
      `step` and `skipped`.
    shardings: `state.shardings`, which the new state then keeps. Needed when the state
      is on a mesh, where the compiler is free to return the arrays laid out in another
      way.

    The key of a step is `fold_in(state.key, state.step)`; with accumulate > 1 the
    number of the microbatch is folded in too. The optimizer is given `value=loss`,
    which transformations such as `optax.contrib.reduce_on_plateau` want.

    Raises ValueError for options out of range and, while tracing, ValueError or
    TypeError for params, batches or losses that do not fit together.
    """
    _check_options(accumulate, clip_norm, ema_decay)
    gradients = _gradients(objective(loss_fn), policy)
    if accumulate > 1:
        gradients = _accumulated(gradients, accumulate)
    clip = (
        optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    )
    optimizer = optax.with_extra_args_support(optimizer)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, dict]:
        _check_state(state, ema_decay)
        key = jax.random.fold_in(state.key, state.step)
        outcome, grads = gradients(state.params, batch, key, state.model_state)
        grad_norm = optax.tree.norm(grads)
        grads, _ = clip.update(grads, clip.init(state.params))
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, value=outcome.loss
        )
        params = optax.apply_updates(state.params, updates)

        new = state.replace(
            params=params,
            opt_state=opt_state,
            model_state=outcome.state,
            ema=_averaged(state.ema, params, ema_decay),
        )
        if skip_nonfinite:
            finite = jnp.isfinite(outcome.loss) & jnp.isfinite(grad_norm)
            new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
            new = new.replace(skipped=state.skipped + ~finite)
        new = new.replace(step=state.step + 1)
        return new, _report(outcome, grad_norm, new.skipped)

    out_shardings = None if shardings is None else (shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def _gradients(loss: Callable[..., Outcome], policy: Any) -> Callable:
    """`(params, batch, key, state) -> (Outcome, gradients of the uncast params)`."""

    def cast_loss(params, batch, key, state):
        cast = params if policy is None else policy.cast(params)
        outcome = loss(cast, batch, key, state)
        return outcome.loss, outcome

    def gradients(params, batch, key, state):
        (_, outcome), grads = jax.value_and_grad(cast_loss, has_aux=True)(
            params, batch, key, state
        )
        return outcome, grads

    return gradients


def _accumulated(gradients: Callable, count: int) -> Callable:
    """The same gradients, computed over `count` microbatches one after the other."""

    def body(params, key, carry, indexed):
        total, state = carry
        index, batch = indexed
        outcome, grads = gradients(params, batch, jax.random.fold_in(key, index), state)
        weight = jnp.float32(1) if outcome.weight is None else outcome.weight
        total = jax.tree.map(lambda t, g: t + _weighted(g, weight), total, grads)
        return (total, outcome.state), outcome._replace(state=None)

    def accumulated(params, batch, key, state):
        indexed = jnp.arange(count), _microbatches(batch, count)
        (total, state), outcomes = jax.lax.scan(
            lambda carry, x: body(params, key, carry, x),
            (_zeros(params), state),
            indexed,
        )
        outcome, whole = _combined(outcomes._replace(state=state), count)
        return outcome, jax.tree.map(
            lambda t, p: (t / whole).astype(p.dtype), total, params
        )

    return accumulated


def _combined(outcomes: Outcome, count: int) -> tuple[Outcome, jax.Array]:
    """The outcome of the whole batch from stacked ones; the sum of their weights."""
    weights = jnp.ones(count) if outcomes.weight is None else outcomes.weight
    whole = weights.sum()

    def mean(values):
        return _weighted(values, weights).sum() / whole

    outcome = outcomes._replace(
        loss=mean(outcomes.loss),
        metrics=jax.tree.map(mean, outcomes.metrics),
        weight=None if outcomes.weight is None else whole,
    )
    return outcome, whole


def _weighted(value: jax.Array, weight: jax.Array) -> jax.Array:
    # The mean over no token is 0/0: a microbatch of padding counts for nothing.
    return jnp.where(weight == 0, 0, value * weight)


def _zeros(params: PyTree) -> PyTree:
    def zeros(param):
        return jnp.zeros_like(param, jnp.promote_types(param.dtype, jnp.float32))

    return jax.tree.map(zeros, params)


def _microbatches(batch: PyTree, count: int) -> PyTree:
    """Splits [batch, ...] into [count, batch/count, ...]."""

    def split(path, leaf):
        shape = jnp.shape(leaf)
        if not shape or shape[0] % count:
            raise ValueError(
                f"batch/{path}: expected a leading axis that accumulate={count} "
                f"divides, got shape {shape}"
            )
        # Microbatch i takes the rows i, i + count, ...: a batch whose rows are spread
        # over devices stays so, and every device works on every microbatch. A plain
        # reshape to [count, batch/count] would leave one microbatch to few devices.
        split = jnp.reshape(leaf, (shape[0] // count, count, *shape[1:]))
        return jnp.moveaxis(split, 1, 0)

    return tree.map_with_path(split, batch)


def _averaged(ema: PyTree, params: PyTree, decay: float | None) -> PyTree:
    return ema if decay is None else optax.incremental_update(params, ema, 1 - decay)


def _report(outcome: Outcome, grad_norm: jax.Array, skipped: jax.Array) -> dict:
    report = {"loss": outcome.loss, "grad_norm": grad_norm, "skipped": skipped}
    if outcome.weight is not None:
        report["weight"] = outcome.weight
    return jax.tree.map(lambda x: x.astype(jnp.float32), report | outcome.metrics)


def _check_options(accumulate, clip_norm, ema_decay) -> None:
    if (
        isinstance(accumulate, bool)
        or not isinstance(accumulate, int)
        or accumulate < 1
    ):
        raise ValueError(f"accumulate: expected an integer from 1, got {accumulate!r}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(
            f"clip_norm: expected a positive norm or None, got {clip_norm!r}"
        )
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(
            f"ema_decay: expected None or 0 <= decay < 1, got {ema_decay!r}"
        )


def _check_state(state: TrainState, ema_decay: float | None) -> None:
    for path, leaf in tree.flatten(state.params).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"params/{path}: expected a floating array to train, got {leaf.dtype}; "
                "arrays that are not trained belong in model_state"
            )
    if ema_decay is not None and state.ema is None:
        raise ValueError(
            "ema_decay is given, but state.ema is None: create(..., ema=True)"
        )
    if ema_decay is None and state.ema is not None:
        raise ValueError("state.ema would never move: give make_step an ema_decay")
