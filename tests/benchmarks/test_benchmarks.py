"""The benches run, at sizes of no interest, and what they measure is the same work."""

import importlib.util
import json
import re

import jax
import pytest

from benchmarks import (
    bench_compile,
    bench_overhead,
    bench_step,
    harness,
    programs,
    run,
    work,
)
from benchmarks.libraries import by_hand, in_jaxdl
from jaxdl import models

CONFIG = models.DecoderConfig(
    vocab_size=16, seq_len=8, dim=8, num_layers=2, num_heads=2
)
WORKS = {
    "mlp": lambda: work.mlp((4, 8, 2), batch_size=4),
    "resnet": lambda: work.resnet(work.ResNetConfig((1, 1), width=4), batch_size=2),
    "gpt": lambda: work.gpt(CONFIG, batch_size=2),
}


def programs_of(report, title):
    (table,) = [table for table in report.tables if table["title"].startswith(title)]
    return {row["program"]: row for row in table["rows"]}


def test_the_overhead_is_measured():
    report = bench_overhead.main(["--quick"])
    rows = programs_of(report, "call: 10 arrays")
    assert all(row["µs"] > 0 for row in rows.values())
    assert {"jaxdl, Sequential", "jaxdl, Repeat", "linen"} <= rows.keys()


def test_the_step_is_measured():
    report = harness.Report(quick=True)
    bench_step.mlp(report)
    assert programs_of(report, "step: MLP")["jaxdl"]["ms"] > 0


@pytest.mark.slow
def test_the_step_of_every_model_is_measured():
    report = bench_step.main(["--quick"])
    for title in ("step: MLP", "step: ResNet", "step: GPT"):
        rows = programs_of(report, title)
        assert {"by hand", "by hand, again", "jaxdl", "linen", "nnx"} <= rows.keys()
    assert len(report.verdicts) == 3


@pytest.mark.slow
def test_tracing_and_compiling_are_measured():
    before = jax.config.values["jax_enable_compilation_cache"]
    report = bench_compile.main(["--quick"])
    assert jax.config.values["jax_enable_compilation_cache"] == before
    row = programs_of(report, "trace and compile, scan")["jaxdl, Repeat"]
    assert min(row["trace 1/2"] + row["compile 1/2"]) > 0 and row["2 to 1"] > 0


def test_the_memory_of_the_loss_is_measured(tmp_path):
    path = tmp_path / "figures.json"
    run.main(["loss", "--quick", "--json", str(path)])
    figures = json.loads(path.read_text())
    assert figures["machine"]["cores"] > 0
    rows = {row["program"]: row for row in figures["tables"][0]["rows"]}
    assert rows["by hand, all logits"]["ratio"] == 1
    assert figures["targets"][0]["value"] == rows["jaxdl, chunked"]["ratio"]


@pytest.mark.parametrize(
    ("library", "package"), [("equinox", "equinox"), ("pytorch", "torch")]
)
def test_what_is_optional_is_compared_where_it_is_installed(library, package):
    pytest.importorskip(package)
    for model, make in WORKS.items():
        assert library in programs.in_every_library(model, make())


def test_what_is_not_installed_is_left_out(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("torch", "equinox") else found(name),
    )
    made = programs.in_every_library("mlp", WORKS["mlp"]())
    assert list(made) == ["by hand", "jaxdl", "by hand, again", "linen", "nnx"]


def lowered(program):
    """The StableHLO of a step, without the names of its results."""
    text = program.step.lower(program.carry, program.batch).as_text()
    return re.sub(r' \{jax.result_info = "[^"]*"\}', "", text)


def test_layers_lower_to_the_program_that_is_written_by_hand():
    given = work.deep_mlp(4, width=4, batch_size=2)
    assert lowered(in_jaxdl.mlp(given)) == lowered(by_hand.mlp(given))
    assert lowered(in_jaxdl.repeated_mlp(given)) == lowered(by_hand.scanned_mlp(given))


def test_a_deeper_model_lowers_to_a_program_of_the_same_size():
    """What compilation takes is a matter of the program; this one is deterministic."""

    def operations(layers):
        program = bench_compile.build(layers, scan=True)[bench_compile.OURS]
        return re.findall(r"stablehlo\.\w+|call @\w+", lowered(program))

    assert operations(48) == operations(12)


def test_other_work_is_not_timed():
    given = WORKS["mlp"]()
    other = given._replace(batch=(given.batch[0], given.batch[1] + 1))
    with pytest.raises(AssertionError, match="wrong: expected the loss"):
        harness.same_losses({"base": by_hand.mlp(given), "wrong": by_hand.mlp(other)})


def test_every_round_runs_every_measure_once_in_another_order():
    order = []

    def measure(name):
        return lambda: order.append(name) or float(len(order))

    names = list("abcd")
    times = harness.interleave(
        harness.Report(), "", {name: measure(name) for name in names}, rounds=6
    )
    rounds = [order[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(one) == names for one in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert times["a"] == [1.0 + i for i, name in enumerate(order) if name == "a"]


def test_a_ratio_is_taken_within_a_round():
    base, other = [1.0, 10.0, 100.0], [2.0, 20.0, 100.0]
    assert harness.ratio(other, base) == 2


def test_the_base_is_the_mean_of_both_of_its_builds():
    report = harness.Report()
    times = {"before": [1.0, 1.0], "other": [2.0, 2.0], "after": [3.0, 3.0]}
    targets = {"other": harness.Target(1.5), "after": harness.Target(1.2, "other")}
    report.compare("title", "ms", times, ("before", "after"), targets)
    assert [row["ratio"] for row in report.tables[0]["rows"]] == [0.5, 1, 1.5]
    assert [verdict["value"] for verdict in report.verdicts] == [1, 1.5]
    assert [verdict["passed"] for verdict in report.verdicts] == [True, False]


def test_a_bench_that_does_not_exist_is_named(capsys):
    with pytest.raises(SystemExit):
        run.main(["speed"])
    assert "got speed" in capsys.readouterr().err
