"""The picture of a run."""

import sys

import numpy as np
import pytest

from jaxdl.train import History, plot_history


def history(steps=200):
    random = np.random.default_rng(0)
    records = []
    for step in range(10, steps + 1, 10):
        loss = 2 * np.exp(-step / 60) + 0.1 * random.random()
        records.append(
            {
                "step": step,
                "loss": loss,
                "grad_norm": 1 + random.random(),
                "skipped": 0.0,
                "accuracy": 1 - loss / 3,
                "steps_per_second": 10.0,
            }
        )
        if step % 50 == 0:
            records.append(
                {"step": step, "eval/loss": loss + 0.2, "eval/accuracy": 0.9 - loss / 3}
            )
    return History(records)


def test_a_panel_for_each_number_eval_beside_train_and_no_speed(tmp_path):
    plot_history(history(), tmp_path / "deep" / "run.svg")
    drawn = (tmp_path / "deep" / "run.svg").read_text()
    titles = [name for name in ("loss", "grad_norm", "accuracy") if name in drawn]
    assert titles == ["loss", "grad_norm", "accuracy"]
    assert drawn.count("<!-- eval -->") == 2
    assert "per_second" not in drawn and "skipped" not in drawn


@pytest.mark.parametrize(
    "records",
    [[], [{"step": 1, "loss": float("nan")}], [{"step": 3, "eval/loss": 0.0}]],
)
def test_any_history_can_be_drawn(tmp_path, records):
    plot_history(History(records), tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "jaxdl\[examples\]"'):
        plot_history(history(), tmp_path / "run.png")
