"""Which buffers a compiled program holds at each moment, from its text.

An estimate of what the compiler's buffer assignment does: a buffer lives from the
instruction that makes it to the last that reads it; loops and updates work in place.
Arguments and results have places of their own, held from the first to the last.
"""

from collections.abc import Iterator, Sequence
import dataclasses
from pathlib import Path
import re
from typing import Any

from jaxdl.shard import hlo, hlo_text
from jaxdl.shard.hlo_text import Computation, Instruction

LARGEST = 50


@dataclasses.dataclass(frozen=True, eq=False)
class Buffer:
    """A piece of the device's memory: what is in it, and where that comes from."""

    nbytes: int
    array: str
    scope: str
    source: str


@dataclasses.dataclass(frozen=True)
class Moment:
    """What is held while an instruction runs: bytes of temporaries."""

    nbytes: int
    scope: str
    opcode: str


@dataclasses.dataclass(frozen=True)
class Liveness:
    """The memory of a program over its order, loop bodies once.

    moments: one for each instruction.
    largest: of the buffers at the fullest moment, the largest 50, in order.
    """

    moments: tuple[Moment, ...]
    largest: tuple[Buffer, ...]

    @property
    def peak(self) -> int:
        """Bytes of temporaries at the fullest moment."""
        return max((moment.nbytes for moment in self.moments), default=0)


def liveness(program: Any) -> Liveness:
    """Estimates what a compiled program (or its text) holds when, on one device."""
    parsed = hlo.parse(program)
    walk = _Walk(parsed)
    entry = parsed.computations[parsed.entry]
    inputs = [_filled([], _width(each)) for each in entry.parameters]
    walk.run(entry, inputs, 0)
    largest = sorted(walk.fullest, key=lambda buffer: -buffer.nbytes)[:LARGEST]
    return Liveness(tuple(walk.moments), tuple(largest))


# None stands for memory that is counted elsewhere, or is not the device's main memory.
Leaves = list[Buffer | None]

# What gives its operand as it is.
_SAME = {"bitcast", "optimization-barrier", "while", "add-dependency"}
# What writes into its first operand.
_IN_PLACE = {"dynamic-update-slice", "scatter"}
_FREE = {"parameter", "constant", "iota", "partition-id", "replica-id", "after-all"}
# What may write over an operand of the same size that nobody reads later.
_OVERWRITES = {
    "add", "and", "convert", "copy", "divide", "exponential", "maximum", "minimum",
    "multiply", "negate", "or", "select", "subtract", "tanh",
}  # fmt: skip


class _Walk:
    """Goes through a program once and remembers what was held."""

    def __init__(self, program: hlo.Program):
        self.program = program
        self.moments: list[Moment] = []
        self.fullest: list[Buffer] = []
        self._most = -1
        self._held: list[Buffer] = []  # by the computations that called this one

    def run(
        self, computation: Computation, inputs: Sequence[Leaves], base: int
    ) -> None:
        """Goes through a computation, for whose result the caller has a place.

        inputs: the buffers of its parameters.
        base: bytes that are held outside.
        """
        made, values = self._buffers(computation, inputs)
        last = _last_uses(computation, values)
        live: dict[Buffer, None] = {}
        for index, instruction in enumerate(computation.instructions):
            gone = {b for b in live if last.get(b, index) <= index}
            new = made.get(instruction.name, [])
            over = _overwritten(instruction, new, gone)
            live.update(dict.fromkeys(new))
            now = base + sum(b.nbytes for b in live) - over
            self._record(now, instruction, live)
            for inner, nested in self._inside(instruction, values):
                held = list(live)
                self._held += held
                self.run(inner, nested, now)
                del self._held[len(self._held) - len(held) :]
            for buffer in (*gone, *(b for b in new if last.get(b, -1) <= index)):
                live.pop(buffer, None)

    def _record(self, nbytes: int, instruction: Instruction, live) -> None:
        if instruction.opcode in _FREE or instruction.opcode in _PACKING:
            return
        scope = hlo_text.scope_of(instruction.op_name)
        self.moments.append(Moment(nbytes, scope, instruction.opcode))
        if nbytes > self._most:
            self._most, self.fullest = nbytes, [*self._held, *live]

    def _inside(self, instruction: Instruction, values) -> Iterator[tuple]:
        """The computations that run within an instruction, with their inputs."""
        if instruction.opcode not in ("while", "call", "conditional"):
            return
        operands = [values.get(name, []) for name in instruction.operands]
        for name, _ in self.program.called(instruction):
            inner = self.program.computations[name]
            inputs = operands
            if instruction.opcode == "conditional":
                inputs = [[None] * _width(each) for each in inner.parameters]
            yield inner, inputs

    def _buffers(self, computation: Computation, inputs):
        """The new buffers of each instruction, and the buffers of each value."""
        values: dict[str, Leaves] = {}
        made: dict[str, list[Buffer]] = {}
        for number, parameter in enumerate(computation.parameters):
            given = inputs[number] if number < len(inputs) else []
            width = _width(parameter)
            values[parameter.name] = _filled(given, width)
        for instruction in computation.instructions:
            if instruction.opcode != "parameter":
                operands = [values.get(name, []) for name in instruction.operands]
                values[instruction.name] = self._leaves(
                    instruction, operands, computation
                )
        elsewhere = set(values[computation.root.name])
        known: set[Buffer] = {b for leaves in inputs for b in leaves if b is not None}
        for name, leaves in values.items():
            new = [b for b in dict.fromkeys(leaves) if b is not None and b not in known]
            known.update(new)
            made[name] = [b for b in new if b not in elsewhere]
        return made, values

    def _leaves(self, instruction: Instruction, operands, computation) -> Leaves:
        """The buffers that hold the result of an instruction."""
        opcode, width = instruction.opcode, _width(instruction)
        if opcode == "tuple":
            return [leaf for leaves in operands for leaf in leaves]
        if opcode == "get-tuple-element":
            return _element(instruction, operands[0], computation)
        if opcode in _SAME:
            return _filled(operands[0] if operands else [], width)
        if opcode in _FREE:
            return _filled([], width)
        new: Leaves = [
            self._buffer(instruction, array, computation)
            for array in _arrays(instruction)
        ]
        if opcode in _IN_PLACE:
            new[0] = operands[0][0] if operands[0] else new[0]
        elif opcode == "fusion":
            for result, number in self._updated(instruction).items():
                if number < len(operands) and operands[number] and result < len(new):
                    new[result] = operands[number][0]
        elif opcode.endswith("-start"):
            new = _started(opcode, new, operands)
        elif opcode.endswith(("-done", "-update")):
            new = _done(opcode, operands, computation, instruction)
        return new

    def _buffer(self, instruction, array: hlo_text.Array, computation) -> Buffer | None:
        if array.space != 0 or array.padded == 0:
            return None
        dims = ",".join(map(str, array.dims))
        named = self._named(instruction, computation)
        return Buffer(
            array.padded,
            f"{array.dtype}[{dims}]",
            hlo_text.scope_of(named.op_name),
            _users(self.program.source(named)),
        )

    def _named(self, instruction: Instruction, computation: Computation):
        """The instruction, or the nearest one, that says where it comes from."""
        # What it is made of, else what reads it, through a tuple at most.
        first = instruction.operands[:1]
        before = [computation.by_name[n] for n in first if n in computation.by_name]
        after = computation.readers.get(instruction.name, [])
        further = [r for each in after for r in computation.readers.get(each.name, [])]
        for each in (instruction, *before, *after, *further):
            body = self.program.computations.get(each.attribute("calls") or "")
            inside = body.instructions[::-1] if body else []
            for named in (each, *inside):
                if named.op_name:
                    return named
        return instruction

    def _updated(self, fusion: Instruction) -> dict[int, int]:
        """Which results of a fusion are written into which operand."""
        pairs = re.findall(
            r"\{(\d*)\}: \((\d+), \{\}", fusion.rest.split("output_to_operand", 1)[-1]
        )
        found = {int(result or 0): int(operand) for result, operand in pairs}
        body = self.program.computations.get(fusion.attribute("calls") or "")
        if body is None or "output_to_operand" in fusion.rest:
            return found
        roots = body.root.operands if body.root.opcode == "tuple" else [body.root.name]
        for result, name in enumerate(roots):
            source = _through(body, name)
            if source.opcode in _IN_PLACE:
                target = _through(body, source.operands[0])
                if target.opcode == "parameter":
                    found[result] = int(target.arguments)
        return found


def _users(source: str) -> str:
    """A source line, unless it is that of the call that plans."""
    return "" if source.startswith(f"{Path(__file__).parent}/") else source


_PACKING = {"tuple", "get-tuple-element", "bitcast"}


def _through(computation: Computation, name: str) -> Instruction:
    """The instruction behind bitcasts, copies and conversions."""
    instruction = computation.by_name[name]
    while instruction.opcode in ("bitcast", "copy", "convert"):
        instruction = computation.by_name[instruction.operands[0]]
    return instruction


def _arrays(instruction: Instruction) -> list[hlo_text.Array]:
    return hlo_text.leaves(instruction.shape)


def _width(instruction: Instruction) -> int:
    return len(_arrays(instruction))


def _filled(leaves: Leaves, width: int) -> Leaves:
    """So many leaves, None where there are none."""
    return [*leaves, *([None] * width)][:width]


def _element(instruction: Instruction, leaves: Leaves, computation) -> Leaves:
    """The leaves of one element of a tuple."""
    shape = computation.by_name[instruction.operands[0]].shape
    index = int(instruction.attribute("index") or 0)
    before = (hlo_text.part(shape, number) for number in range(index))
    start = sum(len(hlo_text.leaves(part)) for part in before)
    return leaves[start : start + len(hlo_text.leaves(hlo_text.part(shape, index)))]


def _started(opcode: str, new: Leaves, operands: list[Leaves]) -> Leaves:
    """A start gives (operands, results, context), a copy (result, operand, context)."""
    flat = [leaf for leaves in operands for leaf in leaves]
    if opcode == "copy-start":
        return [new[0], *flat, *[None] * (len(new) - 1 - len(flat))]
    if opcode == "all-reduce-start":
        return new
    return [*flat, *new[len(flat) :]]


def _done(opcode: str, operands: list[Leaves], computation, done: Instruction):
    """A done gives the results of its start."""
    leaves, width = operands[0], _width(done)
    start = computation.by_name[done.operands[0]]
    if opcode in ("copy-done", "all-reduce-done") or opcode.endswith("-update"):
        return leaves[:width]
    skipped = len(hlo_text.leaves(hlo_text.part(start.shape, 0)))
    return _filled(leaves[skipped:], width)


def _last_uses(computation: Computation, values) -> dict[Buffer, int]:
    last: dict[Buffer, int] = {}
    for index, instruction in enumerate(computation.instructions):
        for name in instruction.operands:
            last.update({b: index for b in values.get(name, []) if b is not None})
    end = len(computation.instructions)
    last.update({b: end for b in values[computation.root.name] if b is not None})
    return last


def _overwritten(instruction: Instruction, new: list[Buffer], gone) -> int:
    """Bytes of operands that the result takes the place of."""
    looping = instruction.opcode == "fusion" and "kind=kLoop" in instruction.rest
    if not looping and instruction.opcode not in _OVERWRITES:
        return 0
    free = [buffer.nbytes for buffer in gone]
    total = 0
    for buffer in new:
        if buffer.nbytes in free:
            free.remove(buffer.nbytes)
            total += buffer.nbytes
    return total
