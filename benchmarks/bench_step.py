"""The time of a training step: forward, backward and update, arrays donated.

Every program starts from the same weights, and some steps assert that the losses agree
before anything is timed.

    python -m benchmarks.bench_step
"""

from collections.abc import Sequence
import functools

from benchmarks import harness, programs, work
from benchmarks.harness import Report, Target
from benchmarks.libraries import by_hand
from benchmarks.work import Program
from jaxdl import models

BASES = (programs.BASE, programs.AGAIN)
TARGETS = {"jaxdl": Target(1.02)}


def compare(
    report: Report, title: str, made: dict[str, Program], calls: int, rounds: int
) -> None:
    harness.same_losses(made)
    measures = {
        name: functools.partial(harness.seconds_of_step, program, calls)
        for name, program in made.items()
    }
    times = harness.interleave(report, title, measures, rounds)
    report.compare(f"step: {title}", "ms", times, BASES, TARGETS)


def mlp(report: Report) -> None:
    widths, batch_size = (
        ((8, 16, 4), 4) if report.quick else ((784, 1024, 1024, 10), 64)
    )
    given = work.mlp(widths, batch_size)
    made = programs.in_every_library("mlp", given)
    title = f"MLP {'-'.join(map(str, widths))}, batch {batch_size}, SGD"
    compare(report, title, made, *((1, 2) if report.quick else (5, 30)))


def resnet(report: Report) -> None:
    config, batch_size = work.ResNetConfig(), 8
    if report.quick:
        config, batch_size = work.ResNetConfig((1, 1), width=4), 2
    given = work.resnet(config, batch_size)
    made = programs.in_every_library("resnet", given)
    depth = 2 + 2 * sum(config.depths)
    title = f"ResNet-{depth}, batch {batch_size}, 32 x 32, SGD with momentum"
    compare(report, title, made, 1, 2 if report.quick else 10)


def gpt(report: Report) -> None:
    config = models.DecoderConfig(
        vocab_size=1024, seq_len=128, dim=256, num_layers=6, num_heads=8
    )
    batch_size = 4
    if report.quick:
        config = models.DecoderConfig(
            vocab_size=16, seq_len=8, dim=8, num_layers=2, num_heads=2
        )
    given = work.gpt(config, batch_size)
    made = programs.in_every_library("gpt", given)
    made["by hand, no scan"] = by_hand.gpt(given, scan=False)
    title = (
        f"GPT, {config.num_layers} layers of {config.dim}, batch {batch_size} x "
        f"{config.seq_len}, AdamW"
    )
    compare(report, title, made, 1, 2 if report.quick else 16)


def bench(report: Report) -> None:
    mlp(report)
    resnet(report)
    gpt(report)


def main(arguments: Sequence[str] | None = None) -> Report:
    return harness.main({"step": bench}, arguments)


if __name__ == "__main__":
    main()
