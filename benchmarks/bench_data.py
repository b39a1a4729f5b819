"""Whether the input keeps up: tokens a second that are read, and that a step trains on.

The step is that of `examples/char_lm.py`, the smallest GPT here and so the one that is
hungriest: a larger model takes fewer tokens a second. Input is real text, tokenised
once (`PackedTokens`), tokenised as it is read (`Steps` of a grain pipeline), or either
with `ReadAhead`, a thread of its own.

    python -m benchmarks.bench_data
"""

from collections.abc import Callable, Sequence
import functools
import itertools
from pathlib import Path
import statistics
import tempfile
import time

import jax
import numpy as np
import optax

from benchmarks import harness
from benchmarks.harness import Report
from jaxdl import data, losses, models
from jaxdl.train import TrainState, make_step

BATCH_SIZE, SEQ_LEN = 16, 128
# Reading a batch may take this part of a step's time; with `ReadAhead` it is not waited
# for, so the input is a bottleneck only beyond 1.
LIMIT = 0.1


def trainer() -> tuple[Callable, TrainState]:
    """The step and the state of the GPT that `examples/char_lm.py` trains."""
    model = models.Decoder(
        models.DecoderConfig(256, SEQ_LEN, dim=96, num_layers=4, num_heads=4)
    )

    def loss_fn(params, batch):
        logits = model(params, batch["inputs"], key=None)
        return losses.cross_entropy(logits, batch["targets"])

    optimizer = optax.adamw(1e-3)
    params = model.init(jax.random.key(0))
    state = TrainState.create(params, optimizer, key=jax.random.key(1))
    return make_step(loss_fn, optimizer), state


def inputs(folder: Path) -> dict[str, Callable[[int], dict]]:
    """The same text by each way to read it."""
    import grain

    paragraphs = [each for each in data.text().split("\n\n") if len(each) > 1]
    (folder / "text.txt").write_text(
        "\n".join(p.replace("\n", " ") for p in paragraphs)
    )
    lines = data.Lines(folder / "text.txt")
    tokens = data.write_tokens(folder / "tokens", lines, encode, progress=False)
    packed = data.PackedTokens(tokens, SEQ_LEN, BATCH_SIZE)
    live = grain.MapDataset.source(lines).shuffle(seed=0).repeat().map(window)
    steps = data.Steps(live, BATCH_SIZE)
    return {
        "packed tokens": packed,
        "packed tokens, ahead": data.ReadAhead(packed),
        "grain, tokenised live": steps,
        "grain, ahead": data.ReadAhead(steps),
    }


def encode(text: str) -> list[int]:
    return list(text.encode("utf-8", "replace"))


def window(text: str) -> dict[str, np.ndarray]:
    tokens = np.resize(np.frombuffer(text.encode(), np.uint8), SEQ_LEN + 1)
    tokens = tokens.astype(np.int32)
    return {"inputs": tokens[:-1], "targets": tokens[1:]}


def bench(report: Report) -> None:
    rounds, length = (1, 2) if report.quick else (7, 20)
    step, state = trainer()
    with tempfile.TemporaryDirectory() as folder:
        ways = inputs(Path(folder))
        same = jax.device_put(ways["packed tokens"](0))
        ways = {"one batch, in memory": lambda step: same, **ways}
        counter = itertools.count()

        def train(batches) -> float:
            nonlocal state
            start = time.perf_counter()
            for _ in range(length):
                batch = batches(next(counter))
                chosen = {name: batch[name] for name in ("inputs", "targets")}
                state, metrics = step(state, chosen)
            jax.block_until_ready(metrics)
            return (time.perf_counter() - start) / length

        def read(batches) -> float:
            start = time.perf_counter()
            for index in range(length):
                batches(index)
            return (time.perf_counter() - start) / length

        for batches in ways.values():  # compiles, opens files
            train(batches)
        trained = {n: functools.partial(train, way) for n, way in ways.items()}
        times = harness.interleave(report, "data", trained, rounds)
        reading = {name: min(read(way) for _ in range(3)) for name, way in ways.items()}
    _show(report, times, reading)


def _show(report: Report, times: dict, reading: dict[str, float]) -> None:
    base, *ways = times
    rows = []
    for name in ways:
        ratio = statistics.median(
            one / other for one, other in zip(times[name], times[base], strict=True)
        )
        share = reading[name] / min(times[base])
        rows.append(
            {
                "input": name,
                "tokens/s read": harness.number(_rate(reading[name])),
                "trained on": harness.number(_rate(min(times[name]))),
                "step, to one without reading": harness.number(ratio),
                "reading, of a step": report.verdict(name, share, LIMIT),
            }
        )
    report.add("input of the GPT example", rows)


def _rate(seconds: float) -> float:
    return BATCH_SIZE * SEQ_LEN / seconds


def main(arguments: Sequence[str] | None = None) -> Report:
    return harness.main({"data": bench}, arguments)


if __name__ == "__main__":
    main()
