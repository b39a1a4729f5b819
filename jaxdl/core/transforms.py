"""capture and patch: read and change the tapped values of any function.

Both trace the function to a jaxpr, run it piece by piece, and rebuild the loops that
hold a wanted tap. What holds none runs exactly as it was traced. A tap inside a
construct that cannot be rebuilt without changing its meaning (a while loop, a cond, a
shard_map, a custom derivative rule) is refused with an error that says where to put it
instead.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
import numpy as np

from jaxdl.core import edit as edits_module
from jaxdl.core import tree
from jaxdl.core.jaxprs import TapInfo, find_taps
from jaxdl.core.rerun import Request, rerun


def capture(function: Callable, *patterns: str) -> Callable:
    """Makes a function that also returns tapped values: `(result, {name: value})`.

    Patterns are those of paths (`*` one name, `**` any number of names). A tap inside
    `nn.Repeat` or a scan has a leading axis of layers, one under vmap a leading batch
    axis within that. The second value of the same name is `name@1`. Only what is asked
    for is kept. Differentiate the result: `grad(capture(f))`, not `capture(grad(f))`.

    Raises ValueError when a pattern fits no tap, or one that cannot be reached.

    >>> from jaxdl.core.tap_primitive import tap
    >>> def f(x):
    ...     return tap(x + 1.0, "hidden") * 2.0
    >>> result, values = capture(f, "hidden")(3.0)
    >>> float(result), float(values["hidden"])
    (8.0, 4.0)
    """

    @functools.wraps(function)
    def captured(*args, **kwargs):
        traced = _Traced(function, args, kwargs)
        names = traced.select(patterns)
        return traced.run(Request(frozenset(names), {}))

    return captured


def patch(function: Callable, edits: Mapping[str, Any]) -> Callable:
    """Makes the same function with tapped values changed: `{pattern: edit}`.

    An edit is a function of the value, or an array that replaces it (with a leading
    axis of layers for a tap inside a scan). `at(layer, edit)` changes one layer, and
    `by_layer(f, arrays)` gives each layer its own. Several edits that fit one tap are
    applied in order.

    Raises ValueError when a pattern fits no tap, or one that cannot be reached, and
    when an edit changes the shape.

    >>> from jaxdl.core.tap_primitive import tap
    >>> def f(x):
    ...     return tap(x + 1.0, "hidden") * 2.0
    >>> float(patch(f, {"hidden": lambda value: 0.0 * value})(3.0))
    0.0
    """

    @functools.wraps(function)
    def patched(*args, **kwargs):
        traced = _Traced(function, args, kwargs)
        changes = {
            (name, number): edits_module.as_edit(edit)
            for number, (pattern, edit) in enumerate(edits.items())
            for name in traced.select([pattern])
        }
        result, _ = traced.run(Request(frozenset(), changes))
        return result

    return patched


def taps(
    function: Callable, *args: Any, **kwargs: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    """Lists the taps of a function by name, with the shape a capture would have.

    Takes arrays or `jax.ShapeDtypeStruct`s; nothing is computed. Taps that capture
    cannot reach are left out.
    """
    found = _Traced(function, args, kwargs).taps
    return {
        name: jax.ShapeDtypeStruct(tap.shape, tap.dtype)
        for name, tap in found.items()
        if tap.obstacle is None
    }


class _Traced:
    """A function traced at some arguments: its jaxpr, its taps, and how to run it."""

    def __init__(self, function: Callable, args: tuple, kwargs: dict):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        # Only arrays are traced. Python scalars stay what they are, so that a function
        # may branch on `train=True` just as when it is called directly.
        dynamic = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

        def flat(*arrays):
            filled = list(leaves)
            for index, array in zip(dynamic, arrays, strict=True):
                filled[index] = array
            args, kwargs = jax.tree.unflatten(treedef, filled)
            return function(*args, **kwargs)

        self.arrays = [leaves[i] for i in dynamic]
        self.jaxpr, out = jax.make_jaxpr(flat, return_shape=True)(*self.arrays)
        self.outdef = jax.tree.structure(out)
        self.taps: dict[str, TapInfo] = find_taps(self.jaxpr.jaxpr)

    def select(self, patterns) -> list[str]:
        """The names that fit the patterns, each of which must fit one within reach."""
        names = list(self.taps)
        bases = {name: name.partition("@")[0] for name in names}
        chosen = []
        for pattern in patterns:
            fits = [
                n for n in names if any(tree.matches(pattern, m) for m in (n, bases[n]))
            ]
            if not fits:
                raise ValueError(
                    f"pattern {pattern!r} fits no tap; "
                    f"{tree.suggestion(pattern, names)}"
                )
            chosen += fits
        for name in chosen:
            if self.taps[name].obstacle is not None:
                raise ValueError(f"{name}: {self.taps[name].obstacle}")
        return chosen

    def run(self, request: Request) -> tuple[Any, dict[str, jax.Array]]:
        outs, captured = rerun(self.jaxpr, self.arrays, request)
        return jax.tree.unflatten(self.outdef, outs), captured


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)
