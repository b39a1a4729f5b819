"""Writes docs/parity.md: how far each family is from the code it was published with.

Run: python -m tools.parity [words of families]
"""

from pathlib import Path
import sys
import tempfile

from tests.hub.families.test_decoders import FAMILIES, make
from tests.hub.families.tiny import check_decoder

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
HEAD = """# Parity

Decoders beside `transformers` (PyTorch), on tiny seeded checkpoints that it makes:
every weight is moved off its initial value, and sizes are such that each feature
shows. Held to 1e-4 in float32 are the logits, the residual stream after every layer,
left-padded rows and packed ones; eight greedy tokens through prefill and cache are
the same. The number is the largest difference of the logits. `python -m tools.parity`
makes this page.

| family | sizes and features of the checkpoint | largest difference |
|---|---|---|
"""


def main() -> None:
    rows = []
    for name, (_, features) in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            theirs = make(Path(folder), name)
            worst = check_decoder(Path(folder), theirs)
        said = ", ".join(f"{key} {_short(value)}" for key, value in features.items())
        rows.append(f"| {name} | {said or 'as the others'} | {worst:.1e} |")
        print(rows[-1], flush=True)
    PAGE.write_text(HEAD + "\n".join(rows) + "\n")


def _short(value) -> str:
    if isinstance(value, dict):
        return str(value.get("rope_type", "by kind of layer"))
    if isinstance(value, list):
        return "by layer"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
