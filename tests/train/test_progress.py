"""Speeds and what is shown of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxdl.train import progress as progress_module
from jaxdl.train.progress import Meter, Progress, items_of, summary


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


H100 = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
CPU = SimpleNamespace(device_kind="cpu")


def test_rates_are_per_second_since_the_last_record(clock):
    meter = Meter({"tokens": 100}, flops_per_step=989e12, devices=[H100, H100])
    assert meter.rates(1, at=0.0) == {}
    rates = meter.rates(5, at=2.0)
    assert rates == {"steps_per_second": 2, "tokens_per_second": 200, "mfu": 1.0}
    clock.now = 100.0
    meter.start(6)
    assert meter.rates(7, at=101.0)["steps_per_second"] == 1


def test_no_mfu_is_made_up(clock):
    for flops, devices in ((1e12, [H100, CPU]), (None, [H100])):
        meter = Meter({}, flops, devices)
        meter.start(0)
        assert meter.rates(1, at=1.0) == {"steps_per_second": 1}


def test_examples_are_the_leading_axis_of_the_batch():
    assert items_of({"x": np.zeros((4, 2)), "y": np.zeros(4)}) == {"examples": 4}
    assert items_of({"x": np.float32(1)}) == {} == items_of(None)


def test_a_summary_shows_losses_speeds_and_what_went_wrong():
    numbers = {
        "step": 3,
        "loss": 0.123456,
        "grad_norm": 1.0,
        "skipped": 2.0,
        "eval/loss": 0.5,
        "tokens_per_second": 12345.6,
        "mfu": 0.4321,
    }
    assert summary(numbers) == (
        "loss 0.1235  eval/loss 0.5  12.3k tokens/s  MFU 43.2%  skipped 2"
    )
    assert summary({"loss": 1.0, "skipped": 0.0}) == "loss 1"


def test_outside_a_terminal_a_line_is_printed_now_and_then(clock, capsys):
    progress = Progress(0, 100)
    for step in range(1, 101):
        clock.now += 1
        progress.advance(step)
        progress.show({"step": step, "loss": 1 / step, "steps_per_second": 1.0})
    progress.close()
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split()[1] for line in lines]
    assert steps == ["1/100", "31/100", "61/100", "91/100", "100/100"]
    assert lines[0] == "step 1/100  loss 1  1 steps/s  0:01:39 left"


def test_a_terminal_gets_a_bar_and_false_gets_nothing(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    progress = Progress(0, 10)
    progress.show({"step": 5, "loss": 0.5})
    progress.advance(5)
    progress.close()
    shown = capsys.readouterr().out
    assert "train" in shown and "loss" in shown and "5/10" in shown

    progress = Progress(0, 10, shown=False)
    progress.show({"step": 5, "loss": 0.5})
    progress.close()
    assert capsys.readouterr().out == ""
