"""Any step traced as for the devices of a target, wherever its arguments are."""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.sharding import AbstractMesh, Mesh, NamedSharding, SingleDeviceSharding
import numpy as np

from jaxdl.core import jaxprs
from jaxdl.planning.targets import Target

PyTree = Any


def trace(step: Callable, args: tuple, target: Target) -> tuple[Any, tuple]:
    """Traces `step(*args)` on a target: what `jax.jit` traces, and the arguments.

    args: pytrees of arrays or of anything with shape and dtype. Their shardings may be
      on the target's devices, or on as many others (or an `AbstractMesh`): the mesh is
      then built on the target's, in the arguments and all over the program. Without
      shardings the target must be one device.

    The arguments come back as `jax.ShapeDtypeStruct`s with shardings on the target.

    Raises ValueError where the number of devices differs.
    """
    moved = Move(args, target)
    placed = moved.arguments(args)
    if moved.is_there:
        function = step if hasattr(step, "trace") else jax.jit(step)
        return function.trace(*placed), placed
    return _rebuilt(step, args, placed, moved), placed


class Move:
    """Where each mesh of a program goes on a target.

    is_there: whether all of it is there already.
    mesh: the arguments' mesh on the target; None where they have none.
    """

    def __init__(self, args: tuple, target: Target):
        meshes = [s.mesh for s in map(_sharding, jax.tree.leaves(args)) if s]
        # One of devices tells more than an abstract one.
        meshes.sort(key=lambda mesh: isinstance(mesh, AbstractMesh))
        main = meshes[0] if meshes else None
        _check(main, target)
        self._target, self._main = target, main
        self.is_there = False
        self.mesh: Mesh | None = None
        if isinstance(main, Mesh) and set(main.devices.flat) == set(target.devices):
            self.is_there, self.mesh = True, main
        elif main is not None:
            self.mesh = _arranged(main, target)

    def arguments(self, args: tuple) -> tuple:
        """The arguments as shapes with shardings on the target."""

        def place(leaf: Any) -> jax.ShapeDtypeStruct:
            leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
            sharding = _sharding(leaf)
            if self.mesh is None:
                placed: Any = SingleDeviceSharding(self._target.devices[0])
            elif sharding is None:
                placed = NamedSharding(self.mesh, jax.sharding.PartitionSpec())
            else:
                placed = self(sharding)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

        return jax.tree.map(place, args)

    def __call__(self, value: Any) -> Any:
        """A mesh or sharding of the program on the target; anything else as it is."""
        if isinstance(value, NamedSharding):
            host = value.memory_kind if "host" in (value.memory_kind or "") else None
            return NamedSharding(
                self._on_target(value.mesh), value.spec, memory_kind=host
            )
        if isinstance(value, SingleDeviceSharding) and self.mesh is None:
            return SingleDeviceSharding(self._target.devices[0])
        if isinstance(value, Mesh) and not value.empty:
            return self._on_target(value)
        return value

    def _on_target(self, mesh: Mesh | AbstractMesh) -> Mesh:
        types = {"axis_types": mesh.axis_types}
        if mesh.size == 1:
            one = np.array(self._target.devices[:1]).reshape(tuple(mesh.shape.values()))
            return Mesh(one, mesh.axis_names, **types)
        main, moved = self._main, self.mesh
        if moved is not None and dict(mesh.shape) == dict(moved.shape):
            return moved
        if moved is not None and isinstance(main, Mesh) and isinstance(mesh, Mesh):
            # Another arrangement of the same devices stays one.
            new = dict(zip(main.devices.flat, moved.devices.flat, strict=True))
            if new.keys() >= set(mesh.devices.flat):
                devices = np.array([new[device] for device in mesh.devices.flat])
                shape = mesh.devices.shape
                return Mesh(devices.reshape(shape), mesh.axis_names, **types)
        expected = dict(main.shape) if main is not None else "none"
        raise ValueError(
            f"expected one mesh all over the step, that of its arguments ({expected}), "
            f"got {dict(mesh.shape)} too"
        )


def _rebuilt(step: Callable, args: tuple, placed: tuple, moved: Move) -> Any:
    """The step as a program of flat arguments, with its donation and out_shardings."""
    jaxpr = jax.make_jaxpr(step)(*args)
    moved_jaxpr = ClosedJaxpr(jaxprs.with_params(jaxpr.jaxpr, moved), jaxpr.consts)
    (eqn, *rest) = moved_jaxpr.jaxpr.eqns
    options: dict[str, Any] = {}
    if eqn.primitive.name in jaxprs.INLINED and not rest:
        inputs = {variable: i for i, variable in enumerate(moved_jaxpr.jaxpr.invars)}
        options["donate_argnums"] = [
            inputs[variable]
            for variable, donated in zip(
                eqn.invars, eqn.params["donated_invars"], strict=True
            )
            if donated and variable in inputs
        ]
        out = zip(eqn.outvars, eqn.params["out_shardings"], strict=True)
        known = {v: s for v, s in out if isinstance(s, jax.sharding.Sharding)}
        results = moved_jaxpr.jaxpr.outvars
        options["out_shardings"] = [known.get(variable) for variable in results]
    flat = jaxpr_as_fun(moved_jaxpr)
    flat.__name__ = getattr(step, "__name__", "step")  # type: ignore[attr-defined]
    return jax.jit(flat, **options).trace(*jax.tree.leaves(placed))


def _sharding(leaf: Any) -> NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def _check(mesh: Mesh | AbstractMesh | None, target: Target) -> None:
    number = len(target.devices)
    if mesh is None and number > 1:
        raise ValueError(
            f"{target.name} has {number} devices: expected arguments with shardings, "
            f"as on jd.mesh(..., devices=jd.plan.devices({target.name!r}))"
        )
    if mesh is not None and mesh.size != number:
        raise ValueError(
            f"{target.name} has {number} devices: expected arguments on as many, got "
            f"a mesh {dict(mesh.shape)}; build them on "
            f"jd.mesh(..., devices=jd.plan.devices({target.name!r}))"
        )


def _arranged(mesh: Mesh | AbstractMesh, target: Target) -> Mesh:
    """A mesh of the same axes, neighbours next to each other."""
    shape = tuple(mesh.shape.values())
    slices = len({getattr(device, "slice_index", 0) for device in target.devices})
    options: dict[str, Any] = {"allow_split_physical_axes": True}
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(shape, target.devices, **options)
    else:
        outer = _cut(shape, slices)
        inner = [size // cut for size, cut in zip(shape, outer, strict=True)]
        arranged = mesh_utils.create_hybrid_device_mesh(
            inner, outer, target.devices, **options
        )
    return Mesh(arranged, mesh.axis_names, axis_types=mesh.axis_types)


def _cut(shape: tuple[int, ...], slices: int) -> list[int]:
    """Into how many slices each axis is cut: the first axes, as far as they go."""
    cuts = []
    for size in shape:
        cuts.append(math.gcd(size, slices))
        slices //= cuts[-1]
    if slices > 1:
        raise ValueError(f"expected axes that divide into the slices, got {shape}")
    return cuts
