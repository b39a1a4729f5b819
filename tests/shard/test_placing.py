"""Shardings of any pytree, arrays born with them, and optimizers that follow."""

import functools

from flax import linen
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
from optax import contrib
import pytest

import jaxdl as jd
from jaxdl import nn, shard
from jaxdl.core import tree

MESH = jd.mesh(fsdp=4, tensor=2)
MODEL = nn.FeedForward(8, 16, gated=True)
PARAMS = jd.abstract(MODEL)
PLACED = shard.shardings(MODEL, MESH, shard.FSDP_TENSOR)


def specs(placed):
    return {path: leaf.spec for path, leaf in tree.flatten(placed).items()}


def test_a_module_is_placed_by_its_declaration():
    assert specs(PLACED) == {
        "down/kernel": P("tensor", "fsdp"),
        "gate/kernel": P("fsdp", "tensor"),
        "up/kernel": P("fsdp", "tensor"),
    }


def test_a_plain_tree_is_placed_the_same_by_axes_or_patterns():
    by_tree = shard.shardings(PARAMS, MESH, shard.FSDP_TENSOR, axes=jd.axes(MODEL))
    patterns = {"down/*": ("mlp", "embed"), "**": ("embed", "mlp")}
    by_pattern = shard.shardings(PARAMS, MESH, shard.FSDP_TENSOR, axes=patterns)
    assert by_tree == by_pattern == PLACED


def test_one_tuple_names_the_leading_dimensions_of_all():
    batch = {"x": np.zeros((8, 3, 2)), "y": np.zeros(8), "n": np.float32(0)}
    placed = shard.shardings(batch, MESH, shard.DATA, axes=("batch", "sequence"))
    assert specs(placed) == {"x": P("fsdp"), "y": P("fsdp"), "n": P()}


def test_flax_metadata_are_axes():
    names = linen.with_logical_partitioning(
        linen.initializers.lecun_normal(), ("embed", "mlp")
    )
    model = linen.Dense(16, kernel_init=names)
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8)))
    placed = shard.shardings(
        linen.meta.unbox(boxed), MESH, shard.FSDP_TENSOR,
        axes=linen.get_partition_spec(boxed),
    )  # fmt: skip
    assert specs(placed) == {
        "params/bias": P(),
        "params/kernel": P("fsdp", "tensor"),
    }


def test_overrides_are_specs_whatever_the_rules_say():
    over = {"*/kernel": P(None, "tensor")}
    placed = shard.shardings(MODEL, MESH, shard.FSDP, overrides=over)
    assert set(specs(placed).values()) == {P(None, "tensor")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"axes": {"nothing/*": ("embed",)}}, "fits no path"),
        ({"axes": {"**": ("embed",)}}, "down/kernel: expected one axis name for each"),
        ({"axes": {"down": 3}}, "axes: expected a tree of tuples"),
        ({"overrides": {"nothing": P()}}, "fits no path"),
        ({"overrides": {"up/*": P(None, None, "fsdp")}}, "up/kernel: expected a spec"),
    ],
)
def test_what_does_not_fit_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        shard.shardings(PARAMS, MESH, shard.FSDP, **given)


def test_parameters_are_born_sharded_with_the_same_bits(key):
    born = shard.init(MODEL, key, MESH, shard.FSDP_TENSOR)
    jax.tree.map(np.testing.assert_array_equal, born, MODEL.init(key))
    assert jax.tree.map(lambda leaf: leaf.sharding, born) == PLACED


def test_any_function_of_a_key_is_born_sharded(key):
    def draw(key):
        return {"w": jax.random.normal(key, (8, 16))}

    born = shard.init(draw, key, MESH, shard.FSDP_TENSOR, axes={"w": ("embed", "mlp")})
    assert born["w"].sharding.spec == P("fsdp", "tensor")
    np.testing.assert_array_equal(born["w"], draw(key)["w"])


def test_no_array_is_whole_on_a_device_while_it_is_born(key, optimized):
    model = nn.Repeat(nn.FeedForward(128, 512), 4)
    placed = shard.shardings(model, MESH, shard.FSDP_TENSOR)
    program = jax.jit(model.init, out_shardings=placed).lower(key).compile()
    memory = program.memory_analysis()
    eighth = jd.nbytes(jd.abstract(model)) // 8
    assert memory.output_size_in_bytes <= eighth + 1024
    # Of the bits and the values, parts alone; an array is half of all.
    assert memory.temp_size_in_bytes < 4 * eighth
    assert not [c for c in shard.collectives(program, MESH) if c.nbytes > 1024]


def test_arrays_that_exist_are_moved(key):
    moved = shard.place(MODEL.init(key), MESH, shard.FSDP_TENSOR, axes=jd.axes(MODEL))
    assert jax.tree.map(lambda leaf: leaf.sharding, moved) == PLACED


def labels(params):
    return tree.map_with_path(lambda p, _: "a" if "down" in p else "b", params)


OPTIMIZERS = {
    "adamw": optax.adamw(1e-3),
    "lion": optax.lion(1e-3),
    "momentum": optax.sgd(1e-3, momentum=0.9),
    "muon": contrib.muon(1e-3),
    "apply_if_finite": optax.apply_if_finite(optax.adam(1e-3), 3),
    "MultiSteps": optax.MultiSteps(optax.adam(1e-3), 4),
    "masked": optax.masked(optax.adam(1e-3), tree.mask(PARAMS, "down/*")),
    "partition": optax.partition(
        {"a": optax.adam(1e-3), "b": optax.chain(optax.trace(0.9), optax.scale(0.1))},
        labels,
    ),
    "schedule_free": contrib.schedule_free_adamw(1e-3),
    "adafactor": optax.adafactor(1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_any_optimizer_follows_its_parameters(name):
    optimizer = OPTIMIZERS[name]
    placed = shard.optimizer_state(optimizer, PARAMS, PLACED)
    shapes = jax.eval_shape(optimizer.init, PARAMS)
    owners = {(leaf.shape, path): PLACED for path, leaf in tree.flatten(PARAMS).items()}
    followers = 0
    for path, leaf in tree.flatten(shapes).items():
        sharding = tree.flatten(placed)[path]
        owner = [o for shape, o in owners if path.endswith(o) and shape == leaf.shape]
        if owner:
            assert sharding == tree.flatten(PLACED)[owner[0]]
            followers += 1
        else:
            assert sharding.spec == P()
    assert followers >= 1


@pytest.mark.parametrize("name", ["adamw", "lion", "momentum", "MultiSteps"])
def test_optax_itself_maps_the_same_leaves_to_parameters(name):
    optimizer = OPTIMIZERS[name]
    whole = NamedSharding(MESH, P())
    theirs = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, PARAMS),
        PLACED,
        transform_non_params=lambda _: whole,
    )
    assert shard.optimizer_state(optimizer, PARAMS, PLACED) == theirs


def test_a_factored_moment_is_split_as_the_dimensions_that_are_left():
    params = {"w": jax.ShapeDtypeStruct((256, 128), jnp.float32)}
    axes = {"w": ("embed", "mlp")}
    placed = shard.shardings(params, MESH, shard.FSDP_TENSOR, axes=axes)
    state = shard.optimizer_state(optax.adafactor(1e-3), params, placed)
    shapes = tree.flatten(jax.eval_shape(optax.adafactor(1e-3).init, params))
    by_shape = {shapes[path].shape: spec for path, spec in specs(state).items()}
    assert by_shape[256,] == P("fsdp")
    assert by_shape[128,] == P("tensor")


def test_the_longest_path_owns_a_leaf():
    params = {"w": jnp.zeros(8), "a": {"w": jnp.zeros(8)}}
    placed = {
        "w": NamedSharding(MESH, P()),
        "a": {"w": NamedSharding(MESH, P("fsdp"))},
    }
    state = shard.optimizer_state(optax.trace(0.9), params, placed)
    assert specs(state) == {"trace/w": P(), "trace/a/w": P("fsdp")}


def test_zero_1_splits_the_optimizer_and_not_the_parameters():
    assert set(specs(shard.shardings(MODEL, MESH, shard.ZERO1)).values()) == {P()}
    of = functools.partial(shard.shardings, MODEL, MESH, shard.ZERO1)
    state = shard.optimizer_state(optax.adam(1e-3), PARAMS, of(kind="optimizer"))
    assert specs(state)["0/mu/up/kernel"] == P("fsdp")


def test_a_state_is_built_on_a_mesh_as_it_is_on_one_device(key):
    model = nn.Sequential([nn.Linear(8, 16, axes=("embed", "mlp")), nn.BatchNorm(16)])
    build = jd.train.TrainState
    optimizer = optax.adam(1e-3)
    sharded = build.sharded(
        model, optimizer, MESH, shard.FSDP_TENSOR, key=key, ema=True
    )
    plain = build.create(
        model.init(key), optimizer, key=key, ema=True, model_state=model.init_state(key)
    )
    abstract = build.abstract(model, optimizer, MESH, shard.FSDP_TENSOR, ema=True)
    assert sharded.shardings == abstract.shardings
    assert sharded.opt_state[0].mu["0"]["kernel"].sharding.spec == P("fsdp", "tensor")
    assert sharded.ema["0"]["kernel"].sharding.spec == P("fsdp", "tensor")
    data = [jax.random.key_data(state.key) for state in (sharded, plain)]
    np.testing.assert_array_equal(*data)
    jax.tree.map(
        np.testing.assert_array_equal,
        sharded.replace(key=None),
        plain.replace(key=None),
    )
