"""Combinators: layers in a row or side by side, a block repeated, a residual.

Each routes the keywords it is given (key, train, mask, positions, ...) to the members
whose signature names them and refuses one that nobody takes. With a member that has
State it is called `(params, x, state)` and returns `(y, state)`.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, Missing
from jaxdl.core.module import Module, declared, inline, is_stateful
from jaxdl.core.naming import describe, expect
from jaxdl.core.param import Declaration
from jaxdl.nn import routing
from jaxdl.nn.routing import Layer


class Sequential(Module):
    """Applies layers one after the other; plain functions of x may stand among them.

    Parameters are named by position: `params["0"]["kernel"]`.

    >>> import jax.numpy as jnp
    >>> from jaxdl import nn
    >>> model = nn.Sequential([nn.Linear(2, 8), jnp.tanh, nn.Linear(8, 1)])
    >>> model(model.init(jax.random.key(0)), jnp.ones((4, 2))).shape
    (4, 1)
    """

    layers: tuple[Layer, ...] | list[Layer] = inline()

    def members(self) -> tuple[Layer, ...]:
        return tuple(self.layers)

    def __call__(self, params, x, state: Any = MISSING, **given) -> Any:
        routing.check(self, given)
        _check_state(self, state)
        new_state = {}
        for name, call in routing.calls(self.members(), params, state, given):
            x, after = call(x)
            if after is not None:
                new_state[name] = after
        return (x, new_state) if is_stateful(self) else x


class Parallel(Module):
    """Gives every branch the same input and joins what they return.

    `join` takes the outputs as arguments: `jnp.add` for two, or a function such as
    `concatenate`. Without one the result is their tuple. Parameters are named by
    position, as in `Sequential`.
    """

    branches: tuple[Layer, ...] | list[Layer] = inline()
    join: Callable[..., Any] | None = None

    def members(self) -> tuple[Layer, ...]:
        return tuple(self.branches)

    def __call__(self, params, x, state: Any = MISSING, **given) -> Any:
        routing.check(self, given)
        _check_state(self, state)
        outputs, new_state = [], {}
        for name, call in routing.calls(self.members(), params, state, given):
            y, after = call(x)
            outputs.append(y)
            if after is not None:
                new_state[name] = after
        joined = tuple(outputs) if self.join is None else self.join(*outputs)
        return (joined, new_state) if is_stateful(self) else joined


class Residual(Module):
    """Adds what a layer computes to its input: x + inner(x) (He et al. 2015).

    Parameters are those of the inner layer, at the same path.
    """

    inner: Module = inline()

    def members(self) -> tuple[Layer, ...]:
        return (self.inner,)

    def __call__(self, params, x, state: Any = MISSING, **given) -> Any:
        routing.check(self, given)
        _check_state(self, state)
        y, state = routing.run(self.inner, params, x, state, given)
        expect(y.shape == x.shape, f"the inner layer to keep the shape {x.shape}", y)
        return (x + y, state) if is_stateful(self) else x + y


class Repeat(Module):
    """Applies a block `num_layers` times, each time with parameters of its own.

    The parameters of all layers are stacked on a leading axis "layers" and the depth is
    a `jax.lax.scan`: the program, and the time to compile it, does not grow with depth.
    The block keeps the shape of x. `remat` trades memory for time in the backward pass:
    True recomputes each block, a `jax.checkpoint` policy keeps what it says
    (`jax.checkpoint_policies.dots_saveable`, `jd.save_taps("**/hidden")`).

    Keys are split over the layers, state is stacked like params; mask, positions and
    train are the same for every layer. Paths are those of the block:
    `blocks/attn/q/kernel`.
    """

    block: Module = inline()
    num_layers: Size = 1
    remat: bool | Callable[..., Any] = False
    unroll: Size = 1

    def spec(self):
        return _stack(declared(self.block), self.num_layers)

    def members(self) -> tuple[Layer, ...]:
        return (self.block,)

    def layer_params(self, params, index: int):
        """The parameters of one layer, as the block takes them."""
        return jax.tree.map(lambda leaf: leaf[index], params)

    def __call__(self, params, x, state: Any = MISSING, **given) -> Any:
        routing.check(self, given)
        _check_state(self, state)
        for leaf in jax.tree.leaves(params):
            expect(
                leaf.shape[:1] == (self.num_layers,), f"[{self.num_layers}, ...]", leaf
            )
        stateful = is_stateful(self)
        key = given.pop("key", MISSING)
        keys = (
            None
            if isinstance(key, Missing | None)
            else jax.random.split(key, self.num_layers)
        )

        def step(x, layer):
            params, state, layer_key = layer
            keywords = {**given, "key": key if layer_key is None else layer_key}
            y, state = routing.run(self.block, params, x, state, keywords)
            kept = y.shape == x.shape and y.dtype == x.dtype
            expect(kept, f"the block to keep {describe(x)}", y)
            return y, state

        if self.remat:
            # Inside a scan XLA cannot undo the recomputation by common subexpressions.
            policy = None if self.remat is True else self.remat
            step = jax.checkpoint(step, policy=policy, prevent_cse=False)
        layers = (params, state if stateful else None, keys)
        x, state = jax.lax.scan(
            step, x, layers, length=self.num_layers, unroll=self.unroll
        )
        return (x, state) if stateful else x


def _stack(node: Any, size: int) -> Any:
    if isinstance(node, Declaration):
        return node.stack(size)
    return {name: _stack(value, size) for name, value in node.items()}


def _check_state(module: Module, state: Any) -> None:
    if is_stateful(module) and isinstance(state, Missing | None):
        raise TypeError(
            f"{type(module).__name__}: a member has state: call it (params, x, state, "
            "...) with state from init_state()"
        )
    if not is_stateful(module) and not isinstance(state, Missing | None):
        raise TypeError(
            f"{type(module).__name__}: no member has state, but state was given"
        )
