import functools

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxdl as jd
from jaxdl import nn


class Block(jd.Module):
    up: nn.Linear
    down: nn.Linear

    def __call__(self, params, x):
        hidden = jd.tap(jnp.tanh(self.up(params["up"], x)), "hidden")
        return jd.tap(x + self.down(params["down"], hidden), "out")


class Tower(jd.Module):
    blocks: nn.Repeat
    head: nn.Linear

    def __call__(self, params, x):
        x = self.blocks(params["blocks"], x)
        return jd.tap(self.head(params["head"], x), "logits")


LAYERS = 3
block = Block(nn.Linear(4, 6), nn.Linear(6, 4))
tower = Tower(nn.Repeat(block, LAYERS), nn.Linear(4, 2))
remat = Tower(nn.Repeat(block, LAYERS, remat=True), nn.Linear(4, 2))
params = tower.init(jax.random.key(0))
x = jax.random.normal(jax.random.key(1), (5, 4))


def by_hand(params, x, deltas=None):
    """The tower written out, with what is added to each hidden value as an argument.

    It is the oracle: its values come out as results, never by a tap.
    """
    hiddens, outs = [], []
    for i in range(LAYERS):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
        hidden = jnp.tanh(x @ layer["up"]["kernel"] + layer["up"]["bias"])
        hidden = hidden if deltas is None else hidden + deltas[i]
        x = x + hidden @ layer["down"]["kernel"] + layer["down"]["bias"]
        hiddens.append(hidden)
        outs.append(x)
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    values = {"blocks/hidden": jnp.stack(hiddens), "blocks/out": jnp.stack(outs)}
    return logits, values | {"logits": logits}


def close(ours, oracle):
    chex.assert_trees_all_close(ours, oracle, rtol=1e-5, atol=1e-6)


def test_capture_gives_the_values_by_path_with_a_leading_layer_axis():
    close(jd.capture(tower, "**")(params, x), by_hand(params, x))


def test_capture_goes_through_jit_inside_and_outside():
    close(jax.jit(jd.capture(tower, "**"))(params, x), by_hand(params, x))
    close(jd.capture(jax.jit(tower), "**")(params, x), by_hand(params, x))


def test_capture_goes_through_remat_and_its_gradient_is_that_of_the_function():
    close(jd.capture(remat, "**")(params, x), by_hand(params, x))

    def loss(params, function):
        return jnp.sum(jnp.sin(function(params, x)[0]))

    def grads(function):
        return jax.jit(jax.grad(functools.partial(loss, function=function)))(params)

    close(grads(jd.capture(remat, "**")), grads(by_hand))


def test_a_captured_value_can_be_differentiated():
    def loss(params, function):
        return jnp.sum(function(params, x)[1]["blocks/hidden"] ** 2)

    def grads(function):
        return jax.jit(jax.grad(functools.partial(loss, function=function)))(params)

    expected = grads(by_hand)
    for model in (tower, remat):
        close(grads(jd.capture(model, "**")), expected)


def test_capture_goes_through_vmap_and_shows_the_batch_axis_first():
    per_row = jax.vmap(tower, in_axes=(None, 1), out_axes=1)
    logits, values = jd.capture(per_row, "**")(params, x.T)
    expected, named = by_hand(params, x)
    close(logits, expected.T)
    close(values, named)


def test_vmap_of_capture_is_a_batch_of_captures():
    logits, values = jax.vmap(jd.capture(tower, "**"), in_axes=(None, 0))(params, x)
    expected, named = by_hand(params, x)
    close(logits, expected)
    close(values["blocks/hidden"], jnp.swapaxes(named["blocks/hidden"], 0, 1))


def test_nested_vmaps_show_the_outer_batch_axis_first():
    def f(a, b):
        return jd.tap(a[:, None] * b, "product").sum()

    a, b = jnp.arange(6.0).reshape(2, 3), jnp.arange(20.0).reshape(5, 4)
    both = jax.vmap(jax.vmap(f, in_axes=(None, 0)), in_axes=(0, None))
    _, values = jd.capture(both, "product")(a, b)
    close(values["product"], jnp.einsum("ni,mj->nmij", a, b))
    flipped = jax.vmap(jax.vmap(f, in_axes=(0, None)), in_axes=(None, 0))
    _, values = jd.capture(flipped, "product")(a, b)
    close(values["product"], jnp.einsum("ni,mj->mnij", a, b))


def test_only_what_is_asked_for_comes_back():
    _, values = jd.capture(tower, "blocks/out", "log*")(params, x)
    assert set(values) == {"blocks/out", "logits"}


def test_taps_lists_names_and_shapes_without_computing():
    shapes = jd.taps(
        tower, jd.abstract(tower), jax.ShapeDtypeStruct((5, 4), jnp.float32)
    )
    expected = {name: value.shape for name, value in by_hand(params, x)[1].items()}
    assert {name: shape.shape for name, shape in shapes.items()} == expected


def test_a_patch_by_what_was_captured_changes_nothing():
    logits, values = jd.capture(tower, "blocks/hidden")(params, x)
    close(jd.patch(tower, values)(params, x), logits)


@pytest.mark.parametrize("model", [tower, remat], ids=["plain", "remat"])
def test_a_patch_goes_through_scan_and_remat(model):
    deltas = jax.random.normal(jax.random.key(2), (LAYERS, 5, 6))
    expected, _ = by_hand(params, x, deltas)
    edit = jd.by_layer(lambda value, delta: value + delta, deltas)
    close(jax.jit(jd.patch(model, {"blocks/hidden": edit}))(params, x), expected)


@pytest.mark.parametrize("layer", [0, 2, -1])
def test_one_layer_can_be_patched(layer):
    deltas = jnp.zeros((LAYERS, 1, 1)).at[layer].set(0.5)
    expected, _ = by_hand(params, x, deltas)
    edit = jd.at(layer, lambda value: value + 0.5)
    close(jd.patch(tower, {"blocks/hidden": edit})(params, x), expected)


def test_the_layer_may_be_traced_so_that_a_grid_of_patches_is_one_program():
    @jax.jit
    def grid(params, x):
        def one(layer):
            edit = jd.at(layer, lambda value: value + 0.5)
            return jd.patch(tower, {"blocks/hidden": edit})(params, x)

        return jax.vmap(one)(jnp.arange(LAYERS))

    deltas = 0.5 * jnp.eye(LAYERS)[:, :, None, None]
    close(
        grid(params, x), jnp.stack([by_hand(params, x, delta)[0] for delta in deltas])
    )


def test_the_gradient_with_respect_to_a_patch_is_that_of_the_named_value():
    def ours(deltas):
        edit = jd.by_layer(lambda value, delta: value + delta, deltas)
        return jnp.sum(jnp.sin(jd.patch(remat, {"blocks/hidden": edit})(params, x)))

    def oracle(deltas):
        return jnp.sum(jnp.sin(by_hand(params, x, deltas)[0]))

    zeros = jnp.zeros((LAYERS, 5, 6))
    close(*jax.jit(lambda z: (jax.grad(ours)(z), jax.grad(oracle)(z)))(zeros))


def test_patches_in_a_scan_in_a_scan_nest():
    nested = nn.Repeat(nn.Repeat(block, 2), 3)
    weights = nested.init(jax.random.key(3))
    flat = jax.tree.map(lambda leaf: leaf.reshape(6, *leaf.shape[2:]), weights)
    edit = jd.at(1, jd.at(0, lambda value: value * 0.0))
    ours = jd.patch(nested, {"hidden": edit})(weights, x)
    same = jd.patch(nn.Repeat(block, 6), {"hidden": jd.at(2, 0.0)})(flat, x)
    close(ours, same)
    _, values = jd.capture(nested, "hidden")(weights, x)
    assert values["hidden"].shape == (3, 2, 5, 6)


def test_captures_see_what_a_patch_inside_them_changed():
    patched = jd.patch(tower, {"blocks/hidden": jd.at(1, 0.0)})
    _, values = jd.capture(patched, "blocks/hidden")(params, x)
    assert (values["blocks/hidden"][1] == 0).all()
    assert (values["blocks/hidden"][2] != 0).any()


def test_several_edits_of_one_tap_apply_in_order():
    edits = {"logits": lambda value: value + 1.0, "log*": lambda value: value * 2.0}
    logits, _ = by_hand(params, x)
    close(jd.patch(tower, edits)(params, x), (logits + 1.0) * 2.0)


def test_a_name_used_again_is_numbered_and_either_can_be_chosen():
    def f(x):
        for _ in range(3):
            x = jd.tap(x + 1.0, "step")
        return x

    _, values = jd.capture(f, "step")(0.0)
    assert {name: float(v) for name, v in values.items()} == {
        "step": 1.0,
        "step@1": 2.0,
        "step@2": 3.0,
    }
    assert float(jd.patch(f, {"step@1": lambda value: value * 10})(0.0)) == 21.0


def test_numbering_goes_on_through_scan_and_jit():
    def f(x):
        x = jd.tap(x + 1.0, "a")
        x, _ = jax.lax.scan(
            lambda c, _: (jd.tap(c + 1.0, "a"), None), x, None, length=2
        )
        return jax.jit(lambda c: jd.tap(c + 1.0, "a"))(x)

    _, values = jd.capture(f, "**")(0.0)
    assert {name: v.tolist() for name, v in values.items()} == {
        "a": 1.0,
        "a@1": [2.0, 3.0],
        "a@2": 4.0,
    }
    _, values = jd.capture(f, "a@2")(0.0)
    assert set(values) == {"a@2"}


def test_a_reversed_scan_keeps_the_order_of_its_inputs():
    def f(xs):
        def step(carry, x):
            return carry + x, jd.tap(carry, "carry")

        return jax.lax.scan(step, 0.0, xs, reverse=True)

    (_, ys), values = jd.capture(f, "carry")(jnp.arange(4.0))
    close(values["carry"], ys)


def test_python_scalars_stay_python_scalars():
    def f(x, *, train):
        return jd.tap(x, "x") if train else x * 2

    assert float(jd.capture(f, "x")(3.0, train=True)[1]["x"]) == 3.0
    with pytest.raises(ValueError, match="fits no tap; there are none"):
        jd.capture(f, "x")(3.0, train=False)


def test_a_tree_is_tapped_leaf_by_leaf():
    def f(x):
        return jd.tap({"a": x, "b": (x + 1,)}, "tree")

    _, values = jd.capture(f, "tree/**")(1.0)
    assert set(values) == {"tree/a", "tree/b/0"}


def inside_cond(x):
    return jax.lax.cond(x.sum() > 0, lambda x: jd.tap(x, "inside"), lambda x: x, x)


def inside_while(x):
    return jax.lax.while_loop(
        lambda x: x.sum() < 9, lambda x: jd.tap(x + 1, "inside"), x
    )


def inside_shard_map(x):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    function = jax.shard_map(
        lambda x: jd.tap(x, "inside"), mesh=mesh, in_specs=jax.P(), out_specs=jax.P()
    )
    return function(x)


@jax.custom_vjp
def _square(x):
    return jd.tap(x, "inside") ** 2


_square.defvjp(lambda x: (x**2, x), lambda x, g: (7 * g,))


def inside_custom_vjp(x):
    return _square(x)


def inside_custom_jvp(x):
    return _cube(x)


@jax.custom_jvp
def _cube(x):
    return jd.tap(x, "inside") ** 3


_cube.defjvp(lambda primals, tangents: (_cube(*primals), 5 * tangents[0]))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (inside_cond, "cond.*tap the result of the cond"),
        (inside_while, "while loop.*before or after the loop"),
        (inside_shard_map, "shard_map.*arguments or results"),
        (inside_custom_vjp, "custom_vjp.*arguments or results"),
        (inside_custom_jvp, "custom_jvp.*arguments or results"),
    ],
)
def test_where_capture_cannot_reach_it_says_so_and_where_to_tap(function, words):
    for way in (jd.capture(function, "inside"), jd.patch(function, {"inside": 0.0})):
        with pytest.raises(ValueError, match=f"inside: .*{words}"):
            way(jnp.ones(2))
    assert jd.taps(function, jnp.ones(2)) == {}


def test_what_is_out_of_reach_runs_as_it_is_and_keeps_its_own_gradient():
    def f(x):
        return jd.tap(inside_custom_vjp(inside_cond(x)), "outside").sum()

    result, values = jd.capture(f, "outside")(jnp.ones(2))
    close(values["outside"], jnp.ones(2))
    grad = jax.grad(lambda x: jd.capture(f, "outside")(x)[0])(jnp.ones(2))
    close(grad, 7 * jnp.ones(2))
    assert result == 2


def test_a_misspelt_pattern_names_the_nearest_tap():
    with pytest.raises(ValueError, match="did you mean 'blocks/hidden'"):
        jd.capture(tower, "blocks/hiden")(params, x)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda value: value[:2],
            r"blocks/hidden: expected float32\[5, 6\], edit gave",
        ),
        (lambda value: value + 1j, "blocks/hidden: expected float32"),
        (jnp.ones((2, 5, 6)), "leading axis of 3, one for each layer"),
        (jd.at(3, 0.0), "a layer below 3, got 3"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit, words):
    with pytest.raises(ValueError, match=words):
        jd.patch(tower, {"blocks/hidden": edit})(params, x)


def test_at_outside_a_scan_is_refused():
    with pytest.raises(ValueError, match="needs a tap inside a scan"):
        jd.patch(tower, {"logits": jd.at(0, 0.0)})(params, x)


def test_capture_keeps_the_sharding_a_jit_asked_for():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    inner = jax.jit(lambda x: jd.tap(x * 2, "double"), out_shardings=sharding)
    result, values = jax.jit(jd.capture(inner, "double"))(jnp.arange(16.0))
    assert result.sharding.is_equivalent_to(sharding, 1)
    close(values["double"], jnp.arange(16.0) * 2)


def test_save_taps_keeps_just_the_named_values_for_the_backward_pass():
    class Sine(jd.Module):
        def __call__(self, params, x):
            return jd.tap(jnp.sin(x), "hidden") ** 2

    def times_computed(policy):
        model = nn.Repeat(Sine(), LAYERS, remat=policy)
        grad = jax.grad(lambda x: model({}, x).sum())
        return str(jax.make_jaxpr(grad)(x)).count("= sin ")

    # Forward and recomputed; with the value saved, it is not computed twice.
    assert times_computed(True) == 2
    assert times_computed(jd.save_taps("**/nothing")) == 2
    assert times_computed(jd.save_taps("**/hidden")) == 1
    assert jd.save_taps("a") == jd.save_taps("a") != jd.save_taps("b")
