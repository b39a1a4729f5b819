"""How many bytes a compiled program reads from and writes to the device's memory."""

from typing import Any

from jaxdl.shard import hlo, hlo_text
from jaxdl.shard.hlo_text import Computation, Instruction


def memory_traffic(program: Any) -> int:
    """Bytes that one call moves to and from one device's main memory.

    Each instruction reads its operands and writes its result once, a fusion only its
    own; a slice reads what it gives, and an update writes what it changes. What the
    compiler keeps in faster memory (a TPU's S(1)) costs nothing. Loops by their length.
    """
    parsed = hlo.parse(program)
    fused = {
        name
        for computation in parsed.computations.values()
        for instruction in computation.instructions
        if instruction.opcode == "fusion"
        for name, _ in parsed.called(instruction)
    }
    return sum(
        count * _moved(instruction, computation, parsed)
        for instruction, computation, count, _ in parsed.executed()
        if computation.name not in fused
    )


# They name memory that others move, or hold a program that is counted itself.
_STILL = frozenset(
    """add-dependency after-all bitcast call conditional constant get-tuple-element
    iota optimization-barrier parameter partition-id replica-id tuple while""".split()
)


def _moved(instruction: Instruction, computation: Computation, program) -> int:
    opcode = instruction.opcode
    if opcode in _STILL or opcode.endswith(("-done", "-update")):
        return 0
    sources = [computation.by_name.get(name) for name in instruction.operands]
    shapes = [source.shape for source in sources if source is not None]
    if opcode == "fusion":
        body = program.computations[instruction.attribute("calls")]
        return _fusion(instruction, shapes, body)
    if opcode == "copy-start":
        return _size(shapes[0]) + _size(hlo_text.part(instruction.shape, 0))
    if opcode.endswith("-start") and opcode != "all-reduce-start":
        return sum(map(_size, shapes)) + _size(hlo_text.part(instruction.shape, 1))
    if opcode in _SLICES:
        return 2 * _size(instruction.shape)
    if opcode in _UPDATES:
        return 2 * _size(shapes[_UPDATES[opcode]])
    return sum(map(_size, shapes)) + _size(instruction.shape)


_SLICES = {"dynamic-slice", "gather", "slice"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


def _fusion(fusion: Instruction, shapes: list, body: Computation) -> int:
    """A parameter that is only sliced, or only updated in place, counts as its part."""
    readers = body.readers
    total = 0
    for parameter, shape in zip(body.parameters, shapes, strict=False):
        uses = _uses(parameter.name, readers)
        parts = [_part(use, name, body) for use, name in uses]
        if parts and None not in parts:
            total += min(sum(p for p in parts if p), _size(shape))
        else:
            total += _size(shape)
    roots = body.root.operands if body.root.opcode == "tuple" else [body.root.name]
    for name, array in zip(roots, hlo_text.leaves(fusion.shape), strict=False):
        root = body.by_name[name]
        while root.opcode in ("bitcast", "convert", "copy") and root.operands:
            root = body.by_name[root.operands[0]]
        if root.opcode in _UPDATES:
            update = body.by_name[root.operands[_UPDATES[root.opcode]]]
            total += 0 if array.space else hlo_text.nbytes(update.shape)
        else:
            total += _size(array)
    return total


def _uses(name: str, readers, through=("bitcast", "convert", "copy")) -> list[tuple]:
    """Who reads a value, looking through what does not change it."""
    found = []
    for reader in readers.get(name, []):
        if reader.opcode in through:
            found += _uses(reader.name, readers)
        else:
            found.append((reader, name))
    return found


def _part(use: Instruction, name: str, body: Computation) -> int | None:
    """The bytes of a value that a use touches; None for all of them."""
    if not use.operands or use.operands[0] != name:
        return None
    if use.opcode in _SLICES:
        return hlo_text.nbytes(use.shape)
    if use.opcode == "dynamic-update-slice":
        return 0
    return None


def _size(shape: hlo_text.Shape) -> int:
    """Bytes in main memory."""
    return sum(leaf.nbytes for leaf in hlo_text.leaves(shape) if leaf.space == 0)
