import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from jaxdl.planning.targets import target
from jaxdl.planning.tracing import trace
from tests.planning.steps import SIZES, mesh_of


def moving(mesh):
    """A step with a mesh everywhere it can be: results, constraints, shard_map."""

    def at(*axes):
        return NamedSharding(mesh, P(*axes))

    def loss(w, x):
        def body(h, w):
            h = jax.lax.with_sharding_constraint(h @ w, at("fsdp"))
            total = jax.shard_map(
                lambda h: jax.lax.psum(h, "fsdp"),
                mesh=mesh, in_specs=P("fsdp"), out_specs=P(),
            )(h)  # fmt: skip
            return h + total.sum(), None

        return jax.lax.scan(jax.checkpoint(body), x, w)[0].sum()

    step = jax.jit(
        lambda x, w: (w - jax.grad(loss)(w, x), loss(w, x)),
        donate_argnums=1,
        out_shardings=(at(None, "tensor"), None),
    )
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=at("fsdp"))
    w = jax.ShapeDtypeStruct((3, 8, 8), jnp.float32, sharding=at(None, "tensor"))
    return step, (x, w)


def compiled(step, args, name="cpu:8"):
    traced, placed = trace(step, args, target(name))
    return traced.lower(lowering_platforms=("cpu",)).compile(), placed


def test_a_step_moves_to_a_target_with_all_that_it_holds(key):
    x = np.asarray(jax.random.normal(key, (8, 8)))
    w = np.asarray(jax.random.normal(key, (3, 8, 8)))
    results = []
    for mesh in (mesh_of(), mesh_of(jax.devices()[::-1])):
        step, args = moving(mesh)
        program, placed = compiled(step, args)
        given = jax.device_put((x, w), jax.tree.map(lambda a: a.sharding, placed))
        results.append(program(*given))
        stats = program.memory_analysis()
        assert stats.alias_size_in_bytes == 3 * 8 * 8 * 4 // 2
    step, args = moving(mesh_of(jax.devices()))
    given = jax.device_put((x, w), jax.tree.map(lambda a: a.sharding, args))
    expected = step(*given)
    for new, loss in results:
        np.testing.assert_allclose(new, expected[0], rtol=1e-5)
        np.testing.assert_allclose(loss, expected[1], rtol=1e-5)
        assert new.sharding.spec == P(None, "tensor")


def test_what_is_on_the_target_already_is_traced_as_it_is():
    step, args = moving(mesh_of(jax.devices()))
    traced, placed = trace(step, args, target("cpu:8"))
    assert placed == args
    assert traced.jaxpr.jaxpr.eqns == step.trace(*args).jaxpr.jaxpr.eqns


def test_arguments_without_a_sharding_are_whole_on_every_device():
    step, (x, w) = moving(mesh_of())
    _, placed = trace(
        step, (x, jax.ShapeDtypeStruct(w.shape, w.dtype)), target("cpu:8")
    )
    assert placed[1].sharding.spec == P()


def test_two_abstract_meshes_are_refused():
    other = mesh_of(sizes={"x": 8})

    def step(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(other, P("x")))

    _, (x, _) = moving(mesh_of(sizes=SIZES))
    with pytest.raises(
        ValueError, match="expected one mesh all over the step, that of its arguments"
    ):
        trace(step, (x,), target("cpu:8"))
