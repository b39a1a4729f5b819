"""Rules to specs, the layout in force, and constraints that change no number."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

import jaxdl as jd
from jaxdl.core.layout import Layout, constrain, current, use

MESH = jax.make_mesh(
    (2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
)
RULES = {"batch": ("data", "fsdp"), "embed": "fsdp", "mlp": "tensor"}


def spec(shape, names, kind="parameter", rules=RULES, **given):
    return Layout(MESH, rules).place(shape, names, kind, **given).spec


def test_a_mesh_axis_is_used_once_by_the_first_dimension():
    assert spec((8, 8), ("embed", "mlp")) == P("fsdp", "tensor")
    assert spec((8, 8, 8), ("batch", None, "embed")) == P(("data", "fsdp"))
    assert spec((8, 8), ("mlp", "mlp")) == P("tensor")


def test_a_dimension_called_first_goes_before_the_others():
    placed = spec((8, 8, 8), ("batch", None, "embed"), first="embed")
    assert placed == P("data", None, "fsdp")


def test_what_does_not_divide_leaves_the_axis_to_later_dimensions():
    placement = Layout(MESH, RULES).place((3, 8), ("mlp", "mlp"))
    assert placement.spec == P(None, "tensor")
    assert placement.refused == ()


def test_what_does_not_divide_is_whole_and_is_told():
    placement = Layout(MESH, RULES).place((6, 3), ("batch", "mlp"))
    assert placement.spec == P("data")
    first, second = placement.refused
    assert (first.dim, first.name, first.mesh_axis) == (0, "batch", "fsdp")
    assert str(second) == "dimension 1 (mlp, 3) is not a multiple of tensor=2"


@hypothesis.given(
    shape=st.lists(st.integers(0, 12), max_size=4),
    names=st.lists(st.sampled_from([None, "batch", "embed", "mlp"]), min_size=4),
)
def test_every_spec_fits_its_array(shape, names):
    names = tuple(names[: len(shape)])
    sharding = jax.NamedSharding(MESH, spec(tuple(shape), names))
    assert len(sharding.shard_shape(tuple(shape))) == len(shape)


def test_a_rule_for_one_kind_goes_before_the_rule_for_all():
    rules = {"embed": "fsdp", "optimizer/embed": "data", "activation/embed": None}
    of = {k: spec((8,), ("embed",), k, rules) for k in ("parameter", "optimizer")}
    assert of == {"parameter": P("fsdp"), "optimizer": P("data")}
    assert spec((8,), ("embed",), "activation", rules) == P()


def test_the_optimizer_follows_a_rule_for_parameters():
    assert spec((8,), ("embed",), "optimizer", {"parameter/embed": "data"}) == P("data")


def test_axes_that_the_mesh_lacks_are_left_out_and_misspelled_ones_refused():
    assert spec((8,), ("expert",), rules={"expert": "expert"}) == P()
    with pytest.raises(ValueError, match="got 'tenser'; did you mean 'tensor'"):
        Layout(MESH, {"mlp": "tenser"})


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(ValueError, match="one rule for 'mlp'"):
        Layout(MESH, [("mlp", "tensor"), ("mlp", "fsdp")])


def test_layouts_are_values():
    assert hash(Layout(MESH, RULES)) == hash(Layout(MESH, tuple(RULES.items())))


def test_without_a_layout_nothing_is_traced():
    x = jnp.ones((4, 4))
    assert constrain(x, "batch", "mlp") is x
    one = jd.mesh(devices=jax.devices()[:1])
    with use(one, RULES):
        assert constrain(x, "batch", "mlp") is x


def test_models_without_a_layout_have_no_constraints():
    config = jd.models.DecoderConfig(
        vocab_size=8, seq_len=4, dim=4, num_layers=2, num_heads=2
    )
    model = jd.models.Decoder(config)
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)

    def run(params, tokens):
        return model(params, tokens, key=None)

    plain = str(jax.make_jaxpr(run)(jd.abstract(model), tokens))
    assert "sharding_constraint" not in plain
    with use(MESH, RULES):
        placed = str(jax.make_jaxpr(run)(jd.abstract(model), tokens))
    assert "sharding_constraint" in placed


def test_constraints_place_values_and_change_none():
    x = np.arange(64.0).reshape(8, 8)
    with use(MESH, RULES):
        y = jax.jit(lambda x: constrain(x, "batch", "mlp"))(x)
    assert y.sharding.spec == P(("data", "fsdp"), "tensor")
    np.testing.assert_array_equal(y, x)


def test_another_layout_traces_again_and_the_first_is_remembered():
    traced = []

    @jax.jit
    def inner(x):
        traced.append(current())
        return constrain(x, "batch", "mlp")

    outer = jax.jit(jax.checkpoint(lambda x: inner(x) * 2))
    x = jnp.ones((8, 8))
    for rules in (RULES, {"batch": "tensor"}, RULES):
        with use(MESH, rules):
            outer(x)
    assert [layout.rules[0] for layout in traced] == [
        ("batch", ("data", "fsdp")),
        ("batch", ("tensor",)),
    ]


def test_use_decorates_a_function_for_every_trace():
    @jax.jit
    @use(MESH, RULES)
    def f(x):
        return constrain(x, "batch", "mlp")

    assert f(jnp.ones((8, 8))).sharding.spec == P(("data", "fsdp"), "tensor")
    assert current() is None


def test_the_layout_ends_with_the_block_even_by_an_error():
    with pytest.raises(RuntimeError), use(MESH, RULES):
        raise RuntimeError
    assert current() is None


def test_under_vmap_the_new_axis_is_left_to_the_compiler():
    with use(MESH, RULES):
        y = jax.jit(jax.vmap(lambda x: constrain(x, "batch", "mlp")))(
            jnp.ones((3, 8, 8))
        )
    assert y.sharding.shard_shape(y.shape)[1:] == (2, 4)


def test_inside_shard_map_only_axes_that_are_not_manual_are_constrained():
    def part(x):
        assert x.shape == (4, 8)
        return constrain(x, "batch", "mlp")

    with use(MESH, RULES):
        f = jax.shard_map(
            part,
            mesh=MESH,
            axis_names={"data"},
            in_specs=P("data"),
            out_specs=P("data"),
        )
        y = jax.jit(f)(jnp.ones((8, 8)))
    assert y.sharding.shard_shape(y.shape) == (2, 4)


def test_inside_a_full_shard_map_nothing_is_constrained():
    with use(MESH, RULES):
        f = jax.shard_map(
            lambda x: constrain(x, "batch", "mlp"),
            mesh=MESH, in_specs=P("data"), out_specs=P("data"),
        )  # fmt: skip
        np.testing.assert_array_equal(jax.jit(f)(jnp.ones((8, 8))), jnp.ones((8, 8)))


def test_another_number_of_names_is_refused_with_and_without_a_layout():
    with pytest.raises(ValueError, match="1 dimensions"):
        constrain(jnp.ones((2, 2)), "batch")
