"""check_module: hold a layer, ours or yours, to the contract of a Module."""

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
    params, state = _initial(module)
    params, call = _perturbed(params), _Call(module, given)
    eager = call(params, state, inputs)
    _check_state(eager, state)
    _check_dtype(params, state, inputs, call)
    _check_keys(params, state, inputs, call, eager)
    compiled = _compiled(params, state, inputs, call)
    _check_results(compiled, eager, tolerance)
    _check_gradients(*compiled["gradients"])


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


def _initial(module: Module) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(1))
    params, state = module.init(keys[0]), module.init_state(keys[0])
    for made, declared in ((params, abstract(module)), (state, abstract_state(module))):
        same = _shapes(made) == _shapes(declared)
        _require(same, "init gives the declared tree", made)
    batch = jax.jit(jax.vmap(module.init))(keys)
    first = jax.tree.map(lambda leaf: np.asarray(leaf)[0], batch)
    _require(_equal(params, first), "jit and vmap give the same bits as init", first)
    return params, state


def _compiled(params, state, inputs, call: _Call) -> dict:
    """All that needs compiling, in one program: that is most of a check's time."""
    rebuilt = map_modules(lambda _, part: dataclasses.replace(part), call.module)  # type: ignore[type-var]
    same = rebuilt == call.module and hash(rebuilt) == hash(call.module)
    _require(same, "a module built again is equal and hashes equal", rebuilt)
    traces = []

    @jax.jit
    def run(module, params, state, inputs):
        traces.append(module)
        return _transformed(_Call(module, call.given), params, state, inputs)

    results = run(call.module, params, state, inputs)
    run(rebuilt, params, state, inputs)
    again = len(traces) - 1
    _require(again == 0, "a module built again is not compiled again", again)
    return results


def _transformed(call: _Call, params, state, inputs) -> dict:
    """What the call gives under each transformation."""
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), inputs)
    results = {
        "jit": call(params, state, inputs),
        "vmap": jax.vmap(call, in_axes=(None, None, 0))(params, state, twice),
        "gradients": _gradients(call, params, state, inputs),
    }
    if taps(call, params, state, inputs):
        results["capture"], _ = capture(call, "**")(params, state, inputs)
    return results


def _gradients(call: _Call, params, state, inputs) -> tuple[Any, Any]:
    """For params and inputs, of a sum to which every result adds in its own way."""

    def total(params, inputs):
        y, _ = call(params, state, inputs)
        leaves = jax.tree.leaves(y)
        return sum(jnp.sum(jnp.sin(3.0 * leaf.astype(jnp.float32))) for leaf in leaves)

    return jax.grad(total, (0, 1), allow_int=True)(params, inputs)


def _check_results(compiled: dict, eager: Any, tolerance: float) -> None:
    both = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), eager)
    for how, expected in (("jit", eager), ("vmap", both), ("capture", eager)):
        if how in compiled:
            chex.assert_trees_all_close(
                compiled[how],
                expected,
                rtol=tolerance,
                atol=tolerance,
                custom_message=f"under {how}",
            )


def _check_gradients(grads: Any, input_grads: Any) -> None:
    for path, grad in _arrays(grads).items():
        finite = bool(np.isfinite(grad).all())
        _require(finite, f"the gradient of {path} is finite", grad)
        _require(bool((grad != 0).any()), f"a gradient reaches {path}", grad)
    for path, grad in _arrays(input_grads).items():
        if grad.dtype != jax.dtypes.float0:  # an integer input has no gradient
            finite = bool(np.isfinite(grad).all())
            _require(finite, f"the gradient of input {path} is finite", grad)


def _check_keys(params, state, inputs, call: _Call, silent: Any) -> None:
    if not call.takes_key:
        return
    silent_again, _ = call(params, state, inputs, None)
    same = _equal(silent[0], silent_again)
    _require(same, "key=None is deterministic", silent_again)
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
        jax.eval_shape(keyless, params, state, inputs)
    except TypeError:
        return True
    return False


def _check_state(eager: Any, state: Any) -> None:
    _, new = eager
    _require(_shapes(new) == _shapes(state), "state keeps its structure", new)


def _check_dtype(params, state, inputs, call: _Call) -> None:
    params, inputs = jax.tree.map(_bfloat16, (params, inputs))
    y, _ = jax.eval_shape(call, params, state, inputs)
    kept = all(
        leaf.dtype == jnp.bfloat16
        for leaf in jax.tree.leaves(y)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    _require(kept, "bfloat16 in gives bfloat16 out", y)


def _bfloat16(leaf: Any) -> Any:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.bfloat16) if floating else leaf


def _perturbed(params: Any) -> Any:
    """Moves every parameter off its initial value: zeros and ones hide mistakes."""
    rng = np.random.default_rng(0)

    def move(leaf):
        noise = 0.1 * rng.normal(size=leaf.shape)
        return jax.device_put(np.asarray(leaf) + noise.astype(leaf.dtype))

    return jax.tree.map(move, params)


def _arrays(leaves: Any) -> dict[str, np.ndarray]:
    """NumPy's arrays by path: JAX would compile a program for each shape."""
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(leaves).items()}


def _shapes(arrays: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), arrays)


def _equal(first: Any, second: Any) -> bool:
    return bool(jax.tree.all(jax.tree.map(np.array_equal, first, second)))


def _require(condition: bool, clause: str, got: Any) -> None:
    if not condition:
        raise AssertionError(f"expected that {clause}, got {got}")
