"""Arguments that commands share: which model, and how it speaks."""

import argparse
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl import generate, hub

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}
CACHES = {**DTYPES, "int8": jnp.int8}


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL, and the dtypes of its parameters and cache."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder, a .gguf file, or a Hugging Face repository as owner/name",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--cache", choices=CACHES, default="float32")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen."""
    add = parser.add_argument
    add("--max-new", type=int, default=256, help="tokens at most (default 256)")
    add("--temperature", type=float, default=0.7, help="0 for greedy (default 0.7)")
    add("--top-k", type=int, help="of the k likeliest tokens")
    add("--top-p", type=float, help="of the likeliest with probability p together")
    add("--min-p", type=float, help="of those with p times the highest probability")
    add("--repetition-penalty", type=float, help="above 1: repeats become rarer")
    add("--seed", type=int, help="of the draw; another one each time if not given")


def open_model(given: argparse.Namespace) -> hub.Pretrained:
    """The model that MODEL names; HubError if it has no tokenizer."""
    note(f"loading {given.model}")
    opened = hub.load(given.model, dtype=DTYPES[given.dtype])
    if opened.tokenizer is None:
        raise hub.HubError(f"{given.model}: expected a tokenizer beside the weights")
    return opened


def sampler_of(given: argparse.Namespace) -> generate.Chain:
    """The sampler that the arguments describe, in the order that is usual."""
    chosen: list[Any] = []
    if given.repetition_penalty is not None:
        chosen.append(generate.repetition_penalty(given.repetition_penalty))
    if given.temperature == 0:
        return generate.chain(*chosen, generate.greedy)
    chosen.append(generate.temperature(given.temperature))
    for name in ("top_k", "top_p", "min_p"):
        value = getattr(given, name)
        if value is not None:
            chosen.append(getattr(generate, name)(value))
    return generate.chain(*chosen)


def key_of(given: argparse.Namespace) -> jax.Array:
    """The key of the draw."""
    seed = given.seed if given.seed is not None else time.time_ns() % 2**31
    return jax.random.key(seed)


def note(text: str) -> None:
    """Says something to a person at a terminal, and nothing to a file."""
    if sys.stderr.isatty():
        print(f"\033[2m{text}\033[0m", file=sys.stderr, flush=True)
