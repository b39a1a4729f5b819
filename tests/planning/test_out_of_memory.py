import dataclasses

import jax
import pytest

import jaxdl as jd
from jaxdl.planning import OutOfMemory
from jaxdl.planning.chips import CHIPS, GIB
from jaxdl.planning.flops import Flops
from jaxdl.planning.liveness import Buffer, Liveness
from jaxdl.planning.out_of_memory import larger
from jaxdl.planning.targets import Target
from tests.planning.steps import mesh_of, step_on

REFUSED = RuntimeError(
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (23.50G) exceeds available HBM (15.75G)."
)
V5E = Target("v5e:1x1", "tpu", CHIPS["v5e"], (None,))
ARGUMENTS = {"state/params": 4 * GIB, "state/opt_state": 8 * GIB, "state/step": 4}


@pytest.fixture(scope="module")
def report():
    step, args = step_on(mesh_of())
    return jd.plan(step, *args, target="cpu:8")


def with_buffers(report, *arrays, outputs=0, scope="blocks/attn"):
    largest = tuple(Buffer(GIB, array, scope, "model.py:3") for array in arrays)
    return dataclasses.replace(
        report,
        target="v5p:1x1x1",
        memory=dataclasses.replace(report.memory, outputs=outputs),
        flops=Flops(model=1, hardware=1),
        liveness=Liveness((), largest),
    )


def test_it_says_how_much_is_needed_and_what_takes_it(report):
    error = OutOfMemory(V5E, REFUSED, ARGUMENTS, with_buffers(report, "f32[4,8]"))
    assert (error.needed, error.available) == (23.5 * GIB, 15.75 * GIB)
    text = str(error)
    assert text.startswith("v5e:1x1: needs 23.5 GiB on each device, of 15.8 GiB")
    assert "8.0 GiB  state/opt_state" in text and "state/step" not in text
    assert "as compiled for v5p:1x1x1" in text
    assert "1.0 GiB  f32[4,8]  blocks/attn  model.py:3" in text


def test_an_error_without_numbers_is_explained_as_far_as_it_goes():
    error = OutOfMemory(V5E, RuntimeError("RESOURCE_EXHAUSTED"), ARGUMENTS, None)
    assert "needs more on each device, of 15.8 GiB" in str(error)


@pytest.mark.parametrize(
    ("arguments", "arrays", "outputs", "words"),
    [
        ({"params": 20 * GIB}, (), 0, "the arguments alone take 20.0 GiB"),
        (ARGUMENTS, (), 0, "state/opt_state takes 8.0 GiB: twice the devices"),
        ({"x": GIB}, (), GIB, "donate"),
        ({"x": GIB}, ("f32[2,8,4096,4096]",), 0, "blockwise attention"),
        ({"x": GIB}, ("f32[8,512,128256]",), 0, "chunked_cross_entropy"),
    ],
)
def test_advice_follows_what_is_large(report, arguments, arrays, outputs, words):
    scope = "head" if "128256" in "".join(arrays) else "blocks/attn"
    found = with_buffers(report, *arrays, outputs=outputs, scope=scope)
    first, *rest = OutOfMemory(V5E, REFUSED, arguments, found).advice
    assert words in first
    assert any("remat" in line for line in rest)
    assert any("accumulate" in line for line in rest)


def test_who_recomputes_already_is_not_told_to(report):
    found = dataclasses.replace(with_buffers(report), flops=Flops(1, 2))
    advice = OutOfMemory(V5E, REFUSED, {"x": GIB}, found).advice
    assert not any("remat" in line for line in advice)


def test_advice_is_not_given_for_what_is_small(report):
    advice = OutOfMemory(V5E, REFUSED, {"x": GIB}, with_buffers(report)).advice
    assert len(advice) == 2


@pytest.mark.parametrize(
    ("number", "name"),
    [(1, "v5p:1x1x1"), (8, "v5p:2x2x2"), (32, "v5p:4x4x2"), (256, "v5p:8x8x4"),
     (12, "v5p:3x2x2"), (2, None)],
)  # fmt: skip
def test_a_larger_chip_comes_in_as_many(number, name):
    devices = tuple(range(number))
    assert larger(dataclasses.replace(V5E, devices=devices)) == name
    assert larger(Target("cpu:8", "cpu", None, devices)) is None


@pytest.mark.slow
def test_a_step_that_does_not_fit_a_tpu_is_explained():
    pytest.importorskip("libtpu")
    step, (state, batch) = step_on(None, scale=64)
    batch = jax.ShapeDtypeStruct((2**19, batch.shape[1]), batch.dtype)
    fast = {"exec_time_optimization_effort": -1.0}
    with pytest.raises(OutOfMemory) as raised:
        jd.plan(step, state, batch, target="v5e:1x1", compiler_options=fast)
    error = raised.value
    assert error.available == 15.75 * GIB
    assert error.needed > 15.75 * GIB  # type: ignore[operator]
    assert error.arguments["batch"] == 2**19 * 4096 * 4
    for words in ("state/momentum", "temporaries", "microbatches"):
        assert words in str(error)
