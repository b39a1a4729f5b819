"""One step, traced, lowered and compiled for one target, and what is read off it."""

from collections.abc import Callable, Iterator, Mapping
import hashlib
import importlib.metadata
import inspect
import json
import math
import os
from pathlib import Path
import time
from typing import Any

import jax

from jaxdl.core import tree
from jaxdl.planning.flops import Trips, jaxpr_flops
from jaxdl.planning.liveness import liveness
from jaxdl.planning.out_of_memory import OutOfMemory, is_out_of_memory
from jaxdl.planning.report import Memory, Report
from jaxdl.planning.roofline import roofline
from jaxdl.planning.targets import Target
from jaxdl.planning.tracing import trace
from jaxdl.planning.traffic import memory_traffic
from jaxdl.shard import hlo


def measure(
    step: Callable,
    args: tuple,
    target: Target,
    trips: Trips = None,
    options: Mapping[str, Any] | None = None,
    remember: str | Path | None = None,
) -> Report:
    """The report of `step(*args)` on a target.

    remember: a directory where reports are kept, by the program, the target and the
      versions of what compiles it: what was compiled once is read back.

    Raises OutOfMemory, without a report of a larger chip, where it does not fit.
    """
    started = time.perf_counter()
    traced, placed = trace(step, args, target)
    lowered_at = time.perf_counter()
    lowered = traced.lower(lowering_platforms=(target.platform,))
    options = dict(options or {})
    groups = argument_groups(step, placed)
    memo = _Memo(remember, lowered, target, options, trips)
    if (known := memo.read()) is not None:
        if "refused" in known:
            raise OutOfMemory(target, RuntimeError(known["refused"]), groups, None)
        return Report.from_dict(known)
    compiled_at = time.perf_counter()
    try:
        compiled = lowered.compile(options or None)
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        memo.write({"refused": str(error)})
        raise OutOfMemory(target, error, groups, None) from None
    seconds = {
        "trace": lowered_at - started,
        "lower": compiled_at - lowered_at,
        "compile": time.perf_counter() - compiled_at,
    }
    flops = jaxpr_flops(traced.jaxpr.jaxpr, trips)
    report = _report(target, compiled, flops, groups, mesh_of(placed), seconds)
    memo.write(report.to_dict())
    return report


class _Memo:
    """A file that holds what compiling a program for a target gave."""

    def __init__(self, directory, lowered, target: Target, options: dict, trips):
        self._path: Path | None = None
        if directory is not None:
            kinds = [device.device_kind for device in target.devices]
            about = (target.name, kinds, sorted(options.items()), trips, _versions())
            text = f"{about!r}\n{lowered.as_text()}"
            name = hashlib.sha256(text.encode()).hexdigest()[:32]
            self._path = Path(directory) / f"{name}.json"

    def read(self) -> dict | None:
        """What was written, or None; a torn file counts as none."""
        if self._path is None or not self._path.exists():
            return None
        try:
            return json.loads(self._path.read_text("utf-8"))
        except ValueError:
            return None

    def write(self, value: dict) -> None:
        """Keeps a value, whole or not at all."""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            written = self._path.with_suffix(f".{os.getpid()}.tmp")
            written.write_text(json.dumps(value), "utf-8")
            os.replace(written, self._path)


def _versions() -> list[str]:
    found = []
    for package in ("jaxdl", "jax", "jaxlib", "libtpu", "jax-cuda12-pjrt"):
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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


def _report(target: Target, compiled, flops, groups, mesh, seconds) -> Report:
    program = hlo.parse(compiled)
    collectives = tuple(hlo.collectives(program, mesh))
    traffic = memory_traffic(program)
    number = len(target.devices)
    times = None
    if target.chip is not None:
        each = flops.hardware / number
        times = roofline(target.chip, each, traffic, collectives, mesh)
    return Report(
        target=target.name,
        devices=number,
        mesh=dict(mesh.shape) if mesh is not None else {},
        chip=target.chip,
        memory=_memory(compiled.memory_analysis(), groups, target),
        flops=flops,
        traffic=traffic,
        collectives=collectives,
        liveness=liveness(program),
        roofline=times,
        seconds=seconds,
        notes=tuple(_notes(flops, program)),
    )


def mesh_of(args: tuple) -> jax.sharding.Mesh | None:
    """The first mesh of devices that an argument is on."""
    for leaf in jax.tree.leaves(args):
        mesh = getattr(getattr(leaf, "sharding", None), "mesh", None)
        if isinstance(mesh, jax.sharding.Mesh):
            return mesh
    return None


def _memory(stats: Any, groups: Mapping[str, int], target: Target) -> Memory:
    return Memory(
        arguments=groups,
        laid_out=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        # On CPU it leaves the temporaries out.
        peak=None if target.platform == "cpu" else stats.peak_memory_in_bytes,
        available=None if target.chip is None else target.chip.memory,
    )


def _notes(flops: Any, program: hlo.Program) -> Iterator[str]:
    if flops.loops:
        yield (
            f"loops of unknown length count once, give trips: {', '.join(flops.loops)}"
        )
    elif program.unknown_loops:
        number = len(program.unknown_loops)
        yield f"the compiled program does not tell how often {number} of its loops run"
    if flops.opaque:
        yield f"FLOPs not counted: {', '.join(flops.opaque)}"
