import json

import jax.numpy as jnp
import pytest

import jaxdl as jd
from jaxdl.planning import OutOfMemory
from jaxdl.planning.chips import CHIPS
from jaxdl.planning.searching import search
from jaxdl.planning.targets import Target, target
from tests.planning.steps import step_on


def build(mesh, scale=1):
    if scale == 3:
        raise ZeroDivisionError("a candidate of its own kind")
    return step_on(mesh, scale)


MESHES = [{"fsdp": 4, "tensor": 2}, {"fsdp": 8}, {"fsdp": 3}]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    where = tmp_path_factory.mktemp("plans")
    choices = {"mesh": MESHES, "scale": [3, 1]}
    return jd.plan.search(build, target="cpu:8", remember=where, **choices)


def test_every_combination_is_a_row_and_what_fits_comes_first(found):
    assert len(found.trials) == 6
    assert [trial.fits for trial in found.trials] == [True, True] + 4 * [False]
    assert found.best.choice["scale"] == 1
    # Of a CPU no speed is known: the one with the least memory.
    best, second = (trial.report.memory.total for trial in found.trials[:2])
    assert best <= second


def test_what_fails_says_how(found):
    errors = [trial.result for trial in found.trials if trial.report is None]
    assert "ZeroDivisionError: a candidate of its own kind" in errors
    assert any("expected sizes for 8 devices" in error for error in errors)
    assert "fsdp=4, tensor=2" in str(found) and "fits" in str(found)
    assert len(json.loads(found.to_json())["trials"]) == 6


def test_nothing_that_fits_is_an_error():
    found = jd.plan.search(build, target="cpu:8", mesh=[{"fsdp": 3}])
    with pytest.raises(ValueError, match="none of 1 choices fits"):
        _ = found.best


def test_the_fastest_that_fits_is_the_best():
    cpu = target("cpu:8")
    chip = Target("a chip", "cpu", CHIPS["v5e"], cpu.devices)
    found = search(build, chip, {"mesh": MESHES[:2]})
    times = [trial.report.roofline.seconds for trial in found.trials]
    assert times == sorted(times) and times[0] < times[1]


def test_a_plan_that_is_refused_shows_what_it_needs(monkeypatch):
    refused = OutOfMemory(
        target("cpu:8"),
        RuntimeError("RESOURCE_EXHAUSTED (20.00G) exceeds available HBM (15.75G)"),
        {"x": 1},
        None,
    )

    def fail(*_, **__):
        raise refused

    monkeypatch.setattr("jaxdl.planning.searching.measure", fail)
    found = jd.plan.search(lambda: (jnp.sin, (jnp.ones(2),)), target="cpu:8")
    assert found.trials[0].result == "does not fit: needs 20.0 GiB"
