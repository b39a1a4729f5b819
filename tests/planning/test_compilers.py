"""Steps compiled for accelerators that are not here, by their own compilers."""

import pytest

import jaxdl as jd
from jaxdl.planning.targets import target
from tests.planning.steps import LAYERS, PRODUCT, STATE_BYTES, mesh_of, step_on

pytestmark = pytest.mark.slow

SCALE = 16
FAST = {"exec_time_optimization_effort": -1.0}


def planned(name, **options):
    step, args = step_on(mesh_of(), SCALE)
    return jd.plan(step, *args, target=name, **options)


def check(report):
    """What holds for any compiler."""
    assert report.fits and report.devices == 8
    assert report.flops.model == 2 * 3 * LAYERS * PRODUCT * SCALE**3
    assert report.memory.arguments["state/params"] == STATE_BYTES // 16 * SCALE**2
    assert report.memory.laid_out == pytest.approx(
        sum(report.memory.arguments.values()), rel=0.01
    )
    assert report.memory.outputs < 2**13
    # Gradients are reduced over fsdp, the second product of a block over tensor.
    sums = {row["axes"]: 0 for row in report.by_axis()}
    for row in report.by_axis():
        sums[row["axes"]] += row["bytes"]
    weights = STATE_BYTES // 2 * SCALE**2
    assert sums["fsdp"] > weights / 2
    assert sums["tensor"] > LAYERS * 32 * 64 * SCALE**2 * 4 // 4
    assert 0 < report.mfu(report.roofline.seconds) < 1
    assert report.roofline.at_least <= report.roofline.seconds


@pytest.fixture(scope="module")
def on_tpu():
    pytest.importorskip("libtpu")
    return planned("v5e:2x4", compiler_options=FAST)


def test_a_step_for_tpus(on_tpu):
    check(on_tpu)


def test_what_is_held_is_near_what_the_tpu_compiler_says(on_tpu):
    memory = on_tpu.memory
    held = on_tpu.liveness.peak + memory.laid_out
    assert held == pytest.approx(memory.peak, rel=0.25)


def test_two_slices_talk_over_the_network():
    pytest.importorskip("libtpu")
    step, args = step_on(mesh_of(), SCALE)
    report = jd.plan(step, *args, target="v5e:2x2*2", compiler_options=FAST)
    one = jd.plan(step, *args, target="v5e:2x4", compiler_options=FAST)
    # Half of fsdp leaves the slice, by a network that is far slower.
    assert report.roofline.network["fsdp"] > 5 * one.roofline.network["fsdp"]


def test_a_step_for_gpus():
    try:
        target("h100:8")
    except ImportError as error:
        pytest.skip(str(error))
    check(planned("h100:8"))
