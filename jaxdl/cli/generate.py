"""`jaxdl generate MODEL --prompt TEXT`: continues a text, or writes one about it."""

import argparse
import sys
import time
from typing import Any

from jaxdl import generate, hub, models
from jaxdl.cli import options


def add(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = commands.add_parser(
        "generate",
        help="continue a text",
        description="Continues a text; an encoder-decoder (T5) reads it and answers.",
    )
    options.add_model(parser)
    parser.add_argument(
        "--prompt", action="append", help="the text; again for more of them; else stdin"
    )
    options.add_sampling(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """One prompt is streamed; several are continued together and shown one by one."""
    opened = options.open_model(given)
    prompts = given.prompt or [sys.stdin.read()]
    rows = [opened.tokenizer.encode(prompt) for prompt in prompts]
    if not hasattr(opened.model, "init_cache"):
        kind = type(opened.model).__name__
        raise hub.HubError(f"{given.model}: expected a model that writes, got {kind}")
    if hasattr(opened.model, "encode"):
        opened, rows = _reading(given.model, opened, rows)
        prompts = [""] * len(rows)  # it does not go on with them
    settings: dict[str, Any] = {
        "max_new": given.max_new,
        "sampler": options.sampler_of(given),
        "key": options.key_of(given),
        "eos": opened.tokenizer.eos_ids,
        "cache_dtype": options.CACHES[given.cache],
    }
    if len(rows) == 1:
        _stream(opened, prompts[0], rows[0], settings)
    else:
        _batch(opened, prompts, rows, settings)
    return 0


def _reading(name: str, opened: Any, rows: list[list[int]]) -> tuple[Any, Any]:
    """The model whose encoder has read the rows, and what its decoder starts with."""
    if not isinstance(opened.model, models.T5):
        kind = type(opened.model).__name__
        raise hub.HubError(f"{name}: expected a model that reads text, got {kind}")
    start = opened.config.get("decoder_start_token_id")
    if start is None:
        raise hub.HubError(f"{name}: expected decoder_start_token_id in config.json")
    reading = generate.conditioned(opened.model, opened.params, rows, multiple=16)
    return opened._replace(**reading._asdict()), [[start]] * len(rows)


def _stream(opened: Any, prompt: str, row: list[int], settings: dict) -> None:
    print(prompt, end="", flush=True)
    count, start = 0, time.perf_counter()

    def counted(pieces):
        nonlocal count, start
        for piece in pieces:
            if count == 0:
                start = time.perf_counter()
            count += len(piece)
            yield piece

    pieces = counted(generate.stream(opened.model, opened.params, row, **settings))
    try:
        for text in generate.text_of(opened.tokenizer, pieces):
            print(text, end="", flush=True)
    finally:
        print(flush=True)
    seconds = time.perf_counter() - start
    if count > 1:
        options.note(f"{count} tokens, {(count - 1) / seconds:.1f} a second")


def _batch(opened: Any, prompts: list[str], rows: Any, settings: dict) -> None:
    said = generate.generate(opened.model, opened.params, rows, **settings)
    for prompt, row in zip(prompts, said.rows(), strict=True):
        print(f"{prompt}{opened.tokenizer.decode(row)}\n")
