"""Files that others wrote: mapped, parsed, and kept inside the folder they came in."""

from collections.abc import Iterable, Mapping
import contextlib
import importlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

# What safetensors allows a header, and more than any index or tokenizer needs.
LONGEST_JSON = 100_000_000


class HubError(ValueError):
    """Published files that cannot be used; names the file, the tensor, what to do."""


def needs(package: str, what: str) -> Any:
    """Imports a package of the extra `hub`, or says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{what} needs {package}: pip install "jaxdl[hub]"'
        ) from error


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file as uint8 [size], memory-mapped and read-only."""
    with reading(path):
        if not path.is_file():
            raise HubError(f"{path}: expected a file, found none")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise HubError(f"{path}: the file is empty; download it again")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)


def release(data: np.ndarray, start: int, size: int) -> None:
    """Lets go of the memory of so many bytes of a mapped file.

    They are read from the file again if somebody asks. Does nothing where the system
    cannot be asked for it.
    """
    mapped = getattr(data.base, "obj", data.base)
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if (
        isinstance(mapped, mmap.mmap)
        and hasattr(mmap, "MADV_DONTNEED")
        and last > first
    ):
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


def read_json(path: Path) -> Any:
    """The value in a JSON file; a key given twice is an error."""
    return parse_json(bytes(read_text(path), "utf-8"), path)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file of at most 100 MB."""
    with reading(path):
        size = path.stat().st_size
        if not path.is_file() or size > LONGEST_JSON:
            raise HubError(
                f"{path}: expected a file of at most {LONGEST_JSON} bytes, got {size}"
            )
        return path.read_bytes().decode("utf-8")


def parse_json(text: bytes, path: Path) -> Any:
    """The value of JSON text that stands in a file; a key given twice is an error."""
    with reading(path, "its JSON does not parse"):
        return json.loads(text, object_pairs_hook=_unique)


def inside(folder: Path, name: Any, source: Path) -> Path:
    """The path of a file that `source` names; raises HubError if it leaves the folder.

    Links may lead into the folder's own cache: the Hub's keeps files under `blobs` and
    links to them from `snapshots/<revision>`.
    """
    plain = (
        isinstance(name, str) and 0 < len(name) <= 255 and not set(name) & set("\0\\")
    )
    if not plain:
        raise HubError(f"{source}: expected the name of a file, got {short(name)}")
    with reading(source, f"{short(name)} is no path"):
        home = folder.resolve()
        homes = [home]
        if home.parent.name == "snapshots":
            homes.append(home.parent.parent / "blobs")
        path = folder / name
        outside = os.path.isabs(name) or ".." in Path(name).parts
        real = path.resolve()
    if outside or not any(real.is_relative_to(place) for place in homes):
        raise HubError(
            f"{source}: {short(name)} lies outside the folder {folder}; a file that "
            "names others may only name those beside it"
        )
    return path


@contextlib.contextmanager
def reading(path: Path, problem: str = "cannot be read"):
    """Turns what a parser raises into a HubError that names the file."""
    try:
        yield
    except HubError:
        raise
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        raise HubError(
            f"{path}: {problem}: {short(str(error), quote=False)}"
        ) from error


def short(value: Any, quote: bool = True, limit: int = 120) -> str:
    """Words for what a file holds, cut to a length and free of control characters."""
    text = repr(value) if quote else value.encode("unicode_escape").decode()
    return text if len(text) <= limit else f"{text[:limit]}..."


def listed(names: Iterable[str], of: Mapping[str, Any] | None = None) -> list[str]:
    """Lines for an error: names that differ in numbers only share one line.

    >>> listed(["h.0.bias", "h.1.bias", "h.2.bias", "norm"])
    ['h.0.bias ... h.2.bias (3 names)', 'norm']
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_numberless(name) + str((of or {}).get(name)), []).append(
            name
        )
    lines = []
    for group in groups.values():
        note = f": {of[group[0]]}" if of else ""
        if len(group) < 3:
            lines += [short(name, quote=False) + note for name in group]
        else:
            ends = f"{short(group[0], False)} ... {short(group[-1], False)}"
            lines.append(f"{ends} ({len(group)} names){note}")
    return lines


def _numberless(name: str) -> str:
    return "".join("#" if letter.isdecimal() else letter for letter in name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"the key {short(name)} is there twice")
            seen.add(name)
    return found
