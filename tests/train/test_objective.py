"""What a loss function may return, and what it is told when it does not."""

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdl.train import TrainState, make_step

PARAMS = {"w": jnp.ones(2)}
BATCH = jnp.ones((4, 2))


def mean(params):
    return jnp.sum(params["w"] ** 2)


def trace(loss_fn, params=PARAMS, model_state=None):
    state = TrainState.create(
        params, optax.sgd(0.1), key=jax.random.key(0), model_state=model_state
    )
    return jax.eval_shape(make_step(loss_fn, optax.sgd(0.1)), state, BATCH)


def returning(result):
    return lambda params, batch: result(params)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda p: p["w"], r"loss: expected a scalar, got shape \(2,\); take its mean"),
        (lambda p: 1, "loss: expected a floating scalar, got int32"),
        (lambda p: (mean(p), 3), r"expected loss or \(loss, dict\), got .*int"),
        (lambda p: (mean(p), {}, {}), r"expected loss or \(loss, dict\)"),
        (lambda p: (mean(p), {"accuracy": 1.0}), r"unknown entries \['accuracy'\]"),
        (lambda p: (mean(p), {"metrics": {"loss": 1.0}}), "'loss'.*rename them"),
        (lambda p: (mean(p), {"metrics": {"a": p["w"]}}), "a: expected a scalar"),
        (lambda p: (mean(p), {"metrics": 1.0}), "metrics: expected a dict of scalars"),
        (lambda p: (mean(p), {"weight": p["w"]}), "weight: expected a scalar"),
        (lambda p: (mean(p), {"state": p}), "returned a 'state', but the TrainState"),
    ],
)
def test_a_result_of_another_kind_is_an_error_that_says_what_was_expected(
    result, message
):
    with pytest.raises((TypeError, ValueError), match=message):
        trace(returning(result))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda s: {}, "holds a model_state; got the entries"),
        (lambda s: {"state": {"var": s["mean"]}}, r"missing \['mean'\].*\['var'\]"),
        (lambda s: {"state": {"mean": s["mean"][:1]}}, "state/mean: .*2.*as before"),
        (
            lambda s: {"state": {"mean": jnp.int32(s["mean"])}},
            "state/mean: .*float32.*int32",
        ),
    ],
)
def test_a_state_that_does_not_fit_the_old_one_is_an_error(result, message):
    def loss_fn(params, batch, state):
        return mean(params), result(state)

    with pytest.raises(ValueError, match=message):
        trace(loss_fn, model_state={"mean": jnp.zeros(2)})


def test_a_state_that_nobody_takes_or_nobody_gives_is_an_error():
    with pytest.raises(TypeError, match="does not name `state`"):
        trace(lambda params, batch: mean(params), model_state={"mean": jnp.zeros(2)})
    with pytest.raises(TypeError, match="names `state`, but the TrainState holds none"):
        trace(lambda params, batch, state: (mean(params), {"state": state}))
    trace(lambda params, batch, state=None: mean(params))


def test_a_signature_that_cannot_be_called_is_refused_at_once():
    with pytest.raises(TypeError, match=r"expected the signature \(params, batch\)"):
        make_step(lambda params, x, y: mean(params), optax.sgd(0.1))


def test_params_that_cannot_be_trained_are_named():
    params = {"w": jnp.ones(2), "table": {"ids": jnp.arange(3)}}
    with pytest.raises(TypeError, match="params/table/ids: expected a floating array"):
        trace(lambda params, batch: mean(params), params=params)


def test_metrics_of_any_number_type_become_float32_scalars():
    metrics = {"right": jnp.bool_(True), "count": jnp.int32(3), "half": jnp.bfloat16(1)}
    _, shapes = trace(
        lambda params, batch: (mean(params), {"metrics": metrics, "weight": 4})
    )
    assert set(shapes) == {*metrics, "loss", "grad_norm", "skipped", "weight"}
    assert all((s.shape, s.dtype) == ((), jnp.float32) for s in shapes.values())
