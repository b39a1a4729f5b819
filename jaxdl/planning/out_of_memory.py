"""A program that does not fit, in words: what takes how much, and what would help."""

from collections.abc import Iterator
import math
import re
from typing import Any

from jaxdl.core.table import human_bytes
from jaxdl.planning.report import Report
from jaxdl.planning.targets import Target

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class OutOfMemory(RuntimeError):
    """The compiler refused a program, as it needs more memory than the device has.

    needed, available: bytes, as the compiler says; None where it does not.
    report: of the same program on a larger chip, if it fits there: an estimate.
    """

    def __init__(
        self, target: Target, error: Exception, arguments: dict, report: Report | None
    ):
        self.target = target.name
        self.needed, self.available = _sizes(str(error))
        if self.available is None and target.chip is not None:
            self.available = int(target.chip.memory)
        self.report = report
        self.arguments = dict(arguments)
        self._made_of = target, error, arguments
        super().__init__("\n".join(self._lines()))

    def with_report(self, report: Report) -> "OutOfMemory":
        """The same, with what a report of a larger chip tells."""
        return OutOfMemory(*self._made_of, report)

    def _lines(self) -> Iterator[str]:
        needed = human_bytes(self.needed) if self.needed else "more"
        available = human_bytes(self.available) if self.available else "there is"
        yield f"{self.target}: needs {needed} on each device, of {available}"
        for name, size in self.arguments.items():
            if size * 100 >= sum(self.arguments.values()):
                yield f"  {human_bytes(size):>10}  {name}"
        report = self.report
        if report is not None:
            if report.memory.outputs >= 2**20:
                yield f"  {human_bytes(report.memory.outputs):>10}  results"
            yield (
                f"  {human_bytes(report.memory.temporaries):>10}  temporaries, as "
                f"compiled for {report.target}, of which at the fullest moment:"
            )
            for buffer in report.largest[:5]:
                yield f"  {human_bytes(buffer.nbytes):>12}  {_described(buffer)}"
        yield "What would help:"
        yield from (f"- {line}" for line in self.advice)

    @property
    def advice(self) -> tuple[str, ...]:
        """What would make it smaller, the surest first."""
        return tuple(_advice(self.arguments, self.available or 0, self.report))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a compiler's error says that a program does not fit."""
    return "RESOURCE_EXHAUSTED" in str(error)


def larger(target: Target) -> str | None:
    """A target of as many devices with much memory, of a chip of the same family."""
    chip, number = target.chip, len(target.devices)
    if target.platform != "tpu" or chip is None or chip.name == "TPU v5p":
        return None
    if number == 1:
        return "v5p:1x1x1"
    if number % 4:
        return None
    # The sides of a host's four chips, then doubled in turn.
    sides = [2, 2, 1]
    rest = number // 4
    while rest % 2 == 0:
        smallest = sides.index(min(sides))
        sides[smallest] *= 2
        rest //= 2
    sides[2] *= rest
    return f"v5p:{'x'.join(map(str, sorted(sides)[::-1]))}"


def _advice(arguments: dict, available: float, report: Report | None) -> Iterator[str]:
    held = sum(arguments.values())
    name, size = max(arguments.items(), key=lambda item: item[1])
    if held > available > 0:
        yield (
            f"the arguments alone take {human_bytes(held)}: split them over more "
            "devices (rules=jd.shard.FSDP and a larger fsdp axis), or hold less: "
            "bfloat16 or quantised parameters, a smaller optimizer state, adapters"
        )
    elif held > available / 3:
        yield (
            f"{name} takes {human_bytes(size)}: twice the devices on the fsdp axis "
            "(rules=jd.shard.FSDP) hold half of it each"
        )
    if report is not None and report.memory.outputs > held / 10:
        yield (
            f"{human_bytes(report.memory.outputs)} of results stand beside the "
            "arguments: donate the old state, jax.jit(step, donate_argnums=0)"
        )
    buffers = report.largest[:8] if report is not None else ()
    shapes = [
        tuple(map(int, re.findall(r"\d+", b.array.split("[")[1]))) for b in buffers
    ]
    scored = ["attn" in b.scope or "attention" in b.scope for b in buffers]
    if any(
        at and len(s) > 2 and min(s[-2:]) >= 512
        for at, s in zip(scored, shapes, strict=True)
    ):
        yield (
            "scores of whole sequences are held: a fused or blockwise attention is not "
            "quadratic in the length"
        )
    if any(s and s[-1] >= 2**14 for s in shapes):
        yield (
            "arrays as wide as a vocabulary are held: if these are logits, "
            "jd.losses.chunked_cross_entropy holds those of a chunk"
        )
    if report is None or report.flops.hardware == report.flops.model:
        yield (
            "remat: nn.Repeat(..., remat=True), or jax.checkpoint, keeps the inputs of "
            "layers only and computes the rest again"
        )
    yield (
        "microbatches: make_step(..., accumulate=n) holds the activations of an nth of "
        "the batch; or a smaller batch"
    )


def _described(buffer: Any) -> str:
    source = "/".join(buffer.source.split("/")[-2:])
    return "  ".join(filter(None, (buffer.array, buffer.scope, source)))


def _sizes(message: str) -> tuple[int | None, int | None]:
    """What is needed and what there is, of the compiler's `(58.00G)` and `(15.75G)`."""
    size = r"\((\d+(?:\.\d+)?)([KMGT])\)"
    found = re.search(f"{size} exceeds available HBM {size}", message)
    if found is None:
        return None, None
    needed, n_unit, available, a_unit = found.groups()
    return (
        math.ceil(float(needed) * _UNITS[n_unit]),
        math.floor(float(available) * _UNITS[a_unit]),
    )
