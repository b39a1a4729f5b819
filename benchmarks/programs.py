"""One program for each library, those of absent libraries left out.

Equinox and PyTorch are optional: they come with `pip install ".[bench]"`, and PyTorch
not for every version of Python.
"""

import importlib
import importlib.util
from typing import Any

import jax

from benchmarks import harness
from benchmarks.work import Program, Work

BASE, AGAIN = "by hand", "by hand, again"

# The base is what the others are compared with; see harness.py for why it comes twice.
LIBRARIES = {
    BASE: ("by_hand", "jax"),
    "jaxdl": ("in_jaxdl", "jax"),
    AGAIN: ("by_hand", "jax"),
    "linen": ("in_linen", "flax"),
    "nnx": ("in_nnx", "flax"),
    "equinox": ("in_equinox", "equinox"),
    "pytorch": ("in_pytorch", "torch"),
}


def library(name: str) -> Any:
    """The module with a library's models, or None where it is not installed."""
    module, package = LIBRARIES[name]
    if importlib.util.find_spec(package) is None:
        return None
    if package == "torch":
        # PyTorch's build for the CPU would be compared with another device.
        if jax.default_backend() != "cpu":
            return None
        importlib.import_module(package).set_num_threads(harness.cores())
    return importlib.import_module(f"benchmarks.libraries.{module}")


def in_every_library(model: str, work: Work) -> dict[str, Program]:
    """The program of a model in each library; model is mlp, resnet or gpt."""
    programs = {}
    for name in LIBRARIES:
        module = library(name)
        if module is not None:
            programs[name] = getattr(module, model)(work)
    return programs
