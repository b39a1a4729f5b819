"""Where the numbers of a run go: a history in memory, JSON lines, TensorBoard.

A log is anything with `write(record)`, `resume(step) -> records` and `close()`. A
record is a flat dict of floats with the `step` it belongs to. `resume` is called before
the first record with the step the run starts from (0 for a fresh one), must forget what
came after it, and may return the records that it kept.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
from pathlib import Path
from typing import IO, Any, Protocol

Record = Mapping[str, float]


class Log(Protocol):
    """What `fit(logs=...)` asks of a log."""

    def resume(self, step: int) -> list[dict] | None: ...
    def write(self, record: Record) -> None: ...
    def close(self) -> None: ...


@dataclasses.dataclass
class History:
    """The records of a run, oldest first, and why it stopped before its last step."""

    records: list[dict] = dataclasses.field(default_factory=list)
    stopped: str | None = None

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Lists the steps and the values of one number, as `plot` wants them."""
        rows = [record for record in self.records if name in record]
        return [row["step"] for row in rows], [row[name] for row in rows]

    def names(self) -> list[str]:
        """Lists the names of the numbers, in the order they first came."""
        names = dict.fromkeys(name for record in self.records for name in record)
        return [name for name in names if name != "step"]


class JsonLines:
    """Appends one JSON object a record to a file, flushed at once.

    A log belongs to one run: the records past the step that the run starts from, and a
    last line torn by a kill, are dropped, so that each step is there once. NaN and
    infinities are written as Python's json writes them.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: IO[str] | None = None

    def resume(self, step: int) -> list[dict]:
        """Drops the records after `step` and returns the others."""
        self.close()
        kept = [record for record in self.read() if record["step"] <= step]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rewritten = self.path.with_name(self.path.name + ".tmp")
        rewritten.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(rewritten, self.path)
        return kept

    def read(self) -> list[dict]:
        """Reads the records that are there; a torn last line is not one."""
        text = self.path.read_text() if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.splitlines() if line]

    def write(self, record: Record) -> None:
        """Appends a record."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a")
        # One write of a whole line: a kill between two would leave half a record.
        self._file.write(json.dumps(dict(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file; the next record opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class TensorBoard:
    """Writes scalars for TensorBoard, with `tensorboardX` (`jaxdl[examples]`).

    On resume, TensorBoard hides what an earlier, killed run wrote past the checkpoint.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self._writer: Any = None

    def resume(self, step: int) -> None:
        """Starts a new event file that replaces what came after `step`."""
        self.close()
        self._writer = _summary_writer(self.directory, purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Adds a scalar for each number of the record."""
        if self._writer is None:
            self._writer = _summary_writer(self.directory, purge_step=None)
        for name, value in record.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(record["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _summary_writer(directory: Path, purge_step: int | None) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'TensorBoard needs tensorboardX: pip install "jaxdl[examples]"'
        ) from error
    # The name holds the time in seconds: two files of one second would be one.
    suffix = f".{os.getpid()}.{purge_step}"
    return SummaryWriter(str(directory), purge_step=purge_step, filename_suffix=suffix)
