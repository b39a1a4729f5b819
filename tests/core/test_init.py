import dataclasses
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn
from jaxdl.core import tree

small = nn.Sequential([nn.Linear(4, 8), nn.Conv(8, 16, (3,)), nn.Attention(16, 4)])
block = nn.Residual(nn.Sequential([nn.LayerNorm(8), nn.Linear(8, 8)]))


def test_a_value_depends_on_key_and_path_alone_whatever_the_architecture(key):
    other = nn.Sequential(
        [nn.Linear(4, 8), nn.Embedding(9, 9), nn.Attention(16, 4), jnp.tanh]
    )
    ours, theirs = small.init(key), other.init(key)
    chex.assert_trees_all_equal(ours["0"], theirs["0"])
    chex.assert_trees_all_equal(ours["2"], theirs["2"])


def test_two_paths_and_two_keys_give_different_values(key):
    params = nn.Sequential([nn.Linear(4, 4), nn.Linear(4, 4)]).init(key)
    assert not np.array_equal(params["0"]["kernel"], params["1"]["kernel"])
    again = nn.Sequential([nn.Linear(4, 4)]).init(jax.random.key(1))
    assert not np.array_equal(params["0"]["kernel"], again["0"]["kernel"])


def test_jit_gives_the_same_bits(key):
    chex.assert_trees_all_equal(jax.jit(small.init)(key), small.init(key))


def test_vmap_gives_the_same_bits(key):
    keys = jax.random.split(key, 3)
    ensemble = jax.vmap(small.init)(keys)
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], ensemble)
        chex.assert_trees_all_equal(member, small.init(keys[i]))


def test_sharding_over_8_devices_gives_the_same_bits(key):
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    model = nn.Repeat(nn.Linear(8, 16, axes=("embed", "mlp")), 8)
    rules = {"layers": None, "embed": "data", "mlp": "model"}
    shardings = jax.tree.map(
        lambda names: jax.NamedSharding(mesh, jax.P(*(rules[name] for name in names))),
        jd.axes(model),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    sharded = jax.jit(model.init, out_shardings=shardings)(key)
    assert len(sharded["kernel"].addressable_shards[0].data) == 8
    assert sharded["kernel"].addressable_shards[0].data.shape == (8, 2, 8)
    chex.assert_trees_all_equal(
        jax.device_get(sharded), jax.device_get(model.init(key))
    )


def test_layer_i_is_the_same_in_a_stack_of_any_depth(key):
    short, deep = nn.Repeat(block, 2).init(key), nn.Repeat(block, 5).init(key)
    first = jax.tree.map(lambda leaf: leaf[:2], deep)
    chex.assert_trees_all_equal(short, first)
    assert not np.array_equal(deep["1"]["kernel"][0], deep["1"]["kernel"][1])


def test_a_stack_in_a_stack_draws_each_layer_by_itself(key):
    nested = nn.Repeat(nn.Repeat(nn.Linear(3, 3), 4), 2).init(key)
    kernels = nested["kernel"].reshape(8, 9)
    assert nested["kernel"].shape == (2, 4, 3, 3)
    assert len({tuple(kernel.tolist()) for kernel in kernels}) == 8


def test_fan_in_ignores_the_stacked_axis(key):
    stacked = nn.Repeat(nn.Linear(64, 64), 32).init(key)["kernel"]
    assert abs(float(stacked.std()) - 1 / 8) < 0.01


def test_shapes_need_no_memory():
    huge = nn.Repeat(nn.Linear(10**6, 10**6), 100)  # 400 TB
    shapes = jd.abstract(huge)
    assert shapes["kernel"] == jax.ShapeDtypeStruct((100, 10**6, 10**6), jnp.float32)
    assert jd.count(shapes) == 10**14 + 10**8
    assert jd.nbytes(shapes) == 4 * jd.count(shapes)


def test_the_declared_tree_is_the_initial_tree(key):
    chex.assert_trees_all_equal_shapes_and_dtypes(jd.abstract(small), small.init(key))
    norm = nn.Sequential([nn.BatchNorm(3), jnp.tanh])
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jd.abstract_state(norm), norm.init_state()
    )


def test_a_part_without_parameters_is_an_empty_dict(key):
    model = nn.Sequential([nn.Dropout(0.1), jnp.tanh, nn.Linear(2, 2)])
    assert set(model.init(key)) == {"0", "2"}
    assert model.init(key)["0"] == {}
    assert model.init_state() == {}


def test_two_paths_with_one_crc_are_refused(key):
    # crc32("plumless") == crc32("buckeroo"), a known collision.
    class Collision(jd.Module):
        def spec(self):
            return {
                "plumless": jd.Param((2,), jd.init.ones),
                "buckeroo": jd.Param((2,)),
            }

    with pytest.raises(ValueError, match="buckeroo and plumless|plumless and buckeroo"):
        Collision().init(key)


def test_a_seed_instead_of_a_key_is_refused():
    with pytest.raises(TypeError, match=r"jax.random.key\(0\), got 0"):
        small.init(0)  # type: ignore[arg-type]


def test_an_initialiser_of_another_shape_is_refused(key):
    class Wrong(jd.Module):
        def spec(self):
            return {"w": jd.Param((2, 3), init=wrong)}

    def wrong(key, shape, dtype):
        return jnp.ones((3, 2), dtype)

    with pytest.raises(
        ValueError, match=r"w: expected .*float32\[2, 3\], got float32\[3, 2\]"
    ):
        Wrong().init(key)


def test_state_that_starts_at_random_asks_for_a_key(key):
    class Codebook(jd.Module):
        def spec(self):
            return {"codes": jd.State((4, 2), jd.init.normal(1.0))}

    with pytest.raises(TypeError, match="codes: its state starts at random"):
        Codebook().init_state()
    assert Codebook().init_state(key)["codes"].std() > 0


initialisers = [
    jd.init.zeros,
    jd.init.ones,
    jd.init.constant(3.0),
    jd.init.normal(0.02),
    jd.init.truncated_normal(0.02),
    jd.init.uniform(-1.0, 1.0),
    jd.init.lecun_normal(),
    jd.init.lecun_uniform(),
    jd.init.glorot_normal(),
    jd.init.glorot_uniform(),
    jd.init.he_normal(),
    jd.init.he_uniform(),
    jd.init.variance_scaling(2.0, "fan_avg", "uniform"),
    jd.init.orthogonal(),
]


@pytest.mark.parametrize("init", initialisers, ids=str)
def test_initialisers_compare_by_value_and_keep_shape_and_dtype(init, key):
    again = pickle.loads(pickle.dumps(init))
    assert again == init and hash(again) == hash(init)
    # LAPACK has no bfloat16, and an orthogonal matrix is made by it.
    orthogonal = init == jd.init.orthogonal()
    dtype = jnp.float32 if orthogonal else jnp.bfloat16
    value = init(key, (4, 4), dtype)
    assert value.shape == (4, 4) and value.dtype == dtype


def test_initialisers_are_those_of_jax(key):
    ours = jd.init.variance_scaling(2.0, "fan_out", "normal", in_axis=0, out_axis=1)
    theirs = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal", 0, 1)
    args = (key, (3, 5), jnp.float32)
    np.testing.assert_array_equal(ours(*args), theirs(*args))


def test_models_built_from_the_same_sizes_are_equal_down_to_their_initialisers():
    first = dataclasses.replace(nn.Linear(2, 3), kernel_init=jd.init.he_normal())
    assert first == nn.Linear(2, 3, kernel_init=jd.init.he_normal())
    assert first != nn.Linear(2, 3)
    assert tree.flatten(jd.declared(first))["kernel"].init == jd.init.he_normal()
