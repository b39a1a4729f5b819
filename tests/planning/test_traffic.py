import jax
import jax.numpy as jnp
import pytest

from jaxdl.planning.traffic import memory_traffic

X, STACK = jnp.ones((64, 64)), jnp.ones((7, 64, 64))
PROGRAMS = {
    "product": (lambda x: x @ x, (X,)),
    "elements": (lambda x: jnp.tanh(x) * 2 + x, (X,)),
    "several": (lambda x: jax.nn.softmax(x @ x) @ x.T, (X,)),
    "slice": (lambda s: s[3] * 2, (STACK,)),
    "dynamic slice": (
        lambda s, i: jax.lax.dynamic_index_in_dim(s, i, 0, False) * 2, (STACK, 2)
    ),
    "update": (lambda s, x, i: s.at[i].set(x * 2), (STACK, X, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_bytes_are_those_that_xla_counts(name, optimized):
    function, args = PROGRAMS[name]
    compiled = jax.jit(function).lower(*args).compile()
    expected = compiled.cost_analysis()["bytes accessed"]
    assert memory_traffic(compiled) == expected


def test_a_loop_counts_by_its_length(optimized):
    def loop(x, length):
        return jax.lax.scan(lambda h, _: (jnp.sin(h) @ h, None), x, length=length)[0]

    traffic = [
        memory_traffic(jax.jit(loop, static_argnums=1).lower(X, n).compile())
        for n in (10, 20, 30)
    ]
    assert traffic[2] - traffic[1] == traffic[1] - traffic[0]
    assert traffic[1] - traffic[0] >= 10 * 4 * X.nbytes


def test_a_scan_reads_one_layer_at_a_time(optimized):
    def layers(x, stack):
        return jax.lax.scan(lambda h, w: (h @ w, None), x, stack)[0]

    stack = jnp.ones((50, 64, 64))
    traffic = memory_traffic(jax.jit(layers).lower(X, stack).compile())
    # The stack once to be sliced and once as a slice, and the carry in and out.
    assert traffic < 8 * stack.nbytes


def test_fast_memory_costs_nothing():
    text = """ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0:T(8)} parameter(0)
  %a = f32[8]{0:T(8)S(1)} negate(%p)
  ROOT %b = f32[8]{0:T(8)} negate(%a)
}"""
    assert memory_traffic(text) == 2 * 32
