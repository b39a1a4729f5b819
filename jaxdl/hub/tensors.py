"""Published tensors on disk, by name: shapes now, values when asked for."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
import os
from pathlib import Path
import re
from typing import Any

import numpy as np

from jaxdl.hub.files import HubError, inside, read_json, short

Index = tuple[slice | int, ...] | slice | int

INDEX = ".safetensors.index.json"
PICKLED = (".bin", ".ckpt", ".pkl", ".pt", ".pth")


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """One published tensor; `read()` gives its values, `read(index)` a part of them.

    stored: the values as they are in the file, memory-mapped; rows of bytes if
    `decode` makes values [..., n] of them. Anything that is indexed as an array.
    """

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    stored: Any = dataclasses.field(repr=False)
    decode: Callable | None = dataclasses.field(default=None, repr=False)

    def read(self, index: Index = ()) -> np.ndarray:
        """The values, or those at an index of slices and ints: reads no others.

        A view of the file where that holds the values as they are, so it is read-only
        and costs no memory. Quantised values are decoded, whole rows at a time.
        """
        if self.decode is None:
            return self.stored[index]
        if not self.shape:
            return self.decode(self.stored)
        index = index if isinstance(index, tuple) else (index,)
        index += (slice(None),) * (len(self.shape) - len(index))
        return self.decode(self.stored[index[:-1]])[..., index[-1]]


@dataclasses.dataclass(frozen=True, eq=False)
class Computed:
    """An array that is made of others each time it is indexed; a `Tensor.stored`."""

    make: Callable[[], np.ndarray]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.make()[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Tensors(Mapping[str, Tensor]):
    """Published tensors by name, with what the file says beside them.

    `metadata` is the text of a safetensors header, or all of GGUF's keys.
    """

    entries: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> Tensor:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def under(self, prefix: str) -> "Tensors":
        """Those whose name starts with a prefix, by the rest of their name."""
        kept = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.entries.items()
            if name.startswith(prefix)
        }
        return Tensors(kept, self.metadata)


def open_tensors(path: str | os.PathLike) -> Tensors:
    """Opens published weights: a .safetensors or .gguf file, an index, or a folder.

    Headers are read and checked whole, values are not: they are mapped into memory and
    come when asked for. Raises HubError, naming file and tensor, for a file that is
    damaged or lies about itself, and for pickled weights, which can run code.

    >>> import safetensors.numpy, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> weights = {"w": np.arange(6.0).reshape(2, 3)}
    >>> safetensors.numpy.save_file(weights, folder / "model.safetensors")
    >>> tensors = open_tensors(folder)
    >>> tensors["w"].shape, tensors["w"].read((slice(1, 2),))
    ((2, 3), array([[3., 4., 5.]]))
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = _main_file(path)
    if path.name.endswith(INDEX):
        return _sharded(path)
    return _single(path)


def is_array(shape: tuple[int, ...]) -> bool:
    """Whether an array can have a shape: numpy refuses even empty ones of others."""
    return len(shape) <= 32 and math.prod(size or 1 for size in shape) <= 2**48


def of_arrays(arrays: Mapping[str, Any]) -> Tensors:
    """The same view of arrays in memory: a state dict, after `.numpy()` of each."""
    entries = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        entries[name] = Tensor(name, "memory", array.shape, array.dtype, array)
    return Tensors(entries)


def _single(path: Path) -> Tensors:
    if path.suffix == ".safetensors":
        from jaxdl.hub.safetensors_file import open_safetensors

        return open_safetensors(path)
    if path.suffix == ".gguf":
        from jaxdl.hub.gguf_file import open_gguf

        parts = [open_gguf(part) for part in _gguf_parts(path)]
        return _joined([(part, part.keys()) for part in parts], parts[0].metadata, path)
    if path.suffix in PICKLED:
        raise HubError(_pickled(path))
    raise HubError(
        f"{path}: expected a .safetensors or .gguf file, a *{INDEX}, or a folder with "
        "one of them" + ("" if path.exists() else "; there is no such file")
    )


def _main_file(folder: Path) -> Path:
    """The one file in a folder that stands for its weights."""
    names = sorted(path.name for path in folder.iterdir())
    for wanted in (
        ["model" + INDEX],
        ["model.safetensors"],
        [name for name in names if name.endswith(INDEX)],
        [name for name in names if name.endswith(".safetensors")],
        [n for n in names if n.endswith(".gguf") and not _later_part(n)],
    ):
        found = [name for name in wanted if name in names]
        if len(found) > 1:
            raise HubError(
                f"{folder}: expected one file of weights, found "
                f"{', '.join(found[:8])}; open the one you mean"
            )
        if found:
            return inside(folder, found[0], folder)
    pickled = [name for name in names if Path(name).suffix in PICKLED]
    if pickled:
        raise HubError(_pickled(folder / pickled[0]))
    raise HubError(f"{folder}: expected a .safetensors or .gguf file, found none")


def _pickled(path: Path) -> str:
    return (
        f"{path}: pickled weights can run any code when they are read, so they are not "
        "read here; take a revision with .safetensors, or convert the file where it "
        "is safe to: safetensors.torch.save_file(torch.load(path, weights_only=True), "
        "'model.safetensors')"
    )


def _sharded(path: Path) -> Tensors:
    """What an index lists, each tensor from the shard that it says."""
    index = read_json(path)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict):
        raise HubError(f"{path}: expected a weight_map of tensor names to files")
    by_shard: dict[str, list[str]] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise HubError(
                f"{path}: {short(name)}: expected the name of a .safetensors file, "
                f"got {short(shard)}"
            )
        by_shard.setdefault(shard, []).append(name)
    shards = {s: _single(inside(path.parent, s, path)) for s in by_shard}
    metadata = index.get("metadata")
    return _joined(
        [(shards[shard], names) for shard, names in by_shard.items()],
        metadata if isinstance(metadata, dict) else {},
        path,
    )


def _joined(parts: list, metadata: Mapping, path: Path) -> Tensors:
    """One view of several files, each with the names that it is to give."""
    entries: dict[str, Tensor] = {}
    for tensors, names in parts:
        for name in names:
            if name in entries:
                raise HubError(f"{path}: {short(name)} is in two of its files")
            if name not in tensors:
                raise HubError(f"{path}: {short(name)} is not in the file it lists")
            entries[name] = tensors[name]
    return Tensors(entries, metadata)


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def _later_part(name: str) -> bool:
    match = _PART.fullmatch(name)
    return match is not None and int(match[2]) != 1


def _gguf_parts(path: Path) -> list[Path]:
    """All files of a split GGUF, of which any one may be given."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, count = match[1], int(match[3])
    names = [f"{stem}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]
    missing = next((n for n in names if not (path.parent / n).is_file()), None)
    if missing or not names:
        raise HubError(f"{path}: expected all {count} parts, {missing} is missing")
    return [path.parent / name for name in names]
