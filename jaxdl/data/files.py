"""Files as sequences of records: any record at any time, so that a shuffle is global.

Each has a length and takes an index, so it goes into `grain.MapDataset.source` and into
`Steps` as it is. ArrayRecord files are `grain.sources.ArrayRecordDataSource`.
"""

import bisect
from collections.abc import Iterable, Sequence
import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

Paths = str | Path | Iterable[str | Path]


class Lines:
    """The lines of UTF-8 text files, in order, without their ends; blank ones left out.

    Where lines begin is found once, in one pass over the files; after that a line is
    one read, and the files may be larger than memory.
    """

    def __init__(self, paths: Paths):
        self.paths = existing(paths)
        self._spans = [_line_spans(path) for path in self.paths]
        self._firsts = _firsts(len(spans) for spans in self._spans)

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> str:
        path, line = self.place(index)
        try:
            return self._bytes(index).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{line}: expected UTF-8, {error.reason}") from None

    def place(self, index: int) -> tuple[Path, int]:
        """The file of a record, and its line there, counted from 1."""
        file, row = _place(self._firsts, index)
        return self.paths[file], int(self._spans[file][row, 2])

    def _bytes(self, index: int) -> bytes:
        file, row = _place(self._firsts, index)
        start, end, _ = map(int, self._spans[file][row])
        with open(self.paths[file], "rb") as opened:
            opened.seek(start)
            return opened.read(end - start)


class JSONLines(Lines):
    """The values of JSON Lines files, one to a line; ValueError names a bad line."""

    def __getitem__(self, index: int) -> Any:
        try:
            return json.loads(super().__getitem__(index))
        except json.JSONDecodeError as error:
            path, line = self.place(index)
            raise ValueError(f"{path}:{line}: not JSON: {error}") from None


class Texts:
    """Whole text files, one a record: `{"path", "text"}`."""

    def __init__(self, paths: Paths):
        self.paths = existing(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, str]:
        path = self.paths[index]
        try:
            return {"path": str(path), "text": path.read_text(encoding="utf-8")}
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected UTF-8, {error.reason}") from None


class Tables:
    """The rows of Parquet and Arrow IPC files (`.parquet`, `.arrow`, `.feather`).

    A record is a dict of Python values by column, of some `columns` only if given.
    Rows are read by the row group, of which the last few stay in memory: a shuffle over
    large groups reads much more than it gives, so write groups of some thousand rows.
    Needs pyarrow (`jaxdl[data]`).
    """

    def __init__(self, paths: Paths, columns: Sequence[str] | None = None):
        self.paths = existing(paths)
        self.columns = None if columns is None else list(columns)
        self._groups = [
            (path, group, rows)
            for path in self.paths
            for group, rows in enumerate(_group_sizes(path, self.columns))
        ]
        self._firsts = _firsts(rows for *_, rows in self._groups)

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, row = _place(self._firsts, index)
        path, group, _ = self._groups[number]
        columns = None if self.columns is None else tuple(self.columns)
        return _group(path, group, columns).slice(row, 1).to_pylist()[0]


class ImageFolder:
    """Images in a folder for each class: `{"image", "label"}`.

    image: uint8 [height, width, 3]; with `size` the shorter side is scaled to it and
      the middle [size, size] is cut out.
    label: int32, the place of the folder's name in `classes`, which are sorted.

    Needs pillow (`jaxdl[data]`). Raises ValueError, naming the file, for one that is no
    image.
    """

    def __init__(self, folder: str | Path, size: int | None = None):
        root = Path(folder)
        found = sorted(p for p in root.glob("*/*") if p.suffix.lower() in _IMAGES)
        self.paths, self.size = existing(found or root / "*/*"), size
        self.classes = tuple(sorted({path.parent.name for path in self.paths}))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self.paths[index]
        label = self.classes.index(path.parent.name)
        return {"image": _image(path, self.size), "label": np.int32(label)}


def existing(paths: Paths) -> list[Path]:
    """The files that paths and patterns (`*`, `**`) name, patterns in sorted order.

    Raises FileNotFoundError for a path or a pattern that names no file.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    files = []
    for path in map(Path, given):
        found = [path] if path.is_file() else _matching(path)
        if not found:
            raise FileNotFoundError(f"{path}: expected a file or a pattern of files")
        files += found
    if not files:
        raise FileNotFoundError("paths: expected at least one file, got none")
    return files


_IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}


def _matching(pattern: Path) -> list[Path]:
    parts = pattern.parts
    fixed = list(itertools.takewhile(lambda part: "*" not in part, parts))
    if len(fixed) == len(parts):
        return []
    found = Path(*fixed).glob(str(Path(*parts[len(fixed) :])))
    return sorted(path for path in found if path.is_file())


def _firsts(sizes: Iterable[int]) -> list[int]:
    return [0, *itertools.accumulate(sizes)]


def _place(firsts: list[int], index: int) -> tuple[int, int]:
    """Which part an index is in, and where in it."""
    if not 0 <= index < firsts[-1]:
        raise IndexError(f"record {index} of {firsts[-1]}")
    part = bisect.bisect_right(firsts, index) - 1
    return part, index - firsts[part]


def _line_spans(path: Path) -> np.ndarray:
    """The start, the end and the number of every line that is not blank: [lines, 3]."""
    if os.path.getsize(path) == 0:
        return np.zeros((0, 3), np.int64)
    content = np.memmap(path, np.uint8, "r")
    pieces = range(0, len(content), 1 << 26)
    breaks = [np.flatnonzero(content[at : at + (1 << 26)] == 10) + at for at in pieces]
    ends = np.concatenate(breaks)
    if content[-1] != 10:
        ends = np.append(ends, len(content))
    starts = np.concatenate([[0], ends[:-1] + 1])
    # Of a Windows line the \r belongs to the end.
    last = content[np.maximum(ends - 1, 0)]
    trimmed = np.where((last == 13) & (ends > starts), ends - 1, ends)
    spans = np.stack([starts, trimmed, np.arange(1, len(ends) + 1)], axis=1)
    return spans[trimmed > starts].astype(np.int64)


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError('Tables needs pyarrow: pip install "jaxdl[data]"') from error
    return pyarrow


def _group_sizes(path: Path, columns: list[str] | None) -> list[int]:
    pyarrow = _pyarrow()
    try:
        if path.suffix == ".parquet":
            metadata = pyarrow.parquet.read_metadata(path)
            names, count = metadata.schema.to_arrow_schema().names, range
            sizes = [
                metadata.row_group(i).num_rows for i in count(metadata.num_row_groups)
            ]
        else:
            opened = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
            names = opened.schema.names
            sizes = [
                opened.get_batch(i).num_rows for i in range(opened.num_record_batches)
            ]
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet or Arrow file: {error}") from None
    if missing := [name for name in columns or () if name not in names]:
        raise ValueError(f"{path}: no columns {missing}; it has {names}")
    return sizes


@functools.lru_cache(maxsize=16)
def _group(path: Path, group: int, columns: tuple[str, ...] | None):
    pyarrow = _pyarrow()
    if path.suffix == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read_row_group(group, columns=columns and list(columns))
    opened = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
    table = pyarrow.Table.from_batches([opened.get_batch(group)])
    return table.select(list(columns)) if columns else table


def _image(path: Path, size: int | None) -> np.ndarray:
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise ImportError(
            'ImageFolder needs pillow: pip install "jaxdl[data]"'
        ) from error
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not an image, or damaged: {error}") from None
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)
