"""Chat templates: Jinja programs that come with a model, run in a sandbox."""

from collections.abc import Mapping, Sequence
import datetime
import functools
import json
from typing import Any

from jaxdl.hub.files import HubError, needs, short


def render(template: str, messages: Sequence[Mapping], words: Mapping[str, Any]) -> str:
    """The text that a template makes of messages; it sees plain values alone.

    Raises HubError for a template that does not compile, or refuses the messages.
    """
    jinja2 = needs("jinja2", "a chat template")
    try:
        compiled = _compiled(template)
        return compiled.render(messages=_plain(messages), **_plain(words))
    except jinja2.TemplateError as error:
        raise HubError(f"chat template: {short(str(error), quote=False)}") from error
    except (
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        RecursionError,
    ) as error:
        reason = f"{type(error).__name__}: {error}"
        raise HubError(
            f"chat template: it fails on these messages: {short(reason, quote=False)}"
        ) from error


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> Any:
    """A template with what those on the Hub expect to be there."""
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """Renders what is in `{% generation %}`, which marks the model's own text."""

        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = _now
    return environment.from_string(template)


def _to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # Jinja's own escapes HTML, which no model was trained on.
    return json.dumps(
        x,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _plain(value: Any) -> Any:
    """A copy of plain values: an object's methods are not for a template to call."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(
        f"expected text, numbers, lists and dicts, got {type(value).__name__}"
    )
