import jax
import jax.numpy as jnp
import pytest

from jaxdl.planning.liveness import liveness
from tests.planning.steps import step_on


def entry(*lines, before=()):
    body = "\n".join("  " + line for line in lines)
    head = "HloModule m, is_scheduled=true\n\n"
    return head + "\n".join(before) + f"\nENTRY %main () -> f32[] {{\n{body}\n}}\n"


P = "%p = f32[256]{0} parameter(0)"
META = (
    'metadata={op_name="jit(f)/jvp(blocks)/mlp/tanh" source_file="m.py" source_line=7}'
)


def test_a_buffer_lives_until_it_is_last_read():
    found = liveness(
        entry(
            P,
            f"%a = f32[256]{{0}} sine(%p), {META}",
            "%b = f32[128]{0} slice(%a)",
            "%c = f32[64]{0} slice(%b)",
            "ROOT %d = f32[64]{0} sine(%c)",
        )
    )
    assert [m.nbytes for m in found.moments] == [1024, 1024 + 512, 512 + 256, 256]
    assert found.peak == 1536
    (first, _) = found.largest
    assert (first.nbytes, first.array) == (1024, "f32[256]")
    assert (first.scope, first.source) == ("blocks/mlp", "m.py:7")


def test_elements_are_written_over_what_nobody_reads_again():
    found = liveness(
        entry(
            P,
            "%a = f32[256]{0} sine(%p)",
            "%b = f32[256]{0} negate(%a)",
            "ROOT %c = f32[] reduce(%b)",
        )
    )
    assert found.peak == 1024


def test_arguments_and_results_have_places_of_their_own():
    assert liveness(entry(P, "ROOT %t = f32[256]{0} tanh(%p)")).peak == 0


def test_fast_memory_and_padding_are_told_apart():
    found = liveness(
        entry(
            P,
            "%a = f32[3,100]{1,0:T(8,128)} broadcast(%p)",
            "%b = f32[999]{0:T(1024)S(1)} broadcast(%a)",
            "ROOT %c = f32[] reduce(%b)",
        )
    )
    assert found.peak == 8 * 128 * 4


BODY = """%body (s: (f32[256])) -> (f32[256]) {
  %s = (f32[256]{0}) parameter(0)
  %h = f32[256]{0} get-tuple-element(%s), index=0
  %inside = f32[512]{0} concatenate(%h, %h)
  %next = f32[256]{0} slice(%inside)
  ROOT %out = (f32[256]{0}) tuple(%next)
}"""


def test_a_loop_holds_its_carry_and_what_is_inside():
    found = liveness(
        entry(
            P,
            "%start = f32[256]{0} sine(%p)",
            "%t = (f32[256]{0}) tuple(%start)",
            "%w = (f32[256]{0}) while(%t), condition=%c, body=%body",
            "%r = f32[256]{0} get-tuple-element(%w), index=0",
            "ROOT %sum = f32[] reduce(%r)",
            before=(BODY, "%c (s: (f32[256])) -> pred[] {\n}"),
        )
    )
    assert found.peak == 1024 + 2048


def test_an_asynchronous_copy_holds_its_result_until_it_is_read():
    found = liveness(
        entry(
            P,
            "%s = (f32[256]{0}, f32[256]{0}, u32[]) copy-start(%p)",
            "%d = f32[256]{0} copy-done(%s)",
            "ROOT %r = f32[] reduce(%d)",
        )
    )
    assert found.peak == 1024


def mlp(params, x):
    for kernel in params:
        x = jnp.tanh(x @ kernel)
    return jnp.sum(x**2)


def compiled_programs():
    params = [jax.ShapeDtypeStruct((256, 256), jnp.float32)] * 6
    x = jax.ShapeDtypeStruct((512, 256), jnp.float32)
    yield "gradient", jax.jit(jax.grad(mlp)).lower(params, x)
    step, args = step_on(None)
    yield "scanned step", step.lower(*args)


def test_it_is_near_what_the_compiler_assigns(optimized):
    for name, lowered in compiled_programs():
        compiled = lowered.compile()
        expected = compiled.memory_analysis().temp_size_in_bytes
        assert liveness(compiled).peak == pytest.approx(expected, rel=0.1), name
