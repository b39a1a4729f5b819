import dataclasses
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdl as jd
from jaxdl import nn


class Scale(jd.Module):
    dim: int

    def spec(self):
        return {"scale": jd.Param((self.dim,), jd.init.ones, role="scale")}

    def __call__(self, params, x):
        return x * params["scale"]


class Pair(jd.Module):
    first: jd.Module
    second: jd.Module
    rest: tuple = ()

    def __call__(self, params, x):
        return self.second(params["second"], self.first(params["first"], x))


def test_modules_compare_and_hash_by_value():
    assert nn.Linear(2, 3) == nn.Linear(2, 3)
    assert hash(nn.Linear(2, 3)) == hash(nn.Linear(2, 3))
    assert nn.Linear(2, 3) != nn.Linear(2, 4)
    assert Scale(3) != nn.Linear(3, 3)


def test_a_module_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scale(3).dim = 4  # type: ignore[misc]


def test_a_list_becomes_a_tuple_so_that_the_model_hashes():
    model = nn.Sequential([nn.Linear(2, 3), [jnp.tanh]])  # type: ignore[list-item]
    assert model.layers == (nn.Linear(2, 3), (jnp.tanh,))
    assert isinstance(hash(model), int)


def test_an_array_in_a_field_is_refused_and_told_where_it_belongs():
    with pytest.raises(TypeError, match=r"Scale.dim: .*float32\[2\].*spec\(\)"):
        Scale(jnp.ones(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Pair.rest\[1\]: .*float64\[3\]"):
        Pair(Scale(1), Scale(1), (1, np.ones(3)))


def test_an_unhashable_field_is_refused():
    with pytest.raises(
        TypeError, match="Scale.dim: expected a hashable value, got dict"
    ):
        Scale({})  # type: ignore[arg-type]


def test_a_field_cannot_hide_a_method():
    with pytest.raises(TypeError, match="a field cannot be called 'init'"):

        class Bad(jd.Module):
            init: int


def test_a_module_is_a_static_argument_of_jit_and_an_equal_one_does_not_retrace():
    traces = []

    @jax.jit
    def run(model, params, x):
        traces.append(1)
        return model(params, x)

    params = nn.Linear(2, 3).init(jax.random.key(0))
    run(nn.Linear(2, 3), params, jnp.ones(2))
    run(nn.Linear(2, 3), params, jnp.ones(2))
    assert len(traces) == 1


def test_a_pickled_module_hashes_right_in_a_process_with_other_string_hashes():
    model = nn.Sequential([nn.Linear(2, 3, axes=("embed", "mlp"))])
    hash(model)  # fills the cache, which must not travel
    code = (
        "import pickle, sys; from jaxdl import nn\n"
        f"model = pickle.loads({pickle.dumps(model)!r})\n"
        "again = nn.Sequential([nn.Linear(2, 3, axes=('embed', 'mlp'))])\n"
        "sys.exit(0 if model == again and hash(model) == hash(again) else 1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_default_spec_is_the_modules_among_the_fields():
    model = Pair(Scale(2), nn.Dropout(0.1), (Scale(3), "no module", (Scale(4),)))
    tree = {
        "first": {"scale": (2,)},
        "second": {},
        "rest": {"0": {"scale": (3,)}, "2": {"0": {"scale": (4,)}}},
    }
    assert jax.tree.map(lambda leaf: leaf.shape, jd.abstract(model)) == jax.tree.map(
        tuple, tree, is_leaf=lambda node: isinstance(node, tuple)
    )


@pytest.mark.parametrize(
    "bad", [3, {"a": 3}, {"a/b": jd.Param((1,))}, {1: jd.Param((1,))}]
)
def test_a_wrong_spec_is_an_error_that_names_the_place(bad):
    class Wrong(jd.Module):
        def spec(self):
            return {"part": bad}

    with pytest.raises(TypeError, match="part"):
        jd.declared(Wrong())


def test_map_modules_reaches_every_part_under_the_path_of_its_parameters():
    block = nn.Residual(nn.Sequential([nn.Linear(4, 4), nn.Dropout(0.1)]))
    model = nn.Sequential([nn.Repeat(block, 2), nn.Attention(4, 2)])
    paths = {}

    def visit(path, module):
        paths.setdefault(path, []).append(type(module).__name__)
        return module

    assert jd.map_modules(visit, model) == model
    assert paths["0/0"] == ["Linear"]
    assert paths["1/q"] == ["Linear"]
    assert paths["0"] == ["Sequential", "Residual", "Repeat"]


def test_map_modules_replaces_inner_modules_first():
    model = nn.Sequential([nn.Attention(4, 2, dropout=0.5), nn.Dropout(0.5)])

    def off(path, module):
        return nn.Dropout(0.0) if isinstance(module, nn.Dropout) else module

    calm = jd.map_modules(off, model)
    params = calm.init(jax.random.key(0))
    calm(params, jnp.ones((1, 2, 4)))  # asks for no key any more
    with pytest.raises(TypeError, match="0/drop: dropout"):
        model(params, jnp.ones((1, 2, 4)))


def test_an_error_names_the_path_and_what_was_expected_and_got():
    model = nn.Sequential([nn.Linear(2, 3), nn.Sequential([nn.Linear(4, 1)])])
    params = model.init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"1/0: expected \[..., 4\], got float32\[5, 3\]"
    ):
        model(params, jnp.ones((5, 2)))


def test_an_error_inside_a_layer_notes_the_path_and_what_params_lack():
    model = Pair(Scale(2), nn.Linear(2, 3))
    params = {"first": {"scale": jnp.ones(2)}, "second": {"kernel": jnp.ones((3, 3))}}
    with pytest.raises(Exception) as error:
        model(params, jnp.ones((1, 2)))
    notes = "\n".join(error.value.__notes__)
    assert "in second (Linear)" in notes
    assert "second/kernel: expected float32[2, 3], got float32[3, 3]" in notes
    assert "second/bias: missing" in notes


def test_check_params_lists_everything_wrong_at_once():
    model = Pair(Scale(2), nn.Linear(2, 3))
    params = {
        "first": {"scale": jnp.ones(3)},
        "second": {"kernel": jnp.ones((2, 3)), "x": 1},
    }
    with pytest.raises(ValueError) as error:
        jd.check_params(model, params)
    for line in (
        "first/scale: expected",
        "second/bias: missing",
        "second/x: unexpected",
    ):
        assert line in str(error.value)
    jd.check_params(model, model.init(jax.random.key(0)))


def test_the_path_of_a_part_is_found_when_params_were_rebuilt_on_the_way():
    class Rebuilding(jd.Module):
        up: nn.Linear
        down: nn.Linear

        def __call__(self, params, x):
            down = jax.checkpoint(lambda p, x: self.down(p, x))
            return down(params["down"], self.up(params["up"], x))

    model = Rebuilding(nn.Linear(2, 3), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="down: expected"):
        model(model.init(jax.random.key(0)), jnp.ones((1, 2)))


def test_one_module_in_two_places_is_named_by_the_params_it_is_handed():
    shared = nn.Linear(2, 2)
    model = Pair(shared, shared)
    params = model.init(jax.random.key(0))
    params["second"]["kernel"] = jnp.ones((3, 2))
    with pytest.raises(Exception) as error:
        model(params, jnp.ones((1, 2)))
    assert "in second (Linear)" in error.value.__notes__


def test_a_declaration_refuses_what_does_not_fit_its_shape():
    with pytest.raises(ValueError, match="one axis name for each of the 2"):
        jd.Param((2, 3), axes=("embed",))
    with pytest.raises(ValueError, match="role"):
        jd.Param((2,), role="kernel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="0 or more"):
        jd.Param((-1,))
