"""Writes docs/parity.md: how far each family is from the code it was published with.

Run: python -m tools.parity
"""

from collections.abc import Iterator
from pathlib import Path
import sys
import textwrap
from typing import Any

import conftest  # noqa: F401  # compiles as the tests do, and finds what they compiled

# isort: split
from tests.hub.families import (
    test_convolutions,
    test_decoders,
    test_encoder_decoders,
    test_encoders,
    test_vision,
)

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
HEAD = """# Parity

Models beside `transformers` (PyTorch), on tiny seeded checkpoints that it makes: every
weight is moved off its initial value, and sizes are such that each feature shows. All
is held to 1e-4 in float32, by the checks that the tests run. The numbers are the
largest differences: of what the model returns, and of the stream after each layer (or
stage). `python -m tools.parity` makes this page.
"""
# Title, what is held, and the file of tests that has the cases and the check.
SECTIONS = (
    (
        "Decoders",
        "Rows of tokens, left-padded rows, and two texts packed in one row. Prompts of "
        "two lengths are continued greedily by the same eight tokens.",
        test_decoders,
    ),
    (
        "Encoders",
        "Rows of three lengths, padded, and two of them packed in one row.",
        test_encoders,
    ),
    (
        "Encoder-decoders",
        "Sources of two lengths, with a mask (Whisper: spectrograms), and both halves. "
        "Two starts are continued greedily by the same ten tokens; T5's beams too are "
        "the same.",
        test_encoder_decoders,
    ),
    (
        "Vision, and images with text",
        "Images; for pairs also padded texts, both embeddings and the scores.",
        test_vision,
    ),
    (
        "Convolutional networks",
        "Images, what each stage makes of them, and statistics of batches.",
        test_convolutions,
    ),
)
COLUMNS = (
    "| family | what sets the checkpoint apart | result | layers |\n|---|---|---|---|"
)


def main() -> None:
    lines = [HEAD]
    for title, held, file in SECTIONS:
        held = textwrap.fill(held, 92)
        lines += [f"## {title}\n", f"{held}\n", COLUMNS, *rows(file), ""]
    PAGE.write_text("\n".join(lines).rstrip() + "\n")


def rows(file: Any) -> Iterator[str]:
    """A row of the table for each case of a file."""
    for name, case in file.CASES.items():
        result, states = file.check(case)
        row = f"| {name} | {described(case)} | {result:.1e} | {states:.1e} |"
        print(row, flush=True)
        yield row


def described(case: Any) -> str:
    """What sets a case apart, in few words."""
    changes = [
        f"{name} {_short(value)}"
        for name, value in case.changes.items()
        if name != "text_config"
    ]
    return ", ".join([case.says, *changes] if case.says else changes)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return value.get("rope_type", "by kind of layer")
    if isinstance(value, list):
        many = len(value) > 4 or isinstance(value[0], str)
        return "by layer" if many else " ".join(map(str, value))
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
