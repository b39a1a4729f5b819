"""check_module: hold a layer, ours or yours, to the contract of a Module."""

from collections.abc import Callable
import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.core import tree
from jaxdl.core.derive import abstract, abstract_state
from jaxdl.core.module import Module, is_stateful, map_modules
from jaxdl.core.transforms import capture, taps
from jaxdl.nn.routing import keywords


def check_module(module: Module, *inputs: Any, tolerance: float = 1e-5, **given: Any):
    """Raises AssertionError unless the module keeps the contract on these inputs.

    Declared and initial parameters agree; a rebuilt module is equal, hashes equal and
    does not compile again; eager, jit and vmap agree; gradients are finite and reach
    every parameter; a key matters and None does not; state keeps its structure;
    capturing every tap changes nothing; bfloat16 in gives bfloat16 out. Keywords are
    handed to the module, the key is made here.

    >>> from jaxdl import nn
    >>> check_module(nn.Linear(3, 4), jnp.ones((2, 3)))
    """
    _check_declaration(module)
    call = _Call(module, given)
    params, state = module.init(jax.random.key(1)), module.init_state(jax.random.key(2))
    params = _perturbed(params)
    _check_rebuilt(module, params, state, inputs, call)
    _check_transforms(params, state, inputs, call, tolerance)
    _check_gradients(params, state, inputs, call)
    _check_keys(params, state, inputs, call)
    _check_state(params, state, inputs, call)
    _check_taps(params, state, inputs, call, tolerance)
    _check_dtype(params, state, inputs, call)


class _Call:
    """A module with its keywords fixed: (params, state, inputs, key) -> (y, state)."""

    def __init__(self, module: Module, given: dict):
        self.module, self.given = module, given
        self.takes_key = "key" in keywords(module) and "key" not in given

    def __call__(self, params, state, inputs, key=None):
        given = {**self.given, "key": key} if self.takes_key else self.given
        if is_stateful(self.module):
            return self.module(params, *inputs, state, **given)
        return self.module(params, *inputs, **given), {}


def _check_declaration(module: Module) -> None:
    key = jax.random.key(0)
    params, state = module.init(key), module.init_state(key)
    for made, declared in ((params, abstract(module)), (state, abstract_state(module))):
        _require(
            _shapes(made) == _shapes(declared), "init gives the declared tree", made
        )
    jitted = jax.jit(module.init)(key)
    _require(_equal(params, jitted), "jit gives the same bits as eager init", jitted)
    batched = jax.vmap(module.init)(jax.random.split(key, 2))
    first = module.init(jax.random.split(key, 2)[0])
    same = _equal(first, jax.tree.map(lambda leaf: leaf[0], batched))
    _require(same, "vmap gives the same bits as init", batched)


def _check_rebuilt(module: Module, params, state, inputs, call: _Call) -> None:
    rebuilt = map_modules(lambda _, part: dataclasses.replace(part), module)  # type: ignore[type-var]
    same = rebuilt == module and hash(rebuilt) == hash(module)
    _require(same, "a module built again is equal and hashes equal", rebuilt)
    traces = []

    @jax.jit
    def run(module, params, state, inputs):
        traces.append(module)
        return _Call(module, call.given)(params, state, inputs)

    run(module, params, state, inputs)
    run(rebuilt, params, state, inputs)
    _require(
        len(traces) == 1, "a module built again is not compiled again", len(traces)
    )


def _check_transforms(params, state, inputs, call: _Call, tolerance: float) -> None:
    expected = call(params, state, inputs)
    _require_close(jax.jit(call)(params, state, inputs), expected, tolerance, "jit")
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), inputs)
    mapped = jax.vmap(call, in_axes=(None, None, 0))(params, state, twice)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), expected)
    _require_close(mapped, both, tolerance, "vmap")


def _check_gradients(params, state, inputs, call: _Call) -> None:
    def total(params, inputs):
        y, _ = call(params, state, inputs)
        leaves = jax.tree.leaves(y)
        return sum(jnp.sum(jnp.sin(3.0 * leaf.astype(jnp.float32))) for leaf in leaves)

    gradient = jax.jit(jax.grad(total, (0, 1), allow_int=True))
    grads, input_grads = gradient(params, inputs)
    for path, grad in tree.flatten(grads).items():
        finite = bool(jnp.isfinite(grad).all())
        _require(finite, f"the gradient of {path} is finite", grad)
        _require(bool((grad != 0).any()), f"a gradient reaches {path}", grad)
    for path, grad in tree.flatten(input_grads).items():
        if grad.dtype != jax.dtypes.float0:  # an integer input has no gradient
            finite = bool(jnp.isfinite(grad).all())
            _require(finite, f"the gradient of input {path} is finite", grad)


def _check_keys(params, state, inputs, call: _Call) -> None:
    if not call.takes_key:
        return
    silent = [call(params, state, inputs, None)[0] for _ in range(2)]
    _require(_equal(*silent), "key=None is deterministic", silent)
    first, again, other = (
        call(params, state, inputs, jax.random.key(seed))[0] for seed in (0, 0, 1)
    )
    _require(_equal(first, again), "the same key gives the same result", first)
    if _needs_key(params, state, inputs, call):
        _require(not _equal(first, other), "another key gives another result", other)


def _needs_key(params, state, inputs, call: _Call) -> bool:
    keyless = _Call(call.module, call.given)
    keyless.takes_key = False
    try:
        keyless(params, state, inputs)
    except TypeError:
        return True
    return False


def _check_state(params, state, inputs, call: _Call) -> None:
    _, new = call(params, state, inputs)
    _require(_shapes(new) == _shapes(state), "state keeps its structure", new)


def _check_taps(params, state, inputs, call: _Call, tolerance: float) -> None:
    if not taps(call, params, state, inputs):
        return
    expected = call(params, state, inputs)
    result, _ = capture(call, "**")(params, state, inputs)
    _require_close(result, expected, tolerance, "capture")


def _check_dtype(params, state, inputs, call: _Call) -> None:
    narrow = jax.tree.map(_bfloat16, (params, inputs))
    y, _ = call(narrow[0], state, narrow[1])
    kept = all(
        leaf.dtype == jnp.bfloat16
        for leaf in jax.tree.leaves(y)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    _require(kept, "bfloat16 in gives bfloat16 out", y)


def _bfloat16(leaf: Any) -> Any:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf).astype(jnp.bfloat16) if floating else leaf


def _perturbed(params: Any) -> Any:
    """Moves every parameter off its initial value: zeros and ones hide mistakes."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(leaf.dtype), params
    )


def _shapes(arrays: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arrays)


def _equal(first: Any, second: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(jnp.array_equal, first, second)))


def _require_close(result: Any, expected: Any, tolerance: float, how: str) -> None:
    close: Callable = chex.assert_trees_all_close
    close(
        result, expected, rtol=tolerance, atol=tolerance, custom_message=f"under {how}"
    )


def _require(condition: bool, clause: str, got: Any) -> None:
    if not condition:
        raise AssertionError(f"expected that {clause}, got {got}")
