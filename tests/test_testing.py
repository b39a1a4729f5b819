"""check_module must fail on a module that breaks the contract, clause by clause."""

import jax
import jax.numpy as jnp
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.testing import check_module

x = jax.random.normal(jax.random.key(0), (3, 4))
calls = iter(range(10**6))


class Weighted(jd.Module):
    """The least module; those below break it in one way each."""

    def spec(self):
        return {"w": jd.Param((4,), jd.init.ones)}

    def __call__(self, params, x):
        return x * params["w"]


class Identity:
    """A value equal to itself only."""


class BuiltAnew(Weighted):
    made: object = None

    def __post_init__(self):
        object.__setattr__(self, "made", Identity())


class HiddenState(Weighted):
    def __call__(self, params, x):
        return x * params["w"] + next(calls)


class Unused(Weighted):
    def spec(self):
        return {**super().spec(), "unused": jd.Param((2,), jd.init.ones)}


class Infinite(Weighted):
    def __call__(self, params, x):
        return jnp.sqrt(0.0 * x * params["w"])


class NoInputGradient(jd.Module):
    def __call__(self, params, x):
        return jnp.where(x > 0, jnp.sqrt(x), 0.0)


class OtherUnderJit(Weighted):
    def __call__(self, params, x):
        return x * params["w"] + isinstance(x, jax.core.Tracer)


class OtherInitEachTime(Weighted):
    def spec(self):
        return {"w": jd.Param((4,), jd.init.constant(float(next(calls))))}


class AcrossTheBatch(Weighted):
    def __call__(self, params, x):
        return x * params["w"] + x.shape[0] * (1 if x.ndim == 2 else 0) + _is_batched(x)


def _is_batched(x):
    return 1.0 if "Batch" in type(x).__name__ else 0.0


class FixedKey(jd.Module):
    def __call__(self, params, x, *, key=jd.MISSING):
        if key is None:
            return x
        if key is jd.MISSING:
            raise TypeError("needs a key")
        return x + jax.random.normal(jax.random.key(0), x.shape)


class NoisyWithoutKey(jd.Module):
    def __call__(self, params, x, *, key=jd.MISSING):
        return x + next(calls)


class GrowingState(jd.Module):
    def spec(self):
        return {"seen": jd.State((4,))}

    def __call__(self, params, x, state):
        return x, {"seen": jnp.concatenate([state["seen"], x[0]])}


class Widening(Weighted):
    def __call__(self, params, x):
        return x.astype(jnp.float32) * params["w"]


def test_the_least_module_keeps_the_contract():
    check_module(Weighted(), x)


@pytest.mark.parametrize(
    ("module", "clause"),
    [
        (BuiltAnew(), "built again is equal"),
        (HiddenState(), "under jit"),
        (OtherUnderJit(), "under jit"),
        (OtherInitEachTime(), "jit and vmap give the same bits as init"),
        (Unused(), "a gradient reaches unused"),
        (Infinite(), "the gradient of w is finite"),
        (NoInputGradient(), "the gradient of input 0 is finite"),
        (AcrossTheBatch(), "under vmap"),
        (FixedKey(), "another key gives another result"),
        (NoisyWithoutKey(), "under jit|key=None is deterministic"),
        (GrowingState(), "state keeps its structure"),
        (Widening(), "bfloat16 in gives bfloat16 out"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, jd.Module) else "",
)
def test_a_module_that_breaks_a_clause_is_told_which(module, clause):
    with pytest.raises(AssertionError, match=clause):
        check_module(module, x)


def test_it_is_not_fooled_by_parameters_that_start_at_zero():
    class Gate(jd.Module):
        def spec(self):
            return {
                "a": jd.Param((4,), jd.init.zeros),
                "b": jd.Param((4,), jd.init.zeros),
            }

        def __call__(self, params, x):
            return x * params["a"] * params["b"]

    check_module(Gate(), x)


def test_keywords_are_handed_to_the_module():
    check_module(nn.BatchNorm(4), x, train=True)
    with pytest.raises(TypeError, match="train"):
        check_module(nn.BatchNorm(4), x)
