"""From params to published tensors: .safetensors in the layout that the rules say."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import json
import math
import os
from pathlib import Path
import struct
from typing import Any

import numpy as np

from jaxdl.core import tree
from jaxdl.hub.files import HubError
from jaxdl.hub.mapping import Layers, Piece, Rule, join_parts, plan
from jaxdl.hub.safetensors_file import DTYPES


def save_params(
    params: Any,
    rules: Sequence[Rule],
    folder: str | os.PathLike,
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_bytes: int = 5_000_000_000,
    layers: Layers | Mapping[str, Layers] | None = None,
    without: str = "",
) -> None:
    """Writes params as `model.safetensors`, or as shards with an index if large.

    The inverse of `load_params`: what it read comes out byte for byte, in the dtype of
    the params. One tensor at a time is in memory. `metadata` is text beside
    `{"format": "pt"}`, which other libraries ask for. `without` is left out where names
    begin with it. Raises HubError if the folder
    has weights already: what is left of those could be read with the new ones.
    """
    folder = Path(folder)
    old = next((f.name for f in sorted(folder.glob("*.safetensors*"))), None)
    if old:
        raise HubError(f"{folder}: has weights already ({old}); name an empty folder")
    leaves = tree.flatten(params)
    pieces = plan(rules, params, layers)
    shards = _shards(_tensors(pieces, leaves, without), max_shard_bytes)
    header = {"format": "pt", **(metadata or {})}
    folder.mkdir(parents=True, exist_ok=True)
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0], leaves, header)
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(folder / name, shard, leaves, header)
        places.update({tensor.name: name for tensor in shard})
    size = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": size}, "weight_map": places}
    with _new_file(folder / "model.safetensors.index.json") as file:
        file.write(json.dumps(index, indent=2, sort_keys=True).encode())


@dataclasses.dataclass(frozen=True)
class _ToWrite:
    """One tensor of the file, and the pieces of our params that it is made of."""

    name: str
    pieces: tuple[Piece, ...]
    dtype: np.dtype
    code: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.pieces[0].published_shape) * self.dtype.itemsize

    def values(self, leaves: Mapping[str, Any]) -> np.ndarray:
        ours = [np.asarray(leaves[p.path][p.index]) for p in self.pieces]
        return np.ascontiguousarray(join_parts(self.pieces, ours))


def _tensors(
    pieces: list[Piece], leaves: Mapping[str, Any], without: str
) -> Iterator[_ToWrite]:
    by_name: dict[str, list[Piece]] = {}
    for piece in pieces:
        by_name.setdefault(piece.name.removeprefix(without), []).append(piece)
    for name, parts in by_name.items():
        dtypes = {np.dtype(leaves[piece.path].dtype) for piece in parts}
        if len(dtypes) > 1:
            raise HubError(f"{name}: its parts have several dtypes, {dtypes}")
        dtype = dtypes.pop()
        yield _ToWrite(name, tuple(parts), dtype, _code(name, dtype))


def _code(name: str, dtype: np.dtype) -> str:
    """The format's name for a dtype: `BF16`."""
    code = next((code for code, known in DTYPES.items() if known == dtype), None)
    if code is None:
        raise HubError(f"{name}: safetensors has no dtype {dtype}; cast it first")
    return code


def _shards(tensors: Iterator[_ToWrite], limit: int) -> list[list[_ToWrite]]:
    """Fills one shard after the other, in order."""
    shards: list[list[_ToWrite]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _write(path: Path, tensors: list[_ToWrite], leaves, metadata: dict) -> None:
    # The widest first: so all of them are aligned, as `safetensors` writes them.
    tensors = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.code,
            "shape": tensor.pieces[0].published_shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _new_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            file.write(tensor.values(leaves).reshape(-1).view(np.uint8).data)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Any]:
    """A file that has its name only when it is whole."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        yield file
    unfinished.replace(path)
