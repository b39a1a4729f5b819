"""Chat templates: what those of the Hub use works, and what could do harm does not."""

import dataclasses
import datetime

import pytest

from jaxdl.hub import HubError
from jaxdl.hub.chat import render

MESSAGES = [{"role": "user", "content": "Hello <b>"}, {"role": "assistant"}]


def test_blocks_leave_no_lines_and_text_is_not_escaped():
    template = "{% for m in messages %}\n  {% if m.content %}\n{{ m.content }}\n"
    template += "  {% endif %}\n{% endfor %}"
    assert render(template, MESSAGES, {}) == "Hello <b>\n"


def test_loops_may_be_left():
    template = "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}"
    assert render(template, MESSAGES, {}) == "user"


def test_what_the_model_wrote_may_be_marked():
    template = "{% generation %}{{ messages[0].role }}{% endgeneration %}!"
    assert render(template, MESSAGES, {}) == "user!"


def test_json_is_written_as_it_is():
    words = {"tools": [{"b": "é<", "a": 1.5}]}
    assert render("{{ tools | tojson }}", [], words) == '[{"b": "é<", "a": 1.5}]'
    assert render("{{ tools | tojson(indent=1) }}", [], words).count("\n") == 5


def test_the_date_may_be_asked_for():
    year = render("{{ strftime_now('%Y') }}", [], {})
    assert int(year) - datetime.datetime.now().year in (-1, 0)


def test_a_template_may_refuse_messages():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(HubError, match="chat template: roles must alternate"):
        render(template, MESSAGES, {})


@pytest.mark.parametrize(
    "template",
    [
        "{% for %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ '%s'.format_map(messages[0]).__class__() }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content }}",
        "{{ messages + 1 }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ unknown_function() }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_a_template_must_not_do_is_an_error(template):
    with pytest.raises(HubError, match="chat template"):
        render(template, MESSAGES, {})
    assert MESSAGES[0]["role"] == "user" and len(MESSAGES) == 2


@pytest.mark.parametrize("name", ["''.__class__", "messages.__len__", "nothing"])
def test_what_is_hidden_is_empty(name):
    assert render(f"{{{{ {name} }}}}", MESSAGES, {}) == ""


def test_objects_are_not_for_templates():
    @dataclasses.dataclass
    class Message:
        role: str

    with pytest.raises(HubError, match="text, numbers, lists and dicts, got Message"):
        render("", [Message("user")], {})
