"""`jaxdl plan FILE:FUNCTION --target v5e:4x8`: what a step takes on a target."""

import argparse
import contextlib
import importlib.util
import inspect
import os
from pathlib import Path
import re
import sys
from typing import Any

import jax

from jaxdl.core import tree
from jaxdl.planning import OutOfMemory, plan


def add(commands: Any) -> None:
    """Adds the command to the parser's."""
    parser = commands.add_parser(
        "plan",
        help="what a training step takes on a TPU, GPU or CPU that is not here",
        description="Compiles a step for a target and reports memory, collectives, "
        "FLOPs and the least time. The status is 1 where it does not fit.",
    )
    add_argument = parser.add_argument
    add_argument(
        "function",
        metavar="FILE:FUNCTION",
        help="a function in a Python file that returns (step, args); if it names "
        "`devices` it is given the target's, to build a mesh of",
    )
    add_argument("--target", required=True, help="v5e:4x8, v5e:1x1, h100:8, cpu:8, ...")
    add_argument("--html", type=Path, help="where to write the report as a page")
    add_argument("--json", type=Path, help="where to write the report as JSON")
    add_argument("--remember", type=Path, help="a directory that keeps reports")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Plans, prints, and writes what was asked for."""
    _keep_to_the_cpu(given.target)
    try:
        devices = plan.devices(given.target)
        step, args = _built(given.function, devices)
        report = plan(step, *args, target=given.target, remember=given.remember)
    except (ImportError, OutOfMemory) as error:
        print(f"jaxdl: {error}", file=sys.stderr)
        return 1
    report.show()
    if given.html is not None:
        report.to_html(given.html)
    if given.json is not None:
        given.json.write_text(report.to_json(), "utf-8")
    return 0 if report.fits else 1


def _keep_to_the_cpu(target: str) -> None:
    """Takes no accelerator; makes as many CPU devices as are planned for."""
    if jax.config.jax_platforms is None:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    number = re.fullmatch(r"cpu:(\d+)", target)
    if number and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has started, as in a test
            jax.config.update("jax_num_cpu_devices", int(number[1]))


def _built(name: str, devices: list[Any]) -> tuple[Any, tuple]:
    """What the function returns. Raises ValueError where it is none."""
    file, _, function = name.rpartition(":")
    module = _module(Path(file)) if file else None
    build = getattr(module, function, None)
    if not callable(build):
        known = [n for n, v in vars(module).items() if callable(v)] if module else []
        raise ValueError(
            f"{name}: expected FILE:FUNCTION; {tree.suggestion(function, known)}"
        )
    asked = "devices" in inspect.signature(build).parameters
    built = build(devices=devices) if asked else build()
    if not (isinstance(built, tuple) and len(built) == 2 and callable(built[0])):
        kind = type(built).__name__
        raise ValueError(f"{name}: expected it to return (step, args), got {kind}")
    return built


def _module(path: Path) -> Any:
    """A Python file, run as a module; it may import what stands beside it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module
