"""Shows the arguments in a docstring as a list.

An extension of griffe (see `extensions` in mkdocs.yml). Docstrings describe arguments
in plain paragraphs, a name and a colon for each:

    steps: how many in all.
    seed: of the order of the data. None keeps the order
      that it has.

Markdown would join these lines, and a parser of "sections" takes them for titles.
"""

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"^([a-z_][a-z0-9_]*):(?= )")


class DocstringLists(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(map(as_list, paragraphs))


def as_list(paragraph: str) -> str:
    """Makes a Markdown list of a paragraph that consists of arguments."""
    lines = paragraph.split("\n")
    if not ARGUMENT.match(lines[0]):
        return paragraph
    return "\n".join(ARGUMENT.sub(r"- `\1`:", line) for line in lines)
