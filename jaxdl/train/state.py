"""Everything a training run carries from step to step, as one value."""

from typing import Any

import flax.struct
import jax
from jax.core import Tracer
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import optax

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """The state of a run: a pytree, so that it can be jitted, donated, saved, sharded.

    Batch order and dropout follow from `key` and `step` alone, so that a run restored
    from its state goes on exactly as if it had never stopped.

    params: what the optimizer changes, in the dtype it is trained in.
    model_state: what the forward pass changes (BatchNorm statistics, ...), or None.
    opt_state: the optimizer's state.
    step: int32, how many steps are done.
    key: typed key of the run; the key of a step is `fold_in(key, step)`.
    ema: moving average of the params, at least float32, or None.
    skipped: int32, how many steps were dropped because they were not finite.
    """

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    step: jax.Array
    key: jax.Array
    ema: PyTree
    skipped: jax.Array

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        *,
        key: jax.Array,
        model_state: PyTree = None,
        ema: bool = False,
    ) -> "TrainState":
        """Builds the state of step 0.

        Every array is copied: the caller's params stay valid after the step has donated
        the state, and no two leaves share a buffer, whatever the optimizer keeps.
        Leaves that live on one device follow the params onto their mesh, replicated.

        Raises TypeError when `key` is not a typed key (`jax.random.key`).
        """
        _check_key(key)
        state = cls(
            params=params,
            model_state=model_state,
            opt_state=optimizer.init(params),
            step=jnp.int32(0),
            key=key,
            ema=jax.tree.map(_at_least_float32, params) if ema else None,
            skipped=jnp.int32(0),
        )
        return _onto_one_mesh(jax.tree.map(_copy, state))

    @property
    def shardings(self) -> "TrainState":
        """The sharding of every leaf; `make_step(..., shardings=state.shardings)`."""
        return jax.tree.map(lambda leaf: leaf.sharding, self)


def _check_key(key: Any) -> None:
    dtype = getattr(key, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise TypeError(f"key: expected a typed key, jax.random.key(seed), got {key!r}")


def _copy(leaf: Any) -> jax.Array:
    # A strong dtype: a weakly typed leaf would change type in the first update and make
    # the second call trace again.
    if isinstance(leaf, jax.Array) and not jax.typeof(leaf).weak_type:
        return jnp.copy(leaf)
    return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)


def _at_least_float32(leaf: jax.Array) -> jax.Array:
    # In bfloat16 an average that moves by less than 1/256 of a value does not move.
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _onto_one_mesh(state: TrainState) -> TrainState:
    """Replicates the leaves not on the params' mesh yet; else jit compiles twice."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state)):
        return state
    shardings = [leaf.sharding for leaf in jax.tree.leaves(state.params)]
    meshes = [s.mesh for s in shardings if isinstance(s, NamedSharding)]
    if not meshes:
        return state
    replicated = NamedSharding(meshes[0], PartitionSpec())
    # Not device_put: among several processes it cannot place typed keys.
    place = jax.jit(lambda leaf: leaf, out_shardings=replicated)

    def follow(leaf: jax.Array) -> jax.Array:
        return leaf if isinstance(leaf.sharding, NamedSharding) else place(leaf)

    return jax.tree.map(follow, state)
