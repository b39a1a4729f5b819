"""Reports of one small step, on the CPU's devices."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

import jaxdl as jd
from jaxdl.planning import Report, assert_collectives, assert_fits
from tests.planning.steps import LAYERS, PRODUCT, STATE_BYTES, mesh_of, step_on


@pytest.fixture(scope="module")
def report():
    step, args = step_on(mesh_of())
    return jd.plan(step, *args, target="cpu:8")


def test_arguments_are_split_over_the_devices(report):
    assert report.devices == 8 and report.mesh == {"fsdp": 4, "tensor": 2}
    assert report.memory.arguments == {
        "state/params": STATE_BYTES // 2 // 8,
        "state/momentum": STATE_BYTES // 2 // 8,
        "batch": 32 * 64 * 4 // 4,
    }
    assert report.memory.laid_out == sum(report.memory.arguments.values())


def test_the_donated_state_comes_back_in_its_place(report):
    assert report.memory.outputs < 100  # the loss alone, and the table of results


def test_flops_are_those_of_the_traced_step(report):
    # Forward, two for backward; the second product of a block is not needed again.
    assert report.flops.model == 2 * 3 * LAYERS * PRODUCT
    assert report.flops.hardware > report.flops.model


def test_collectives_have_axes_bytes_and_scopes(report):
    rows = report.by_axis()
    assert {row["axes"] for row in rows} >= {"fsdp", "tensor"}
    assert all(row["traffic"] > 0 and row["bytes"] > 0 for row in rows)
    assert "block" in {each.scope for each in report.collectives}


def test_the_same_step_on_real_devices_is_the_same_plan(report):
    step, args = step_on(mesh_of(jax.devices()[:8]))
    other = jd.plan(step, *args)
    assert other.memory == report.memory
    assert other.by_axis() == report.by_axis()


def test_one_device_needs_no_shardings():
    step, args = step_on(None)
    report = jd.plan(step, *args, target="cpu")
    assert report.mesh == {} and report.collectives == ()
    assert report.memory.arguments["state/params"] == STATE_BYTES // 2
    assert "all-" not in str(report)


def test_a_function_that_is_not_jitted_and_arrays_will_do():
    report = jd.plan(lambda x: x @ x, jnp.ones((8, 8)), target="cpu")
    assert report.flops.model == 2 * 8**3
    assert report.memory.arguments == {"x": 256}


def test_a_loop_of_unknown_length_is_noted():
    def loop(x):
        return jax.lax.while_loop(lambda x: x.sum() < 5, lambda x: x @ x, x)

    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    assert "while" in jd.plan(loop, x, target="cpu").notes[0]
    report = jd.plan(loop, x, target="cpu", trips=7)
    assert report.flops.model == 7 * 2 * 8**3


def test_json_is_the_report(report):
    plain = json.loads(report.to_json())
    assert plain["memory"]["arguments"] == report.memory.arguments
    assert plain["memory"]["total"] == report.memory.total
    assert plain["by_axis"] == report.by_axis()
    assert max(m["nbytes"] for m in plain["timeline"]) == report.liveness.peak
    assert Report.from_dict(plain).to_dict() == plain
    assert str(Report.from_dict(plain)) == str(report)


def test_what_is_remembered_is_not_compiled_again(tmp_path, monkeypatch, report):
    step, args = step_on(mesh_of())
    first = jd.plan(step, *args, target="cpu:8", remember=tmp_path)
    assert first.memory == report.memory
    monkeypatch.setattr("jax.stages.Lowered.compile", None)
    again = jd.plan(step, *args, target="cpu:8", remember=tmp_path)
    assert again.to_dict() == first.to_dict()
    other = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=args[1].sharding)
    with pytest.raises(TypeError):
        jd.plan(step, args[0], other, target="cpu:8", remember=tmp_path)


def test_a_table_says_what_it_is_for_and_what_takes_memory(report):
    text = str(report)
    for words in ("cpu:8: 8 devices, fsdp=4, tensor=2", "state/params", "all-"):
        assert words in text


def test_a_page_needs_nothing_else(report, tmp_path):
    text = report.to_html(tmp_path / "plan.html").read_text()
    assert not re.findall(r"(?:src|href)=|url\(|<script", text)
    assert "$" not in text
    assert text.count("<rect") > 50 and "state/params" in text


def test_what_is_within_bounds_passes(report):
    assert_fits(report, 10**6)
    sums = {row["axes"]: 1e9 for row in report.by_axis()}
    assert_collectives(report, sums)


def test_what_does_not_fit_fails_with_what_takes_memory(report):
    with pytest.raises(AssertionError, match=r"of 1.0 KiB[\s\S]*state/params"):
        assert_fits(report, 1024)
    with pytest.raises(ValueError, match="its memory is not known"):
        assert_fits(report)


def test_a_surprise_fails_and_says_where_it_comes_from(report):
    with pytest.raises(AssertionError, match=r"fsdp: .*expected 1 B[\s\S]*block"):
        assert_collectives(report, {"fsdp": 1, "tensor": 1e9}, ignore=1e9)
    with pytest.raises(AssertionError, match="tensor.*expected none"):
        assert_collectives(report, {"fsdp": 1e9}, ignore=0)


def test_arguments_on_no_devices_need_a_target():
    step, args = step_on(None)
    with pytest.raises(ValueError, match='target="v5e:4x8"'):
        jd.plan(step, *args)


@pytest.mark.parametrize(
    ("mesh", "target", "words"),
    [
        (None, "cpu:8", "expected arguments with shardings"),
        (mesh_of(sizes={"fsdp": 4}), "cpu:8", r"got a mesh \{'fsdp': 4\}"),
    ],
)
def test_a_target_of_another_size_is_refused(mesh, target, words):
    if mesh is None:
        step, args = step_on(None)
    else:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
        step = jnp.sin
        args = (jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding),)
    with pytest.raises(ValueError, match=words):
        jd.plan(step, *args, target=target)
