import builtins
import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxdl import generate, hub
from jaxdl.cli import chat, options
from jaxdl.cli.main import main
from tests.generate.small import VOCAB, decoder
from tests.generate.test_source import MODELS as ENCODER_DECODERS

LETTERS = "abcdefghijklm"


class Letters:
    """A tokenizer whose tokens are the letters of the alphabet."""

    eos_ids = frozenset({3})
    templates = {"default": ""}

    def encode(self, text, *, add_special=True):
        return [LETTERS.index(letter) for letter in text if letter in LETTERS]

    def decode(self, ids):
        return "".join(LETTERS[id] for id in ids)

    def apply_chat_template(self, messages, add_generation_prompt=False):
        return "".join(message["content"] for message in messages)

    def stream(self):
        return self

    def push(self, token):
        return LETTERS[token]

    def finish(self):
        return ""


@pytest.fixture
def opened(monkeypatch):
    model, params = decoder()
    assert len(LETTERS) == VOCAB
    opened = SimpleNamespace(model=model, params=params, tokenizer=Letters())
    monkeypatch.setattr(hub, "load", lambda *_, **__: opened)
    return opened


def answer(opened, prompt, max_new):
    row = Letters().encode(prompt)
    said = generate.generate(opened.model, opened.params, [row], max_new=max_new, eos=3)
    return Letters().decode(said.rows()[0])


GREEDY = ["--temperature", "0", "--max-new", "6"]


def test_generate_continues_a_prompt(opened, capsys):
    assert main(["generate", "m", "--prompt", "bcd", *GREEDY]) == 0
    assert capsys.readouterr().out == "bcd" + answer(opened, "bcd", 6) + "\n"


def test_generate_continues_several_together(opened, capsys):
    prompts = ["--prompt", "bcd", "--prompt", "a"]
    assert main(["generate", "m", *prompts, *GREEDY, "--cache", "bfloat16"]) == 0
    expected = [prompt + answer(opened, prompt, 6) for prompt in ("bcd", "a")]
    assert capsys.readouterr().out == "\n\n".join(expected) + "\n\n"


def test_an_encoder_decoder_reads_the_prompt_and_answers(capsys, monkeypatch):
    model, params, _ = ENCODER_DECODERS["t5"]
    config = {"decoder_start_token_id": 0}
    opened = hub.Pretrained(model, params, Letters(), config, {})
    monkeypatch.setattr(hub, "load", lambda *_, **__: opened)
    prompts = ["bcd", "a"]
    rows = [Letters().encode(prompt) for prompt in prompts]
    reading = generate.conditioned(model, params, rows)
    said = generate.generate(*reading, [[0], [0]], max_new=6, eos=3)
    first, second = (Letters().decode(row) for row in said.rows())
    assert main(["generate", "m", "--prompt", "bcd", *GREEDY]) == 0
    assert capsys.readouterr().out == first + "\n"
    given = ["--prompt", "bcd", "--prompt", "a"]
    assert main(["generate", "m", *given, *GREEDY]) == 0
    assert capsys.readouterr().out == f"{first}\n\n{second}\n\n"


@pytest.mark.parametrize(
    "model, config, words",
    [
        (ENCODER_DECODERS["whisper"][0], {}, "a model that reads text, got Whisper"),
        (ENCODER_DECODERS["t5"][0], {}, "expected decoder_start_token_id in config"),
        (print, {}, "a model that writes"),
    ],
)
def test_what_cannot_answer_a_text_is_refused(
    model, config, words, capsys, monkeypatch
):
    opened = hub.Pretrained(model, {}, Letters(), config, {})
    monkeypatch.setattr(hub, "load", lambda *_, **__: opened)
    assert main(["generate", "m", "--prompt", "a"]) == 2
    assert words in capsys.readouterr().err


def typed(monkeypatch, *lines):
    """What a person types; KeyboardInterrupt among them is Ctrl-C."""
    given = iter(lines)

    def read(prompt=""):
        line = next(given, EOFError)
        if not isinstance(line, str):
            raise line
        return line

    monkeypatch.setattr(builtins, "input", read)


def test_chat_answers_what_was_said_with_what_was_said_before(
    opened, capsys, monkeypatch
):
    typed(
        monkeypatch, "bcd", KeyboardInterrupt, "", "/nothing", "aa", "/retry", "/help"
    )
    assert main(["chat", "m", "--system", "k", *GREEDY]) == 0
    first = answer(opened, "kbcd", 6)
    second = answer(opened, f"kbcd{first}aa", 6)
    out = capsys.readouterr().out
    wanted = [first, "", "there is no /nothing; /help says what there is"]
    assert out.splitlines()[:5] == [*wanted, second, second]
    assert "/reset" in out


def test_chat_is_reset_and_left(opened, capsys, monkeypatch):
    typed(monkeypatch, "bcd", "/reset", "aa", "/exit", "never")
    assert main(["chat", "m", *GREEDY]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [answer(opened, "bcd", 6), answer(opened, "aa", 6)]


def test_an_interrupted_answer_stays_as_far_as_it_was_said(opened, capsys, monkeypatch):
    real = generate.Session.reply

    def interrupted(self, tokens, **given):
        pieces = real(self, tokens, **{**given, "every": 1})
        if len(tokens) == 3:
            yield from itertools.islice(pieces, 2)
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(generate.Session, "reply", interrupted)
    typed(monkeypatch, "bce", "aa")
    assert main(["chat", "m", *GREEDY]) == 0
    part = answer(opened, "bce", 2)
    out = capsys.readouterr().out.splitlines()
    assert out == [part + " ...", answer(opened, f"bce{part}aa", 6)]


def test_what_is_oldest_is_forgotten_where_it_must_be(opened, monkeypatch, capsys):
    typed(monkeypatch, "abcabcab", "bcabcabc", "a" * 30, "/exit")
    assert main(["chat", "m", "--context", "24", *GREEDY]) == 0
    out = capsys.readouterr()
    first = answer(opened, "abcabcab", 6)
    # 8 + 6 + 8 + 6 do not fit: the second is answered as if it were the first.
    long = len("abcabcab" + first + "bcabcabc") + 6 > 24
    start = "" if long else "abcabcab" + first
    assert out.out.splitlines()[1] == answer(opened, start + "bcabcabc", 6)
    assert "a message of 30 tokens is too long" in out.out.splitlines()[2]


def test_errors_are_one_line(monkeypatch, capsys):
    assert main(["generate", "no/such/model", "--prompt", "a"]) == 2
    assert capsys.readouterr().err.startswith("jaxdl: no/such/model: expected a folder")
    model, params = decoder()
    bare = SimpleNamespace(model=model, params=params, tokenizer=None)
    monkeypatch.setattr(hub, "load", lambda *_, **__: bare)
    assert main(["generate", "m", "--prompt", "a"]) == 2
    assert "expected a tokenizer beside the weights" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sing"])


def test_a_model_without_a_template_does_not_chat(opened, monkeypatch, capsys):
    monkeypatch.setattr(Letters, "templates", {})
    assert main(["chat", "m"]) == 2
    assert "expected a chat template" in capsys.readouterr().err


def test_the_arguments_are_the_sampler():
    import argparse

    parser = argparse.ArgumentParser()
    options.add_sampling(parser)
    every = "--temperature 0.5 --top-k 4 --top-p 0.9 --min-p 0.1".split()
    every += ["--repetition-penalty", "1.2"]
    assert options.sampler_of(parser.parse_args(every)) == generate.chain(
        generate.repetition_penalty(1.2), generate.temperature(0.5),
        generate.top_k(4), generate.top_p(0.9), generate.min_p(0.1),
    )  # fmt: skip
    greedy = options.sampler_of(parser.parse_args(["--temperature", "0"]))
    assert greedy == generate.chain(generate.greedy)


def test_it_is_run_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "jaxdl", "chat", "--help"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0 and "--context" in run.stdout
    assert chat.HELP.count("\n") == 3
