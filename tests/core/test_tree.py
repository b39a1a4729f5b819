from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxdl.core import tree

names = st.text("abc0123456789_", min_size=1, max_size=4)
trees = st.recursive(
    st.integers(), lambda below: st.dictionaries(names, below, min_size=1), max_leaves=8
).filter(lambda node: isinstance(node, dict))


@given(trees)
def test_unflatten_is_the_inverse_of_flatten(nested):
    assert tree.unflatten(tree.flatten(nested)) == nested


@given(trees)
def test_every_path_is_a_pattern_that_fits_itself_alone(nested):
    leaves = tree.flatten(nested)
    for path in leaves:
        assert tree.matching(path, leaves) == [path]


@given(trees)
def test_two_stars_fit_every_path(nested):
    leaves = tree.flatten(nested)
    assert tree.matching("**", leaves) == list(leaves)


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*", "a", True),
        ("*", "a/b", False),
        ("a/*/c", "a/b/c", True),
        ("a/*/c", "a/b/b/c", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("**/bias", "bias", True),
        ("**/bias", "a/b/bias", True),
        ("**/bias", "a/my_bias", False),
        ("a/**", "a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("w_*", "w_in", True),
        ("a.b", "axb", False),
        ("a[0]", "a0", False),
    ],
)
def test_patterns_fit_what_they_say(pattern, path, fits):
    assert tree.matches(pattern, path) is fits


def test_paths_name_tuples_and_optax_states_too():
    state = optax.adam(1e-3).init({"layer": {"kernel": jnp.ones(2)}})
    assert "0/mu/layer/kernel" in tree.flatten(state)


def test_a_pattern_that_fits_nothing_is_an_error_that_names_near_paths():
    with pytest.raises(ValueError, match="did you mean 'layer/kernel'"):
        tree.matching("layer/kernal", ["layer/kernel", "layer/bias"])


def test_a_mask_marks_what_fits_in_the_same_structure():
    params = {"a": {"kernel": 1, "bias": 2}, "b": {"kernel": 3}}
    expected = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
    assert tree.mask(params, "**/kernel") == expected


def test_a_path_cannot_be_a_leaf_and_a_parent():
    with pytest.raises(ValueError, match="a/b: 'a' is a leaf"):
        tree.unflatten({"a": 1, "a/b": 2})
    with pytest.raises(ValueError, match="a: expected a new path"):
        tree.unflatten({"a/b": 2, "a": 1})


def test_count_and_nbytes_take_arrays_and_shapes_alike():
    arrays = {"a": jnp.ones((2, 3)), "b": jnp.ones(4, jnp.bfloat16)}
    shapes = jax.eval_shape(lambda: arrays)
    assert tree.count(arrays) == tree.count(shapes) == 10
    assert tree.nbytes(arrays) == tree.nbytes(shapes) == 24 + 8
