"""Makes Markdown of what our docstrings hold beside prose.

An extension of griffe (see `extensions` in mkdocs.yml). Arguments are described in
plain paragraphs, a name and a colon for each:

    steps: how many in all.
    seed: of the order of the data. None keeps the order
      that it has.

Markdown would join these lines, and a parser of "sections" takes them for titles. They
become a list, and an interactive example (`>>>`) becomes a block of code. A Module gets
the constructor that its fields make.
"""

import re
from typing import Any

import griffe

ARGUMENT = re.compile(r"^([a-z_][a-z0-9_]*):(?= )")


class Docstrings(griffe.Extension):
    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        bases = {str(base).split(".")[-1] for base in cls.bases}
        if "Module" in bases and "__init__" not in cls.members:
            cls.set_member("__init__", constructor(cls))

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(map(as_markdown, paragraphs))


def constructor(cls: griffe.Class) -> griffe.Function:
    """The `__init__` of a Module, which it has by being a dataclass."""
    parameters = [
        griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
    ]
    for field in cls.attributes.values():
        is_part = str(field.value or "").startswith("part(")
        if field.annotation is not None and "property" not in field.labels:
            kind = griffe.ParameterKind
            parameters.append(
                griffe.Parameter(
                    field.name,
                    annotation=field.annotation,
                    kind=kind.keyword_only if is_part else kind.positional_or_keyword,
                    default="None" if is_part else default(field),
                )
            )
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters))


def default(field: griffe.Attribute) -> Any:
    return None if str(field.value or "").startswith("inline(") else field.value


def as_markdown(paragraph: str) -> str:
    """A paragraph as it is, as a list of arguments, or as an example."""
    if paragraph.startswith(">>>"):
        return f"```pycon\n{paragraph}\n```"
    lines = paragraph.split("\n")
    if ARGUMENT.match(lines[0]):
        return "\n".join(ARGUMENT.sub(r"- `\1`:", line) for line in lines)
    return paragraph
