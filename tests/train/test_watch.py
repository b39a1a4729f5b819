from pathlib import Path
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jaxdl.train import Profile, fit, make_step
from jaxdl.train.watch import Watchdog
from tests.train import job

ROOT = Path(__file__).parents[2]
STEP = make_step(job.loss_fn, job.OPTIMIZER, ema_decay=0.9)

HANGS = """
import sys, time
from jaxdl.train import fit, make_step
from tests.train import job

def waits_for_ever(step):
    time.sleep(60 if step == 3 else 0)
    return job.batch(step)

step = make_step(job.loss_fn, job.OPTIMIZER, ema_decay=0.9)
fit(job.initial(), step, waits_for_ever, steps=5, hang_after=2, progress=False)
"""


def test_a_run_that_hangs_is_ended_and_says_where():
    ended = subprocess.run(
        [sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True,
        timeout=50,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "Timeout (0:00:02)!" in ended.stderr
    assert "in waits_for_ever" in ended.stderr


def test_a_run_that_does_not_hang_is_left_alone():
    state, _ = fit(
        job.initial(), STEP, job.batch, steps=3, hang_after=60, progress=False
    )
    assert int(state.step) == 3
    with pytest.raises(ValueError, match="hang_after: expected seconds above 0"):
        Watchdog(0)


def test_the_steps_that_are_named_are_traced(tmp_path):
    profile = Profile(tmp_path, 3, 4)
    fit(
        job.initial(), STEP, job.batch,
        steps=5, callbacks=[profile], progress=False,
    )  # fmt: skip
    assert list(tmp_path.rglob("*.xplane.pb"))
    with pytest.raises(ValueError, match="expected 2 <= first <= last"):
        Profile(tmp_path, 1, 4)


def test_goodput_is_the_share_of_the_time_in_which_steps_ran(monkeypatch):
    now = 0.0

    def lasting(seconds, result=None):
        nonlocal now
        now += seconds
        return result

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr("jaxdl.train.progress.time", clock)
    monkeypatch.setattr("jaxdl.train.record.time", clock)
    _, history = fit(
        job.initial(),
        # The first step is 8 seconds longer: compilation.
        lambda state, batch: lasting(1.0 if batch else 9.0, (state, {"loss": 0.0})),
        lambda step: lasting(1.0, step),
        steps=4,
        evaluate=lambda state: lasting(10.0, {"x": 0.0}),
        eval_every=2,
        log_every=1,
        progress=False,
    )
    # Of step 3: 10 to compile, 2 + 10 for step 2 and its evaluation, 2 for step 3, and
    # step 4 is under way when it is written.
    goodput = dict(zip(*history.series("goodput"), strict=True))
    assert goodput[2] == pytest.approx(1 / 12)
    assert goodput[3] == pytest.approx(3 / 26)
