import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.train import Checkpoints, Run, bisect, fit, make_step
from tests.train import job

STEP = make_step(job.loss_fn, job.OPTIMIZER, ema_decay=0.9)
RUN = Run(job.initial, STEP, job.batch)


def faulty_step(at):
    """The step, but for one number of a parameter that is off after step `at`."""
    calls = itertools.count()

    def step(state, batch):
        done = int(state.step)
        state, metrics = STEP(state, batch)
        next(calls)
        if done == at:
            down = state.params["down"].at[3, 1].add(1e-3)
            state = state.replace(params={**state.params, "down": down})
        return state, metrics

    return step, calls


def test_a_run_is_itself():
    assert bisect(RUN, RUN, steps=3) is None


@pytest.mark.parametrize("at", [0, 4])
def test_a_fault_in_one_parameter_is_found_at_its_step(at):
    step, _ = faulty_step(at)
    found = bisect(RUN, dataclasses.replace(RUN, step=step), steps=7)
    assert (found.step, found.where, found.path) == (at, "result", "params/down")
    assert found.paths == ("params/down",)
    assert found.largest == pytest.approx(1e-3, rel=1e-3)
    assert "step" in str(found) and "params/down" in str(found)


def test_what_is_within_the_tolerance_is_no_difference():
    step, _ = faulty_step(6)
    other = dataclasses.replace(RUN, step=step)
    assert bisect(RUN, other, steps=7, tolerance=1e-2) is None
    assert bisect(RUN, other, steps=7).step == 6


def test_other_data_is_found_before_what_it_leads_to():
    def data(step):
        batch = job.batch(step)
        return batch if step != 2 else {**batch, "y": batch["y"] + 1}

    found = bisect(RUN, dataclasses.replace(RUN, data=data), steps=5)
    assert (found.step, found.where, found.path) == (2, "batch", "y")
    assert found.largest == pytest.approx(1.0)


def test_other_starts_are_found_before_any_step():
    def start():
        state = job.initial()
        return state.replace(key=jax.random.key(1))

    found = bisect(RUN, dataclasses.replace(RUN, start=start), steps=5)
    assert (found.step, found.where, found.path) == (-1, "state", "key")


def test_a_probe_names_the_first_value_within_the_step_that_differs():
    def probe(wrong):
        def values(state, batch):
            hidden = jnp.tanh(batch["x"] @ state.params["up"]) + wrong
            return {"z_input": batch["x"], "hidden": hidden, "a_out": hidden.sum()}

        return values

    runs = [dataclasses.replace(RUN, probe=probe(wrong)) for wrong in (0.0, 0.1)]
    found = bisect(*runs, steps=2)
    assert (found.step, found.where, found.path) == (0, "probe", "hidden")
    assert found.paths == ("hidden", "a_out")


def test_not_a_number_differs_from_a_number_and_not_from_itself():
    def start(value):
        return lambda: {"x": jnp.array([1.0, value]), "n": np.int32(1)}

    runs = [Run(start(v), lambda s, b: (s, {}), lambda i: {}) for v in (2.0, jnp.nan)]
    assert bisect(*runs, steps=1).largest == float("inf")
    assert bisect(runs[1], runs[1], steps=1) is None


def test_the_search_begins_at_the_last_checkpoints_that_are_equal(tmp_path):
    step, _ = faulty_step(7)
    saved = []
    for name, each in (("one", STEP), ("other", step)):
        checkpoints = Checkpoints(tmp_path / name, every=2, keep_last=10)
        fit(
            job.initial(), each, job.batch,
            steps=10, checkpoints=checkpoints, progress=False,
        )  # fmt: skip
        saved.append(checkpoints)
    step, calls = faulty_step(7)
    one = dataclasses.replace(RUN, checkpoints=saved[0])
    other = dataclasses.replace(RUN, step=step, checkpoints=saved[1])
    found = bisect(one, other, steps=10)
    assert (found.step, found.path) == (7, "params/down")
    assert next(calls) == 2  # steps 6 and 7 alone were run
