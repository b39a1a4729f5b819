"""`jaxdl chat MODEL`: a conversation at a terminal."""

import argparse
from collections.abc import Iterator
import contextlib
import sys
from typing import Any

import jax

from jaxdl import generate, hub
from jaxdl.cli import options

HELP = """\
/reset   forgets the conversation
/retry   answers the last message again
/exit    leaves, as Ctrl-D does
Ctrl-C   stops an answer; what was said of it stays in the conversation"""


def add(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = commands.add_parser(
        "chat", help="talk with a model", description="Talks with a model."
    )
    options.add_model(parser)
    options.add_sampling(parser)
    parser.add_argument("--system", help="what the model is told before all")
    parser.add_argument(
        "--context", type=int, default=2048, help="tokens it remembers (default 2048)"
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Asks and answers until the end of input."""
    opened = options.open_model(given)
    if not opened.tokenizer.templates:
        raise hub.HubError(
            f"{given.model}: expected a chat template; a model without one continues "
            "text: jaxdl generate"
        )
    talk = Talk(opened, given)
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrows, and lines said before
    options.note("/help says what there is; Ctrl-D leaves")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            print()
            options.note("Ctrl-D or /exit leaves")
            continue
        except EOFError:
            if sys.stdin.isatty():
                print()
            return 0
        if line in ("/exit", "/quit"):
            return 0
        _obey(talk, line)


def _obey(talk: "Talk", line: str) -> None:
    """One line of the person: a command, or a message to be answered."""
    if line == "/help":
        print(HELP)
    elif line == "/reset":
        talk.messages.clear()
    elif line == "/retry":
        if talk.messages:
            talk.messages.pop()
            _show(talk.answer())
    elif line.startswith("/"):
        print(f"there is no {line.split()[0]}; /help says what there is")
    elif line:
        talk.messages.append({"role": "user", "content": line})
        _show(talk.answer())


def _show(texts: Iterator[str]) -> None:
    """Prints an answer as it comes; Ctrl-C stops it and nothing else."""
    try:
        for text in texts:
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        texts.close()  # type: ignore[attr-defined]
        print(" ...", end="")
    except TooLong as error:
        print(error, end="")
    print(flush=True)


class TooLong(ValueError):
    """A message that does not fit, with the room that the answer needs."""


class Talk:
    """The messages, and the session whose cache holds what was said.

    messages: those after the system's, of user and assistant in turn.
    """

    def __init__(self, opened: hub.Pretrained, given: argparse.Namespace):
        self.tokenizer = opened.tokenizer
        self.session = generate.Session(
            opened.model, opened.params, slots=given.context,
            cache_dtype=options.CACHES[given.cache],
        )  # fmt: skip
        self.system = [{"role": "system", "content": given.system}]
        if not given.system:
            self.system = []
        self.messages: list[dict[str, str]] = []
        self.key, self.turn = options.key_of(given), 0
        self.settings: dict[str, Any] = {
            "max_new": min(given.max_new, given.context // 2),
            "sampler": options.sampler_of(given),
            "eos": opened.tokenizer.eos_ids,
        }

    def answer(self) -> Iterator[str]:
        """The answer to the last message, as it comes; then it is a message too."""
        try:
            tokens = self._tokens()
        except TooLong:
            self.messages.pop()
            raise
        said = ""
        try:
            self.turn += 1
            key = jax.random.fold_in(self.key, self.turn)
            pieces = self.session.reply(tokens, key=key, **self.settings)
            for text in generate.text_of(self.tokenizer, pieces):
                said += text
                yield text
        finally:
            self.messages.append({"role": "assistant", "content": said})

    def _tokens(self) -> list[int]:
        """The conversation as tokens; what is oldest is forgotten where it must be."""
        while True:
            text = self.tokenizer.apply_chat_template(
                [*self.system, *self.messages], add_generation_prompt=True
            )
            tokens = self.tokenizer.encode(text, add_special=False)
            if len(tokens) + self.settings["max_new"] <= self.session.slots:
                return tokens
            if len(self.messages) < 3:
                raise TooLong(
                    f"a message of {len(tokens)} tokens is too long: with the answer "
                    f"there may be {self.session.slots} (--context)"
                )
            del self.messages[:2]
