"""Compiles a step for a target, which need not be there, and reports what it takes."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxdl.planning.flops import Trips
from jaxdl.planning.measuring import measure, mesh_of
from jaxdl.planning.out_of_memory import OutOfMemory, larger
from jaxdl.planning.report import Report
from jaxdl.planning.searching import Search, search
from jaxdl.planning.targets import Target, target_of
from jaxdl.planning.targets import target as find

PyTree = Any


class Plan:
    """`jd.plan(step, *args, target="v5e:4x8")`: compiles a step and reports on it.

    Nothing is allocated and no accelerator is needed or taken: the target's compiler
    runs here. `jd.plan.devices` are what a mesh of a target is made of, and
    `jd.plan.search` compares plans.
    """

    def __call__(
        self,
        step: Callable,
        *args: PyTree,
        target: str | None = None,
        trips: Trips = None,
        compiler_options: Mapping[str, Any] | None = None,
        remember: str | Path | None = None,
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
        remember: a directory where reports are kept: what was compiled for a target
          once is not compiled again.

        Raises ValueError for a target that does not fit the arguments, ImportError
        where its compiler is not installed, OutOfMemory where the program does not fit.
        """
        chosen = find(target) if target is not None else _there(args)
        try:
            return measure(step, args, chosen, trips, compiler_options, remember)
        except OutOfMemory as error:
            refused = error
        more = larger(chosen)
        if more is None:
            raise refused
        try:
            report = measure(step, args, find(more), trips, compiler_options, remember)
        except (OutOfMemory, ValueError):
            raise refused from None
        raise refused.with_report(report)

    def devices(self, target: str) -> list[Any]:
        """The devices of a target, to build a mesh of; see `jaxdl.planning.target`."""
        return list(find(target).devices)

    def search(
        self,
        build: Callable[..., tuple],
        *,
        target: str,
        trips: Trips = None,
        compiler_options: Mapping[str, Any] | None = None,
        remember: str | Path | None = None,
        **choices: Iterable[Any],
    ) -> Search:
        """Plans `build(**choice) -> (step, args)` for every choice, the best first.

        ```python
        found = jd.plan.search(
            build,
            target="v5e:4x8",
            remember="runs/plans",
            mesh=[{"fsdp": 32}, {"fsdp": 8, "tensor": 4}],
            microbatches=[1, 4],
        )
        print(found)
        ```

        choices: the values of each keyword of `build`; all combinations are tried. The
          sizes given as `mesh` become a `jd.mesh` on the target's devices.
        target, trips, compiler_options, remember: see `plan`.

        The best is the one that fits with the highest estimate of MFU if nothing hides
        communication; where the chip is not known, the one that takes least memory.
        What fails is a row of the table too, and does not end the search.
        """
        return search(build, find(target), choices, trips, compiler_options, remember)


plan = Plan()


def _there(args: tuple) -> Target:
    """The target that the arguments are on."""
    mesh: jax.sharding.Mesh | None = mesh_of(args)
    if mesh is None:
        raise ValueError(
            'plan: expected a target, as target="v5e:4x8", or arguments with shardings '
            "on the devices to plan for"
        )
    return target_of(tuple(mesh.devices.flat))
