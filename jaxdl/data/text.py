"""Text as arrays of tokens, and windows of it for language models."""

from collections.abc import Iterator
import dataclasses
import functools
from pathlib import Path

import numpy as np


def text(path: str | Path | None = None) -> str:
    """Real text: of a UTF-8 file, or else Python's own language reference.

    The reference (some 400,000 characters of English with examples in Python) is what
    `help("topics")` offers; a paragraph that several topics share is there once. It is
    part of Python and differs a little between versions; nothing is downloaded.
    """
    if path is not None:
        return Path(path).read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics[name].strip() for name in sorted(topics))
    return "\n\n".join(dict.fromkeys(whole.split("\n\n"))) + "\n"


@dataclasses.dataclass(frozen=True)
class Characters:
    """A vocabulary of characters: token i is the i-th of `alphabet`.

    >>> characters = Characters.of("hello")
    >>> characters.alphabet, characters.encode("hello").tolist()
    ('ehlo', [1, 0, 2, 2, 3])
    >>> characters.decode([1, 0])
    'he'
    """

    alphabet: str

    @classmethod
    def of(cls, text: str) -> "Characters":
        """The characters that a text is made of, in the order of their code points."""
        return cls("".join(sorted(set(text))))

    @property
    def size(self) -> int:
        return len(self.alphabet)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.alphabet)}

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text: int32 [characters]; ValueError for an unknown one."""
        unknown = sorted(set(text) - self._numbers.keys())
        if unknown:
            raise ValueError(
                f"expected characters of the alphabet of {self.size}, got {unknown[:8]}"
            )
        return np.array([self._numbers[character] for character in text], np.int32)

    def decode(self, tokens) -> str:
        """The text of tokens: int [characters]."""
        return "".join(self.alphabet[int(token)] for token in tokens)


class TextWindows:
    """Windows of one long text: `windows(step)` is a function of (seed, step) alone.

    `tokens` is int [length], in memory or memory-mapped. A batch is `{"inputs",
    "targets"}`, each int32 [batch_size, seq_len], the targets one token further on; the
    windows begin anywhere, drawn anew at each step. Goes into `fit(data=...)` as it is.
    """

    def __init__(
        self, tokens: np.ndarray, seq_len: int, batch_size: int, seed: int = 0
    ):
        if np.ndim(tokens) != 1 or len(tokens) <= seq_len:
            raise ValueError(
                "tokens: expected one dimension and more than "
                f"seq_len={seq_len} tokens, got shape {np.shape(tokens)}"
            )
        if seq_len < 1 or batch_size < 1:
            raise ValueError(
                "seq_len, batch_size: expected 1 or more, got "
                f"{seq_len} and {batch_size}"
            )
        self.tokens, self.seq_len = tokens, seq_len
        self.batch_size, self.seed = batch_size, seed

    @property
    def steps_per_epoch(self) -> int:
        """How many batches hold as many tokens as the text."""
        return -(-(len(self.tokens) - 1) // (self.batch_size * self.seq_len))

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, step])
        starts = rng.integers(len(self.tokens) - self.seq_len, size=self.batch_size)
        return self._at(starts)

    def epoch(self) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Goes through the text once, in order: `(batch, weights)`, for evaluation.

        The windows touch and each target comes with weight 1 exactly once; `weights` is
        float32 [batch_size, seq_len], 0 where a window repeats what came before.
        """
        count = len(self.tokens) - 1
        windows = -(-count // self.seq_len)
        rows = -(-windows // self.batch_size) * self.batch_size
        planned = np.arange(rows) * self.seq_len
        # The last window is moved back to fit; its first targets have been counted.
        starts = np.minimum(planned, count - self.seq_len)
        places = starts[:, None] + np.arange(self.seq_len)
        weights = (places >= planned[:, None]).astype(np.float32)
        for first in range(0, rows, self.batch_size):
            chosen = slice(first, first + self.batch_size)
            yield self._at(starts[chosen]), weights[chosen]

    def _at(self, starts: np.ndarray) -> dict[str, np.ndarray]:
        places = starts[:, None] + np.arange(self.seq_len + 1)
        tokens = np.asarray(self.tokens[places], np.int32)
        return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
