"""Reads the text of an optimised XLA program: `compiled.as_text()`.

The dialects of CPU, GPU and TPU say the same in different words: a collective in one
instruction, in a start and a done, or in a fusion; groups of devices as lists, as an
iota or as axes; the iterations of a loop in its configuration or in its condition.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
from functools import cached_property
import math
import re
from typing import Any

from jaxdl.shard import hlo_text

Groups = tuple[tuple[int, ...], ...]

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of the program on every device.

    kind: one of `KINDS`, whatever the instruction is called.
    axes: the axes of the mesh over which devices differ; () without a mesh.
    group: how many devices take part in each.
    count: how often it runs in one call of the program.
    nbytes: of the whole array once, on one device: what an all-gather gives and a
      reduce-scatter takes.
    scope: the `jax.named_scope` it comes from; source: `file:line`. "" if unknown.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    count: int
    nbytes: int
    scope: str
    source: str

    @property
    def total(self) -> int:
        """Bytes of all its runs in one call."""
        return self.count * self.nbytes

    @property
    def traffic(self) -> float:
        """Bytes that a device sends in one call, around a ring of the group."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}
        return self.total * factor.get(self.kind, share)


def collectives(program: Any, mesh: Any = None) -> list[Collective]:
    """Every collective of a compiled program, in program order.

    program: what `.compile()` returns, or its text.
    mesh: whose axes to name: a `jax.sharding.Mesh`, or sizes by name in its order.

    Counts are those of loops whose number of iterations the text tells; other bodies
    count once. Bytes are those on the wire of this program: on CPU XLA sends bfloat16
    as float32.
    """
    parsed = parse(program)
    sizes = dict(getattr(mesh, "shape", mesh) or {})
    found: dict[tuple[str | None, ...], Collective] = {}
    for instruction, computation, count, caller in parsed.executed():
        if (kind := _kind(instruction, computation)) is None:
            continue
        groups = replica_groups(instruction)
        if groups is not None and max(map(len, groups), default=1) == 1:
            continue
        named = instruction if instruction.op_name else caller or instruction
        # TPU writes one asynchronous collective several times: where it starts, and in
        # the fusions that run beside it. Elsewhere those of jax.shard_map have the same
        # channel, and are several.
        wrapped = caller is not None and caller.opcode in ("fusion", "async-start")
        channel = instruction.attribute("channel_id") if wrapped else None
        found.setdefault(
            (kind, channel or instruction.name, named.op_name if channel else None),
            Collective(
                kind,
                varying_axes(groups, sizes),
                max(map(len, groups)) if groups else math.prod(sizes.values()),
                count,
                _nbytes(instruction, kind, groups),
                hlo_text.scope_of(named.op_name),
                parsed.source(named),
            ),
        )
    return list(found.values())


def parse(program: Any) -> "Program":
    """The program of a compiled function, or of its text."""
    if isinstance(program, Program):
        return program
    text = program if isinstance(program, str) else program.as_text()
    return Program(*hlo_text.read(text))


@dataclasses.dataclass(frozen=True)
class Program:
    """A program: its computations by name, and what its source positions mean.

    entry: the name of the computation that runs.
    frames: `file:line` by stack frame.
    """

    computations: Mapping[str, hlo_text.Computation]
    entry: str
    frames: Mapping[str, str]

    def source(self, instruction: hlo_text.Instruction) -> str:
        """`file:line` of the user's code that an instruction comes from, or ""."""
        if frame := instruction.attribute("stack_frame_id"):
            return self.frames.get(frame, "")
        file, line = map(instruction.attribute, ("source_file", "source_line"))
        return f"{file}:{line}" if file else ""

    def executed(self) -> Iterator[tuple[Any, hlo_text.Computation, int, Any]]:
        """Each instruction that runs, where it stands, how often, and what calls it.

        In program order; of a conditional, every branch.
        """
        yield from self._executed(self.entry, 1, None)

    @cached_property
    def unknown_loops(self) -> tuple[str, ...]:
        """The loops whose number of iterations the text does not tell."""
        loops = (i for i, *_ in self.executed() if i.opcode == "while")
        return tuple(loop.name for loop in loops if self.trips(loop) is None)

    def trips(self, loop: hlo_text.Instruction) -> int | None:
        """How often the body of a while loop runs, if the text tells."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        return self._trips_by_condition(loop)

    def called(self, instruction: hlo_text.Instruction) -> list[tuple[str, int]]:
        """The computations that an instruction runs, and how often each."""
        opcode = instruction.opcode
        if opcode == "while":
            body = instruction.attribute("body") or ""
            return [(body, self.trips(instruction) or 1)]
        if opcode in ("fusion", "call", "async-start"):
            names = (instruction.attribute("calls"), instruction.attribute("to_apply"))
            return [(name, 1) for name in names if name and name in self.computations]
        if opcode == "conditional":
            return [(name, 1) for name in instruction.branches()]
        return []

    def _executed(self, name: str, count: int, caller) -> Iterator[tuple]:
        computation = self.computations[name]
        for instruction in computation.instructions:
            yield instruction, computation, count, caller
            for inner, times in self.called(instruction):
                yield from self._executed(inner, count * times, instruction)

    def _trips_by_condition(self, loop: hlo_text.Instruction) -> int | None:
        """Reads `i < n` of a counter that starts at 0 and goes up by one."""
        condition = self.computations[loop.attribute("condition") or ""]
        inner = [self.computations[n] for i in condition.instructions
                 for n, _ in self.called(i)]  # fmt: skip
        lines = [i for part in (condition, *inner) for i in part.instructions]
        bounds = {i.constant for i in lines if i.constant is not None}
        ways = {i.attribute("direction") for i in lines if i.opcode == "compare"}
        if len(bounds) != 1 or ways not in ({"LT"}, {"NE"}, {"GT"}):
            return None
        return bounds.pop()


def replica_groups(instruction: hlo_text.Instruction) -> Groups | None:
    """The groups of devices (as places in the mesh) that talk; None if not told."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", instruction.rest):
        return _listed(pairs[1])
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", instruction.rest):
        return _listed(listed[1])
    if iota := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", instruction.rest
    ):
        shape, dims, order = (_numbers(part or "") for part in iota.groups())
        ids = _transposed(dims, order or tuple(range(len(dims))))
        return tuple(zip(*[iter(ids)] * shape[-1], strict=True))
    if named := re.search(
        r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(\[([\d,]+)\]"
        r"(?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}",
        instruction.rest,
    ):
        sizes = {axis: int(n) for axis, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
        if ":" in named[4]:  # a part of an axis
            return None
        groups = _over(sizes, re.findall(r"'(\w+)'", named[4]))
        if named[2] is None:
            return groups
        # The mesh is made of the devices in another order.
        dims, order = _numbers(named[2]), _numbers(named[3] or "")
        ids = _transposed(dims, order or tuple(range(len(dims))))
        return tuple(tuple(ids[place] for place in group) for group in groups)
    return None


def varying_axes(groups: Groups | None, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh along which the devices of some group differ."""
    if groups is None or not sizes:
        return ()
    places = list(_places(tuple(sizes.values())))
    if max(map(max, groups)) >= len(places):
        return ()
    differ = [
        any(len({places[device][axis] for device in group}) > 1 for group in groups)
        for axis in range(len(sizes))
    ]
    return tuple(axis for axis, varies in zip(sizes, differ, strict=True) if varies)


def _kind(instruction, computation: hlo_text.Computation) -> str | None:
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    # TPU writes a reduce-scatter as a fusion of an all-reduce and a slice.
    scattered = computation.name.startswith("all-reduce-scatter")
    return "reduce-scatter" if kind == "all-reduce" and scattered else kind


def _nbytes(instruction, kind: str, groups: Groups | None) -> int:
    shape = instruction.shape
    # The result of a start is (operands, results, context...).
    if instruction.opcode.endswith("-start") and not kind == "all-reduce":
        shape = hlo_text.part(shape, 1)
    total = hlo_text.nbytes(shape)
    if kind == "reduce-scatter" and instruction.opcode.startswith("reduce-scatter"):
        return total * (len(groups[0]) if groups else 1)
    return total


def _listed(text: str) -> Groups:
    return tuple(_numbers(part) for part in re.findall(r"\{([\d,]+)\}", text))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _places(sizes: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """Every place in an array of these sizes, the last axis fastest."""
    for flat in range(math.prod(sizes)):
        place = []
        for size in reversed(sizes):
            flat, index = divmod(flat, size)
            place.append(index)
        yield tuple(reversed(place))


def _transposed(sizes: tuple[int, ...], order: tuple[int, ...]) -> list[int]:
    """The numbers 0, 1, ... in an array of these sizes, read in another order."""
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    turned = tuple(sizes[axis] for axis in order)
    return [
        sum(index * steps[axis] for index, axis in zip(place, order, strict=True))
        for place in _places(turned)
    ]


def _over(sizes: Mapping[str, int], axes: list[str]) -> Groups:
    """The groups that differ along some axes of a mesh only."""
    groups: dict[tuple, list[int]] = {}
    for device, place in enumerate(_places(tuple(sizes.values()))):
        rest = tuple(i for a, i in zip(sizes, place, strict=True) if a not in axes)
        groups.setdefault(rest, []).append(device)
    return tuple(map(tuple, groups.values()))
