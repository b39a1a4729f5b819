"""`python -m jaxdl doctor`: whether JAX is well here, with advice in words."""

import argparse
from collections.abc import Callable, Iterator
import importlib.metadata
import os
import platform
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.core.table import human_bytes
from jaxdl.planning.chips import peak_flops

GOOD, ADVICE, BAD = "good", "advice", "bad"


class Finding(NamedTuple):
    """One line: what was looked at, what it is, whether that is good, what to do."""

    what: str
    found: str
    verdict: str = GOOD
    advice: str = ""


def add(commands: Any) -> None:
    """Adds the command to those of the parser."""
    parser = commands.add_parser("doctor", help="checks this machine's JAX, in seconds")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of the matmul and attention checks"
    )
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Prints a table and the advice; 1 if something is bad."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", "found", "", box=None, pad_edge=False)
    marks = {GOOD: "[green]good[/]", ADVICE: "[yellow]see below[/]", BAD: "[red]bad[/]"}
    console = Console()
    with console.status("looking"):
        findings = list(diagnose(given.seconds))
    for finding in findings:
        table.add_row(finding.what, finding.found, marks[finding.verdict])
    console.print(table)
    for finding in findings:
        if finding.advice:
            console.print(f"\n[bold]{finding.what}[/]: {finding.advice}")
    return int(any(finding.verdict == BAD for finding in findings))


def diagnose(seconds: float = 2.0) -> Iterator[Finding]:
    """Every check in turn; one that cannot be made is a finding, not an error."""
    checks: list[Callable[[], Finding | None]] = [
        versions, libtpu, devices, memory, cache, donation,
        lambda: matmul(seconds), lambda: attention(seconds),
    ]  # fmt: skip
    for check in checks:
        try:
            finding = check()
        except Exception as error:
            name = getattr(check, "__name__", "check").strip("<>")
            text = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            finding = Finding(name, text, BAD, "This check failed where it should not.")
        if finding is not None:
            yield finding


def versions() -> Finding:
    """Python's, JAX's and jaxlib's, which belong together."""
    found = {name: _version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    text = f"Python {platform.python_version()}, " + ", ".join(
        f"{name} {version}" for name, version in found.items()
    )
    if found["jax"] != found["jaxlib"]:
        return Finding(
            "versions", text, BAD,
            "jax and jaxlib differ: install them together, pip install -U jax jaxlib, "
            "and restart the runtime.",
        )  # fmt: skip
    return Finding("versions", text)


def libtpu() -> Finding | None:
    """Whether the TPU's compiler is here where there is a TPU, and is used."""
    has_chip = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    version = _version("libtpu")
    if not has_chip:
        return None
    if version is None:
        return Finding(
            "libtpu", "not installed", BAD,
            'This machine has a TPU, and JAX cannot use it: pip install "jaxdl[tpu]", '
            "and restart the runtime.",
        )  # fmt: skip
    if jax.default_backend() != "tpu":
        return Finding(
            "libtpu", f"{version}, but JAX runs on {jax.default_backend()}", BAD,
            "Another process may hold the TPU (end it, or restart the runtime), or "
            "JAX_PLATFORMS may be set: unset it.",
        )  # fmt: skip
    return Finding("libtpu", version)


def devices() -> Finding:
    """What JAX runs on; a GPU that it does not see is worth a word."""
    found = jax.devices()
    text = f"{len(found)} x {found[0].device_kind} ({found[0].platform})"
    if os.path.exists("/proc/driver/nvidia/version") and found[0].platform == "cpu":
        return Finding(
            "devices", text, BAD,
            'This machine has an NVIDIA driver and JAX runs on the CPU: pip install '
            '"jaxdl[cuda]", and see that JAX_PLATFORMS is not set.',
        )  # fmt: skip
    if found[0].platform == "cpu":
        return Finding(
            "devices", text, ADVICE,
            "There is no accelerator here. On Colab choose one under Runtime, Change "
            "runtime type.",
        )  # fmt: skip
    if peak_flops(found[0]) is None:
        return Finding(
            "devices", text, ADVICE,
            "The peak of this device is not known to jaxdl, so no MFU is shown.",
        )  # fmt: skip
    return Finding("devices", text)


def memory() -> Finding:
    """How much is free on the first device, or on the host."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        free, whole = stats["bytes_limit"] - stats["bytes_in_use"], stats["bytes_limit"]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        page = os.sysconf("SC_PAGE_SIZE")
        free, whole = (
            page * os.sysconf(f"SC_{kind}_PAGES") for kind in ("AVPHYS", "PHYS")
        )
    else:
        return Finding("memory", "not told by this system")
    text = f"{human_bytes(free)} free of {human_bytes(whole)}"
    if free < 0.25 * whole:
        return Finding(
            "memory", text, ADVICE,
            "Most of it is taken: arrays of earlier cells live as long as a name holds "
            "them; del them, or restart the runtime.",
        )  # fmt: skip
    return Finding("memory", text)


def cache() -> Finding:
    """Whether compiled programs are kept from one process to the next."""
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if folder is None:
        return Finding(
            "compilation cache", "off", ADVICE,
            "Every process compiles anew. To keep what was compiled: "
            'jax.config.update("jax_compilation_cache_dir", "/some/folder"), or set '
            "JAX_COMPILATION_CACHE_DIR; on Colab a folder of a mounted drive.",
        )  # fmt: skip
    if "://" not in folder and os.path.isdir(folder) and not os.access(folder, os.W_OK):
        return Finding(
            "compilation cache", f"{folder}, not writable", BAD,
            "Nothing can be kept there: choose another folder.",
        )  # fmt: skip
    return Finding("compilation cache", folder)


def donation() -> Finding:
    """Whether a donated array's memory is used again: half of a step's memory."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(jnp.zeros(1024))
    jax.block_until_ready(step(x))
    if x.is_deleted():
        return Finding("donation", "works")
    return Finding(
        "donation", "does nothing here", ADVICE,
        "A training step will hold its state twice: leave room for it.",
    )  # fmt: skip


def matmul(seconds: float) -> Finding:
    """The speed of a large product in bfloat16, beside the device's peak."""
    small = jax.default_backend() == "cpu"
    size = 1024 if small else 8192
    dtype = jnp.float32 if small else jnp.bfloat16
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    rate = 2 * size**3 / _fastest(jax.jit(lambda x: x @ x), x, seconds=seconds / 2)
    text = f"{rate / 1e12:.3g} TFLOP/s, {size} squared in {x.dtype.name}"
    peak = peak_flops(jax.devices()[0])
    if peak is None:
        return Finding("matmul", text)
    text = f"{text}, {rate / peak:.0%} of the peak"
    if rate < 0.5 * peak:
        return Finding(
            "matmul", text, ADVICE,
            "Less than half of what the device can: it may be shared, hot or slowed "
            "down; look at what else runs on it.",
        )  # fmt: skip
    return Finding("matmul", text)


def attention(seconds: float) -> Finding:
    """Attention over 2,048 tokens, against its definition, and its speed."""
    seq, heads, dim = (512, 4, 64) if jax.default_backend() == "cpu" else (2048, 16, 64)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, seq, heads, dim))
    fused = jax.jit(lambda q: jax.nn.dot_product_attention(q, k, v, is_causal=True))
    # By numpy: XLA's maximum on CPU may leave out what is not a number.
    gap = float(np.abs(np.asarray(fused(q)) - np.asarray(_attention(q, k, v))).max())
    took = _fastest(fused, q, seconds=seconds / 2)
    text = f"{seq / took:,.0f} tokens/s, off by {gap:.1e}"
    # TPUs and GPUs multiply in bfloat16 or TF32 unless told otherwise.
    if not gap < (1e-4 if jax.default_backend() == "cpu" else 5e-2):
        return Finding(
            "attention", text, BAD,
            "Attention does not compute what it is defined as: update jax and the "
            "driver.",
        )  # fmt: skip
    return Finding("attention", text)


def _attention(q, k, v):
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    pattern = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", pattern, v)


def _fastest(function: Callable, x: jax.Array, seconds: float) -> float:
    """The least time of a call, in some seconds of calls after the first."""
    jax.block_until_ready(function(x))
    until, times = time.perf_counter() + seconds, []
    while not times or time.perf_counter() < until:
        start = time.perf_counter()
        jax.block_until_ready(function(x))
        times.append(time.perf_counter() - start)
    return min(times)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
