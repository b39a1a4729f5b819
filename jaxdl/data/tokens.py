"""Texts as one long file of tokens, and packed rows of it as a function of the step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from jaxdl.data.steps import rows_of


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Documents one after the other: `tokens` int [total], `ends` int64 [documents].

    Document i is `tokens[ends[i - 1]:ends[i]]`. Both may be mapped from files.
    """

    tokens: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> np.ndarray:
        start = 0 if index == 0 else self.ends[index - 1]
        return self.tokens[start : self.ends[index]]

    @classmethod
    def open(cls, folder: str | Path) -> "Tokens":
        """Maps what `write_tokens` wrote; ValueError if it is not whole."""
        folder = Path(folder)
        try:
            said = json.loads((folder / "tokens.json").read_text())
            dtype, total = np.dtype(said["dtype"]), int(said["tokens"])
            tokens = np.memmap(folder / "tokens.bin", dtype, "r", shape=(total,))
            ends = np.load(folder / "ends.npy", mmap_mode="r")
            whole = len(ends) == said["documents"] and ends[-1] == total
        except (OSError, ValueError, KeyError, TypeError) as error:
            wanted = f"{folder}: expected what write_tokens wrote: {error}"
            raise ValueError(wanted) from None
        if not whole:
            raise ValueError(f"{folder}: ends.npy is not that of tokens.json")
        return cls(tokens, ends)


def write_tokens(
    folder: str | Path,
    texts: Iterable[str],
    encode: Callable[[str], Sequence[int]],
    *,
    eos: int | None = None,
    progress: bool = True,
) -> Tokens:
    """Tokenises texts, once, into a folder: `Tokens.open` maps it into memory.

    encode: a text to its tokens, such as `tokenizer.encode`.
    eos: written after each text.

    Only one text is held in memory. The folder appears when all of it is written: one
    that is there is whole. Raises FileExistsError if it is there already, ValueError
    for texts without a token and for tokens that do not fit in uint32.
    """
    from rich.progress import track

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(
            f"{folder}: is there already: open it with Tokens.open, or remove it"
        )
    making = folder.with_name(folder.name + ".partial")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    total = len(texts) if isinstance(texts, Sequence) else None
    shown = track(texts, "tokenising", total, disable=not progress, transient=True)
    with open(making / "tokens.bin", "wb") as file:
        ends, largest = _write(file, shown, encode, eos)
    if not ends:
        raise ValueError("texts: expected at least one with a token, got none")
    dtype = np.uint16 if largest < 2**16 else np.uint32
    if dtype == np.uint16:
        _narrow(making / "tokens.bin", dtype)
    np.save(making / "ends.npy", np.array(ends, np.int64))
    said = {"dtype": np.dtype(dtype).name, "tokens": ends[-1], "documents": len(ends)}
    (making / "tokens.json").write_text(json.dumps(said))
    making.rename(folder)
    return Tokens.open(folder)


class PackedTokens:
    """Rows full of documents: `packed(step)` is a function of (seed, step) alone.

    A batch is `{"inputs", "targets", "segment_ids", "positions"}`, each int32
    [batch_size, seq_len], as `models.Decoder` takes them. The documents of an epoch, in
    an order of its own, follow one another without a gap; one that does not fit goes on
    in the next row, where its positions begin at 0 again, since it does not see what
    came before. A target is the token after the input, never one of another document.
    So over whole epochs every pair comes equally often and no place is wasted.

    process: its index and the number of them; see `Steps`.

    >>> documents = Tokens(np.array([1, 2, 3, 4, 5]), np.array([3, 5]))
    >>> batch = PackedTokens(documents, 3, batch_size=1, shuffle=False)(0)
    >>> batch["inputs"].tolist(), batch["targets"].tolist()
    ([[1, 2, 4]], [[2, 3, 5]])
    >>> batch["segment_ids"].tolist(), batch["positions"].tolist()
    ([[1, 1, 2]], [[0, 1, 0]])
    """

    def __init__(
        self,
        documents: Tokens,
        seq_len: int,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        process: tuple[int, int] | None = None,
    ):
        if seq_len < 1:
            raise ValueError(f"seq_len: expected 1 or more, got {seq_len}")
        self.documents, self.seq_len = documents, seq_len
        self.batch_size, self.rows = batch_size, rows_of(batch_size, process)
        self.seed, self.shuffle = seed, shuffle
        lengths = np.diff(documents.ends, prepend=0)
        self._chosen = np.flatnonzero(lengths > 1)  # one token has no target
        self._starts = (documents.ends - lengths)[self._chosen]
        self._pairs = lengths[self._chosen] - 1
        self.pairs = int(self._pairs.sum())
        if self.pairs == 0:
            raise ValueError("documents: expected one of two tokens, got none")
        self._order = functools.lru_cache(maxsize=2)(self._ordered)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches go once through the documents."""
        return -(-self.pairs // (self.batch_size * self.seq_len))

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        if step < 0:
            raise ValueError(f"step: expected 0 or more, got {step}")
        rows = [self._row(step * self.batch_size + row) for row in self.rows]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _row(self, number: int) -> dict[str, np.ndarray]:
        names = ("inputs", "targets", "segment_ids", "positions")
        row = {name: np.zeros(self.seq_len, np.int32) for name in names}
        at = 0
        for segment, (start, count) in enumerate(self._pieces(number), 1):
            place = slice(at, at + count)
            tokens = self.documents.tokens[start : start + count + 1]
            row["inputs"][place], row["targets"][place] = tokens[:-1], tokens[1:]
            row["segment_ids"][place] = segment
            row["positions"][place] = np.arange(count)
            at += count
        return row

    def _pieces(self, number: int) -> Iterator[tuple[int, int]]:
        """Where each piece of a row starts among the tokens, and its pairs."""
        left, place = self.seq_len, number * self.seq_len
        while left:
            epoch, offset = divmod(place, self.pairs)
            order, ends = self._order(epoch)
            index = int(np.searchsorted(ends, offset, side="right"))
            document = order[index]
            count = min(left, int(ends[index]) - offset)
            inside = int(self._pairs[document]) - (int(ends[index]) - offset)
            yield int(self._starts[document]) + inside, count
            left, place = left - count, place + count

    def _ordered(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of an epoch in its order, and where each ends in it."""
        order: Any = np.arange(len(self._pairs))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        return order, np.cumsum(self._pairs[order])


def _write(file, texts, encode, eos) -> tuple[list[int], int]:
    """Writes uint32; where each document ends, and the largest token."""
    ends, largest, total = [], 0, 0
    for number, text in enumerate(texts):
        tokens = np.asarray([*encode(text), *([] if eos is None else [eos])], np.int64)
        if not len(tokens):
            continue
        if tokens.min() < 0 or tokens.max() >= 2**32:
            raise ValueError(
                f"text {number}: expected tokens from 0 to 2**32 - 1, got "
                f"{tokens.min()} to {tokens.max()}"
            )
        file.write(tokens.astype(np.uint32).tobytes())
        total += len(tokens)
        largest = max(largest, int(tokens.max()))
        ends.append(total)
    return ends, largest


def _narrow(path: Path, dtype: Any) -> None:
    """The same numbers in a file of a narrower type, a piece at a time."""
    wide = np.memmap(path, np.uint32, "r")
    narrow = path.with_suffix(".narrow")
    with open(narrow, "wb") as file:
        for at in range(0, len(wide), 1 << 24):
            file.write(wide[at : at + (1 << 24)].astype(dtype).tobytes())
    narrow.replace(path)
