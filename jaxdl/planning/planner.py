"""Compiles a step for a target, which need not be there, and reports what it takes."""

from collections.abc import Callable, Mapping
import inspect
import math
import time
from typing import Any

import jax

from jaxdl.core import tree
from jaxdl.planning.flops import Trips, jaxpr_flops
from jaxdl.planning.liveness import liveness
from jaxdl.planning.out_of_memory import OutOfMemory, is_out_of_memory, larger
from jaxdl.planning.report import Memory, Report
from jaxdl.planning.roofline import roofline
from jaxdl.planning.targets import Target, target, target_of
from jaxdl.planning.tracing import trace
from jaxdl.planning.traffic import memory_traffic
from jaxdl.shard import hlo

PyTree = Any


class Plan:
    """`jd.plan(step, *args, target="v5e:4x8")`: compiles a step and reports on it.

    Nothing is allocated and no accelerator is needed or taken: the target's compiler
    runs here. `jd.plan.devices` are what a mesh of a target is made of.
    """

    def __call__(
        self,
        step: Callable,
        *args: PyTree,
        target: str | None = None,
        trips: Trips = None,
        compiler_options: Mapping[str, Any] | None = None,
    ) -> Report:
        """Compiles `step(*args)` for a target, and reports what it needs and takes.

        step: any pure function, jitted or not; what it donates is taken into account.
        args: pytrees of arrays, or of `jax.ShapeDtypeStruct`s in their place. Their
          shardings say where they go: on the target's own devices (`plan.devices`), or
          on as many others, or on an `AbstractMesh`. Then the mesh is built of the
          target's, and the same step and arguments serve any target of that size. One
          device needs no shardings.
        target: see `plan.devices`; unless given, the devices that the arguments are on.
        trips: how often while loops run, where the program does not say; see
          `count_flops`.
        compiler_options: XLA's, as `jax.jit` takes them.

        Raises ValueError for a target that does not fit the arguments, ImportError
        where its compiler is not installed, OutOfMemory where the program does not fit.
        """
        chosen = _target(target, args)
        options = dict(compiler_options or {})
        try:
            return _planned(step, args, chosen, trips, options)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = error
        _, placed = trace(step, args, chosen)
        groups = argument_groups(step, placed)
        other = _on_larger(step, args, chosen, trips, options)
        raise OutOfMemory(chosen, failed, groups, other) from None

    def devices(self, target: str) -> list[Any]:
        """The devices of a target, to build a mesh of; see `jaxdl.planning.target`."""
        return list(_find(target).devices)


plan = Plan()

_find = target


def _target(name: str | None, args: tuple) -> Target:
    if name is not None:
        return _find(name)
    mesh = _mesh(args)
    if mesh is not None:
        return target_of(tuple(mesh.devices.flat))
    raise ValueError(
        'plan: expected a target, as target="v5e:4x8", or arguments with shardings on '
        "the devices to plan for"
    )


def argument_groups(step: Callable, args: tuple) -> dict[str, int]:
    """Bytes on each device by argument and the first name in it: `state/params`."""
    names = _argument_names(step, len(args))
    groups: dict[str, int] = {}
    for name, arg in zip(names, args, strict=True):
        for path, leaf in tree.flatten(arg).items():
            parts = path.split("/")
            group = f"{name}/{parts[0]}" if len(parts) > 1 else name
            shape = leaf.sharding.shard_shape(leaf.shape)
            size = math.prod(shape) * leaf.dtype.itemsize
            groups[group] = groups.get(group, 0) + size
    return groups


def _argument_names(step: Callable, number: int) -> list[str]:
    try:
        names = list(inspect.signature(step).parameters)[:number]
    except (TypeError, ValueError):
        names = []
    return [*names, *map(str, range(len(names), number))]


def _planned(step, args, chosen: Target, trips: Trips, options: dict) -> Report:
    started = time.perf_counter()
    traced, placed = trace(step, args, chosen)
    lowered_at = time.perf_counter()
    lowered = traced.lower(lowering_platforms=(chosen.platform,))
    compiled_at = time.perf_counter()
    compiled = lowered.compile(options or None)
    seconds = {
        "trace": lowered_at - started,
        "lower": compiled_at - lowered_at,
        "compile": time.perf_counter() - compiled_at,
    }
    flops = jaxpr_flops(traced.jaxpr.jaxpr, trips)
    groups = argument_groups(step, placed)
    return _report(chosen, compiled, flops, groups, placed, seconds)


def _on_larger(step, args, chosen: Target, trips: Trips, options) -> Report | None:
    """The report of a chip with more memory; None where it does not fit either."""
    name = larger(chosen)
    if name is None:
        return None
    try:
        return _planned(step, args, _find(name), trips, options)
    except (jax.errors.JaxRuntimeError, ValueError):
        return None


def _report(chosen: Target, compiled, flops, groups, placed, seconds) -> Report:
    text = compiled.as_text()
    program = hlo.parse(text)
    mesh = _mesh(placed)
    collectives = tuple(hlo.collectives(program, mesh))
    traffic = memory_traffic(program)
    number = len(chosen.devices)
    times = None
    if chosen.chip is not None:
        each = flops.hardware / number
        times = roofline(chosen.chip, each, traffic, collectives, mesh)
    return Report(
        target=chosen.name,
        devices=number,
        mesh=dict(mesh.shape) if mesh is not None else {},
        chip=chosen.chip,
        memory=_memory(compiled.memory_analysis(), groups, chosen),
        flops=flops,
        traffic=traffic,
        collectives=collectives,
        liveness=liveness(program),
        roofline=times,
        seconds=seconds,
        notes=tuple(_notes(flops, program)),
    )


def _mesh(args: tuple) -> jax.sharding.Mesh | None:
    """The first mesh of devices that an argument is on."""
    for leaf in jax.tree.leaves(args):
        mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
        if isinstance(mesh, jax.sharding.Mesh):
            return mesh
    return None


def _memory(stats: Any, groups: Mapping[str, int], chosen: Target) -> Memory:
    return Memory(
        arguments=groups,
        laid_out=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        # On CPU it leaves the temporaries out.
        peak=None if chosen.platform == "cpu" else stats.peak_memory_in_bytes,
        available=None if chosen.chip is None else chosen.chip.memory,
    )


def _notes(flops: Any, program: hlo.Program):
    if flops.loops:
        yield (
            f"loops of unknown length count once, give trips: {', '.join(flops.loops)}"
        )
    elif program.unknown_loops:
        number = len(program.unknown_loops)
        yield f"the compiled program does not tell how often {number} of its loops run"
    if flops.opaque:
        yield f"FLOPs not counted: {', '.join(flops.opaque)}"
