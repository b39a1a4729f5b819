"""Combinators: layers in a row or side by side, a block repeated, a residual.

Each routes the keywords it is given (key, train, mask, positions, ...) to the members
whose signature names them and refuses one that nobody takes. With a member that has
State it is called `(params, x, state)` and returns `(y, state)`; given a `cache` it
returns `(y, cache)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.core.fields import Size
from jaxdl.core.keys import MISSING, Missing
from jaxdl.core.module import Module, declared, inline
from jaxdl.core.naming import describe, expect, join
from jaxdl.core.param import Declaration
from jaxdl.nn import layer_cache, routing
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
        carry, new = routing.carried(self, state, given), {}
        for name, call in routing.calls(self.members(), params, carry, given):
            x, after = call(x)
            if after is not None:
                new[name] = after
        return x if carry is None else (x, new)

    def init_cache(self, *sizes: Any, **options: Any) -> dict[str, Any]:
        """Empty caches of the members that take one; see `Attention.init_cache`."""
        return routing.caches(self.members(), *sizes, **options)


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
        carry, outputs, new = routing.carried(self, state, given), [], {}
        for name, call in routing.calls(self.members(), params, carry, given):
            y, after = call(x)
            outputs.append(y)
            if after is not None:
                new[name] = after
        joined = tuple(outputs) if self.join is None else self.join(*outputs)
        return joined if carry is None else (joined, new)

    def init_cache(self, *sizes: Any, **options: Any) -> dict[str, Any]:
        """Empty caches of the branches that take one; see `Attention.init_cache`."""
        return routing.caches(self.members(), *sizes, **options)


class Residual(Module):
    """Adds what a layer computes to its input: x + inner(x) (He et al. 2015).

    Parameters are those of the inner layer, at the same path.
    """

    inner: Module = inline()

    def members(self) -> tuple[Layer, ...]:
        return (self.inner,)

    def __call__(self, params, x, state: Any = MISSING, **given) -> Any:
        routing.check(self, given)
        carry = routing.carried(self, state, given)
        y, new = routing.run(self.inner, params, x, carry, given)
        expect(y.shape == x.shape, f"the inner layer to keep the shape {x.shape}", y)
        return x + y if carry is None else (x + y, new)

    def init_cache(self, *sizes: Any, **options: Any) -> Any:
        """An empty cache of the inner layer; see `Attention.init_cache`."""
        return self.inner.init_cache(*sizes, **options)  # type: ignore[attr-defined]


class Repeat(Module):
    """Applies a block `num_layers` times, each time with parameters of its own.

    The parameters of all layers are stacked on a leading axis "layers" and the depth is
    a `jax.lax.scan`: the program, and the time to compile it, does not grow with depth.
    The block keeps the shape of x. `remat` trades memory for time in the backward pass:
    True recomputes each block, a `jax.checkpoint` policy keeps what it says
    (`jax.checkpoint_policies.dots_saveable`, `jd.save_taps("**/hidden")`).

    Keys are split over the layers, state and caches are stacked like params; mask,
    positions and train are the same for every layer. Paths are those of the block:
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
        carry = routing.carried(self, state, given)
        for leaf in jax.tree.leaves((params, carry)):
            expect(
                leaf.shape[:1] == (self.num_layers,), f"[{self.num_layers}, ...]", leaf
            )
        key = given.pop("key", MISSING)
        keys = (
            None
            if isinstance(key, Missing | None)
            else jax.random.split(key, self.num_layers)
        )

        caches, carry = layer_cache.split(carry)

        def step(before, layer):
            x, caches = before
            params, carry, layer_key, index = layer
            keywords = {**given, "key": key if layer_key is None else layer_key}
            carry = layer_cache.at_layer(caches, carry, index)
            y, new = routing.run(self.block, params, x, carry, keywords)
            kept = y.shape == x.shape and y.dtype == x.dtype
            expect(kept, f"the block to keep {describe(x)}", y)
            caches, new = layer_cache.left(caches, new)
            return (y, caches), new

        if self.remat:
            # Inside a scan XLA cannot undo the recomputation by common subexpressions.
            policy = None if self.remat is True else self.remat
            step = jax.checkpoint(step, policy=policy, prevent_cse=False)
        index = jnp.arange(self.num_layers) if caches else None
        (x, caches), new = jax.lax.scan(
            step, (x, caches), (params, carry, keys, index),
            length=self.num_layers, unroll=self.unroll,
        )  # fmt: skip
        return x if carry is None else (x, layer_cache.join(caches, new))

    def init_cache(self, *sizes: Any, **options: Any) -> Any:
        """Empty caches of all layers, stacked like params; see `Attention`."""
        cache = self.block.init_cache(*sizes, **options)  # type: ignore[attr-defined]
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (self.num_layers, *leaf.shape)), cache
        )


def stack(blocks: Sequence[Module], remat: bool | Callable[..., Any] = False) -> Module:
    """Applies blocks in a row, in as few scans as there are kinds of stretches of them.

    Equal blocks become one `Repeat`, a pattern that comes round (a local and a global
    layer in turn, say) a `Repeat` of its cycle, and several stretches a `Sequential` of
    those: so paths are `attn/q/kernel`, `1/attn/q/kernel` (second of a cycle) or
    `0/1/attn/q/kernel` (in the first stretch). `layers` says which layer is where.

    >>> from jaxdl import nn
    >>> wide, narrow = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    >>> [r.num_layers for r in stack([wide] * 3 + [narrow, wide] * 4).members()]
    [3, 4]
    """
    stretches = []
    while blocks:
        period, times = _longest_cycle(blocks)
        cycle = blocks[0] if period == 1 else Sequential(tuple(blocks[:period]))
        stretches.append(Repeat(cycle, times, remat))
        blocks = blocks[period * times :]
    return stretches[0] if len(stretches) == 1 else Sequential(stretches)


def layers(stacked: Module) -> list[tuple[str, int]]:
    """The path of each layer of a `stack`, and its index in the arrays there.

    >>> from jaxdl import nn
    >>> wide, narrow = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
    >>> layers(stack([wide, narrow, wide, narrow, narrow]))
    [('0/0', 0), ('0/1', 0), ('0/0', 1), ('0/1', 1), ('1', 0)]
    """
    if isinstance(stacked, Sequential):
        found = enumerate(map(layers, stacked.members()))  # type: ignore[arg-type]
        return [(join(str(i), p), n) for i, places in found for p, n in places]
    if not isinstance(stacked, Repeat):
        raise TypeError(f"expected what nn.stack returns, got {type(stacked).__name__}")
    cycle = stacked.block
    names = [""]
    if isinstance(cycle, Sequential):
        names = [str(i) for i in range(len(cycle.members()))]
    return [(name, n) for n in range(stacked.num_layers) for name in names]


def _longest_cycle(blocks: Sequence[Module]) -> tuple[int, int]:
    """The period and the number of rounds that cover most from the start on."""
    best = (1, 1)
    for period in range(1, len(blocks) // 2 + 1):
        times = 1
        while blocks[times * period : (times + 1) * period] == blocks[:period]:
            times += 1
        if times > 1 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _stack(node: Any, size: int) -> Any:
    if isinstance(node, Declaration):
        return node.stack(size)
    return {name: _stack(value, size) for name, value in node.items()}
