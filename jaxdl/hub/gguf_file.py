"""One .gguf file, checked and mapped; quantised tensors are decoded when they are read.

The header is parsed here and not by `gguf.GGUFReader`, which believes every count and
length that it reads: a file of a hundred bytes can make it allocate without end. Types,
block sizes and the decoding itself are the package's.
"""

from collections.abc import Callable
import dataclasses
from functools import partial
import math
from pathlib import Path
import struct
from typing import Any

import ml_dtypes
import numpy as np

from jaxdl.hub.files import HubError, map_file, needs, release, short
from jaxdl.hub.tensors import Tensor, Tensors, is_array

# Types that numpy has; every other one is decoded to float32.
DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}

# The types of metadata values, by their number in the format.
SCALARS = ["<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"]
SCALARS += ["string", "array", "<u8", "<i8", "<f8"]
STRING, ARRAY = SCALARS.index("string"), SCALARS.index("array")

LARGEST_ALIGNMENT = 1 << 20


def open_gguf(path: Path) -> Tensors:
    """The tensors of one file, and its metadata: text, numbers, lists, numeric arrays.

    Shapes are numpy's, the outermost dimension first (GGUF writes them last).
    Raises HubError unless every length fits the file, names are unique, and tensors
    follow one another without a hole or an overlap.
    """
    data = map_file(path)
    cursor = _Cursor(path, data)
    if cursor.take(4) != b"GGUF":
        raise cursor.error("expected a GGUF file, its first bytes are not 'GGUF'")
    version = cursor.number("I")
    if version not in (2, 3):
        raise cursor.error(f"expected GGUF of version 2 or 3, got {version}")
    tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
    metadata = _metadata(cursor, key_count)
    declared = _declarations(cursor, tensor_count)
    alignment = metadata.get("general.alignment", 32)
    if alignment not in [1 << n for n in range(LARGEST_ALIGNMENT.bit_length())]:
        raise cursor.error(f"expected a power of two as alignment, got {alignment!r}")
    start = _align(cursor.at, alignment)
    _check_places(path, declared, start, alignment, len(data))
    entries = {one.name: one.tensor(path, data, start) for one in declared}
    return Tensors(entries, metadata)


@dataclasses.dataclass(frozen=True)
class _Declared:
    """What the header says of one tensor: a row is block_count blocks of bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    row_bytes: int
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes

    def tensor(self, path: Path, data: np.ndarray, start: int) -> Tensor:
        begin = start + self.offset
        stored = data[begin : begin + self.nbytes]
        stored = stored.reshape(*self.shape[:-1], self.row_bytes)
        dtype, decode = DTYPES.get(self.kind), None
        if dtype is None:
            where = f"{path}: {short(self.name)}"
            dtype = np.dtype(np.float32)
            # What is decoded is not needed in its stored form beside it.
            done = partial(release, data, begin, self.nbytes)
            decode = partial(_decode, where, self.kind, self.shape[-1], done)
        else:
            # Not .view: the place need not be a multiple of the size.
            stored = np.ndarray(self.shape, dtype, buffer=data[begin:])  # type: ignore
        return Tensor(self.name, str(path), self.shape, dtype, stored, decode)


def _decode(
    where: str, kind: str, columns: int, done: Callable, rows: np.ndarray
) -> np.ndarray:
    """Rows of quantised bytes [..., bytes] -> float32 [..., columns]."""
    gguf = needs("gguf", "a .gguf file")
    shape = (*rows.shape[:-1], columns)
    if 0 in shape:
        return np.zeros(shape, np.float32)
    try:
        # A hostile scale may be infinite: so are the values then, which is no error.
        with np.errstate(all="ignore"):
            flat = np.ascontiguousarray(rows).reshape(-1, rows.shape[-1])
            values = gguf.dequantize(flat, gguf.GGMLQuantizationType[kind])
    except NotImplementedError as error:
        raise HubError(
            f"{where}: the gguf package cannot decode {kind}; take another quantisation"
        ) from error
    done()
    return values.astype(np.float32, copy=False).reshape(shape)


class _Cursor:
    """A place in the header; nothing is read, or allocated, beyond the file's end."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path, self.data, self.at = path, data, 0

    def error(self, problem: str) -> HubError:
        return HubError(f"{self.path}: {problem} (at byte {self.at})")

    def take(self, count: int) -> bytes:
        return self.view(count).tobytes()

    def view(self, count: int) -> np.ndarray:
        end = self.at + count
        if end > len(self.data):
            raise self.error(f"{count} bytes are declared and the file ends before")
        view = self.data[self.at : end]
        self.at = end
        return view

    def number(self, kind: str) -> int:
        return struct.unpack("<" + kind, self.take(struct.calcsize(kind)))[0]

    def string(self) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"a string is not UTF-8: {error.reason}") from error

    def count(self, number: int, smallest: int, what: str) -> range:
        """A range of this many things, none of which is smaller than that."""
        if number * smallest > len(self.data) - self.at:
            raise self.error(f"{number} {what} do not fit the file")
        return range(number)

    def value(self, kind: int) -> Any:
        """A metadata value; an array of numbers stays one, of strings is a list."""
        if kind >= len(SCALARS):
            raise self.error(f"{kind} is no type of a metadata value")
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array()
        return self._numbers(kind, 1)[0].item()

    def _array(self) -> Any:
        kind, length = self.number("I"), self.number("Q")
        if kind == STRING:
            return [self.string() for _ in self.count(length, 8, "strings")]
        if kind == ARRAY or kind >= len(SCALARS):
            raise self.error(f"{kind} is no type of the values in an array")
        return self._numbers(kind, length)

    def _numbers(self, kind: int, length: int) -> np.ndarray:
        if SCALARS[kind] == "?":  # only 0 and 1 are bools to numpy
            return self.view(length) != 0
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(length * dtype.itemsize), dtype)


def _metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in cursor.count(count, 13, "metadata keys"):
        name = cursor.string()
        if name in found:
            raise cursor.error(f"the key {short(name)} is there twice")
        found[name] = cursor.value(cursor.number("I"))
    return found


def _declarations(cursor: _Cursor, count: int) -> list[_Declared]:
    constants = needs("gguf", "a .gguf file").constants
    kinds = {int(kind): kind.name for kind in constants.GGMLQuantizationType}
    sizes = {kind.name: size for kind, size in constants.GGML_QUANT_SIZES.items()}
    found: dict[str, _Declared] = {}
    for _ in cursor.count(count, 24, "tensors"):
        name = cursor.string()
        where, dimensions = short(name), cursor.number("I")
        if name in found:
            raise cursor.error(f"the tensor {where} is there twice")
        shape = tuple(
            cursor.number("Q") for _ in cursor.count(dimensions, 8, "dimensions")
        )[::-1]
        if not is_array(shape):
            raise cursor.error(f"{where}: no array has the shape {short(shape)}")
        kind = kinds.get(number := cursor.number("I"))
        if kind is None:
            raise cursor.error(f"{where}: {number} is no type of a tensor")
        block, block_bytes = sizes[kind]
        if (shape[-1] if shape else 1) % block:
            raise cursor.error(f"{where}: {kind} has blocks of {block}, got {shape}")
        row_bytes = (shape[-1] if shape else 1) // block * block_bytes
        found[name] = _Declared(name, kind, shape, row_bytes, cursor.number("Q"))
        if found[name].nbytes > len(cursor.data):
            raise cursor.error(f"{where}: {kind}{list(shape)} is larger than the file")
    return list(found.values())


def _check_places(
    path: Path, declared: list[_Declared], start: int, alignment: int, size: int
) -> None:
    """Holds the tensors to lie one after the other, and within the file."""
    expected = 0
    for one in sorted(declared, key=lambda one: (one.offset, one.nbytes)):
        where = f"{path}: {short(one.name)}"
        if one.offset != expected:
            problem = "overlaps the one before" if one.offset < expected else "follows "
            problem += "" if one.offset < expected else "a hole"
            raise HubError(
                f"{where}: {problem}: expected the offset {expected}, got {one.offset}"
            )
        end = start + one.offset + one.nbytes
        if end > size:
            raise HubError(
                f"{where}: ends at byte {end} of a file of {size}; it was cut short"
            )
        expected = _align(one.offset + one.nbytes, alignment)


def _align(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
