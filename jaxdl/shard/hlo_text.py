"""The grammar of XLA's text: computations, instructions, shapes."""

from collections.abc import Mapping
import dataclasses
from functools import cached_property
import math
import re
from typing import Any

BITS = {
    "pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128,
    "f4e2m1fn": 4, "f8e3m4": 8, "f8e4m3": 8, "f8e4m3b11fnuz": 8, "f8e4m3fn": 8,
    "f8e4m3fnuz": 8, "f8e5m2": 8, "f8e5m2fnuz": 8, "f8e8m0fnu": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
    """The shape of one array.

    layout: dimensions from the fastest, tiles, memory space: `1,0:T(8,128)S(1)`.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return _bytes(self.dtype, self.dims)

    @property
    def padded(self) -> int:
        """Bytes it takes in memory: a TPU fills up tiles."""
        tile = re.search(r"T\(([\d,]+)\)", self.layout)
        if not tile:
            return self.nbytes
        order = [int(n) for n in self.layout.split(":")[0].split(",") if n]
        dims = [self.dims[axis] for axis in order]  # the fastest first
        sizes = [int(n) for n in tile[1].split(",")][::-1]
        dims += [1] * (len(sizes) - len(dims))
        sizes += [1] * (len(dims) - len(sizes))
        filled = (-(-d // s) * s for d, s in zip(dims, sizes, strict=True))
        return _bytes(self.dtype, tuple(filled))

    @property
    def space(self) -> int:
        """The memory it is in: 0 is the device's main memory."""
        space = re.search(r"S\((\d+)\)", self.layout)
        return int(space[1]) if space else 0


Shape = Array | tuple  # of shapes


def leaves(shape: Shape) -> list[Array]:
    """The arrays of a shape, in order."""
    if isinstance(shape, Array):
        return [shape]
    return [leaf for part in shape for leaf in leaves(part)]


def part(shape: Shape, index: int) -> Shape:
    """An element of a tuple."""
    return shape if isinstance(shape, Array) else shape[index]


def nbytes(shape: Shape) -> int:
    """Bytes of the elements of all arrays of a shape."""
    return sum(leaf.nbytes for leaf in leaves(shape))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: `%name = shape opcode(operands), rest`."""

    name: str
    written: str
    opcode: str
    arguments: str
    rest: str
    is_root: bool

    @cached_property
    def shape(self) -> Shape:
        """The shape of its result."""
        return _shape(self.written)

    @cached_property
    def operands(self) -> list[str]:
        """The names of the instructions whose results it takes."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    @property
    def op_name(self) -> str:
        """The operation and what it was traced in, as JAX names it; see `scope_of`."""
        named = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.rest)
        return named[1] if named else ""

    @property
    def constant(self) -> int | None:
        """The value of a constant integer."""
        value = self.opcode == "constant" and re.fullmatch(r"-?\d+", self.arguments)
        return int(self.arguments) if value else None

    def attribute(self, name: str) -> str | None:
        """The value of a simple attribute."""
        found = re.search(rf'\b{name}="?%?([^",\s}}]+)', self.rest)
        return found[1] if found else None

    def branches(self) -> list[str]:
        """The computations that a conditional chooses from."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
        if listed:
            return re.findall(r"%([\w.\-]+)", listed[1])
        names = (self.attribute(f"{way}_computation") for way in ("true", "false"))
        return [name for name in names if name]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A named list of instructions, in the order in which they run."""

    name: str
    instructions: list[Instruction]

    @cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Its instructions."""
        return {each.name: each for each in self.instructions}

    @cached_property
    def readers(self) -> Mapping[str, list[Instruction]]:
        """The instructions that read each one, in order."""
        found: dict[str, list[Instruction]] = {}
        for each in self.instructions:
            for name in each.operands:
                found.setdefault(name, []).append(each)
        return found

    @cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(each for each in self.instructions if each.is_root)

    @cached_property
    def parameters(self) -> list[Instruction]:
        """Its parameters, by their number."""
        found = [each for each in self.instructions if each.opcode == "parameter"]
        return sorted(found, key=lambda each: int(each.arguments))


def scope_of(op_name: str) -> str:
    """The `jax.named_scope` within an operation's name, without JAX's own parts.

    >>> scope_of("jit(step)/transpose(jvp(blocks))/while/body/attn/dot_general")
    'blocks/attn'
    """
    # GPU joins the names of what it merged, `a/(b/x:c/y)`: the first stands for all.
    op_name = re.sub(r"(?<![\w])\(([^:]*):.*\)", r"\1", op_name)
    *path, _ = op_name.split("/")
    words = []
    for word in path:
        while inner := re.fullmatch(r"(?:jvp|transpose|vmap)\((.*)\)", word):
            word = inner[1]
        # Neither a transformation nor the formula of an einsum is a scope.
        if word and word not in _OF_JAX and not re.search(r"\w\(.*\)|->", word):
            words.append(word)
    return "/".join(words)


_OF_JAX = frozenset(
    """body checkpoint closed_call cond custom_jvp_call custom_vjp_call eval_jaxpr pjit
    remat rematted_computation scan shard_map while""".split()
)


def read(text: str) -> tuple[dict[str, Computation], str, dict[str, str]]:
    """Computations by name, the name of the entry, and `file:line` by stack frame.

    Raises ValueError if the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in text.splitlines():
        if line.startswith((" ", "\t")) and current is not None:
            if (instruction := _instruction(line)) is not None:
                current.instructions.append(instruction)
        elif heading := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            current = Computation(heading[2], [])
            computations[current.name] = current
            entry = current.name if heading[1] else entry
    if entry is None:
        raise ValueError("expected the text of an XLA program, found no ENTRY in it")
    return computations, entry, _frames(text)


def _instruction(line: str) -> Instruction | None:
    start = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if start is None:
        return None
    line = re.sub(r"/\*.*?\*/", "", line[start.end() :])
    end = _closing(line, 0) + 1 if line.startswith("(") else line.index(" ")
    written, line = line[:end], line[end:].lstrip()
    opening = line.index("(")
    closing = _closing(line, opening)
    return Instruction(
        start[2],
        written,
        line[:opening],
        line[opening + 1 : closing],
        line[closing + 1 :],
        start[1] is not None,
    )


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens at `opening` closes."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a parenthesis does not close: {text[:80]}")


def _shape(text: str) -> Shape:
    text = text.strip()
    if not text.startswith("("):
        return _array(text)
    return tuple(_shape(part) for part in _parts(text[1:-1]))


def _parts(text: str) -> list[str]:
    """What commas outside of any bracket part."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[()\[\]{},]", text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part for part in (*parts, text[start:]) if part.strip()]


def _array(text: str) -> Array:
    found = re.match(r"(\w+)\[([^\]]*)\](?:\{(.*)\})?", text)
    if found is None:
        return Array(text, (), "")
    dims = tuple(int(n.lstrip("<=")) for n in found[2].split(",") if n)
    return Array(found[1], dims, found[3] or "")


def _bytes(dtype: str, dims: tuple[int, ...]) -> int:
    bits = BITS.get(dtype)
    if bits is None:
        bits = int(re.sub(r"\D", "", dtype) or 0)
    return math.ceil(math.prod(dims) * bits / 8)


def _frames(text: str) -> dict[str, str]:
    """`file:line` by stack frame, from the tables before the first computation."""
    tables: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            break
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            current = tables.setdefault(line, {})
        elif entry := re.match(r"(\d+) (.*)", line):
            current[entry[1]] = entry[2]
    names = tables.get("FileNames", {})
    locations = {
        number: f"{names.get(_field(each, 'file_name_id'), '').strip(chr(34))}:"
        f"{_field(each, 'line')}"
        for number, each in tables.get("FileLocations", {}).items()
    }
    return {
        number: locations.get(_field(each, "file_location_id"), "")
        for number, each in tables.get("StackFrames", {}).items()
    }


def _field(entry: str, name: str) -> str:
    found: Any = re.search(rf"\b{name}=(\d+)", entry)
    return found[1] if found else ""
