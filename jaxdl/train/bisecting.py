"""Where two runs part: the first step, and the first array of it."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.core import tree
from jaxdl.train.checkpoint import Checkpoints

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that can be run again, as `fit` would: what follows from (seed, step).

    start: a function that makes the state of step 0.
    step: from `make_step`, or any `(state, batch) -> (state, metrics)`.
    data: a function of the step, counted from 0.
    probe: `(state, batch) -> values by name`, in the order in which they come to be, to
      see which differs first within a step: `jd.capture` of the loss, say.
    checkpoints: of the run as it was; where both runs have them and they are equal, the
      search begins there.
    """

    start: Callable[[], PyTree]
    step: Callable[[PyTree, PyTree], tuple[PyTree, Mapping[str, Any]]]
    data: Callable[[int], PyTree]
    probe: Callable[[PyTree, PyTree], Mapping[str, Any]] | None = None
    checkpoints: Checkpoints | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first step whose values differ, and what of it differs first.

    step: counted from 0, as the data's; -1 if the runs start from other states.
    where: state (before the step), batch, probe, metrics, or state after it ("result").
    path: of the first array that differs there, in order; for a state, that which
      differs most.
    largest: the largest difference in it; inf for one that is not finite on one side,
      or of another shape or dtype.
    paths: all that differ there.
    """

    step: int
    where: str
    path: str
    largest: float
    paths: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return (
            f"step {self.step}: {self.where} differs at {self.path}{more}, by at most "
            f"{self.largest:.3g}"
        )


def bisect(
    one: Run, other: Run, *, steps: int, tolerance: float = 0.0
) -> Difference | None:
    """Finds the first step at which two runs differ by more than `tolerance`.

    Both are run side by side from the last checkpoints that are equal, or from the
    start, one step at a time; what a step reads is compared before what it makes of it.
    None if nothing differs in `steps` steps.

    ```python
    run = Run(create, make_step(loss_fn, optimizer), data)
    fast = dataclasses.replace(run, step=make_step(fused_loss_fn, optimizer))
    print(bisect(run, fast, steps=1000, tolerance=1e-5))
    ```
    """
    first, a, b = _common(one, other, steps, tolerance)
    if found := _first(first - 1, "state", a, b, tolerance, most=True):
        return found
    for index in range(first, steps):
        batches = one.data(index), other.data(index)
        if found := _first(index, "batch", *batches, tolerance):
            return found
        if one.probe and other.probe:
            probed = one.probe(a, batches[0]), other.probe(b, batches[1])
            if found := _first(index, "probe", *probed, tolerance):
                return found
        (a, first_metrics), (b, metrics) = (
            one.step(a, batches[0]),
            other.step(b, batches[1]),
        )
        if found := _first(index, "metrics", first_metrics, metrics, tolerance):
            return found
        if found := _first(index, "result", a, b, tolerance, most=True):
            return found
    return None


def _common(one: Run, other: Run, steps: int, tolerance: float):
    """The last step at which the saved states are equal, and both states there."""
    a, b = one.start(), other.start()
    if one.checkpoints is None or other.checkpoints is None:
        return 0, a, b
    both = set(one.checkpoints.steps()) & set(other.checkpoints.steps())
    known = sorted(step for step in both if step <= steps)
    low, high = 0, len(known)  # those before low are equal, those from high on are not
    while low < high:
        middle = (low + high) // 2
        saved = _saved(one, a, known[middle]), _saved(other, b, known[middle])
        if _first(0, "state", *saved, tolerance) is None:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return 0, a, b
    step = known[low - 1]
    return step, _saved(one, a, step), _saved(other, b, step)


def _saved(run: Run, like: PyTree, step: int) -> PyTree:
    assert run.checkpoints is not None
    return run.checkpoints.restore(like, step)


def _first(
    step: int, where: str, a: PyTree, b: PyTree, tolerance: float, most: bool = False
) -> Difference | None:
    left, right = _named(a), _named(b)
    sizes = {name: _distance(left.get(name), right.get(name)) for name in left | right}
    differ = [name for name, size in sizes.items() if not size <= tolerance]
    if not differ:
        return None
    path = max(differ, key=sizes.__getitem__) if most else differ[0]
    return Difference(step, where, path, sizes[path], tuple(differ))


def _named(values: PyTree) -> dict[str, Any]:
    """The leaves by path, those of a mapping of arrays in its own order."""
    if isinstance(values, Mapping) and all(
        hasattr(v, "dtype") for v in values.values()
    ):
        return dict(values)
    return tree.flatten(values)


def _distance(a: Any, b: Any) -> float:
    if a is None or b is None:
        return float("inf")
    a, b = (
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in (jnp.asarray(a), jnp.asarray(b))
    )
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    return float(_largest(a, b)) if a.size else 0.0


@jax.jit
def _largest(a: jax.Array, b: jax.Array) -> jax.Array:
    same = (a == b) | ((a != a) & (b != b))
    wide = jnp.promote_types(a.dtype, jnp.float32)
    gap = jnp.abs(a.astype(wide) - b.astype(wide)).astype(jnp.float32)
    gap = jnp.where(jnp.isfinite(gap), gap, jnp.inf)
    return jnp.where(same, 0, gap).max()
