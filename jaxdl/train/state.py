"""Everything a training run carries from step to step, as one value."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
from jax.core import Tracer
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import optax

from jaxdl import shard
from jaxdl.core.layout import Kind, Rules
from jaxdl.core.module import Module, is_stateful

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

    @classmethod
    def sharded(
        cls,
        model: Any,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        rules: Rules,
        *,
        key: jax.Array,
        ema: bool = False,
        axes: PyTree = None,
        overrides: Mapping[str, PartitionSpec] | None = None,
    ) -> "TrainState":
        """Builds the state of step 0 on a mesh, each array where it belongs.

        One compiled program: no array is whole on a host or device. The values are
        those of `create(model.init(key), optimizer, key=key)`, with the model's state.

        model: a Module, or a function from a key to params of any kind, with `axes`.
        rules, axes, overrides: see `jd.shard.shardings`. The optimizer's state and the
          average follow the params, as `jd.shard.optimizer_state` says; the model's
          state and the rest are whole on every device.

        Raises TypeError when `key` is not a typed key.
        """
        build = _builder(cls, model, optimizer, ema)
        abstract = cls.abstract(
            model, optimizer, mesh, rules,
            key=key, ema=ema, axes=axes, overrides=overrides,
        )  # fmt: skip
        return jax.jit(build, out_shardings=abstract.shardings)(key)

    @classmethod
    def abstract(
        cls,
        model: Any,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        rules: Rules,
        *,
        key: jax.Array | None = None,
        ema: bool = False,
        axes: PyTree = None,
        overrides: Mapping[str, PartitionSpec] | None = None,
    ) -> "TrainState":
        """The state that `sharded` builds, as `jax.ShapeDtypeStruct`s with shardings.

        Nothing is allocated, and the mesh may be of devices that are not there.
        """
        key = jax.random.key(0) if key is None else key
        _check_key(key)
        shapes = jax.eval_shape(_builder(cls, model, optimizer, ema), key)
        whole = NamedSharding(mesh, PartitionSpec())
        placed = jax.tree.map(lambda _: whole, shapes)

        def params(kind: Kind) -> PyTree:
            of = model if isinstance(model, Module) else shapes.params
            return shard.shardings(
                of, mesh, rules, axes=axes, overrides=overrides, kind=kind
            )

        placed = placed.replace(
            params=params("parameter"),
            ema=params("optimizer") if ema else None,
            opt_state=shard.optimizer_state(
                optimizer, shapes.params, params("optimizer")
            ),
        )
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=sharding
            ),
            shapes,
            placed,
        )

    @property
    def shardings(self) -> "TrainState":
        """The sharding of every leaf; `make_step(..., shardings=state.shardings)`."""
        return jax.tree.map(lambda leaf: leaf.sharding, self)


def _builder(cls, model: Any, optimizer: Any, ema: bool) -> Callable:
    """`key -> state of step 0`, for jit and for shapes alone."""
    stateful = is_stateful(model)

    def build(key: jax.Array) -> TrainState:
        params = model.init(key) if isinstance(model, Module) else model(key)
        state = model.init_state(key) if stateful else None
        return cls.create(params, optimizer, key=key, model_state=state, ema=ema)

    return build


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
