"""SIGTERM inside fit: finish, save, leave with 143; outside, as before."""

import os
import signal
import threading

import pytest

from jaxdl.train import Checkpoints, fit
from tests.train import job
from tests.train.test_loop import STEP


def terminate_at(step):
    def callback(done, state, metrics):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return callback


@pytest.fixture
def handler():
    def own(*arguments):
        raise AssertionError("the handler of before must not be called inside fit")

    before = signal.signal(signal.SIGTERM, own)
    yield own
    signal.signal(signal.SIGTERM, before)


def run(**options):
    return fit(job.initial(), STEP, job.batch, steps=6, progress=False, **options)


def test_the_step_is_saved_and_the_handler_is_back(tmp_path, handler, capsys):
    checkpoints = Checkpoints(tmp_path, every=100)
    with pytest.raises(SystemExit) as left:
        run(callbacks=[terminate_at(3)], checkpoints=checkpoints)
    assert left.value.code == 143
    assert checkpoints.latest() == 3
    assert "SIGTERM: stopped after step 3, saved in" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is handler


def test_without_checkpoints_it_says_that_nothing_was_saved(handler, capsys):
    with pytest.raises(SystemExit):
        run(callbacks=[terminate_at(2)])
    assert "after step 2, not saved" in capsys.readouterr().err


def test_the_handler_is_back_after_an_error_too(handler):
    with pytest.raises(ZeroDivisionError):
        run(callbacks=[lambda *_: 1 / 0])
    assert signal.getsignal(signal.SIGTERM) is handler


def test_in_another_thread_it_trains_without_a_handler(handler):
    states = []
    thread = threading.Thread(target=lambda: states.append(run()[0]))
    thread.start()
    thread.join()
    assert states[0].step == 6
