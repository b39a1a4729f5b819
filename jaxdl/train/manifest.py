"""What makes a checkpoint directory whole: a list of its files, made before commit."""

import base64
from collections.abc import Mapping
import json
from pathlib import Path
import tempfile
from typing import Any
import zlib

NAME = "MANIFEST.json"
UNFINISHED = ".orbax-checkpoint-tmp"
# The one file that orbax still changes between the manifest and the final name.
METADATA = "_CHECKPOINT_METADATA"


def steps(directory: Path) -> list[int]:
    """Lists the steps that have a directory, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdecimal())


def check_writable(directory: Path) -> None:
    """Raises OSError when nothing can be written there.

    Found out here, it costs nothing; orbax leaves threads behind that wait for minutes
    for a directory which never comes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        file.write(bytes(4096))


def write_unfinished(directory: Path, checksums: bool) -> None:
    """Writes the manifest of the save under way, in its temporary directory."""
    for unfinished in directory.glob(f"*{UNFINISHED}*"):
        files = [p for p in sorted(unfinished.rglob("*")) if p.is_file()]
        files = [path for path in files if path.name != METADATA]
        entries = {
            str(path.relative_to(unfinished)): {
                "size": path.stat().st_size,
                "crc32": _crc32(path) if checksums else None,
            }
            for path in files
        }
        (unfinished / NAME).write_text(json.dumps(entries, indent=1))


def problems(step_directory: Path) -> list[str]:
    """Says which files are not as the manifest lists them."""
    try:
        json.loads((step_directory / METADATA).read_text())
        entries = json.loads((step_directory / NAME).read_text())
        found = [_problem(step_directory / name, e) for name, e in entries.items()]
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        return [f"no whole list of its files ({NAME}): {error}"]
    return [problem for problem in found if problem]


def set_aside_damaged(directory: Path) -> None:
    """Renames damaged `<step>` to `<step>.damaged`, out of the way of a new save."""
    for step in steps(directory):
        path = directory / str(step)
        if problems(path):
            path.rename(_unused(path.with_name(f"{step}.damaged")))


def to_json(data: Any) -> dict:
    """Wraps JSON data or bytes (what data iterators give as their state)."""
    if isinstance(data, bytes):
        return {"base64": base64.b64encode(data).decode()}
    return {"json": data}


def from_json(wrapped: Mapping) -> Any:
    """The inverse of `to_json`."""
    if "base64" in wrapped:
        return base64.b64decode(wrapped["base64"])
    return wrapped["json"]


def _problem(path: Path, entry: dict) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != entry["size"]:
        return f"{path}: expected {entry['size']} bytes, got {path.stat().st_size}"
    if entry["crc32"] is not None and _crc32(path) != entry["crc32"]:
        return f"{path}: the contents have changed (CRC-32)"
    return None


def _crc32(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}{n or ''}") for n in range(10_000))
    return next(name for name in names if not name.exists())
